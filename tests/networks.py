"""The smallest networks, for tests of what is around networks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.so3krates import So3kratesConfig
from attncalc.ops import segment_sum


def tiny_so3krates(cutoff: float, **changes: Any) -> So3kratesConfig:
    """One layer of eight features, unless some of that is changed."""
    least = {
        "avg_num_neighbors": 8.0,
        "num_features": 8,
        "num_heads": 2,
        "degrees": (1, 2),
        "num_layers": 1,
        "num_basis": 6,
        "head_features": 8,
    }
    return So3kratesConfig(cutoff=cutoff, **(least | changes))


def compiled_so3krates(cutoff: float, **changes: Any) -> So3kratesConfig:
    """Two layers of widths for which steps are compiled, once for all tests of these widths."""
    shape = {
        "avg_num_neighbors": 10.0,
        "num_features": 64,
        "num_heads": 4,
        "degrees": (1, 2, 3, 4),
        "num_layers": 2,
        "head_features": 16,
    }
    return So3kratesConfig(cutoff=cutoff, **(shape | changes))


@dataclass(frozen=True)
class DensityConfig:
    """That of `Density`; `cutoff` in Å."""

    cutoff: float

    @property
    def graph_cutoff(self) -> float:
        return self.cutoff

    @property
    def receptive_field(self) -> float:
        return self.cutoff


class Density(nn.Module):
    """E_i = tanh(sum_j a_j (1 - d_ij² / cutoff²)³): so short that compilers need only seconds."""

    reads_charge = reads_spin = False

    def __init__(self, config: DensityConfig, n_species: int) -> None:
        super().__init__()
        self.config = config
        self.a = nn.Parameter(torch.linspace(0.5, 1.0, n_species))

    def forward(self, graph: Graph) -> AtomOutputs:
        squares = graph.vectors.to(self.a.dtype).square().sum(1)
        left = (1 - squares / self.config.cutoff**2).clamp(min=0) ** 3 * graph.edge_mask
        weighted = self.a[graph.species[graph.senders]] * left
        return AtomOutputs(segment_sum(weighted, graph.receivers, graph.n_atoms).tanh())
