"""Threads of one call: the Python side of `attncalc.kernels.simd.barrier`."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

# more arrivals than any barrier has: one of the threads will never arrive
ABANDONED = 1 << 60
# result of a call that found more ghosts than there are rows for
MORE_GHOSTS = -2


class Threads:
    """Threads for one call at a time: the calling one, and helpers that sleep between calls.

    Args:
        size: number of threads, including the calling one.

    Attributes:
        arrivals: [1], number of arrivals at the barriers of this call.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrivals = np.zeros(1, np.int64)
        self._helpers = ThreadPoolExecutor(size - 1, thread_name_prefix="attncalc")
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """False in a process that was forked later: threads are not copied by a fork."""
        return self._process == os.getpid()

    def run(self, work: Callable[[int], int]) -> list[int]:
        """Run `work(rank)` in all threads at the same time and return the results.

        If one of them fails, or Ctrl-C comes before all have begun, no other thread waits for it.

        Args:
            work: function of a thread's rank; it ends after its first barrier if `arrivals`, zero
                at first, is ABANDONED.
        """
        arrivals = self.arrivals
        arrivals[0] = 0

        def one(rank: int) -> int:
            try:
                return work(rank)
            except BaseException:
                arrivals[0] = ABANDONED
                raise

        helping: list[Future[int]] = []
        try:
            for rank in range(1, self.size):
                helping.append(self._helpers.submit(one, rank))
            mine = one(0)
        except BaseException:
            arrivals[0] = ABANDONED
            raise
        finally:
            wait(helping)
        return [mine, *(helper.result() for helper in helping)]


@functools.cache
def give_way() -> int:
    """Return the address of the C function that lets another thread run; 0 if none is known."""
    try:
        if os.name == "nt":
            function = getattr(ctypes, "windll").kernel32.SwitchToThread  # noqa: B009 (for mypy)
        else:
            function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
