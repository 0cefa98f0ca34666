"""H5MD trajectories: what stands in them, who reads them, and what a crash leaves."""

from __future__ import annotations

import configparser
import errno
import gc
import importlib
import io
import multiprocessing
import os
import re
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.data import atomic_masses
from ase.io import formats
from ase.io import read as ase_read
from torch import Tensor

from attncalc.files import NoSpaceLeft
from attncalc.md import H5MDWriter, MDState, Verlet, h5md, h5md_reader, h5md_writer, read_h5md
from attncalc.md.h5md_reader import iread_h5md, read_attnh5md
from attncalc.system import System

REPOSITORY = Path(__file__).resolve().parents[2]
HALF_FS = Verlet(timestep=0.5 * units.fs)
ETHANOL = molecule("CH3CH2OH")
SALT = bulk("NaCl", "rocksalt", a=5.6)  # its cell is not orthogonal
SLAB = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0]], cell=[3.6, 3.6, 0], pbc=[True, True, False])


def state_at(step: int, *structures: Atoms) -> MDState:
    """As a run might be at this step; the same whenever it is asked for."""
    noise = torch.Generator().manual_seed(step)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    system = System.from_ase(structures or (ETHANOL,))
    n, m = system.n_atoms, system.n_systems
    return MDState(
        system=replace(
            system,
            positions=system.positions + 0.1 * random(n, 3),
            cell=system.cell * (1 + 0.01 * random(m, 1, 1)),
        ),
        momenta=random(n, 3),
        masses=torch.from_numpy(atomic_masses)[system.atomic_numbers],
        fixed=None,
        energy=random(m),
        forces=random(n, 3),
        n_dof=3.0 * torch.bincount(system.system_idx).double(),
        heat=random(m),
        replicas=torch.arange(m),
        atom_in_system=torch.cat([torch.arange(len(s)) for s in structures or (ETHANOL,)]),
        spread=None,
        step=step,
        seed=0,
    )


def write(path: Path, *structures: Atoms, n_frames: int = 5, flushes: tuple[int, ...] = ()) -> Path:
    """Frames at steps 0, 10, 20, ..., with flushes after some of them."""
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0, *structures), HALF_FS)
    for n in range(n_frames):
        writer(state_at(10 * n, *structures))
        if n in flushes:
            writer.flush()
    writer.end()
    return path


def assert_holds(path: Path, steps: range, *structures: Atoms) -> None:
    """Frames are those of `state_at`, as far as float64 and two changes of units can tell."""
    for number in range(len(structures) or 1):
        frames = read_h5md(path, system=number)
        assert [frame.info["step"] for frame in frames] == list(steps)
        for frame in frames:
            state = state_at(frame.info["step"], *structures)
            mine = state.system.system_idx == number
            close = {"rtol": 1e-15, "atol": 0}
            np.testing.assert_array_equal(frame.positions, state.system.positions[mine])
            np.testing.assert_array_equal(frame.cell, state.system.cell[number])
            np.testing.assert_array_equal(frame.pbc, state.system.pbc[number])
            np.testing.assert_array_equal(frame.numbers, state.system.atomic_numbers[mine])
            np.testing.assert_array_equal(frame.get_masses(), state.masses[mine])
            np.testing.assert_allclose(frame.get_momenta(), state.momenta[mine], **close)
            np.testing.assert_allclose(frame.get_forces(), state.forces[mine], **close)
            assert frame.get_potential_energy() == state.energy[number]
            assert frame.info["time_fs"] == pytest.approx(0.5 * state.step, rel=1e-15)


