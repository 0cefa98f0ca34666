"""Check of stresses against energies of strained cells: sign, unit, order of components.

Between two close structures a and b of the same atoms in different cells, with the strain e that
leads from one cell to the other,

    E_b - E_a  ≈  V σ : e - 1/2 (F_a + F_b) · u

where σ is the mean stress, V the mean volume and u what atoms move beyond what the cell carries
along. A stress in another unit or with components in another order does other work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from attncalc.data.dataset import Dataset, Floats
from attncalc.system import charge_and_spin

# Pairs: largest component of the strain, and Å that an atom moves beyond it.
LARGEST_STRAIN, LARGEST_DISPLACEMENT = 0.06, 0.15
# Smaller strains do work that is lost in the rounding of energies.
SMALLEST_STRAIN = 1e-3
FEWEST_PAIRS = 8
# Cells that are nearest to each cell, of which pairs are made; structures of a group looked at.
_NEAREST, _MOST_SEARCHED = 8, 2000
# Shares of the energy differences that may be left over: by another reading of the stress to be
# told at all, and by the stress as it was read to be told nothing, in multiples of the former.
FITS, FITS_WORSE = 0.06, 3.0
SHEARS = ("yz", "xz", "xy")


@dataclass(frozen=True)
class _Reading:
    """Alternative meaning of the stored numbers instead of a stress in eV/Å³ with ASE's sign.

    Attributes:
        factor: that makes them one.
        order: which shear stands where yz, xz, xy are expected, as indices of these.
        text: what is told.
        times_volume: they are to be divided by the volume too.
    """

    factor: float
    order: tuple[int, ...]
    text: str
    times_volume: bool = False


def stress_mismatch(dataset: Dataset) -> str | None:
    """Describe how stresses contradict the energies of strained cells.

    Returns:
        One line that names the likely mending; None where they fit, where there is no stress, and
        where the data hold too few strained cells to decide.
    """
    if dataset.stress is None or dataset.forces is None:
        return None
    columns = [pair for group in _groups(dataset) for pair in _pairs(dataset, group)]
    if len(columns) < FEWEST_PAIRS:
        return None
    difference = np.array([pair[0] for pair in columns])  # [n_pairs] eV, less work of the forces
    work = np.stack([pair[1] for pair in columns])  # [n_pairs, 4, 3]
    volume = np.array([pair[2] for pair in columns])
    return None if not np.abs(difference).sum() > 0 else _told(dataset, difference, work, volume)


def _told(dataset: Dataset, difference: Floats, work: Floats, volume: Floats) -> str | None:
    def unexplained(reading: _Reading) -> float:
        shear = work[:, 1:][:, reading.order, np.arange(3)].sum(axis=1)
        done = reading.factor * (work[:, 0].sum(axis=1) + shear)
        done = done / volume if reading.times_volume else done
        return float(np.abs(difference - done).sum() / np.abs(difference).sum())

    as_read = unexplained(_Reading(1.0, (0, 1, 2), ""))
    best = min(_readings(), key=unexplained)
    if unexplained(best) > FITS or as_read < FITS_WORSE * max(unexplained(best), 0.01):
        return None
    return (
        f"{dataset.source}: the work of the stresses leaves {as_read:.0%} of the energies of "
        f"strained cells unexplained ({len(difference)} pairs): {best.text}; that leaves "
        f"{unexplained(best):.1%}"
    )


def _readings() -> Iterator[_Reading]:
    """Yield the alternative readings: wrong order first, then wrong units; each with both signs."""
    pressure = "they have the sign of a pressure, multiply them by -1"
    for order in permutations(range(3)):
        swapped = ""
        if order != (0, 1, 2):
            names = " ".join(SHEARS[k] for k in order)
            swapped = f"the shear components stand in the order {names}, not yz xz xy"
        if swapped:
            yield _Reading(1.0, order, swapped)
        yield _Reading(-1.0, order, f"{swapped}, and {pressure}" if swapped else pressure)
    for unit, factor in (("GPa", units.GPa), ("kbar", 0.1 * units.GPa), ("MPa", 1e-3 * units.GPa)):
        yield _Reading(factor, (0, 1, 2), f"they seem to be in {unit}, not eV/Å³")
        yield _Reading(-factor, (0, 1, 2), f"they seem to be pressures in {unit}, not eV/Å³")
    virials = "they seem to be virials in eV, divide them by minus the volume"
    yield _Reading(-1.0, (0, 1, 2), virials, times_volume=True)
    multiplied = "they seem to be multiplied by the volume, divide them by it"
    yield _Reading(1.0, (0, 1, 2), multiplied, times_volume=True)


def _groups(dataset: Dataset) -> list[NDArray[np.int64]]:
    """Indices of structures of the same atoms, periodic in three directions."""
    groups: dict[object, list[int]] = {}
    for k, atoms in enumerate(dataset.structures):
        if atoms.pbc.all():
            key = (atoms.numbers.tobytes(), charge_and_spin(atoms))
            groups.setdefault(key, []).append(k)
    return [np.array(group) for group in groups.values() if len(group) > 1]


def _pairs(dataset: Dataset, group: NDArray[np.int64]) -> Iterator[tuple[float, Floats, float]]:
    """Yield energy difference, work and volume of close structures in different cells.

    The energy difference [eV] is what the work of the forces leaves. Work [4, 3] eV: row 0 is that
    of the diagonal, row 1 + s, column t that of shear strain s with shear stress t.
    """
    assert dataset.stress is not None
    assert dataset.forces is not None
    if len(group) > _MOST_SEARCHED:
        group = group[np.linspace(0, len(group) - 1, _MOST_SEARCHED).astype(int)]
    structures = [dataset.structures[k] for k in group]
    cells = np.stack([atoms.cell.array for atoms in structures])
    scaled = np.stack([atoms.get_scaled_positions(wrap=False) for atoms in structures])
    n_nearest = min(len(group), 1 + _NEAREST)
    near = cKDTree(cells.reshape(-1, 9)).query(cells.reshape(-1, 9), n_nearest)[1]
    couples = {(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row.tolist() if i != j}
    for i, j in sorted(couples):
        strain = np.linalg.solve(cells[i], cells[j])
        strain = (strain + strain.T) / 2 - np.eye(3)
        moved = scaled[j] - scaled[i]
        moved = (moved - np.round(moved)) @ cells[j]
        moved -= moved.mean(axis=0)
        if not SMALLEST_STRAIN < np.abs(strain).max() < LARGEST_STRAIN:
            continue
        if np.linalg.norm(moved, axis=1).max() > LARGEST_DISPLACEMENT:
            continue
        a, b = group[i], group[j]
        of_forces = -0.5 * float(((dataset.forces[a] + dataset.forces[b]) * moved).sum())
        volume = (structures[i].get_volume() + structures[j].get_volume()) / 2
        stress = (dataset.stress[a] + dataset.stress[b]) / 2
        places = ([1, 0, 0], [2, 2, 1])  # yz, xz, xy
        shears = np.outer(2 * strain[places], stress[places])
        work = volume * np.vstack([np.diag(stress) * np.diag(strain), shears])
        yield float(dataset.energies[b] - dataset.energies[a]) - of_forces, work, volume
