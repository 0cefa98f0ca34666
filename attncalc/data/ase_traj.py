"""Reader of ASE trajectories: binary files with one structure per frame."""

from __future__ import annotations

from pathlib import Path

from ase.io.trajectory import Trajectory

from attncalc.data.dataset import Dataset
from attncalc.data.extxyz import from_ase
from attncalc.data.units import ReadOptions
from attncalc.text import one_line


def read_ase_traj(path: Path, options: ReadOptions) -> Dataset:
    """Read an ASE trajectory (`ase.io.Trajectory`); see `from_ase` for the names of labels.

    Energy, forces and stress are the results that the calculator of a frame had when it was
    written, without constraints. ASE's convention is eV and Å.

    Args:
        path: the file, which is not changed.
        options: units and label set.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged or not an ASE trajectory, or a frame has no label; the
            message is one line that starts with the file's name.
    """
    with open(path, "rb"):
        pass  # OSError is raised here, and not reported as damage below
    try:
        with Trajectory(path) as file:
            frames = list(file)
    except Exception as error:  # errors of any kind from ASE's decoders
        raise ValueError(
            f"{path.name}: the file is truncated, damaged or no ASE trajectory "
            f"({one_line(error)}): download or write it again"
        ) from None
    return from_ase(frames, **vars(options), source=path.name)
