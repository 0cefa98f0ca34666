"""Files of a run of `attncalc md`: none is lost before a new run of that name has begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attncalc.cli.files import refuse_input
from attncalc.cli.output import output_file
from attncalc.files import FileLock


def require_new(path: Path, target: Path) -> None:
    """Refuse a file that exists; mention --resume if it belongs to a run that can continue."""
    try:
        output_file(path)
    except FileExistsError as error:
        if target.suffix == ".h5md" and target.with_suffix(".ckpt").exists():
            raise FileExistsError(f"{error} (or continue with --resume {target})") from None
        raise


@contextmanager
def older_aside(target: Path, source: Path) -> Iterator[None]:
    """Move the files of an earlier run of this name aside, and back if no new run begins.

    Raises:
        BlockingIOError: the earlier run is still going on.
        ValueError: one of them is the input, or the log and checkpoint belong to another run.
    """
    for ending in (".h5md", ".xyz", ".extxyz", ".traj"):
        other = target.with_suffix(ending)
        if not other.exists():
            continue
        if other == target:
            refuse_input(target, source)
        if other != target and not other.samefile(source) and _owns_log(other, target):
            raise ValueError(
                f"{other} has log and picture of the same name: name another output with -o"
            )
    with FileLock(target), FileLock(target.with_suffix(".csv")):
        for path, older in _asides(target):
            if path.exists():
                path.replace(older)
    try:
        yield
    finally:
        if target.exists():  # the new run has begun
            remove_older(target)
        else:
            put_back(target)


def _owns_log(other: Path, target: Path) -> bool:
    """Return True if there is a log beside two files of one name, and it is that of the other."""
    if not target.with_suffix(".csv").exists():
        return False
    if other.suffix == ".h5md" or target.suffix == ".h5md":
        has_run = target.with_suffix(".ckpt").exists()  # only the run of an .h5md has a checkpoint
        return has_run == (other.suffix == ".h5md")
    return True


def _asides(target: Path) -> list[tuple[Path, Path]]:
    """Return the paths of the files of a run, each with that of an older one set aside."""
    paths = [target.with_suffix(ending) for ending in (target.suffix, ".csv", ".ckpt", ".png")]
    return [(path, path.with_name(f".{path.name}.older")) for path in paths]


def put_back(target: Path) -> None:
    """Put back files that were set aside, unless a new run has begun to replace them."""
    if any(path.exists() for path, _ in _asides(target)):
        return
    for path, older in _asides(target):
        if older.exists():
            older.replace(path)


def remove_older(target: Path) -> None:
    """Remove files that were set aside for a new run, which may have been killed since."""
    for _, older in _asides(target):
        older.unlink(missing_ok=True)
