"""Structures of the benchmarks: molecules, boxes of water at liquid density, silicon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
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


def silicon(n: int) -> Atoms:
    """Return a cube of n³ cells with displaced atoms."""
    atoms = bulk("Si", cubic=True).repeat(n)
    atoms.rattle(0.05, seed=0)
    return atoms


def write_lammps(path: Path, atoms: Atoms, elements: list[str]) -> None:
    """Write a data file with masses and velocities."""
    atoms = atoms.copy()
    if not atoms.pbc.all():
        atoms.center(vacuum=20.0)
    write(
        *(path, atoms),
        format="lammps-data",
        specorder=elements,
        masses=True,
        velocities=True,
        units="metal",
    )
