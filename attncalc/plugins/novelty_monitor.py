"""`NoveltyMonitor`: a warning about atoms outside the training data, for plugins."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncalc.calculator import LOOK_EVERY
from attncalc.novelty import outside_atom
from attncalc.result import Result
from attncalc.system import System


class NoveltyMonitor:
    """Warns once if an atom is outside the training data of the model.

    The first result and every twentieth one after it are checked.

    Args:
        comm: `mpi4py` communicator of processes that share a structure and call together; the first
            process warns of the atom that is furthest outside. None for a single process.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm, self._n_calls, self._has_warned = comm, 0, False

    def __call__(
        self,
        system: System | None = None,
        result: Result | None = None,
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        """Check a result if it is due.

        Args:
            system: the evaluated system; None if this process has no atoms.
            result: its result.
            ids: [n], ids of the first n atoms in the other program; only these atoms are checked.
                None checks all atoms, counted from 0.
        """
        is_time = self._n_calls % LOOK_EVERY == 0
        self._n_calls += 1
        if self._has_warned or not is_time:
            return
        found = None
        if system is not None and result is not None and result.novelty is not None:
            n = None if ids is None else len(ids)
            found = outside_atom(result.novelty[:n], system.atomic_numbers[:n].cpu().numpy())
        if found is not None and ids is not None:
            found = found._replace(atom=int(ids[found.atom]))
        if self._comm is not None:
            of_all = filter(None, self._comm.allgather(found))
            found = max(of_all, key=lambda one: one.novelty, default=None)
        if found is not None:
            self._has_warned = True
            if self._comm is None or self._comm.rank == 0:
                warnings.warn(str(found), stacklevel=2)
