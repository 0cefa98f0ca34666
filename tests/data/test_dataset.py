"""`Dataset`: validation, selection, joining."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from attncalc import data


@pytest.fixture
def mixed() -> data.Dataset:
    """Three molecules of different size, with every label."""
    structures = [molecule(name) for name in ("H2O", "CH4", "CO")]
    rng = np.random.default_rng(0)
    return data.Dataset(
        structures=tuple(structures),
        energies=np.array([-1.0, -2.0, -3.0]),
        forces=tuple(rng.standard_normal((len(atoms), 3)) for atoms in structures),
        stress=rng.standard_normal((3, 3, 3)),
        splits={"train": np.array([0, 2]), "test": np.array([1])},
        source="mixed.extxyz",
        level_of_theory="PBE",
        labels="REF",
        isolated_energies={1: -13.6},
    )


def test_fields_are_float64_and_frozen(mixed):
    single = replace(mixed, energies=[1, 2, 3], forces=[f.astype(np.float32) for f in mixed.forces])
    assert len(single) == 3
    assert single.energies.dtype == np.float64
    assert all(forces.dtype == np.float64 for forces in single.forces)
    with pytest.raises(FrozenInstanceError):
        single.energies = np.zeros(3)


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(2), [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (np.array([0, 0]), [0, 0]),
        (np.array([True, False, True]), [0, 2]),
        ([], []),
    ],
)
def test_selection(mixed, index, chosen):
    part = mixed[index]
    assert isinstance(part, data.Dataset)
    np.testing.assert_array_equal(part.energies, mixed.energies[chosen])
    np.testing.assert_array_equal(part.stress, mixed.stress[chosen])
    assert [atoms.get_chemical_formula() for atoms in part.structures] == [
        mixed.structures[k].get_chemical_formula() for k in chosen
    ]
    for k, forces in zip(chosen, part.forces, strict=True):
        np.testing.assert_array_equal(forces, mixed.forces[k])
    assert part.splits == {}
    assert (part.source, part.level_of_theory, part.labels) == ("mixed.extxyz", "PBE", "REF")
    assert part.isolated_energies == {1: -13.6}


def test_selection_without_forces_and_stress(mixed):
    part = replace(mixed, forces=None, stress=None)[1:]
    assert part.forces is None
    assert part.stress is None


@pytest.mark.parametrize("index", [3, [0, 7], [[0, 1]], [0.5]])
def test_impossible_selection(mixed, index):
    with pytest.raises(IndexError):
        mixed[index]


def test_a_dataset_can_be_iterated(mixed):
    assert [part.energies.item() for part in mixed] == [-1.0, -2.0, -3.0]


def test_joining(mixed):
    joined = mixed[:1] + mixed[1:]
    np.testing.assert_array_equal(joined.energies, mixed.energies)
    np.testing.assert_array_equal(joined.stress, mixed.stress)
    np.testing.assert_array_equal(np.concatenate(joined.forces), np.concatenate(mixed.forces))
    assert (joined.source, joined.level_of_theory, joined.labels) == ("mixed.extxyz", "PBE", "REF")
    assert joined.isolated_energies == {1: -13.6}
    other = replace(mixed, source="b.npz", level_of_theory="", isolated_energies={6: -1000.0})
    joined = data.concatenate([mixed, other, mixed])
    assert len(joined) == 9
    assert joined.source == "mixed.extxyz + b.npz"
    assert joined.isolated_energies == {1: -13.6, 6: -1000.0}
    assert joined.splits == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forces": None}, "mixed.extxyz has forces but b.npz has not"),
        ({"stress": None}, "mixed.extxyz has stress but b.npz has not"),
        (
            {"level_of_theory": "HF"},
            "structures of different levels of theory cannot be joined: HF, PBE",
        ),
        ({"isolated_energies": {1: -13.0}}, "b.npz gives another energy of the isolated atom 1"),
    ],
)
def test_what_does_not_fit_is_not_joined(mixed, change, message):
    with pytest.raises(ValueError, match=message):
        mixed + replace(mixed, source="b.npz", **change)


def test_joining_nothing():
    with pytest.raises(ValueError, match="no data sets given"):
        data.concatenate([])


def _with_calculator() -> Atoms:
    atoms = bulk("Cu")
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"energies": np.zeros(2)},
            r"energies must have shape \[3\], one per structure, got \[2\]",
        ),
        ({"energies": [0, np.nan, 0]}, "the energy of structure 1 is not finite"),
        ({"forces": [np.zeros((3, 3))]}, "forces must have 3 arrays, one per structure, got 1"),
        (
            {"forces": [np.zeros((3, 3)), np.zeros((5, 2)), np.zeros((2, 3))]},
            r"forces of structure 1 must have shape \[5, 3\], got \[5, 2\]",
        ),
        (
            {"forces": [np.zeros((3, 3)), np.zeros((5, 3)), np.full((2, 3), np.inf)]},
            "the force of structure 2 is not finite",
        ),
        ({"stress": np.zeros((3, 6))}, r"stress must have shape \[3, 3, 3\], got \[3, 6\]"),
        ({"stress": np.full((3, 3, 3), np.nan)}, "the stress of structure 0 is not finite"),
        ({"splits": {"a": [0.5]}}, 'split "a" must be a list of integers'),
        ({"splits": {"a": [3]}}, 'split "a" lists structures beyond the 3 of the data set'),
        ({"splits": {"a": [-1]}}, 'split "a" lists structures beyond the 3 of the data set'),
        ({"splits": {"a": [1, 1]}}, 'split "a" lists a structure twice'),
    ],
)
def test_wrong_content_is_refused_with_the_source(mixed, change, message):
    with pytest.raises(ValueError, match=r"^mixed.extxyz: " + message):
        replace(mixed, **change)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("H2O", "structure 0 must be an ase.Atoms, got str"),
        (Atoms(), "structure 0 has no atoms"),
        (Atoms("H", positions=[[0, 0, np.nan]]), "the position of structure 0 is not finite"),
        (Atoms("H", info={"spin": 3}), r'structure 0: atoms.info\["spin"\] = 3 is impossible'),
        (_with_calculator(), "structure 0 carries a calculator: use data.from_ase"),
    ],
)
def test_wrong_structures_are_refused(structure, message):
    with pytest.raises(ValueError, match=message):
        data.Dataset(structures=(structure,), energies=np.zeros(1))


def test_one_data_set_is_written_with_its_splits(mixed, tmp_path):
    """A data set is a sequence of data sets of one structure, which have no splits."""
    assert data.write_hdf5(mixed, tmp_path / "one.h5") == 3
    found = data.read(tmp_path / "one.h5").splits
    assert {name: rows.tolist() for name, rows in found.items()} == {"train": [0, 2], "test": [1]}
