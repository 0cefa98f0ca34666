"""Splits of a data set: random with a seed, or the ones that its source defines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset
from attncalc.options import whole_number

# successive structures that are compared, and the fewest that say something
COMPARED, FEWEST_COMPARED = 200, 10
# number of structures between those that count as far apart, and of distances in each
FAR, DISTANCES = 30, 300
# successive structures are near copies below this change of distances, Å, and below this share of
# the change between structures that are far apart
NEAR, NEAR_SHARE = 0.2, 0.3


def split(dataset: Dataset, sizes: Sequence[int | str], *, seed: int | None) -> tuple[Dataset, ...]:
    """Divide a data set into disjoint parts, at random or in order.

    Successive frames of a trajectory are nearly identical. A random test set of such frames is
    therefore not independent of the training set, while the end of the trajectory is.

    Args:
        dataset: the data set to divide.
        sizes: number of structures of each part; one of them may be "rest". Structures beyond
            the sum belong to no part.
        seed: seed of numpy's PCG64: the same seed always gives the same parts. None takes the
            parts one after the other, in the order of the data set.

    Returns:
        One `Dataset` per size.

    Raises:
        ValueError: a size is neither a non-negative integer nor "rest", "rest" occurs twice, or
            there are too few structures.
    """
    for size in sizes:
        is_count = isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0
        if not is_count and size != "rest":
            raise ValueError(
                f'sizes of a split must be numbers of structures or "rest", got {size!r}'
            )
    n_fixed = sum(int(size) for size in sizes if size != "rest")
    if sum(size == "rest" for size in sizes) > 1:
        raise ValueError(f'sizes may hold "rest" only once, got {list(sizes)}')
    if n_fixed > len(dataset):
        raise ValueError(
            f"{dataset.source}: sizes {list(sizes)} need {n_fixed} structures, "
            f"the data set has {len(dataset)}"
        )
    counts = [len(dataset) - n_fixed if size == "rest" else int(size) for size in sizes]
    order = np.arange(len(dataset))
    if seed is not None:
        whole_number("seed", seed, 0)
        order = np.random.default_rng(seed).permutation(order)
    ends = np.cumsum(counts, dtype=int)
    return tuple(dataset[order[end - n : end]] for n, end in zip(counts, ends, strict=True))


def official_split(
    dataset: Dataset,
    train: str = "train_01",
    *,
    n_validation: int = 50,
    test: str | None = "test_01",
    seed: int | None = None,
) -> tuple[Dataset, Dataset, Dataset]:
    """Return training, validation and test set by the splits that the source defines.

    The validation set is the last `n_validation` structures of the split `train`, as is usual
    for rMD17 (950 + 50). If the structures are sorted by kind, e.g. strained cells before surfaces,
    these may all be of one kind: then give a seed to draw them at random.

    Args:
        dataset: the data set to divide.
        train, test: names of splits in `dataset.splits`; None for an empty test set.
        n_validation: number of structures of `train` used for validation.
        seed: seed of numpy's PCG64, to draw these at random; None takes the last ones.

    Raises:
        ValueError: there is no such split, `train` and `test` overlap, or `n_validation` leaves no
            structure for training.
    """
    for name in filter(None, (train, test)):
        if name not in dataset.splits:
            there = ", ".join(dataset.splits) or "none, use sizes in a recipe, or data.split"
            hint = "; test: null in a recipe means no test set" if name == test else ""
            raise ValueError(f'{dataset.source}: no split "{name}": it has {there}{hint}')
    train_indices = dataset.splits[train]
    test_indices = dataset.splits[test] if test is not None else train_indices[:0]
    shared = np.intersect1d(train_indices, test_indices)
    if len(shared):
        raise ValueError(
            f'{dataset.source}: the splits "{train}" and "{test}" share {len(shared)} structures'
        )
    n_train = len(train_indices) - n_validation
    if n_validation < 0 or n_train < 1:
        raise ValueError(
            f"n_validation must be between 0 and {len(train_indices) - 1} for the "
            f'{len(train_indices)} structures of "{train}", got {n_validation}'
        )
    if seed is not None:
        train_indices = np.random.default_rng(seed).permutation(train_indices)
    return dataset[train_indices[:n_train]], dataset[train_indices[n_train:]], dataset[test_indices]


def near_copies(dataset: Dataset) -> tuple[float, float] | None:
    """Return the change between successive and between distant structures if the former are alike.

    Successive frames of a trajectory may be. Structures are compared by the distances between their
    atoms, to nearest images, so that rotation and translation do not count.

    Returns:
        The root mean square change of the distances, Å, from a structure to the next one and to the
        one `FAR` places after it, in the median of at most `COMPARED` structures. None if the
        first is above `NEAR`, or above `NEAR_SHARE` of the second, or if fewer than
        `FEWEST_COMPARED` structures are followed by others of the same atoms.
    """
    far = min(FAR, len(dataset) // 3)
    if far < 2:
        return None
    random = np.random.default_rng(0)
    changes = []
    for k in np.sort(random.permutation(len(dataset) - far)[:COMPARED]).tolist():
        three = [dataset.structures[k + step] for step in (0, 1, far)]
        numbers = three[0].numbers
        if len(numbers) < 2 or not all(np.array_equal(one.numbers, numbers) for one in three):
            continue
        pairs = random.integers(0, len(numbers), (DISTANCES, 2))
        here, following, distant = (_distances(one, pairs) for one in three)
        changes.append([np.sqrt(np.mean((one - here) ** 2)) for one in (following, distant)])
    if len(changes) < FEWEST_COMPARED:
        return None
    to_next, to_far = np.median(changes, axis=0).tolist()
    return (to_next, to_far) if to_next < min(NEAR, NEAR_SHARE * to_far) else None


def _distances(atoms: Atoms, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the distances [n] Å between pairs [n, 2] of atoms, to nearest images."""
    vectors = atoms.positions[pairs[:, 1]] - atoms.positions[pairs[:, 0]]
    if atoms.pbc.any():
        cell = atoms.cell.complete().array
        vectors -= np.where(atoms.pbc, np.round(vectors @ np.linalg.inv(cell)), 0) @ cell
    return np.linalg.norm(vectors, axis=1)
