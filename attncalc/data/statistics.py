"""Statistics of training data that a model needs: reference energies, density, distances."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from ase.neighborlist import neighbor_list as ase_neighbor_list
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from attncalc.data.dataset import Dataset
from attncalc.neighbors import neighbor_list
from attncalc.options import cutoff_radius
from attncalc.result import has_volume
from attncalc.system import System, charge_and_spin

log = logging.getLogger(__name__)

# Structures per neighbour search: enough to hide its overhead, few enough for memory.
_BATCH = 64
# of `far_from_composition`: eV per atom, and rounds after which the fit does not change
_FAR, _TIMES_MEDIAN = 10.0, 20.0
_ROUNDS, _SMALLEST_DEVIATION = 30, 1e-3
# atoms, more than rounding
_NO_COMBINATION = 1e-6


def elements_of(dataset: Dataset) -> list[int]:
    """Return the atomic numbers of a data set, in ascending order."""
    return sorted({z for atoms in dataset.structures for z in atoms.numbers.tolist()})


def reference_energies(dataset: Dataset) -> dict[int, float]:
    """Fit one energy per element by least squares: E ≈ Σ over atoms of the element's energy.

    If the compositions do not determine these energies, as for a single molecule, the solution of
    smallest norm is returned. Its sum is right for structures of the same compositions, but its
    single values have no meaning. A model with such references is not transferable to another
    composition.

    Returns:
        atomic number → eV, in ascending order.

    Raises:
        ValueError: the data set is empty.
    """
    _require_structures(dataset)
    return per_element(dataset, dataset.energies)


def per_element(
    dataset: Dataset, values: NDArray[np.float64], known: Collection[int] = ()
) -> dict[int, float]:
    """Fit one number per element by least squares: values [n] ≈ Σ over atoms of each structure.

    If there are several solutions, that of smallest norm is returned; see `reference_energies`.

    Args:
        dataset: the structures.
        values: [n].
        known: atomic numbers of elements whose number is near zero: the others are fitted first,
            and all to what is left.
    """
    elements, counts = _compositions(dataset)
    others = counts * ~np.isin(elements, [*known])
    solution = _least_squares(others, values)
    if known:
        solution += _least_squares(counts, values - others @ solution)
    return {int(z): float(e) for z, e in zip(elements, solution, strict=True)}


def far_from_composition(dataset: Dataset, energies: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return structures with energies [n, eV] far from what the others of their elements have.

    The numbers per element are those of least absolute deviations, so that a few failed
    calculations do not change them. Far is more than 10 eV per atom, which is more than any binding
    energy, and 20 times the median deviation.
    """
    _, counts = _compositions(dataset)
    n_atoms = counts.sum(1)
    weights = np.ones(len(counts))
    for _ in range(_ROUNDS):  # iteratively reweighted least squares
        solution = _least_squares(counts * weights[:, None], energies * weights)
        deviations = np.abs(energies - counts @ solution) / n_atoms
        weights = 1 / np.sqrt(np.maximum(deviations, _SMALLEST_DEVIATION))
    least = max(_FAR, _TIMES_MEDIAN * float(np.median(deviations)))
    return np.flatnonzero(deviations > least)


def undetermined(training: Dataset, dataset: Dataset) -> NDArray[np.int64]:
    """Return structures whose energies are undetermined by training energies of other compositions.

    Only sums of reference energies can be fitted that are combinations of the compositions in the
    training data. Energies of isolated atoms determine those of their elements.

    Args:
        training: with all elements of `dataset`.
        dataset: structures to predict.
    """
    elements, known = _known_compositions(training)
    _, counts = _compositions(dataset, elements)
    rest = counts - counts @ np.linalg.pinv(known, rcond=1e-10) @ known
    return np.flatnonzero(np.abs(rest).max(axis=1) > _NO_COMBINATION)


def determines_each_element(training: Dataset) -> bool:
    """Return True if the training energies determine a reference energy of every element."""
    elements, known = _known_compositions(training)
    return int(np.linalg.matrix_rank(known)) == len(elements)


