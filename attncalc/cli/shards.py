"""Many structures, shard by shard: in processes, an array of jobs or a cluster, after any kill.

Each shard of the input gives files in OUTPUT.parts, of which the last, its report, is written when
the others are there: a shard that has one is done. What a shard gives does not depend on who works
it off, so that the output is the same for any number of workers.
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
from typing import Any, Protocol, TypeVar

import click
from ase import Atoms
from ase.io import write

from attncalc.cli.errors import EXPECTED, OutsideTraining
from attncalc.cli.output import output_file, overwrites, report_json, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.data.shards import Frame, Shards, find_shards
from attncalc.files import FileLock, NoSpaceLeft, replacing, write_atomically
from attncalc.text import one_line

# structures of a shard: what a kill may cost, and what one neighbour list and batch share
STRUCTURES = 64
ENDINGS = (".xyz", ".extxyz")
# shards of one folder
SHARDS = 1000
# s between two looks at the processes, and at what other commands have done
PAUSE, LOOK = 0.2, 5.0
# s after the end of a process, in which we too are killed where all are
GRACE = 1.0
# processes that a shard may kill
ATTEMPTS = 2
# file that is there from when the output is begun
JOINING = "joining"
# numbers of structures in the report
COUNTED = ("structures", "failed", "unfinished", "outside", "ignored")

Command = TypeVar("Command", bound=Callable[..., Any])
Outcome = tuple[Atoms | None, dict[str, Any]]
# numbers of structures; of how many something is not read, by what
_Counts = tuple[Counter[str], Counter[str]]


class Job(Protocol):
    """Work on structures; it travels to other processes."""

    def identity(self) -> dict[str, Any]:
        """All that the result depends on, the input and the machine aside."""

    def place(self) -> dict[str, Any]:
        """Return what it depends on of machine and program; checked before the work."""

    def start(self) -> Solver:
        """Return the function that does it, with the model in memory."""


class Solver(Protocol):
    """Does the work on some structures."""

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Structures with results, or None; and numbers for the report, "error" if it is None."""


class Gone(Exception):
    """There is no folder of shards: another process has put them together, if there was one."""


