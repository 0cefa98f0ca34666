"""Processes that process shards, and the record of those that died."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection

from ase import Atoms
from ase.io import write

from attncalc.cli.progress import progress_bar
from attncalc.cli.shards.results import RESULTS, FolderGone, Job, Outcome, Solver, Work
from attncalc.data.shards import Frame
from attncalc.files import FileLock, write_atomically
from attncalc.text import EXPECTED, one_line

# s between two checks of the processes, and of the shards that other commands have done
PAUSE, RECHECK = 0.2, 5.0
# s after the death of a process in which this one is killed too, if all are
GRACE = 1.0
# processes that may die at a shard before it is given up
ATTEMPTS = 2


class _Worker:
    """Process that computes shards, as seen by the first process.

    Attributes:
        process: the process.
        at: the shard that it is processing, or None.
        error: message of an expected error, or "".
        bug: message of an unexpected exception that ended it, or "".
    """

    def __init__(self, job: Job, work: Work, mine: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._said, theirs = context.Pipe(duplex=False)
        self.at: int | None = None
        self.error = self.bug = ""
        self.process = context.Process(
            target=_run_worker, args=(job, work, mine, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def listen(self) -> list[int]:
        """Return the shards that it has done since the last call."""
        done = []
        with suppress(EOFError, OSError):
            while self._said.poll():
                what, said = self._said.recv()
                if what == "bug":
                    self.bug = said
                    continue
                self.at = said if what == "at" else None
                if what == "done":
                    done.append(said)
                elif what == "error":
                    self.error = said
        return done

    def has_died(self) -> bool:
        """Return True if it died at a shard, by a bug or for lack of memory.

        SIGTERM does not count, because it ends whole jobs and is not due to the shard.
        """
        ended = self.process.exitcode
        return self.at is not None and ended not in (None, 0, -signal.SIGTERM)


def compute_in_processes(job: Job, work: Work, mine: Sequence[int], workers: int) -> None:
    """Process shards by several processes.

    Raises:
        RuntimeError: there was an error in a process, or all ended before the shards were done.
    """
    pool: list[_Worker] = []
    try:
        process_rounds(work, mine, partial(_rounds, job, work, mine, pool, workers))
    finally:
        for worker in pool:
            worker.process.terminate()
    if not_done := work.not_done(mine):
        status = max((abs(worker.process.exitcode or 0) for worker in pool), default=0)
        raise RuntimeError(
            f"{len(not_done)} of {len(mine)} shards are not done, since all processes ended "
            f"(status {status}): the same command goes on"
        )


def _rounds(
    job: Job, work: Work, mine: Sequence[int], pool: list[_Worker], workers: int, left: set[int]
) -> Iterator[set[int]]:
    """Process shards by processes, which join the pool; yield repeatedly the shards left."""
    next_check = time.monotonic() + RECHECK
    pool += [_Worker(job, work, mine) for _ in range(min(workers, len(left)))]
    goes_on = True
    while goes_on:
        time.sleep(PAUSE)
        # checked before messages are read, so that the last ones are read too
        goes_on = any(worker.process.is_alive() for worker in pool)
        for k, worker in enumerate(pool):
            left.difference_update(worker.listen())
            if worker.error:
                raise RuntimeError(worker.error)
            if worker.has_died():
                time.sleep(GRACE)  # if all processes are being killed, this one is too
                worker.at, shard = None, worker.at
                if (
                    count_attempt(work, shard, worker.bug) <= ATTEMPTS
                ):  # otherwise processes die even when they give it up
                    pool[k], goes_on = _Worker(job, work, mine), True
        if (began := time.monotonic()) > next_check:  # shards that other commands have done
            left.intersection_update(work.not_done(sorted(left)))
            next_check = time.monotonic() + max(RECHECK, 20 * (time.monotonic() - began))
        yield left


def process_rounds(
    work: Work, mine: Sequence[int], rounds: Callable[[set[int]], Iterator[set[int]]]
) -> None:
    """Process the shards that are not done, and show the progress.

    Args:
        work: work on all shards.
        mine: numbers of the shards to process.
        rounds: processes shards, and yields repeatedly those that are left.

    Raises:
        KeyboardInterrupt, RuntimeError: those of `rounds`; the message says how much is done.
    """

    def structures(some: set[int]) -> int:
        return sum(len(work.shards.structures(k)) for k in some)

    if not (left := set(work.not_done(mine))):
        return
    n = structures(left)
    try:
        with progress_bar(n, "structure") as bar:
            for rest in rounds(left):
                bar.update(n - structures(rest) - bar.n)
    except (KeyboardInterrupt, RuntimeError) as error:
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RuntimeError
        done = len(mine) - len(work.not_done(mine))
        said = f"{done} of {len(mine)} shards are done: the same command goes on"
        raise kind("; ".join(filter(None, (str(error), said)))) from None


def _deaths(work: Work, shard: int) -> tuple[int, str]:
    """Return the number of processes that died at a shard, and the exception of the last, or ""."""
    try:
        number, _, bug = work.file(shard, ".died").read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:
        return 0, ""
    return int(number), bug


def count_attempt(work: Work, shard: int | None, bug: str = "") -> int:
    """Record that a process died at a shard; return the number of deaths so far.

    Args:
        work: work on all shards.
        shard: number of the shard; None counts nothing.
        bug: the exception that ended the process, in one line.
    """
    if shard is None or work.is_done(shard):
        return 0
    number = _deaths(work, shard)[0] + 1
    write_atomically(work.file(shard, ".died"), f"{number} {bug}".rstrip().encode())
    return number


def _run_worker(job: Job, work: Work, mine: Sequence[int], parent: Connection) -> None:
    """Process shards that no other process has, until all are done; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the first process ends this one
    try:
        process_until_done(job, work, mine, parent)
    except FolderGone:
        pass
    except (*EXPECTED, MemoryError) as error:
        if work.folder.exists():
            with suppress(BrokenPipeError):
                parent.send(("error", one_line(error)))
    except Exception as error:
        with suppress(BrokenPipeError):
            parent.send(("bug", bug_in_one_line(error)))
        raise


