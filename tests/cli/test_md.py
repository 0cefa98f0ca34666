"""attncalc md: trajectories, runs that are stopped, killed and go on, settings."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength, FixInternals, FixSymmetry, Hookean
from ase.io import read, write
from command_line import COPPER, ETHANOL, Forked, attncalc, fails, files, succeeds, wait_until

from attncalc import AttnCalculator, model_file, plots
from attncalc.cli import md as module
from attncalc.cli import md_picture
from attncalc.cli.files import read_structures
from attncalc.evaluator import Evaluator
from attncalc.files import FileLock, NoSpaceLeft
from attncalc.md import (
    H5MDWriter,
    Langevin,
    Log,
    h5md_writer,
    job,
    load_checkpoint,
    read_h5md,
    read_log,
)
from attncalc.md.checkpoint import save_checkpoint


@pytest.mark.usefixtures("real_pictures")
def test_md(ethanol_file: str) -> None:
    said = succeeds(
        *("md", ethanol_file, "--model", ETHANOL, "--steps", 30, "--every", 10, "-o", "run.xyz")
    )
    assert re.fullmatch(
        r"model: so3krates-ethanol \(PBE\+vdW-TS \(MD17\)\)\n"
        r"wrote run\.xyz \(4 frames\), run\.csv, run\.png; \d+ neighbour lists? in \d+ steps\n",
        said,
    )
    assert files() == {ethanol_file, "run.xyz", "run.csv", "run.png"}
    assert len(read("run.xyz", ":")) == 4
    with open("run.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("integrator", ["native", "ase"])
@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_md_of_a_crystal(ensemble: str, integrator: str, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--ensemble", ensemble, "--steps", 4)
    succeeds(*common, "--integrator", integrator)
    trajectory = {"copper.md.xyz"} if integrator == "ase" else {"copper.md.h5md", "copper.md.ckpt"}
    assert files() == {copper_file, "copper.md.csv", "copper.md.png"} | trajectory


ANISOTROPIC = ("npt", "--barostat", "anisotropic", "--pressure", 5, "--cell-relaxation", 300)


def test_md_at_constant_pressure_writes_its_cells(copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--ensemble", *ANISOTROPIC, "--steps", 20)
    succeeds(*common, "-o", "run.xyz")
    succeeds(*common, "-o", "run2.h5md")
    with open("run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert Path("run.csv").read_text() == Path("run2.csv").read_text()
    frames = read("run.xyz", ":")
    assert len(frames) == len(rows) == 3
    for frame, other, row in zip(frames, read_h5md("run2.h5md"), rows, strict=True):
        assert frame.get_volume() == pytest.approx(float(row["volume_A3"]), rel=1e-6)
        assert np.allclose(frame.cell, other.cell, atol=1e-6)
        assert float(row["pressure_GPa"]) == other.info["pressure_GPa"]
    assert frames[0].get_volume() != frames[-1].get_volume()
    lengths = frames[-1].cell.lengths()
    assert np.ptp(lengths) > 1e-4, "the shape changes too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nve", "--thermostat", "bussi"), "--thermostat applies to nvt only, and this run is nve"),
        (
            ("nvt", "--cell-relaxation", 50),
            "--cell-relaxation applies to npt only, and this run is nvt",
        ),
        (
            ("nvt", "--relaxation", 50),
            "--relaxation does not apply to --thermostat langevin: remove it",
        ),
        (
            ("nvt", "--thermostat", "bussi", "--friction", 1),
            "--friction does not apply to --thermostat bussi: remove it",
        ),
        (
            ("npt", "--barostat", "anisotropic", "--integrator", "ase"),
            "--barostat applies to attncalc's integrators only: remove it, or remove --integrator",
        ),
        (
            ("nvt", "--write", "charges", "--integrator", "ase"),
            "--write applies to attncalc's integrators only: remove it, or remove --integrator",
        ),
        (("npt", "--compressibility", 0), "compressibility must be positive, got 0"),
        (("npt", "--cell-relaxation", -1), "--cell-relaxation must be positive, got -1"),
    ],
)
def test_md_refuses_options_that_it_would_not_read(
    arguments: tuple, message: str, copper_file: str
) -> None:
    said = fails("md", copper_file, "--model", "unread", "--ensemble", *arguments)
    assert said.startswith(f"Error: {message}")
    assert files() == {copper_file}


def test_md_of_a_molecule_has_no_pressure(ethanol_file: str) -> None:
    said = fails("md", ethanol_file, "--model", ETHANOL, "--ensemble", "npt")
    assert said == 'Error: ensemble "npt" needs a structure that is periodic in all directions'
    assert files() == {ethanol_file}


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_md_by_ase(ensemble: str, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--ensemble", ensemble, "--steps", 4)
    succeeds(*common, "--integrator", "ase", "-o", "ase.traj")
    succeeds(*common, "-o", "ours.traj")
    ours, theirs = read("ours.traj", -1), read("ase.traj", -1)
    same = np.allclose(ours.positions, theirs.positions, atol=1e-6)
    assert same == (ensemble == "nve"), "the same start, other random forces"


def states(trajectory: str) -> list[tuple[int, bytes, bytes, float]]:
    return [
        (
            frame.info["step"],
            frame.positions.tobytes(),
            frame.get_momenta().tobytes(),
            frame.get_potential_energy(),
        )
        for frame in read_h5md(trajectory)
    ]


@pytest.mark.parametrize(
    "ensemble",
    [("nve",), ("nvt",), ("nvt", "--thermostat", "bussi"), ("npt",), ANISOTROPIC],
    ids=["nve", "langevin", "bussi", "isotropic", "anisotropic"],
)
def test_md_that_goes_on_is_the_run_that_was_not_stopped(ensemble: tuple, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--every", 10, "--ensemble", *ensemble)
    succeeds(*common, "--steps", 60, "-o", "whole.h5md")
    succeeds(*common, "--steps", 25, "-o", "part.h5md")
    assert states("part.h5md")[-1][0] == 25
    said = succeeds("md", "--resume", "part.h5md", "--steps", 60)
    assert said.startswith("part.h5md: continuing at step 25 of 60\nwrote part.h5md (7 frames), ")
    assert states("part.h5md") == states("whole.h5md")
    assert Path("part.csv").read_text() == Path("whole.csv").read_text()
    said = succeeds("md", "--resume", "part.h5md")
    assert said == "part.h5md: 60 steps are done; continue to step N with --steps N\n"


def saved_steps() -> int:
    return load_checkpoint("run.ckpt").state.step if Path("run.ckpt").exists() else -1


def test_md_that_is_killed_goes_on_bit_for_bit(
    copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9, three times, whenever it comes."""
    common = ("md", copper_file, "--model", COPPER, "--every", 5, "--steps")
    monkeypatch.setattr(job, "SECONDS_BETWEEN_CHECKPOINTS", 0.1)
    command = (*common, 1_000_000, "-o", "run.h5md")
    reached = -1
    for _ in range(3):
        process = Forked(*command)
        try:
            wait_until(lambda before=reached: saved_steps() > before, process)
            time.sleep(0.3)
        finally:
            process.kill()
            process.ended()
        reached = saved_steps()
        command = ("md", "--resume", "run.h5md")
    succeeds("md", "--resume", "run.h5md", "--steps", reached + 50)
    succeeds(*common, reached + 50, "-o", "whole.h5md")
    assert states("run.h5md") == states("whole.h5md")
    assert Path("run.csv").read_text() == Path("whole.csv").read_text()
    assert not [name for name in files() if name.startswith(".")]


