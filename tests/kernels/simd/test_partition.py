"""How a graph is split among the threads of one call."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from contract import ethanol, slab, triclinic

from attncalc.kernels.simd.partition import partition
from attncalc.neighbors import VerletList, fresh_graph
from attncalc.system import System

SPECIES = (1, 6, 7, 8)

STRUCTURES = {
    "molecule": ethanol,
    "crystal": lambda: triclinic() * (2, 1, 1),
    "own images": lambda: bulk("C", a=3.2),
    "batch": lambda: [Atoms("O"), ethanol(), slab(), Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])],
}


@pytest.mark.parametrize("by_pairs", [True, False])
@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_everything_is_in_one_part(structure, padded: bool, size: int, by_pairs: bool) -> None:
    system = System.from_ase(structure())
    graph = fresh_graph(system, cutoff=4.0, species=SPECIES)
    if padded:
        verlet = VerletList.create(cutoff=4.0, skin=0.5, species=SPECIES, capacity=64)
        graph = verlet.update(system)[1]
    arrays = graph.arrays
    parts = partition(arrays, size, by_pairs=by_pairs)
    assert len(parts) == size
    for whole, name in ((arrays.receivers, "receivers"), (arrays.vectors, "vectors")):
        pieces = [getattr(part.arrays, name) for part in parts]
        assert np.array_equal(np.concatenate(pieces), whole)
    of_pairs = [part.arrays.receivers[part.arrays.pairs] for part in parts]
    assert np.array_equal(np.concatenate(of_pairs), arrays.receivers[arrays.pairs])
    n_atoms = graph.n_atoms
    for what in ("atoms", "owned"):
        ranges = [range(*getattr(part, what)) for part in parts]
        assert [i for one in ranges for i in one] == list(range(n_atoms))
    for part in parts:
        first, end = part.owned
        assert ((part.arrays.receivers >= first) & (part.arrays.receivers < end)).all()
    work = [len(part.arrays.pairs if by_pairs else part.arrays.receivers) for part in parts]
    all_of_one = max(np.bincount(arrays.receivers[arrays.pairs] if by_pairs else arrays.receivers))
    assert max(work) <= sum(work) / size + all_of_one + 1
