"""Partial charges, Hirshfeld ratios and dipoles: read, chosen, joined, written, streamed."""

import dataclasses

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from attncalc import data
from attncalc.data.dataset import OPTIONAL
from attncalc.data.hdf5_rows import write_hdf5
from attncalc.data.streamed import stream

FRAMES = [molecule("H2O"), molecule("CH3OH"), molecule("NH3")]


def frames(charges: str = "mbis_charges", count: int = 3) -> list[Atoms]:
    random = np.random.default_rng(0)
    found = []
    for k, atoms in enumerate(FRAMES):
        atoms = atoms.copy()
        atoms.info |= {"energy": -1.0 * k, "dipole": random.normal(size=3)}
        atoms.arrays["forces"] = random.normal(size=(len(atoms), 3))
        if k < count:
            atoms.arrays[charges] = random.normal(size=len(atoms))
            atoms.arrays["hirshfeld_ratios"] = random.uniform(0.5, 1, len(atoms))
        found.append(atoms)
    return found


def same(one: data.Dataset, other: data.Dataset) -> None:
    for name in OPTIONAL:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None), name
        for a, b in zip(() if ours is None else ours, () if ours is None else theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("charges", ["mbis_charges", "charges", "charge_mbis"])
def test_extended_xyz(tmp_path, charges: str) -> None:
    wanted = frames(charges)
    write(tmp_path / "a.extxyz", wanted, format="extxyz")
    read = data.read(tmp_path / "a.extxyz")
    for k, atoms in enumerate(wanted):
        np.testing.assert_allclose(read.charges[k], atoms.arrays[charges], atol=1e-8)
        np.testing.assert_allclose(read.dipoles[k], atoms.info["dipole"], atol=1e-8)
        ratios = atoms.arrays["hirshfeld_ratios"]
        np.testing.assert_allclose(read.hirshfeld_ratios[k], ratios, atol=1e-8)


def test_labels_that_some_frames_lack_are_left_out() -> None:
    read = data.from_ase(frames(count=2))
    assert read.charges is None
    assert read.hirshfeld_ratios is None
    assert read.dipoles is not None


def test_hdf5_and_its_stream(tmp_path) -> None:
    read = data.from_ase(frames())
    path = tmp_path / "a.h5"
    assert write_hdf5([read[:2], read[2]], path) == 3
    same(data.read(path), read)
    same(stream(path).in_memory(), read)
    same(stream(path)[[2, 0]].in_memory(), read[[2, 0]])
    same(read[:1] + read[1:], read)


def test_total_charges_are_not_those_of_atoms(tmp_path) -> None:
    """Under the name "charges": one per structure, or one per atom."""
    water = FRAMES[0]
    arrays = {"R": np.stack([water.positions] * 2), "z": water.numbers, "E": np.zeros(2)}
    np.savez(tmp_path / "total.npz", **arrays, charges=np.array([1, -1]))
    total = data.read(tmp_path / "total.npz", energy_unit="eV")
    assert total.charges is None
    assert [atoms.info["charge"] for atoms in total.structures] == [1, -1]
    of_atoms = np.array([[-0.6, 0.3, 0.3]] * 2)
    np.savez(tmp_path / "atoms.npz", **arrays, charges=of_atoms)
    read = data.read(tmp_path / "atoms.npz", energy_unit="eV")
    np.testing.assert_array_equal(read.charges, of_atoms)
    assert "charge" not in read.structures[0].info


def test_dipoles_have_the_unit_of_lengths(tmp_path) -> None:
    water = FRAMES[0]
    arrays = {"R": water.positions[None], "z": water.numbers, "E": np.zeros(1)}
    np.savez(tmp_path / "a.npz", **arrays, dipole=np.ones((1, 3)))
    read = data.read(tmp_path / "a.npz", energy_unit="Hartree", length_unit="Bohr")
    np.testing.assert_allclose(read.dipoles, 0.529177, atol=1e-5)


def test_hdf5_as_published(tmp_path) -> None:
    """A group per molecule, charges of atoms with an axis more; a label that one group lacks."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k, atoms in enumerate(FRAMES[:2]):
            group = file.create_group(f"molecule {k}")
            group["conformations"] = np.stack([atoms.positions] * 2)
            group["atomic_numbers"] = atoms.numbers
            group["energies"] = np.arange(2.0)
            group["mbis_charges"] = np.full((2, len(atoms), 1), 0.1)
            if k == 0:
                group["hirshfeld_ratios"] = np.ones((2, len(atoms)))
    read = data.read(tmp_path / "a.h5", energy_unit="eV", length_unit="Angstrom")
    assert [len(q) for q in read.charges] == [3, 3, 6, 6]
    assert read.hirshfeld_ratios is None


def test_wrong_shapes_and_numbers() -> None:
    read = data.from_ase(frames())
    short = (*read.charges[:2], read.charges[2][:1])
    with pytest.raises(ValueError, match=r"charges of structure 2 must have shape \[4\]"):
        dataclasses.replace(read, charges=short)
    with pytest.raises(ValueError, match=r"dipoles must have shape \[3, 3\]"):
        dataclasses.replace(read, dipoles=read.dipoles[:2])
    ratios = [ratio * np.nan for ratio in read.hirshfeld_ratios]
    with pytest.raises(ValueError, match="hirshfeld_ratios of structure 0 is not finite"):
        dataclasses.replace(read, hirshfeld_ratios=ratios)
