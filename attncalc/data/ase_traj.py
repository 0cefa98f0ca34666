"""Reader of ASE trajectories: binary files with one structure per frame."""

from __future__ import annotations

from pathlib import Path

from ase.io.trajectory import Trajectory

from attncalc.data.ase_db import decoding
from attncalc.data.dataset import Dataset
from attncalc.data.extxyz import dataset_of
from attncalc.data.units import ReadOptions


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
    with decoding(path, "ASE trajectory"), Trajectory(path) as file:
        frames = list(file)
    return dataset_of(frames, options, path.name)
