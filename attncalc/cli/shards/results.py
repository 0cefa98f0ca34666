"""Folder with the results of shards, and the protocols of the work on them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms

from attncalc.cli.output import output_file
from attncalc.data.shards import Frame, Shards
from attncalc.files import NoSpaceLeft, write_atomically

Outcome = tuple[Atoms | None, dict[str, Any]]
# shards per folder
SHARDS = 1000
# files of a shard with its results, besides the report
RESULTS = (".xyz", ".failed.xyz")
# file that exists from the beginning of writing the output
JOINING = "joining"


class Job(Protocol):
    """Work on structures; it is sent to other processes."""

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, except for input and machine."""

    def environment(self) -> dict[str, Any]:
        """Return properties of machine and program that the result depends on, after a check."""

    def start(self) -> Solver:
        """Return the function that does the work, with the model in memory."""


class Solver(Protocol):
    """Function that does the work on some structures."""

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Return structures with results, or None; and facts for the report, or an "error"."""


class FolderGone(Exception):
    """The folder of shards does not exist; another process may have joined and removed it."""


@dataclass(frozen=True)
class Work:
    """Shards of a file, and the output for their results."""

    shards: Shards
    target: Path

    @property
    def folder(self) -> Path:
        """Folder of the results of shards."""
        return folder_of(self.target)

    @property
    def failed(self) -> Path:
        """File of the structures that failed."""
        return failed_of(self.target)

    def plan(self) -> dict[str, Any]:
        """Return the identity of the work in the folder, see `open_folder`."""
        try:
            return json.loads((self.folder / "plan.json").read_text())
        except ValueError:
            raise ValueError(f"{self.folder}: plan.json is damaged: remove this folder") from None

    def reports(self) -> Iterator[dict[str, Any]]:
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

    def not_done(self, shards: Sequence[int]) -> list[int]:
        """Return those of the shards that are not done.

        Raises:
            FolderGone: the folder does not exist.
        """
        there: set[str] = set()
        for number in {k // SHARDS for k in shards}:
            with suppress(FileNotFoundError):
                there.update(os.listdir(self.folder / f"{number:04d}"))
        left = [k for k in shards if self.file(k, ".json").name not in there]
        if left and not self.folder.exists():
            raise FolderGone
        return left

    def open_folder(self, identity: dict[str, Any], *, new: bool) -> bool:
        """Create the folder, or check that it belongs to the same work.

        Args:
            identity: identity of the work.
            new: True if the folder may be created.

        Returns:
            True if the folder was created.

        Raises:
            ValueError: the folder belongs to other work.
            FolderGone: the folder does not exist.
        """
        found = {"input": self.shards.sha256, "shard": self.shards.size, **identity}
        made = new and not self.folder.exists() and self._make(found)
        try:
            before = self.plan()
        except FileNotFoundError:
            if not self.folder.exists():
                raise FolderGone from None
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


def folder_of(target: Path) -> Path:
    """Return the folder of the results of shards of an output."""
    return target.with_name(f"{target.name}.parts")


def failed_of(target: Path) -> Path:
    """Return the file of the structures of an output that failed."""
    return target.with_name(f"{target.stem}.failed{target.suffix}")


def output_of_shards(source: Path, target: Path) -> Path:
    """Return the output, if it and the file for failed structures may be written.

    Existing files are accepted if a process was killed while joining shards to them.

    Raises:
        ValueError: the file for failed structures is the input.
        FileExistsError: a file exists, and --overwrite is not given.
        FileNotFoundError, PermissionError: the folder cannot be written to.
    """
    failed = failed_of(target)
    if failed.exists() and failed.samefile(source):
        raise ValueError(
            f"{failed}, for structures that fail, is the input: name another output with -o"
        )
    if not (folder_of(target) / JOINING).exists():
        output_file(failed)
        output_file(target)
    return target


def refuse_unfinished(target: Path) -> None:
    """Refuse an output that is being made in shards, for a command without shards.

    Raises:
        FileExistsError: the folder of the shards exists.
    """
    if (folder := folder_of(target)).exists():
        raise FileExistsError(
            f"{folder} holds an unfinished run with --workers, --shard or --scheduler: give the "
            "same option to continue it, remove the folder, or choose another name"
        )
