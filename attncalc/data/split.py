"""Splits of a data set: random with a seed, or the ones that its source defines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attncalc.data.dataset import Dataset
from attncalc.nn.options import whole_number

# pairs of successive structures that are compared, and the fewest that say something
PAIRS, FEWEST_PAIRS = 200, 10


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
            raise ValueError(
                f'{dataset.source}: no split "{name}": it has '
                + (", ".join(dataset.splits) or "none, use data.split")
            )
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


def successive_likeness(dataset: Dataset) -> float | None:
    """Return how alike the forces of successive structures are: 1 equal, 0 independent.

    It is the median of 2 F·F' / (F·F + F'·F') over pairs of structures that follow each other and
    have the same atoms in the same order. Frames that are some femtoseconds apart have 0.9 to 1,
    independent ones 0 (the data sets of benchmarks/accuracy.md). At most `PAIRS` pairs are read.

    Returns:
        None without forces, or if fewer than half of the pairs, or than `FEWEST_PAIRS`, have the
        same atoms.
    """
    if dataset.forces is None:
        return None
    drawn = np.random.default_rng(0).permutation(max(0, len(dataset) - 1))[:PAIRS]
    likenesses = []
    for k in np.sort(drawn).tolist():
        numbers, following = (dataset.structures[one].numbers for one in (k, k + 1))
        if not np.array_equal(numbers, following):
            continue
        forces, next_forces = dataset.forces[k], dataset.forces[k + 1]
        size = float((forces**2).sum() + (next_forces**2).sum())
        if size > 0:
            likenesses.append(2 * float((forces * next_forces).sum()) / size)
    if len(likenesses) < max(FEWEST_PAIRS, len(drawn) / 2):
        return None
    return float(np.median(likenesses))
