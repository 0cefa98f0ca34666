"""How threads share out what the loops see of a graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attncalc.graph import GraphArrays


class Share(NamedTuple):
    """What one thread does.

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


def shares_of(arrays: GraphArrays, size: int, *, by_pairs: bool) -> list[Share]:
    """For `size` threads: about as many pairs (or edges) each, all those of a receiver together.

    Args:
        arrays: with at least `size` pairs (or edges).
        size: how many threads.
        by_pairs: whether it is pairs or edges that make work. Pairs stand with the first of their
            atoms, which says little about atoms: loops over these are shared out by themselves.
    """
    receivers, pairs, n_atoms = arrays.receivers, arrays.pairs, len(arrays.species)
    cuts = np.arange(1, size) * (len(pairs) if by_pairs else len(receivers)) // size
    owners = receivers[pairs[cuts] if by_pairs else cuts]
    edge_cuts = np.searchsorted(receivers, owners)
    pair_cuts = np.searchsorted(pairs, edge_cuts)
    owned = [0, *owners.tolist(), n_atoms]
    edges = [0, *edge_cuts.tolist(), len(receivers)]
    of_pairs = [0, *pair_cuts.tolist(), len(pairs)]
    shares = []
    for k in range(size):
        edge = slice(edges[k], edges[k + 1])
        part = GraphArrays(
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
        shares.append(Share(evenly if by_pairs else mine, mine, edge.start, part))
    return shares
