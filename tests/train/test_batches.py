"""Joined samples are the batch that one neighbour search over all structures gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from attncalc.graph import ALL_PAIRS
from attncalc.neighbors import VerletList
from attncalc.system import System
from attncalc.train.batches import Samples, join, samples, to_device
from attncalc.train.step import flatten, unflatten

SPECIES = (28, 29)


def test_join_is_the_batch_of_the_systems(dataset):
    structures = list(dataset.structures[:5])
    _, graph = VerletList.create(cutoff=3.4, skin=0.0, species=SPECIES).update(
        System.from_ase(structures)
    )
    batch = join(samples(dataset[:5], 3.4, SPECIES))
    for name in ("species", "system_idx", "charge", "spin"):
        assert torch.equal(getattr(batch.graph, name), getattr(graph, name)), name
    assert batch.graph.n_edges == graph.n_edges
    assert batch.graph.edge_mask.all()
    # edges of one atom may stand in any order: compare them as a sorted list
    assert np.allclose(edges(batch.graph), edges(graph), rtol=0, atol=1e-12)
    assert np.allclose(edges(batch.graph, pairs=True), edges(graph, pairs=True), rtol=0, atol=1e-12)


def edges(graph, pairs: bool = False) -> np.ndarray:
    chosen = graph.pairs if pairs else slice(None)
    columns = (graph.receivers[chosen], graph.senders[chosen])
    table = torch.column_stack([*columns, graph.vectors[chosen].round(decimals=9)]).numpy()
    return table[np.lexsort(table.T[::-1])]


def test_labels_and_volume(dataset):
    batch = join(samples(dataset[:3], 3.4, SPECIES))
    assert np.array_equal(batch.energy, dataset.energies[:3])
    assert np.array_equal(batch.forces, np.concatenate(dataset.forces[:3]))
    assert np.array_equal(batch.stress, dataset.stress[:3])
    volumes = [atoms.get_volume() for atoms in dataset.structures[:3]]
    assert np.allclose(batch.volume, volumes)


def test_a_molecule_has_unit_volume(dataset):
    molecule = dataset[:1]
    molecule.structures[0].pbc, cell = False, molecule.structures[0].cell.copy()
    molecule.structures[0].cell = None
    try:
        (batch,) = samples(molecule, 3.4, SPECIES)
    finally:
        molecule.structures[0].pbc, molecule.structures[0].cell = True, cell
    assert batch.volume.tolist() == [1.0]


def test_an_unknown_element_is_refused(dataset):
    with pytest.raises(ValueError, match="not trained on Ni"):
        samples(dataset[:1], 3.4, (29,))


def test_structures_searched_together_are_those_searched_alone(dataset):
    mixed = dataset[:6]
    structures = list(mixed.structures)
    for k in (2, 5):  # molecules between crystals
        structures[k] = Atoms(structures[k].numbers, structures[k].positions)
    mixed = replace(mixed, structures=tuple(structures))
    alone = Samples(
        *(mixed, 3.4, SPECIES),
        long_range=lambda system: 9.0 if system.pbc.any() else ALL_PAIRS,
        keeps_system=True,
    )
    together = alone.in_memory()
    for k, batch in enumerate(together):
        for one, other in zip(flatten(batch), flatten(alone[k]), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert [batch.all_pairs for batch in together] == [False, False, True] * 2


def test_atoms_on_top_of_each_other_are_told_of_the_structure_alone(dataset):
    structures = [atoms.copy() for atoms in dataset.structures[:3]]
    structures[1].positions[1] = structures[1].positions[0]
    wrong = replace(dataset[:3], structures=tuple(structures))
    with pytest.raises(ValueError, match=r"^atom 0 .* and atom 1 .* Å apart: remove"):
        samples(wrong, 3.4, SPECIES)


def test_flatten_and_back(dataset):
    (batch,) = samples(dataset[:1], 3.4, SPECIES)
    again = unflatten(flatten(batch), batch)
    for ours, theirs in zip(flatten(again), flatten(batch), strict=True):
        assert ours is theirs
    moved = to_device(batch, torch.device("cpu"))
    assert all(map(torch.equal, flatten(moved), flatten(batch)))
