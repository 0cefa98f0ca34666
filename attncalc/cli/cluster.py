"""Shards on the workers of a dask.distributed cluster: one task per shard, files in one folder.

A worker calls the same function for a shard as the processes of --workers, and writes the files of
the shard; no structure is sent over the network. The scheduler holds a few tasks per worker thread.
"""

from __future__ import annotations

import atexit
import heapq
import importlib
import json
import logging
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncalc.cli.output import say, silently
from attncalc.cli.shards import workers
from attncalc.cli.shards.results import FolderGone, Job, Solver, Work
from attncalc.cli.shards.workers import ATTEMPTS, PAUSE, RECHECK, bug_in_one_line
from attncalc.files import write_atomically
from attncalc.text import EXPECTED, one_line

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

# s to wait for the answer of a scheduler
ANSWER = 15.0
# tasks per worker thread: one in progress, and one that can start when it ends
FEW = 2
# s until the next try of a shard that another command is processing
BUSY = 1.0
# s in which files that another machine has written become visible on a shared file system
VISIBLE = 90.0
# s without a shard after which a worker may drop a model, when it gets a shard for another one
IDLE = 300.0


@contextmanager
def connected(scheduler: str) -> Iterator[Cluster]:
    """Connect to the scheduler of a cluster; waiting tasks are cancelled at the end.

    Args:
        scheduler: address of the scheduler, or its scheduler file.

    Raises:
        ImportError: dask.distributed is not installed.
        OSError, ValueError: no scheduler answers, or the file is not a scheduler file.
    """
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError:
        raise ImportError(
            '--scheduler needs dask.distributed: pip install "attncalc[cluster]"'
        ) from None

    class OneTry(Client):
        def start(self, **options: Any) -> None:
            try:
                super().start(**options)
            except Exception:
                self.status = "closed"  # otherwise closing it would wait for an answer again
                raise

    address = _address(scheduler)
    with _quiet_library():
        try:
            get_address_host_port(address)  # with an invalid address, the client never ends
            client = OneTry(address, timeout=ANSWER, set_as_default=False)
        except Exception as error:  # another kind of server may send any answer
            raise OSError(
                f"--scheduler {scheduler}: no dask scheduler answers at {address} "
                f"({one_line(error, longest=150)}): start `dask scheduler`, mend "
                "the address, or install the scheduler's version of distributed"
            ) from None
        with client:
            yield Cluster(client, scheduler)


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, read from its file if there is one."""
    path = Path(scheduler)
    if not path.is_file():
        if path.suffix == ".json":
            raise FileNotFoundError(
                f"no such file: {scheduler}: start `dask scheduler --scheduler-file {scheduler}`"
            )
        return scheduler
    try:
        address = json.loads(path.read_text())["address"]
    except (ValueError, KeyError, TypeError):
        address = None
    if not isinstance(address, str):
        raise ValueError(f"{scheduler} is no file of a dask scheduler: it names no address")
    return address


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Silence the log of the library; the command reports errors in one line."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    loggers = [logging.getLogger(name) for name in {"distributed", *names}]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class _Task:
    """Work of one command, as it is sent to a worker with the number of a shard.

    Attributes:
        job: work to do on structures.
        run: name of this run of the command.
        folder: working directory of the command, from which it may import modules.
    """

    job: Job
    run: str
    folder: str


@dataclass
class Cluster:
    """Workers of a cluster, as seen by the first process.

    Attributes:
        client: connection to the scheduler.
        scheduler: address or file, as given by the user.
        run: name of this run of the command.
    """

    client: Client
    scheduler: str
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def environment(self, job: Job) -> dict[str, Any]:
        """Return the properties of machine and program that results depend on, from a worker.

        Raises:
            RuntimeError: the worker cannot do the job.
        """
        if not self._threads():
            say(f"no workers at {self.scheduler} yet: waiting for them")
        future = self._submit(_environment, self._task(job))
        while not future.done():
            time.sleep(PAUSE)
            self._check()
        what, said = _result(future)
        if what != "done":
            raise RuntimeError(said)
        return said

    def compute(self, job: Job, work: Work, mine: Sequence[int]) -> None:
        """Process shards; the folder has their results and the numbers of processes that died.

        Raises:
            FolderGone: the folder does not exist any more.
            RuntimeError: there was an error on a worker, or the scheduler is lost.
            KeyboardInterrupt: Ctrl-C; the message says how much is done.
        """
        workers.process_rounds(work, mine, partial(self._rounds, job, work))
        limit = time.monotonic() + VISIBLE
        while (not_done := work.not_done(mine)) and time.monotonic() < limit:
            time.sleep(PAUSE)
        if not_done:
            raise RuntimeError(
                f"{len(not_done)} of {len(mine)} shards, which the workers of {self.scheduler} "
                f"have done, are not in {work.folder}: their machines must share this folder"
            )

    def _rounds(self, job: Job, work: Work, left: set[int]) -> Iterator[set[int]]:
        """Process shards; yield repeatedly those that are left."""
        task, far = self._task(job), _from_anywhere(work)
        waiting = [(0.0, k) for k in sorted(left)]  # a heap: earliest time, shard
        futures: dict[int, Future] = {}
        killed: Counter[int] = Counter()
        window, next_check = FEW, 0.0
        while left:
            self._check()
            now = time.monotonic()
            if now > next_check:
                window = FEW * max(1, self._threads())
                if next_check:  # shards that other commands have done
                    left.intersection_update(work.not_done(sorted(left)))
                next_check = now + max(RECHECK, 20 * (time.monotonic() - now))
            while waiting and waiting[0][0] <= now and len(futures) < window:
                _, k = heapq.heappop(waiting)
                if k in left:
                    only = replace(far, shards=far.shards.alone(k))
                    futures[k] = self._submit(_process_shard, task, only, k)
            time.sleep(PAUSE / 4)
            for k, future in [(k, future) for k, future in futures.items() if future.done()]:
                del futures[k]
                what, said = _result(future)
                if what == "done":
                    left.discard(k)
                elif what == "error" or (what == "gone" and work.folder.exists()):
                    raise RuntimeError(said)
                elif what == "gone":
                    raise FolderGone
                else:
                    killed[k] += what in ("killed", "again")
                    if killed[k] > ATTEMPTS:  # the shard was given up before: it is not the cause
                        raise RuntimeError(said)
                    pause = BUSY if what in ("busy", "lost") else 0.0
                    heapq.heappush(waiting, (time.monotonic() + pause, k))
            yield left

    def _task(self, job: Job) -> _Task:
        return _Task(job, self.run, str(Path.cwd()))

    def _submit(self, function: Any, *arguments: Any) -> Future:
        key = f"attncalc-{self.run}-{secrets.token_hex(8)}"
        return self.client.submit(function, *arguments, key=key, pure=False)

    def _threads(self) -> int:
        """Return the number of threads of all workers; 0 if the scheduler does not answer."""
        with suppress(OSError):
            return sum(self.client.nthreads().values())
        return 0

    def _check(self) -> None:
        """Raise an error if the scheduler is lost; the client tries to reconnect by itself."""
        if self.client.status in ("closing", "closed"):
            raise RuntimeError(f"the scheduler at {self.scheduler} is lost")


def _from_anywhere(work: Work) -> Work:
    """Return the work with absolute paths, for processes with another working directory."""
    source = replace(work.shards, path=work.shards.path.absolute())
    return Work(source, work.target.absolute())


def _result(future: Future) -> tuple[str, Any]:
    """Return the outcome of a finished task: as `_process_shard`, or "killed" or "lost"."""
    from distributed.client import CancelledError
    from distributed.scheduler import KilledWorker

    if future.cancelled():  # the scheduler was restarted
        return "lost", ""
    try:
        return future.result(timeout=ANSWER)
    except KilledWorker as error:
        return "killed", f"workers died: {one_line(error, longest=200)}"
    except ImportError as error:
        return "error", f"a worker cannot import attncalc ({one_line(error)}): install it there"
    except (
        OSError,
        CancelledError,
    ):  # an error of the network: files show which shards are done
        return "lost", ""


# the functions below are called on workers

_starting = threading.Lock()
# a model for each run and thread, and the time of its last use
_solvers: dict[tuple[str, int], tuple[Solver, float]] = {}
# notes of the shards that this process is processing
_at: set[Path] = set()


def _environment(task: _Task) -> tuple[str, Any]:
    """Return "done" and `Job.environment` of a worker, or "error" and its message."""
    try:
        with _starting, _modules_read_anew(task.folder), silently():
            return "done", task.job.environment()
    except (*EXPECTED, MemoryError) as error:
        return "error", f"worker {_address_here()}: {one_line(error)}"


def _process_shard(task: _Task, work: Work, shard: int) -> tuple[str, str]:
    """Process a shard on a worker, and count the death of a process that had it before.

    A process writes a note for the shard that it is processing. A note of this run for a shard that
    is not locked was left by a process that has died. A process that is told to end removes its
    notes.

    Returns:
        "done"; "busy" if another process has the shard; "again" after a bug, which counts as a
        death; "gone" if there is no folder; or "error"; and a message.
    """
    note = work.file(shard, ".at")

    def begin() -> None:
        if _content(note) == task.run:
            time.sleep(workers.GRACE)  # if all processes are being killed, this one is too
            workers.count_attempt(work, shard)
        _at.add(note)
        write_atomically(note, task.run.encode())

    try:
        solve = _solver(task, work)
        is_ours = workers.process_shard(work, shard, solve, begin)
        if is_ours:
            note.unlink(missing_ok=True)
        return ("done" if is_ours else "busy"), ""
    except (FolderGone, *EXPECTED, MemoryError) as error:
        if not work.folder.exists():
            return (
                "gone",
                f"worker {_address_here()} does not find {work.folder}: share it",
            )
        if note in _at:
            note.unlink(missing_ok=True)
        return "error", f"worker {_address_here()}: {one_line(error)}"
    except Exception as error:
        if note not in _at:
            raise
        log.exception("shard %d", shard)
        note.unlink(missing_ok=True)
        workers.count_attempt(work, shard, bug := bug_in_one_line(error))
        return "again", f"worker {_address_here()}: {bug}"
    finally:
        _at.discard(note)


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _address_here() -> str:
    from distributed import get_worker

    return get_worker().address


def _solver(task: _Task, work: Work) -> Solver:
    """Return the solver of this thread, with the model in memory.

    Raises:
        FolderGone: the folder does not exist.
        ValueError: the folder belongs to work with another model or device.
    """
    key, now = (task.run, threading.get_ident()), time.monotonic()
    with _starting:
        for other in [*_solvers]:
            if other != key and now - _solvers[other][1] > IDLE:
                del _solvers[other]
        if key in _solvers:
            solver = _solvers[key][0]
        else:
            _note_graceful_shutdown()
            with _modules_read_anew(task.folder), silently():
                work.open_folder({**task.job.identity(), **task.job.environment()}, new=False)
                solver = task.job.start()
        _solvers[key] = solver, now
    return solver


@contextmanager
def _modules_read_anew(folder: str) -> Iterator[None]:
    """Forget, at the end, modules of a folder that are imported in the block.

    A worker lives longer than a command, and the next command may use another module of this name.
    """
    before = {name.partition(".")[0] for name in sys.modules}
    importlib.invalidate_caches()
    try:
        yield
    finally:
        new = {name.partition(".")[0] for name in sys.modules} - before
        ours = {
            name for name in new if (spec := PathFinder.find_spec(name, [folder])) and spec.origin
        }
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]


class _GracefulShutdown:
    """Hook of a worker that is told to end, so that its shards are not blamed."""

    def teardown(self, worker: Any) -> None:
        """Remove the notes of this process."""
        _remove_notes()


def _note_graceful_shutdown() -> None:
    """Make this worker remove its notes when it is told to end."""
    from distributed import get_worker

    plugins: dict[str, Any] = get_worker().plugins
    if "attncalc" not in plugins:
        plugins["attncalc"] = _GracefulShutdown()
        atexit.register(_remove_notes)


def _remove_notes() -> None:
    for note in list(_at):
        note.unlink(missing_ok=True)
