"""So3krates' attention with everything folded that does not change during a simulation.

`FoldedAttention` equals `attncalc.nn.so3krates.EuclideanAttention` for fixed weights: the block-diagonal
projections become one matrix, the radial networks their Chebyshev coefficients, both filters one
product, all reductions and repetitions over heads products with 0/1 matrices. A step of a small
molecule then launches a third fewer operations, a step of a large one does half the arithmetic.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attncalc.kernels.collocation import CollocatedRadial


class FoldedAttention(nn.Module):
    """Takes the place of an `EuclideanAttention` whose weights no longer change.

    Args:
        attention: stays as it is.
        radial: interpolates the radial networks; the geometry's `radial` must come from it.
    """

    def __init__(self, attention: Any, radial: CollocatedRadial) -> None:
        super().__init__()
        width, dtype = attention.to_heads.shape[1], attention.to_heads.dtype
        heads, n_degrees = attention.heads, attention.n_degrees
        self.width, self.n_degrees = width, n_degrees
        self.qk_activation = attention.qk_activation
        queries, keys, values = _dense_projections(attention)
        self.register_buffer("projection", torch.cat([queries, keys, values], dim=1))  # [F, 5 F]
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
        to_heads = torch.zeros(2 * width, heads + n_degrees, dtype=dtype)
        to_heads[:width, :heads] = attention.to_heads[0, :, :heads]
        to_heads[width:, heads:] = attention.to_heads[1, :, :n_degrees]
        self.register_buffer("to_heads", to_heads)
        spread = torch.ones(1, width // heads, dtype=dtype)
        self.register_buffer(
            "repeat", torch.block_diag(*[spread] * heads, attention.repeat)
        )  # [H + n_degrees, F + M]
        self.register_buffer("contract", attention.contract)

    def forward(
        self, features: Tensor, ev: Tensor | None, geometry: Any
    ) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        n, width = features.shape
        projected = features @ self.projection
        queries = self.qk_activation(projected[:, : 2 * width])
        keys = self.qk_activation(projected[:, 2 * width : 4 * width])
        received = queries.index_select(0, geometry.receivers).view(2, -1, 2 * width)
        sent = keys.index_select(0, geometry.senders).view(2, -1, 2 * width)
        values = projected[:, 4 * width :].index_select(0, geometry.senders)
        product = received * sent * self.filters(ev, geometry)
        alpha = (product.flatten(0, 1) @ self.to_heads).view(2, -1, self.to_heads.shape[1])
        alpha = (alpha * geometry.envelope.unsqueeze(1)).flatten(0, 1)  # [2 P, H + n_degrees]
        carried = torch.cat([values, geometry.harmonics.flatten(0, 1)], dim=1)
        messages = (alpha @ self.repeat) * carried
        total = messages.new_zeros(n, messages.shape[1])
        total = total.index_add(0, geometry.receivers, messages)
        return total[:, :width], total[:, width:]

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


@torch.no_grad()
def folded(network: Any, shortest: float) -> nn.Module:
    """A So3krates for inference that shares with `network` all but its attention blocks.

    Args:
        network: its weights must not change any more; stays as it is.
        shortest: Å; no distance may be shorter.
    """
    radial = CollocatedRadial(network.radial.basis, shortest, network.config.cutoff)
    radial = radial.to(network.parity)
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    twin.radial = radial
    twin.layers = nn.ModuleList()
    for layer in network.layers:
        twin_layer = copy.copy(layer)
        twin_layer._modules = dict(layer._modules)
        twin_layer.attention = FoldedAttention(layer.attention, radial)
        twin.layers.append(twin_layer)
    return twin


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
