"""Atomic writing of files, and refusal to overwrite existing ones."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# s without a change after which the temporary file of another computer counts as abandoned
ABANDONED_AFTER = 3600.0
# bytes
COPIED_AT_ONCE = 1 << 20
# host in the names of temporary files, before the process id
_HOST = re.sub(r"[^\w-]", "-", platform.node()) or "here"


def refuse_existing(*paths: Path) -> None:
    """Refuse to overwrite files.

    Raises:
        FileExistsError: one of them exists; the message names it.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name, nothing is overwritten")


class NoSpaceLeft(OSError):
    """Error of a full disk, quota or limit on file sizes; the message names the file.

    Args:
        path: the file that could not be written.
        number: `errno` of the error.
        advice: advice at the end of the message.
    """

    def __init__(
        self, path: str | Path, number: int, advice: str = "free some space and try again"
    ):
        super().__init__(number, os.strerror(number), str(path))
        self.path, self.number, self.advice = path, number, advice

    def __str__(self) -> str:
        return f"no space left on the disk for {self.path}{FULL[self.number]}: {self.advice}"


# `errno` if no more can be written -> addition to the message
FULL = {
    errno.ENOSPC: "",
    errno.EDQUOT: " (the quota is used up)",
    errno.EFBIG: " (the largest size of a file is reached, see ulimit -f)",
}


@contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Turn errors of a full disk in the block, for any file, into `NoSpaceLeft` for `path`."""
    try:
        yield
    except NoSpaceLeft:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoSpaceLeft(path, error.errno) from None


@contextmanager
def replacing(path: str | Path, *, in_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; it replaces `path` at the end of the block.

    It is flushed to disk before that. After an error it is removed. Temporary files that killed
    processes have left are removed too.

    Args:
        path: the file to create or replace.
        in_folder: give the temporary file the same name, in a hidden folder.

    Raises:
        NoSpaceLeft: the disk is full.
    """
    path = Path(os.path.realpath(path))  # the file that a symbolic link names, not the link
    # threads may write the same file
    part = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}-{threading.get_ident()}.part")
    remove_abandoned(path)
    _remove(part)  # left by an earlier process with the same id
    try:
        with naming_full_disk(path):
            if in_folder:
                part.mkdir()
            new = part / path.name if in_folder else part
            yield new
            to_disk(new)
            os.replace(new, path)
            folder_to_disk(path.parent)
    finally:
        _remove(part)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file atomically: it has either its old or its complete new content.

    Raises:
        NoSpaceLeft: the disk is full; the old file is still there.
    """
    with replacing(path) as new:
        new.write_bytes(content)


def remove_abandoned(path: Path) -> None:
    """Remove temporary versions of a file whose processes have ended."""
    if sys.platform == "win32":  # no way to find out if a process is alive
        return
    pattern = re.compile(re.escape(f".{path.name}.") + r"(?:([\w-]+)\.)?(\d+)(?:-\d+)?\.part")
    with os.scandir(path.parent) as entries:
        found = [(entry, match) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for entry, match in found:
        # processes of another computer cannot be checked: go by the age of the file
        abandoned = (
            not _is_alive(int(match[2])) if match[1] == _HOST else _age(entry) > ABANDONED_AFTER
        )
        if abandoned:
            _remove(Path(entry.path))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def _age(entry: os.DirEntry[str]) -> float:
    """Return the seconds since the last change of it or its files; 0 if it no longer exists."""
    try:
        inside = os.scandir(entry.path) if entry.is_dir(follow_symlinks=False) else ()
        changes = [one.stat(follow_symlinks=False).st_mtime for one in (entry, *inside)]
        return time.time() - max(changes)
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Flush a file to disk."""
    number = os.open(path, os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def folder_to_disk(folder: Path) -> None:
    """Flush the names in a folder to disk; not possible, and not needed, on Windows."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:  # not supported by some network file systems
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(number)


class Appended:
    """File that grows by whole pieces: a piece that does not fit on the disk is removed again.

    Args:
        path: the file, created if it does not exist.
        size: bytes of an existing file to keep; None keeps all.

    Attributes:
        number: file descriptor; -1 after closing.

    Raises:
        NoSpaceLeft: the disk is full.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        with naming_full_disk(path):
            self.number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self.size = os.fstat(self.number).st_size if size is None else size
        os.ftruncate(self.number, self.size)

    def append(self, piece: bytes) -> None:
        """Append a piece, all of it or nothing.

        Raises:
            NoSpaceLeft: the disk is full.
        """
        left = memoryview(piece)
        os.lseek(self.number, self.size, os.SEEK_SET)
        try:
            with naming_full_disk(self.path):
                while left:
                    left = left[os.write(self.number, left) :]
        except BaseException:
            os.ftruncate(self.number, self.size)
            raise
        self.size += len(piece)

    def to_disk(self) -> None:
        """Flush all pieces to disk.

        Raises:
            NoSpaceLeft: the disk is full.
        """
        with naming_full_disk(self.path):
            os.fsync(self.number)

    def restore(self) -> None:
        """Write the file again if it was removed.

        Raises:
            NoSpaceLeft: the disk is full.
        """
        if self.path.exists():
            return
        with replacing(self.path) as new, open(new, "wb") as copy:
            os.lseek(self.number, 0, os.SEEK_SET)
            while piece := os.read(self.number, COPIED_AT_ONCE):
                copy.write(piece)
        self.close()
        self.number = os.open(self.path, os.O_RDWR | getattr(os, "O_BINARY", 0))

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1
