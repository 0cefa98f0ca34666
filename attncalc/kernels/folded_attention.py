"""So3krates' attention for weights that no longer change.

`FoldedAttention` equals `attncalc.nn.so3krates.EuclideanAttention`. What does not change during a
simulation is folded: the block-diagonal projections become one matrix, the radial networks their
Chebyshev coefficients, both filters one product. The loop over pairs is `attncalc.kernels.attend`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attncalc.compiled import has_numba
from attncalc.kernels.attend import Heads, attend_compiled, attend_plain
from attncalc.kernels.collocation import CollocatedRadial
from attncalc.ops import with_modules

# Chebyshev nodes: in float32 rounding hides what 64 of them leave out
NODES = {torch.float32: 64, torch.float64: 128}


class FoldedAttention(nn.Module):
    """Takes the place of an `EuclideanAttention` whose weights no longer change.

    Args:
        attention: stays as it is.
        radial: interpolates the radial networks; the geometry's `radial` must come from it.
        heads: how features and harmonics are divided.
    """

    projection: Tensor
    first: Tensor
    first_bias: Tensor
    radial: Tensor
    filter: Tensor
    filter_bias: Tensor
    resting_bias: Tensor
    contract: Tensor

    def __init__(self, attention: Any, radial: CollocatedRadial, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.attend = attend_compiled if has_numba() else attend_plain
        self.width = attention.feature_projection.shape[0] * attention.feature_projection.shape[1]
        self.activation = silu if attention.qk_activation is silu else None
        self.register_buffer("projection", torch.cat(_dense_projections(attention), dim=1))
        spherical = attention.spherical_mlp
        self.register_buffer("first", spherical.first)
        self.register_buffer("first_bias", spherical.first_bias)
        second = torch.block_diag(*spherical.second)  # [F/2, 2 F]
        bias = spherical.second_bias.flatten()
        radial_coefficients = torch.cat(list(radial.coefficients(attention.radial_mlp)), dim=1)
        self.register_buffer("radial", radial_coefficients)  # [n_nodes, 2 F]
        self.register_buffer("filter", torch.cat([second, radial_coefficients]))
        self.register_buffer("filter_bias", bias)
        # without Euclidean variables the spherical networks see zeros: a constant
        self.register_buffer("resting_bias", bias + silu(spherical.first_bias) @ second)
        self.register_buffer("contract", attention.contract)

    def forward(self, features: Tensor, ev: Tensor | None, geometry: Any) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        width = self.width
        projected = features @ self.projection  # [n_atoms, 5 F]
        if self.activation is not None:
            queries_and_keys = self.activation(projected[:, : 4 * width])
            projected = torch.cat([queries_and_keys, projected[:, 4 * width :]], dim=1)
        received = self.attend(
            projected,
            self.filters(ev, geometry),
            geometry.envelope,
            geometry.harmonics[0],
            geometry.receivers,
            self.heads,
        )
        return received[:, :width], received[:, width:]

    def filters(self, ev: Tensor | None, geometry: Any) -> Tensor:
        """[P, 2 F]: both filters side by side."""
        polynomials = geometry.radial.polynomials
        if ev is None:
            return torch.addmm(self.resting_bias, polynomials, self.radial)
        i, j = geometry.receivers.chunk(2)
        difference = ev.index_select(0, j) - ev.index_select(0, i)
        invariants = (difference * difference) @ self.contract
        hidden = silu(torch.addmm(self.first_bias, invariants, self.first))
        return torch.addmm(self.filter_bias, torch.cat([hidden, polynomials], dim=1), self.filter)


class RememberedEmbedding(nn.Module):
    """Equals an `Embedding` whose weights no longer change; computed again only for other atoms.

    During a simulation elements, charge and spin stay, and with them the bare atoms' features.

    Args:
        embedding: stays as it is.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self._last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def forward(self, graph: Any) -> Tensor:
        """[n_atoms, F]."""
        inputs = (graph.species, graph.system_idx, graph.charge, graph.spin)
        last = self._last  # one read: another thread may replace it meanwhile
        if last is not None and all(map(torch.equal, inputs, last[0])):
            return last[1]
        features = self.embedding(graph)
        self._last = (tuple(tensor.clone() for tensor in inputs), features)
        return features


@torch.no_grad()
def folded(network: Any, shortest: float) -> nn.Module:
    """A So3krates for inference that shares with `network` all but embedding and attention.

    Args:
        network: its weights must not change any more; stays as it is.
        shortest: Å; no distance may be shorter.
    """
    n_nodes = NODES[network.parity.dtype]
    radial = CollocatedRadial(network.radial.basis, shortest, network.config.cutoff, n_nodes)
    radial = radial.to(network.parity)
    heads = _heads(network.config)
    layers = [
        with_modules(layer, attention=FoldedAttention(layer.attention, radial, heads))
        for layer in network.layers
    ]
    return with_modules(
        network,
        radial=radial,
        embedding=RememberedEmbedding(network.embedding),
        layers=nn.ModuleList(layers),
    )


def _heads(config: Any) -> Heads:
    counts = (config.num_heads, len(config.degrees))
    norms = [config.avg_num_neighbors] * 2
    if config.attention_norm == "sqrt_head_width":
        norms = [math.sqrt(config.num_features // count) for count in counts]
    return Heads(config.num_heads, config.degrees, *norms)


def _dense_projections(attention: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [F, 2 F] (features, geometry), keys likewise, values [F, F]."""
    head = attention.feature_projection.shape[1]
    part = attention.geometry_projection.shape[1]
    feature = [torch.block_diag(*p) for p in attention.feature_projection.split(head, dim=2)]
    geometry = [torch.block_diag(*p) for p in attention.geometry_projection.split(part, dim=2)]
    return (
        torch.cat([feature[0], geometry[0]], dim=1),
        torch.cat([feature[1], geometry[1]], dim=1),
        feature[2],
    )
