"""Order of the structures and their division into steps, by number or by edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from attncalc.train.recipe import Recipe

Integers = NDArray[np.int64]

# structures of one validation batch
VALIDATION_BATCH = 50
# structures on which a fast step is compared with the plain one
TRIED = 50


@dataclass(frozen=True)
class Share:
    """Structures of one step that one process takes.

    Attributes:
        structures: their indices; there may be none.
        of_structures, of_atoms: fractions of all structures and of all atoms of the step that they
            are. The loss is a mean over these, and shares have unequal numbers of atoms.
    """

    structures: list[int]
    of_structures: float = 1.0
    of_atoms: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """Numbers of atoms and edges [n] of all structures of a set."""

    n_atoms: Integers
    n_edges: Integers


def epoch_order(n: int, seed: int, epoch: int) -> Integers:
    """Return the order of n structures in an epoch, which is the same at every call."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class Shares(Sampler[Share]):
    """Sampler of the shares that one of several processes takes of every step of an epoch.

    It has no length: with `batch_edges`, the number of steps differs a little between epochs.

    Args:
        sizes: sizes of the structures.
        recipe: its `batch_size` and `batch_edges` are those of all processes together.
        rank, n: rank of this process, and number of processes.
    """

    def __init__(self, sizes: Sizes, recipe: Recipe, rank: int = 0, n: int = 1) -> None:
        self.sizes, self.recipe, self.rank, self.n, self.epoch = sizes, recipe, rank, n, 0
        self.taken: dict[int, int] = {}  # steps to skip, by epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def leave_out(self, n_steps: int) -> None:
        """Skip the first steps of the present epoch, but of no other epoch."""
        self.taken = {self.epoch: n_steps}

    def __iter__(self) -> Iterator[Share]:
        # a generator: the epoch is read when the first step is requested
        order = epoch_order(len(self.sizes.n_edges), self.recipe.seed, self.epoch)
        taken = self.taken.get(self.epoch, 0)
        for step in steps(order, self.sizes.n_edges, self.recipe)[taken:]:
            yield self._share(step)

    def _share(self, step: Integers) -> Share:
        if self.n == 1:
            return Share(step.tolist())
        mine = step[parts(self.sizes.n_edges[step], self.n) == self.rank]
        n_atoms = self.sizes.n_atoms
        return Share(
            mine.tolist(),
            of_structures=len(mine) / len(step),
            of_atoms=float(n_atoms[mine].sum() / n_atoms[step].sum()),
        )


def steps(order: Integers, n_edges: Integers, recipe: Recipe) -> list[Integers]:
    """Return the structures of an epoch, divided into steps in order.

    Args:
        order: [n] indices of structures.
        n_edges: by structure.
        recipe: its `batch_size`, or `batch_edges`, limits a step.

    Raises:
        ValueError: a structure alone has more than `batch_edges` edges.
    """
    if recipe.batch_edges is None:
        return np.split(order, range(recipe.batch_size, len(order), recipe.batch_size))
    ends, until = [0], np.cumsum(n_edges[order])
    while ends[-1] < len(order):
        before = until[ends[-1] - 1] if ends[-1] else 0
        fit = int(np.searchsorted(until, before + recipe.batch_edges, side="right"))
        if fit == ends[-1]:
            raise ValueError(
                f"recipe: a structure has {n_edges.max():,} edges within the cutoff, more than "
                f"batch_edges, {recipe.batch_edges:,}: increase it"
            )
        ends.append(fit)
    return np.split(order, ends[1:-1])


def validation_shares(sizes: Sizes, recipe: Recipe, rank: int = 0, n: int = 1) -> list[Share]:
    """Return the batches that a process validates: every n-th of all.

    All processes have the same number of batches, of which the last may be empty.
    """
    all_of_them, most = np.arange(len(sizes.n_edges)), VALIDATION_BATCH
    if recipe.batch_edges is None:
        batches = np.split(all_of_them, range(most, len(all_of_them), most))
    else:
        batches = steps(all_of_them, sizes.n_edges, recipe)
    mine = [Share(batch.tolist()) for batch in batches[rank::n]]
    return mine + [Share([])] * (-(-len(batches) // n) - len(mine))


def n_steps(sizes: Sizes, recipe: Recipe) -> int:
    """Return the number of steps of a whole run, which the schedule of the learning rate spans."""
    n = len(sizes.n_edges)
    if recipe.batch_edges is None:
        return recipe.epochs * -(-n // recipe.batch_size)
    if recipe.minutes is not None:  # an estimate is enough
        one = epoch_order(n, recipe.seed, 0)
        return recipe.epochs * len(steps(one, sizes.n_edges, recipe))
    orders = (epoch_order(n, recipe.seed, epoch) for epoch in range(recipe.epochs))
    return sum(len(steps(order, sizes.n_edges, recipe)) for order in orders)


def typical(sizes: Sizes, recipe: Recipe) -> list[int]:
    """Return indices of structures on which a step is tried: the first ones, then the largest."""
    n = len(sizes.n_edges)
    largest = np.argsort(-sizes.n_edges, kind="stable")[: recipe.batch_size]
    return [*range(min(n, max(TRIED, recipe.batch_size))), *largest.tolist()]


def parts(n_edges: Sequence[int] | Integers, n: int) -> Integers:
    """Return the process of each structure of a step, so that all have about as many edges.

    The largest structures are assigned first, each to the process with the fewest edges so far, or
    the first of these.
    """
    taken, owner = np.zeros(n), np.zeros(len(n_edges), dtype=np.int64)
    for k in np.argsort(-np.asarray(n_edges), kind="stable"):
        owner[k] = taken.argmin()
        taken[owner[k]] += n_edges[k] + 1  # structures without edges are shared out too
    return owner
