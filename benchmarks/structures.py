"""The structures that are timed: molecules of ASE's collections, and boxes of liquid density."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read
from scipy.spatial.transform import Rotation

MOLECULES_PER_A3 = 0.033367  # water at 298 K


def systems() -> dict[str, Atoms]:
    """Name -> structure, in order of size."""
    return {
        "ethanol": molecule("CH3CH2OH"),
        "aspirin": read(Path(__file__).with_name("aspirin.xyz")),
        "water-192": water_box(4),
        "water-648": water_box(6),
        "water-1536": water_box(8),
    }


def water_box(n_per_side: int, seed: int = 0) -> Atoms:
    """A periodic box of n³ water molecules at liquid density, randomly turned on a cubic grid."""
    rng = np.random.default_rng(seed)
    spacing = MOLECULES_PER_A3 ** (-1 / 3)
    box = Atoms(cell=[n_per_side * spacing] * 3, pbc=True)
    water = molecule("H2O")
    water.positions -= water.get_center_of_mass()
    for corner in np.ndindex(n_per_side, n_per_side, n_per_side):
        turned = water.copy()
        turned.positions = Rotation.random(random_state=rng).apply(water.positions)
        turned.positions += (np.array(corner) + 0.5) * spacing + rng.normal(scale=0.1, size=3)
        box += turned
    return box
