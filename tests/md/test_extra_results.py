"""Charges, dipoles and stresses in trajectories, written on request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.io import read

from attncalc import AttnCalculator, load
from attncalc.evaluator import Evaluator
from attncalc.md import H5MDWriter, MDState, Settings, Verlet, read_h5md
from attncalc.md.job import FrameWriter, run_structures
from attncalc.result import Result
from attncalc.system import System

HALF_FS = Verlet(timestep=0.5 * units.fs)
BOTH = ("charges", "dipole")
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
WATER, METHANE = molecule("H2O"), molecule("CH4")


def charged(system: System) -> Result:
    """No force, and charges that follow the positions."""
    n, positions = system.n_systems, system.positions
    return Result(
        energy=positions.new_zeros(n),
        energies=positions.new_zeros(system.n_atoms),
        forces=torch.zeros_like(positions),
        strain_gradient=positions.new_zeros(n, 3, 3),
        charges=positions.sum(1),
    )


def state_at(step: int, *structures) -> MDState:
    state = HALF_FS.init(charged, System.from_ase(list(structures)), temperature=300)
    moved = state.with_positions(state.system.positions + 0.01 * step)
    return moved.with_forces(charged(moved.system)).replace(step=step)


def written(path: Path, *structures, write: tuple[str, ...] = BOTH) -> Path:
    writer = H5MDWriter(path, every=10, write=write)
    writer.begin(state_at(0, *structures), HALF_FS)
    for step in (0, 10, 20):
        writer(state_at(step, *structures))
    writer.end()
    return path


@pytest.mark.parametrize("structures", [(WATER,), (WATER, METHANE)])
@pytest.mark.parametrize("write", [BOTH, ("charges",), ("dipole",)])
def test_what_was_asked_for_comes_back(structures, write, tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5md", *structures, write=write)
    for number in range(len(structures)):
        for frame in read_h5md(path, system=number):
            charges = frame.positions.sum(1)
            assert {*frame.calc.results} == {"energy", "forces", *write}
            if "charges" in write:
                np.testing.assert_array_equal(frame.get_charges(), charges)
            if "dipole" in write:
                expected = charges @ frame.positions
                np.testing.assert_allclose(frame.get_dipole_moment(), expected, rtol=1e-14)


def test_elements_of_the_standard(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "one.h5md", WATER)) as file:
        step = file["particles/atoms/position/step"]
        for name, unit, shape in (
            ("particles/atoms/charge", "e", (3, 3)),
            ("observables/dipole", "e Angstrom", (3, 3)),
        ):
            assert file[f"{name}/value"].shape == shape
            assert file[f"{name}/value"].attrs["unit"] == unit
            assert file[f"{name}/step"] == step
    with h5py.File(written(tmp_path / "two.h5md", WATER, METHANE)) as file:
        assert file["particles/system_0001/charge/value"].shape == (3, 5)
        assert file["observables/system_0001/dipole/value"].shape == (3, 3)


def test_mdanalysis_reads_on(tmp_path: Path) -> None:
    mda = pytest.importorskip("MDAnalysis")
    path = written(tmp_path / "run.h5md", WATER)
    universe = mda.Universe.empty(3, trajectory=False).load_new(str(path))
    assert len(universe.trajectory) == 3
    now, state = universe.trajectory[2], state_at(20, WATER)
    np.testing.assert_allclose(now.positions, state.system.positions, rtol=1e-5)
    np.testing.assert_allclose(now.data["dipole"], state.dipole[0], rtol=1e-12)


def test_a_run_goes_on_only_with_the_same_results(tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5md", WATER)
    for write, what in ((("dipole",), "partial charges"), (("charges",), "observables")):
        with pytest.raises(ValueError, match=f"particles/atoms has other {what} than the run"):
            H5MDWriter(path, every=10, write=write).resume(state_at(20, WATER), HALF_FS)
    writer = H5MDWriter(path, every=10, write=BOTH)
    writer.resume(state_at(10, WATER), HALF_FS)
    for step in (20, 30):
        writer(state_at(step, WATER))
    writer.end()
    assert [frame.info["step"] for frame in read_h5md(path)] == [0, 10, 20, 30]
    for frame in read_h5md(path):
        np.testing.assert_array_equal(frame.get_charges(), frame.positions.sum(1))


@pytest.mark.parametrize("element", ["particles/atoms/charge", "observables/dipole"])
def test_another_shape_is_damage(element: str, tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5md", WATER)
    with h5py.File(path, "r+") as file:
        del file[f"{element}/value"]
        file[f"{element}/value"] = np.zeros((3, 2))
    wanted = rf"run\.h5md: a frame of {element} has the shape \[2\] and not \[3\], it is damaged"
    with pytest.raises(ValueError, match=wanted):
        read_h5md(path)


def test_what_there_is_not_is_refused_before_the_file(tmp_path: Path) -> None:
    without = replace(state_at(0, WATER), charges=None)
    crystal = state_at(0, bulk("Cu", cubic=True))
    for writer in (
        H5MDWriter(tmp_path / "run.h5md", write=["dipole"]),
        FrameWriter(tmp_path / "run.xyz", WATER, every=1, write=["dipole"]),
    ):
        with pytest.raises(ValueError, match="cannot write dipole: this model predicts no partial"):
            writer.begin(without, HALF_FS)
        with pytest.raises(ValueError, match="cannot write dipole: that of a periodic structure"):
            writer.begin(crystal, HALF_FS)
    with pytest.raises(ValueError, match="predicts no partial charges"):
        _ = without.dipole
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".xyz", ".traj"])
def test_a_frame_of_ase_is_not_written_twice(suffix: str, tmp_path: Path) -> None:
    """As where a run stops or explodes at a frame."""
    writer = FrameWriter(tmp_path / f"run{suffix}", WATER, every=10)
    writer.begin(state_at(0, WATER), HALF_FS)
    for step in (0, 0, 10, 15, 15):
        writer(state_at(step, WATER))
    assert (writer.n_frames, writer.time) == (3, 7.5)
    writer.end()
    frames = read(writer.path, ":")
    assert len(frames) == 3
    for step, frame in zip((0, 10, 15), frames, strict=True):
        state = state_at(step, WATER)
        np.testing.assert_allclose(frame.positions, state.system.positions, atol=1e-7)
        np.testing.assert_allclose(frame.get_momenta(), state.momenta, atol=1e-7)
        if suffix == ".xyz":
            assert (frame.info["step"], frame.info["time_fs"]) == (step, step / 2)


def test_stress_is_that_of_the_calculator(tmp_path: Path) -> None:
    """In both formats, for a crystal with a sheared cell."""
    atoms = bulk("Cu", cubic=True)
    shear = np.array([[0, 0.2, 0], [0, 0, 0.1], [0, 0, 0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    model = load(str(COPPER))
    for name in ("h5md.h5md", "xyz.xyz"):
        settings, file = Settings("nve", n_steps=4, every=2, write=["stress"]), tmp_path / name
        run_structures([atoms], Evaluator(model), settings, file, info={})
        frames = read_h5md(file) if file.suffix == ".h5md" else read(file, ":")
        assert len(frames) == 3
        for frame in frames:
            written = frame.get_stress()
            frame.calc = AttnCalculator(model)
            np.testing.assert_allclose(written, frame.get_stress(), rtol=1e-3, atol=1e-6)
        assert np.abs(written).max() > 0.01
    with h5py.File(tmp_path / "h5md.h5md") as file:
        there = file["observables/stress/value"]
        assert (there.shape, there.attrs["unit"]) == ((3, 3, 3), "eV Angstrom-3")


def test_stress_is_refused_without_three_periodic_directions(tmp_path: Path) -> None:
    crystal, slab = bulk("Cu", cubic=True), bulk("Cu", cubic=True)
    slab.pbc = [True, True, False]
    for structures in ((slab,), (WATER,), (crystal, slab)):
        writer = H5MDWriter(tmp_path / "run.h5md", write=["stress"])
        with pytest.raises(
            ValueError, match="cannot write stress: it is given for structures that"
        ):
            writer.begin(state_at(0, *structures), HALF_FS)
    with pytest.raises(ValueError, match="this state has no strain gradient"):
        _ = state_at(0, slab).stress


@pytest.mark.parametrize(
    ("names", "given"), [(["spin"], "spin"), ("dipole", "'dipole'"), (None, "None"), ([1], "1")]
)
def test_names(names, given: str) -> None:
    message = re.escape(f"write takes the names charges, dipole and stress, got {given}")
    with pytest.raises(ValueError, match=message):
        Settings(write=names)
    with pytest.raises(ValueError, match=message):
        H5MDWriter("run.h5md", write=names)
    settings = Settings(write=["dipole", "charges"])
    assert settings.write == BOTH
    assert Settings.from_stored(settings.stored()) == settings
