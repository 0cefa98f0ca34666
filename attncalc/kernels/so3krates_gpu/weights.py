"""Weights of a So3krates, packed for the kernels: float32, row after row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.so3 import parity
from attncalc.kernels.so3krates.heads import heads_of
from attncalc.kernels.so3krates.tables import (
    Grid,
    cubics,
    filters_of,
    harmonic_norms,
    norms_of_attention,
)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer. L: number of degrees, K = F / 4, matrices are [.., in, out].

    Attributes:
        table: [n_intervals + 1, 4, 2 F], cubics of the radial filters, features then geometry;
            the last row is zero.
        first, first_bias: [L, 2 K], [2 K], hidden layers of both spherical filters.
        second, second_transposed: [2, K, F], [2, F, K].
        projection, projection_transposed: [5, F, F], queries, keys, values of the features,
            queries and keys of the geometry; block-diagonal.
        norm: [4, F], scale and bias after attention, scale and bias after exchange.
        mlp, mlp_transposed, mlp_bias: [2, F, F], [2, F, F], [2, F], refinement.
        mix, mix_transposed, mix_bias: [F, F], [F, F], [F], of the exchange: features to features.
        of_squares: [L, F], sums of squared Euclidean variables to features.
        to_gain: [L, F], features to gains, transposed.
        gain_of_squares, gain_bias: [L, L], [L].
    """

    table: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_transposed: Tensor
    projection: Tensor
    projection_transposed: Tensor
    norm: Tensor
    mlp: Tensor
    mlp_transposed: Tensor
    mlp_bias: Tensor
    mix: Tensor
    mix_transposed: Tensor
    mix_bias: Tensor
    of_squares: Tensor
    to_gain: Tensor
    gain_of_squares: Tensor
    gain_bias: Tensor

    def to(self, device: torch.device) -> LayerWeights:
        """Return the weights on a device."""
        return LayerWeights(**{name: value.to(device) for name, value in vars(self).items()})

    @classmethod
    def of(cls, network: Any, l: int, grid: Grid) -> LayerWeights:
        """Return the weights of layer l of a So3krates in float64."""
        layer, width = network.layers[l], network.config.num_features
        attention, exchange = layer.attention, layer.exchange.linear
        degrees = torch.tensor(network.config.degrees, dtype=torch.float64)
        # sums over orders have no factor 1 / sqrt(2l+1): it is part of the weights that follow
        divide = (2 * degrees + 1).sqrt().unsqueeze(1)
        mlp = attention.spherical_mlp
        second = mlp.second / norms_of_attention(network.config)
        projection = torch.stack(_square_projections(attention))
        after_attention, after_exchange = layer.norm_after_attention, layer.norm_after_exchange
        refinement = (layer.mlp_after_attention.first, layer.mlp_after_attention.second)
        refine = torch.stack([dense.weight for dense in refinement])
        mix = exchange.weight[:width, :width]
        packed = {
            "table": with_zero_row(cubics(filters_of(network, l), grid)),
            "first": mlp.first / divide,
            "first_bias": mlp.first_bias,
            "second": second,
            "second_transposed": second.transpose(1, 2),
            "projection": projection,
            "projection_transposed": projection.transpose(1, 2),
            "norm": torch.stack(
                [
                    *(after_attention.scale, after_attention.bias),
                    *(after_exchange.scale, after_exchange.bias),
                ]
            ),
            "mlp": refine,
            "mlp_transposed": refine.transpose(1, 2),
            "mlp_bias": torch.stack([dense.bias for dense in refinement]),
            "mix": mix,
            "mix_transposed": mix.T,
            "mix_bias": exchange.bias[:width],
            "of_squares": exchange.weight[width:, :width] / divide,
            "to_gain": exchange.weight[:width, width:].T,
            "gain_of_squares": exchange.weight[width:, width:] / divide,
            "gain_bias": exchange.bias[width:],
        }
        assert packed.keys() == {field.name for field in fields(cls)}
        return cls(**{name: single(value) for name, value in packed.items()})


def single(values: Tensor) -> Tensor:
    """Return values as a contiguous float32 tensor without gradient."""
    return values.detach().float().contiguous()


