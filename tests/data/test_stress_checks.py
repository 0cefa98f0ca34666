"""Stresses against the energies of strained cells: named where wrong, silent everywhere else."""

import dataclasses

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from attncalc import data
from attncalc.data.stress_checks import SHEARS, can_check_stress

PLACES = {"yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}


@pytest.fixture(scope="module")
def strained() -> data.Dataset:
    """Copper strained along x, y, z and sheared in all three planes by up to 4 %."""
    frames = []
    rng = np.random.default_rng(0)
    for i, j in [(0, 0), (1, 1), (2, 2), *PLACES.values()]:
        for size in (-0.04, -0.02, 0.02, 0.04):
            atoms = bulk("Cu", "fcc", a=3.65, cubic=True)
            change = np.eye(3)
            change[i, j] += size
            atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
            atoms.positions += rng.normal(scale=0.005, size=atoms.positions.shape)
            atoms.calc = EMT()
            atoms.get_forces(), atoms.get_stress()
            frames.append(atoms)
    return data.from_ase(frames, source="strained.extxyz")


def with_stress(dataset: data.Dataset, stress: np.ndarray) -> data.Dataset:
    return dataclasses.replace(dataset, stress=stress)


def in_order(stress: np.ndarray, names: str) -> np.ndarray:
    """[n, 3, 3] as read from a file that stores the shears in this order."""
    wrong = stress.copy()
    for name, stored in zip(SHEARS, names.split(), strict=True):
        (i, j), (k, m) = PLACES[name], PLACES[stored]
        wrong[:, i, j] = wrong[:, j, i] = stress[:, k, m]
    return wrong


def test_right_stresses_pass_in_silence(strained):
    assert data.stress_mismatch(strained) is None
    turned = with_stress(strained, 1.2 * strained.stress)  # not known by any name
    assert data.stress_mismatch(turned) is None
    assert data.stress_mismatch(with_stress(strained, 0 * strained.stress)) is None


@pytest.mark.parametrize("names", ["xz yz xy", "xy xz yz", "yz xy xz", "xz xy yz", "xy yz xz"])
def test_shears_in_another_order(strained, names):
    told = data.stress_mismatch(with_stress(strained, in_order(strained.stress, names)))
    assert told.startswith("strained.extxyz: stresses do not fit the energies of strained cells (")
    assert f"the shear components stand in the order {names}, not yz xz xy" in told
    assert float(told.rsplit("then it is ", 1)[1]) < 0.06
    assert float(told.split("relative residual ")[1].split(")")[0]) > 0.05
    negative = with_stress(strained, -in_order(strained.stress, names))
    assert f"{names}, not yz xz xy, and they have the sign of" in data.stress_mismatch(negative)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (-1, "they have the sign of a pressure, multiply them by -1"),
        (1 / units.GPa, "they seem to be in GPa, not eV/Å³"),
        (-1 / units.GPa, "they seem to be pressures in GPa, not eV/Å³"),
        (10 / units.GPa, "they seem to be in kbar, not eV/Å³"),
        (-10 / units.GPa, "they seem to be pressures in kbar, not eV/Å³"),
    ],
)
def test_signs_and_units(strained, factor, message):
    assert message in data.stress_mismatch(with_stress(strained, factor * strained.stress))


def test_wrapped_and_translated_atoms(strained):
    """An atom that left the cell has come back at the other side, and the crystal may drift."""
    structures = [atoms.copy() for atoms in strained.structures]
    for k, atoms in enumerate(structures):
        atoms.positions += [0.05 * k, 0.02 * k, 0.0]
        atoms.wrap()
    wrong = dataclasses.replace(strained, structures=tuple(structures), stress=-strained.stress)
    told = data.stress_mismatch(with_stress(strained, -strained.stress))
    assert told is not None
    assert data.stress_mismatch(wrong) == told


def test_virials(strained):
    volume = np.array([atoms.get_volume() for atoms in strained.structures])[:, None, None]
    told = data.stress_mismatch(with_stress(strained, -volume * strained.stress))
    assert "they seem to be virials in eV, divide them by minus the volume" in told
    told = data.stress_mismatch(with_stress(strained, volume * strained.stress))
    assert "they seem to be multiplied by the volume, divide them by it" in told


def test_data_that_do_not_let_one_decide(strained, dataset_without_cells):
    wrong = with_stress(strained, -strained.stress)
    assert data.stress_mismatch(wrong) is not None
    assert can_check_stress(wrong)
    assert data.stress_mismatch(wrong[:3]) is None, "too few"
    assert not can_check_stress(wrong[:3])
    assert data.stress_mismatch(dataclasses.replace(wrong, stress=None)) is None
    assert data.stress_mismatch(dataclasses.replace(wrong, forces=None)) is None
    noise = np.random.default_rng(0).normal(size=strained.stress.shape)
    assert data.stress_mismatch(with_stress(strained, noise + noise.swapaxes(1, 2))) is None
    far = [atoms.copy() for atoms in wrong.structures]
    for k, atoms in enumerate(far):
        atoms.rattle(0.3, seed=k)
    assert data.stress_mismatch(dataclasses.replace(wrong, structures=tuple(far))) is None
    assert data.stress_mismatch(dataset_without_cells) is None


@pytest.fixture
def dataset_without_cells(strained) -> data.Dataset:
    structures = [atoms.copy() for atoms in strained.structures]
    for atoms in structures:
        atoms.pbc = [True, True, False]
    return dataclasses.replace(strained, structures=tuple(structures), stress=-strained.stress)


def test_real_data(shared):
    """The elastic part of one file has two shears in each other's place; molybdenum has not."""
    folder = shared / "data"
    assert data.stress_mismatch(data.read(folder / "mlearn_Mo.extxyz")) is None
    told = data.stress_mismatch(data.read(folder / "mlearn_Si.extxyz"))
    assert "the shear components stand in the order xz yz xy, not yz xz xy" in told
    assert data.stress_mismatch(data.read(folder / "water_virial_384.npz")) is None
