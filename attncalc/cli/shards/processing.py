"""Options of commands that process many structures, and their main function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
from ase import Atoms

from attncalc.cli.output import report_json, say, together
from attncalc.cli.shards.joining import (
    Counts,
    gather_results,
    join_structures,
    report_counts,
    report_done,
)
from attncalc.cli.shards.results import JOINING, FolderGone, Job, Outcome, Work, folder_of
from attncalc.cli.shards.workers import compute_in_processes
from attncalc.data.shards import Frame, Shards, find_shards
from attncalc.text import EXPECTED, one_line

# structures per shard: a kill may cost this many, and they share batches
STRUCTURES = 64
ENDINGS = (".xyz", ".extxyz")
shard_options = together(
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


def parse_frames(
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


def process_shards(
    job: Job,
    source: Path | Shards,
    target: Path,
    *,
    workers: int | None,
    shard: str | None,
    gather: bool,
    scheduler: str | None = None,
    join: Callable[[Work], Counts | None] | None = None,
) -> None:
    """Process all shards or a part of them, or join the results of parts.

    Args:
        job: work to do on structures.
        source: a file of extended XYZ, or shards.
        target: the output; parts are stored beside it.
        workers, shard, gather, scheduler: options of `shard_options`.
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
    before = None if (folder_of(target) / JOINING).exists() else _stamp(target)
    with ExitStack() as opened:
        environment: Callable[[], dict[str, Any]] = job.environment
        compute: Callable[[Job, Work, Sequence[int]], None]
        compute = partial(compute_in_processes, workers=workers or 1)
        if scheduler is not None:
            from attncalc.cli.cluster import connected

            cluster = opened.enter_context(connected(scheduler))
            environment, compute = partial(cluster.environment, job), cluster.compute
        identity = job.identity() if gather else {**job.identity(), **environment()}
        found = find_shards(source, STRUCTURES) if isinstance(source, Path) else source
        work = Work(found, target)
        mine = range(len(work.shards))[part::n_parts]
        try:
            made = work.open_folder(identity, new=not gather)
            if made and _stamp(target) not in (None, before):  # written meanwhile by another one
                work.remove()
                raise FolderGone
            if not gather:
                compute(job, work, mine)
            if shard:
                n = len(work.shards)
                say(f"part {shard}: {len(mine)} of {n} shards are in {work.folder}")
                report_json(
                    {"part": shard, "shards": len(mine), "of": n, "folder": str(work.folder)}
                )
                return
            counts = gather_results(work, join or join_structures)
        except FolderGone:
            is_old = _stamp(target) in (None, before)
            if is_old and (gather or join is None):
                raise ValueError(f"no folder {work.folder}: process its shards first") from None
            if join is not None:
                said = f"another command has joined the shards of {target} and reported them"
                raise RuntimeError(said) from None
            report_done(work)
            return
    if counts is not None:
        report_counts(target, *counts)


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
