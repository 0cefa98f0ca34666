"""Reader of NumPy archives that checks the size of every array against its header."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from attncalc.files.reading import ALWAYS_UNPACKED, require_room
from attncalc.text import one_line


def read_arrays(file: BinaryIO, *, always: int = ALWAYS_UNPACKED) -> dict[str, NDArray | None]:
    """Read all arrays of an archive, by name; pickled ones are None and never unpickled.

    Args:
        file: the archive.
        always: unpacked size that is accepted for any archive, bytes.

    Raises:
        ValueError: the archive is damaged or would fill the memory; the message does not name it.
    """
    file.seek(0)
    beginning = file.read(6)
    if beginning == b"\x93NUMPY":
        raise ValueError("this is a single array, not an .npz archive")
    if beginning and not beginning.startswith(b"PK"):
        raise ValueError("this is not an .npz archive, or its beginning is damaged")
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            unpacked = sum(member.file_size for member in members)
            require_room(unpacked, size, "it would unpack to", always=always)
            names = Counter(member.filename for member in members)
            if len(names) < len(members):
                raise ValueError(f"{max(names, key=names.__getitem__)!r} is in the archive twice")
            return {m.filename[: -len(".npy")]: _array(archive, m) for m in members}
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib, bz2 and lzma raise errors of many kinds
        raise ValueError(
            f"the file is truncated or damaged ({one_line(error)}): download or write it again"
        ) from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray | None:
    """Read one array; None for a pickled one.

    `numpy.load` allocates the size that the header states; here it must match the actual size.
    """
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _ARRAY_HEADERS:  # only records with field names beyond Latin-1
                return None
            shape, by_column, dtype = _ARRAY_HEADERS[version](file)
        except zipfile.BadZipFile:
            raise
        except Exception as error:  # numpy evaluates a literal, with errors of any kind
            raise ValueError(
                f"the file is damaged (header of {member.filename}: {one_line(error)}): fetch or "
                "write it again"
            ) from None
        content = file.read()
    if dtype.hasobject:
        return None
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(
            f"the file is damaged ({member.filename} holds {len(content)} bytes, its header says "
            f"{dtype.str} of shape {list(shape)}): download or write it again"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


_ARRAY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