def _known_compositions(training: Dataset) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the elements, and the different compositions with isolated atoms as further ones."""
    elements, counts = _compositions(training)
    isolated = np.eye(len(elements))[np.isin(elements, [*(training.isolated_energies or ())])]
    return elements, np.unique(np.concatenate([counts, isolated]), axis=0)


def _compositions(
    dataset: Dataset, elements: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the elements, and the number of their atoms in each structure, [n, n_elements]."""
    found = [np.unique(atoms.numbers, return_counts=True) for atoms in dataset.structures]
    if elements is None:
        elements = np.unique(np.concatenate([numbers for numbers, _ in found]))
    counts = np.zeros((len(found), len(elements)))
    for row, (numbers, how_many) in zip(counts, found, strict=True):
        row[np.searchsorted(elements, numbers)] = how_many
    return elements, counts


def _least_squares(counts: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    # counts are small integers: smaller singular values come from rounding, not composition
    return np.asarray(np.linalg.lstsq(counts, values, rcond=1e-10)[0], dtype=np.float64)


def avg_num_neighbors(dataset: Dataset, cutoff: float) -> float:
    """Return the mean number of neighbours per atom within `cutoff` [Å].

    Raises:
        ValueError: the data set is empty, or the cutoff is out of range.
    """
    _require_structures(dataset)
    cutoff_radius(cutoff)
    n_edges = sum(_n_edges(dataset, k, cutoff) for k in range(0, len(dataset), _BATCH))
    return n_edges / sum(len(atoms) for atoms in dataset.structures)


def _n_edges(dataset: Dataset, first: int, cutoff: float) -> int:
    structures = dataset.structures[first : first + _BATCH]
    try:
        return neighbor_list(System.from_ase(structures, first=first), cutoff).n_edges
    except ValueError:
        # the search numbers the structures of its batch, so the wrong one is searched alone
        for k, atoms in enumerate(structures, start=first):
            try:
                neighbor_list(System.from_ase(atoms), cutoff)
            except ValueError as error:
                raise ValueError(f"{dataset.source}: structure {k}: {error}") from None
        raise


def without_volume(dataset: Dataset) -> int:
    """Return the first structure without a volume in a data set with stresses, else -1."""
    if dataset.stress is None:
        return -1
    flat = (k for k, atoms in enumerate(dataset.structures) if not has_volume(atoms))
    return next(flat, -1)


def with_possible_stress(dataset: Dataset, what: str = "stresses") -> Dataset:
    """Return a data set without its stresses, with a warning, if a structure has no volume.

    Args:
        dataset: the data set.
        what: how the message calls the stresses.
    """
    if (k := without_volume(dataset)) < 0:
        return dataset
    log.warning("%s: %s are ignored: structure %d has no volume", dataset.source, what, k)
    return replace(dataset, stress=None)


def electrons(dataset: Dataset) -> dict[str, Any]:
    """Return what a model file tells about the electrons of its training structures.

    Returns:
        "closed_shells": True if all are molecules of multiplicity 1; "total_charges": the smallest
        and the largest total charge, e; "multiplicities": likewise, of molecules, if there are any.
    """
    _require_structures(dataset)
    found = [(*charge_and_spin(atoms), atoms.pbc.any()) for atoms in dataset.structures]
    charges = [charge for charge, _, _ in found]
    multiplicities = [spin for _, spin, periodic in found if not periodic]
    known = [min(multiplicities), max(multiplicities)] if multiplicities else None
    return {
        "closed_shells": all(spin == 1 and not periodic for _, spin, periodic in found),
        "total_charges": [min(charges), max(charges)],
        **({"multiplicities": known} if known else {}),
    }


def shortest_distance(dataset: Dataset) -> float:
    """Return the smallest distance [Å] between two atoms, with periodic images; inf without pairs.

    A model knows nothing about pairs much closer than this.
    """
    shortest = np.inf
    for atoms in dataset.structures:
        # Inside the box first: then only images that are closer still need to be searched.
        shortest = pdist(atoms.positions).min(initial=shortest)
        vectors = atoms.cell.lengths()[atoms.pbc]
        if len(vectors):
            shortest = vectors.min(initial=shortest)
            shortest = ase_neighbor_list("d", atoms, float(shortest)).min(initial=shortest)
    return float(shortest)


def _require_structures(dataset: Dataset) -> None:
    if len(dataset) == 0:
        raise ValueError(f"{dataset.source}: the data set is empty")
