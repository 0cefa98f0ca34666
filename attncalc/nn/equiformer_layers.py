"""Equiformer's layers of features: linear map, norm and gated feed-forward network.

Features are lists over the degree l of [n, 2l+1, channels] tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from attncalc.basis.activations import SIGMOID_NORM, SILU_NORM
from attncalc.nn.edge_products import Features

LAYER_NORM_EPSILON = 1e-5


class IrrepsLinear(nn.Module):
    """Linear map of each degree by itself, y_l = x_l W_l, with a bias on the scalars only.

    Args:
        n_in, n_out: channels per degree.
        bias: whether the scalars have a bias.
    """

    def __init__(self, n_in: Sequence[int], n_out: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(i, o) / math.sqrt(i) for i, o in zip(n_in, n_out, strict=False)
        )
        self.bias = nn.Parameter(torch.zeros(n_out[0])) if bias else None

    @property
    def scalar_bias(self) -> Tensor:
        """Bias of the scalars, [channels of degree 0]."""
        assert self.bias is not None
        return self.bias

    def forward(self, features: Features) -> Features:
        """Apply the map to the degrees that both the features and the map have."""
        return [
            linear(x, w.T, self.bias if degree == 0 else None)
            for degree, (x, w) in enumerate(zip(features, self.weights, strict=False))
        ]


class EquivariantLayerNorm(nn.Module):
    """Layer norm of scalars; higher degrees are divided by a root mean square.

    That of each degree is the published norm. It has no limit where the environment of an atom has
    a symmetry that forbids a degree, as of carbon in CH4: what is left of that degree by a small
    displacement, or by rounding, is blown up to size one. That of all degrees together, with the
    centred scalars, which no symmetry forbids, is smooth. (EquiformerV2 divides all degrees above 0
    by one number, too: Liao et al., ICLR 2024, section 4.3.)

    Args:
        channels: per degree.
        joint: True: one mean square of all degrees together, each counting the same.
    """

    def __init__(self, channels: Sequence[int], joint: bool = False) -> None:
        super().__init__()
        self.joint = joint
        self.scales = nn.ParameterList(torch.ones(width) for width in channels)
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, features: Features) -> Features:
        """Return the normalised features, for as many degrees as are given."""
        scalars, *others = features
        normed = layer_norm(
            scalars, scalars.shape[-1:], self.scales[0], self.bias, LAYER_NORM_EPSILON
        )
        mean_squares = [(x * x).mean((1, 2), keepdim=True) for x in others]
        if self.joint:
            of_scalars = scalars.var(2, correction=0, keepdim=True)
            mean_squares = [sum(mean_squares, of_scalars) / len(features)] * len(others)
        divided = zip(others, mean_squares, list(self.scales)[1:], strict=False)
        return [
            normed,
            *(x * (square + LAYER_NORM_EPSILON).rsqrt() * scale for x, square, scale in divided),
        ]


class FeedForward(nn.Module):
    """Linear map, gate, linear map, for each atom.

    Args:
        n_in, n_hidden, n_out: channels per degree of input, hidden layer and output.
    """

    def __init__(self, n_in: Sequence[int], n_hidden: Sequence[int], n_out: Sequence[int]) -> None:
        super().__init__()
        self.first = IrrepsLinear(n_in, [sum(n_hidden), *n_hidden[1:]])
        self.second = IrrepsLinear(n_hidden, n_out)
        self.n_hidden = list(n_hidden)

    def forward(self, features: Features) -> Features:
        """Return features [n, 2l+1, channels] per degree."""
        scalars, *others = self.first(features)
        gates = torch.sigmoid(scalars).split(self.n_hidden, dim=2)
        gated = [SILU_NORM * scalars[:, :, : self.n_hidden[0]] * gates[0]]
        gated += [SIGMOID_NORM * x * gate for x, gate in zip(others, gates[1:], strict=True)]
        return self.second(gated)

    def scalars(self, scalars: Tensor) -> Tensor:
        """Return the scalars [n, 1, channels] alone; they do not depend on higher degrees."""
        width = self.n_hidden[0]
        first, bias = self.first.weights[0][:, :width], self.first.scalar_bias[:width]
        hidden = SILU_NORM * silu(linear(scalars, first.T, bias))
        return linear(hidden, self.second.weights[0].T, self.second.scalar_bias)


def flat(features: Features) -> Tensor:
    """Concatenate features to [n, sum of (2l+1) channels]."""
    return torch.cat([x.flatten(1) for x in features], dim=1)


def unflat(values: Tensor, channels: Sequence[int]) -> Features:
    """Invert `flat`."""
    sizes = [(2 * degree + 1) * width for degree, width in enumerate(channels)]
    parts = values.split(sizes, dim=1)
    return [part.unflatten(1, (-1, width)) for part, width in zip(parts, channels, strict=True)]


def added(one: Features, other: Features) -> Features:
    """Return the sums; degrees that are missing in `other` are not changed."""
    return [x + y for x, y in zip(one, other, strict=False)] + one[len(other) :]
