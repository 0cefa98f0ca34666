"""Messages of Equiformer: logits and values of an edge, one class per kind of attention.

To add a kind of message, add a class here and a line in `MESSAGES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attncalc.basis.activations import LEAKY_NORM, SIGMOID_NORM, SILU_NORM
from attncalc.nn.edge_products import Features, FixedProduct, WeightedProduct
from attncalc.nn.equiformer_config import AttentionName, EquiformerConfig
from attncalc.nn.equiformer_layers import IrrepsLinear
from attncalc.nn.equiformer_radial import N_HIDDEN, RadialNetwork, radial_hidden


class Messages(nn.Module):
    """Logits and values of the message of an edge.

    `forward` returns the weights that `on_edges` takes. Everything that does not depend on the edge
    is folded into them, differentiably. Every kind begins with a product whose weights come from a
    radial network.
    """

    product: WeightedProduct
    radial: RadialNetwork

    def forward(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Return logits [n_edges, n_heads] and values; all features are in the edges' frames."""
        raise NotImplementedError

    def folded(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return weights of the radial network, and of the product with the maps [rows, n_out]."""
        product = self.product.folded(self.radial.last, self.radial.offset, maps)
        return (*self.radial.hidden_weights, *product)

    def multiplied(
        self, weights: Sequence[Tensor], message: Features, radial: Tensor
    ) -> tuple[dict[tuple[int, int], Tensor], Sequence[Tensor]]:
        """Return the result of the `WeightedProduct`, and the weights after those of `folded`."""
        n_folded = N_HIDDEN + self.product.n_folded
        hidden = radial_hidden(radial, weights[:N_HIDDEN])
        return self.product(message, hidden, weights[N_HIDDEN:n_folded]), weights[n_folded:]


class NonlinearMessages(Messages):
    """Product, gate, second product; attention by an MLP of the first product's scalars.

    Args:
        config: hyper-parameters.
        n_kept: number of degrees of the values that have weights.
        n_used: number of degrees of the values that are read.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        heads, features = config.num_heads, config.attention_features
        # values of degree 0 need only the components along the edge
        outputs = [(c, m) for c in range(n) for m in range(min(c + 1, n_used))]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_rows = self.product.n_rows
        self.linear = IrrepsLinear(n_rows, [sum(channels), *channels[1:]])
        self.attention = IrrepsLinear(n_rows[:1], [heads * features])
        self.alpha = attention_vector(heads, features)
        scales = [SILU_NORM] + [SIGMOID_NORM] * (n - 1)
        self.second = FixedProduct(channels, config.tensor_paths(n, n_kept), n_used, scales)
        self.second_weights = nn.Parameter(torch.randn(self.second.n_weights))
        self.value = IrrepsLinear(self.second.n_rows, channels[:n_kept])
        self.channels, self.values = channels, channels[:n_used]
        self.parts = [sum(channels), heads * features]  # of the first product's scalars

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, first product, its bias, attention vector, second product, its bias."""
        maps = list(self.linear.weights)
        maps[0] = torch.cat([maps[0], self.attention.weights[0]], dim=1)
        second = self.second.folded(self.second_weights, list(self.value.weights))
        bias = torch.cat([self.linear.scalar_bias, self.attention.scalar_bias])
        alpha = LEAKY_NORM * self.alpha
        return (*self.folded(maps), bias, alpha, *second, self.value.scalar_bias)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Return logits [n_edges, n_heads] and values; all features are in the edges' frames."""
        del query
        y, (bias, alpha, *second, value_bias) = self.multiplied(weights, message, radial)
        scalars, attention = (y[0, 0] + bias).split(self.parts, dim=2)
        gates = torch.sigmoid(scalars).split(self.channels, dim=2)
        y[0, 0] = scalars[:, :, : self.channels[0]]
        degrees = range(len(self.channels))
        gated = [
            torch.cat([y[c, m] * gates[c] for c in degrees[m:]], dim=2)
            for m in range(len(self.values))
        ]
        values = by_degree(self.second(gated, second), self.values)
        values[0] = values[0] + value_bias
        return mlp_logits(attention, alpha), values


class LinearMessages(Messages):
    """One product, which yields the values and, through an MLP, the attention.

    Args:
        config: hyper-parameters.
        n_kept, n_used: see `NonlinearMessages`.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        self.heads, self.features = config.num_heads, config.attention_features
        outputs = [(c, m) for c in range(n_used) for m in range(c + 1)]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n_kept), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_out = [self.heads * self.features + channels[0], *channels[1:n_kept]]
        self.linear = IrrepsLinear(self.product.n_rows, n_out)
        self.alpha = attention_vector(self.heads, self.features)
        self.values = channels[:n_used]

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, product, its bias, attention vector."""
        product = self.folded(list(self.linear.weights))
        return (*product, self.linear.scalar_bias, LEAKY_NORM * self.alpha)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Return logits [n_edges, n_heads] and values; all features are in the edges' frames."""
        del query
        y, (bias, alpha) = self.multiplied(weights, message, radial)
        # scalars are interleaved by head: those of the attention, then those of the value
        by_head = (y[0, 0] + bias).unflatten(2, (self.heads, -1))
        attention, value = by_head.split([self.features, self.values[0] // self.heads], dim=3)
        y[0, 0] = value.flatten(2)
        by_m = [
            torch.cat([y[c, m] for c in range(m, len(self.values))], dim=2)
            for m in range(len(self.values))
        ]
        return mlp_logits(attention.flatten(2), alpha), by_degree(by_m, self.values)


class DotProductMessages(Messages):
    """One product, which yields keys and values; attention by scalar products with queries.

    Args:
        config: hyper-parameters.
        n_kept, n_used: see `NonlinearMessages`.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        self.heads, self.channels, self.values = config.num_heads, channels, channels[:n_used]
        outputs = [(c, m) for c in range(n) for m in range(c + 1)]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_out = [2 * width if c < n_kept else width for c, width in enumerate(channels)]
        self.linear = IrrepsLinear(self.product.n_rows, n_out)

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, product, its bias."""
        n_used = len(self.values)
        maps = [  # keys come first; values that are not read are left out
            w if c < n_used else w[:, :width]
            for c, (w, width) in enumerate(zip(self.linear.weights, self.channels, strict=True))
        ]
        return (*self.folded(maps), self.linear.scalar_bias)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Return logits [n_edges, n_heads] and values; all features are in the edges' frames."""
        y, (bias,) = self.multiplied(weights, message, radial)
        y[0, 0] = y[0, 0] + bias
        logits, values = [], []
        for c, (q, width) in enumerate(zip(query, self.channels, strict=True)):
            y_c = torch.cat([y[c, m] for m in range(c + 1)], dim=1)
            if c < len(self.values):
                key, value = y_c.split(width, dim=2)
                values.append(value)
            else:
                key = y_c
            logits.append((q * key).unflatten(2, (self.heads, -1)).sum((1, 3)))
        return torch.stack(logits).sum(0), values


def attention_vector(heads: int, features: int) -> nn.Parameter:
    """Return a parameter [heads, features], drawn uniformly as published."""
    bound = math.sqrt(6 / (heads + features))
    return nn.Parameter(torch.empty(heads, features).uniform_(-bound, bound))


def mlp_logits(attention: Tensor, alpha: Tensor) -> Tensor:
    """[n_edges, 1, heads * features] -> [n_edges, heads], by a smooth leaky ReLU (slope 0.2)."""
    leaky = attention * (0.2 + 0.8 * torch.sigmoid(attention))
    return (leaky.view(-1, *alpha.shape) * alpha).sum(2)


def by_degree(by_m: Sequence[Tensor], channels: Sequence[int]) -> Features:
    """Per |m| [n_edges, 1 or 2, all channels of l >= m] -> features in the edges' frames."""
    parts = [x.split(list(channels[m:]), dim=2) for m, x in enumerate(by_m)]
    return [
        torch.cat([parts[m][degree - m] for m in range(degree + 1)], dim=1)
        for degree in range(len(channels))
    ]


MESSAGES: dict[AttentionName, type[Messages]] = {
    "nonlinear": NonlinearMessages,
    "linear": LinearMessages,
    "dot": DotProductMessages,
}
