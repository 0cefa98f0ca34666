"""Whole workflows of ASE on the calculator: relaxation, dynamics, cells, vibrations.

Langevin dynamics is in tests/physics/test_dynamics.py, a path (NEB) in tests/test_examples.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.io.trajectory import Trajectory
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE, LBFGS
from ase.vibrations import Vibrations

from attncalc import AttnCalculator

COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"


@pytest.fixture(scope="module")
def ethanol_model() -> AttnCalculator:
    return AttnCalculator("so3krates-ethanol", dtype="float64")


@pytest.fixture(scope="module")
def copper_model() -> AttnCalculator:
    return AttnCalculator(COPPER)


@pytest.fixture
def ethanol(ethanol_model: AttnCalculator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = ethanol_model
    return atoms


@pytest.fixture(scope="module")
def relaxed(ethanol_model: AttnCalculator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = ethanol_model
    LBFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
    return atoms


def largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


@pytest.mark.parametrize("optimizer", [FIRE, LBFGS])
def test_relaxation(optimizer: type, ethanol: Atoms) -> None:
    start = ethanol.get_potential_energy()
    assert largest_force(ethanol) > 0.5
    assert optimizer(ethanol, logfile=None).run(fmax=0.01, steps=300)
    assert largest_force(ethanol) <= 0.01
    assert ethanol.get_potential_energy() < start - 0.1
    # it is still ethanol: bond lengths of the molecule, to what a force field may be off
    for i, j, length in ((0, 1, 1.52), (1, 2, 1.43), (2, 3, 0.97)):
        pair = sorted(ethanol.get_chemical_symbols()[k] for k in (i, j))
        assert ethanol.get_distance(i, j) == pytest.approx(length, abs=0.05), pair


def test_velocity_verlet(relaxed: Atoms) -> None:
    """Momentum and angular momentum stay, time runs backwards."""
    atoms = relaxed.copy()
    atoms.calc = relaxed.calc
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    start, momentum = atoms.positions.copy(), atoms.get_momenta().sum(axis=0)
    angular = atoms.get_angular_momentum()
    VelocityVerlet(atoms, 0.5 * units.fs).run(40)
    assert np.abs(atoms.positions - start).max() > 0.05
    assert atoms.get_momenta().sum(axis=0) == pytest.approx(momentum, abs=1e-9)
    assert atoms.get_angular_momentum() == pytest.approx(angular, abs=1e-9)
    atoms.set_momenta(-atoms.get_momenta())
    VelocityVerlet(atoms, 0.5 * units.fs).run(40)
    # rounding of 80 steps, a little amplified by the motion itself
    assert np.abs(atoms.positions - start).max() < 1e-8


def lattice_constant(calculator: object) -> float:
    atoms = bulk("Cu", a=3.68, cubic=True)
    atoms.calc = calculator
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    assert np.abs(atoms.get_stress()).max() < 1e-3
    return atoms.cell.cellpar()[0]


def test_frechet_cell_filter(copper_model: AttnCalculator) -> None:
    """The model was trained on ASE's EMT and relaxes to EMT's crystal."""
    a, expected = lattice_constant(copper_model), lattice_constant(EMT())
    assert expected == pytest.approx(3.59, abs=0.01)
    assert a == pytest.approx(expected, abs=0.03)


def test_anisotropic_cell_relaxes_to_a_cubic_one(copper_model: AttnCalculator) -> None:
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.set_cell(atoms.cell.array @ [[1.03, 0.02, 0], [0, 0.98, 0], [0, 0, 1]], scale_atoms=True)
    atoms.calc = copper_model
    LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    a, b, c, *angles = atoms.cell.cellpar()
    assert [b, c] == pytest.approx([a, a], abs=0.01)
    assert angles == pytest.approx([90, 90, 90], abs=0.2)


def npt_run(atoms: Atoms, dynamics: object, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Pressures (with the kinetic part) in GPa and volumes in Å³ per atom, first third left out."""
    pressures, volumes = [], []

    def observe() -> None:
        stress = atoms.get_stress(include_ideal_gas=True)
        pressures.append(-stress[:3].mean() / units.GPa)
        volumes.append(atoms.get_volume() / len(atoms))

    dynamics.attach(observe)
    dynamics.run(steps)
    return np.array(pressures)[steps // 3 :], np.array(volumes)[steps // 3 :]


@pytest.mark.parametrize("barostat", ["Martyna-Tobias-Klein", "Langevin-Hoover"])
def test_npt(barostat: str, copper_model: AttnCalculator) -> None:
    """32 atoms of copper at 300 K and 5 GPa: the barostat finds it, the crystal survives."""
    pressure = 5.0
    atoms = bulk("Cu", a=3.6, cubic=True).repeat(2)
    atoms.calc = copper_model
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    Stationary(atoms)
    if barostat == "Langevin-Hoover":
        dynamics = LangevinBAOAB(
            atoms,
            4 * units.fs,
            temperature_K=300,
            T_tau=100 * units.fs,
            P_tau=200 * units.fs,
            externalstress=-pressure * units.GPa,
            hydrostatic=True,
            rng=rng,
        )
    else:
        dynamics = IsotropicMTKNPT(
            atoms,
            4 * units.fs,
            temperature_K=300,
            pressure_au=pressure * units.GPa,
            tdamp=100 * units.fs,
            pdamp=200 * units.fs,
        )
    pressures, volumes = npt_run(atoms, dynamics, 400)
    # mean over about five periods of a barostat that swings by 2 GPa
    assert pressures.mean() == pytest.approx(pressure, abs=1.0)
    # 3.62³ / 4 Å³ at 300 K, and 5 GPa / 134 GPa of bulk modulus less
    expected = 11.8 * (1 - pressure / 134)
    assert volumes.mean() == pytest.approx(expected, rel=0.02)
    assert np.abs(volumes / expected - 1).max() < 0.1


def test_vibrations(relaxed: Atoms, tmp_path: Path) -> None:
    """A minimum: 3N - 6 = 21 real frequencies, in the ranges a chemist knows."""
    atoms = relaxed.copy()
    atoms.calc = relaxed.calc
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.005)
    vibrations.run()
    frequencies = vibrations.get_frequencies()  # 1/cm, imaginary ones as imaginary numbers
    real = np.sort(frequencies[np.abs(frequencies.imag) < 1].real)[::-1]
    # the six motions of the rigid molecule are near zero, and may come out slightly imaginary
    genuine = real[:21]
    assert len(frequencies) == 27
    assert genuine.min() > 100
    assert np.abs(np.sort(np.abs(frequencies))[:6]).max() < 100
    n_between = [
        int(((genuine > a) & (genuine < b)).sum()) for a, b in ((3400, 4000), (2700, 3200))
    ]
    assert n_between == [1, 5], "one O-H and five C-H stretches"


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz"])
def test_results_survive_a_file(name: str, tmp_path: Path, copper_model: AttnCalculator) -> None:
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.info["charge"] = 0
    atoms.calc = copper_model
    atoms.get_potential_energy(), atoms.get_stress()
    if name.endswith(".traj"):
        with Trajectory(tmp_path / name, "w") as trajectory:
            trajectory.write(atoms)
    else:
        write(tmp_path / name, atoms)
    frame = read(tmp_path / name)
    assert frame.info["charge"] == 0
    for asked in ("get_potential_energy", "get_potential_energies", "get_forces", "get_stress"):
        # extended XYZ keeps eight digits behind the point
        assert getattr(frame, asked)() == pytest.approx(getattr(atoms, asked)(), abs=1e-8)
    frame.calc = copper_model
    assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
