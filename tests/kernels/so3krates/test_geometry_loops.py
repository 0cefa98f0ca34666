"""Harmonics, their gradient, and the pairs that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncalc.basis.so3 import SphericalHarmonics
from attncalc.kernels.so3krates.geometry_loops import harmonics, harmonics_gradient
from attncalc.kernels.so3krates.tables import harmonic_norms

DIRECTIONS = torch.tensor(
    [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0], [0.48, -0.6, 0.64], [-1, 2, 1e-9]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("degrees", [(1,), (0, 1), (1, 3), (1, 2, 3, 4), (2, 7)], ids=str)
@pytest.mark.parametrize("k", range(len(DIRECTIONS)))
def test_harmonics_and_their_gradient(degrees: tuple[int, ...], k: int) -> None:
    direction = DIRECTIONS[k] / DIRECTIONS[k].norm()
    n, highest = sum(2 * l + 1 for l in degrees), max(degrees)
    room = np.zeros((highest + 2, highest + 2)), np.empty(highest + 1), np.empty(highest + 1)
    fixed = np.array(degrees), harmonic_norms(highest).numpy()
    out = np.zeros((2, n + 3))
    harmonics(*direction.tolist(), *fixed, *room, out, 1)
    plain = SphericalHarmonics(degrees).double()

    def of(vector: torch.Tensor) -> torch.Tensor:
        return plain((vector / vector.norm()).unsqueeze(0))[0]

    np.testing.assert_allclose(out[1, :n], of(direction), atol=1e-12)
    assert not out[0].any()
    assert not out[1, n:].any()
    given = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.func.vjp(of, direction)[1](given)[0]
    gradient = np.array(harmonics_gradient(*fixed, *room, given.numpy()[None], 0))
    u = direction.numpy()
    np.testing.assert_allclose(gradient - (gradient @ u) * u, expected, atol=1e-11)
