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


def test_labels_of_another_set_are_not_taken() -> None:
    """Of the set REF: its charges before plain ones, and no dipole of the plain set."""
    found = frames("REF_charges")
    for atoms in found:
        atoms.info["REF_energy"] = 1.0
        atoms.arrays["mbis_charges"] = np.full(len(atoms), 9.0)
    read = data.from_ase(found, labels="REF")
    np.testing.assert_array_equal(read.charges[0], found[0].arrays["REF_charges"])
    assert read.dipoles is None
    for atoms in found:
        del atoms.info["energy"]
    assert data.from_ase(found, labels="REF").dipoles is not None


@pytest.mark.parametrize(
    ("unit", "size"), [("Debye", 0.2081943), ("e*Bohr", 0.529177), ("a.u.", 0.529177), ("e Å", 1.0)]
)
def test_dipoles_in_the_unit_that_the_file_states(tmp_path, unit: str, size: float) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["R"], file["z"] = FRAMES[0].positions[None], FRAMES[0].numbers
        file["E"], file["dipole"] = np.zeros(1), np.ones((1, 3))
        file["dipole"].attrs["units"] = unit
    read = data.read(path, energy_unit="eV")
    np.testing.assert_allclose(read.dipoles, size, atol=1e-6)
    with h5py.File(path, "a") as file:
        file["dipole"].attrs["units"] = "eV"
    with pytest.raises(ValueError, match="'eV' is not a unit of dipoles: use Debye"):
        data.read(path, energy_unit="eV")


def test_a_total_charge_beside_those_of_atoms(tmp_path) -> None:
    arrays = {"R": np.stack([FRAMES[0].positions] * 2), "z": FRAMES[0].numbers, "E": np.zeros(2)}
    of_atoms = np.full((2, 3), -1 / 3)
    np.savez(tmp_path / "a.npz", **arrays, charges=of_atoms, total_charge=np.array([-1, -1]))
    read = data.read(tmp_path / "a.npz", energy_unit="eV")
    assert [atoms.info["charge"] for atoms in read.structures] == [-1, -1]
    assert read.charges is not None


def test_a_single_atom_in_a_stream(tmp_path) -> None:
    """Its partial charge is not taken for a total charge, whatever the array is called."""
    structures = [Atoms("F"), FRAMES[0]]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["z"] = np.concatenate([atoms.numbers for atoms in structures])
        file["R"] = np.concatenate([atoms.positions for atoms in structures])
        file["E"], file["offsets"], file["charge"] = np.zeros(2), [0, 1, 4], [-1, 0]
        file["charges"] = [-1.0, -0.6, 0.3, 0.3]
        file["dipole"] = np.ones(2)  # a length, no vector
    whole, streamed = data.read(path, energy_unit="eV"), stream(path, energy_unit="eV")
    for read in (whole, streamed.in_memory()):
        np.testing.assert_array_equal(np.concatenate(read.charges), [-1.0, -0.6, 0.3, 0.3])
        assert [atoms.info["charge"] for atoms in read.structures] == [-1, 0]
        assert read.dipoles is None


def test_files_of_different_labels_are_joined_without_them(tmp_path) -> None:
    with_them, without = data.from_ase(frames()), data.from_ase(frames(count=0))
    joined = with_them + without
    assert joined.charges is None
    assert joined.dipoles is not None
    for parts in ([with_them, without], [without, with_them]):
        path = tmp_path / "a.h5"
        path.unlink(missing_ok=True)
        assert write_hdf5(parts, path) == 6
        same(data.read(path), parts[0] + parts[1])
