"""What the compiled engines have in common: results, working space, threads."""

from __future__ import annotations

import copy
import math
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from attncalc.graph import Graph, GraphArrays
from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.kernels.simd.crew import MORE_GHOSTS, Crew, give_way
from attncalc.kernels.simd.shares import Share, shares_of
from attncalc.kernels.simd.team import Team

# room grows by this factor, so that a few more atoms or edges do not make it anew each time
HEADROOM = 1.1
_NO_SLOPES = np.zeros(0)
Room = TypeVar("Room")


class Found(NamedTuple):
    """Energies per atom [n_atoms] eV, forces [n_atoms, 3], strain gradient [n_systems, 3, 3]."""

    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    strain_gradient: NDArray[np.float64]


class GhostRoom(NamedTuple):
    """Working space of a team, see `attncalc.kernels.simd.team.Team`; `row_of` for all threads."""

    ghosts: NDArray[np.int64]
    row_of: NDArray[np.int64]
    forces: NDArray[np.float64]


class Taken(NamedTuple, Generic[Room]):
    """What one call at a time has.

    Attributes:
        sizes: what there is room for: ghosts of a thread, then what the engine needs.
        room: working space.
        team: where there is more than one thread, those, and their ghosts'.
    """

    sizes: tuple[int, ...]
    room: Room
    team: tuple[Crew, GhostRoom] | None

    def suits(self, needs: tuple[int, ...]) -> bool:
        """Whether there is room for so much, and the threads are in this process."""
        fits = not any(map(operator.lt, self.sizes, needs))
        return fits and (self.team is None or self.team[0].is_here)


class CompiledEngine(ABC, Generic[Room]):
    """Energy, forces and strain gradient of a network and of a pair term, by compiled loops.

    Equal numbers of threads give equal bits; different ones differ by rounding.

    Args:
        repulsion: the pair term.

    Attributes:
        by_pairs: whether it is pairs that make work, or edges.
        fewest: of those, for a thread to be worth its while.
        threads: how many share a call, at most.
    """

    by_pairs: ClassVar[bool]
    fewest: int

    def __init__(self, repulsion: FrozenZBL | None) -> None:
        self.repulsion, self.threads = repulsion, 1
        self._free: dict[int, list[Taken[Room]]] = {}  # by number of threads
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_free": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # its arrays do not change, and working space is handed to one call at a time

    def shared_by(self, threads: int, *, fewest: int | None = None) -> Self:
        """The same engine for so many threads.

        Args:
            threads: at most.
            fewest: pairs (or edges) for a thread to be worth its while; None: as measured.
        """
        twin = copy.copy(self)
        twin.threads = threads
        if fewest is not None:
            twin.fewest = fewest
        return twin

    def __call__(self, graph: Graph) -> Found | None:
        """Results for a graph on the CPU, or None if two atoms are too close."""
        n_atoms, arrays = graph.n_atoms, graph.arrays
        strain_gradient = np.zeros((graph.n_systems, 3, 3))
        found = Found(np.zeros(n_atoms), np.zeros((n_atoms, 3)), strain_gradient)
        work = len(arrays.pairs if self.by_pairs else arrays.receivers)
        size = min(self.threads, work // self.fewest)
        if size < 2:
            n = self._alone(graph, arrays, found)
        else:
            n = self._together(graph, arrays, size, found)
        return None if n < 0 else found

    def _alone(self, graph: Graph, arrays: GraphArrays, found: Found) -> int:
        slopes = self._repel(arrays, found.energies)
        everything = Share((0, graph.n_atoms), (0, graph.n_atoms), arrays)
        taken = self._take(1, (0, *self._needs([everything])))
        n = self._run(
            None, everything, slopes, self._inputs(graph, arrays, graph.n_atoms), taken.room, found
        )
        self._give_back(1, taken)
        return n

    def _together(self, graph: Graph, arrays: GraphArrays, size: int, found: Found) -> int:
        shares = shares_of(arrays, size, by_pairs=self.by_pairs)
        needs = self._needs(shares)
        n, most = MORE_GHOSTS, 0
        while n == MORE_GHOSTS:
            taken = self._take(size, (most, *needs))
            n, most = self._by_team(graph, shares, taken, found)
            self._give_back(size, taken)
        return n

    def _by_team(
        self, graph: Graph, shares: Sequence[Share], taken: Taken[Room], found: Found
    ) -> tuple[int, int]:
        """What all threads return, and the most ghosts that one has."""
        assert taken.team is not None
        crew, ghosts = taken.team
        size, n_atoms = crew.size, graph.n_atoms
        inputs = self._inputs(graph, shares[0].arrays, n_atoms + ghosts.ghosts.size)
        said, n_ghosts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        repelled = np.zeros((size, n_atoms))
        strain_gradients = np.zeros((size, *found.strain_gradient.shape))

        def work(rank: int, arrivals: NDArray[np.int64]) -> int:
            share, due = shares[rank], np.zeros(1, np.int64)
            row_of = ghosts.row_of[rank, :n_atoms]
            team = Team(
                *(rank, size, *share.atoms, *share.owned, arrivals, due, give_way(), said),
                *(ghosts.ghosts, n_ghosts, row_of, ghosts.forces, strain_gradients),
            )
            slopes = self._repel(share.arrays, repelled[rank])
            return self._run(team, share, slopes, inputs, taken.room, found)

        n = crew.run(work)[0]
        if n >= 0:
            for energies in repelled:
                found.energies[:] += energies
        return n, int(n_ghosts.max())

    def _repel(self, arrays: GraphArrays, energies: NDArray[np.float64]) -> NDArray[np.float64]:
        """Adds the pair term's energies; its slopes of the pairs."""
        if self.repulsion is None:
            return _NO_SLOPES
        return self.repulsion.add(*arrays[:6], energies)

    def _take(self, size: int, needs: tuple[int, ...]) -> Taken[Room]:
        """What no other call has, with room for so much."""
        with self._lock:
            free = self._free.get(size)
            taken = free.pop() if free else None
        if taken is None or not taken.suits(needs):
            taken = None  # gives its memory back before there is another
            sizes = tuple(math.ceil(n * HEADROOM) for n in needs)
            most, n_atoms = sizes[:2]
            team = None
            if size > 1:
                rows = n_atoms + size * most
                room = GhostRoom(
                    np.zeros((size, most), np.int64),
                    np.zeros((size, n_atoms), np.int64),
                    np.zeros((rows, 3)),
                )
                team = Crew(size), room
            taken = Taken(sizes, self._room(size, *sizes), team)
        return taken

    def _give_back(self, size: int, taken: Taken[Room]) -> None:
        with self._lock:
            self._free.setdefault(size, []).append(taken)

    @abstractmethod
    def _needs(self, shares: Sequence[Share]) -> tuple[int, ...]:
        """For how many atoms, and then for how many edges and the like, a call needs room."""

    @abstractmethod
    def _room(self, size: int, most: int, *sizes: int) -> Room:
        """New working space for `size` threads of at most so many ghosts."""

    @abstractmethod
    def _inputs(self, graph: Graph, arrays: GraphArrays, n_rows: int) -> Any:
        """What there is of the graph for all threads.

        Args:
            graph: of atoms.
            arrays: its own, or those of a share, which has all atoms.
            n_rows: atoms, and all ghosts that there may be.
        """

    @abstractmethod
    def _run(
        self,
        team: Team | None,
        share: Share,
        pair_slopes: NDArray[np.float64],
        inputs: Any,
        room: Room,
        found: Found,
    ) -> int:
        """Add to what was found, in one thread; negative if two atoms are too close."""
