"""Threads of one call."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from attncalc.kernels.simd.threads import ABANDONED, Threads


def wait_for_the_others(arrivals: NDArray[np.int64]) -> int:
    while arrivals[0] < ABANDONED:
        time.sleep(0.001)
    return -1


def test_every_thread_works_at_the_same_time() -> None:
    threads, barrier = Threads(4), threading.Barrier(4, timeout=60)
    for _ in range(3):

        def work(rank: int) -> int:
            assert threads.arrivals.tolist() == [0]
            barrier.wait()
            return 10 * rank

        assert threads.run(work) == [0, 10, 20, 30]


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_nobody_waits_for_a_thread_that_failed(failing: int, error: type[BaseException]) -> None:
    threads = Threads(3)

    def work(rank: int) -> int:
        if rank == failing:
            raise error("no room")
        return wait_for_the_others(threads.arrivals)

    for _ in range(2):
        with pytest.raises(error, match="no room"):
            threads.run(work)
    assert threads.run(lambda rank: rank) == [0, 1, 2]


def test_helpers_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(3)
    submit, asked = threads._helpers.submit, []

    def at_most_one(*arguments):
        asked.append(arguments)
        if len(asked) > 1:
            raise RuntimeError("can't start new thread")
        return submit(*arguments)

    monkeypatch.setattr(threads._helpers, "submit", at_most_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.run(lambda rank: wait_for_the_others(threads.arrivals))