def contents(path: Path) -> dict[str, object]:
    """Every dataset and attribute, under names."""
    found: dict[str, object] = {}

    def note(name: str, thing: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{key}": np.array(value) for key, value in thing.attrs.items()})
        if isinstance(thing, h5py.Dataset):
            found[name] = thing[()]

    with h5py.File(path, "r") as file:
        file.visititems_links(lambda name, _: note(name, file[name]))
    return found


def assert_equal_files(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


# --------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("structures", [(), (SALT,), (SLAB,), (ETHANOL, SALT), (SALT, SLAB, SALT)])
@pytest.mark.parametrize("flushes", [(), (1, 2), (0, 1, 2, 3, 4)])
def test_round_trip(structures: tuple[Atoms, ...], flushes: tuple[int, ...], tmp_path: Path):
    path = write(tmp_path / "run.h5md", *structures, flushes=flushes)
    assert_holds(path, range(0, 50, 10), *structures)
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


def test_charge_and_spin_come_back(tmp_path: Path):
    anion = molecule("OH")
    anion.info.update(charge=-1, spin=3)
    (frame,) = read_h5md(write(tmp_path / "run.h5md", anion, ETHANOL, n_frames=1))
    assert (frame.info["charge"], frame.info["spin"]) == (-1, 3)
    (frame,) = read_h5md(tmp_path / "run.h5md", system=1)
    assert (frame.info["charge"], frame.info["spin"]) == (0, 1)


@pytest.mark.parametrize("structures", [(SALT,), (ETHANOL, SALT)])
def test_fixed_atoms_and_spread_come_back(structures: tuple[Atoms, ...], tmp_path: Path):
    """Of every system its own; a run goes on only where they are the same."""

    def state(step: int) -> MDState:
        free = state_at(step, *structures)
        fixed = torch.zeros(free.system.n_atoms, dtype=torch.bool)
        fixed[-1] = True  # of salt; all of ethanol moves
        return replace(free, fixed=fixed, spread=0.01 * step + torch.arange(len(structures)))

    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state(0), HALF_FS)
    for step in (0, 10, 20):
        writer(state(step))
    writer.end()
    writer.resume(state(10), HALF_FS)
    for step in (20, 30):
        writer(state(step))
    writer.end()
    for number, structure in enumerate(structures):
        frames = read_h5md(path, system=number)
        assert [frame.info["step"] for frame in frames] == [0, 10, 20, 30]
        for frame in frames:
            held = [constraint.get_indices().tolist() for constraint in frame.constraints]
            assert held == ([[1]] if structure is SALT else [])
            now = state(frame.info["step"])
            mine = now.system.system_idx == number
            assert frame.info["force_spread_eV_A"] == now.spread[number]
            forces = frame.get_forces(apply_constraint=False)
            np.testing.assert_allclose(forces, now.forces[mine], rtol=1e-15)
            np.testing.assert_allclose(frame.get_momenta(), now.momenta[mine], rtol=1e-15)
    with h5py.File(path, "r") as file:
        name = "atoms" if len(structures) == 1 else "system_0001"
        observables = "observables" if name == "atoms" else f"observables/{name}"
        assert file[f"particles/{name}/fixed/value"].shape == (1, 2)
        assert file[f"{observables}/force_spread/value"].attrs["unit"] == "eV Angstrom-1"
        assert "particles/system_0000/fixed" not in file
    for other, what in (
        (replace(state(20), fixed=None), "fixed atoms"),
        (replace(state(20), spread=None), "observables"),
    ):
        with pytest.raises(ValueError, match=rf"run\.h5md: particles/\w+ has other {what} than"):
            H5MDWriter(path, every=10).resume(other, HALF_FS)


def test_fixed_atoms_of_another_number_are_damage(tmp_path: Path):
    path = write(tmp_path / "run.h5md", SALT)
    with h5py.File(path, "r+") as file:
        file["particles/atoms/fixed/value"] = [[True, False, True]]
    with pytest.raises(ValueError, match=r"run\.h5md: particles/atoms/fixed has not one value an"):
        read_h5md(path)


def test_a_single_model_without_fixed_atoms_has_neither(tmp_path: Path):
    (frame,) = read_h5md(write(tmp_path / "run.h5md", n_frames=1))
    assert frame.constraints == []
    assert set(frame.info) == {"step", "time_fs", "charge", "spin"}


def test_float32_forces_are_stored_as_they_are(tmp_path: Path):
    state = state_at(0)
    state = replace(state, forces=state.forces.float(), energy=state.energy.float())
    writer = H5MDWriter(tmp_path / "run.h5md")
    writer.begin(state, HALF_FS)
    writer(state)
    writer.end()
    (frame,) = read_h5md(tmp_path / "run.h5md")
    np.testing.assert_allclose(frame.get_forces(), state.forces.double(), rtol=1e-15)
    assert frame.get_potential_energy() == float(state.energy)


def test_a_buffered_frame_does_not_change_with_the_state(tmp_path: Path):
    writer, state = H5MDWriter(tmp_path / "run.h5md", every=10), state_at(10)
    writer.begin(state_at(0), HALF_FS)
    writer(state_at(0))
    writer(state)
    for tensor in (state.system.positions, state.system.cell, state.momenta, state.forces):
        tensor.zero_()
    writer.end()
    assert_holds(tmp_path / "run.h5md", range(0, 20, 10))


def test_a_state_is_not_written_twice(tmp_path: Path):
    writer = H5MDWriter(tmp_path / "run.h5md", every=10)
    writer.begin(state_at(0), HALF_FS)
    for step in (0, 0, 10, 10):
        writer(state_at(step))
    writer.flush()
    writer(state_at(10))
    writer.flush()
    writer(state_at(10))
    writer.end()
    assert_holds(tmp_path / "run.h5md", range(0, 20, 10))


def test_large_frames_fill_a_chunk_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(h5md, "CHUNK_BYTES", 100)
    monkeypatch.setattr(h5md_reader, "BLOCK_BYTES", 100)
    path = write(tmp_path / "run.h5md", ETHANOL, SALT, flushes=(2,))
    assert_holds(path, range(0, 50, 10), ETHANOL, SALT)


# ------------------------------------------------------------- as the standard and readers want


@pytest.mark.parametrize("structures", [(SALT,), (ETHANOL, SALT)])
def test_layout(structures: tuple[Atoms, ...], tmp_path: Path):
    """What H5MD 1.1 asks for, and what MDAnalysis 2.11 needs to open a file."""
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10, author="Ada Löwe")
    writer.begin(state_at(0, *structures), HALF_FS)
    for step in (0, 10):
        writer(state_at(step, *structures))
    writer.end()
    with h5py.File(path, "r") as file:
        assert list(file["h5md"].attrs["version"]) == [1, 1]
        assert file["h5md/author"].attrs["name"] == "Ada Löwe"
        assert file["h5md/creator"].attrs["name"] == "attncalc"
        assert file["h5md/creator"].attrs["version"]
        names = ["atoms"] if len(structures) == 1 else ["system_0000", "system_0001"]
        assert list(file["particles"]) == names
        step, time = (file[f"particles/{names[0]}/position/{axis}"] for axis in ("step", "time"))
        np.testing.assert_array_equal(step, [0, 10])
        assert step.dtype.kind == "i"
        np.testing.assert_allclose(time, [0, 5])
        for number, name in enumerate(names):
            particles, n = file["particles"][name], len(structures[number])
            observables = file["observables" if names == ["atoms"] else f"observables/{name}"]
            box = particles["box"]
            assert box.attrs["dimension"] == 3
            boundary = ["periodic" if one else "none" for one in structures[number].pbc]
            assert list(box.attrs["boundary"]) == boundary
            shapes = {
                particles["position"]: (2, n, 3),
                particles["velocity"]: (2, n, 3),
                particles["force"]: (2, n, 3),
                particles["species"]: (2, n),
                box["edges"]: (2, 3, 3),
                **{observables[one]: (2,) for one in h5md.OBSERVABLES},
            }
            for group, shape in shapes.items():
                assert group["value"].shape == shape
                assert group["value"].compression is None
                assert group["step"] == step, "a hard link, as box must have by the standard"
                assert group["time"] == time
                assert group["time"].attrs["unit"] == "fs"
            assert particles["mass/value"].shape == (1, n)
            assert particles["mass/step"].shape == particles["mass/time"].shape == (1,)


