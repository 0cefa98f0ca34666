"""Real spherical harmonics by recursion over the degree.

Convention: orthonormal on the sphere (sum over m of Y_lm^2 = (2l+1) / 4 pi), orders m = -l..l,
polar axis z, so l = 1 is sqrt(3 / 4 pi) (y, z, x). These are e3nn's "component" harmonics at
(y, z, x), divided by sqrt(4 pi).
"""

from __future__ import annotations

import functools
import math
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from attncalc.ops import ModuleWithConstants


class SphericalHarmonics(ModuleWithConstants):
    """Y_lm of unit vectors for a set of degrees, concatenated.

    Args:
        degrees: the degrees l, ascending.
    """

    first: Tensor

    def __init__(self, degrees: tuple[int, ...]) -> None:
        super().__init__()
        self.degrees = degrees
        # (x, y, z) -> sqrt(3 / 4 pi) (y, z, x)
        first = torch.eye(3, dtype=torch.float64)[[1, 2, 0]].T * math.sqrt(3 / (4 * math.pi))
        self.register_constant("first", first)
        for degree in range(2, max(degrees) + 1):
            self.register_constant(f"raise_{degree}", _raising(degree))

    def forward(self, directions: Tensor) -> Tensor:
        """directions [n, 3], unit vectors -> [n, sum of 2l+1]."""
        every = self.every_degree(directions)
        return torch.cat([every[degree] for degree in self.degrees], dim=1)

    def every_degree(self, directions: Tensor) -> list[Tensor]:
        """directions [n, 3], unit vectors -> [n, 2l+1] for l = 0, 1 and on to the highest."""
        vector = directions @ self.first
        n = directions.shape[0]  # len() would become a constant where a training step is traced
        harmonics = [directions.new_full((n, 1), math.sqrt(1 / (4 * math.pi))), vector]
        for degree in range(2, max(self.degrees) + 1):
            product = harmonics[-1].unsqueeze(2) * vector.unsqueeze(1)  # [n, 2l-1, 3]
            harmonics.append(product.flatten(1) @ self.get_buffer(f"raise_{degree}"))
        return harmonics


@functools.cache
def _raising(degree: int) -> Tensor:
    """Return the matrix [(2l-1) 3, 2l+1] from the product of Y_(l-1) and Y_1 to Y_l.

    For unit vectors the Clebsch-Gordan product to the highest degree is proportional to Y_l; the
    factor is fixed at the pole, where Y_l0 = sqrt((2l+1) / 4 pi).
    """
    # by formula, since importing e3nn takes longer than loading a model
    bases = [_real_basis(l).conj() for l in (degree - 1, 1)]
    product = torch.einsum("ai,bj,ijk,ck->abc", *bases, _to_highest(degree), _real_basis(degree))
    coupling = product.real

    def pole(of: int) -> float:
        return math.sqrt((2 * of + 1) / (4 * math.pi))

    at_pole = coupling[degree - 1, 1, degree] * pole(degree - 1) * pole(1)
    return (coupling * (pole(degree) / at_pole)).reshape(-1, 2 * degree + 1)


def _to_highest(degree: int) -> Tensor:
    """Return Clebsch-Gordan coefficients <l-1 m1; 1 m2 | l m>, [2l-1, 3, 2l+1], complex.

    Varshalovich, Moskalev, Khersonskii, Quantum Theory of Angular Momentum (1988), table 8.2.
    """
    l, of = degree, torch.zeros(2 * degree - 1, 3, 2 * degree + 1, dtype=torch.complex128)
    for m in range(-l, l + 1):
        products = {
            1: (l + m - 1) * (l + m) / 2,
            0: (l - m) * (l + m),
            -1: (l - m - 1) * (l - m) / 2,
        }
        for m2, squared in products.items():
            if abs(m - m2) < l:
                of[m - m2 + l - 1, m2 + 1, m + l] = math.sqrt(squared / (l * (2 * l - 1)))
    return of


def _real_basis(degree: int) -> Tensor:
    """Return the matrix from complex harmonics (Condon-Shortley phase) to real ones, by m."""
    basis = torch.zeros(2 * degree + 1, 2 * degree + 1, dtype=torch.complex128)
    basis[degree, degree] = 1
    for m in range(1, degree + 1):  # cosines, then sines
        both = torch.tensor([[1, (-1) ** m], [1j, -1j * (-1) ** m]], dtype=torch.complex128)
        orders = torch.tensor([degree - m, degree + m])
        basis[orders.flip(0)[:, None], orders] = both / math.sqrt(2)
    return basis


def parity(degrees: tuple[int, ...]) -> Tensor:
    """Return Y(-u) / Y(u) = (-1)^l for every component, [sum of 2l+1]."""
    return torch.cat([torch.full((2 * l + 1,), (-1.0) ** l, dtype=torch.float64) for l in degrees])


def repeat_over_orders(degrees: tuple[int, ...]) -> Tensor:
    """Return the matrix [n_degrees, sum of 2l+1] that copies a number per degree to all orders."""
    rows = [torch.full((1, 2 * l + 1), 1.0, dtype=torch.float64) for l in degrees]
    return torch.block_diag(*rows)


def contract_orders(degrees: tuple[int, ...]) -> Tensor:
    """Return the matrix [sum of 2l+1, n_degrees] from squared components to invariants.

    The invariants are sum_m chi_lm^2 / sqrt(2l+1); the factor is the Clebsch-Gordan coefficient of
    l x l -> 0.
    """
    norm = torch.tensor([math.sqrt(2 * l + 1) for l in degrees], dtype=torch.float64)
    return repeat_over_orders(degrees).T / norm


@functools.cache
def couplings(degrees: tuple[int, ...], *, natural_only: bool) -> Tensor:
    """Return the tensor [M, M, M] of products of two different degrees, [chi_p x chi_q]_l, p < q.

    Indices: component of the result, of the first factor, of the second. Blocks have Frobenius
    norm 1; their signs are e3nn's `wigner_3j(l, p, q)`.

    Args:
        degrees: ascending; the result has the same.
        natural_only: only products that transform under reflection like the coordinates: l + p + q
            even.
    """
    from e3nn import o3  # imported here: it takes a second and only construction needs it

    ends = list(accumulate((2 * l + 1 for l in degrees), initial=0))
    parts = {l: slice(*pair) for l, pair in zip(degrees, pairwise(ends), strict=True)}
    product = torch.zeros((ends[-1],) * 3, dtype=torch.float64)
    for q in degrees:
        for p in (p for p in degrees if p < q):
            for l in (l for l in degrees if q - p <= l <= q + p):
                if not natural_only or (l + p + q) % 2 == 0:
                    block = o3.wigner_3j(l, p, q, dtype=torch.float64)
                    product[parts[l], parts[p], parts[q]] = block
    return product
