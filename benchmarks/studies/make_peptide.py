"""Build Ac-Ala3-NHMe (42 atoms), extended, and relax it at GFN2-xTB: benchmarks/peptide.xyz.

    python benchmarks/studies/make_peptide.py

Needs tblite. Bond lengths and angles are textbook values, every dihedral is staggered or planar;
the relaxation does the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from ase.optimize import LBFGS
from tblite.ase import TBLite

CC, CN, AMIDE, CO, CH, NH = 1.52, 1.46, 1.34, 1.23, 1.09, 1.01  # Å
PLANAR, TETRAHEDRAL = 120.0, 109.5  # degrees


class Chain:
    """Atoms placed one after the other by bond length, angle and dihedral to earlier ones."""

    def __init__(self) -> None:
        self.symbols: list[str] = []
        self.positions: list[np.ndarray] = []

    def add(self, symbol: str, bond: tuple[int, float], angle: tuple, dihedral: tuple) -> int:
        """Add an atom and return its index; (atom, Å), (atom, degrees), (atom, degrees)."""
        a, b, c = (self.positions[k] for k, _ in (dihedral, angle, bond))
        theta, phi = np.radians(angle[1]), np.radians(dihedral[1])
        along = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal)
        step = bond[1] * np.array(
            [-np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)]
        )
        frame = np.stack([along, np.cross(normal, along), normal])
        return self.place(symbol, c + step @ frame)

    def place(self, symbol: str, position: np.ndarray) -> int:
        self.symbols.append(symbol)
        self.positions.append(np.asarray(position, dtype=float))
        return len(self.symbols) - 1

    def methyl(self, carbon: int, behind: int, reference: int, angles: tuple = (60, 180, 300)):
        """Add hydrogens to a carbon."""
        for phi in angles:
            self.add("H", (carbon, CH), (behind, TETRAHEDRAL), (reference, phi))


def ac_ala3_nhme() -> Atoms:
    """Return CH3-CO-(NH-CHCH3-CO)3-NH-CH3 with phi = psi = 180 degrees."""
    chain = Chain()
    methyl = chain.place("C", [0.0, 0.0, 0.0])
    carbonyl = chain.place("C", [CC, 0.0, 0.0])
    x, y = np.cos(np.radians(PLANAR)), np.sin(np.radians(PLANAR))
    oxygen = chain.place("O", [CC - CO * x, CO * y, 0.0])
    chain.methyl(methyl, carbonyl, oxygen)
    before = methyl
    for _ in range(3):
        nitrogen = chain.add("N", (carbonyl, AMIDE), (before, 116.0), (oxygen, 180.0))
        chain.add("H", (nitrogen, NH), (carbonyl, PLANAR), (oxygen, 180.0))
        alpha = chain.add("C", (nitrogen, CN), (carbonyl, 121.0), (before, 180.0))
        following = chain.add("C", (alpha, CC), (nitrogen, TETRAHEDRAL), (carbonyl, 180.0))
        beta = chain.add("C", (alpha, CC), (nitrogen, TETRAHEDRAL), (carbonyl, 60.0))
        chain.add("H", (alpha, CH), (nitrogen, TETRAHEDRAL), (carbonyl, 300.0))
        chain.methyl(beta, alpha, nitrogen)
        before, carbonyl = alpha, following
        oxygen = chain.add("O", (carbonyl, CO), (before, PLANAR), (nitrogen, 0.0))
    nitrogen = chain.add("N", (carbonyl, AMIDE), (before, 116.0), (oxygen, 180.0))
    chain.add("H", (nitrogen, NH), (carbonyl, PLANAR), (oxygen, 180.0))
    last = chain.add("C", (nitrogen, CN), (carbonyl, 121.0), (before, 180.0))
    chain.methyl(last, nitrogen, carbonyl)
    return Atoms(chain.symbols, chain.positions)


if __name__ == "__main__":
    atoms = ac_ala3_nhme()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    if not LBFGS(atoms, logfile=None).run(fmax=0.02, steps=1000):
        raise SystemExit("not relaxed after 1000 steps")
    atoms.calc = None
    atoms.positions -= atoms.get_center_of_mass()
    write(
        Path(__file__).parents[1] / "peptide.xyz",
        atoms,
        format="xyz",
        comment="Ac-Ala3-NHMe, GFN2-xTB minimum (tblite, fmax 0.02 eV/A), make_peptide.py",
        fmt="%.6f",
    )