def with_zero_row(table: Tensor) -> Tensor:
    """Append a row of zeros to a table [n_intervals, ...], for edges that do not count."""
    return torch.cat([table, torch.zeros_like(table[:1])])


def _square_projections(attention: Any) -> list[Tensor]:
    """Block-diagonal [F, F]: queries, keys, values of the features, queries, keys of geometry."""
    head = attention.feature_projection.shape[1]
    part = attention.geometry_projection.shape[1]
    blocks = attention.feature_projection.split(head, dim=2)
    return [
        torch.block_diag(*matrices)
        for matrices in (*blocks, *attention.geometry_projection.split(part, dim=2))
    ]


def envelope_table(config: Any, grid: Grid) -> Tensor:
    """[n_intervals + 1, 4], float64: cubics of C(d); the last row is zero."""
    envelope = CUTOFF_FUNCTIONS[config.cutoff_function]
    return with_zero_row(cubics(lambda d: envelope(d, config.cutoff), grid)).contiguous()


def first_layer(network: Any, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tables of the first layer of a So3krates in float64; see `first_messages`.

    Returns:
        coefficients [n_species, n_species, n_intervals + 1, 4, H + L], ordered by receiver's
        element, sender's; features of bare atoms and their values [n_species, F].
    """
    attention, elements = network.layers[0].attention, network.embedding.element
    queries, keys, values = attention.project(elements)
    table = cubics(filters_of(network, 0), grid)  # [n_intervals, 4, 2 F]
    parts = []
    for kind, count in enumerate((attention.heads, attention.n_degrees)):
        q, k = (x[kind].unflatten(1, (count, -1)) for x in (queries, keys))
        by_head = table.chunk(2, dim=2)[kind].unflatten(2, (count, -1))
        parts.append(torch.einsum("ahc,tohc,bhc->abtoh", q, by_head, k))
    coefficients = torch.cat(parts, dim=4)
    coefficients = torch.cat([coefficients, torch.zeros_like(coefficients[:, :, :1])], dim=2)
    return single(coefficients), single(elements), single(values)


def shared_constants(network: Any, grid: Grid) -> dict[str, Tensor]:
    """Return all constants that do not belong to one layer, by their names in the kernels.

    Args:
        network: a So3krates in float64.
        grid: intervals of the tables.
    """
    config = network.config
    highest = max(config.degrees)
    per_length = grid.n_intervals / (grid.cutoff - grid.shortest)
    numbers = (grid.shortest, grid.cutoff, grid.n_intervals, per_length)
    parities = parity(tuple(range(1, highest + 1)))
    return {
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "envelope_table": envelope_table(config, grid),
        "norms": single(harmonic_norms(highest)),
        "of_degree": of_degree(config.degrees),
        "parity": single(pad(parities, (0, padded_orders(highest) - len(parities)))),
        "per_length": torch.tensor([per_length], dtype=torch.float32),
        "start": torch.tensor([1 / (config.ev_init_divisor or 1)], dtype=torch.float32),
    }


@torch.no_grad()
def heads(network: Any) -> dict[str, dict[str, Tensor]]:
    """Return the weights of all heads of a So3krates in float64, by the name of their output."""
    return {
        name: {
            "head": single(head.weight),
            "head_transposed": single(head.weight.T),
            "head_bias": single(head.hidden_bias),
            "last": single(head.last),
            "of_species": head.bias.detach().double().contiguous(),
        }
        for name, head in heads_of(network).items()
    }


def padded_orders(highest: int) -> int:
    """Row width for the orders of all l from 1 to `highest`, including those that are not used."""
    n_orders = (highest + 1) ** 2 - 1
    return max(16, 1 << (n_orders - 1).bit_length())


def of_degree(degrees: Sequence[int]) -> Tensor:
    """[L, M]: 1 where an order belongs to a degree."""
    matrix = torch.zeros(len(degrees), padded_orders(max(degrees)))
    for d, l in enumerate(degrees):
        matrix[d, l * l - 1 : (l + 1) ** 2 - 1] = 1
    return matrix
