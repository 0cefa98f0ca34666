"""Check of heaps in HDF5 files, without which the HDF5 library may hang."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

# First bytes of a global heap: signature, version 1, three zeros.
_BEGINNING = b"GCOL\x01\0\0\0"
# Header of a heap's object: index (0 is free space), number of references, size without header.
_OBJECT = struct.Struct("<H6xQ")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BLOCK = 1 << 20


def largest_text(file: BinaryIO) -> int | None:
    """Return the size [bytes] of the largest object in all global heaps.

    Texts of variable length are stored there. None if the objects of a heap do not fill it: the
    library would search for the next object forever, and ignore Ctrl-C.
    """
    beginning = _at(file, 0, 64)
    size = file.seek(0, os.SEEK_END)
    # the library ignores data beyond the end that the file itself states
    end = min(_stated_end(beginning), size) if beginning.startswith(_SIGNATURE) else size
    largest = 0
    for start in _beginnings(file, end):
        found = _largest_of(file, start, end)
        if found is None:
            return None
        largest = max(largest, found)
    return largest


def _stated_end(beginning: bytes) -> int:
    """Return the end-of-file address of a superblock with 8-byte addresses; 0 for others."""
    version = beginning[8:9]
    place = {b"\0": 40, b"\1": 44, b"\2": 28, b"\3": 28}.get(version, 0)
    return int.from_bytes(beginning[place : place + 8], "little") if place else 0


def _beginnings(file: BinaryIO, end: int) -> Iterator[int]:
    """Yield the positions of heaps.

    The file is not memory-mapped: truncating a mapped file ends the process that reads it.
    """
    at = 0
    while (at := _next_data(file, at)) < end:
        block = _at(file, at, min(_BLOCK, end - at))
        if not block:
            return
        place = block.find(_BEGINNING)
        while place >= 0:
            yield at + place
            place = block.find(_BEGINNING, place + len(_BEGINNING))
        if len(block) < len(_BEGINNING):
            return
        at += len(block) - len(_BEGINNING) + 1  # a beginning may extend over two blocks


def _next_data(file: BinaryIO, at: int) -> int:
    """Return the next position that is not in a hole; sparse files may be a terabyte long."""
    try:
        return os.lseek(file.fileno(), at, os.SEEK_DATA)
    except (AttributeError, ValueError):  # not supported by the system, or not a real file
        return at
    except OSError:  # no more data
        return file.seek(0, os.SEEK_END)


def _largest_of(file: BinaryIO, start: int, end_of_file: int) -> int | None:
    size = int.from_bytes(_at(file, start + 8, 8), "little")
    at, end, largest = start + 16, start + size, 0
    if end > end_of_file:
        return None
    while end - at >= _OBJECT.size:
        index, length = _OBJECT.unpack(_at(file, at, _OBJECT.size))
        if index == 0:  # the size of free space includes its header
            return largest if length == end - at else None
        largest = max(largest, length)
        at += _OBJECT.size + -(-length // 8) * 8
    return largest if at <= end else None


def _at(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)
