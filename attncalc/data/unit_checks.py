"""Check of energies against the work of the forces, which differ if their units do not match.

Between two close structures a and b of the same atoms

    E_b - E_a  ≈  W = -1/2 (F_a + F_b) · (r_b - r_a)

which is exact for a quadratic energy. If energies and forces were read in inconsistent units, the
ratio of the two sides is the ratio of these units instead of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset, Floats
from attncalc.data.units import ENERGY_UNITS, LENGTH_UNITS
from attncalc.system import charge_and_spin

# A window of pairs is conclusive only if the work explains all but this share of the energy
# differences. In right units, 32 of 48 reference label sets are, and their ratio is 0.92 to 1.06.
MOST_UNEXPLAINED = 0.12
FEWEST_PAIRS = 12
# Close structures whose energies the forces do not explain: in right order, no reference label set
# with pairs this close, in Å, has more than 0.12 unexplained; in a wrong one, none less than 0.38.
SURELY_CLOSE = 0.12
SURELY_UNEXPLAINED = 0.35
# eV, median energy difference of close pairs: below, it is noise, or pairs are equal by symmetry
SURELY_DIFFERENT = 0.005
# Ratios between these may have physical reasons; those of units begin at 1.89.
SILENT = (0.7, 1.45)
# The ratio of mirror images about a minimum, where the quadratic energies cancel, is 1/3.
MIRRORED = (0.3, 0.37)
# A ratio that matches no known units needs better evidence.
MOST_UNEXPLAINED_WITHOUT_NAME = 0.05
# Multiplications in the search for the nearest structures: half a second.
_SEARCH = 1e10
# Most reasons named if the ratio fits several.
_MOST_REASONS = 3


@dataclass(frozen=True)
class WorkRatio:
    """Ratio of energy differences of close structures to the work of the forces between them.

    Attributes:
        ratio: energy difference over work; 1 if the units agree.
        unexplained: share of the energy differences that ratio · work does not explain.
        n_pairs: number of pairs of structures compared.
        displacement: Å, median over the pairs of the largest displacement of an atom.
        difference: eV, median of the absolute energy differences.
    """

    ratio: float
    unexplained: float
    n_pairs: int
    displacement: float
    difference: float

    @property
    def is_conclusive(self) -> bool:
        """True if the work explains enough of the energy differences for the ratio to count."""
        return self.unexplained <= MOST_UNEXPLAINED


def work_ratio(dataset: Dataset) -> WorkRatio | None:
    """Compare energies with the work of the forces between the closest structures.

    Structures are compared if they have the same atoms in the same order, and the same cell, charge
    and multiplicity. Displacements in periodic directions are those to the nearest image. Pairs are
    sorted by displacement and divided into windows. The result is that of the window in which the
    work explains most: it explains little if structures are far apart, and rounding dominates if
    they are nearly equal.

    Returns:
        The ratio, see `WorkRatio.is_conclusive`; None if there are no forces or too few pairs.
    """
    return min(_ratios(dataset), key=lambda ratio: ratio.unexplained, default=None)


def _ratios(dataset: Dataset) -> list[WorkRatio]:
    """Return one ratio for each window of pairs."""
    displacement, work, difference = _close_pairs(dataset)
    counts = work != 0  # a pair of identical structures gives no information
    order = np.argsort(displacement[counts], kind="stable")
    displacement, work, difference = (
        column[counts][order] for column in (displacement, work, difference)
    )
    return [
        _of(displacement[window], work[window], difference[window])
        for window in _windows(len(order))
        if np.abs(difference[window]).sum() > 0
    ]


def unit_mismatch(dataset: Dataset) -> str | None:
    """Describe a mismatch of the units in which energies and forces were read.

    Returns:
        One line with the ratio and the likely correction; None if the units agree, or if the data
        are inconclusive.
    """
    deciding = [ratio for ratio in _ratios(dataset) if ratio.is_conclusive]
    # one window that fits is enough: another may consist of mirror images only
    if not deciding or any(SILENT[0] < ratio.ratio < SILENT[1] for ratio in deciding):
        return None
    found = min(deciding, key=lambda ratio: ratio.unexplained)
    if MIRRORED[0] < found.ratio < MIRRORED[1]:
        return None
    name = _name(found, dataset)
    if name is None:
        if found.unexplained > MOST_UNEXPLAINED_WITHOUT_NAME:
            return None
        name = "this is no ratio of usual units, so one of the two is not what it seems"
    return (
        f"{dataset.source}: energy differences are {found.ratio:.4g} times the work of the forces "
        f"({found.n_pairs} pairs of close structures, {found.unexplained:.1%} unexplained): {name}"
    )


def label_mismatch(dataset: Dataset) -> str | None:
    """Describe forces that do not explain how energies change between close structures.

    Forces of other frames, in another order of the atoms or along other axes are such. In other
    units they explain the energies, see `unit_mismatch`.

    Returns:
        One line with the evidence; None if the forces explain the energies, or if no structures are
        close enough.
    """
    if dataset.forces is not None and not any(map(np.any, dataset.forces)):
        _, _, difference = _close_pairs(dataset)
        if np.abs(difference).max(initial=0) > SURELY_DIFFERENT:  # not so in equal crystals
            return f"{dataset.source}: all forces are zero, but energies differ: are they labels?"
        return None
    ratios = _ratios(dataset)
    best = min(ratios, key=lambda ratio: ratio.unexplained, default=None)
    if best is None or best.unexplained < SURELY_UNEXPLAINED:
        return None
    close = [ratio for ratio in ratios if ratio.displacement <= SURELY_CLOSE]
    closest = next((ratio for ratio in close if ratio.difference >= SURELY_DIFFERENT), None)
    if closest is None:
        return None
    return (
        f"{dataset.source}: the work of the forces does not explain how the energy changes between "
        f"close structures ({closest.n_pairs} pairs, {closest.displacement:.3f} Å apart, "
        f"{min(closest.unexplained, 1.0):.0%} unexplained): are energies and forces of the same "
        "frames, in the order of the atoms, along the same axes?"
    )


def _close_pairs(dataset: Dataset) -> Floats:
    """Return [3, n_pairs]: displacement, work and energy difference of all close pairs."""
    if dataset.forces is None:
        return np.zeros((3, 0))
    columns = [_pairs(dataset, group) for group in _groups(dataset)]
    return np.concatenate([np.zeros((3, 0)), *columns], axis=1)


def _groups(dataset: Dataset) -> list[NDArray[np.int64]]:
    """Return groups of structures, as indices [n], that differ in positions only."""
    groups: dict[object, list[int]] = {}
    for k, atoms in enumerate(dataset.structures):
        cell = atoms.cell.array.round(6) + 0.0 if atoms.pbc.any() else np.zeros(0)
        key = (atoms.numbers.tobytes(), atoms.pbc.tobytes(), cell.tobytes())
        groups.setdefault((*key, charge_and_spin(atoms)), []).append(k)
    return [np.array(group) for group in groups.values() if len(group) > 1]


def _pairs(dataset: Dataset, group: NDArray[np.int64]) -> Floats:
    """Return [3, n_pairs]: displacement, work and energy difference of close pairs of a group."""
    assert dataset.forces is not None
    first = dataset.structures[group[0]]
    positions = np.stack([dataset.structures[k].positions for k in group])  # [n, n_atoms, 3]
    i, j = _close(positions.reshape(len(group), -1)).T
    moved = positions[j] - positions[i]
    if first.pbc.any():
        # correct for displacements below half a cell; other pairs are not close
        images = np.linalg.pinv(first.cell.array)
        moved = moved - np.round(moved @ images) * first.pbc @ first.cell.array
    forces = np.stack([dataset.forces[k] for k in group])
    work = -0.5 * np.einsum("pac,pac->p", forces[i] + forces[j], moved)
    displacement = np.sqrt((moved**2).sum(axis=2).max(axis=1))
    return np.stack([displacement, work, dataset.energies[group[j]] - dataset.energies[group[i]]])


def _close(coordinates: Floats) -> NDArray[np.int64]:
    """Return close pairs [n_pairs, 2]: successive structures, and nearest ones among a sample."""
    n, n_coordinates = coordinates.shape
    following = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    n_searched = min(n, max(2, int(math.sqrt(_SEARCH / n_coordinates))))
    searched = np.linspace(0, n - 1, n_searched).astype(int)
    x = (coordinates[searched] - coordinates[0]).astype(np.float32)
    squared = (x * x).sum(axis=1)
    nearest = []
    for start in range(0, n_searched, 512):
        block = slice(start, start + 512)
        distance = squared[block, None] + squared - 2 * x[block] @ x.T
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        nearest.append(distance.argmin(axis=1))
    found = np.stack([searched, searched[np.concatenate(nearest)]], axis=1)
    return np.unique(np.concatenate([following, np.sort(found, axis=1)]), axis=0)


def _windows(n: int) -> Iterator[slice]:
    """Yield windows of sorted pairs: first the closest, in growing numbers, then farther ones."""
    size = FEWEST_PAIRS
    while size <= min(n, 400):
        yield slice(0, size)
        size *= 2
    start = 200
    while start + 200 <= n:
        yield slice(start, start + 200)
        start *= 2


def _of(displacement: Floats, work: Floats, difference: Floats) -> WorkRatio:
    # minimises |difference - ratio * work|: a weighted median, robust to a few wrong labels
    with np.errstate(over="ignore"):  # overflow for tiny work, whose weight is negligible
        ratios, weights = difference / work, np.abs(work)
    order = np.argsort(ratios)
    below = np.cumsum(weights[order])
    ratio = float(ratios[order][np.searchsorted(below, 0.5 * below[-1])])
    left, size = np.abs(difference - ratio * work), np.abs(difference)
    # by sum and by median: in the sum, one pair with a huge energy difference would dominate
    usual = float(np.median(size))
    unexplained = max(left.sum() / size.sum(), np.median(left) / max(usual, 1e-300))
    return WorkRatio(ratio, float(unexplained), len(work), float(np.median(displacement)), usual)


@dataclass(frozen=True)
class _Reason:
    """Explanation of a ratio; `unlikely` is a penalty, in units of the ratio's logarithm."""

    ratio: float
    text: str
    unlikely: float = 0.0


