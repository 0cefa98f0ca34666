"""Check of stresses against energies of strained cells: sign, unit, order of components.

Between two close structures a and b of the same atoms in different cells, with the strain e from
one cell to the other,

    E_b - E_a  ≈  V σ : e - 1/2 (F_a + F_b) · u

where σ is the mean stress, V the mean volume and u the displacements of atoms beyond the strain. A
stress in another unit or with components in another order violates this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from attncalc.data.dataset import Dataset, Floats
from attncalc.system import charge_and_spin

# Limits of a pair: largest component of the strain, and largest displacement beyond it, Å.
LARGEST_STRAIN, LARGEST_DISPLACEMENT = 0.06, 0.15
# The work of smaller strains is lost in the rounding of energies.
SMALLEST_STRAIN = 1e-3
FEWEST_PAIRS = 8
# Nearest cells with which each cell forms pairs; most structures of a group that are searched.
_NEAREST, _MOST_SEARCHED = 8, 2000
# A mismatch is reported if another reading of the stress leaves at most the share FITS of the
# energy differences unexplained, and the stress as read at least FITS_WORSE times that share.
FITS, FITS_WORSE = 0.06, 3.0
SHEARS = ("yz", "xz", "xy")


@dataclass(frozen=True)
class _Reading:
    """Alternative meaning of the stored numbers instead of a stress in eV/Å³ with ASE's sign.

    Attributes:
        factor: converts them to such a stress.
        order: the shears stored in the places of yz, xz, xy, as indices of these.
        text: description for the message.
        times_volume: True if they must also be divided by the volume.
    """

    factor: float
    order: tuple[int, ...]
    text: str
    times_volume: bool = False


def stress_mismatch(dataset: Dataset) -> str | None:
    """Describe a contradiction between stresses and the energies of strained cells.

    Returns:
        One line with the likely correction; None if they agree, if stress or forces are missing, or
        if there are too few strained cells to decide.
    """
    columns = list(_all_pairs(dataset))
    if len(columns) < FEWEST_PAIRS:
        return None
    difference = np.array([pair[0] for pair in columns])  # [n_pairs] eV, minus work of the forces
    work = np.stack([pair[1] for pair in columns])  # [n_pairs, 4, 3]
    volume = np.array([pair[2] for pair in columns])
    return (
        None
        if not np.abs(difference).sum() > 0
        else _explanation(dataset, difference, work, volume)
    )


def can_check_stress(dataset: Dataset) -> bool:
    """Return True if there are enough strained cells for `stress_mismatch`."""
    return len(list(islice(_all_pairs(dataset), FEWEST_PAIRS))) == FEWEST_PAIRS


def _all_pairs(dataset: Dataset) -> Iterator[tuple[float, Floats, float]]:
    """Yield the pairs of all groups; none without stress or forces."""
    if dataset.stress is not None and dataset.forces is not None:
        for group in _groups(dataset):
            yield from _pairs(dataset, group)


def _explanation(dataset: Dataset, difference: Floats, work: Floats, volume: Floats) -> str | None:
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
        f"{dataset.source}: stresses do not fit the energies of strained cells "
        f"({len(difference)} pairs, relative residual {as_read:.2g}): {best.text}; then it is "
        f"{unexplained(best):.2g}"
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
    """Return groups of structures, as indices [n], of the same atoms and with full periodicity."""
    groups: dict[object, list[int]] = {}
    for k, atoms in enumerate(dataset.structures):
        if atoms.pbc.all():
            key = (atoms.numbers.tobytes(), charge_and_spin(atoms))
            groups.setdefault(key, []).append(k)
    return [np.array(group) for group in groups.values() if len(group) > 1]


def _pairs(dataset: Dataset, group: NDArray[np.int64]) -> Iterator[tuple[float, Floats, float]]:
    """Yield energy difference, work and volume of pairs of close structures in different cells.

    The work of the forces is subtracted from the energy difference [eV]. Work of the stress [4, 3]
    eV: row 0 is that of the diagonal, row 1 + s, column t that of shear strain s with shear
    stress t.
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
