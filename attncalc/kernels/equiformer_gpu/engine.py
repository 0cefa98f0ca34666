"""Energy and forces of an Equiformer potential on a GPU.

Equals `attncalc.nn.equiformer.Equiformer` with scale, reference energies and nuclear repulsion,
for weights that no longer change. Nothing is read back from the device and no shape depends on
numbers there, so that a CUDA graph can hold all of it; no sum depends on the order in which
programs run.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from attncalc.graph import Graph
from attncalc.kernels.equiformer_gpu.block_steps import ALPHA_WIDTH
from attncalc.kernels.equiformer_gpu.making import Maker, step_of
from attncalc.kernels.equiformer_gpu.room import PROGRAMS, Constants, Programs, Room
from attncalc.kernels.equiformer_gpu.step import evaluated
from attncalc.kernels.frozen_zbl import numbers_of
from attncalc.kernels.gpu.found import Found

# of the device's memory that may be filled; the plain path can do with less
SHARE_OF_MEMORY = 0.5
# rows and columns of a radial network's matrices: a program holds a whole one in shared memory,
# 72 KiB at this width, 273 KiB at twice that
WIDEST_RADIAL = 128


def can_run(network: Any) -> bool:
    """Whether the kernels know this network: float32, MLP attention, widths in sixteens.

    And no more heads, radial functions or radial features than there is room for.
    """
    c = network.config
    return (
        network.element.dtype == torch.float32
        and c.attention in ("nonlinear", "linear")
        and step_of(c) > 0
        and c.num_heads <= ALPHA_WIDTH
        and max(c.num_basis, c.radial_features) <= WIDEST_RADIAL
    )


class Engine:
    """Energy and forces of an Equiformer potential.

    Args:
        network: of which `can_run` is true; stays as it is.
        scale, reference_energies: [n_species] eV.
        shortest: Å; see `Found` for structures with closer atoms.
        repulsion: a `ZBLRepulsion` with the physnet cutoff function, or None.
        constants: of it: Coulomb's in eV Å, and where it has ended in Å.
        dtype: that the network is computed in.
        programs: how much they work on.
    """

    def __init__(
        self,
        network: Any,
        scale: Tensor,
        reference_energies: Tensor,
        shortest: float,
        repulsion: Any = None,
        constants: tuple[float, float] = (0.0, 0.0),
        *,
        dtype: torch.dtype = torch.float32,
        programs: Programs = PROGRAMS,
    ) -> None:
        self.config, self.dtype, self.device = network.config, dtype, scale.device
        exact = copy.deepcopy(network).cpu().to(torch.float64)
        with torch.no_grad():
            maker = Maker(exact, [tile.columns for tile in programs.tiles])
            bias = exact.energy.scalar_bias.item()
            self.sizes = maker.sizes()
            self.constants = Constants(
                kind=maker.kind,
                programs=programs,
                tables=maker.tables(dtype, self.device),
                scale=scale.detach().clone(),
                reference=(reference_energies + scale * bias).detach(),
                limits=scale.new_tensor([float(self.config.cutoff), float(shortest)]),
                centres=exact.basis.centres.to(self.device),
                widths=exact.basis.widths.to(self.device),
                repulsion=None if repulsion is None else _pair_term(repulsion, *constants),
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self  # its tensors do not change

    def __call__(self, graph: Graph) -> Found:
        """Results on the graph's device."""
        if graph.n_edges * self.bytes_per_edge > self._memory():
            return _nothing(graph)
        # kernels go to the current device, wherever their tensors are
        with torch.no_grad(), torch.cuda.device_of(graph.vectors):
            return evaluated(Room(self.config, self.sizes, self.constants, graph, self.dtype))

    @property
    def bytes_per_edge(self) -> int:
        """About what is kept of an edge."""
        s = self.sizes
        of_block = 4 * s.width + s.results + 2 * self.config.radial_features
        once = 2 * sum(s.n_weights) + s.products[0] + s.results + s.width
        return (self.config.num_layers * of_block + once) * self.dtype.itemsize

    def _memory(self) -> float:
        if self.device.type != "cuda":
            return math.inf
        return SHARE_OF_MEMORY * torch.cuda.get_device_properties(self.device).total_memory


def _nothing(graph: Graph) -> Found:
    n, n_systems = graph.n_atoms, graph.n_systems
    shapes = ((n_systems,), (n,), (n, 3), (n_systems, 3, 3))
    return Found(*(graph.vectors.new_full(shape, math.nan) for shape in shapes))


def _pair_term(term: Any, unit: float, end: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    charges, inverse_lengths, exponents, weights = numbers_of(term, unit)
    limits = charges.new_tensor([float(term.config.cutoff), end])
    return torch.stack([charges, inverse_lengths], dim=1), exponents, weights, limits
