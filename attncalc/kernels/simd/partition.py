"""Partition of a graph among the threads of one call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attncalc.graph import GraphArrays


class Part(NamedTuple):
    """Part of a graph that one thread works on.

    Attributes:
        atoms: first atom of its loops over atoms, and the one behind the last.
        owned: first receiver of its edges, and the one behind the last.
        first_edge: index of its first edge in the graph.
        arrays: all atoms, and the edges and pairs of those receivers.
    """

    atoms: tuple[int, int]
    owned: tuple[int, int]
    first_edge: int
    arrays: GraphArrays


def partition(arrays: GraphArrays, size: int, *, by_pairs: bool) -> list[Part]:
    """Split a graph among threads, with about equal numbers of pairs (or edges).

    All pairs (or edges) of a receiver go to the same thread.

    Args:
        arrays: arrays of a graph with at least `size` pairs (or edges).
        size: number of threads.
        by_pairs: whether work is measured by the number of pairs instead of edges. A pair belongs
            to the first of its atoms, which says little about atoms, so loops over atoms are then
            split evenly.
    """
    receivers, pairs, n_atoms = arrays.receivers, arrays.pairs, len(arrays.species)
    cuts = np.arange(1, size) * (len(pairs) if by_pairs else len(receivers)) // size
    owners = receivers[pairs[cuts] if by_pairs else cuts]
    edge_cuts = np.searchsorted(receivers, owners)
    pair_cuts = np.searchsorted(pairs, edge_cuts)
    owned = [0, *owners.tolist(), n_atoms]
    edges = [0, *edge_cuts.tolist(), len(receivers)]
    of_pairs = [0, *pair_cuts.tolist(), len(pairs)]
    parts = []
    for k in range(size):
        edge = slice(edges[k], edges[k + 1])
        own = GraphArrays(
            arrays.vectors[edge],
            receivers[edge],
            arrays.senders[edge],
            arrays.edge_mask[edge],
            pairs[of_pairs[k] : of_pairs[k + 1]] - edge.start,
            arrays.species,
            arrays.system_idx,
        )
        mine = owned[k], owned[k + 1]
        evenly = n_atoms * k // size, n_atoms * (k + 1) // size
        parts.append(Part(evenly if by_pairs else mine, mine, edge.start, own))
    return parts
