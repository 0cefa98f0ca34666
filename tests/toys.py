"""Forces that cost nothing, and averages with their error."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from attncalc.result import Result
from attncalc.system import System


def zeros_of(system: System) -> Result:
    """Of an ideal gas."""
    n = system.n_systems
    energy = torch.zeros(n, dtype=torch.float64)
    strain_gradient = torch.zeros(n, 3, 3, dtype=torch.float64)
    energies = torch.zeros(system.n_atoms, dtype=torch.float64)
    return Result(energy, energies, torch.zeros_like(system.positions), strain_gradient)


def gas(n_atoms: int, cells: NDArray) -> list[Atoms]:
    """So many argon atoms anywhere in each of the cells [n, 3, 3]."""
    rng = np.random.default_rng(0)
    return [
        Atoms(["Ar"] * n_atoms, scaled_positions=rng.random((n_atoms, 3)), cell=cell, pbc=True)
        for cell in cells
    ]


def mean_and_error(values: NDArray) -> tuple[float, float]:
    """Of [n_samples, n_systems], the systems being independent blocks."""
    blocks = np.asarray(values).mean(axis=0)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(len(blocks)))


def assert_mean(values: NDArray, expected: float, *, bias: float = 0.0) -> None:
    """The mean is as expected within 4 standard errors, and what the timestep may add."""
    mean, error = mean_and_error(values)
    assert abs(mean - expected) <= 4 * error + bias * abs(expected), (mean, error, expected)
