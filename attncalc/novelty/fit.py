"""`fit`: `Environments` from the features and distances of training structures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.ndimage import maximum
from scipy.spatial.distance import cdist

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
# data of effectively so many compositions are of many molecules: one cloud of points is not enough
# for an element, and held-out molecules are new structures, of which one in 200 is beyond the edge
MANY, NEW_INSIDE = 100, 0.995
# a structure this many times as far from the others as usual is left out: a single one moves the
# edge of a small data set. Measured: up to 4 in sets of molecules and of silicon, 12 in one with
# copies, up to 28 in crystals of a few atoms, 47 with dissociated molecules, above 200 with one
# bond of 0.6 Å
OUTLIER, MOST_OUTLIERS, FEWEST_WITH_OUTLIERS = 50.0, 0.02, 20
LEAST_EDGE = 0.1  # standard deviations
MOST_COMPONENTS_OF_MANY = 48
# centres of an element, atoms for each centre at least, and bytes of all centres in a model file;
# as many of all components
MOST_CENTRES, ATOMS_PER_CENTRE, MOST_BYTES_OF_MANY = 256, 8, 500_000
ROUNDS = 5
# points whose distances are computed at once: bounds the memory
AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class Sample:
    """Atoms of some structures, as a network sees them.

    Attributes:
        species: [n_atoms], int64: rows of the potential's species table.
        structure: [n_atoms], int64: number of the structure that each atom is in, from 0 on.
        features: [n_atoms, F], float32; F = 0 if the network has none.
        closest: [n_species, n_species] Å, shortest distances, or the cutoff.
        composition: [n_structures], int64: equal for structures of the same atoms; None: all are.
    """

    species: NDArray[np.int64]
    structure: NDArray[np.int64]
    features: NDArray[np.float32]
    closest: NDArray[np.float64]
    composition: NDArray[np.int64] | None = None

    @property
    def is_of_many(self) -> bool:
        """Return True if the structures have many compositions, none of which prevails.

        Their effective number is 1 / Σ p², where p is the share of a composition.
        """
        if self.composition is None:
            return False
        shares = np.bincount(self.composition) / len(self.composition)
        return bool(1 / (shares**2).sum() >= MANY)


def outliers_of(sample: Sample) -> list[int]:
    """Return numbers of structures that are far from all others, such as broken ones.

    Their largest distance from the atoms of the same element in other structures, as in `fit`, is
    more than `OUTLIER` times the median of the structures, of `FEWEST_WITH_OUTLIERS` or more.
    Several that are together more than `MOST_OUTLIERS` of the structures are a part of the data,
    and with many compositions the edge does not depend on single structures: then there are none.

    Args:
        sample: of one structure or more.
    """
    n_structures = int(sample.structure.max(initial=-1)) + 1
    n, _ = _sizes(len(sample.closest), sample.features.shape[1], many=False)
    if sample.is_of_many or not n:
        return []
    fold = np.random.default_rng(0).permutation(n_structures) % FOLDS
    found: set[int] = set()
    for s in np.unique(sample.species):
        of_kind = sample.species == s
        structure = sample.structure[of_kind]
        if len(np.unique(structure)) < FEWEST_WITH_OUTLIERS:
            continue
        features = sample.features[of_kind].astype(np.float64)
        largest = largest_of(_held_out(features, fold[structure], n, 1), structure)
        found |= set(np.unique(structure)[largest > OUTLIER * np.median(largest)].tolist())
    return sorted(found) if len(found) <= max(1, MOST_OUTLIERS * n_structures) else []


def fit(sample: Sample) -> Environments:
    """Describe the environments of a sample.

    Each element is described by the mean of its features and their principal components, and if
    there are many compositions, by the centres of clusters of its atoms as well. The edge is set by
    cross-validation: the structures are divided into five parts at random, and distances in each
    part are computed with a description of the other four. In units of the edge, the largest
    distance of an atom of this element exceeds 1 / 1.2 in one structure of a thousand. With many
    compositions, structures of one composition are in the same part, and the largest distance of
    all atoms exceeds 1 in one structure of 200.

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
    many = sample.is_of_many
    n, n_centres = _sizes(n_species, width, many=many)
    mean = np.zeros((n_species, width), np.float32)
    whiten = np.zeros((n_species, width, n), np.float32)
    centres = np.zeros((n_species, n, n_centres), np.float32)
    n_structures = int(sample.structure.max()) + 1
    # at random, because neighbours in a file are mostly neighbours in time
    groups = sample.composition if many else np.arange(n_structures)
    assert groups is not None
    fold = (np.random.default_rng(0).permutation(int(groups.max()) + 1) % FOLDS)[groups]
    held = np.zeros(len(sample.species))
    for s in np.unique(sample.species) if n else ():
        of_kind = sample.species == s
        features = sample.features[of_kind].astype(np.float64)
        structure = sample.structure[of_kind]
        cloud = Cloud.of(features, n, n_centres)
        distances = _held_out(features, fold[structure], n, n_centres)
        inside = NEW_INSIDE if many else HELD_INSIDE
        edge = float(np.quantile(largest_of(distances, structure), inside))
        # one cloud: at least the distance of a typical atom for normally distributed features
        edge = max(edge, LEAST_EDGE) if many else EDGE * max(edge, n**0.5)
        held[of_kind] = distances / edge
        mean[s], whiten[s], centres[s] = cloud.centre, cloud.map / edge, cloud.centres / edge
    if many and n:
        edge = float(np.quantile(largest_of(held, sample.structure), NEW_INSIDE))
        edge = max(edge, LEAST_EDGE)
        whiten, centres = whiten / np.float32(edge), centres / np.float32(edge)
    counts = np.bincount(sample.species, minlength=n_species)
    return Environments(
        mean, whiten, centres, sample.closest, tuple(int(count) for count in counts), n_structures
    )


