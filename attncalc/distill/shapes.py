"""Shapes of one set of atoms: bonds, first displacements, and how far apart two of them are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from numpy.typing import NDArray

from attncalc.sampling.geometry import Floats, are_too_close

# of the sum of covalent radii: a bond, a broken one, a contact that was none
BOND, BROKEN, NEW = 1.3, 1.7, 0.95
# eV/Å², of springs between atoms that one, two, three bonds part, and of others nearby
SPRINGS = (25.0, 5.0, 0.5)
NEARBY, SPRING_NEARBY = 4.0, 0.1
# eV/Å², of the softest motion: straight lines serve for short ways only
SOFTEST = 1.0
# Å, of distances that tell shapes apart
FARTHEST = 6.0


@dataclass(frozen=True, eq=False)
class Shape:
    """Bonds of a structure, by which others of the same atoms are judged.

    Attributes:
        atoms: the structure.
        radii: [n_atoms, n_atoms] Å: sums of covalent radii.
        bonds: [n_atoms, n_atoms], bool.
    """

    atoms: Atoms
    radii: Floats
    bonds: NDArray[np.bool_]

    @classmethod
    def of(cls, atoms: Atoms) -> Shape:
        """Find the bonds of a structure: pairs within 1.3 of the sum of their covalent radii."""
        radii = covalent_radii[atoms.numbers]
        sums = radii[:, None] + radii
        bonds = (distances(atoms, atoms.positions) < BOND * sums) & ~np.eye(len(atoms), dtype=bool)
        return cls(atoms, sums, bonds)

    def fault(self, positions: Floats) -> str:
        """Return why positions [n_atoms, 3] are not worth a label; "" where they are."""
        if not np.isfinite(positions).all():
            return "positions not finite"
        lengths = distances(self.atoms, positions)
        return "atoms too close" if are_too_close(lengths, self.radii) else ""

    def change(self, positions: Floats) -> str:
        """Return how the bonds changed at positions [n_atoms, 3]; "" where they did not."""
        lengths = distances(self.atoms, positions)
        broken = self.bonds & (lengths > BROKEN * self.radii)
        new = ~self.bonds & (lengths < NEW * self.radii)
        np.fill_diagonal(new, False)
        for pairs, what in ((broken, "broke"), (new, "formed")):
            if pairs.any():
                i, j = np.argwhere(pairs)[0]
                names = "-".join(f"{self.atoms.symbols[k]}{k}" for k in (i, j))
                return f"bond {names} {what}"
        return ""

    def displacements(self, rng: np.random.Generator, temperature: float) -> Floats:
        """Draw displacements [n_atoms, 3] Å from a model of springs at a temperature [K].

        Springs join atoms that one, two or three bonds part, so that stiff motions have small
        amplitudes and soft ones large: normal modes without a call of the oracle.
        """
        values, modes = self._modes()
        width = np.sqrt(units.kB * temperature / np.maximum(values, SOFTEST))
        return (modes @ (width * rng.normal(size=len(values)))).reshape(-1, 3)

    def _modes(self) -> tuple[Floats, Floats]:
        """Force constants [3 n_atoms] eV/Å² and modes; those of rigid motions are left out."""
        n = len(self.atoms)
        vectors = self.atoms.get_all_distances(mic=bool(self.atoms.pbc.any()), vector=True)
        lengths = np.linalg.norm(vectors, axis=-1)
        constants = np.where(lengths < NEARBY, SPRING_NEARBY, 0.0)
        reached = np.eye(n, dtype=bool)
        for constant in SPRINGS:
            further = (reached.astype(int) @ self.bonds.astype(int) > 0) & ~reached
            constants[further] = constant
            reached |= further
        np.fill_diagonal(constants, 0.0)
        unit = vectors / np.maximum(lengths, 1e-9)[..., None]
        blocks = -constants[..., None, None] * unit[..., :, None] * unit[..., None, :]
        blocks[np.arange(n), np.arange(n)] -= blocks.sum(1)
        values, modes = np.linalg.eigh(blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
        kept = values > 1e-6 * max(float(values[-1]), 1e-9)
        return values[kept], modes[:, kept]


def distances(atoms: Atoms, positions: Floats) -> Floats:
    """Return the distances [n_atoms, n_atoms] Å at other positions, of nearest images."""
    other = atoms.copy()
    other.positions = positions
    return other.get_all_distances(mic=bool(atoms.pbc.any()))


def fingerprint(atoms: Atoms, positions: Floats) -> Floats:
    """Return numbers that tell shapes apart, [m]: inverse distances, sorted by pair of elements.

    Equal for equal atoms in another order; those beyond 6 Å are zero.
    """
    lengths = distances(atoms, positions)
    i, j = np.triu_indices(len(atoms), 1)
    inverse = np.maximum(1 / np.maximum(lengths[i, j], 1e-3) - 1 / FARTHEST, 0.0)
    low, high = np.sort([atoms.numbers[i], atoms.numbers[j]], axis=0)
    return inverse[np.lexsort((-inverse, high, low))]


def farthest_first(candidates: Floats, known: Floats, n: int, least: float) -> list[int]:
    """Choose candidates one after the other, each the farthest from all known and chosen ones.

    The first of two equally far ones is taken.

    Args:
        candidates: [m, k] fingerprints.
        known: [l, k], likewise, at least one.
        n: at most so many.
        least: shortest distance from others, so that none is a copy.
    """
    gaps = np.min([np.linalg.norm(candidates - one, axis=1) for one in known], axis=0)
    chosen: list[int] = []
    while len(chosen) < min(n, len(candidates)) and gaps.max() > least:
        best = int(gaps.argmax())
        chosen.append(best)
        gaps = np.minimum(gaps, np.linalg.norm(candidates - candidates[best], axis=1))
    return chosen
