"""Distances of atoms to their nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ase.data import covalent_radii

from attncalc.data.dataset import Dataset, Floats, Integers
from attncalc.graph import edge_vectors
from attncalc.neighbors import neighbor_list
from attncalc.system import System

# structures per neighbour search: enough to hide its overhead, few enough for memory
BATCH = 64
# distances over the sum of covalent radii: below the first a bond, up to the second a contact
BONDED, CONTACT = 1.35, 1.8


def reach_of(dataset: Dataset) -> float:
    """Return the length [Å] of the longest possible contact, that of the two largest atoms."""
    present = np.unique(np.concatenate([structure.numbers for structure in dataset.structures]))
    return float(2 * CONTACT * covalent_radii[present].max())


def neighbors_of(dataset: Dataset) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield, for each structure, atoms i and j [n_edges] of its edges, and lengths [n_edges] Å.

    The edges are all pairs up to `reach_of(dataset)`, in both directions, with periodic images.
    """
    reach = reach_of(dataset)
    for first in range(0, len(dataset), BATCH):
        structures = dataset.structures[first : first + BATCH]
        system = System.from_ase(structures, first=first)
        edges = neighbor_list(system, reach)
        lengths = torch.linalg.vector_norm(edge_vectors(system, edges), dim=1).numpy()
        receivers, senders = edges.receivers.numpy(), edges.senders.numpy()
        atoms = np.cumsum([0, *map(len, structures)])
        for structure, low in zip(structures, atoms[:-1], strict=True):
            # edges are sorted by receiver
            mine = slice(*np.searchsorted(receivers, (low, low + len(structure))))
            yield receivers[mine] - low, senders[mine] - low, lengths[mine]


def touching(numbers: Integers, i: Integers, j: Integers) -> Floats:
    """Return the sums of covalent radii [Å] of pairs of atoms."""
    return covalent_radii[numbers[i]] + covalent_radii[numbers[j]]


def closest_contacts(dataset: Dataset) -> Floats:
    """Return the smallest distance of each atom over covalent radii, [n_atoms of all structures].

    It is about 1 for a relaxed bond and less for a compressed one, for all elements. The largest
    value, `2 * CONTACT`, means that an atom has no neighbour.
    """
    found = []
    for structure, (i, j, lengths) in zip(dataset.structures, neighbors_of(dataset), strict=True):
        closest = np.full(len(structure), 2 * CONTACT)
        np.minimum.at(closest, i, lengths / touching(structure.numbers, i, j))
        found.append(closest)
    return np.concatenate(found)