def _sizes(n_species: int, width: int, *, many: bool) -> tuple[int, int]:
    """Return the numbers of components and of centres."""
    if not many:
        per_component = 4 * n_species * max(width, 1)
        most = max(FEWEST_COMPONENTS, MOST_BYTES // per_component - 1)
        return min(MOST_COMPONENTS, width, most), 1
    room = MOST_BYTES_OF_MANY // (4 * n_species)
    n = min(MOST_COMPONENTS_OF_MANY, width, max(FEWEST_COMPONENTS, room // max(width, 1)))
    return n, max(1, min(MOST_CENTRES, room // n)) if n else 1


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of the atoms of one element.

    Attributes:
        centre: [F], their mean.
        map: [F, n], principal components, each divided by its standard deviation.
        centres: [n, n_centres], of clusters, in these components; zero if there is one.
    """

    centre: NDArray[np.float64]
    map: NDArray[np.float64]
    centres: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float64], n: int, n_centres: int) -> Self:
        """Describe features [m, F] by n components and as many centres of clusters."""
        centre = features.mean(0)
        off = features - centre
        variances, components = np.linalg.eigh(off.T @ off / len(off))
        least = max(LEAST_VARIANCE * variances.sum(), ROUNDING * float(centre @ centre), 1e-30)
        first = np.maximum(variances[::-1][:n], least)
        map_ = components[:, ::-1][:, :n] / np.sqrt(first)
        if n_centres == 1:
            return cls(centre, map_, np.zeros((n, 1)))
        few = max(1, min(n_centres, len(features) // ATOMS_PER_CENTRE))
        found = _clusters(off @ map_, few)
        return cls(centre, map_, found[np.arange(n_centres) % few].T)

    def distances(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances [m] of features [m, F] from the nearest centre."""
        points = (features - self.centre) @ self.map
        nearest = [
            cdist(points[k : k + AT_ONCE], self.centres.T).min(1)
            for k in range(0, len(points), AT_ONCE)
        ]
        return np.concatenate([np.zeros(0), *nearest])


def _clusters(points: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the centres [n, K] of clusters of points [m, K]: k-means from points at random."""
    first = points[np.random.default_rng(0).permutation(len(points))[:n]]
    with warnings.catch_warnings(action="ignore"):  # an empty cluster keeps its centre
        return kmeans2(points, first, iter=ROUNDS, minit="matrix")[0]


def _held_out(
    features: NDArray[np.float64], fold: NDArray[np.int64], n: int, n_centres: int
) -> NDArray[np.float64]:
    """Return the distances of atoms, each by a description without the atoms of its part.

    Args:
        features: [m, F], of one element.
        fold: [m], part of each atom.
        n, n_centres: numbers of components and of centres.
    """
    distances = np.zeros(len(features))
    for k in range(FOLDS):
        held = fold == k
        if held.any():
            known = ~held if not held.all() else held
            distances[held] = Cloud.of(features[known], n, n_centres).distances(features[held])
    return distances


def largest_of(values: NDArray[np.float64], structure: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the largest value of each structure that occurs.

    Args:
        values: [n_atoms].
        structure: [n_atoms], number of the structure of each atom.
    """
    return maximum(values, structure, np.unique(structure))
