"""Shards: consecutive parts of an extended XYZ file or a data set, read one at a time."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from ase import Atoms

from attncalc.data.extxyz import delimited, parsed


@dataclass(frozen=True)
class Shards:
    """Shards of a file, found by their byte offsets.

    Attributes:
        path: the file.
        size: structures per shard; the last may have fewer.
        n_structures: number of structures in the file.
        starts: byte offset of each shard, and of the end of the last.
        sha256: checksum of the file.
        first: number of the shard that `starts` begins with.
    """

    path: Path
    size: int
    n_structures: int
    starts: tuple[int, ...]
    sha256: str
    first: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def structures(self, shard: int) -> range:
        """Return the numbers of the structures of a shard."""
        return range(self.size * shard, min(self.size * (shard + 1), self.n_structures))

    def alone(self, shard: int) -> Shards:
        """Return a copy with the offsets of one shard only, which is small for any file."""
        at = shard - self.first
        return replace(self, starts=self.starts[at : at + 2], first=shard)

    def read(self, shard: int) -> list[Frame]:
        """Read the structures of a shard.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has changed since its shards were found.
        """
        begin, end = self.alone(shard).starts
        with open(self.path, "rb") as file:
            file.seek(begin)
            # one damaged structure must not spoil the others
            text = file.read(end - begin).decode(errors="surrogateescape")
        numbers = self.structures(shard)
        frames = [Frame(*frame) for frame in delimited(StringIO(text), numbers.start)]
        if len(frames) != len(numbers):
            raise ValueError(f"{self.path.name}: the file has changed")
        return frames


@dataclass(frozen=True)
class Rows(Shards):
    """Shards of a data set that each process reads as a whole; `starts` are structure numbers."""

    def structures(self, shard: int) -> range:
        """Return the numbers of the structures of a shard."""
        return range(*self.alone(shard).starts)

    def read(self, shard: int) -> list[Frame]:
        """Return frames that have a name but no text."""
        return [Frame(f"structure {k}", "", []) for k in self.structures(shard)]


@dataclass(frozen=True)
class Frame:
    """Text of one structure.

    Attributes:
        name: e.g. "structure 7".
        comment: the second line.
        rows: one line per atom.
    """

    name: str
    comment: str
    rows: list[str]

    def atoms(self) -> Atoms:
        """Parse the structure.

        Raises:
            ValueError: it is not valid extended XYZ; the message is one line that begins with its
                name.
        """
        try:
            "".join([self.comment, *self.rows]).encode()
        except UnicodeEncodeError as error:
            byte = ord(error.object[error.start]) & 0xFF
            raise ValueError(f"{self.name}: not UTF-8 text (byte {byte:#x})") from None
        atoms = parsed(self.name, self.comment, self.rows)
        for name in ("error", "broken_bonds"):  # of an earlier run
            atoms.info.pop(name, None)
        return atoms

    def with_error(self, reason: str) -> bytes:
        """Return the text of the structure as in the file, with `error="reason"` in its comment.

        The reason begins with the structure's name, which has its number in the file.
        """
        named = reason if reason.startswith(self.name) else f"{self.name}: {reason}"
        quoted = named.replace("\\", "/").replace('"', "'")
        before = re.sub(r'(?<!\S)error="[^"]*"', "", self.comment).rstrip()
        comment = f'{before} error="{quoted}"'.lstrip()
        rows = "".join(row if row.endswith("\n") else row + "\n" for row in self.rows)
        return f"{len(self.rows)}\n{comment}\n{rows}".encode(errors="surrogateescape")


def find_shards(path: Path, size: int) -> Shards:
    """Find the shards of an (extended) XYZ file by counting lines, without parsing structures.

    Args:
        path: the file.
        size: structures per shard.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds no structures, or one of them is incomplete, see `delimited`.
    """
    starts, k, at = [], 0, 0
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        try:
            for k, _ in enumerate(delimited(file), start=1):
                if (k - 1) % size == 0:
                    starts.append(at)
                at = file.tell()
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    if not k:
        raise ValueError(f"{path.name}: the file holds no structures")
    return Shards(path, size, k, (*starts, at), sha256)
