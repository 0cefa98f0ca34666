"""Radial bases against their formulas, term by term."""

import math

import pytest
import torch
from contract import assert_close

from attncalc.basis.radial import RADIAL_BASES, BernsteinBasis, PhysnetBasis

LENGTHS = [0.3, 0.96, 1.5, 2.7, 4.4]


def physnet(d: float, k: int, size: int, cutoff: float) -> float:
    end = math.exp(-cutoff)
    centre = end + (1 - end) * k / (size - 1)
    return math.exp(-((2 / size * (1 - end)) ** -2) * (math.exp(-d) - centre) ** 2)


def bernstein(d: float, k: int, size: int, cutoff: float) -> float:
    del cutoff
    # the float32 rounding of 0.944863062918464: see so3krates.md, traps
    t = math.exp(-float(torch.tensor(0.944863062918464, dtype=torch.float32)) * d)
    return math.comb(size - 1, k) * t**k * (1 - t) ** (size - 1 - k)


FORMULAS = {"physnet": physnet, "bernstein": bernstein}


@pytest.mark.parametrize("name", RADIAL_BASES)
@pytest.mark.parametrize(("size", "cutoff"), [(5, 3.0), (16, 4.0), (32, 5.0)])
def test_values(name: str, size: int, cutoff: float) -> None:
    basis = RADIAL_BASES[name](size, cutoff).double()
    expected = [[FORMULAS[name](d, k, size, cutoff) for k in range(size)] for d in LENGTHS]
    assert_close(basis(torch.tensor(LENGTHS, dtype=torch.float64)), expected, 1e-13)


@pytest.mark.parametrize("name", RADIAL_BASES)
def test_gradient(name: str) -> None:
    basis = RADIAL_BASES[name](32, 5.0).double()
    lengths = torch.tensor(LENGTHS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, lengths)
    assert torch.autograd.gradgradcheck(basis, lengths)


@pytest.mark.parametrize("name", RADIAL_BASES)
def test_float32(name: str) -> None:
    """No overflow: binomials of 32 functions reach 3e8, powers of t underflow."""
    lengths = torch.linspace(0.1, 30.0, 300, dtype=torch.float64)
    exact = RADIAL_BASES[name](32, 5.0).double()(lengths)
    single = RADIAL_BASES[name](32, 5.0).float()(lengths.float())
    assert single.dtype == torch.float32
    # exponents up to 260 carry float32's 6e-8 into the value
    assert_close(single, exact, 2e-5)


def test_bernstein_functions_add_up_to_one() -> None:
    lengths = torch.linspace(0.1, 12.0, 50, dtype=torch.float64)
    assert_close(BernsteinBasis(32, 5.0).double()(lengths).sum(1), torch.ones(50), 1e-12)


def test_physnet_centres_ascend_from_the_cutoff_to_contact() -> None:
    basis = PhysnetBasis(8, 5.0).double()
    assert basis(torch.tensor([5.0], dtype=torch.float64)).argmax() == 0
    assert basis(torch.tensor([0.0], dtype=torch.float64)).argmax() == 7
