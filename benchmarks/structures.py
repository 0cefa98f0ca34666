"""Structures of the benchmarks: molecules, and boxes of water at liquid density."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read
from scipy.spatial.transform import Rotation

HERE = Path(__file__).parent
MOLECULES_PER_A3 = 0.033367  # water at 298 K

# name -> function that makes the structure, in order of size
SYSTEMS: dict[str, Callable[[], Atoms]] = {
    "ethanol": lambda: molecule("CH3CH2OH"),
    "aspirin": lambda: read(HERE / "aspirin.xyz"),
    "peptide": lambda: read(HERE / "peptide.xyz"),
    "water-192": lambda: water_box((4, 4, 4)),
    "water-1536": lambda: water_box((8, 8, 8)),
    "water-6144": lambda: water_box((8, 16, 16)),
}


def water_box(n: tuple[int, int, int], seed: int = 0) -> Atoms:
    """Return a periodic box of n_x n_y n_z water molecules, randomly rotated on a cubic grid."""
    rng = np.random.default_rng(seed)
    spacing = MOLECULES_PER_A3 ** (-1 / 3)
    box = Atoms(cell=[k * spacing for k in n], pbc=True)
    water = molecule("H2O")
    water.positions -= water.get_center_of_mass()
    for corner in np.ndindex(*n):
        turned = water.copy()
        turned.positions = Rotation.random(random_state=rng).apply(water.positions)
        turned.positions += (np.array(corner) + 0.5) * spacing + rng.normal(scale=0.1, size=3)
        box += turned
    return box
