"""Threads of one call, and how they share a graph out."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from contract import ethanol, slab, triclinic
from numpy.typing import NDArray

from attncalc.kernels.simd.crew import ABANDONED, Crew
from attncalc.kernels.simd.shares import shares_of
from attncalc.neighbors import VerletList, fresh_graph
from attncalc.system import System

SPECIES = (1, 6, 7, 8)


def wait_for_the_others(arrivals: NDArray[np.int64]) -> int:
    while arrivals[0] < ABANDONED:
        time.sleep(0.001)
    return -1


def test_every_thread_works_at_the_same_time() -> None:
    crew, barrier = Crew(4), threading.Barrier(4, timeout=60)
    for _ in range(3):

        def work(rank: int, arrivals: NDArray[np.int64]) -> int:
            assert arrivals.tolist() == [0]
            barrier.wait()
            return 10 * rank

        assert crew.run(work) == [0, 10, 20, 30]


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_nobody_waits_for_a_thread_that_failed(failing: int, error: type[BaseException]) -> None:
    crew = Crew(3)

    def work(rank: int, arrivals: NDArray[np.int64]) -> int:
        if rank == failing:
            raise error("no room")
        return wait_for_the_others(arrivals)

    for _ in range(2):
        with pytest.raises(error, match="no room"):
            crew.run(work)
    assert crew.run(lambda rank, arrivals: rank) == [0, 1, 2]


def test_helpers_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(3)
    submit, asked = crew._helpers.submit, []

    def at_most_one(*arguments):
        asked.append(arguments)
        if len(asked) > 1:
            raise RuntimeError("can't start new thread")
        return submit(*arguments)

    monkeypatch.setattr(crew._helpers, "submit", at_most_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        crew.run(lambda rank, arrivals: wait_for_the_others(arrivals))


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
def test_everything_is_in_one_share(structure, padded: bool, size: int, by_pairs: bool) -> None:
    system = System.from_ase(structure())
    graph = fresh_graph(system, cutoff=4.0, species=SPECIES)
    if padded:
        verlet = VerletList.create(cutoff=4.0, skin=0.5, species=SPECIES, capacity=64)
        graph = verlet.update(system)[1]
    arrays = graph.arrays
    shares = shares_of(arrays, size, by_pairs=by_pairs)
    assert len(shares) == size
    for whole, name in ((arrays.receivers, "receivers"), (arrays.vectors, "vectors")):
        parts = [getattr(share.arrays, name) for share in shares]
        assert np.array_equal(np.concatenate(parts), whole)
    of_pairs = [share.arrays.receivers[share.arrays.pairs] for share in shares]
    assert np.array_equal(np.concatenate(of_pairs), arrays.receivers[arrays.pairs])
    n_atoms = graph.n_atoms
    for what in ("atoms", "owned"):
        ranges = [range(*getattr(share, what)) for share in shares]
        assert [i for one in ranges for i in one] == list(range(n_atoms))
    for share in shares:
        first, end = share.owned
        assert ((share.arrays.receivers >= first) & (share.arrays.receivers < end)).all()
    work = [len(share.arrays.pairs if by_pairs else share.arrays.receivers) for share in shares]
    all_of_one = max(np.bincount(arrays.receivers[arrays.pairs] if by_pairs else arrays.receivers))
    assert max(work) <= sum(work) / size + all_of_one + 1
