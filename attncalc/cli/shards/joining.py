"""Joining of the results of all shards, and the report about them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from attncalc.cli.errors import OutsideTraining
from attncalc.cli.output import overwrites, report_json, say, warn
from attncalc.cli.shards.results import JOINING, FolderGone, Work, failed_of
from attncalc.cli.shards.workers import PAUSE
from attncalc.files import FileLock, replacing, write_atomically

# numbers of structures in the report
COUNTED = ("structures", "failed", "unfinished", "outside", "broken", "ignored")
# numbers of structures; numbers of structures with a warning, by warning
Counts = tuple[Counter[str], Counter[str]]


def gather_results(work: Work, join: Callable[[Work], Counts | None]) -> Counts | None:
    """Join the results of all shards, and remove the shards.

    Raises:
        FolderGone: another process has done it.
        ValueError: shards are missing.
    """
    every = range(len(work.shards))
    with _waiting_lock(work.target):
        if not_done := work.not_done(every):
            raise ValueError(
                f"{len(not_done)} of {len(every)} shards are not done, of structures "
                f"{work.shards.structures(not_done[0]).start} and following: run --shard for them "
                "again"
            )
        try:
            counts = join(work)
        except FileNotFoundError:  # without locks, another process may do the same
            if work.folder.exists():
                raise
            raise FolderGone from None
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


def join_structures(work: Work) -> Counts:
    """Join the files of all shards."""
    every, counts, ignored = range(len(work.shards)), Counter[str](), Counter[str]()
    for row in work.reports():
        counts["structures"] += 1
        counts["failed"] += "error" in row
        counts["unfinished"] += row.get("unfinished", False)
        counts["outside"] += row.get("outside", False)
        counts["broken"] += bool(row.get("broken_bonds"))
        if what := row.get("ignored"):
            counts["ignored"] += 1
            ignored[what] += 1
    write_atomically(work.folder / JOINING, b"")
    if counts["failed"]:
        _concatenate([work.file(k, ".failed.xyz") for k in every], work.failed)
    elif overwrites():  # the file of an earlier run would seem to belong to this one
        work.failed.unlink(missing_ok=True)
    _concatenate([work.file(k, ".xyz") for k in every], work.target)
    return counts, ignored


def report_counts(target: Path, counts: Counter[str], ignored: Counter[str]) -> None:
    """Print the numbers of structures; raise an error if some failed or are outside."""
    n, failed = counts["structures"], failed_of(target)
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


def report_done(work: Work) -> None:
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


def _concatenate(parts: Sequence[Path], target: Path) -> None:
    with replacing(target) as new, open(new, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined)
