"""Reading of untrusted HDF5 files, such that no other file is read.

HDF5 has five ways to refer to other files: external links, links of user-defined kinds, virtual
datasets, external storage, and filters, which are loaded as machine code. A file that uses one of
them anywhere is refused. All others are safe to read, including their soft links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t, h5z
from numpy.typing import NDArray

from attncalc.files.hdf5_heaps import largest_text
from attncalc.files.reading import open_regular, require_room
from attncalc.text import one_line

# most levels of nested groups: usual files have 3, and the library takes minutes for thousands
DEEPEST = 100
# bytes of texts that are read at once, if each is as long as the longest
BLOCK_BYTES = 1 << 28
# filters that are part of HDF5 or h5py; others are code that the library would load
FILTERS = {
    *(h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_SZIP),
    *(h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_LZF),
}
_PLAIN = {h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM}
_HARD, _SOFT = h5l.TYPE_HARD, h5l.TYPE_SOFT


class LocalFile(h5py.File):
    """HDF5 file, open for reading, that refers to no other file.

    Args:
        source: the file, by name or open for binary reading.

    Attributes:
        size: size of the file, bytes.
        largest_text: bytes of the longest text of variable length; 0 if there is none.
        group_names: full names of all groups, including the root, in alphabetical order.

    Raises:
        OSError: the file is not regular, or cannot be opened.
        ValueError: the file refers to another one, its arrays would fill the memory, its groups are
            nested too deeply, or it is damaged in a way that the library does not detect.
        TypeError: `source` is neither a path nor an open file.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        if isinstance(source, str | Path):
            with open_regular(source) as binary:
                self.size, self.largest_text = _measured(binary)
        elif hasattr(source, "seek"):
            self.size, self.largest_text = _measured(source)
        else:
            raise TypeError(f"expected a path or an open file, got {type(source).__name__}")
        super().__init__(source, "r")
        try:
            self.group_names = sorted(_walk(h5g.open(self.id, b"/"), self.size, self.largest_text))
        except BaseException:
            self.close()
            raise

    def values(self, array: h5py.Dataset, rows: slice = slice(None)) -> NDArray:
        """Read rows of an array; texts are read in parts, because each may be very long.

        Args:
            array: an array of this file.
            rows: rows of its first axis, without negative indices.

        Raises:
            ValueError: the array holds neither numbers nor texts, or its texts would fill the
                memory.
        """
        texts = h5py.check_string_dtype(array.dtype) is not None
        if array.dtype.kind not in "biufcSU" and not texts:
            raise ValueError(
                f"{array.name} must be numbers or texts, got an array of {array.dtype}"
            )
        if array.dtype.kind != "O" or not array.ndim:
            return np.asarray(array[rows] if array.ndim else array[()])
        first, last, _ = rows.indices(len(array))
        at_once = BLOCK_BYTES // max(1, self.largest_text * math.prod(array.shape[1:]))
        found, n_bytes = [array[:0]], 0
        for k in range(first, last, max(1, at_once)):
            found.append(array[k : min(k + max(1, at_once), last)])
            n_bytes += sum(map(len, found[-1].flat))
            require_room(n_bytes, self.size, f"{array.name} would take")
        return np.concatenate(found)

    def attributes(self, item: h5py.Group | h5py.Dataset) -> dict[str, NDArray]:
        """Return name -> value of attributes of a group or array that are numbers or texts."""
        plain = (
            name for name in item.attrs if item.attrs.get_id(name).get_type().get_class() in _PLAIN
        )
        found = {name: item.attrs[name] for name in plain}
        return {k: np.asarray(v) for k, v in found.items() if not isinstance(v, h5py.Empty)}


def _measured(file: BinaryIO) -> tuple[int, int]:
    longest = largest_text(file)
    if longest is None:
        raise ValueError("the file is damaged (a heap of texts): download or write it again")
    return file.seek(0, 2), longest


def _walk(root: h5g.GroupID, file_size: int, largest_text: int) -> Iterator[str]:
    """Yield the names of all groups, each once, and check every link and array.

    Each link is opened by its own name, not by its path: the library would follow a path into
    other files, and the time would grow with the square of the depth.
    """
    seen, n_bytes = set(), 0
    waiting: list[tuple[str, int, h5g.GroupID]] = [("", 0, root)]
    while waiting:
        name, depth, group = waiting.pop()
        if (place := _place(group)) in seen:
            continue
        seen.add(place)
        yield name or "/"
        inner: list[tuple[str, int, h5g.GroupID]] = []
        for link in sorted(group):
            path = f"{name}/{link.decode('utf-8', 'surrogateescape')}"
            if b"/" in link or link in (b"", b"."):
                raise ValueError(f"the file is damaged (a link is called {one_line(path)})")
            kind = group.links.get_info(link).type
            if kind == _SOFT:
                continue
            if kind != _HARD:
                raise ValueError(
                    f"{one_line(path)} links to another file: copy its content into this file"
                )
            item = h5o.open(group, link)
            _require_small_attributes(item, largest_text, one_line(path))
            if isinstance(item, h5d.DatasetID):
                n_bytes += _require_own(item, one_line(path))
                require_room(n_bytes, file_size, "its arrays would take")
            elif isinstance(item, h5g.GroupID) and _place(item) not in seen:
                if depth >= DEEPEST:
                    raise ValueError(
                        f"groups are nested more than {DEEPEST} deep, at "
                        f"{one_line(path, longest=80)}: data sets are not nested that deeply"
                    )
                inner.append((path, depth + 1, item))
        waiting += reversed(inner)


def _place(item: h5o.ObjectID) -> int:
    return h5o.get_info(item).addr


def _require_small_attributes(item: h5o.ObjectID, largest_text: int, path: str) -> None:
    for k in range(h5a.get_num_attrs(item)):
        attribute = h5a.open(item, index=k)
        kind = attribute.get_type()
        variable = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
        n = attribute.get_space().get_simple_extent_npoints()
        n_bytes = n * (largest_text if variable else kind.get_size())
        require_room(n_bytes, 0, f"the attributes of {path} would take")


def _require_own(array: h5d.DatasetID, path: str) -> int:
    """Return the bytes that reading an array takes; refuse one that is stored elsewhere."""
    created = array.get_create_plist()
    layout = created.get_layout()
    if layout == h5d.VIRTUAL or created.get_external_count():
        raise ValueError(f"{path} is stored in another file: copy its numbers into this file")
    for k in range(created.get_nfilters()):
        number = created.get_filter(k)[0]
        if number not in FILTERS:
            raise ValueError(
                f"{path} is compressed by filter {number}, code that is not part of HDF5: "
                "write it with gzip, or without compression"
            )
    kind, space = array.get_type(), array.get_space()
    n_bytes = space.get_simple_extent_npoints() * kind.get_size()
    if layout == h5d.CHUNKED and n_bytes:  # at least one chunk is read
        n_bytes = max(n_bytes, math.prod(created.get_chunk()) * kind.get_size())
    return n_bytes
