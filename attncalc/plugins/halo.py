"""Messages between the domains of a structure: `Owners` of ghosts, and `OutputExchange`.

`Owners` exchanges values between ghosts and the atoms that they are copies of. `OutputExchange`
exchanges the network outputs that pair terms read, such as charges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.domain import Integers, StructureTotals
from attncalc.graph import OUTPUTS, AtomOutputs

NAMES = OUTPUTS[1:]
"""Outputs that are exchanged: all but energies."""


class OutputExchange:
    """Exchange of a network's outputs between processes, for pair terms that read them.

    These are charges, Hirshfeld ratios and all others but energies. Charges are shifted to add up
    to the total of the structure.

    All processes of the communicator must call the methods together, also those without atoms.

    Args:
        owners: owners of the ghosts of this process.
        whole: the whole structure.
    """

    def __init__(self, owners: Owners, whole: StructureTotals) -> None:
        self.owners, self.whole = owners, whole

    def complete(self, outputs: AtomOutputs) -> AtomOutputs:
        """Return outputs with charges that add up to the total; ghosts get those of their atoms."""
        given = {name: getattr(outputs, name) for name in NAMES}
        values = _columns(given, len(outputs.energies))
        own = self._adding_up(values[: self.owners.n_own], self.whole.charge)
        values = np.concatenate([own, self.owners.of_ghosts(own)])
        return replace(outputs, **_named(values, given))

    def give_back(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return dE / d outputs of own atoms, including the contributions of all their ghosts."""
        values = np.zeros((self.owners.n_own + self.owners.n_ghosts, len(NAMES)))
        found = self.owners.add_to_owners(_columns(gradient, len(values)))
        values[: self.owners.n_own] = self._adding_up(found, 0)  # the total charge is fixed
        return _named(values, gradient)

    def without_atoms(self, n: int) -> None:
        """Take part in the messages of n networks' evaluations, for a process without atoms."""
        none = np.zeros((0, len(NAMES)))
        for _ in range(n):
            self.owners.of_ghosts(self._adding_up(none, self.whole.charge))
            self._adding_up(self.owners.add_to_owners(none), 0)

    def _adding_up(self, own: NDArray[np.float64], total: float) -> NDArray[np.float64]:
        """Return own rows with charges shifted to sum to `total` over all processes."""
        k, shifted = NAMES.index("charges"), own.copy()
        excess = self.owners.comm.allreduce(float(own[:, k].sum())) - total
        shifted[:, k] -= excess / self.whole.n_atoms
        return shifted


def _columns(given: Mapping[str, Tensor | None], n: int) -> NDArray[np.float64]:
    """Return outputs as [n, len(NAMES)], with zeros for those that are missing."""
    columns = np.zeros((n, len(NAMES)))
    for k, name in enumerate(NAMES):
        if (values := given.get(name)) is not None:
            columns[:, k] = values.detach().double().numpy()
    return columns


