"""H5MD trajectories in `ase.io.read`, `ase.io.iread` and `ase gui`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from ase import Atoms

from attncalc.md.h5md_reader import iread_h5md


def read_attnh5md(
    file: BinaryIO, index: int | slice = slice(None), system: int = 0
) -> Iterator[Atoms]:
    """Frames of a trajectory, as ASE asks for them: `ase.io.read("run.h5md", ":", system=1)`.

    Args:
        file: open for binary reading.
        index: of one frame or several.
        system: which one of a batch.

    Raises:
        IndexError, ValueError: as `attncalc.md.read_h5md`.
    """
    return iread_h5md(file, index, system)
