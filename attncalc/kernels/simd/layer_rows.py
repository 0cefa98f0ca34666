"""Atoms that each layer reads and updates, and calls of a `LayerExchange` from compiled loops.

Loops take a `LayerRows`. Without ghosts every layer reads and updates all atoms. On the Python side
is `Messenger`, a C function that exchanges rows of ghosts with other processes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.barrier import call, wait_for_all
from attncalc.kernels.simd.loops import inner_loop

if TYPE_CHECKING:  # it imports torch, which a process that only compiles does not need
    from attncalc.graph import GhostLayers, LayerExchange


class LayerRows(NamedTuple):
    """Number of atoms that each layer updates and reads, always the first ones of a graph.

    Attributes:
        updated: [n_layers], int64: number of atoms that a layer updates.
        seen: [n_layers], int64: number of atoms that a layer reads.
        messenger: address of the C function of a `Messenger`; 0 if there is none.
        stage: [1], int64: requested exchange: l + 1 before layer l, -(l + 1) after its reverse.
    """

    updated: NDArray[np.int64]
    seen: NDArray[np.int64]
    messenger: int
    stage: NDArray[np.int64]

    @classmethod
    def of(
        cls, ghosts: GhostLayers | None, n_atoms: int, n_layers: int, messenger: int = 0
    ) -> LayerRows:
        """Return the rows for a graph with these ghosts.

        Only the results for own atoms are read from the last layer. So it needs the results of the
        layer before it for atoms within one edge of them, and so on, unless ghosts are exchanged.
        """
        if ghosts is None:
            updated = seen = [n_atoms] * n_layers
        elif ghosts.exchange is not None:
            updated, seen = [ghosts.within(0)] * n_layers, [ghosts.within(1)] * n_layers
        else:
            updated = [ghosts.within(n_layers - 1 - l) for l in range(n_layers)]
            seen = [ghosts.within(n_layers - l) for l in range(n_layers)]
        return cls(
            np.array(updated, np.int64), np.array(seen, np.int64), messenger, np.zeros(1, np.int64)
        )


class Messenger:
    """C function through which loops exchange rows of ghosts.

    Args:
        exchange: the exchange of the graph.
        forward: returns the arrays to update before layer l.
        reverse: returns the arrays to give back after the reverse of layer l.

    Attributes:
        error: exception of the exchange, which loops cannot raise.
    """

    def __init__(
        self,
        exchange: LayerExchange,
        forward: Callable[[int], Sequence[NDArray[Any]]],
        reverse: Callable[[int], Sequence[NDArray[Any]]],
    ) -> None:
        self.exchange, self.forward, self.reverse = exchange, forward, reverse
        self.error: BaseException | None = None
        self.rows: LayerRows | None = None
        self._function = ctypes.CFUNCTYPE(ctypes.c_int)(self._swap)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0

    def _swap(self) -> int:
        assert self.rows is not None
        if self.error is None:
            stage = int(self.rows.stage[0])
            try:
                if stage > 0:
                    self.exchange.update(self.forward(stage - 1))
                else:
                    self.exchange.give_back(self.reverse(-stage - 1))
            except BaseException as error:
                self.error = error
        return 0

    def check(self) -> None:
        """Raise the exception of an exchange, if there was one."""
        if self.error is not None:
            raise self.error


@inner_loop
def count(first, end, n):
    """Return how many of the rows from `first` to before `end` are among the first n."""
    return max(0, min(end, n) - first)


@inner_loop
def pairs_of(n_pairs, receivers, n):
    """Return the number of pairs with one of the first n receivers; pairs ascend by receiver."""
    while n_pairs > 0 and receivers[n_pairs - 1] >= n:
        n_pairs -= 1
    return n_pairs


@inner_loop
def exchange_ghosts(barrier, rows, stage):
    """Wait for all threads, then let the messenger exchange rows of ghosts in one of them."""
    if rows.messenger != 0:
        wait_for_all(barrier)
        if barrier.rank == 0:
            rows.stage[0] = stage
            call(rows.messenger)
        wait_for_all(barrier)
