"""Molecular dynamics obeys statistical mechanics: energy conservation and temperature.

Short versions, of seconds. The full measurement (20 ps, float32 and float64, the numbers of the
README) is benchmarks/nve_ethanol.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from attncalc import AttnCalculator

MODEL = "so3krates-ethanol"


def relaxed(calculator: AttnCalculator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    LBFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
    return atoms


@pytest.fixture(scope="module")
def start() -> Atoms:
    """Ethanol at about 300 K: 600 K in the momenta, of which half goes into the bonds."""
    atoms = relaxed(AttnCalculator(MODEL))
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    VelocityVerlet(atoms, 0.5 * units.fs).run(200)
    atoms.calc = AttnCalculator(MODEL, dtype="float64")
    return atoms


def total_energies(start: Atoms, timestep: float, time: float) -> np.ndarray:
    """meV per atom, at every step of `timestep` fs for `time` fs."""
    atoms = start.copy()
    atoms.calc = start.calc
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(round(time / timestep))
    return 1e3 * np.array(energies) / len(atoms)


@pytest.fixture(scope="module")
def half_femtosecond(start: Atoms) -> np.ndarray:
    """Total energies of 100 fs at 0.5 fs."""
    return total_energies(start, 0.5, 100.0)


@pytest.fixture(scope="module")
def of_single_precision(start: Atoms) -> np.ndarray:
    """Total energies of 1 ps at 0.5 fs, in float32: the compiled loops."""
    atoms = start.copy()
    atoms.calc = AttnCalculator(MODEL)
    return total_energies(atoms, 0.5, 1000.0)


def test_energy_fluctuates_with_the_timestep_squared(
    start: Atoms, half_femtosecond: np.ndarray
) -> None:
    """Velocity Verlet keeps H + dt² H_2 + ...: only forces that are the exact gradient do this.

    The next order adds (omega dt)² / 12, 4 % for the O-H stretch at 1 fs: hence exponents between
    1.8 and 2.2.
    """
    timesteps = np.array([0.25, 0.5, 1.0])
    finer, coarser = (total_energies(start, dt, 100.0) for dt in (0.25, 1.0))
    fluctuation = np.array([part.std() for part in (finer, half_femtosecond, coarser)])
    exponents = np.diff(np.log(fluctuation)) / np.log(2)
    overall = np.polyfit(np.log(timesteps), np.log(fluctuation), 1)[0]
    assert 1.8 < overall < 2.2, fluctuation
    assert (np.abs(exponents - 2) < 0.3).all(), exponents
    assert 0.01 < fluctuation[1] < 0.5, "meV per atom at 0.5 fs"


def test_energy_does_not_drift(of_single_precision: np.ndarray) -> None:
    """1 ps at 0.5 fs; the slope has a standard error near 0.03, from a fluctuation of 0.06."""
    energies = of_single_precision
    time = 0.5e-3 * np.arange(len(energies))  # ps
    drift = np.polyfit(time, energies, 1)[0]
    assert abs(drift) < 0.15, "meV/atom/ps"
    assert np.abs(energies - energies[0]).max() < 1.0


def test_energies_of_single_precision_fluctuate_alike(
    of_single_precision: np.ndarray, half_femtosecond: np.ndarray
) -> None:
    """float32 networks may round forces, but not so that the energy walks away."""
    ours = of_single_precision[: len(half_femtosecond)]
    assert ours.std() == pytest.approx(half_femtosecond.std(), rel=0.01)
    assert abs(ours[-50:].mean() - ours[:50].mean()) < 0.1  # meV per atom


def standard_error_of_mean(samples: np.ndarray) -> float:
    """Of independent rows, each a correlated time series: from the spread of the rows' means."""
    means = samples.mean(axis=1)
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def test_langevin_reaches_its_temperature() -> None:
    """16 molecules too far apart to meet, in one structure: 16 independent runs in one.

    Langevin dynamics moves all 3N = 27 degrees of freedom of a molecule, the centre of mass too,
    and so `get_temperature` counts them. BAOAB's momenta are cold by (omega dt)² / 4 in each mode,
    0.6 % on average here: 2 K, below the standard error.
    """
    n, target = 16, 300.0
    calculator = AttnCalculator(MODEL, dtype="float32")
    single = relaxed(calculator)
    atoms = Atoms()
    for k in range(n):
        copy = single.copy()
        copy.translate([50.0 * k, 0, 0])
        atoms += copy
    atoms.calc = calculator
    rng = np.random.default_rng(1)
    thermalize_momenta(atoms, temperature_K=target, rng=rng)
    dynamics = LangevinBAOAB(
        atoms, 0.5 * units.fs, temperature_K=target, T_tau=20 * units.fs, rng=rng
    )
    dynamics.run(300)  # 7 relaxation times: the bonds, at rest so far, get their share
    samples: list[np.ndarray] = []

    def observe() -> None:
        kinetic = (atoms.get_momenta() ** 2).sum(axis=1) / (2 * atoms.get_masses())
        per_molecule = kinetic.reshape(n, len(single)).sum(axis=1)
        samples.append(2 * per_molecule / (3 * len(single) * units.kB))

    dynamics.attach(observe, interval=4)
    dynamics.run(1000)
    temperatures = np.array(samples).T  # [n, n_samples]
    error = standard_error_of_mean(temperatures)
    assert 1.0 < error < 8.0, "K: neither frozen nor too short to say anything"
    assert abs(temperatures.mean() - target) < 4 * error
    # kinetic energy of 27 degrees of freedom: a chi-squared distribution of width T sqrt(2 / 27)
    assert temperatures.std() == pytest.approx(target * np.sqrt(2 / 27), rel=0.15)
    # all molecules, all of the time, are still the molecule
    bonds = np.linalg.norm(atoms.positions[0::9] - atoms.positions[1::9], axis=1)
    assert ((bonds > 1.3) & (bonds < 1.75)).all()
