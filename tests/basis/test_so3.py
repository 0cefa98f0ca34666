"""Spherical harmonics against e3nn, on the sphere, under rotations; and the maps over degrees."""

import math

import numpy as np
import pytest
import torch
from contract import assert_close, rotation
from e3nn import o3

from attncalc.basis.so3 import SphericalHarmonics, contract_orders, parity, repeat_over_orders

DEGREES = (0, 1, 2, 3, 4, 5, 6)


def harmonics_of(directions: torch.Tensor, degrees: tuple[int, ...] = DEGREES) -> torch.Tensor:
    return SphericalHarmonics(degrees).double()(directions)


def random_directions(n: int) -> torch.Tensor:
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3)))
    poles = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    return torch.cat([vectors / vectors.norm(dim=1, keepdim=True), poles])


def test_equal_e3nn() -> None:
    directions = random_directions(50)
    turned = directions[:, [1, 2, 0]]
    expected = o3.spherical_harmonics(list(DEGREES), turned, False, "component")
    assert_close(harmonics_of(directions), expected / math.sqrt(4 * math.pi), 1e-13)


def test_written_out_for_small_degrees() -> None:
    x, y, z = random_directions(20).T
    one, third = math.sqrt(3 / (4 * math.pi)), math.sqrt(5 / math.pi) / 4
    two = math.sqrt(15 / math.pi) / 2
    expected = [one * y, one * z, one * x]
    expected += [two * x * y, two * y * z, third * (3 * z**2 - 1), two * x * z]
    expected += [two / 2 * (x**2 - y**2)]
    actual = harmonics_of(random_directions(20), (1, 2))
    assert_close(actual, torch.stack(expected, dim=1), 1e-14)


def test_orthonormal_on_the_sphere() -> None:
    """Gauss-Legendre in z and equal angles integrate products up to degree 12 exactly."""
    z, weights = np.polynomial.legendre.leggauss(8)
    angles = 2 * np.pi * np.arange(16) / 16
    height, angle = (grid.ravel() for grid in np.meshgrid(z, angles, indexing="ij"))
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    weight = torch.from_numpy(np.repeat(weights, 16) * 2 * np.pi / 16)
    values = harmonics_of(torch.from_numpy(points))
    assert_close((values * weight[:, None]).T @ values, np.eye(values.shape[1]), 1e-13)


def test_sum_of_squares() -> None:
    values = harmonics_of(random_directions(10))
    for l, part in zip(DEGREES, values.split([2 * l + 1 for l in DEGREES], dim=1), strict=True):
        expected = np.full(16, (2 * l + 1) / (4 * math.pi))
        assert_close((part**2).sum(1), expected, 1e-13, f"l = {l}")


def test_parity() -> None:
    directions = random_directions(10)
    signs = parity(DEGREES)
    assert signs.shape == (49,)
    assert_close(harmonics_of(-directions), harmonics_of(directions) * signs, 1e-14)


def test_a_rotation_keeps_scalar_products_of_each_degree() -> None:
    """The addition theorem: sum_m Y_lm(u) Y_lm(v) depends on the angle of u and v alone."""
    directions = random_directions(12)
    turned = directions @ torch.from_numpy(rotation(4))
    for l in DEGREES[1:]:
        before, after = harmonics_of(directions, (l,)), harmonics_of(turned, (l,))
        assert_close(after @ after.T, before @ before.T, 1e-13, f"l = {l}")
        assert float((after - before).abs().max()) > 0.1


@pytest.mark.parametrize("degrees", [(1,), (2, 4), (0, 3), (1, 2, 3)])
def test_any_set_of_degrees_is_part_of_all(degrees: tuple[int, ...]) -> None:
    directions = random_directions(5)
    every = harmonics_of(directions)
    columns = [torch.arange(l * l, (l + 1) ** 2) for l in degrees]
    assert_close(harmonics_of(directions, degrees), every[:, torch.cat(columns)], 1e-15)


def test_gradient() -> None:
    directions = random_directions(3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda u: harmonics_of(u, (1, 2, 3, 4)), directions)


def test_repeat_over_orders() -> None:
    numbers = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    repeated = numbers @ repeat_over_orders((1, 2))
    assert repeated.tolist() == [[10.0] * 3 + [20.0] * 5]


def test_contract_orders() -> None:
    squares = torch.arange(1.0, 9.0, dtype=torch.float64).unsqueeze(0)
    expected = [[(1 + 2 + 3) / math.sqrt(3), (4 + 5 + 6 + 7 + 8) / math.sqrt(5)]]
    assert_close(squares @ contract_orders((1, 2)), expected, 1e-15)
    # Clebsch-Gordan coefficients of l x l -> 0 for e3nn's real harmonics
    for l in range(5):
        coupling = o3.wigner_3j(l, l, 0, dtype=torch.float64)[:, :, 0].diagonal().abs()
        assert_close(contract_orders((l,))[:, 0], coupling, 1e-14)
