"""Covalent bonds of structures, by distance, and those that broke later."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray

from attncalc.graph import Edges, edge_vectors, one_per_pair
from attncalc.names import pair_name
from attncalc.neighbors import neighbor_list
from attncalc.system import System
from attncalc.text import counted

# a metal has bonds to more and other neighbours from one moment to the next
NONMETALS = frozenset({1, 6, 7, 8, 9, 15, 16, 17, 34, 35, 53})
# distances over the sum of covalent radii: longest bond, shortest broken bond
BOND, BROKEN = 1.3, 1.6
# bonds that a message names
MOST_NAMED = 3


class BrokenBond(NamedTuple):
    """Bond that broke.

    Attributes:
        i, j: numbers of its atoms, from 0 on.
        name: of the bond, as C-H.
        before, after: lengths, Å.
    """

    i: int
    j: int
    name: str
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"{self.name} of atoms {self.i} and {self.j} ({self.before:.2f} -> {self.after:.2f} Å)"
        )


@dataclass(frozen=True, eq=False)
class Bonds:
    """Bonds of one or more structures: pairs within 1.3 times the sum of their covalent radii.

    Attributes:
        edges: one for each bond.
        lengths: [n_bonds] Å.
        radii: [n_bonds] Å, sums of covalent radii.
    """

    edges: Edges
    lengths: NDArray[np.float64]
    radii: NDArray[np.float64]

    @classmethod
    def of(cls, system: System, elements: Collection[int] | None = None) -> Self:
        """Find the bonds of structures, including those between periodic images.

        Args:
            system: the structures.
            elements: atomic numbers; only bonds between these are looked at. None: all.
        """
        numbers = system.atomic_numbers.cpu().numpy()
        edges = neighbor_list(system, 2 * BOND * float(covalent_radii[numbers].max()))
        a, b = (numbers[atoms.cpu().numpy()] for atoms in (edges.receivers, edges.senders))
        lengths, sums = _lengths(system, edges), covalent_radii[a] + covalent_radii[b]
        bonded = one_per_pair(edges).cpu().numpy() & (lengths < BOND * sums)
        if elements is not None:
            bonded &= np.isin(a, list(elements)) & np.isin(b, list(elements))
        rows = np.flatnonzero(bonded)
        at = torch.from_numpy(rows).to(system.device)
        bonds = Edges(edges.receivers[at], edges.senders[at], edges.cell_shifts[at])
        return cls(bonds, lengths[rows], sums[rows])

    def broken(self, system: System) -> list[BrokenBond]:
        """Return the bonds that are longer than 1.6 times the sum of their covalent radii.

        Args:
            system: the same structures with other positions and cells; atoms are not wrapped.
        """
        now = _lengths(system, self.edges)
        found = np.flatnonzero(now > BROKEN * self.radii)
        if not len(found):
            return []
        z = system.atomic_numbers.cpu().numpy()
        i, j = self.edges.receivers.cpu().numpy(), self.edges.senders.cpu().numpy()
        return [
            BrokenBond(
                *(int(i[k]), int(j[k]), pair_name(z[i[k]], z[j[k]])),
                *(float(self.lengths[k]), float(now[k])),
            )
            for k in found
        ]


def broken_text(bonds: Sequence[BrokenBond]) -> str:
    """Return a sentence: how many bonds broke, and which; of many, the first."""
    named = [str(bond) for bond in bonds[:MOST_NAMED]]
    more = len(bonds) - len(named)
    named += [f"{more} more"] if more else []
    return f"{counted(len(bonds), 'bond')} broke: {', '.join(named)}"


def _lengths(system: System, edges: Edges) -> NDArray[np.float64]:
    return torch.linalg.vector_norm(edge_vectors(system, edges), dim=1).cpu().numpy()