def _named(values: NDArray[np.float64], given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the columns [n] of the outputs that are given, by name."""
    columns = zip(NAMES, values.T.copy(), strict=True)
    return {n: torch.from_numpy(column) for n, column in columns if given.get(n) is not None}


class Owners:
    """Messages between the ghosts of a process and the processes whose atoms these are.

    All processes must create it, and call its methods, together.

    Args:
        comm: an `mpi4py` communicator.
        own: [n_own], ids of the process's atoms.
        ghosts: [n_ghosts], ids of its ghosts.

    Raises:
        ValueError: no process has the atom of a ghost, or several atoms have the same id.
    """

    def __init__(self, comm: Any, own: Integers, ghosts: Integers) -> None:
        self.comm, self.n_own, self.n_ghosts = comm, len(own), len(ghosts)
        size = comm.size
        # process (id % size) receives the owner of an atom, and answers requests for it
        told = comm.alltoall([own[own % size == r] for r in range(size)])
        asked = comm.alltoall([ghosts[ghosts % size == r] for r in range(size)])
        ids, owners = np.concatenate(told), np.repeat(np.arange(size), [len(t) for t in told])
        order = np.argsort(ids)
        is_second = np.diff(ids[order]) == 0
        if is_second.any():
            raise ValueError(f"several atoms have the id {ids[order][1:][is_second][0]}")
        answers = comm.alltoall([_look_up(ids[order], owners[order], wanted) for wanted in asked])
        owner = np.empty(len(ghosts), np.int64)
        for r in range(size):
            owner[ghosts % size == r] = answers[r]
        if (owner < 0).any():
            lost = int(ghosts[np.argmin(owner)])
            raise ValueError(f"no process has the atom {lost}, of which there is a ghost")
        self._ghosts = [np.flatnonzero(owner == r) for r in range(size)]
        order = np.argsort(own)
        wanted = comm.alltoall([ghosts[rows] for rows in self._ghosts])
        self._own = [_look_up(own[order], order, ids) for ids in wanted]
        self._peers = [r for r in range(size) if len(self._ghosts[r]) or len(self._own[r])]

    def add_to_owners(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return [n_own, k]: rows of own atoms plus those of all their ghosts.

        Args:
            values: [n_own + n_ghosts, k], own atoms first.
        """
        total, of_ghosts = values[: self.n_own].copy(), values[self.n_own :]
        received = self._swap(of_ghosts, self._ghosts, self._own)
        for rows, more in received:  # an atom has at most one ghost in a process
            total[rows] += more
        return total

    def of_ghosts(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return [n_ghosts, k]: for every ghost the row of its atom.

        Args:
            values: [n_own, k].
        """
        found = np.empty((self.n_ghosts, *values.shape[1:]), values.dtype)
        for rows, value in self._swap(values, self._own, self._ghosts):
            found[rows] = value
        return found

    def update(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy rows of atoms to their ghosts, in place and for several arrays in one message.

        Args:
            arrays: [>= n_own + n_ghosts, k] each, of one dtype, own atoms first.
        """
        widths = np.cumsum([array.shape[1] for array in arrays])[:-1]
        for rows, values in self._swap(_Columns(arrays), self._own, self._ghosts):
            for array, part in zip(arrays, np.split(values, widths, axis=1), strict=True):
                array[self.n_own + rows] = part

    def give_back(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Add rows of ghosts to those of their atoms and clear them; arguments as of `update`."""
        widths = np.cumsum([array.shape[1] for array in arrays])[:-1]
        end = self.n_own + self.n_ghosts
        ghosts = [array[self.n_own : end] for array in arrays]
        found = self._swap(_Columns(ghosts), self._ghosts, self._own)
        for rows, values in found:  # an atom has at most one ghost in a process
            for array, part in zip(arrays, np.split(values, widths, axis=1), strict=True):
                array[rows] += part
        for array in ghosts:
            array[:] = 0

    def _swap(
        self, values: Any, sent: Sequence[Integers], received: Sequence[Integers]
    ) -> list[tuple[Integers, NDArray[Any]]]:
        """Send rows of values to every peer; return received values and the rows they are for."""
        comm, shape = self.comm, values.shape[1:]
        buffers = [np.empty((len(received[r]), *shape), values.dtype) for r in self._peers]
        parts = [np.ascontiguousarray(values[sent[r]]) for r in self._peers]
        pairs = zip(self._peers, buffers, parts, strict=True)
        waiting = []
        for peer, buffer, part in pairs:
            waiting += [comm.Irecv(buffer, source=peer), comm.Isend(part, dest=peer)]
        for request in waiting:
            request.Wait()
        return [(received[r], b) for r, b in zip(self._peers, buffers, strict=True)]


class _Columns:
    """Arrays of equal dtype, joined along columns; only the requested rows are copied."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.shape = (len(arrays[0]), sum(array.shape[1] for array in arrays))

    def __getitem__(self, rows: Integers) -> NDArray[Any]:
        return np.concatenate([array[rows] for array in self.arrays], axis=1)


def _look_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """Return values [n_wanted] of wanted keys, -1 for a missing key; `keys` must be sorted."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], -1)
