"""Crystals that the tests of several interfaces take."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def silicon() -> Atoms:
    """64 atoms in a triclinic cell that i-PI and OpenMM know: a along x, b in xy."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    tilt = np.array([[1, 0, 0], [0.1, 1, 0], [0.05, -0.08, 1.0]])
    atoms.set_cell(atoms.cell.array @ tilt, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms
