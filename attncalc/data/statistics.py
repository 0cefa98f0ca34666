"""Statistics of training data that a model needs: reference energies, density, distances."""

from __future__ import annotations

import numpy as np
from ase.neighborlist import neighbor_list as ase_neighbor_list
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from attncalc.data.dataset import Dataset
from attncalc.neighbors import neighbor_list
from attncalc.nn.options import cutoff_radius
from attncalc.system import System

# Structures per neighbour search: enough to hide its overhead, few enough for memory.
_BATCH = 64


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


def per_element(dataset: Dataset, values: NDArray[np.float64]) -> dict[int, float]:
    """Fit one number per element by least squares: values [n] ≈ Σ over atoms of each structure.

    If there are several solutions, that of smallest norm is returned; see `reference_energies`.
    """
    found = [np.unique(atoms.numbers, return_counts=True) for atoms in dataset.structures]
    elements = np.unique(np.concatenate([numbers for numbers, _ in found]))
    counts = np.zeros((len(found), len(elements)), dtype=int)
    for row, (numbers, how_many) in zip(counts, found, strict=True):
        row[np.searchsorted(elements, numbers)] = how_many
    # Counts are small integers: smaller singular values come from rounding, not composition.
    solution = np.linalg.lstsq(counts.astype(float), values, rcond=1e-10)[0]
    return {int(z): float(e) for z, e in zip(elements, solution, strict=True)}


def avg_num_neighbors(dataset: Dataset, cutoff: float) -> float:
    """Return the mean number of neighbours per atom within `cutoff` [Å].

    Raises:
        ValueError: the data set is empty, or the cutoff is out of range.
    """
    _require_structures(dataset)
    cutoff_radius(cutoff)
    n_edges = sum(
        neighbor_list(System.from_ase(dataset.structures[k : k + _BATCH]), cutoff).n_edges
        for k in range(0, len(dataset), _BATCH)
    )
    return n_edges / sum(len(atoms) for atoms in dataset.structures)


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