def _name(found: WorkRatio, dataset: Dataset) -> str | None:
    """Return the likeliest reasons of a ratio, and remedies; None if no known ratio is close."""
    reasons = [*_REASONS]
    sizes = {len(atoms) for atoms in dataset.structures}
    if len(sizes) == 1:
        per_atom = "the energies seem to be per atom; multiply them by the number of atoms"
        reasons.append(_Reason(1 / max(sizes), per_atom))
    if found.ratio < 0:
        reasons.append(_Reason(1.0, ""))
    uncertainty = max(0.06, 1.5 * found.unexplained)  # of the logarithm
    off = {reason: abs(math.log(abs(found.ratio) / reason.ratio)) for reason in reasons}
    near = [reason for reason in reasons if off[reason] < uncertainty]
    if not near:
        return None
    near.sort(key=lambda reason: off[reason] + reason.unlikely)
    texts = [reason.text for reason in near[:_MOST_REASONS]]
    if found.ratio > 0:
        return ", or ".join(texts)
    gradient = "the forces have the sign of the gradient; multiply them by -1"
    return f"{gradient}; and {', or '.join(texts)}" if all(texts) else gradient


def _stated(energy: str, forces: str) -> str:
    """Return a question about the units, and the way to state them in the file."""
    return (
        f"energies in {energy} beside forces in {forces}? Then state it in the file: "
        f'units="E: {energy}; F: {forces}"'
    )


