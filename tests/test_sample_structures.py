"""Random structures to try a model on: possible ones, whatever the elements."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attncalc.sample_structures import CLOSEST, N_ATOMS, random_cluster
from attncalc.system import System, charge_and_spin

SETS = [(1,), (6,), (7,), (29,), (1, 6, 7, 8), (7, 9), (3, 11, 19), (1, 8), tuple(range(1, 100))]


@pytest.mark.parametrize("species", SETS, ids=lambda species: f"{species[0]}..{species[-1]}")
def test_clusters_are_possible_molecules(species: tuple[int, ...]) -> None:
    for seed in range(40):
        atoms = random_cluster(species, seed)
        assert set(atoms.numbers) <= set(species)
        assert int(atoms.numbers.sum()) % 2 == 0, "no lone electron"
        assert charge_and_spin(atoms) == (0, 1)
        assert N_ATOMS - 1 <= len(atoms) <= N_ATOMS
        distances = atoms.get_all_distances()[np.triu_indices(len(atoms), k=1)]
        assert distances.min() > CLOSEST
        assert distances.max() < 7.0, "one cluster, within the reach of a few layers"
        System.from_ase(atoms)
        if any(z % 2 for z in species):
            odd = random_cluster(species, seed, odd_protons=True)
            if len(atoms) == N_ATOMS or len(odd) == N_ATOMS:  # an odd element was drawn
                assert int(odd.numbers.sum()) % 2 == 1


def test_seeds() -> None:
    clusters = [random_cluster((1, 6), seed) for seed in range(5)]
    assert random_cluster((1, 6), 3) == clusters[3]
    for a, b in itertools.combinations(clusters, 2):
        assert not np.array_equal(a.positions[:11], b.positions[:11])


def test_all_elements_turn_up() -> None:
    seen = set()
    for seed in range(10):
        seen |= set(random_cluster((1, 6, 7, 8), seed).numbers)
    assert seen == {1, 6, 7, 8}
