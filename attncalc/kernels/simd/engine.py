"""What the compiled engines have in common: arrays of the graph, results, working space."""

from __future__ import annotations

import math
import operator
import threading
from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from attncalc.graph import Graph
from attncalc.kernels.frozen_zbl import FrozenZBL

# room grows by this factor, so that a few more atoms or edges do not make it anew each time
HEADROOM = 1.1
_NO_SLOPES = np.zeros(0)
Room = TypeVar("Room")


class Found(NamedTuple):
    """Energies per atom [n_atoms] eV, forces [n_atoms, 3], strain gradient [n_systems, 3, 3]."""

    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    strain_gradient: NDArray[np.float64]


class Arrays(NamedTuple):
    """Of a graph on the CPU; the loops take them in this order."""

    vectors: NDArray[np.float64]
    receivers: NDArray[np.int64]
    senders: NDArray[np.int64]
    edge_mask: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    species: NDArray[np.int64]
    system_idx: NDArray[np.int64]

    @classmethod
    def of(cls, graph: Graph) -> Arrays:
        """Without copies."""
        return cls(
            graph.vectors.detach().numpy(),
            graph.receivers.numpy(),
            graph.senders.numpy(),
            graph.edge_mask.numpy(),
            graph.pairs.numpy(),
            graph.species.numpy(),
            graph.system_idx.numpy(),
        )


class CompiledEngine(ABC, Generic[Room]):
    """Energy, forces and strain gradient of a network and of a pair term, by compiled loops.

    Args:
        repulsion: the pair term.
    """

    def __init__(self, repulsion: FrozenZBL | None) -> None:
        self.repulsion = repulsion
        self._free: list[tuple[tuple[int, ...], Room]] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_free": [], "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # its arrays do not change, and working space is handed to one call at a time

    def __call__(self, graph: Graph) -> Found | None:
        """Results for a graph on the CPU, or None if two atoms are too close."""
        n_atoms = graph.n_atoms
        energies, pair_slopes = np.zeros(n_atoms), _NO_SLOPES
        if self.repulsion is not None:
            energies, pair_slopes = self.repulsion.energies_and_slopes(graph)
        found = Found(energies, np.zeros((n_atoms, 3)), np.zeros((graph.n_systems, 3, 3)))
        arrays = Arrays.of(graph)
        sizes, room = self._take(self._needs(arrays))
        n = self._run(graph, arrays, pair_slopes, room, found)
        with self._lock:
            self._free.append((sizes, room))
        return None if n < 0 else found

    def _take(self, needs: tuple[int, ...]) -> tuple[tuple[int, ...], Room]:
        """Working space that no other call has, and how much there is of it."""
        with self._lock:
            taken = self._free.pop() if self._free else None
        if taken is None or any(map(operator.lt, taken[0], needs)):
            taken = None  # gives its memory back before there is another
            sizes = tuple(math.ceil(n * HEADROOM) for n in needs)
            taken = sizes, self._room(*sizes)
        return taken

    @abstractmethod
    def _needs(self, arrays: Arrays) -> tuple[int, ...]:
        """For how many atoms, edges and the like a graph needs room."""

    @abstractmethod
    def _room(self, *sizes: int) -> Room:
        """New working space."""

    @abstractmethod
    def _run(
        self,
        graph: Graph,
        arrays: Arrays,
        pair_slopes: NDArray[np.float64],
        room: Room,
        found: Found,
    ) -> int:
        """Add to what was found; negative if two atoms are too close."""
