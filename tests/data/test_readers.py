"""`data.read`: dispatch on the extension."""

import numpy as np
import pytest
from ase import Atoms

from attncalc import data


def test_npz_and_extxyz_of_one_dataset_agree(tmp_path):
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, d]], info={"energy": -d}) for d in (0.7, 0.8)]
    data_frames = data.from_ase(frames)
    np.savez(
        tmp_path / "h2.npz",
        z=[1, 1],
        R=[atoms.positions for atoms in frames],
        E=[-0.7, -0.8],
        units="eV",
    )
    found = data.read(str(tmp_path / "h2.npz"))
    np.testing.assert_array_equal(found.energies, data_frames.energies)
    for mine, yours in zip(found.structures, data_frames.structures, strict=True):
        assert mine == yours


def test_unknown_extension(tmp_path):
    known = ".npz, .extxyz, .xyz, .db, .traj, .h5, .hdf5"
    with pytest.raises(
        ValueError,
        match=rf"^a.cif: unknown extension '.cif': use one of {known}; files that ASE reads",
    ):
        data.read(tmp_path / "a.cif")


@pytest.mark.parametrize("name", ["a.npz", "a.extxyz", "a.db", "a.traj", "a.h5"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"^{name}: no such file in {tmp_path}$"):
        data.read(tmp_path / name)


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="energy_units"):
        data.read(tmp_path / "a.npz", energy_units="eV")