def test_units(tmp_path: Path):
    state, path = state_at(10, SALT), write(tmp_path / "run.h5md", SALT, n_frames=2)
    expected = {
        "particles/atoms/position": (state.system.positions, "Angstrom", 1.0),
        "particles/atoms/box/edges": (state.system.cell[0], "Angstrom", 1.0),
        "particles/atoms/velocity": (state.velocities, "Angstrom fs-1", 1 / units.fs),
        "particles/atoms/force": (state.forces, "kJ mol-1 Angstrom-1", units.kJ / units.mol),
        "particles/atoms/mass": (state.masses, "u", 1.0),
        "particles/atoms/species": (state.system.atomic_numbers, None, 1),
        "observables/potential_energy": (state.energy[0], "eV", 1.0),
        "observables/kinetic_energy": (state.kinetic_energy[0], "eV", 1.0),
        "observables/conserved": (state.conserved[0], "eV", 1.0),
        "observables/temperature": (state.temperature[0], "K", 1.0),
    }
    with h5py.File(path, "r") as file:
        for name, (value, unit, in_ase) in expected.items():
            dataset = file[name]["value"]
            np.testing.assert_allclose(dataset[-1] * in_ase, value, rtol=1e-14, err_msg=name)
            assert dataset.attrs.get("unit") == unit, name
    # the same number by hand: 1 eV/Å is 96.485 kJ/mol/Å, 1 Å per ASE time is 0.098 Å/fs
    assert pytest.approx(96.4853, rel=1e-5) == 1 / h5md.FORCE
    assert pytest.approx(0.0982269, rel=1e-5) == 1 / h5md.VELOCITY


def test_temperature_and_energy_are_those_ase_finds(tmp_path: Path):
    path = write(tmp_path / "run.h5md", ETHANOL, SALT, n_frames=1)
    for number in (0, 1):
        (frame,) = read_h5md(path, system=number)
        with h5py.File(path, "r") as file:
            observables = file[f"observables/system_{number:04d}"]
            assert observables["temperature/value"][0] == pytest.approx(frame.get_temperature())
            kinetic = observables["kinetic_energy/value"][0]
            assert kinetic == pytest.approx(frame.get_kinetic_energy())


