"""H5MD trajectories in `ase.io.read`, `ase.io.iread` and `ase gui`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from ase import Atoms

from attncalc.md.h5md_reader import iread_h5md


def read_attnh5md(
    file: BinaryIO, index: int | slice = slice(None), system: int = 0
) -> Iterator[Atoms]:
    """Read frames of a trajectory for ASE: `ase.io.read("run.h5md", ":", system=1)`.

    Args:
        file: trajectory, open for binary reading.
        index: index of a frame, or slice of frames.
        system: index of the system in a batch.

    Raises:
        IndexError, ValueError: there is no such frame or system, or the file is not a trajectory of
            attncalc or damaged; see `attncalc.md.read_h5md`.
    """
    return iread_h5md(file, index, system)
