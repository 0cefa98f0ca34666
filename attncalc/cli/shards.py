"""Many structures, shard by shard: in several processes, in an array of jobs, after any kill.

Each shard of the input gives files in OUTPUT.parts, of which the last, its report, is written when
the others are there: a shard that has one is done. What a shard gives does not depend on who works
it off, so that the output is the same for any number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import torch
from ase import Atoms
from ase.io import write

from attncalc.cli.errors import OutsideTraining
from attncalc.cli.output import report_json, say
from attncalc.cli.progress import progress_bar
from attncalc.data.shards import Frame, Shards, find_shards
from attncalc.files import FileLock, replacing, write_atomically

# structures of a shard: what a kill may cost, and what one neighbour list and batch share
STRUCTURES = 64
ENDINGS = (".xyz", ".extxyz")
# s between two looks at what is done
PAUSE = 0.2

Command = TypeVar("Command", bound=Callable[..., Any])
Outcome = tuple[Atoms | None, dict[str, Any]]


class Job(Protocol):
    """What is done to structures. It travels to other processes."""

    def identity(self) -> dict[str, Any]:
        """All that the result depends on, the input aside; checked before the work."""

    def start(self) -> Solver:
        """Return the function that does it, with the model in memory."""


class Solver(Protocol):
    """Does the work on some structures."""

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Structures with results, or None; and numbers for the report, "error" if it is None."""


@dataclass(frozen=True)
class Work:
    """Shards of a file, and where their results go."""

    shards: Shards
    target: Path

    @property
    def folder(self) -> Path:
        """Folder of the results of shards."""
        return self.target.with_name(f"{self.target.name}.parts")

    def file(self, shard: int, ending: str) -> Path:
        """Return a file of a shard."""
        return self.folder / f"{shard:06d}{ending}"

    def lacking(self, shards: Sequence[int]) -> list[int]:
        """Return those of the shards that are not done."""
        there = set(os.listdir(self.folder))
        return [k for k in shards if self.file(k, ".json").name not in there]

    def claim(self, identity: dict[str, Any]) -> None:
        """Make the folder, or see that it is of the same work.

        Raises:
            ValueError: it is not.
        """
        plan = self.folder / "plan.json"
        found = {"input": self.shards.sha256, "shard": self.shards.size, **identity}
        self.folder.mkdir(exist_ok=True)
        if plan.exists():
            before = json.loads(plan.read_text())
            if other := [name for name in found if before.get(name) != found[name]]:
                raise ValueError(
                    f"{self.folder} holds shards of another {other[0]}: finish that work, remove "
                    "the folder, or name another output"
                )
            return
        write_atomically(plan, json.dumps(found).encode())


def many_options(command: Command) -> Command:
    """Add the options --workers, --shard and --gather."""
    for option in (
        click.option(
            "--gather",
            is_flag=True,
            help="Put what the shards of --shard gave together; says which ones lack.",
        ),
        click.option(
            "--shard",
            metavar="K/N",
            help="Work off part K of N, 1 to N, and leave it in OUTPUT.parts: for an array of "
            "jobs. Parts may run at any time and on any machine that shares the folder.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Processes; each takes --threads threads (1). Numbers and order are those of "
            "--workers 1. Input and output are extended XYZ, which is never read as a whole.",
        ),
    ):
        command = option(command)
    return command


def work_off(
    job: Job,
    source: Path,
    target: Path,
    *,
    workers: int | None,
    shard: str | None,
    gather: bool,
) -> None:
    """Work off a file, or a part of it, or put the parts together.

    Raises:
        ValueError, OSError: an option or a file is impossible, or shards lack.
        RuntimeError: a process ended before its shards were done.
        KeyboardInterrupt: with words on how much is done.
        click.ClickException: structures failed, or end outside the training; all is written.
    """
    for path in (source, target):
        if path.suffix not in ENDINGS:
            raise ValueError(f"{path.name}: --workers and --shard read and write .xyz and .extxyz")
    if gather and (shard or workers):
        raise ValueError("--gather stands alone: it computes nothing")
    part, n_parts = _part(shard)
    work = Work(find_shards(source, STRUCTURES), target)
    work.claim(job.identity())
    mine = range(len(work.shards))[part::n_parts]
    if not gather:
        _compute(job, work, mine, workers or 1)
    if shard:
        say(f"part {shard}: {len(mine)} of {len(work.shards)} shards are in {work.folder}")
        return
    _report(work, target)


def _part(shard: str | None) -> tuple[int, int]:
    """Return the number of a part, from 0, and the number of parts."""
    if shard is None:
        return 0, 1
    k, _, n = shard.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ValueError(f"--shard must be K/N with K from 1 to N, got {shard!r}")
    return int(k) - 1, int(n)


