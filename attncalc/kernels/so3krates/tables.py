"""Radial filters of a So3krates as cubics on intervals of equal length, made in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS

# number of intervals of the tables: doubled until the cubics are off by no more than rounding
FEWEST_INTERVALS, MOST_INTERVALS = 512, 8192
TABLE_ERROR = 2e-7  # relative to the largest value


def has_usual_options(network: Any) -> bool:
    """Return True if a network is float32 and has the options that the engines implement."""
    c = network.config
    return (
        network.parity.dtype == torch.float32
        and c.qk_activation == "identity"
        and set(c.layer_norms) == {"after_attention", "after_exchange"}
        and (c.mlp_after_attention, c.mlp_after_exchange) == ("residual", "none")
        and c.head_features is not None
        and c.head_activation == "silu"
        and 0 not in c.degrees
    )


class Grid(NamedTuple):
    """Intervals of equal length between `shortest` and `cutoff` [Å]."""

    shortest: float
    cutoff: float
    n_intervals: int

    @classmethod
    def fine_enough(
        cls, functions: Sequence[Callable[[Tensor], Tensor]], shortest: float, cutoff: float
    ) -> Grid:
        """Make a grid with as many intervals as these functions of the distance need."""
        grid = cls(shortest, cutoff, FEWEST_INTERVALS)
        while grid.n_intervals < MOST_INTERVALS and any(map(grid.is_too_coarse, functions)):
            grid = cls(shortest, cutoff, 2 * grid.n_intervals)
        return grid

    def is_too_coarse(self, f: Callable[[Tensor], Tensor]) -> bool:
        """Return True if the cubics of f are too far off in the middle of an interval."""
        length = (self.cutoff - self.shortest) / self.n_intervals
        middles = self.shortest + length * (torch.arange(self.n_intervals).double() + 0.5)
        powers = 0.5 ** torch.arange(4, dtype=torch.float64)
        exact = f(middles)
        error = torch.einsum("kp...,p->k...", cubics(f, self), powers) - exact
        return bool(error.abs().amax() > TABLE_ERROR * exact.abs().amax())


def cubics(f: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
    """Return cubics [n_intervals, 4, ...] in t = 0..1, from values and slopes of f at both ends."""
    shortest, cutoff, n_intervals = grid
    knots = torch.linspace(shortest, cutoff, n_intervals + 1, dtype=torch.float64)
    values, slopes = _values_and_slopes(f, knots)
    slopes = slopes * (cutoff - shortest) / n_intervals
    y0, y1, s0, s1 = values[:-1], values[1:], slopes[:-1], slopes[1:]
    rise = y1 - y0
    return torch.stack([y0, s0, 3 * rise - 2 * s0 - s1, s0 + s1 - 2 * rise], dim=1)


def _values_and_slopes(f: Callable[[Tensor], Tensor], d: Tensor) -> tuple[Tensor, Tensor]:
    """f(d) and df/dd, both [n, ...], where each row depends on its own distance alone."""
    # slopes are the gradient of a weighted gradient with respect to its weights; jvp, and grad with
    # weights, take a second to import
    with torch.enable_grad():
        d = d.clone().requires_grad_()
        values = f(d)
        if not values.requires_grad:  # f is constant
            return values, torch.zeros_like(values)
        weights = torch.zeros_like(values, requires_grad=True)
        (weighted,) = torch.autograd.grad((values * weights).sum(), d, create_graph=True)
        (slopes,) = torch.autograd.grad(weighted.sum(), weights)
    return values.detach(), slopes


def norms_of_attention(config: Any) -> Tensor:
    """[2, 1, 1]: divisors of the attention coefficients of features and of geometry."""
    return torch.tensor(config.attention_norms, dtype=torch.float64)[:, None, None]


def filters_of(network: Any, l: int) -> Callable[[Tensor], Tensor]:
    """d [n] -> [n, 2 F]: filters of layer l without the contribution of Euclidean variables."""
    config, attention = network.config, network.layers[l].attention
    mlp = attention.spherical_mlp
    rests = l == 0 and config.ev_init_divisor is None
    resting = mlp(mlp.first.new_zeros(1, len(config.degrees))) if rests else mlp.second_bias

    def filters(d: Tensor) -> Tensor:
        envelope = CUTOFF_FUNCTIONS[config.cutoff_function](d, config.cutoff)
        both = (network.radial(d)(attention.radial_mlp) + resting) / norms_of_attention(config)
        return torch.cat(list(both), dim=1) * envelope.unsqueeze(1)

    return filters


def harmonic_norms(highest: int) -> Tensor:
    """[l, m]: N_lm of Y_lm = N_lm d^m P_l(z)/dz^m (real or imaginary part of (x + iy)^m)."""
    norms = torch.zeros(highest + 1, highest + 1, dtype=torch.float64)
    for l in range(highest + 1):
        for m in range(l + 1):
            ratio = math.factorial(l - m) / math.factorial(l + m)
            norms[l, m] = math.sqrt((2 if m else 1) * (2 * l + 1) / (4 * math.pi) * ratio)
    return norms
