"""Mend mlearn_Si.extxyz: swap two shear stresses that are interchanged, add the isolated atom.

    python benchmarks/mend_silicon.py mlearn_Si.extxyz runs/mlearn_Si_mended.extxyz

In the group "Elastic" the stored σ_xz is σ_yz and vice versa. Between two cells sheared along xz,
the work of the stored stress is a tenth of the energy difference, and the work of the swapped one
is all of it. The evidence needs no model. The other groups do not change.

The data have no isolated atom. Its energy is taken to be that of an atom of the crystal, -5.42 eV,
and the cohesive energy of experiment, 4.63 eV (Kittel, Introduction to Solid State Physics).
"""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

SHEARS = {
    "yz": 3,
    "xz": 4,
    "xy": 5,
}  # index of the angle in cellpar(), and of the stress in Voigt order

ISOLATED_ATOM = -0.79  # eV


def swapped(stress: np.ndarray) -> np.ndarray:
    """Return the stress [6] (xx yy zz yz xz xy) with yz and xz exchanged."""
    return stress[[0, 1, 2, 4, 3, 5]]


def work(a: Atoms, b: Atoms, stresses: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the work from a to b on cell and atoms, eV, from the mean forces and stresses."""
    strain = np.linalg.solve(a.cell.array, b.cell.array)
    strain = (strain + strain.T) / 2 - np.eye(3)
    xx, yy, zz, yz, xz, xy = (stresses[0] + stresses[1]) / 2
    mean = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    moved = b.get_scaled_positions() - a.get_scaled_positions()
    moved = (moved - np.round(moved)) @ b.cell.array  # beyond the motion with the cell
    forces = (a.get_forces() + b.get_forces()) / 2
    return (a.get_volume() + b.get_volume()) / 2 * (mean * strain).sum() - (forces * moved).sum()


def evidence(frames: list[Atoms]) -> list[str]:
    """Return a Markdown table: for each shear, sums over steps between neighbouring cells, eV."""
    lines = ["| shear | Σ abs(ΔE), eV | work of the stored stress | with xz and yz swapped |"]
    lines += ["|---|--:|--:|--:|"]
    for name, place in SHEARS.items():
        series = [f for f in frames if abs(f.cell.cellpar()[place] - 90) > 0.1]
        series.sort(key=lambda f, k=place: f.cell.cellpar()[k])
        sums = np.zeros(3)
        for a, b in pairwise(series):
            change = b.get_potential_energy() - a.get_potential_energy()
            stored = (a.get_stress(), b.get_stress())
            other = (swapped(stored[0]), swapped(stored[1]))
            sums += np.sign(change) * np.array([change, work(a, b, stored), work(a, b, other)])
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in sums) + " |")
    return lines


def main(source: str, target: str) -> None:
    frames = read(source, ":")
    elastic = [f for f in frames if f.info.get("group") == "Elastic"]
    print("\n".join(evidence(elastic)))
    for atoms in elastic:
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=atoms.get_potential_energy(),
            forces=atoms.get_forces(),
            stress=swapped(atoms.get_stress()),
        )
    alone = Atoms("Si", info={"config_type": "IsolatedAtom"})
    alone.calc = SinglePointCalculator(alone, energy=ISOLATED_ATOM)
    write(target, [*frames, alone], format="extxyz")
    print(f"wrote {target}: {len(elastic)} of {len(frames)} structures changed")


if __name__ == "__main__":
    main(*sys.argv[1:3])