@pytest.mark.parametrize("name", ["vel", "Velocities"])
def test_velocities_that_are_not_momenta(copper_file: str, name: str) -> None:
    """Nothing says their unit: they are named, and not in what is written."""
    atoms = read(copper_file)
    atoms.set_array(name, np.ones((len(atoms), 3)))
    write("vel.extxyz", atoms)
    result = attncalc("md", "vel.extxyz", "--model", COPPER, "--steps", 2, "-o", "run.xyz")
    assert result.exit_code == 0
    assert f"vel.extxyz: velocities in a column '{name}' are not read" in result.stderr
    succeeds("relax", "vel.extxyz", "--model", COPPER, "-o", "relaxed.xyz")
    for file in ("run.xyz", "relaxed.xyz"):
        assert name not in read(file).arrays


def test_md_of_another_process_is_left_alone(
    copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither resumed nor, where somebody removed its files, begun anew, until it is gone."""
    monkeypatch.setattr(h5md_writer, "BUFFER_SECONDS", 1e3)
    monkeypatch.setattr(job, "SECONDS_BETWEEN_CHECKPOINTS", 1e3)
    common = ("md", copper_file, "--model", COPPER, "-o", "run.h5md")
    process = Forked(*common, "--steps", 1_000_000)
    try:
        wait_until(Path("run.h5md").exists, process)  # the checkpoint is there before it
        log = Path("run.csv").stat().st_ino
        there = f"run.h5md: another run is still writing it (process {process.pid}): wait for "
        there += "its end, or stop it"
        for more in ((), ("--steps", 2_000_000)):
            assert fails("md", "--resume", "run.h5md", *more) == f"Error: {there}"
        assert Path("run.csv").stat().st_ino == log
        for ending in ("h5md", "csv", "ckpt"):
            Path(f"run.{ending}").unlink()
        assert process.poll() is None, process.ended()
        assert fails(*common, "--steps", 20) == f"Error: {Path.cwd() / there}"
        assert not [name for name in files() if name.startswith("run.")]
    finally:
        process.kill()
        process.ended()
    succeeds(*common, "--steps", 20)
    assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}


def test_md_that_is_told_to_end(copper_file: str) -> None:
    """SIGTERM, as of a batch queue: everything is saved."""
    common = ("md", copper_file, "--model", COPPER, "--steps", 1_000_000, "--every", 10)
    process = Forked(*common, "-o", "run.h5md")
    log = Path("run.csv")
    try:
        wait_until(lambda: log.exists() and log.stat().st_size > 5000, process)
    finally:
        process.terminate()
    status, said = process.ended()
    assert status == 130
    assert "continue with --resume run.h5md" in said
    state = load_checkpoint("run.ckpt").state
    assert state.step > 0
    assert states("run.h5md")[-1][0] == state.step
    assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}


def test_md_resume_bad_input(copper_file: str) -> None:
    succeeds("md", copper_file, "--model", COPPER, "--steps", 2, "-o", "run.h5md")
    others = "--resume uses the settings of the run: remove --model, STRUCTURE"
    for arguments, message in (
        (("--resume", "run.xyz"), "run.xyz: only a run that writes .h5md can be resumed"),
        (
            ("--resume", "no.h5md"),
            "no such file: no.h5md; a run is resumed from its .h5md and .ckpt",
        ),
        ((copper_file, "--model", COPPER, "--resume", "run.h5md"), others),
        (
            ("--resume", "run.h5md", "--overwrite", "--quiet"),
            "--resume uses the settings of the run: remove --overwrite",
        ),
    ):
        assert fails("md", *arguments) == f"Error: {message}"
    Path("run.ckpt").write_bytes(b"nothing")
    said = fails("md", "--resume", "run.h5md")
    assert said.startswith("Error: run.ckpt: not a checkpoint of a run, or damaged (")


def test_md_resume_wants_the_same_model(copper_file: str) -> None:
    shutil.copy(COPPER, "mine.safetensors")
    succeeds("md", copper_file, "--model", "mine.safetensors", "--steps", 2, "-o", "run.h5md")
    shutil.copy(Path(COPPER).parents[2] / "models" / "so3krates-silicon.safetensors", "other")
    Path("other").rename("mine.safetensors")
    said = fails("md", "--resume", "run.h5md", "--steps", 4)
    assert said == (
        f"Error: {Path('mine.safetensors').absolute()}: not the model that the run began with: "
        "continue with the model file of that time, or begin another run: attncalc md run.h5md "
        "--model MODEL -o NEW.h5md"
    )


def test_md_resume_says_that_a_shipped_model_has_changed(copper_file: str, monkeypatch) -> None:
    succeeds("md", copper_file, "--model", COPPER, "--steps", 2, "-o", "run.h5md")
    monkeypatch.setattr(model_file, "shipped_models", lambda: {COPPER: Path(COPPER)})
    monkeypatch.setattr(model_file, "checksum", lambda model: "another")
    said = fails("md", "--resume", "run.h5md", "--steps", 4)
    assert "continue with the version of attncalc of that time, or begin another run" in said


def test_md_holds_fixed_atoms(copper_file: str) -> None:
    atoms = read(copper_file)
    atoms.set_constraint(FixAtoms([0]))
    write("fixed.extxyz", atoms)
    common = ("md", "fixed.extxyz", "--model", COPPER, "--steps", 5)
    succeeds(*common, "-o", "run.h5md")
    first, *_, last = read_h5md("run.h5md")
    moved = (first.positions != last.positions).any(axis=1)
    assert moved.tolist() == [False, True, True, True]
    assert [constraint.get_indices().tolist() for constraint in last.constraints] == [[0]]
    atoms.set_constraint(FixBondLength(0, 1))
    write("bond.traj", atoms)
    said = fails("md", "bond.traj", "--model", COPPER, "--steps", 5)
    assert said == (
        "Error: the constraint FixBondLengths needs ASE's integrators or optimizers (of attncalc "
        "md: --integrator ase); here only FixAtoms is known"
    )
    by_ase = ("--integrator", "ase", "--steps", 2)
    said = attncalc("md", "bond.traj", "--model", COPPER, *by_ase, "-o", "bond.xyz").stderr
    assert "Warning: bond.xyz will not keep FixBondLengths: files of this type have none" in said
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixSymmetry(atoms))
    write("symmetry.traj", atoms)
    for integrator in ("native", "ase"):
        common = ("--model", COPPER, "--integrator", integrator, "-o", "out.traj")
        said = fails("md", "symmetry.traj", *common)
        assert "the constraint FixSymmetry does not say how many degrees of freedom" in said


def test_md_by_ase_of_springs_and_internal_coordinates(copper_file: str) -> None:
    """Files have the model's energy; ASE's FixInternals gave a temperature 20 % too high."""
    atoms = read(copper_file)
    by_ase = ("--integrator", "ase", "--steps", 2)
    atoms.set_constraint(FixInternals(bonds=[[2.6, [0, 1]]]))
    write("internal.traj", atoms)
    said = fails("md", "internal.traj", "--model", COPPER, *by_ase, "-o", "internal.md.traj")
    assert said.startswith("Error: the constraint FixInternals of ASE does not regard the masses")
    atoms.set_constraint(Hookean(0, 1, rt=2.0, k=1.0))
    write("spring.traj", atoms)
    common = ("md", "spring.traj", "--model", COPPER, "--every", 1)
    said = succeeds(*common, *by_ase, "-o", "spring.md.traj")
    assert "total_eV includes the energy of springs (Hookean), potential_eV does not" in said
    for frame, row in zip(read("spring.md.traj", ":"), read_log("spring.md.csv"), strict=True):
        alone = frame.get_potential_energy(apply_constraint=False)
        assert row["potential_eV"] == pytest.approx(alone)
        with_spring = frame.get_potential_energy() + frame.get_kinetic_energy()
        assert row["total_eV"] == pytest.approx(with_spring)
        assert with_spring > alone + 0.1


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_of_atoms_that_were_fixed_while_they_moved(integrator: str, copper_file: str) -> None:
    """ASE keeps their momenta, which are no motion."""
    atoms = read(copper_file)
    common = ("--model", COPPER, "--steps", 2, "--integrator", integrator, "-o", "run.traj")
    momenta = np.random.default_rng(0).normal(size=(4, 3))
    for free, expected in ((momenta[1:], r"\(T = (\d+) K\)"), (0 * momenta[1:], "")):
        atoms.set_constraint()
        atoms.set_momenta(np.vstack([momenta[:1], free]))
        atoms.set_constraint(FixAtoms([0]))
        write("moved.traj", atoms)
        said = succeeds("md", "moved.traj", "--ensemble", "nve", *common, "--overwrite")
        with open("run.csv", newline="") as file:
            first = next(csv.DictReader(file))
        assert ("velocities of the file" in said) == bool(expected)
        wanted = float(re.search(expected, said)[1]) if expected else 300.0  # drawn
        assert float(first["temperature_K"]) == pytest.approx(wanted, abs=0.5)
        assert not read("run.traj", 0).get_momenta()[0].any()


@pytest.mark.parametrize(("key", "value"), [(5, 6), ("note", "two\nlines")])
def test_md_of_entries_that_extended_xyz_cannot_hold(
    key: object, value: object, copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = read(copper_file)
    atoms.info[key] = value
    write("odd.traj", atoms)
    monkeypatch.setattr(module, "run_structures", None)
    said = fails("md", "odd.traj", "--model", COPPER, "-o", "odd.xyz")
    assert said.startswith("Error: odd.xyz: ASE cannot write this structure as .xyz (")
    assert said.endswith("); use .traj")
    assert files() == {copper_file, "odd.traj"}


def test_md_seeds(copper_file: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        common = ("md", copper_file, "--model", COPPER, "--steps", 5, "--every", 5)
        succeeds(*common, "--seed", seed, "-o", f"{name}.xyz")
    assert Path("a.xyz").read_bytes() == Path("b.xyz").read_bytes()
    assert Path("a.xyz").read_bytes() != Path("c.xyz").read_bytes()


def test_md_says_that_it_keeps_velocities(copper_file: str) -> None:
    common = ("--model", COPPER, "--ensemble", "nve", "--steps", 3)
    assert "velocities" not in succeeds("md", copper_file, *common, "-o", "a.xyz")
    last = read("a.xyz", -1)
    assert fails("md", "a.xyz", *common, "--temperature", 5, "-o", "b.xyz") == (
        "Error: --temperature is that of velocities that are drawn, and a.xyz has velocities: "
        "remove it"
    )
    said = succeeds("md", "a.xyz", *common, "-o", "b.xyz")
    found = re.match(
        r"structure 2 of 2 in a\.xyz\nusing the velocities of the file \(T = (\d+) K\)\n", said
    )
    with open("b.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(found[1]) == pytest.approx(float(first["temperature_K"]), abs=0.5)
    assert float(found[1]) > 50
    assert np.allclose(read("b.xyz", 0).get_momenta(), last.get_momenta(), atol=1e-6)
    for shown in ("(momenta) in the file are kept", "of velocities that are drawn"):
        assert shown in " ".join(attncalc("md", "--help").output.split())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--pressure", "nan", "pressure must be a finite number, got nan"),
        ("--seed", "-1", "seed must be at least 0, got -1"),
        ("--seed", "4294967296", "seed must be at most 4294967295, got 4294967296"),
        ("--steps", "0", "--steps must be positive, got 0"),
        ("--timestep", "-0.5", "--timestep must be positive, got -0.5"),
        ("--cell-relaxation", "-3", "--cell-relaxation must be positive, got -3"),
        (
            *("--timestep", "0.0005"),
            "--timestep is in fs, and 0.0005 fs is too short for a run: for 0.0005 ps write "
            "--timestep 0.5",
        ),
        (
            *("--timestep", "1001"),
            "--timestep is in fs, and 1001 fs is too long for a run: 0.5 is usual, with heavy "
            "atoms up to 5",
        ),
    ],
)
def test_md_settings(option: str, value: str, message: str, copper_file: str) -> None:
    for integrator in ("native", "ase"):
        said = fails(
            "md", copper_file, "--model", "unread", "--integrator", integrator, option, value
        )
        assert said == f"Error: {message}"
    assert files() == {copper_file}


@pytest.mark.parametrize(
    ("ensemble", "option", "value", "owner"),
    [
        ("nvt", "--pressure", 3, "npt"),
        ("nve", "--pressure", 0, "npt"),  # typed, though it is the default
        ("nve", "--friction", 5, "nvt"),
        ("npt", "--friction", 5, "nvt"),
    ],
)
def test_md_refuses_options_of_another_ensemble(
    ensemble: str, option: str, value: float, owner: str, copper_file: str
) -> None:
    said = fails("md", copper_file, "--model", COPPER, "--ensemble", ensemble, option, value)
    assert said == (
        f"Error: {option} applies to {owner} only, and this run is {ensemble}: remove it, or use "
        f"--ensemble {owner}"
    )
    assert files() == {copper_file}


@pytest.mark.parametrize("name", ["run.xyz", "run.csv", "run.png", "run.ckpt"])
def test_md_overwrites_nothing(name: str, copper_file: str) -> None:
    Path(name).write_text("precious")
    said = fails("md", copper_file, "--model", COPPER, "--steps", 1, "-o", "run.xyz")
    assert said == f"Error: {name} exists: choose another name, or use --overwrite"
    assert Path(name).read_text() == "precious"
    assert files() == {copper_file, name}


@pytest.mark.usefixtures("real_pictures")
def test_md_that_explodes(ethanol_file: str) -> None:
    said = fails(
        *("md", ethanol_file, "--model", ETHANOL, "--timestep", 20, "--steps", 500, "-o", "a.xyz")
    )
    assert re.match(r"Error: stopped at \d+\.0 fs: .*; the last valid frame is in a\.xyz\. ", said)
    assert len(read("a.xyz", ":")) >= 1
    assert Path("a.png").read_bytes().startswith(b"\x89PNG"), "of what there is"


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_from_velocities_that_are_none(integrator: str, copper_file: str) -> None:
    """No frame was written, so the message names none."""
    atoms = read(copper_file)
    momenta = np.ones((4, 3))
    momenta[1, 2] = np.nan
    atoms.set_momenta(momenta)
    write("hot.traj", atoms)
    said = fails("md", "hot.traj", "--model", COPPER, "--integrator", integrator)
    assert said.startswith("Error: the run cannot start from this state: energy")
    assert said.endswith("or remove its velocities (momenta)")
    assert files() == {copper_file, "hot.traj"}


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_from_velocities_in_wrong_units(copper_file: str, integrator: str) -> None:
    atoms = read(copper_file)
    atoms.set_momenta(np.random.default_rng(1).normal(size=(4, 3)) * 1e3)
    write("hot.traj", atoms)
    said = fails("md", "hot.traj", "--model", COPPER, "--integrator", integrator)
    assert said.startswith("Error: the run cannot start from this state: the temperature")
    assert files() == {copper_file, "hot.traj"}


def test_md_that_is_stopped(copper_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: one line, whole frames, a picture of them, and the way to go on."""
    take_step, calls = Langevin.step, []

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return take_step(self, *arguments)

    monkeypatch.setattr(Langevin, "step", interrupted)
    result = attncalc("md", copper_file, "--model", COPPER, "--every", 3, "-o", "run.h5md")
    assert result.exit_code == 130
    assert result.stderr == (
        "stopped: 6 of 10000 steps are done; run.h5md holds them to 3.0 fs; continue with "
        "--resume run.h5md\n"
    )
    assert [frame.info["step"] for frame in read_h5md("run.h5md")] == [0, 3, 6]
    assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}
    succeeds("md", "--resume", "run.h5md", "--steps", 9)
    assert [frame.info["step"] for frame in read_h5md("run.h5md")] == [0, 3, 6, 9]


