"""Barrier between the threads of one call, rows that each thread owns, sums in a fixed order.

Loops read a `Barrier` from their `Held`, so that one thread and many run the same machine code.

Every thread works on its own pairs and adds to rows of atoms in shared arrays. Meanwhile, no other
thread uses the rows of the atoms that it owns. Its contributions to other atoms, its ghosts, go to
ghost rows behind those of the atoms: `most` rows for each thread, those of thread 0 first. After a
barrier the ghost rows are added to the rows of the atoms, thread by thread, so that equal numbers
of threads give equal bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from attncalc.kernels.simd.loops import ZERO, add_to, inner_loop, stays_whole
from attncalc.kernels.simd.threads import ABANDONED, MORE_GHOSTS, give_way
from attncalc.kernels.simd.vectors import LANES, fill, load, store

# how often a waiting thread reads the counter before it yields to other threads: about 10 µs
PATIENCE = 10_000


class Barrier(NamedTuple):
    """State of one of `size` threads, which share all arrays except `own`, `due` and `row_of`.

    Attributes:
        rank, size: number of this thread, number of threads.
        give_way: address of a C function that lets other threads run; 0 if there is none.
        own: [4], int64: range (first, end) of the atoms that it updates in loops over atoms, then
            that of the receivers of its pairs; not read if there is one thread.
        arrivals: [1], int64: number of arrivals at all barriers so far.
        due: [1], int64: number of arrivals that completes the last barrier this thread reached.
        found: [size], int64: number that each thread reports at the first barrier.
        ghosts: [size, most], int64: atoms that the ghost rows stand for.
        n_ghosts: [size], int64: number of ghosts of each thread.
        row_of: [rows of atoms], int64: row of each ghost of this thread, -1 for other atoms.
    """

    rank: int
    size: int
    give_way: int
    own: NDArray[np.int64]
    arrivals: NDArray[np.int64]
    due: NDArray[np.int64]
    found: NDArray[np.int64]
    ghosts: NDArray[np.int64]
    n_ghosts: NDArray[np.int64]
    row_of: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Number of rows of atoms and ghosts."""
        return len(self.row_of) + self.ghosts.size


def barriers(
    arrivals: NDArray[np.int64], size: int, most: int, n_atoms: int
) -> tuple[Barrier, ...]:
    """Return the barriers of all threads of a call.

    Args:
        arrivals: [1], those of the `Threads`.
        size: number of threads.
        most: largest number of ghosts of a thread.
        n_atoms: largest number of atoms.
    """

    def zeros(*shape: int) -> NDArray[np.int64]:
        return np.zeros(shape, np.int64)

    found, ghosts, n_ghosts = zeros(size), zeros(size, most), zeros(size)
    return tuple(
        Barrier(
            *(rank, size, give_way(), zeros(4), arrivals, zeros(1)),
            *(found, ghosts, n_ghosts, zeros(n_atoms)),
        )
        for rank in range(size)
    )


def _pointer(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return context.make_array(signature.args[0])(context, builder, values[0]).data


def _arrive_code(typing: Any, arrivals: Any) -> Any:
    """Add 1 to arrivals[0]; threads that see it also see everything written before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        builder.atomic_rmw("add", _pointer(context, builder, signature, values), one, "acq_rel")
        return context.get_dummy_value()

    return types.void(arrivals), code


def _arrived_code(typing: Any, arrivals: Any) -> Any:
    """Read the current value of arrivals[0]."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, values), "acquire", 8)

    return types.int64(arrivals), code


def _call_code(typing: Any, address: Any) -> Any:
    """Call the C function at an address: int f(void)."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(address), code


_arrive: Callable[..., Any] = intrinsic(_arrive_code)
_arrived: Callable[..., Any] = intrinsic(_arrived_code)
call: Callable[..., Any] = intrinsic(_call_code)


@inner_loop
def wait_for_all(barrier):
    """Wait until all threads are here; everything they have written can then be read."""
    if barrier.size > 1:
        _wait(barrier)


@inner_loop
def _wait(barrier):
    stays_whole()
    barrier.due[0] += barrier.size
    _arrive(barrier.arrivals)
    looks = 0
    while _arrived(barrier.arrivals) < barrier.due[0]:
        looks += 1
        if looks > PATIENCE and barrier.give_way != 0:
            call(barrier.give_way)


@inner_loop
def agreed(barrier, n):
    """Wait at the first barrier; return n, or the same negative number in all threads to end.

    Args:
        n: number of this thread; if it is negative in one thread, the call ends for all.
    """
    if barrier.size > 1:
        barrier.found[barrier.rank] = n
        _wait(barrier)
        if _arrived(barrier.arrivals) >= ABANDONED:
            return -ABANDONED
        for t in range(barrier.size):
            if barrier.found[t] < 0:
                return barrier.found[t]
        for t in range(barrier.size):
            if barrier.n_ghosts[t] > barrier.ghosts.shape[1]:
                return MORE_GHOSTS
    return n


@inner_loop
def atoms_of(barrier, n_atoms):
    """Return the first atom of this thread's loops over atoms, and the one behind the last."""
    if barrier.size > 1:
        return barrier.own[0], barrier.own[1]
    return 0, n_atoms


@inner_loop
def forget_ghosts(barrier):
    """Forget all ghosts, before the pairs are known."""
    if barrier.size > 1:
        for k in range(barrier.row_of.shape[0]):
            barrier.row_of[k] = -1


@inner_loop
def row_for(barrier, j):
    """Return the row to which this thread adds for atom j; an atom of others becomes a ghost."""
    if barrier.size > 1:
        return _row_for(barrier, j)
    return j


@inner_loop
def _row_for(barrier, j):
    if barrier.own[2] <= j < barrier.own[3]:
        return j
    row = barrier.row_of[j]
    if row < 0:
        k, most = barrier.n_ghosts[barrier.rank], barrier.ghosts.shape[1]
        row = barrier.row_of.shape[0] + barrier.rank * most + k
        barrier.row_of[j] = row
        barrier.n_ghosts[barrier.rank] = k + 1
        if k < most:  # else the call ends at the first barrier
            barrier.ghosts[barrier.rank, k] = j
    return row


@inner_loop
def clear_ghosts(barrier, x):
    """Set this thread's ghost rows of x to zero."""
    if barrier.size > 1:
        _clear_ghosts(barrier, x)


@inner_loop
def _clear_ghosts(barrier, x):
    stays_whole()
    first = barrier.row_of.shape[0] + barrier.rank * barrier.ghosts.shape[1]
    for row in range(first, first + barrier.n_ghosts[barrier.rank]):
        for k in range(0, x.shape[1], LANES):
            store(x, row, k, fill(ZERO))


@inner_loop
def add_ghosts(barrier, x):
    """Add the ghost rows of all threads to this thread's atoms."""
    if barrier.size > 1:
        _add_ghosts(barrier, x)


@inner_loop
def _add_ghosts(barrier, x):
    stays_whole()
    for t in range(barrier.size):
        row = barrier.row_of.shape[0] + t * barrier.ghosts.shape[1]
        for g in range(barrier.n_ghosts[t]):
            atom = barrier.ghosts[t, g]
            if barrier.own[0] <= atom < barrier.own[1]:
                for k in range(0, x.shape[1], LANES):
                    add_to(x, atom, k, load(x, row + g, k))