def bug_in_one_line(error: Exception) -> str:
    """Return kind and message of an unexpected exception, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def process_until_done(job: Job, work: Work, mine: Sequence[int], parent: Connection) -> None:
    """Process shards that no other process has, and tell the parent of each.

    Raises:
        FolderGone: the folder of the results does not exist.
    """
    process = multiprocessing.parent_process()
    solve = job.start()
    left = work.not_done(mine)
    while left:
        worked = False
        for k in left:
            if process is not None and not process.is_alive():
                return
            if work.is_done(k):
                continue
            if process_shard(work, k, solve, partial(parent.send, ("at", k))):
                parent.send(("done", k))
                worked = True
        left = [k for k in left if not work.is_done(k)]
        if left and not work.folder.exists():
            raise FolderGone
        if left and not worked:  # other processes have the rest, and may be killed
            time.sleep(PAUSE)


def process_shard(work: Work, shard: int, solve: Solver, begin: Callable[[], None]) -> bool:
    """Process a shard, unless it is done; give it up if too many processes have died at it.

    Args:
        work: work on all shards.
        shard: number of the shard.
        solve: does the work.
        begin: called before the work, while the shard is locked.

    Returns:
        False if another process has the shard.
    """
    work.file(shard, ".json").parent.mkdir(exist_ok=True)
    try:
        lock = FileLock(work.file(shard, ".json"))
    except BlockingIOError:
        return False
    with lock:
        if not work.is_done(shard):
            begin()
            number, bug = _deaths(work, shard)
            _write_results(work, shard, partial(_give_up, bug) if number >= ATTEMPTS else solve)
    return True


def _give_up(bug: str, frames: Sequence[Frame], first: int) -> list[Outcome]:
    last = first + len(frames) - 1
    error = (
        f"{ATTEMPTS} processes died at structures {first} to {last}, of which this is one: "
        f"{bug or 'too large for the memory?'}"
    )
    return [(None, {"error": error}) for _ in frames]


def _write_results(work: Work, shard: int, solve: Solver) -> None:
    frames = work.shards.read(shard)
    relaxed, failed, said_of_all = [], [], []
    outcomes = solve(frames, work.shards.structures(shard).start)
    for frame, (atoms, said) in zip(frames, outcomes, strict=True):
        if atoms is not None:
            try:
                relaxed.append(_extxyz(atoms))
            except Exception as error:  # ASE's writer raises errors of any kind
                said = {"error": f"{frame.name}: ASE cannot write it ({one_line(error)})"}
        if "error" in said:
            failed.append(frame.with_error(said["error"]))
        said_of_all.append(said)
    results = "".join(relaxed).encode(), b"".join(failed)
    for ending, content in zip(RESULTS, results, strict=True):
        write_atomically(work.file(shard, ending), content)
    report = {"structures": said_of_all, "sizes": [len(content) for content in results]}
    write_atomically(work.file(shard, ".json"), json.dumps(report).encode())


def _extxyz(atoms: Atoms) -> str:
    text = StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()
