"""Random and official splits."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.cluster import Octahedron
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from attncalc import data


@pytest.fixture
def numbered() -> data.Dataset:
    """Twenty atoms whose energies number them."""
    return data.Dataset(
        structures=tuple(Atoms("H") for _ in range(20)),
        energies=np.arange(20.0),
        splits={"train_01": np.array([9, 3, 5, 1, 7]), "test_01": np.array([2, 0]), "b": [9, 4]},
        source="numbered.npz",
    )


def test_parts_are_disjoint_and_complete(numbered):
    parts = data.split(numbered, [12, 3, "rest"], seed=0)
    assert [len(part) for part in parts] == [12, 3, 5]
    assert sorted(np.concatenate([part.energies for part in parts])) == list(range(20))
    assert list(parts[0].energies) != sorted(parts[0].energies)


def test_structures_beyond_the_sizes_are_left_out(numbered):
    first, second = data.split(numbered, [12, 3], seed=0)
    assert (len(first), len(second)) == (12, 3)
    assert not set(first.energies) & set(second.energies)


def test_rest_may_stand_anywhere_and_be_empty(numbered):
    assert [len(part) for part in data.split(numbered, ["rest", 15], seed=1)] == [5, 15]
    assert [len(part) for part in data.split(numbered, [20, "rest"], seed=1)] == [20, 0]


def test_the_seed_decides(numbered):
    # Pinned, so that a published split can be found again with a later version.
    assert data.split(numbered, [5], seed=0)[0].energies.tolist() == [4, 19, 6, 2, 13]
    again, other = (data.split(numbered, [5], seed=seed)[0].energies for seed in (0, 1))
    assert again.tolist() != other.tolist()


def test_without_a_seed_parts_stand_one_behind_the_other(numbered):
    first, second, rest = data.split(numbered, [12, 3, "rest"], seed=None)
    assert first.energies.tolist() == list(range(12))
    assert second.energies.tolist() == [12, 13, 14]
    assert rest.energies.tolist() == list(range(15, 20))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([21], r"numbered.npz: sizes \[21\] need 21 structures, the data set has 20"),
        (["rest", "rest"], 'sizes may hold "rest" only once'),
        ([-1], 'sizes of a split must be numbers of structures or "rest", got -1'),
        ([0.8, "rest"], 'sizes of a split must be numbers of structures or "rest", got 0.8'),
        (["half"], "sizes of a split must be numbers of structures or \"rest\", got 'half'"),
    ],
)
def test_impossible_sizes(numbered, sizes, message):
    with pytest.raises(ValueError, match=message):
        data.split(numbered, sizes, seed=0)


def test_official_split_validates_on_the_last_of_train(numbered):
    training, validation, test = data.official_split(numbered, n_validation=2)
    assert training.energies.tolist() == [9, 3, 5]
    assert validation.energies.tolist() == [1, 7]
    assert test.energies.tolist() == [2, 0]


def test_official_split_validates_on_any_of_train_with_a_seed(numbered):
    drawn = [data.official_split(numbered, n_validation=2, seed=seed) for seed in range(8)]
    for training, validation, test in drawn:
        assert sorted([*training.energies, *validation.energies]) == [1, 3, 5, 7, 9]
        assert test.energies.tolist() == [2, 0]
    assert len({tuple(validation.energies) for _, validation, _ in drawn}) > 3
    again = data.official_split(numbered, n_validation=2, seed=3)
    assert again[1].energies.tolist() == drawn[3][1].energies.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "train_02"}, 'numbered.npz: no split "train_02": it has train_01, test_01, b'),
        ({"test": "test"}, r'no split "test": it has .*; test: null in a recipe means no test set'),
        ({"test": "b"}, 'the splits "train_01" and "b" share 1 structures'),
        ({}, "n_validation must be between 0 and 4 for the 5 structures"),
        ({"n_validation": -1}, "n_validation must be between 0 and 4"),
    ],
)
def test_impossible_official_split(numbered, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.official_split(numbered, **arguments)


def test_a_dataset_without_splits_says_so(numbered):
    with pytest.raises(ValueError, match='"train_01": it has none, use sizes in a recipe'):
        data.official_split(numbered[:])


def test_a_test_split_may_be_left_out(numbered):
    training, validation, test = data.official_split(numbered, n_validation=2, test=None)
    assert (len(training), len(validation), len(test)) == (3, 2, 0)


@pytest.fixture(scope="module")
def trajectory() -> data.Dataset:
    """Frames of a copper cluster at 600 K, 5 fs apart."""
    atoms = Octahedron("Cu", 3)
    atoms.calc, frames = EMT(), []
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(0))
    verlet = VelocityVerlet(atoms, 5 * units.fs)
    for _ in range(60):
        verlet.run(1)
        frames.append((atoms.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    structures, energies, forces = zip(*frames, strict=True)
    return data.Dataset(structures, np.array(energies), forces)


def test_frames_of_a_trajectory_are_near_copies(trajectory: data.Dataset) -> None:
    to_next, to_far = data.near_copies(trajectory)
    assert 0.01 < to_next < 0.2 * to_far < 0.2
    turned = [atoms.copy() for atoms in trajectory.structures]
    for k, atoms in enumerate(turned):
        atoms.rotate(31 * k, (1, 2, 3))
        atoms.positions += k
    moved = data.near_copies(dataclasses.replace(trajectory, structures=turned))
    assert moved == pytest.approx((to_next, to_far))


def test_structures_that_are_no_near_copies(trajectory: data.Dataset) -> None:
    mixed = trajectory[np.random.default_rng(1).permutation(len(trajectory))]
    assert data.near_copies(mixed) is None
    assert data.near_copies(trajectory[[0] * 40]) is None  # all the same: told elsewhere
    rattled = [trajectory.structures[0].copy() for _ in range(40)]
    for k, atoms in enumerate(rattled):
        atoms.rattle(0.02, seed=k)
    drawn = dataclasses.replace(trajectory[:40], structures=rattled)
    assert data.near_copies(drawn) is None


def test_structures_that_cannot_be_compared(trajectory: data.Dataset) -> None:
    assert data.near_copies(trajectory[:0]) is None
    assert data.near_copies(trajectory[:12]) is None
    assert data.near_copies(trajectory[:20]) is not None
    other = [atoms.copy() for atoms in trajectory.structures]
    for atoms in other[::2]:
        atoms.numbers[0] = 28
    assert data.near_copies(dataclasses.replace(trajectory, structures=other)) is None


def test_crystals_are_compared_to_nearest_images(trajectory: data.Dataset) -> None:
    boxed = [atoms.copy() for atoms in trajectory.structures]
    for k, atoms in enumerate(boxed):
        atoms.set_cell([[12.0, 0, 0], [2, 12, 0], [1, 0, 12]])
        atoms.pbc = True
        atoms.positions += 0.3 * k
        atoms.wrap()
    found = data.near_copies(dataclasses.replace(trajectory, structures=boxed))
    assert found == pytest.approx(data.near_copies(trajectory), rel=0.2)


@pytest.mark.parametrize(
    ("name", "labels", "near"),
    [
        ("lips20_Li2S.npz", None, True),  # trajectories
        ("lips20_Li7P3S11.npz", None, True),
        ("md17_ethanol_npzformat.npz", None, True),
        ("rmd17_ethanol.npz", "md17", False),  # drawn from one at random
        ("rmd17_aspirin.npz", "md17", False),
        ("water_pbe0ts_192.npz", None, False),
        ("mlearn_Mo.extxyz", None, False),
    ],
)
def test_near_copies_in_real_data(shared, name, labels, near) -> None:
    found = data.near_copies(data.read(shared / "data" / name, labels=labels))
    assert (found is not None) == near
