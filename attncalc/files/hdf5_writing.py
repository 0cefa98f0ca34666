"""Writing of HDF5 files on disks that may be full.

HDF5 can neither continue nor close its file after a failed write: it prints an error for every
open object, tries again at the end of the process, and may crash there. So it writes through a
`WritableFile`, which never fails, and the error is raised when HDF5 has closed its file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from attncalc.signals import finished_before_ctrl_c

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE = 1 << 16
# rows per chunk of a written array; reading a structure reads whole chunks
CHUNK_ROWS = 1024


class WritableFile(io.RawIOBase):
    """File object for HDF5: reads and writes bytes at a position.

    After the first write that fails, data are kept in memory instead, from which HDF5 can read them
    until it closes the file.

    Args:
        number: file descriptor, open for reading and writing.

    Attributes:
        problem: error of the first write that failed; None if all succeeded.
        waiting: signals received since the file was opened, see `finished_before_ctrl_c`.
    """

    waiting: Sequence[Any] = ()

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number, self._position = number, 0
        self._end = os.fstat(number).st_size
        self._pages: dict[int, bytearray] = {}  # number of the page: its content
        self.problem: OSError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into a buffer from the position on, and return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._end - self._position))
        if self._pages:
            for page, start, stop, at in self._parts(n):
                view[at : at + stop - start] = self._page(page)[start:stop]
        else:
            view[:n] = self._on_disk(self._position, n)
        self._position += n
        return n

    def write(self, content: Buffer, /) -> int:
        """Write from the position on, and return the number of bytes."""
        view = memoryview(content).cast("B")
        if self.problem is None:
            try:
                os.lseek(self._number, self._position, os.SEEK_SET)
                done = 0
                while done < len(view):
                    done += os.write(self._number, view[done:])
            except OSError as error:
                self.problem = error
        if self.problem is not None:
            for page, start, stop, at in self._parts(len(view)):
                self._page(page)[start:stop] = view[at : at + stop - start]
        self._position += len(view)
        self._end = max(self._end, self._position)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size of the file in bytes; the default is the position."""
        size = self._position if size is None else size
        if self.problem is None:
            try:
                os.ftruncate(self._number, size)
            except OSError as error:
                self.problem = error
        self._end = size
        return size

    def flush(self) -> None:
        """Do nothing: no bytes are buffered."""

    def _parts(self, n: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the next n bytes by pages: number, start and stop in the page, bytes before it."""
        done = 0
        while done < n:
            page, start = divmod(self._position + done, PAGE)
            stop = min(PAGE, start + n - done)
            yield page, start, stop, done
            done += stop - start

    def _page(self, page: int) -> bytearray:
        if page not in self._pages:
            self._pages[page] = bytearray(self._on_disk(page * PAGE, PAGE))
        return self._pages[page]

    def _on_disk(self, position: int, n: int) -> bytes:
        """Read n bytes of the file; zeros beyond its end."""
        os.lseek(self._number, position, os.SEEK_SET)
        pieces, left = [], n
        while left and (piece := os.read(self._number, left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces).ljust(n, b"\0")


@contextmanager
def writing_hdf5(number: int, mode: str) -> Iterator[tuple[h5py.File, WritableFile]]:
    """Open an HDF5 file for writing; close it and flush it to disk at the end of the block.

    Args:
        number: file descriptor, open for reading and writing, which stays open.
        mode: "w" or "r+".

    Yields:
        The HDF5 file, and the `WritableFile` below it.

    Raises:
        OSError: something could not be written; the file is not usable.
    """
    raw = WritableFile(number)
    try:
        with finished_before_ctrl_c() as raw.waiting, h5py.File(raw, mode) as file:
            yield file, raw
    finally:
        if raw.problem is not None:
            raise raw.problem
    os.fsync(number)


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[h5py.File, WritableFile]]:
    """Create a new HDF5 file, see `writing_hdf5`.

    Raises:
        OSError: something could not be written.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with writing_hdf5(number, "w") as file:
            yield file
    finally:
        os.close(number)


def append_structures(
    file: h5py.File, raw: WritableFile, columns: Mapping[str, NDArray[Any]], n_atoms: NDArray[Any]
) -> None:
    """Append structures to the arrays of a file, and their ends to its array `offsets`.

    The first call creates the arrays.

    Args:
        file, raw: of `new_hdf5`.
        columns: arrays by name, with a row per atom or per structure.
        n_atoms: [n] number of atoms of each structure.

    Raises:
        OSError: something could not be written.
        KeyboardInterrupt: Ctrl-C was pressed; a long write is not finished first.
    """
    if "offsets" not in file:
        for name, values in {**columns, "offsets": np.zeros(1, np.int64)}.items():
            shape = values.shape[1:]
            most, chunks = (None, *shape), (CHUNK_ROWS, *shape)
            file.create_dataset(name, (0, *shape), values.dtype, maxshape=most, chunks=chunks)
        file["offsets"].resize(1, axis=0)
    ends = file["offsets"][-1] + np.cumsum(n_atoms)
    for name, values in {**columns, "offsets": ends}.items():
        array = file[name]
        array.resize(len(array) + len(values), axis=0)
        array[-len(values) :] = values
    if raw.problem is not None:
        raise raw.problem
    if raw.waiting:
        raise KeyboardInterrupt
