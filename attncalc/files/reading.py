"""Checks of untrusted files before they are read: kind and size."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

# Compression hardly shrinks coordinates, but zeros a thousandfold. A file that unpacks to more than
# MOST_UNPACKED times its size and more than ALWAYS_UNPACKED bytes is taken for a bomb.
MOST_UNPACKED = 20
ALWAYS_UNPACKED = 1 << 30


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading; refuse pipes, devices and folders without blocking.

    Raises:
        OSError: the file is not regular, or cannot be opened.
    """
    # O_NONBLOCK: do not wait for the writer of a pipe
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise OSError(f"{Path(path).name}: {kind}, nothing is read from it")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_whole(path: str | Path, most: int) -> bytes:
    """Read all of a regular file into memory, safe against later changes of the file.

    Args:
        path: the file.
        most: largest size, bytes.

    Raises:
        OSError: the file is not regular, or cannot be opened.
        ValueError: the file is larger than `most`; the message does not name it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        require_size(size, most)
        return file.read(size)


def require_size(size: int, most: int) -> None:
    """Refuse a file that is too large for its format.

    Raises:
        ValueError: size > most, in bytes; the message does not name the file.
    """
    if size > most:
        raise ValueError(
            f"{_room(size)} is more than any such file has ({_room(most)}): is it another one?"
        )


def _room(size: int) -> str:
    return next(
        (f"{round(size / unit, 1):g} {name}" for unit, name in _UNITS if size >= unit),
        f"{size} bytes",
    )


_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def require_room(n_bytes: int, file_size: int, what: str, *, always: int = ALWAYS_UNPACKED) -> None:
    """Refuse a file whose arrays would fill the memory, before they are unpacked.

    Args:
        n_bytes: size of the unpacked arrays.
        file_size: size of the file, bytes.
        what: beginning of the error message.
        always: unpacked size that is accepted for any file, bytes.

    Raises:
        ValueError: the unpacked arrays are too large for the size of the file.
    """
    if n_bytes > max(always, MOST_UNPACKED * file_size):
        raise ValueError(
            f"{what} {n_bytes / 2**30:.1f} GiB, {n_bytes // max(file_size, 1)} times its size: "
            "this is not plausible for a data set; if it is one, write it without compression"
        )
