"""Rotations into the frame of an edge, in which the edge points to the pole of the harmonics.

Convention: e3nn's. Components of l = 1 are (x, y, z), the polar axis is y, and harmonics have
"component" normalisation, sum over m of Y_lm^2 = 2l+1. In the frame of an edge its harmonics are
Y_lm = sqrt(2l+1) for m = 0 and zero otherwise, so that a tensor product with them couples only
components of equal |m| (Passaro & Zitnick, ICML 2023).

Components in an edge frame are ordered by |m|: m = 0, 1, -1, 2, -2, ...
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from attncalc.ops import ModuleWithConstants


class EdgeFrames(ModuleWithConstants):
    """Rotation matrices of all degrees that turn unit vectors to the pole.

    Args:
        highest: the highest degree.
    """

    def __init__(self, highest: int) -> None:
        super().__init__()
        self.highest = highest
        for degree in range(2, highest + 1):
            self.register_constant(f"raise_{degree}", _raising(degree))

    def forward(self, directions: Tensor) -> list[Tensor]:
        """Return rotations D_l [n, 2l+1, 2l+1] for l = 1, 2, ... of unit vectors [n, 3].

        D x are the components in the edge frame of x in the laboratory frame; D^T is the inverse.
        """
        vector = _to_pole(directions)
        rotations = [vector]
        for degree in range(2, self.highest + 1):
            below = rotations[-1]
            # [n, row of D_(l-1), row of D_1, column of D_(l-1), column of D_1]
            product = below[:, :, None, :, None] * vector[:, None, :, None, :]
            raised = product.flatten(1) @ self.get_buffer(f"raise_{degree}")
            rotations.append(raised.unflatten(1, (2 * degree + 1, 2 * degree + 1)))
        return rotations


def order_by_m(degree: int) -> list[int]:
    """Return the positions of the components m = 0, 1, -1, 2, -2, ... among m = -l ... l."""
    return [degree] + [degree + sign * m for m in range(1, degree + 1) for sign in (1, -1)]


def coupling(a: int, b: int, c: int) -> Tensor:
    """Return e3nn's real Wigner 3j tensor [2a+1, 2b+1, 2c+1], float64, sum of squares 1."""
    from e3nn import o3  # imported here: it takes a second and only construction needs it

    return o3.wigner_3j(a, b, c, dtype=torch.float64)


@functools.cache
def kappa(a: int, b: int, c: int, m: int) -> float:
    """Return the coupling of component m of degree a and harmonics of degree b to component m of c.

    In the edge frame, sqrt(2c+1) sum_ij C_ijk x_i Y_j is, for a+b+c even, kappa x_m at m as at -m;
    for a+b+c odd, kappa x_(-m) at m and -kappa x_m at -m, so nothing at m = 0.
    """
    at_pole = math.sqrt((2 * c + 1) * (2 * b + 1)) * coupling(a, b, c)[:, b]
    return float(at_pole[a - m if (a + b + c) % 2 else a + m, c + m])


def _to_pole(directions: Tensor) -> Tensor:
    """Return the shortest rotation [n, 3, 3] of each vector to +y, after a half turn if y < 0.

    Rows are in the order of |m|, which for degree 1 is y, z, x. The formula has no angles and no
    singularity at the poles: its denominator 1 + |y| is at least 1.
    """
    x, y, z = directions.unbind(1)
    half_turn = torch.where(y < 0, -1.0, 1.0).to(y.dtype)  # about x: y and z change sign
    y, z = y * half_turn, z * half_turn
    t = 1 / (1 + y)
    xz = -x * z * t
    columns = (
        torch.stack([x, xz, 1 - x * x * t], dim=1),
        torch.stack([1 - (x * x + z * z) * t, -z, -x], dim=1) * half_turn[:, None],
        torch.stack([z, 1 - z * z * t, xz], dim=1) * half_turn[:, None],
    )
    return torch.stack(columns, dim=2)


@functools.cache
def _raising(degree: int) -> Tensor:
    """Return the matrix [(2l-1) 3 (2l-1) 3, (2l+1)^2] from D_(l-1) x D_1 to D_l, l = `degree`."""
    c = coupling(degree - 1, 1, degree)
    # rotated components (rows of D) are in the order of |m|
    rotated = c[order_by_m(degree - 1)][:, order_by_m(1)][:, :, order_by_m(degree)]
    both = (2 * degree + 1) * torch.einsum("abc,ijk->abijck", rotated, c)
    return both.reshape((3 * (2 * degree - 1)) ** 2, (2 * degree + 1) ** 2)