@dataclass(frozen=True)
class Work:
    """Shards of a file, and where their results go."""

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
        """Return what the shards are of, see `claim`."""
        return json.loads((self.folder / "plan.json").read_text())

    def said(self) -> Iterator[dict[str, Any]]:
        """Yield what was said of each structure, in order."""
        for k in range(len(self.shards)):
            yield from json.loads(self.file(k, ".json").read_text())

    def file(self, shard: int, ending: str) -> Path:
        """Return a file of a shard, in a folder that many writings can list again and again."""
        return self.folder / f"{shard // SHARDS:04d}" / f"{shard:06d}{ending}"

    def is_done(self, shard: int) -> bool:
        """Return True if a shard is done."""
        return self.file(shard, ".json").exists()

    def lacking(self, shards: Sequence[int]) -> list[int]:
        """Return those of the shards that are not done.

        Raises:
            Gone: nobody knows.
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
        """Make the folder, or see that it is of the same work.

        Args:
            identity: of the work.
            new: whether the folder may be made.

        Returns:
            Whether it was made.

        Raises:
            ValueError: it is of another work.
            Gone: there is none.
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
        """Make the folder with its plan, unless another process was faster."""
        folder = self._hidden()
        folder.mkdir()
        try:
            write_atomically(folder / "plan.json", json.dumps(plan).encode())
            folder.rename(self.folder)  # refused where a folder with a plan is there
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
        """Remove the folder, under another name: what a kill leaves is no work to go on with."""
        folder = self._hidden()
        with suppress(FileNotFoundError):  # without locks, another process may do the same
            self.folder.rename(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _hidden(self) -> Path:
        """A new name, as of an unfinished output: whoever writes it next removes what is left."""
        return self.target.with_name(f".{self.target.name}.{secrets.randbelow(10**9)}.part")


def _folder(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _failed(target: Path) -> Path:
    return target.with_name(f"{target.stem}.failed{target.suffix}")


def output_of_shards(source: Path, target: Path) -> Path:
    """Return the output, if it and the file of what fails may be written.

    Those that exist may if shards are there whose output was being written when it was killed.

    Raises:
        ValueError: the second is the input.
        FileExistsError: one exists, and there is no --overwrite.
        FileNotFoundError, PermissionError: their folder cannot be written to.
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
    """Refuse an output that is being written in shards, where the work is not for these.

    Raises:
        FileExistsError: the folder of its shards is there.
    """
    if (folder := _folder(target)).exists():
        raise FileExistsError(
            f"{folder} holds an unfinished run with --workers, --shard or --scheduler: give the "
            "same option to continue it, remove the folder, or choose another name"
        )


def many_options(command: Command) -> Command:
    """Add the options --workers, --shard, --gather and --scheduler."""
    for option in (
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Process the shards on the workers of a dask.distributed cluster, which share the "
            "folder of the output: tcp://HOST:8786, or the scheduler's file (JSON). Each worker "
            "thread uses --threads threads (1).",
        ),
        click.option(
            "--gather",
            is_flag=True,
            help="Join the results of all --shard parts, or list the parts that are missing.",
        ),
        click.option(
            "--shard",
            metavar="K/N",
            help="Process part K of N (1 to N) and store the result in a folder beside the "
            "output, *.parts: for job arrays. Parts may run at any time and on any machine that "
            "shares the folder.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Number of processes; each uses --threads threads (1). Results and their order "
            "are those of --workers 1.",
        ),
    ):
        command = option(command)
    return command


def sort_out(
    frames: Sequence[Frame], take: Callable[[Frame], Atoms]
) -> tuple[list[Outcome], dict[int, Atoms]]:
    """Return an outcome of each frame, with what is wrong with it, and structures without fault.

    Args:
        frames: of a shard.
        take: makes a structure of a frame, or refuses it.
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
    """Work off shards, or a part of them, or put the parts together.

    Args:
        job: what to do with structures.
        source: a file of extended XYZ, or shards.
        target: the output; parts stand beside it.
        workers, shard, gather, scheduler: options of `many_options`.
        join: puts done shards together; None where structures of extended XYZ come out.

    Raises:
        ValueError, OSError: an option or a file is impossible, shards lack, no scheduler answers.
        ImportError: dask.distributed is missing.
        RuntimeError: a process met an error, or ended before its shards were done; with `join`,
            another command was faster.
        KeyboardInterrupt: with words on how much is done.
        click.ClickException: structures failed, or are outside the training; all is written.
    """
    for path in (source, target) if isinstance(source, Path) else ():
        if path.suffix not in ENDINGS:
            raise ValueError(
                f"{path.name}: --workers, --shard and --scheduler read and write .xyz and .extxyz"
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
            if made and _stamp(target) not in (None, before):  # written while we looked
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
    """Return numbers that change where a file is written anew; None where there is none."""
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
    """A process that works off shards, as the first process sees it.

    Attributes:
        process: the process.
        at: the shard that it is at.
        error: what it said before it ended.
        bug: the exception that nobody expects, which ended it.
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
        """Return the shards that it has done since the last time."""
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
        """Return True if its shard killed it: by a bug, or as too large for the memory.

        Those who end a job send it SIGTERM, which says nothing of the shard.
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
    """Work off shards in processes, which join the pool; yields again and again what is left."""
    look = time.monotonic() + LOOK
    pool += [_Worker(job, work, mine) for _ in range(min(workers, len(left)))]
    goes_on = True
    while goes_on:
        time.sleep(PAUSE)
        # asked before what they said is read, so that the last words are
        goes_on = any(worker.process.is_alive() for worker in pool)
        for k, worker in enumerate(pool):
            left.difference_update(worker.listen())
            if worker.error:
                raise RuntimeError(worker.error)
            if worker.has_died():
                time.sleep(GRACE)  # whoever kills all processes comes to us too
                worker.at, shard = None, worker.at
                if (
                    count_attempt(work, shard, worker.bug) <= ATTEMPTS
                ):  # else giving it up kills too
                    pool[k], goes_on = _Worker(job, work, mine), True
        if (began := time.monotonic()) > look:  # what other commands have done
            left.intersection_update(work.lacking(sorted(left)))
            look = time.monotonic() + max(LOOK, 20 * (time.monotonic() - began))
        yield left


def work_through(
    work: Work, mine: Sequence[int], rounds: Callable[[set[int]], Iterator[set[int]]]
) -> None:
    """Work off those shards that are not done, and show how far that is.

    Args:
        work: of all shards.
        mine: shards.
        rounds: works off shards, and yields again and again those that are left.

    Raises:
        KeyboardInterrupt, RuntimeError: with words on how much is done.
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
    """Number of processes that a shard has killed, and the exception of the last one, if any."""
    try:
        number, _, bug = work.file(shard, ".died").read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:
        return 0, ""
    return int(number), bug


def count_attempt(work: Work, shard: int | None, bug: str = "") -> int:
    """Note that a process died at a shard; returns how many have.

    Args:
        work: of all shards.
        shard: its number; None counts nothing.
        bug: the exception that ended the process, in one line.
    """
    if shard is None or work.is_done(shard):
        return 0
    number = _deaths(work, shard)[0] + 1
    write_atomically(work.file(shard, ".died"), f"{number} {bug}".rstrip().encode())
    return number


def _work(job: Job, work: Work, mine: Sequence[int], parent: Connection) -> None:
    """Work off shards that nobody is at until all are done, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends us
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
    """Kind and words of an exception that nobody expects."""
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
        if left and not worked:  # others are at what is left, and may be killed
            time.sleep(PAUSE)


def work_off_shard(work: Work, shard: int, solve: Solver, begin: Callable[[], None]) -> bool:
    """Work off a shard, unless it is done; give it up if it has killed too many processes.

    Args:
        work: of all shards.
        shard: its number.
        solve: does the work.
        begin: called before the work, when nobody else can be at this shard.

    Returns:
        False if another process is at it.
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
            except Exception as error:  # ASE's writer raises whatever it stumbles over
                said = {"error": f"{frame.name}: ASE cannot write it ({one_line(error)})"}
        if "error" in said:
            failed.append(frame.with_error(said["error"]))
        said_of_all.append(said)
    write_atomically(work.file(shard, ".xyz"), "".join(relaxed).encode())
    write_atomically(work.file(shard, ".failed.xyz"), b"".join(failed))
    write_atomically(work.file(shard, ".json"), json.dumps(said_of_all).encode())


def _text(atoms: Atoms) -> str:
    text = StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()


def _gather(work: Work, join: Callable[[Work], _Counts | None]) -> _Counts | None:
    """Put the results of all shards together, and remove the shards.

    Raises:
        Gone: another process has done it.
        ValueError: shards lack.
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
        if what := said.get("ignored"):
            counts["ignored"] += 1
            ignored[what] += 1
    write_atomically(work.folder / JOINING, b"")
    if counts["failed"]:
        _join([work.file(k, ".failed.xyz") for k in every], work.failed)
    elif overwrites():  # that of an earlier run would seem to be of this one
        work.failed.unlink(missing_ok=True)
    _join([work.file(k, ".xyz") for k in every], work.target)
    return counts, ignored


def _report(target: Path, counts: Counter[str], ignored: Counter[str]) -> None:
    """Tell how many structures there are, and end with the status that they deserve."""
    n, failed = counts["structures"], _failed(target)
    for what, times in ignored.items():
        warn(f"{times} of {n} structures: {what}")
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
    """Tell that another command has put the shards together, which has said how many there are."""
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
