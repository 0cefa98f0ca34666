"""A check of HDF5 files that the HDF5 library does not make, and hangs for the want of."""

from __future__ import annotations

import mmap
import os
import struct
from typing import BinaryIO

# How a global heap begins: signature, version 1, three zeros.
_BEGINNING = b"GCOL\x01\0\0\0"
# An object of a heap: index (0 is the free rest), number of references, and size without these.
_OBJECT = struct.Struct("<H6xQ")


def heaps_are_sound(file: BinaryIO) -> bool:
    """Whether the objects of every global heap, where variable texts are kept, fill it.

    Where they do not, the library looks for the next one for ever, deaf to Ctrl-C.
    """
    beginning = file.read(64)
    # what lies beyond the end that the file itself states is nothing to the library
    length = min(_stated_end(beginning), file.seek(0, os.SEEK_END))
    if length == 0:
        return True
    with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
        start = content.find(_BEGINNING)
        while start >= 0:
            if not _is_filled(content, start):
                return False
            start = content.find(_BEGINNING, start + len(_BEGINNING))
    return True


def _stated_end(beginning: bytes) -> int:
    """The end-of-file address of a superblock with addresses of 8 bytes; 0 if it is none."""
    if not beginning.startswith(b"\x89HDF\r\n\x1a\n"):
        return 0
    version = beginning[8:9]
    place = {b"\0": 40, b"\1": 44, b"\2": 28, b"\3": 28}.get(version, 0)
    return int.from_bytes(beginning[place : place + 8], "little") if place else 0


def _is_filled(content: mmap.mmap, start: int) -> bool:
    size = int.from_bytes(content[start + 8 : start + 16], "little")
    at, end = start + 16, start + size
    if end > len(content):
        return False
    while end - at >= _OBJECT.size:
        index, length = _OBJECT.unpack_from(content, at)
        if index == 0:  # its size includes these
            return length == end - at
        at += _OBJECT.size + -(-length // 8) * 8
    return at <= end
