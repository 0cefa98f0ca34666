"""Partition of a graph among the threads of one call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attncalc.graph import GraphArrays


class Part(NamedTuple):
    """Part of a graph that one thread works on.

    Attributes:
        atoms: first, and behind the last, of its loops over atoms.
        owned: first, and behind the last, receiver of its edges.
        first_edge: number of its first edge in the graph.
        arrays: all atoms, and the edges and pairs of those receivers.
    """

    atoms: tuple[int, int]
    owned: tuple[int, int]
    first_edge: int
    arrays: GraphArrays


def partition(arrays: GraphArrays, size: int, *, by_pairs: bool) -> list[Part]:
    """Split for `size` threads: about as many pairs (or edges) each, a receiver's all together.

    Args:
        arrays: with at least `size` pairs (or edges).
        size: how many threads.
        by_pairs: whether it is pairs or edges that make work. Pairs stand with the first of their
            atoms, which says little about atoms: loops over these are split by themselves.
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
