"""Radial cutoff functions C(d): 1 at contact, 0 at the cutoff, and exactly 0 beyond it.

| name        | formula, s = d / cutoff               | continuous derivatives at the cutoff |
|-------------|---------------------------------------|--------------------------------------|
| physnet     | 1 - 6 s^5 + 15 s^4 - 10 s^3           | 2 (PhysNet, JCTC 15, 3678, 2019)     |
| cosine      | (1 + cos(pi s)) / 2                   | 1 (Behler & Parrinello, 2007)        |
| exponential | exp(-s^2 / ((1 - s)(1 + s)))          | all (SpookyNet, 2021)                |

Beyond the cutoff the polynomial and the cosine are not zero, hence the mask: a neighbour list with
a skin holds pairs there.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def physnet(lengths: Tensor, cutoff: float) -> Tensor:
    """1 - 6 s^5 + 15 s^4 - 10 s^3 for s = lengths / cutoff < 1, else 0; same shape as `lengths`."""
    s = lengths / cutoff
    # factored: rounding of the sum above may be negative close to the cutoff
    return torch.where(s < 1, (1 - s) ** 3 * (1 + s * (3 + 6 * s)), 0.0)


def cosine(lengths: Tensor, cutoff: float) -> Tensor:
    """(1 + cos(pi s)) / 2 for s = lengths / cutoff < 1, else 0; same shape as `lengths`."""
    s = lengths / cutoff
    # sin^2(pi (1 - s) / 2): the sum above loses all digits close to the cutoff
    return torch.where(s < 1, torch.sin(0.5 * math.pi * (1 - s)) ** 2, 0.0)


def exponential(lengths: Tensor, cutoff: float) -> Tensor:
    """exp(-s^2 / (1 - s^2)) for s = lengths / cutoff < 1, else 0; same shape as `lengths`."""
    inside = lengths < cutoff
    # outside, any harmless value: the gradient of the discarded branch must stay finite too
    s = torch.where(inside, lengths / cutoff, 0.0)
    return torch.where(inside, torch.exp(-s * s / ((1 - s) * (1 + s))), 0.0)


CUTOFF_FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "physnet": physnet,
    "cosine": cosine,
    "exponential": exponential,
}
