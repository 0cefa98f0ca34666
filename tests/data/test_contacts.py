"""Nearest neighbours over covalent radii, against distances by ASE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii

from attncalc import data
from attncalc.data.contacts import CONTACT, closest_contacts, neighbors_of


def dataset_of(*structures: Atoms) -> data.Dataset:
    return data.Dataset(structures=structures, energies=np.zeros(len(structures)))


def test_closest_contacts_by_hand() -> None:
    """Molecules, and a crystal whose nearest neighbours are images of the one atom."""
    ethanol, copper = molecule("CH3CH2OH"), bulk("Cu", "fcc", a=3.6)
    found = closest_contacts(dataset_of(ethanol, copper))
    distances = ethanol.get_all_distances() + 100 * np.eye(len(ethanol))
    radii = covalent_radii[ethanol.numbers]
    by_hand = (distances / (radii[:, None] + radii)).min(axis=1)
    np.testing.assert_allclose(found[:-1], by_hand, rtol=1e-12)
    assert found[-1] == pytest.approx(3.6 / np.sqrt(2) / (2 * covalent_radii[29]))


def test_an_atom_with_nothing_around_it() -> None:
    alone = dataset_of(Atoms("H"), Atoms("H2", positions=[[0, 0, 0], [0, 0, 30.0]]))
    assert closest_contacts(alone).tolist() == [2 * CONTACT] * 3


def test_neighbors_are_counted_within_their_structure() -> None:
    water = molecule("H2O")
    for i, j, lengths in neighbors_of(dataset_of(*[water] * 70)):  # more than one batch
        assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [
            (a, b) for a in range(3) for b in range(3) if a != b
        ]
        np.testing.assert_allclose(lengths, water.get_all_distances()[i, j])