def test_mdanalysis(tmp_path: Path):
    mda = pytest.importorskip("MDAnalysis")
    path = write(tmp_path / "run.h5md", SALT)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Reader has no dt information")
        trajectory = mda.Universe.empty(2, trajectory=False).load_new(str(path)).trajectory
        assert trajectory.dt == pytest.approx(0.005)  # ps
        assert trajectory.totaltime == pytest.approx(0.020)
    universe = mda.Universe.empty(2, trajectory=False).load_new(str(path))
    assert len(universe.trajectory) == 5
    now, state = universe.trajectory[3], state_at(30, SALT)
    assert now.time == pytest.approx(0.015)  # ps
    np.testing.assert_allclose(now.positions, state.system.positions, rtol=1e-5)
    velocities = state.velocities * units.fs * 1000  # Å/ps
    np.testing.assert_allclose(now.velocities, velocities, rtol=1e-5)
    np.testing.assert_allclose(now.forces * units.kJ / units.mol, state.forces, rtol=1e-5)


def test_time_between_frames(tmp_path: Path):
    """Of a batch too; a file of before, which has none, goes on without."""
    path = write(tmp_path / "two.h5md", ETHANOL, SALT)
    with h5py.File(path, "r+") as file:
        interval = file["observables/dt"]
        np.testing.assert_allclose(interval["value"], 5 * [0.005])
        assert interval["value"].attrs["unit"] == "ps"
        del file["observables/dt"]
    writer = H5MDWriter(path, every=10)
    writer.resume(state_at(40, ETHANOL, SALT), HALF_FS)
    writer(state_at(50, ETHANOL, SALT))
    writer.end()
    assert len(read_h5md(path, system=1)) == 6
    with h5py.File(path, "r") as file:
        assert "dt" not in file["observables"]


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "index",
    [
        *(0, 3, -1, -5, np.int64(2)),
        *(slice(None), slice(2, None), slice(-2, None), slice(None, None, 2)),
        *(slice(None, None, -1), slice(4, 0, -3), slice(3, 1), slice(0, 100)),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 512])
def test_index(index: int | slice, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "run.h5md")
    monkeypatch.setattr(h5md_reader, "CHUNK_FRAMES", at_once)
    chosen = np.arange(0, 50, 10)[index]
    frames = read_h5md(path, index)
    assert [frame.info["step"] for frame in frames] == np.atleast_1d(chosen).tolist()
    for frame in frames:
        positions = state_at(frame.info["step"]).system.positions
        np.testing.assert_array_equal(frame.positions, positions)


def test_no_such_frame_or_system(tmp_path: Path):
    path = write(tmp_path / "run.h5md", ETHANOL, SALT)
    with pytest.raises(IndexError, match=r"run\.h5md holds 5 frames, not 5"):
        read_h5md(path, 5)
    for number in (2, -1):
        with pytest.raises(IndexError, match=rf"run\.h5md holds 2 systems, not number {number}"):
            read_h5md(path, system=number)


def test_reading_one_by_one_takes_only_what_is_asked_for(tmp_path: Path):
    frames = iread_h5md(write(tmp_path / "run.h5md"))
    assert [next(frames).info["step"], next(frames).info["step"]] == [0, 10]
    frames.close()


def test_no_such_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*run\.h5md"):
        read_h5md(tmp_path / "run.h5md")


NOT_OURS = "not a trajectory that attncalc wrote, or damaged"


@pytest.mark.parametrize(
    "content",
    [
        *(lambda whole, text=text: text for text in (b"", b"3\n\nH 0 0 0\n", bytes(5000))),
        *(lambda whole, part=part: whole[: int(part * len(whole))] for part in (0.1, 0.5, 0.9)),
        lambda whole: whole[:8],
    ],
)
def test_something_else_and_a_part(content, tmp_path: Path):
    path = tmp_path / "run.h5md"
    path.write_bytes(content(write(tmp_path / "whole.h5md").read_bytes()))
    with pytest.raises(ValueError, match=rf"run\.h5md: {NOT_OURS}"):
        read_h5md(path)


def test_h5md_of_another_program(tmp_path: Path):
    path = tmp_path / "theirs.h5md"
    with h5py.File(path, "w") as file:
        file.create_group("h5md/creator").attrs["name"] = "LAMMPS"
    message = r"theirs\.h5md: an H5MD file by LAMMPS; only those by attncalc are read"
    with pytest.raises(ValueError, match=message):
        read_h5md(path)
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2]
    with pytest.raises(ValueError, match=rf"theirs\.h5md: {NOT_OURS}"):
        read_h5md(path)


@pytest.mark.parametrize(
    "missing",
    [
        *("h5md", "particles", "particles/atoms", "particles/atoms/force"),
        *("particles/atoms/box/edges", "particles/atoms/mass/value"),
        *("particles/atoms/position/step", "observables/conserved/value"),
    ],
)
def test_missing_element(missing: str, tmp_path: Path):
    path = write(tmp_path / "run.h5md")
    with h5py.File(path, "r+") as file:
        del file[missing]
    with pytest.raises(ValueError, match=r"run\.h5md: .*damaged"):
        read_h5md(path)
    with pytest.raises(ValueError, match=r"run\.h5md: .*damaged"):
        H5MDWriter(path).resume(state_at(40), HALF_FS)


