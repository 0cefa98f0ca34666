"""Pairs by the compiled loop: those of matscipy's list, each once, always in the same order."""

import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from contract import ELEMENTS, ethanol, slab, triclinic

from attncalc.evaluator import Evaluator
from attncalc.graph import one_per_pair
from attncalc.model_file import load
from attncalc.neighbors import VerletList, matscipy_list, pair_search
from attncalc.neighbors.half_list import ListedPairs
from attncalc.neighbors.pair_search import pair_list
from attncalc.system import System


def as_rows(pairs: ListedPairs) -> list[tuple[float, ...]]:
    columns = (pairs.receivers[:, None], pairs.senders[:, None], pairs.shifts[pairs.codes])
    return [tuple(row) for row in np.concatenate(columns, axis=1).tolist()]


def expected(system: System, cutoff: float) -> list[tuple[float, ...]]:
    edges = matscipy_list(system, cutoff)
    rows = torch.stack((edges.receivers, edges.senders, one_per_pair(edges).long()))
    return as_rows(ListedPairs.of(rows, edges.cell_shifts))


def far_apart() -> Atoms:
    other = ethanol()
    other.positions += [3e3, -40.0, 1e4]
    return ethanol() + other


def drifted() -> Atoms:
    """A crystal whose atoms have left its cell, each by another way."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=1)
    wraps = np.random.default_rng(0).integers(-300, 300, (len(atoms), 3))
    atoms.positions += wraps @ atoms.cell.array
    return atoms


STRUCTURES = [
    [ethanol()],
    [slab()],
    [triclinic()],
    [bulk("Cu")],
    [drifted()],
    [far_apart()],
    [Atoms("H")],
    [triclinic(), Atoms("H"), ethanol(), drifted()],
]


@pytest.mark.parametrize("bins", [1, 2, 5])
@pytest.mark.parametrize("structures", STRUCTURES)
def test_pairs_are_those_of_matscipy(structures, bins: int, monkeypatch) -> None:
    monkeypatch.setattr(pair_search, "BINS_PER_CUTOFF", bins)
    system = System.from_ase(structures)
    for cutoff in (1.7, 4.3, 9.0):  # no shell of the crystals is there
        assert as_rows(pair_list(system, cutoff)) == expected(system, cutoff)


def test_random_cells() -> None:
    random = np.random.default_rng(7)
    for _ in range(40):
        n_atoms = int(random.integers(1, 30))
        atoms = Atoms(numbers=random.choice(ELEMENTS, n_atoms), pbc=random.integers(0, 2, 3))
        atoms.set_cell(random.normal(size=(3, 3)) + 4.0 * np.diag(random.uniform(0.6, 2.0, 3)))
        atoms.set_scaled_positions(random.uniform(-1.5, 2.5, (n_atoms, 3)))
        system = System.from_ase(atoms)
        assert as_rows(pair_list(system, 3.3)) == expected(system, 3.3)


def test_edges_are_made_of_pairs_if_something_asks_for_them() -> None:
    system = System.from_ase([triclinic(), ethanol()])
    verlet = VerletList.create(cutoff=5.0, skin=0.5, species=ELEMENTS, by_pairs=True)
    verlet, graph = verlet.update(system)
    assert isinstance(verlet.listed.source, ListedPairs)
    edges, found = matscipy_list(system, 5.5), verlet.listed.edges
    for name in ("receivers", "senders", "cell_shifts"):
        assert torch.equal(getattr(found, name), getattr(edges, name))
    plain = VerletList.create(cutoff=5.0, skin=0.5, species=ELEMENTS).update(system)[1]
    for name in ("vectors", "receivers", "senders", "pairs"):
        assert torch.equal(getattr(graph, name), getattr(plain, name))


def test_results_are_the_same_bits_for_lists_of_other_skins() -> None:
    """As after a restart, whose list is a new one."""
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[3.2] * 3, pbc=True)
    atoms = water * (3, 3, 3)
    atoms.rattle(0.05, seed=0)
    model = load("so3krates-organic")
    results = [Evaluator(model, skin=skin)(System.from_ase(atoms)) for skin in (0.0, 0.3, 1.0)]
    for result in results[1:]:
        assert torch.equal(result.forces, results[0].forces)
        assert torch.equal(result.energy, results[0].energy)


def test_many_images_of_one_atom() -> None:
    system = System.from_ase(bulk("Cu"))
    assert as_rows(pair_list(system, 21.0)) == expected(system, 21.0)


def test_edges_of_an_evaluation_without_gradients_serve_later_gradients() -> None:
    system = System.from_ase(triclinic())
    verlet = VerletList.create(cutoff=5.0, skin=0.5, species=ELEMENTS, by_pairs=True)
    with torch.inference_mode():
        verlet, graph = verlet.update(system)
        assert graph.vectors.shape[1] == 3
    leaf = system.positions.clone().requires_grad_()
    vectors = verlet.graph(system.with_positions(leaf)).vectors
    (vectors**2).sum().backward()
    assert leaf.grad is not None


def test_errors_are_those_of_other_lists() -> None:
    clash = ethanol()
    clash.positions[2] = clash.positions[1]
    verlet = VerletList.create(cutoff=5.0, skin=0.5, species=ELEMENTS, by_pairs=True)
    with pytest.raises(ValueError, match=r"^atom 1 \(C\) and atom 2 \(O\) are 0.0e\+00 Å apart"):
        verlet.update(System.from_ase(clash))
    clash.positions[2] = np.nan
    with pytest.raises(ValueError, match=r"^the position of atom 2 \(O\) is not finite"):
        verlet.update(System.from_ase(clash))


def test_without_numba_the_list_is_matscipys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[pair_list.__module__], "cpu_loops", lambda _: None)
    system = System.from_ase(triclinic())
    verlet = VerletList.create(cutoff=5.0, skin=0.5, species=ELEMENTS, by_pairs=True)
    listed = verlet.update(system)[0].listed
    assert not isinstance(listed.source, ListedPairs)
    assert as_rows(listed.pairs) == expected(system, 5.5)