def _reasons() -> Iterator[_Reason]:
    """Yield ratios (unit of forces · positions) / (unit of energies) that may go unnoticed."""
    bohr, nm = LENGTH_UNITS["Bohr"], LENGTH_UNITS["nm"]
    usual = ("eV", "kcal/mol", "kJ/mol", "Hartree")
    for energy in (*usual, "Rydberg", "meV"):
        for of_forces in (*usual, "Rydberg", "meV"):
            if {energy, of_forces} & {"Rydberg", "meV"} and not {energy, of_forces} & {"eV"}:
                continue
            unlikely = 0.0 if {energy, of_forces} <= set(usual) else 0.03
            ratio = ENERGY_UNITS[of_forces] / ENERGY_UNITS[energy]
            if energy != of_forces:
                text = _stated(energy, f"{of_forces}/Angstrom")
                yield _Reason(ratio, text, unlikely)
            if of_forces in ("Hartree", "Rydberg") and energy != of_forces:
                yield _Reason(ratio / bohr, _stated(energy, f"{of_forces}/Bohr"), unlikely)
    # the same energy unit in both, but different length units
    for ratio, unit, per, unlikely in (
        (1 / bohr, "forces per Bohr beside positions in Å", "F: Hartree/Bohr; R: Angstrom", 0.0),
        (bohr, "forces per Å beside positions in Bohr", "F: eV/Angstrom; R: Bohr", 0.0),
        (1 / nm, "forces per nm beside positions in Å", "F: kJ/mol/nm; R: Angstrom", 0.03),
        (nm, "forces per Å beside positions in nm", "F: kJ/mol/Angstrom; R: nm", 0.03),
    ):
        yield _Reason(ratio, f'{unit}? Then state it in the file, as in units="{per}"', unlikely)


_REASONS = tuple(_reasons())