def test_md_by_ase_that_is_stopped(copper_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calculate, calls = AttnCalculator.calculate, []

    def interrupted(self, *arguments) -> None:
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        calculate(self, *arguments)

    monkeypatch.setattr(AttnCalculator, "calculate", interrupted)
    common = ("md", copper_file, "--model", COPPER, "--integrator", "ase", "--every", 3)
    result = attncalc(*common, "-o", "run.xyz")
    assert result.exit_code == 130
    found = re.fullmatch(
        r"stopped: (\d+) of 10000 steps are done; run\.xyz holds 3 whole frames, to 3\.0 fs\n",
        result.stderr,
    )
    assert found, result.stderr
    assert int(found[1]) in (7, 8)
    assert len(read("run.xyz", ":")) == 3
    assert files() == {copper_file, "run.xyz", "run.csv", "run.png"}


@pytest.mark.parametrize("name", ["run.h5md", "run.xyz"])
def test_md_that_is_stopped_at_once(
    name: str, copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    result = attncalc("md", copper_file, "--model", COPPER, "-o", name)
    assert result.exit_code == 130
    assert files() == {copper_file}, "the next try finds the names free"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """What pictures of runs are drawn from."""
    found: list = []
    draw = plots.md_summary

    def seen(rows, frames, **options):
        found.append((rows, frames, options))
        return draw(rows, frames, **options)

    monkeypatch.setattr(plots, "md_summary", seen)
    return found


def test_md_draws_some_frames_of_a_long_run(copper_file: str, drawn: list, monkeypatch) -> None:
    monkeypatch.setattr(md_picture, "MOST_FRAMES", 4)
    common = ("md", copper_file, "--model", COPPER, "--steps", 9, "--every", 1)
    succeeds(*common, "--temperature", 200, "-o", "run.xyz")
    ((rows, frames, options),) = drawn
    assert len(rows) == 10
    assert len(frames) == 4
    assert np.allclose(frames[-1].positions, read("run.xyz", -1).positions), "the very last"
    assert options == {
        "title": "Cu4, cu-emt (ASE EMT), NVT",
        "ensemble": "nvt",
        "target": 200.0,
        "n_dof": 12,
    }
    succeeds(*common, "--ensemble", "nve", "-o", "nve.h5md")
    assert drawn[1][2]["target"] is None


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_tells_of_a_bond_that_breaks(integrator: str, drawn: list) -> None:
    """As with the teacher of the model, two atoms of phosphorus fly apart."""
    write("p2.xyz", Atoms("P2", [[0, 0, 0], [0, 0, 2.3]]))
    arguments = ("md", "p2.xyz", "--steps", 200, "--every", 50, "--integrator", integrator)
    found = attncalc(*arguments)
    (line,) = (line for line in found.stderr.splitlines() if "broke" in line)
    assert re.fullmatch(
        r"Warning: step \d+ \(\d+\.\d fs\): 1 bond broke: "
        r"P-P of atoms 0 and 1 \(2\.30 -> \d\.\d\d Å\)",
        line,
    )
    ((_, _, options),) = drawn
    assert options["title"].endswith("bonds broke")


def test_md_that_is_resumed_compares_bonds_with_the_first_frame(drawn: list) -> None:
    write("p2.xyz", Atoms("P2", [[0, 0, 0], [0, 0, 2.3]]))
    assert "broke" not in attncalc("md", "p2.xyz", "--steps", 100, "--every", 20).stderr
    assert not drawn[-1][2]["title"].endswith("bonds broke")
    then = read_h5md("p2.md.h5md", -1)[0].get_distance(0, 1)
    assert 2.6 < then < 1.6 * 2 * 1.07  # on its way
    assert (
        "P-P of atoms 0 and 1 (2.30 -> "
        in attncalc("md", "--resume", "p2.md.h5md", "--steps", 300).stderr
    )
    assert drawn[-1][2]["title"].endswith("bonds broke")
    attncalc("md", "--resume", "p2.md.h5md", "--steps", 340)
    assert drawn[-1][2]["title"].endswith("bonds broke")


def test_md_does_not_draw_isomers_as_one_molecule(drawn: list) -> None:
    """Ethanol and dimethyl ether, with atoms in the same order."""
    write("two.extxyz", [_sorted(molecule(name)) for name in ("CH3CH2OH", "CH3OCH3")])
    run = ("md", "two.extxyz", "--replicas", 2, "--steps", 4, "--every", 2, "-o", "run.h5md")
    succeeds(*run, "--quiet")
    ((rows, frames, options),) = drawn
    assert options["title"].endswith("(2 of 4 systems)")
    assert {row["system"] for row in rows} == {0, 1}
    lengths = plots.bond_lengths(frames)
    assert set(lengths) == {"C-C", "C-H", "C-O", "O-H"}
    assert all(1.3 < value < 1.7 for value in (*lengths["C-C"], *lengths["C-O"]))


def _sorted(atoms: Atoms) -> Atoms:
    return atoms[np.argsort(-atoms.numbers % 8, kind="stable")]


def test_md_of_a_committee_logs_its_spread(ethanol_file: str) -> None:
    said = succeeds("md", ethanol_file, "--model", f"{ETHANOL}-committee", "--steps", 20)
    with open("ethanol.md.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    spreads = [float(row["force_spread_eV_A"]) for row in rows]
    assert all(spread > 0 for spread in spreads)
    assert [frame.info["force_spread_eV_A"] for frame in read_h5md("ethanol.md.h5md")] == spreads
    assert f"largest spread of the committee on a force: {max(spreads):.3f} eV/Å, at " in said
    said = succeeds("md", ethanol_file, "--model", ETHANOL, "--steps", 20, "-o", "one.xyz")
    assert "spread" not in said + Path("one.csv").read_text()


HOSTILE = (
    ({"threads": 10**7}, "threads must be at most 1024, got 10000000"),
    ({"threads": "4"}, "threads must be a whole number, got '4'"),
    ({"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
    ({"long_range_cutoff": -1.0}, "long_range_cutoff must be a positive number of Å, got -1.0"),
    ({"long_range_cutoff": "12"}, "long_range_cutoff must be a positive number of Å, got '12'"),
    ({"model": 7}, "model must be a text, got 7"),
    ({"title": None}, "title must be a text, got None"),
    ({"n_dof": 0}, "n_dof must be at least 1, got 0"),
    ({"settings": {}}, "its settings are not those of its integrator"),
    ({"settings": [1]}, ""),
    ({"settings": {"n_steps": float("nan")}}, "n_steps must be a whole number, got nan"),
    ({"settings": {"n_steps": 1e6}}, "n_steps must be a whole number, got 1000000.0"),
    ({"settings": {"every": -3}}, "every must be at least 1, got -3"),
    ({"settings": {"seed": -1}}, "seed must be at least 0, got -1"),
    ({"settings": {"ensemble": "npt"}}, "its settings are not those of its integrator"),
    ({"settings": {"ensemble": ["nve"]}}, "ensemble must be"),
    ({"settings": {"timestep": "1"}}, "timestep must be a number, got '1'"),
    (
        {"settings": {"write": "dipole"}},
        "write takes the names charges, dipole and stress, got 'dipole'",
    ),
    (
        {"settings": {"write": ["spin"]}},
        "write takes the names charges, dipole and stress, got spin",
    ),
    ({"settings": {"wrong": 1}}, "unexpected keyword argument 'wrong'"),
)


def test_md_resume_from_a_hostile_checkpoint(copper_file: str) -> None:
    """With a right checksum: one line that names the file."""
    succeeds("md", copper_file, "--model", COPPER, "--timestep", 1, "--steps", 1, "-o", "run.h5md")
    integrator, state, info = load_checkpoint("run.ckpt")
    for change, message in HOSTILE:
        save_checkpoint(Path("run.ckpt"), integrator, state, info | change)
        said = fails("md", "--resume", "run.h5md", "--steps", 2)
        assert said.startswith("Error: run.ckpt: not as `attncalc md` writes it (")
        assert message in said


def test_md_refuses_names_of_a_run_and_says_how_to_go_on(copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--steps", 1, "-o", "run.h5md")
    succeeds(*common)
    assert fails(*common) == (
        "Error: run.h5md exists: choose another name, or use --overwrite (or continue with "
        "--resume run.h5md)"
    )


def test_md_that_was_killed_before_its_first_frame_goes_on(
    copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state was saved before all else."""
    common = ("md", copper_file, "--model", COPPER, "--steps", 6, "--every", 2, "-o")
    succeeds(*common, "whole.h5md")
    with monkeypatch.context() as patch:
        patch.setattr(H5MDWriter, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        process = Forked(*common, "run.h5md")
    status, _ = process.ended()
    assert status == -signal.SIGKILL
    assert files() >= {"run.ckpt", "run.csv"}
    assert not Path("run.h5md").exists()
    succeeds("md", "--resume", "run.h5md")
    assert states("run.h5md") == states("whole.h5md")
    assert Path("run.csv").read_text() == Path("whole.csv").read_text()
    assert not [name for name in files() if name.startswith(".")]


@pytest.mark.parametrize("limit", [100, 58_000])
def test_md_on_a_full_disk(limit: int, copper_file: str) -> None:
    """One line, nothing left behind, and the same command works with space; no signal.

    A limit to the size of files, as `ulimit -f` sets it, needs no disk; standard output is a file.
    """
    common = ("md", copper_file, "--model", COPPER, "--steps", 4, "-o", "run.h5md")
    limits = (limit, limit)
    process = Forked(*common, changed=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert process.ended() == (
        1,
        "Error: no space left on the disk for run.h5md (the largest size of a file is reached, see "
        "ulimit -f): nothing of the run was kept: free some space and start it again\n",
    )
    assert files() == {copper_file}
    succeeds(*common)


@pytest.mark.parametrize("steps", [20, 23])
def test_md_that_is_done_gets_its_log_and_picture_back(steps: int, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--steps", steps, "-o", "run.h5md")
    succeeds(*common)
    log = Path("run.csv").read_bytes()
    for content in (log, None, b"", log[:200]):
        Path("run.png").unlink()
        Path("run.csv").unlink()
        if content is not None:
            Path("run.csv").write_bytes(content)
        for left in (".run.h5md.twin", ".run.h5md.spare", ".run.h5md.lock", ".run.csv.lock"):
            Path(left).write_bytes(b"of a run that was killed")
        done = attncalc("md", "--resume", "run.h5md")
        assert done.exit_code == 0, done.output
        assert Path("run.csv").read_bytes() == log
        assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}


def test_md_on_a_disk_that_fills_up_after_a_frame(
    copper_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many frames are reported as the file holds, though the log has a line less."""
    log_it, calls = Log.__call__, []

    def full(self, state) -> None:
        calls.append(state)
        if len(calls) == 3:
            raise NoSpaceLeft("run.csv", errno.ENOSPC)
        log_it(self, state)

    monkeypatch.setattr(Log, "__call__", full)
    said = fails("md", copper_file, "--model", COPPER, "--every", 2, "-o", "run.xyz")
    assert said.endswith("it holds 3 whole frames, to 2.0 fs")
    assert [frame.info["step"] for frame in read("run.xyz", ":")] == [0, 2, 4]


def test_md_continues_all_systems_of_a_batch(copper_file: str) -> None:
    common = ("--model", COPPER, "--ensemble", "nve", "--steps", 4, "--every", 2)
    succeeds("md", copper_file, *common, "--replicas", 2, "-o", "batch.h5md")
    said = succeeds("md", "batch.h5md", *common, "-o", "more.h5md")
    assert said.startswith("2 systems of batch.h5md in one batch\nusing the velocities of the file")
    for k in range(2):
        last, first = read_h5md("batch.h5md", -1, k)[0], read_h5md("more.h5md", 0, k)[0]
        assert np.array_equal(first.positions, last.positions)
        assert np.allclose(first.get_momenta(), last.get_momenta(), rtol=1e-12)
    said = succeeds("md", "batch.h5md", *common, "--replicas", 3, "-o", "many.h5md")
    assert "3 frames of 6 systems" in said
    said = fails("md", "batch.h5md", *common, "--integrator", "ase")
    assert said == "Error: batch.h5md holds 2 systems: remove --integrator ase, which runs one"
    both = [read_h5md("batch.h5md", system=k) for k in range(2)]
    for atoms, frame in zip(read_structures("batch.h5md"), [*both[0], *both[1]], strict=True):
        assert np.array_equal(atoms.positions, frame.positions)


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_notes_its_own_steps_in_frames(integrator: str, copper_file: str) -> None:
    common = ("--model", COPPER, "--steps", 4, "--every", 4)
    succeeds("md", copper_file, *common, "-o", "first.h5md")
    succeeds("md", "first.h5md", *common, "--integrator", integrator, "-o", "run.xyz")
    found = [(frame.info["step"], frame.info["time_fs"]) for frame in read("run.xyz", ":")]
    assert found == [(0, 0.0), (4, pytest.approx(2.0))]
    atoms = read(copper_file)
    atoms.info |= {"novelty": 7.0, "charge": 0}
    write("noted.extxyz", atoms)
    (noted,) = read_structures("noted.extxyz")
    assert noted.info == {"charge": 0}


def test_md_files_set_aside_by_a_killed_run(copper_file: str) -> None:
    """They are put back if the new run had not begun, and removed if it had."""
    run = ("md", copper_file, "--model", COPPER, "--steps", 2, "-o", "run.h5md")
    succeeds(*run)
    there = files()
    for name in there - {copper_file}:
        Path(name).rename(f".{name}.older")
    assert "run.h5md exists" in fails(*run)
    assert files() == there
    Path(".run.csv.older").write_bytes(b"of a run that was replaced")
    kept = Path("run.csv").read_bytes()
    assert "run.h5md exists" in fails(*run)
    assert Path("run.csv").read_bytes() == kept
    succeeds("md", "--resume", "run.h5md")
    assert files() == there


@pytest.mark.usefixtures("real_pictures")
def test_md_of_replicas_is_one_batch(copper_file: str, drawn: list) -> None:
    """Every structure of the file, so many times; each replica goes its own way."""
    frames = [*read(copper_file, ":"), bulk("Cu", cubic=True)]
    write("two.xyz", frames)
    run = ("md", "two.xyz", "--model", COPPER, "--replicas", 3, "--every", 5)
    said = succeeds(*run, "--steps", 20, "-o", "run.h5md")
    assert "5 frames of 6 systems" in said
    ends = [read_h5md("run.h5md", -1, system=k)[0] for k in range(6)]
    assert [len(atoms) for atoms in ends] == 3 * [len(frames[0])] + 3 * [4]
    assert len({atoms.positions.tobytes() for atoms in ends}) == 6
    assert Path("run.png").stat().st_size > 10_000
    ((rows, shown, options),) = drawn
    assert [row["system"] for row in rows] == 5 * list(range(6)), "all replicas"
    assert len(shown) == 5 * 6
    assert np.array_equal(shown[-1].positions, ends[0].positions)
    assert options["title"] == "Cu4, cu-emt (ASE EMT), NVT (6 systems)"
    succeeds(*run, "--steps", 10, "-o", "part.h5md")
    succeeds("md", "--resume", "part.h5md", "--steps", 20)
    for k in range(6):
        assert np.array_equal(read_h5md("part.h5md", -1, system=k)[0].positions, ends[k].positions)
    assert Path("part.csv").read_bytes() == Path("run.csv").read_bytes()
    said = fails(*run, "-o", "other.xyz")
    assert "other.xyz: several structures need a trajectory in .h5md" in said
    assert "--replicas needs attncalc's integrators" in fails(*run, "--integrator", "ase")


def test_md_as_json_quietly_and_over_an_older_run(copper_file: str) -> None:
    run = ("md", copper_file, "--model", COPPER, "--steps", 10, "--every", 5, "-o", "run.h5md")
    found = json.loads(attncalc(*run, "--json").stdout)
    assert found["frames"] == 3
    assert found["last"]["time_fs"] == pytest.approx(5.0)
    assert "run.h5md exists" in fails(*run)
    assert succeeds(*run, "--overwrite", "--quiet") == ""
    assert found["frames"] == len(read_h5md("run.h5md"))
    with FileLock(Path("run.h5md")):
        assert "another run is still writing it" in fails(*run, "--overwrite")
    assert Path("run.ckpt").exists()


def test_md_overwrites_nothing_but_its_own_outputs(copper_file: str) -> None:
    """Neither the input nor another run, and the older run stays if the new one cannot begin."""
    run = ("--model", COPPER, "--steps", 4, "--every", 2, "--quiet")
    succeeds("md", copper_file, *run, "-o", "run.h5md")
    before = {name: Path(name).read_bytes() for name in files()}
    assert fails("md", copper_file, *run, "-o", "run.xyz", "--overwrite") == (
        "Error: run.h5md has log and picture of the same name: name another output with -o"
    )
    write("in.xyz", read(copper_file))
    assert "in.xyz is the input" in fails("md", "in.xyz", *run, "-o", "in.xyz", "--overwrite")
    hot = read(copper_file)
    hot.set_momenta(np.full((len(hot), 3), 100.0))
    write("hot.traj", hot)
    fails("md", "hot.traj", *run, "-o", "run.h5md", "--overwrite")
    Path("hot.traj").unlink()
    Path("in.xyz").unlink()
    assert {name: Path(name).read_bytes() for name in files()} == before


def test_md_overwrites_its_run_beside_a_structure_of_the_same_name(copper_file: str) -> None:
    write("run.xyz", read(copper_file))
    run = ("md", copper_file, "--model", COPPER, "--steps", 2, "-o", "run.h5md", "--overwrite")
    succeeds(*run, "--quiet")
    succeeds(*run, "--quiet")
    assert len(read("run.xyz", ":")) == 1


def test_replicas_draw_velocities_of_their_own(copper_file: str) -> None:
    atoms = read(copper_file)
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    write("moving.traj", atoms)
    run = ("md", "moving.traj", "--model", COPPER, "--ensemble", "nve", "--steps", 4)
    said = succeeds(*run, "--replicas", 3, "-o", "run.h5md")
    assert "ignoring the velocities of the file: every replica draws its own" in said
    ends = [read_h5md("run.h5md", -1, system=k)[0].positions.tobytes() for k in range(3)]
    assert len(set(ends)) == 3


def test_md_that_continues_velocities_has_other_random_forces(copper_file: str) -> None:
    common = ("--model", COPPER, "--steps", 4, "--every", 2)
    assert "seed" not in succeeds("md", copper_file, *common, "-o", "a.h5md")
    said = succeeds("md", "a.h5md", *common, "-o", "b.h5md")
    seed = int(re.search(r"K\); the seed (\d+) is made of them\n", said)[1])
    succeeds("md", "a.h5md", *common, "--seed", seed, "-o", "c.h5md")
    succeeds("md", "a.h5md", *common, "--seed", 0, "-o", "d.h5md")
    b, c, d = (read_h5md(f"{name}.h5md", -1)[0].positions for name in "bcd")
    assert np.array_equal(b, c)
    assert not np.array_equal(b, d)
    said = succeeds("md", "a.h5md", *common, "--replicas", 2, "-o", "e.h5md")
    assert f"every replica draws its own; the seed {seed} is made of them" in said
    seeds = [load_checkpoint(f"{name}.ckpt").state.seed for name in "abcde"]
    assert seeds == [0, seed, seed, 0, seed]


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_frames_have_no_labels_of_the_input(integrator: str, copper_file: str) -> None:
    atoms = read(copper_file)
    n = len(atoms)
    atoms.info |= {
        "REF_energy": -1.0,
        "dft_dipole": 1.5,
        "energy_dft": -2.0,
        "name": "fcc",
        "charge": 0,
    }
    atoms.arrays |= {
        "REF_forces": np.ones((n, 3)),
        "mbis_charges": np.ones(n),
        "site": np.arange(n),
    }
    write("labelled.xyz", atoms)
    common = ("--model", COPPER, "--steps", 2, "--every", 1, "--integrator", integrator)
    succeeds("md", "labelled.xyz", *common, "-o", "run.xyz")
    for frame in read("run.xyz", ":"):
        assert not {"REF_energy", "dft_dipole", "energy_dft"} & frame.info.keys()
        assert not {"REF_forces", "mbis_charges"} & frame.arrays.keys()
        assert frame.info["name"] == "fcc"
        assert frame.arrays["site"].tolist() == list(range(n))


def test_md_warns_of_a_timestep_with_which_averages_are_wrong(copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--steps", 300, "--every", 50)
    assert succeeds(*common, "--timestep", 2, "-o", "a.h5md")  # without a warning
    result = attncalc(*common, "--timestep", 30, "-o", "b.h5md")
    drift = re.search(r"the conserved quantity drifted by ([-+.\d]+) meV per atom", result.stderr)
    with open("b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    change = float(rows[-1]["conserved_eV"]) - float(rows[0]["conserved_eV"])
    n_atoms, time = len(read(copper_file)), 1e-3 * float(rows[-1]["time_fs"])
    assert float(drift[1]) == pytest.approx(1000 * change / n_atoms / time, rel=0.01)
