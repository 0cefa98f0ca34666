"""Threads that share one call: where they meet, whose rows are whose, sums in a fixed order.

Loops take `team`, which is None in a serial call: the compiler then leaves all of this out.

Every thread goes through pairs of its own and adds to rows of atoms in arrays that all share. The
rows of the atoms it owns are its alone meanwhile. What it has for other atoms, its ghosts, goes to
ghost rows behind those of the atoms: `most` rows for each thread, all those of thread 0 first.
After a meeting the ghost rows are added to the atoms', thread by thread, so that equal numbers of
threads give equal bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from attncalc.kernels.simd.crew import ABANDONED, MORE_GHOSTS
from attncalc.kernels.simd.loops import ZERO, add_to, inner_loop, stays_whole
from attncalc.kernels.simd.vectors import LANES, fill, load, store

# looks at the counter before a thread that waits lets others run: about 10 µs
PATIENCE = 10_000


class Team(NamedTuple):
    """What one of `size` threads knows of the others; what is its own no other one has.

    Attributes:
        rank, size: which it is, of how many.
        first, end: atoms that it updates in loops over atoms.
        owned_first, owned_end: receivers of its pairs.
        arrivals: [1], int64: at all meetings so far.
        due: [1], int64, its own: arrivals that complete the last meeting it went to.
        give_way: address of a C function that lets other threads run; 0: there is none.
        found: [size], int64: what each says at the first meeting.
        ghosts: [size, most], int64: atoms that the ghost rows stand for.
        n_ghosts: [size], int64: how many ghosts each has.
        row_of: [n_atoms], int64, its own: the row of each ghost, -1 for other atoms.
    """

    rank: int
    size: int
    first: int
    end: int
    owned_first: int
    owned_end: int
    arrivals: NDArray[np.int64]
    due: NDArray[np.int64]
    give_way: int
    found: NDArray[np.int64]
    ghosts: NDArray[np.int64]
    n_ghosts: NDArray[np.int64]
    row_of: NDArray[np.int64]


def _pointer(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return context.make_array(signature.args[0])(context, builder, values[0]).data


def _arrive_code(typing: Any, arrivals: Any) -> Any:
    """arrivals[0] += 1, seen by all; what was written before is seen with it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        builder.atomic_rmw("add", _pointer(context, builder, signature, values), one, "acq_rel")
        return context.get_dummy_value()

    return types.void(arrivals), code


def _arrived_code(typing: Any, arrivals: Any) -> Any:
    """arrivals[0], as it is now."""

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
_call: Callable[..., Any] = intrinsic(_call_code)


@inner_loop
def meet(team):
    """Wait until all threads are here; what they have written can be read then."""
    if team is not None:
        _wait(team)


@inner_loop
def _wait(team):
    stays_whole()
    team.due[0] += team.size
    _arrive(team.arrivals)
    looks = 0
    while _arrived(team.arrivals) < team.due[0]:
        looks += 1
        if looks > PATIENCE and team.give_way != 0:
            _call(team.give_way)


@inner_loop
def agreed(team, n):
    """The first meeting: n, or a negative number that is the same for all and ends the call.

    Args:
        n: of this thread; if it is negative for one, the call ends for all.
    """
    if team is not None:
        team.found[team.rank] = n
        _wait(team)
        if _arrived(team.arrivals) >= ABANDONED:
            return -ABANDONED
        for t in range(team.size):
            if team.found[t] < 0:
                return team.found[t]
        for t in range(team.size):
            if team.n_ghosts[t] > team.ghosts.shape[1]:
                return MORE_GHOSTS
    return n


@inner_loop
def atoms_of(team, n_atoms):
    """First atom, and the one behind the last, of loops over atoms."""
    if team is not None:
        return team.first, team.end
    return 0, n_atoms


@inner_loop
def forget_ghosts(team):
    """Before the pairs are known."""
    if team is not None:
        for k in range(team.row_of.shape[0]):
            team.row_of[k] = -1


@inner_loop
def row_for(team, j):
    """The row to which this thread adds for atom j: a ghost's, from the first time on."""
    if team is None:
        return j
    return _row_for(team, j)


@inner_loop
def _row_for(team, j):
    if team.owned_first <= j < team.owned_end:
        return j
    row = team.row_of[j]
    if row < 0:
        k, most = team.n_ghosts[team.rank], team.ghosts.shape[1]
        row = team.row_of.shape[0] + team.rank * most + k
        team.row_of[j] = row
        team.n_ghosts[team.rank] = k + 1
        if k < most:  # else the call ends at the first meeting
            team.ghosts[team.rank, k] = j
    return row


@inner_loop
def row_of_sender(to, e, j):
    """The same for the sender j of an edge (or pair) e, from where it was kept.

    Args:
        to: [n_edges], or None in a serial call.
    """
    if to is None:
        return j
    return to[e]


@inner_loop
def clear_ghosts(team, x):
    """Zeros in this thread's ghost rows of x."""
    if team is not None:
        _clear_ghosts(team, x)


@inner_loop
def _clear_ghosts(team, x):
    stays_whole()
    first = team.row_of.shape[0] + team.rank * team.ghosts.shape[1]
    for row in range(first, first + team.n_ghosts[team.rank]):
        for k in range(0, x.shape[1], LANES):
            store(x, row, k, fill(ZERO))


@inner_loop
def add_ghosts(team, x):
    """Adds the ghost rows of all threads to this thread's atoms."""
    if team is not None:
        _add_ghosts(team, x)


@inner_loop
def _add_ghosts(team, x):
    stays_whole()
    for t in range(team.size):
        row = team.row_of.shape[0] + t * team.ghosts.shape[1]
        for g in range(team.n_ghosts[t]):
            atom = team.ghosts[t, g]
            if team.first <= atom < team.end:
                for k in range(0, x.shape[1], LANES):
                    add_to(x, atom, k, load(x, row + g, k))