def _compute(job: Job, work: Work, mine: Sequence[int], workers: int) -> None:
    if not work.lacking(mine):
        return
    context = multiprocessing.get_context("spawn")
    pool = [
        context.Process(target=_work, args=(job, work, mine), daemon=True)
        for _ in range(min(workers, len(mine)))
    ]
    n = sum(len(work.shards.structures(k)) for k in mine)
    try:
        for process in pool:
            process.start()
        with progress_bar(n, "structure") as bar:
            while any(process.is_alive() for process in pool):
                time.sleep(PAUSE)
                left = sum(len(work.shards.structures(k)) for k in work.lacking(mine))
                bar.update(n - left - bar.n)
    except KeyboardInterrupt:
        for process in pool:
            process.terminate()
        done = len(mine) - len(work.lacking(mine))
        raise KeyboardInterrupt(
            f"{done} of {len(mine)} shards are done: the same command goes on"
        ) from None
    if lacking := work.lacking(mine):
        status = max((abs(process.exitcode or 0) for process in pool), default=0)
        raise RuntimeError(
            f"{len(lacking)} of {len(mine)} shards are not done, since all processes ended (status "
            f"{status}): the same command goes on"
        )


def _work(job: Job, work: Work, mine: Sequence[int]) -> None:
    """Work off shards that nobody is at until all are done, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends us
    parent = multiprocessing.parent_process()
    solve = job.start()
    while left := work.lacking(mine):
        worked = False
        for k in left:
            if parent is not None and not parent.is_alive():
                return
            try:
                lock = FileLock(work.file(k, ".json"))
            except BlockingIOError:
                continue
            with lock:
                if work.lacking([k]):
                    _write(work, k, solve)
                    worked = True
        if not worked:  # others are at what is left, and may be killed
            time.sleep(PAUSE)


def _write(work: Work, shard: int, solve: Solver) -> None:
    frames = work.shards.read(shard)
    outcomes = solve(frames, work.shards.structures(shard).start)
    found = [atoms for atoms, _ in outcomes if atoms is not None]
    with replacing(work.file(shard, ".xyz"), in_folder=True) as new:
        new.touch()
        if found:
            write(new, found, format="extxyz")
    pairs = zip(frames, outcomes, strict=True)
    failed = [frame.with_error(said["error"]) for frame, (_, said) in pairs if "error" in said]
    write_atomically(work.file(shard, ".failed.xyz"), "".join(failed).encode())
    report = json.dumps([said for _, said in outcomes])
    write_atomically(work.file(shard, ".json"), report.encode())


def _reports(work: Work) -> Iterator[dict[str, Any]]:
    for k in range(len(work.shards)):
        yield from json.loads(work.file(k, ".json").read_text())


def _report(work: Work, target: Path) -> None:
    """Put the results of all shards together, tell how many there are, and remove the shards."""
    every = range(len(work.shards))
    if lacking := work.lacking(every):
        raise ValueError(
            f"{len(lacking)} of {len(every)} shards are not done, of structures "
            f"{work.shards.structures(lacking[0]).start} and following: run --shard for them again"
        )
    failed = target.with_name(f"{target.stem}.failed{target.suffix}")
    counts = {"structures": 0, "failed": 0, "unfinished": 0, "outside": 0}
    for said in _reports(work):
        counts["structures"] += 1
        counts["failed"] += "error" in said
        counts["unfinished"] += said.get("unfinished", False)
        counts["outside"] += said.get("outside", False)
    _join([work.file(k, ".xyz") for k in every], target)
    if counts["failed"]:
        _join([work.file(k, ".failed.xyz") for k in every], failed)
    shutil.rmtree(work.folder)
    n = counts["structures"]
    say(f"wrote {target}: {n - counts['failed']} of {n} structures")
    report_json({**counts, "output": str(target), "failures": str(failed)})
    wrong = []
    if counts["failed"]:
        wrong.append(f"{counts['failed']} of {n} structures failed: see {failed}")
    if counts["unfinished"]:
        wrong.append(f"{counts['unfinished']} of {n} did not converge: increase --steps")
    if counts["outside"]:
        wrong.insert(0, f"{counts['outside']} of {n} end outside the training data")
        raise OutsideTraining("; ".join(wrong))
    if wrong:
        raise click.ClickException("; ".join(wrong))


def _join(parts: Sequence[Path], target: Path) -> None:
    with replacing(target) as new, open(new, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined)


def set_threads_of_worker(threads: int | None) -> None:
    """Let a process take its share of the CPU: one thread, or as many as were asked for."""
    torch.set_num_threads(threads or 1)