def test_elements_of_different_length(tmp_path: Path):
    path = write(tmp_path / "run.h5md")
    with h5py.File(path, "r+") as file:
        file["particles/atoms/velocity/value"].resize(3, axis=0)
    with pytest.raises(ValueError, match=r"run\.h5md: its elements have different numbers"):
        read_h5md(path)
    with pytest.raises(ValueError, match=r"run\.h5md: its elements have different numbers"):
        H5MDWriter(path).resume(state_at(40), HALF_FS)


# --------------------------------------------------------------------------------- a run's file


def test_existing_file_is_refused_and_kept(tmp_path: Path):
    path = write(tmp_path / "run.h5md")
    twin = tmp_path / ".run.h5md.twin"  # of another run that is going on
    twin.touch()
    writer = H5MDWriter(path)
    message = r"run\.h5md exists: choose another name, nothing is overwritten"
    with pytest.raises(FileExistsError, match=message):
        writer.begin(state_at(0), HALF_FS)
    writer.end()
    assert_holds(path, range(0, 50, 10))
    assert twin.exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    writer = H5MDWriter(tmp_path / "run.h5md")
    writer.begin(state_at(0), HALF_FS)
    (tmp_path / "run.h5md").write_text("somebody else's")
    with pytest.raises(FileExistsError, match=r"run\.h5md exists: nothing is overwritten"):
        writer(state_at(0))
    with pytest.raises(FileExistsError, match=r"run\.h5md exists: nothing is overwritten"):
        writer.end()  # it tries again
    assert (tmp_path / "run.h5md").read_text() == "somebody else's"


