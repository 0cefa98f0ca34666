"""Processing of many structures in shards: by processes, job arrays or a cluster; restartable.

The results of each shard of the input are files in OUTPUT.parts. The last of them, its report, is
written when the others are complete, so a shard with a report is done. Results of a shard do not
depend on the process that computes them, so the output is the same for any number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import click
from ase import Atoms
from ase.io import write

from attncalc.cli.errors import OutsideTraining
from attncalc.cli.output import output_file, overwrites, report_json, say, together, warn
from attncalc.cli.progress import progress_bar
from attncalc.data.shards import Frame, Shards, find_shards
from attncalc.files import FileLock, NoSpaceLeft, replacing, write_atomically
from attncalc.text import EXPECTED, one_line

# structures per shard: a kill may cost this many, and they share batches
STRUCTURES = 64
ENDINGS = (".xyz", ".extxyz")
# shards per folder
SHARDS = 1000
# s between two checks of the processes, and of the shards that other commands have done
PAUSE, LOOK = 0.2, 5.0
# s after the death of a process in which this one is killed too, if all are
GRACE = 1.0
# processes that may die at a shard before it is given up
ATTEMPTS = 2
# files of a shard with its results, besides the report
RESULTS = (".xyz", ".failed.xyz")
# file that exists from the beginning of writing the output
JOINING = "joining"
# numbers of structures in the report
COUNTED = ("structures", "failed", "unfinished", "outside", "broken", "ignored")

Outcome = tuple[Atoms | None, dict[str, Any]]
# numbers of structures; numbers of structures with a warning, by warning
_Counts = tuple[Counter[str], Counter[str]]


class Job(Protocol):
    """Work on structures; it is sent to other processes."""

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, except for input and machine."""

    def place(self) -> dict[str, Any]:
        """Return properties of machine and program that the result depends on, after a check."""

    def start(self) -> Solver:
        """Return the function that does the work, with the model in memory."""


