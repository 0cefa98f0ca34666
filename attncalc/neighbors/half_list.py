"""Pairs of a list, each once, for loops that compute vectors themselves; edges on demand only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.compiled import cpu_loops
from attncalc.graph import GraphArrays, GraphOfArrays
from attncalc.neighbors.reuse import Seen
from attncalc.neighbors.search import edge_order
from attncalc.system import System

LARGEST_TABLE = 1e6
"""Numbers of a table of cell shifts that is not sorted."""


class HalfList(NamedTuple):
    """Pairs of a neighbour list, and the data from which a loop computes their vectors.

    The vector of pair p is positions[senders] - positions[receivers] + shifts[codes] @ cells.

    Attributes:
        positions: [n_atoms, 3] Å.
        cells: [n_systems, 3, 3] Å.
        receivers, senders: [P], int32.
        codes: [P], int32: rows of shifts.
        shifts: [n_codes, 3].
        species, system_idx: [n_atoms].
    """

    positions: NDArray[np.float64]
    cells: NDArray[np.float64]
    receivers: NDArray[np.int32]
    senders: NDArray[np.int32]
    codes: NDArray[np.int32]
    shifts: NDArray[np.float64]
    species: NDArray[np.int64]
    system_idx: NDArray[np.int64]


class ListedPairs(NamedTuple):
    """Pairs of a list, see `HalfList`; valid as long as the list."""

    receivers: NDArray[np.int32]
    senders: NDArray[np.int32]
    codes: NDArray[np.int32]
    shifts: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Tensor, cell_shifts: Tensor) -> ListedPairs:
        """Select the edges that represent their pair, one per pair.

        Args:
            rows: [3, n_edges]: receivers, senders, and 1 if the edge represents its pair.
            cell_shifts: [n_edges, 3].
        """
        (standing,) = rows[2].numpy().nonzero()
        receivers, senders = (row.numpy()[standing].astype(np.int32) for row in rows[:2])
        triples = cell_shifts.numpy()[standing]
        if not triples.any():
            return cls(receivers, senders, np.zeros(len(standing), np.int32), np.zeros((1, 3)))
        return cls(receivers, senders, *numbered(triples))

    def rows_and_shifts(self, n_atoms: int) -> tuple[Tensor, Tensor]:
        """Return both edges of all pairs: rows and cell shifts of which `of` makes the pairs."""
        i, j = (torch.from_numpy(part).long() for part in (self.receivers, self.senders))
        shifts = torch.from_numpy(self.shifts[self.codes]).long()
        rows = torch.stack((torch.cat((i, j)), torch.cat((j, i)), torch.ones(2 * len(i)).long()))
        rows[2, len(i) :] = 0
        shifts = torch.cat((shifts, -shifts))
        order = edge_order(rows[0] * n_atoms + rows[1], shifts)
        return rows[:, order], shifts[order]


def numbered(
    shifts: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the number of each shift [n, 3] in a table of those that occur, and the table."""
    if not shifts.any():
        return np.zeros(len(shifts), np.int32), np.zeros((1, 3))
    low = shifts.min(0)
    sizes = tuple((shifts.max(0) - low + 1).astype(np.int64))
    numbers = np.ravel_multi_index(tuple((shifts - low).T.astype(np.int64)), sizes)
    if np.prod(sizes, dtype=float) < LARGEST_TABLE:  # several times as fast as sorting
        occurs = np.zeros(np.prod(sizes), bool)
        occurs[numbers] = True
        used, codes = np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[numbers]
    else:
        used, codes = np.unique(numbers, return_inverse=True)
    table = np.stack(np.unravel_index(used, sizes), axis=1) + low
    return codes.astype(np.int32), table.astype(np.float64)


class GraphOfList(GraphOfArrays):
    """Graph on the CPU whose edges are computed at their first use.

    Attributes:
        half_list: pairs of the graph; None for copies with other vectors.
    """

    half_list: HalfList | None = None

    @classmethod
    def of_list(
        cls, half_list: HalfList, system: System, species: Tensor, edges: Callable[[], GraphArrays]
    ) -> GraphOfList:
        """Make a graph.

        Args:
            half_list: pairs, some of which may be beyond the cutoff.
            system: the structures.
            species: [n_atoms].
            edges: computes the arrays of all edges within the cutoff.
        """
        graph = object.__new__(cls)
        graph.__dict__.update(
            half_list=half_list,
            _edges=edges,
            species=species,
            system_idx=system.system_idx,
            charge=system.charge,
            spin=system.spin,
        )
        return graph

    @property
    def arrays(self) -> GraphArrays:
        """Arrays of all edges, computed at their first use."""
        edges: Callable[[], GraphArrays] | None = self.__dict__.pop("_edges", None)
        if edges is not None:
            self.__dict__["_arrays"] = edges()
        return super().arrays

    def __getattr__(self, name: str) -> Tensor:
        if "_edges" in self.__dict__ and name in GraphArrays._fields:
            _ = self.arrays
        return super().__getattr__(name)


def pairs_hold(system: System, reference: System, seen: Seen, *, skin: float) -> bool | None:
    """Return True if no atom has moved further than half of the skin; None if not determined.

    Args:
        system: any.
        reference: single structure that the list was built for, on the CPU.
        seen: memory of tensors that were equal to the reference's; it is updated.
        skin: Å.
    """
    loops = cpu_loops("attncalc.neighbors.reuse_loop")
    if loops is None or not seen.at_other_positions(system, reference):
        return None
    return not loops.moved_further(system.positions.numpy(), reference.positions.numpy(), skin / 2)