def test_a_disk_with_room_for_one_copy_of_the_first_frame(tmp_path: Path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    writer = H5MDWriter(tmp_path / "run.h5md")
    writer.begin(state_at(0), HALF_FS)
    for attempt in (lambda: writer(state_at(0)), writer.end):
        with pytest.raises(NoSpaceLeft):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_run_writes_is_refused(tmp_path: Path):
    path = tmp_path / "run.h5md"
    writer, other = H5MDWriter(path, every=10), H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    with pytest.raises(BlockingIOError, match=r"run\.h5md: another run is still writing it"):
        other.begin(state_at(0), HALF_FS)
    for step in (0, 10, 20):
        writer(state_at(step))
        writer.flush()
        with pytest.raises(BlockingIOError, match=r"run\.h5md: another run is still writing it"):
            other.resume(state_at(0), HALF_FS)
        other.end()
    writer.end()
    assert_holds(path, range(0, 30, 10))
    go_on(path, after=20, until=60)
    assert_holds(path, range(0, 70, 10))


def test_missing_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        H5MDWriter(tmp_path / "nowhere" / "run.h5md").begin(state_at(0), HALF_FS)


def test_a_run_that_never_took_a_frame_leaves_nothing(tmp_path: Path):
    writer = H5MDWriter(tmp_path / "run.h5md")
    writer.begin(state_at(0), HALF_FS)
    writer.end()
    assert list(tmp_path.iterdir()) == []


def test_impossible_use():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        H5MDWriter("run.h5md", every=0)
    with pytest.raises(ValueError, match=r"belongs to a run: give it to md\.run"):
        H5MDWriter("run.h5md")(state_at(0))


def test_the_first_frame_is_on_disk_at_once_and_others_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    writer(state_at(0))
    assert_holds(path, range(0, 10, 10))
    writer(state_at(10))
    assert_holds(path, range(0, 10, 10))
    writer.flush()
    assert_holds(path, range(0, 20, 10))
    writer.flush()
    monkeypatch.setattr(h5md_writer.time, "monotonic", lambda: 1e9)
    writer(state_at(20))
    assert_holds(path, range(0, 30, 10))
    monkeypatch.setattr(h5md_writer, "BUFFER_BYTES", 2000)  # more than two frames, less than three
    for step, on_disk in ((30, 30), (40, 30), (50, 60), (60, 60)):
        writer(state_at(step))
        assert_holds(path, range(0, on_disk, 10))
    writer.end()
    assert_holds(path, range(0, 70, 10))


def test_slow_writing_is_done_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every look at the clock takes a second: a flush takes one, and 20 pass before the next."""
    clock = iter(range(10**6))
    monkeypatch.setattr(h5md_writer.time, "monotonic", lambda: float(next(clock)))
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    on_disk = []
    for step in range(0, 400, 10):
        writer(state_at(step))
        on_disk.append(len(read_h5md(path)))
    writer.end()
    assert sorted(set(on_disk)) == [1, 21]
    assert_holds(path, range(0, 400, 10))


def test_twin_and_visible_file_take_turns(tmp_path: Path):
    path, twin = tmp_path / "run.h5md", tmp_path / ".run.h5md.twin"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    seen = []
    for step in range(0, 60, 10):
        writer(state_at(step))
        writer.flush()
        seen.append(path.stat().st_ino)
        if step:
            assert_holds(twin, range(0, step, 10))
    writer.end()
    assert seen[0] == seen[2] == seen[4]
    assert seen[1] == seen[3] == seen[5] != seen[0]


def test_a_reader_may_keep_the_file_open(tmp_path: Path):
    """It sees the frames of the time it opened the file, and the run goes on."""
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    readers = []
    for step in range(0, 100, 10):
        writer(state_at(step))
        writer.flush()
        if step % 30 == 0:
            readers.append((h5py.File(path, "r"), step // 10 + 1))
        for file, n_frames in readers:
            positions = file["particles/atoms/position/value"]
            assert len(positions) == n_frames
            for n in range(n_frames):
                np.testing.assert_array_equal(positions[n], state_at(10 * n).system.positions)
    writer.end()
    for file, _ in readers:
        file.close()
    assert_holds(path, range(0, 100, 10))


def test_without_links_the_twin_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = write(tmp_path / "run.h5md", flushes=(0, 1, 2, 3))
    assert_holds(path, range(0, 50, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "os.link", "h5py.Dataset.resize"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_an_error_while_writing_costs_no_frame(
    where: str, error: BaseException, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At the n-th call of something within a flush; the next flush makes up for it."""
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    for step in (0, 10, 20):
        writer(state_at(step))
        writer.flush()
    owner, _, name = where.rpartition(".")
    owner = h5py.Dataset if owner == "h5py.Dataset" else os
    real, calls = getattr(owner, name), []

    def fails(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return real(*arguments, **options)

    for step in (30, 40):
        writer(state_at(step))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        try:
            writer.flush()
        except type(error):
            assert len(read_h5md(path)) in (3, 5)
    writer(state_at(50))
    writer.end()
    assert_holds(path, range(0, 60, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


def test_end_after_an_error_leaves_nothing_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    for step in (0, 10, 20):
        writer(state_at(step))
        writer.flush()
    writer(state_at(30))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left on .*run\.h5md: free some space"):
        writer.end()
    assert_holds(path, range(0, 30, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


def test_a_link_to_another_folder_stays_one(tmp_path: Path):
    (tmp_path / "large").mkdir()
    write(tmp_path / "large" / "run.h5md")
    link = tmp_path / "run.h5md"
    link.symlink_to(tmp_path / "large" / "run.h5md")
    go_on(link, after=40, until=60)
    assert link.is_symlink()
    assert_holds(tmp_path / "large" / "run.h5md", range(0, 70, 10))


# ----------------------------------------------------------------------------------- going on


def go_on(path: Path, *structures: Atoms, after: int, until: int) -> None:
    writer = H5MDWriter(path, every=10)
    writer.resume(state_at(after, *structures), HALF_FS)
    first = after - after % 10 + 10
    for step in range(first, until + 1, 10):
        writer(state_at(step, *structures))
        if step == first + 10:
            writer.flush()
    writer.end()


@pytest.mark.parametrize("structures", [(ETHANOL,), (ETHANOL, SALT)])
@pytest.mark.parametrize("after", [0, 20, 25, 50, 90, 95])
def test_resumed_equals_uninterrupted(structures: tuple[Atoms, ...], after: int, tmp_path: Path):
    """Frames beyond the state are cut off, none is written twice."""
    path = write(tmp_path / "run.h5md", *structures, n_frames=10)
    (tmp_path / ".run.h5md.twin").write_text("of a run that was killed")
    (tmp_path / ".run.h5md.spare").write_text("of a run that was killed")
    go_on(path, *structures, after=after, until=120)
    whole = write(tmp_path / "whole.h5md", *structures, n_frames=13)
    assert_equal_files(path, whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.h5md", "whole.h5md"]


def test_a_frame_only_because_the_run_stopped_there_is_cut_off(tmp_path: Path):
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    for step in (0, 10, 20, 25):
        writer(state_at(step))
    writer.end()
    assert [frame.info["step"] for frame in read_h5md(path)] == [0, 10, 20, 25]
    go_on(path, after=25, until=60)
    assert_equal_files(path, write(tmp_path / "whole.h5md", n_frames=7))


def test_cutting_is_safe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "run.h5md", n_frames=10)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = H5MDWriter(path, every=10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space left"):
            writer.resume(state_at(40), HALF_FS)
    assert_holds(path, range(0, 100, 10))
    writer.end()
    go_on(path, after=40, until=60)
    assert_holds(path, range(0, 70, 10))


def test_resume_without_a_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*run\.h5md"):
        H5MDWriter(tmp_path / "run.h5md").resume(state_at(10), HALF_FS)


def changed(**changes: object) -> MDState:
    return replace(state_at(40), **changes)


ION = molecule("CH3CH2OH")
ION.info.update(charge=2)
ELSEWHERE = state_at(40).with_positions(state_at(40).system.positions + 1e-9)
PAIR, TWO = (ETHANOL, SALT), "particles/system_0001 has other elements"


@pytest.mark.parametrize(
    ("structures", "state", "complaint"),
    [
        ((), state_at(40, molecule("CH4")), "particles/atoms has other elements than the run"),
        ((), state_at(40, ETHANOL[::-1]), "particles/atoms has other elements than the run"),
        ((), state_at(40, ION), "particles/atoms has other charge than the run"),
        ((), state_at(40, ETHANOL, ETHANOL), "it holds 1 systems, the run has 2"),
        ((), changed(masses=2 * state_at(40).masses), "particles/atoms has other masses than the"),
        ((), ELSEWHERE, "its positions differ: this is the trajectory of another run"),
        ((), state_at(1000), "it ends with step 40, the run continues from step 1000"),
        (PAIR, state_at(40, ETHANOL), "it holds 2 systems, the run has 1"),
        (PAIR, state_at(40, ETHANOL, ETHANOL), TWO),
    ],
)
def test_the_trajectory_of_another_run_is_refused_and_stays(
    structures: tuple[Atoms, ...], state: MDState, complaint: str, tmp_path: Path
):
    path = write(tmp_path / "run.h5md", *structures)
    before = path.read_bytes()
    writer = H5MDWriter(path, every=10)
    with pytest.raises(ValueError, match=rf"run\.h5md: {complaint}"):
        writer.resume(state, HALF_FS)
    writer.end()
    assert path.read_bytes() == before


def test_another_timestep_is_refused(tmp_path: Path):
    path = write(tmp_path / "run.h5md")
    message = r"run\.h5md: it was written with a timestep of 0\.5 fs, the run continues with 1 fs"
    with pytest.raises(ValueError, match=message):
        H5MDWriter(path).resume(state_at(40), Verlet(timestep=units.fs))


@pytest.mark.parametrize("every", [5, 20])
def test_another_spacing_is_refused(every: int, tmp_path: Path):
    path = write(tmp_path / "run.h5md")
    before = path.read_bytes()
    message = rf"run\.h5md: it was written every 10 steps, the run continues with every {every}"
    with pytest.raises(ValueError, match=message):
        H5MDWriter(path, every=every).resume(state_at(30), HALF_FS)
    assert path.read_bytes() == before


def test_a_trajectory_that_begins_later_is_refused(tmp_path: Path):
    writer = H5MDWriter(tmp_path / "run.h5md")
    writer.begin(state_at(100), HALF_FS)
    writer(state_at(100))
    writer.end()
    with pytest.raises(ValueError, match=r"begins with step 100, the run continues from step 50"):
        H5MDWriter(tmp_path / "run.h5md").resume(state_at(50), HALF_FS)
    assert len(read_h5md(tmp_path / "run.h5md")) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("buffered", [1, 5000], ids=["every frame", "several frames"])
def test_kill_minus_nine(buffered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the moment, there is no file or a whole one, and the run goes on behind it."""
    monkeypatch.setattr(h5md_writer, "BUFFER_BYTES", buffered)
    states = [state_at(step, ETHANOL, SALT) for step in range(0, 5000, 10)]

    def write_until_killed(path: Path) -> None:
        writer = H5MDWriter(path, every=10)
        writer.begin(states[0], HALF_FS)
        for state in states:
            writer(state)
        time.sleep(100)

    n_runs = 8
    for number, moment in enumerate(np.random.default_rng(0).uniform(0.0, 0.3, n_runs)):
        path = tmp_path / f"{number}.h5md"
        child = multiprocessing.get_context("fork").Process(target=write_until_killed, args=[path])
        child.start()
        while number % 4 and not path.exists():  # however slow the machine, most have begun
            time.sleep(0.001)
        time.sleep(moment)
        child.kill()
        child.join()
    structures = (ETHANOL, SALT)
    runs = sorted(tmp_path.glob("*.h5md"))
    assert len(runs) > n_runs // 2
    assert list(tmp_path.glob(".*.twin")), "nobody was killed on the way"
    for path in runs:
        last = len(read_h5md(path)) * 10
        assert_holds(path, range(0, last, 10), *structures)
        after = max(0, last - 35)
        go_on(path, *structures, after=after, until=after + 30)
        assert_holds(path, range(0, after - after % 10 + 40, 10), *structures)
        assert not list(tmp_path.glob(f".{path.name}.*"))


# ---------------------------------------------------------------------------------------- ASE


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE knows the format, as after installation."""
    from attncalc.plugins.ase import h5md as description

    if "attnh5md" not in formats.ioformats:
        monkeypatch.setattr(formats, "ioformats", dict(formats.ioformats))
        monkeypatch.setattr(formats, "extension2format", dict(formats.extension2format))
        formats.define_io_format("attnh5md", **description._asdict(), external=True)


@pytest.mark.usefixtures("registered")
def test_ase_reads_by_the_ending(tmp_path: Path):
    path = write(tmp_path / "run.h5md", ETHANOL, SALT)
    with pytest.warns(UserWarning, match=r"run\.h5md holds 2 systems, and the first is read: sys"):
        assert ase_read(path).info["step"] == 40
    path = write(tmp_path / "one.h5md", ETHANOL)
    assert ase_read(path, 1).info["step"] == 10
    assert [frame.info["step"] for frame in ase_read(path, "1::2")] == [10, 30]
    assert [frame.info["step"] for frame in ase_read(f"{path}@:2")] == [0, 10]
    path = write(tmp_path / "two.h5md", ETHANOL, SALT)
    assert len(ase_read(path, ":", system=None)) == 10
    salt = ase_read(path, ":", system=1)
    assert len(salt) == 5
    np.testing.assert_array_equal(salt[4].get_cell(), state_at(40, ETHANOL, SALT).system.cell[1])
    with path.open("rb") as file:
        assert len(ase_read(file, ":", format="attnh5md", system=0)) == 5


@pytest.mark.usefixtures("registered")
def test_ase_says_what_is_wrong(tmp_path: Path):
    path = tmp_path / "run.h5md"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=rf"run\.h5md: {NOT_OURS}"):
        ase_read(path, ":")
    gc.collect()


def test_a_file_in_memory(tmp_path: Path):
    content = io.BytesIO(write(tmp_path / "run.h5md").read_bytes())
    assert len(list(read_attnh5md(content))) == 5
    with pytest.raises(ValueError, match=f"H5MD file: {NOT_OURS}"):
        list(read_attnh5md(io.BytesIO(b"nonsense")))


def test_the_entry_point_of_setup_cfg_exists():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    lines = settings["options.entry_points"]["ase.ioformats"].strip().splitlines()
    name, module, thing = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", lines[0]).groups()
    description = getattr(importlib.import_module(module), thing)
    assert isinstance(description, formats.ExternalIOFormat)
    assert hasattr(importlib.import_module(description.module), f"read_{name}")


# ------------------------------------------------------------------------------- lost and found


@pytest.mark.parametrize("flushes", [1, 2, 3])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_that_is_removed_during_the_run_is_there_again(
    flushes: int, resumed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """With all its frames, whenever it is removed, and also where nothing new comes."""
    path = tmp_path / "run.h5md"
    if resumed:
        write(path, n_frames=1)
    writer = H5MDWriter(path, every=10)
    (writer.resume if resumed else writer.begin)(state_at(0), HALF_FS)
    for n in range(flushes):
        writer(state_at(10 * n))
        writer.flush()
    path.unlink()
    writer(state_at(10 * flushes))
    writer.flush()
    assert_holds(path, range(0, 10 * flushes + 10, 10))
    path.unlink()
    writer.end()
    assert_holds(path, range(0, 10 * flushes + 10, 10))
    assert "run.h5md was removed during the run: it is written again" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


def test_a_file_that_is_removed_while_it_reaches_the_disk_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first frames have a copy before anybody can see, and remove, the new file."""
    path = tmp_path / "run.h5md"
    writer = H5MDWriter(path, every=10)
    writer.begin(state_at(0), HALF_FS)
    with monkeypatch.context() as slow:
        slow.setattr(h5md_writer, "folder_to_disk", lambda folder: path.unlink())
        writer(state_at(0))
    assert not path.exists()
    writer(state_at(10))
    writer.end()
    assert_holds(path, (0, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5md"]


def test_a_file_that_is_removed_with_its_twin_is_lost(tmp_path: Path):
    writer = H5MDWriter(tmp_path / "run.h5md", every=10)
    writer.begin(state_at(0), HALF_FS)
    writer(state_at(0))
    for file in tmp_path.iterdir():
        file.unlink()
    writer(state_at(10))
    with pytest.raises(FileNotFoundError, match=r"run\.h5md was removed during the run"):
        writer.end()


def test_the_trajectory_of_another_seed_is_refused(tmp_path: Path):
    """Also where no frame is of the same step, so that positions cannot be compared."""
    path = write(tmp_path / "run.h5md")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.h5md: its seed differs: this is the trajectory of"):
        H5MDWriter(path, every=10).resume(replace(state_at(25), seed=7), HALF_FS)
    other = replace(state_at(25), replicas=state_at(25).replicas + 3)
    with pytest.raises(ValueError, match="its seed differs"):
        H5MDWriter(path, every=10).resume(other, HALF_FS)
    assert path.read_bytes() == before
    with h5py.File(path, "r+") as file:
        assert isinstance(file["parameters/noise/replicas"], h5py.Dataset), "an attribute is small"
        del file["parameters"]  # as before version 0.2
    H5MDWriter(path, every=10).resume(replace(state_at(25), seed=7), HALF_FS)
