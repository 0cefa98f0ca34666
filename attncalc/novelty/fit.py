"""`fit`: `Environments` from the features and distances of training structures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attncalc.novelty.environments import Environments

# principal components of the features of an element, and bytes of all of them in a model file
MOST_COMPONENTS, FEWEST_COMPONENTS = 32, 4
MOST_BYTES = 90_000
# smallest variance of a component, relative to the variance of all components, and to the square of
# the mean, since features are rounded to 1e-7 of their size
LEAST_VARIANCE, ROUNDING = 1e-6, 1e-10
# the edge is EDGE times the distance that one structure in a thousand exceeds, of those held out of
# the fit. Frames of a trajectory are alike, so held-out frames look nearer than new structures
EDGE, HELD_INSIDE = 1.2, 0.999
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Sample:
    """Atoms of some structures, as a network sees them.

    Attributes:
        species: [n_atoms], int64: rows of the potential's species table.
        structure: [n_atoms], int64: number of the structure that each atom is in, from 0 on.
        features: [n_atoms, F], float32; F = 0 if the network has none.
        closest: [n_species, n_species] Å, shortest distances, or the cutoff.
    """

    species: NDArray[np.int64]
    structure: NDArray[np.int64]
    features: NDArray[np.float32]
    closest: NDArray[np.float64]


def fit(sample: Sample) -> Environments:
    """Describe the environments of a sample.

    Each element is described by the mean of its features and their principal components. The edge
    is set by cross-validation: the structures are divided into five parts at random, and distances
    in each part are computed with a description of the other four. In units of the edge, the
    largest distance of an atom of this element exceeds 1 / 1.2 in one structure of a thousand.

    Args:
        sample: of one structure or more.

    Raises:
        ValueError: there is no structure, or a feature is not finite.
    """
    if not len(sample.species):
        raise ValueError("at least one structure is needed to learn what a model knows")
    if not np.isfinite(sample.features).all():
        raise ValueError("the network's features of a structure are not finite")
    n_species, width = len(sample.closest), sample.features.shape[1]
    per_component = 4 * n_species * max(width, 1)
    n = min(MOST_COMPONENTS, width, max(FEWEST_COMPONENTS, MOST_BYTES // per_component - 1))
    mean = np.zeros((n_species, width), np.float32)
    whiten = np.zeros((n_species, width, n), np.float32)
    # at random, because neighbours in a file are mostly neighbours in time
    n_structures = int(sample.structure.max()) + 1
    fold = np.random.default_rng(0).permutation(n_structures) % FOLDS
    for s in np.unique(sample.species) if n else ():
        of_kind = sample.species == s
        features = sample.features[of_kind].astype(np.float64)
        structure = sample.structure[of_kind]
        centre, map_ = _principal(features, n)
        edge = _edge(features, structure, fold[structure], n)
        mean[s], whiten[s] = centre, map_ / edge
    counts = np.bincount(sample.species, minlength=n_species)
    return Environments(
        mean, whiten, sample.closest, tuple(int(count) for count in counts), n_structures
    )


def _principal(
    features: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean [F], and the first n components over their standard deviations [F, n]."""
    centre = features.mean(0)
    off = features - centre
    variances, components = np.linalg.eigh(off.T @ off / len(off))
    least = max(LEAST_VARIANCE * variances.sum(), ROUNDING * float(centre @ centre), 1e-30)
    first = np.maximum(variances[::-1][:n], least)
    return centre, components[:, ::-1][:, :n] / np.sqrt(first)


def _edge(
    features: NDArray[np.float64],
    structure: NDArray[np.int64],
    fold: NDArray[np.int64],
    n: int,
) -> float:
    """Return the distance at the edge for one element.

    Args:
        features: [m, F], of its atoms.
        structure, fold: [m], of each atom.
        n: number of components.
    """
    distances = np.zeros(len(features))
    for k in range(FOLDS):
        held = fold == k
        if held.any():
            known = ~held if not held.all() else held
            centre, map_ = _principal(features[known], n)
            distances[held] = np.linalg.norm((features[held] - centre) @ map_, axis=1)
    # at least the distance of a typical atom for normally distributed features
    return EDGE * max(float(np.quantile(largest_of(distances, structure), HELD_INSIDE)), n**0.5)


def largest_of(values: NDArray[np.float64], structure: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the largest value of each structure that occurs.

    Args:
        values: [n_atoms], not negative.
        structure: [n_atoms], number of the structure of each atom.
    """
    _, number = np.unique(structure, return_inverse=True)
    largest = np.zeros(number.max() + 1)
    np.maximum.at(largest, number, values)
    return largest
