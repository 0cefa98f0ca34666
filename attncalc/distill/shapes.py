"""Shapes of one set of atoms: bonds, first displacements, and distances between shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from numpy.typing import NDArray

from attncalc.bonds import BOND, BROKEN, NONMETALS
from attncalc.sampling.geometry import Floats, are_too_close

# distance over the sum of covalent radii: longest new bond
NEW = 0.95
# force constants, eV/Å², between atoms one, two, three bonds apart, and others within NEARBY, Å
SPRINGS = (25.0, 5.0, 0.5)
NEARBY, SPRING_NEARBY = 4.0, 0.1
# smallest force constant of a mode, eV/Å²: straight displacements must be short
SOFTEST = 1.0
# longest distance in a fingerprint, Å
FARTHEST = 6.0


@dataclass(frozen=True, eq=False)
class Shape:
    """Bonds of a structure, with which other structures of the same atoms are compared.

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
        """Return the reason not to label positions [n_atoms, 3]; "" if there is none."""
        if not np.isfinite(positions).all():
            return "positions not finite"
        lengths = distances(self.atoms, positions)
        return "atoms too close" if are_too_close(lengths, self.radii) else ""

    def change(self, positions: Floats) -> str:
        """Return the first bond that broke or formed at positions [n_atoms, 3], in words, or ""."""
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

    def displacements(
        self, rng: np.random.Generator, temperature: float, stiffness: float = 1.0
    ) -> Floats:
        """Draw displacements [n_atoms, 3] Å from a spring model at a temperature [K].

        Springs connect atoms that are one, two or three bonds apart, so that stiff modes have small
        amplitudes and soft modes large ones. This replaces normal modes, which would need the
        oracle. Force constants between two metal atoms are multiplied by `stiffness`.
        """
        values, modes = self._modes(stiffness)
        width = np.sqrt(units.kB * temperature / np.maximum(values, SOFTEST))
        return (modes @ (width * rng.normal(size=len(values)))).reshape(-1, 3)

    def spring_energies(self, displacements: Floats) -> tuple[float, float]:
        """Return energies [eV] of displacements [n_atoms, 3]: between metal atoms, of the rest."""
        constants, unit = self._springs()
        along = (unit * (displacements[:, None] - displacements)).sum(-1)
        energies = constants * along**2 / 4  # each spring is there twice
        return float(energies[self._of_metals].sum()), float(energies[~self._of_metals].sum())

    @property
    def _of_metals(self) -> NDArray[np.bool_]:
        """Pairs of metal atoms, metalloids among them, [n_atoms, n_atoms]."""
        metal = ~np.isin(self.atoms.numbers, list(NONMETALS))
        return metal[:, None] & metal

    def _springs(self) -> tuple[Floats, Floats]:
        """Return force constants [n_atoms, n_atoms] eV/Å², and unit vectors of the springs."""
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
        return constants, vectors / np.maximum(lengths, 1e-9)[..., None]

    def _modes(self, stiffness: float) -> tuple[Floats, Floats]:
        """Return force constants [n_modes] eV/Å² and modes [3 n_atoms, n_modes], none rigid."""
        n = len(self.atoms)
        constants, unit = self._springs()
        constants[self._of_metals] *= stiffness
        blocks = -constants[..., None, None] * unit[..., :, None] * unit[..., None, :]
        blocks[np.arange(n), np.arange(n)] -= blocks.sum(1)
        values, modes = np.linalg.eigh(blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
        kept = values > 1e-6 * max(float(values[-1]), 1e-9)
        return values[kept], modes[:, kept]


def distances(atoms: Atoms, positions: Floats) -> Floats:
    """Return the distances [n_atoms, n_atoms] Å at other positions, to nearest images."""
    other = atoms.copy()
    other.positions = positions
    return other.get_all_distances(mic=bool(atoms.pbc.any()))


def fingerprint(atoms: Atoms, positions: Floats) -> Floats:
    """Return the fingerprint [m] of a shape: inverse distances, sorted by pair of elements.

    It does not depend on the order of equal atoms. Distances beyond 6 Å give zero.
    """
    lengths = distances(atoms, positions)
    i, j = np.triu_indices(len(atoms), 1)
    inverse = np.maximum(1 / np.maximum(lengths[i, j], 1e-3) - 1 / FARTHEST, 0.0)
    low, high = np.sort([atoms.numbers[i], atoms.numbers[j]], axis=0)
    return inverse[np.lexsort((-inverse, high, low))]


def farthest_first(candidates: Floats, known: Floats, n: int, least: float) -> list[int]:
    """Choose candidates one by one, each the farthest from all known and chosen ones.

    The first of two equally distant candidates is chosen.

    Args:
        candidates: [m, k] fingerprints.
        known: [l, k] fingerprints, at least one.
        n: largest number of candidates to choose.
        least: smallest distance from the others, so that none is a copy.

    Returns:
        Indices of the chosen candidates.
    """
    gaps = np.min([np.linalg.norm(candidates - one, axis=1) for one in known], axis=0)
    chosen: list[int] = []
    while len(chosen) < min(n, len(candidates)) and gaps.max() > least:
        best = int(gaps.argmax())
        chosen.append(best)
        gaps = np.minimum(gaps, np.linalg.norm(candidates - candidates[best], axis=1))
    return chosen