class Solver(Protocol):
    """Function that does the work on some structures."""

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Return structures with results, or None; and facts for the report, or an "error"."""


class Gone(Exception):
    """The folder of shards does not exist; another process may have joined and removed it."""


@dataclass(frozen=True)
class Work:
    """Shards of a file, and the output for their results."""

    shards: Shards
    target: Path

    @property
    def folder(self) -> Path:
        """Folder of the results of shards."""
        return _folder(self.target)

    @property
    def failed(self) -> Path:
        """File of the structures that failed."""
        return _failed(self.target)

    def plan(self) -> dict[str, Any]:
        """Return the identity of the work in the folder, see `claim`."""
        try:
            return json.loads((self.folder / "plan.json").read_text())
        except ValueError:
            raise ValueError(f"{self.folder}: plan.json is damaged: remove this folder") from None

    def said(self) -> Iterator[dict[str, Any]]:
        """Yield the facts about each structure from the reports, in order."""
        for k in range(len(self.shards)):
            yield from self._report(k)

    def _report(self, shard: int) -> list[dict[str, Any]]:
        """Return the facts about the structures of a shard; if it is damaged, it is to do again."""
        of_shard = self.shards.structures(shard)
        try:
            report = json.loads(self.file(shard, ".json").read_text())
            sizes = [self.file(shard, ending).stat().st_size for ending in RESULTS]
            if report["sizes"] == sizes and len(report["structures"]) == len(of_shard):
                return list(report["structures"])
        except (ValueError, KeyError, TypeError):
            pass
        except FileNotFoundError:
            if not self.folder.exists():  # another process has joined all shards
                raise
        self.file(shard, ".json").unlink(missing_ok=True)
        raise ValueError(
            f"{self.folder}: the results of structures {of_shard.start} to {of_shard.stop - 1} are "
            "damaged: run the same command again, which computes these anew"
        )

    def file(self, shard: int, ending: str) -> Path:
        """Return a file of a shard, in a folder small enough to be listed often."""
        return self.folder / f"{shard // SHARDS:04d}" / f"{shard:06d}{ending}"

    def is_done(self, shard: int) -> bool:
        """Return True if a shard is done."""
        return self.file(shard, ".json").exists()

    def lacking(self, shards: Sequence[int]) -> list[int]:
        """Return those of the shards that are not done.

        Raises:
            Gone: the folder does not exist.
        """
        there: set[str] = set()
        for number in {k // SHARDS for k in shards}:
            with suppress(FileNotFoundError):
                there.update(os.listdir(self.folder / f"{number:04d}"))
        left = [k for k in shards if self.file(k, ".json").name not in there]
        if left and not self.folder.exists():
            raise Gone
        return left

    def claim(self, identity: dict[str, Any], *, new: bool) -> bool:
        """Create the folder, or check that it belongs to the same work.

        Args:
            identity: identity of the work.
            new: True if the folder may be created.

        Returns:
            True if the folder was created.

        Raises:
            ValueError: the folder belongs to other work.
            Gone: the folder does not exist.
        """
        found = {"input": self.shards.sha256, "shard": self.shards.size, **identity}
        made = new and not self.folder.exists() and self._make(found)
        try:
            before = self.plan()
        except FileNotFoundError:
            if not self.folder.exists():
                raise Gone from None
            raise ValueError(
                f"{self.folder} does not say what its shards are of (no plan.json): remove the "
                "folder, or name another output"
            ) from None
        if other := [name for name in found if before.get(name) != found[name]]:
            raise ValueError(
                f"{self.folder} holds shards of another {other[0]}: finish that work, remove "
                "the folder, or name another output"
            )
        return made

    def _make(self, plan: dict[str, Any]) -> bool:
        """Create the folder with its plan, unless another process was faster."""
        folder = self._hidden()
        folder.mkdir()
        try:
            write_atomically(folder / "plan.json", json.dumps(plan).encode())
            folder.rename(self.folder)  # an error if there is a folder with a plan
            return True
        except NoSpaceLeft:
            raise
        except OSError:
            if not self.folder.exists():
                raise
            return False
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Rename and remove the folder, so that a kill does not leave incomplete work."""
        folder = self._hidden()
        with suppress(FileNotFoundError):  # without locks, another process may do the same
            self.folder.rename(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _hidden(self) -> Path:
        """Return the name of a temporary version of the output, which the next writer removes."""
        return self.target.with_name(f".{self.target.name}.{secrets.randbelow(10**9)}.part")


def _folder(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _failed(target: Path) -> Path:
    return target.with_name(f"{target.stem}.failed{target.suffix}")


def output_of_shards(source: Path, target: Path) -> Path:
    """Return the output, if it and the file for failed structures may be written.

    Existing files are accepted if a process was killed while joining shards to them.

    Raises:
        ValueError: the file for failed structures is the input.
        FileExistsError: a file exists, and --overwrite is not given.
        FileNotFoundError, PermissionError: the folder cannot be written to.
    """
    failed = _failed(target)
    if failed.exists() and failed.samefile(source):
        raise ValueError(
            f"{failed}, for structures that fail, is the input: name another output with -o"
        )
    if not (_folder(target) / JOINING).exists():
        output_file(failed)
        output_file(target)
    return target


def refuse_unfinished(target: Path) -> None:
    """Refuse an output that is being made in shards, for a command without shards.

    Raises:
        FileExistsError: the folder of the shards exists.
    """
    if (folder := _folder(target)).exists():
        raise FileExistsError(
            f"{folder} holds an unfinished run with --workers, --shard or --scheduler: give the "
            "same option to continue it, remove the folder, or choose another name"
        )


many_options = together(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Number of processes, with one thread each, or --threads if the command has it. "
        "Results and their order are those of --workers 1.",
    ),
    click.option(
        "--shard",
        metavar="K/N",
        help="Process part K of N (1 to N) and store the result in a folder beside the "
        "output, *.parts: for job arrays. Parts may run at any time and on any machine that "
        "shares the folder.",
    ),
    click.option(
        "--gather",
        is_flag=True,
        help="Join the results of all --shard parts, or list the parts that are missing.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Process the shards on the workers of a dask.distributed cluster, which share the "
        "folder of the output: tcp://HOST:8786, or the scheduler's file (JSON). Each worker "
        "thread uses one thread, or --threads if the command has it.",
    ),
)


def sort_out(
    frames: Sequence[Frame], take: Callable[[Frame], Atoms]
) -> tuple[list[Outcome], dict[int, Atoms]]:
    """Return an outcome per frame, with its error if any, and number -> structure without errors.

    Args:
        frames: frames of a shard.
        take: makes a structure from a frame, or raises an error.
    """
    outcomes: list[Outcome] = [(None, {}) for _ in frames]
    good: dict[int, Atoms] = {}
    for k, frame in enumerate(frames):
        try:
            good[k] = take(frame)
        except EXPECTED as error:
            outcomes[k] = None, {"error": one_line(error)}
    return outcomes, good


def work_off(
    job: Job,
    source: Path | Shards,
    target: Path,
    *,
    workers: int | None,
    shard: str | None,
    gather: bool,
    scheduler: str | None = None,
    join: Callable[[Work], _Counts | None] | None = None,
) -> None:
    """Process all shards or a part of them, or join the results of parts.

    Args:
        job: work to do on structures.
        source: a file of extended XYZ, or shards.
        target: the output; parts are stored beside it.
        workers, shard, gather, scheduler: options of `many_options`.
        join: joins the results of all shards; None if they are structures in extended XYZ.

    Raises:
        ValueError, OSError: an option or a file is invalid, shards are missing, or no scheduler
            answers.
        ImportError: dask.distributed is missing.
        RuntimeError: there was an error in a process, or processes ended before their shards were
            done; with `join`, another command was faster.
        KeyboardInterrupt: Ctrl-C; the message says how much is done.
        click.ClickException: structures failed, or are outside the training data; all output is
            written.
    """
    for path in (source, target) if isinstance(source, Path) else ():
        if path.suffix not in ENDINGS:
            raise ValueError(
                f"{path.name}: many structures are read from and written to .xyz or .extxyz files; "
                "`ase convert` converts others"
            )
    if scheduler is not None and (shard or workers or gather):
        raise ValueError("--scheduler stands alone: leave out --workers, --shard and --gather")
    if gather and (shard or workers):
        raise ValueError("--gather stands alone: it computes nothing")
    part, n_parts = _part(shard)
    before = None if (_folder(target) / JOINING).exists() else _stamp(target)
    with ExitStack() as opened:
        place: Callable[[], dict[str, Any]] = job.place
        compute: Callable[[Job, Work, Sequence[int]], None]
        compute = partial(_compute, workers=workers or 1)
        if scheduler is not None:
            from attncalc.cli.cluster import connected

            cluster = opened.enter_context(connected(scheduler))
            place, compute = partial(cluster.place, job), cluster.compute
        identity = job.identity() if gather else {**job.identity(), **place()}
        found = find_shards(source, STRUCTURES) if isinstance(source, Path) else source
        work = Work(found, target)
        mine = range(len(work.shards))[part::n_parts]
        try:
            made = work.claim(identity, new=not gather)
            if made and _stamp(target) not in (None, before):  # written meanwhile by another one
                work.remove()
                raise Gone
            if not gather:
                compute(job, work, mine)
            if shard:
                n = len(work.shards)
                say(f"part {shard}: {len(mine)} of {n} shards are in {work.folder}")
                report_json(
                    {"part": shard, "shards": len(mine), "of": n, "folder": str(work.folder)}
                )
                return
            counts = _gather(work, join or _join_all)
        except Gone:
            is_old = _stamp(target) in (None, before)
            if is_old and (gather or join is None):
                raise ValueError(f"no folder {work.folder}: work its shards off first") from None
            if join is not None:
                said = f"another command has put the shards of {target} together, and told of them"
                raise RuntimeError(said) from None
            _say_done(work)
            return
    if counts is not None:
        _report(target, *counts)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return numbers that change when a file is replaced; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _part(shard: str | None) -> tuple[int, int]:
    """Return the number of a part, from 0, and the number of parts."""
    if shard is None:
        return 0, 1
    k, _, n = shard.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ValueError(f"--shard must be K/N with K from 1 to N, got {shard!r}")
    return int(k) - 1, int(n)


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
        self.process = context.Process(target=_work, args=(job, work, mine, theirs), daemon=True)
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


def _compute(job: Job, work: Work, mine: Sequence[int], workers: int) -> None:
    pool: list[_Worker] = []
    try:
        work_through(work, mine, partial(_rounds, job, work, mine, pool, workers))
    finally:
        for worker in pool:
            worker.process.terminate()
    if lacking := work.lacking(mine):
        status = max((abs(worker.process.exitcode or 0) for worker in pool), default=0)
        raise RuntimeError(
            f"{len(lacking)} of {len(mine)} shards are not done, since all processes ended (status "
            f"{status}): the same command goes on"
        )


def _rounds(
    job: Job, work: Work, mine: Sequence[int], pool: list[_Worker], workers: int, left: set[int]
) -> Iterator[set[int]]:
    """Process shards by processes, which join the pool; yield repeatedly the shards left."""
    look = time.monotonic() + LOOK
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
        if (began := time.monotonic()) > look:  # shards that other commands have done
            left.intersection_update(work.lacking(sorted(left)))
            look = time.monotonic() + max(LOOK, 20 * (time.monotonic() - began))
        yield left


def work_through(
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

    if not (left := set(work.lacking(mine))):
        return
    n = structures(left)
    try:
        with progress_bar(n, "structure") as bar:
            for rest in rounds(left):
                bar.update(n - structures(rest) - bar.n)
    except (KeyboardInterrupt, RuntimeError) as error:
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RuntimeError
        done = len(mine) - len(work.lacking(mine))
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


def _work(job: Job, work: Work, mine: Sequence[int], parent: Connection) -> None:
    """Process shards that no other process has, until all are done; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the first process ends this one
    try:
        _work_off_shards(job, work, mine, parent)
    except Gone:
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


def _work_off_shards(job: Job, work: Work, mine: Sequence[int], parent: Connection) -> None:
    process = multiprocessing.parent_process()
    solve = job.start()
    left = work.lacking(mine)
    while left:
        worked = False
        for k in left:
            if process is not None and not process.is_alive():
                return
            if work.is_done(k):
                continue
            if work_off_shard(work, k, solve, partial(parent.send, ("at", k))):
                parent.send(("done", k))
                worked = True
        left = [k for k in left if not work.is_done(k)]
        if left and not work.folder.exists():
            raise Gone
        if left and not worked:  # other processes have the rest, and may be killed
            time.sleep(PAUSE)


def work_off_shard(work: Work, shard: int, solve: Solver, begin: Callable[[], None]) -> bool:
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
            _write(work, shard, partial(_give_up, bug) if number >= ATTEMPTS else solve)
    return True


def _give_up(bug: str, frames: Sequence[Frame], first: int) -> list[Outcome]:
    last = first + len(frames) - 1
    error = (
        f"{ATTEMPTS} processes died at structures {first} to {last}, of which this is one: "
        f"{bug or 'too large for the memory?'}"
    )
    return [(None, {"error": error}) for _ in frames]


def _write(work: Work, shard: int, solve: Solver) -> None:
    frames = work.shards.read(shard)
    relaxed, failed, said_of_all = [], [], []
    outcomes = solve(frames, work.shards.structures(shard).start)
    for frame, (atoms, said) in zip(frames, outcomes, strict=True):
        if atoms is not None:
            try:
                relaxed.append(_text(atoms))
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


def _text(atoms: Atoms) -> str:
    text = StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()


def _gather(work: Work, join: Callable[[Work], _Counts | None]) -> _Counts | None:
    """Join the results of all shards, and remove the shards.

    Raises:
        Gone: another process has done it.
        ValueError: shards are missing.
    """
    every = range(len(work.shards))
    with _waiting_lock(work.target):
        if lacking := work.lacking(every):
            raise ValueError(
                f"{len(lacking)} of {len(every)} shards are not done, of structures "
                f"{work.shards.structures(lacking[0]).start} and following: run --shard for them "
                "again"
            )
        try:
            counts = join(work)
        except FileNotFoundError:  # without locks, another process may do the same
            if work.folder.exists():
                raise
            raise Gone from None
        work.remove()
    return counts


@contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    while True:
        try:
            lock = FileLock(path)
            break
        except BlockingIOError:
            time.sleep(PAUSE)
    with lock:
        yield


def _join_all(work: Work) -> _Counts:
    """Join the files of all shards."""
    every, counts, ignored = range(len(work.shards)), Counter[str](), Counter[str]()
    for said in work.said():
        counts["structures"] += 1
        counts["failed"] += "error" in said
        counts["unfinished"] += said.get("unfinished", False)
        counts["outside"] += said.get("outside", False)
        counts["broken"] += bool(said.get("broken_bonds"))
        if what := said.get("ignored"):
            counts["ignored"] += 1
            ignored[what] += 1
    write_atomically(work.folder / JOINING, b"")
    if counts["failed"]:
        _join([work.file(k, ".failed.xyz") for k in every], work.failed)
    elif overwrites():  # the file of an earlier run would seem to belong to this one
        work.failed.unlink(missing_ok=True)
    _join([work.file(k, ".xyz") for k in every], work.target)
    return counts, ignored


def _report(target: Path, counts: Counter[str], ignored: Counter[str]) -> None:
    """Print the numbers of structures; raise an error if some failed or are outside."""
    n, failed = counts["structures"], _failed(target)
    for what, times in ignored.items():
        warn(f"{times} of {n} structures: {what}")
    if counts["broken"]:
        warn(f"bonds broke in {counts['broken']} of {n} structures: see broken_bonds in {target}")
    say(f"wrote {target}: {n - counts['failed']} of {n} structures")
    report_json(
        {
            **{name: counts[name] for name in COUNTED},
            "output": str(target),
            "failures": str(failed) if counts["failed"] else None,
        }
    )
    wrong = []
    if counts["failed"]:
        wrong.append(f"{counts['failed']} of {n} structures failed: see {failed}")
    if counts["unfinished"]:
        wrong.append(f"{counts['unfinished']} of {n} did not converge: increase --steps")
    if counts["outside"]:
        wrong.insert(0, f"{counts['outside']} of {n} are outside the training data")
        raise OutsideTraining("; ".join(wrong))
    if wrong:
        raise click.ClickException("; ".join(wrong))


def _say_done(work: Work) -> None:
    """Print that another command has joined the shards; it has printed the numbers."""
    failed = work.failed.exists()
    say(f"{work.target} is complete: another command has written it, and says how many failed")
    report_json(
        {
            **dict.fromkeys(COUNTED),
            "structures": work.shards.n_structures,
            "output": str(work.target),
            "failures": str(work.failed) if failed else None,
        }
    )
    if failed:
        raise click.ClickException(f"structures failed: see {work.failed}")


def _join(parts: Sequence[Path], target: Path) -> None:
    with replacing(target) as new, open(new, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined)
