"""The command line: all commands on small inputs, errors in one line, files whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read, write
from ase.optimize import FIRE
from click.testing import CliRunner, Result

from attncalc import AttnCalculator, data, load
from attncalc import cli as module
from attncalc.cli import main
from attncalc.data.errors import predict
from attncalc.md import Forces, Langevin, load_checkpoint, read_h5md
from attncalc.model_file import NETWORKS
from attncalc.potential import Potential

try:
    import pty
    import termios
except ImportError:  # where there are no terminals of this kind
    pty = None

ETHANOL = "so3krates-ethanol"
COPPER = str(Path(__file__).parent / "models" / "cu-emt.safetensors")
COMMANDS = [
    ["relax"],
    ["md"],
    ["train"],
    ["eval"],
    ["verify"],
    ["models"],
    ["convert", "so3krates"],
]


def attncalc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeds(*arguments: object) -> str:
    result = attncalc(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "a pipe shows no progress bar"
    return result.stdout


def fails(*arguments: object) -> str:
    """The one line on stderr."""
    result = attncalc(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "a traceback"
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


@pytest.fixture
def ethanol_file() -> str:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=0)
    write("ethanol.xyz", atoms)
    return "ethanol.xyz"


@pytest.fixture
def copper_file() -> str:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=0)
    write("copper.extxyz", atoms)
    return "copper.extxyz"


# ----------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: list[str]) -> None:
    result = attncalc(*command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"Example: attncalc {' '.join(command)}" in text
    for option, default in re.findall(r"(--[a-z-]+) .*?\[default: ([^\]]+)\]", text):
        assert default, option
    assert attncalc(*command, "-h").output == result.output


def test_help_shows_defaults() -> None:
    text = " ".join(attncalc("md", "--help").output.split())
    for shown in ("300.0", "10000", "0.5", "0.01", "nvt", "auto"):
        assert f"[default: {shown}]" in text
    assert "NAME.md.h5md" in text


def test_all_commands_are_known_to_the_group() -> None:
    listed = attncalc("--help").output
    assert set(main.commands) == {command[0] for command in COMMANDS}
    for command in main.commands:
        assert re.search(rf"^  {command} +\S", listed, re.MULTILINE), command


def test_version() -> None:
    assert re.fullmatch(r"attncalc, version \d+\.\d+\.\d+\S*\n", succeeds("--version"))


# ---------------------------------------------------------------------------------------- relax


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_relax(optimizer: str, ethanol_file: str) -> None:
    said = succeeds(
        *("relax", ethanol_file, "--model", ETHANOL, "--optimizer", optimizer, "-o", "out.xyz"),
        *("--fmax", 0.02),
    )
    assert re.match(r"structure 0: converged in \d+ steps, largest force 0\.0[012]\d+ eV/Å", said)
    assert said.splitlines()[-1] == "wrote out.xyz, out.png"
    relaxed = read("out.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() <= 0.02
    again = AttnCalculator(ETHANOL)
    assert relaxed.get_potential_energy() == pytest.approx(again.get_potential_energy(relaxed))
    assert files() == {ethanol_file, "out.xyz", "out.png"}
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_relax_several_structures_and_their_cells() -> None:
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.7)]
    write("two.extxyz", frames)
    said = succeeds("relax", "two.extxyz", "--model", COPPER, "--cell", "--fmax", 0.005)
    assert said.count(": converged in ") == 2
    relaxed = read("two.relaxed.xyz", ":")
    volumes = [atoms.get_volume() for atoms in relaxed]
    assert volumes[0] == pytest.approx(volumes[1], rel=2e-3)
    assert 3.55**3 < volumes[0] < 3.65**3


def rattled(n: int) -> list[Atoms]:
    frames = []
    for k in range(n):
        frames.append(bulk("Cu", a=3.6, cubic=True))
        frames[-1].rattle(0.1, seed=k)
    return frames


def test_relax_draws_every_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture shows what the optimizer did."""
    write("two.extxyz", rattled(2))
    drawn: list = []
    draw = module.plots.relax_summary

    def seen(courses, **options):
        drawn.append((courses, options))
        return draw(courses, **options)

    monkeypatch.setattr(module.plots, "relax_summary", seen)
    said = succeeds("relax", "two.extxyz", "--model", COPPER, "--fmax", 0.02)
    ((courses, options),) = drawn
    assert options == {"fmax": 0.02, "title": "two.extxyz, cu-emt"}
    for k, (course, atoms) in enumerate(zip(courses, read("two.relaxed.xyz", ":"), strict=True)):
        assert f"structure {k}: converged in {len(course) - 1} steps" in said
        energy, largest = course[-1]
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert largest == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-6)
        assert course[0][0] > energy


def test_relax_that_needs_more_steps(ethanol_file: str) -> None:
    """What there is gets written; the exit status tells."""
    result = attncalc("relax", ethanol_file, "--model", ETHANOL, "--steps", 2, "-o", "out.xyz")
    assert result.exit_code == 1
    assert "structure 0: NOT converged in 2 steps" in result.stdout
    assert result.stderr == "Error: 1 of 1 structures did not converge: take more --steps\n"
    assert len(read("out.xyz")) == 9


def test_relax_writes_all_or_nothing(ethanol_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, frames: list[Atoms]) -> None:
        path.write_text("9\n")
        raise OSError("disk full")

    monkeypatch.setattr(module, "write", half)
    result = attncalc("relax", ethanol_file, "--model", ETHANOL, "--steps", 1, "-o", "out.xyz")
    assert result.stderr == "Error: disk full\n"
    assert files() == {ethanol_file}


def two(**second) -> list[Atoms]:
    """Ethanol, and something else that may be impossible."""
    first = molecule("CH3CH2OH")
    other = second.pop("atoms", first).copy()
    other.info.update(second)
    return [first, other]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (two(atoms=molecule("SiH4")), "structure 1: this model was not trained on Si; it knows: "),
        (two(charge=1, spin=2), "structure 1: total charge +1 e: this model knows neutral"),
        (two(spin=3), "structure 1: multiplicity 3: this model knows only the lowest"),
        (two(spin=2), 'structure 1: atoms.info["spin"] = 2 is impossible for 26 electrons'),
    ],
)
def test_relax_checks_all_structures_first(frames, message: str, monkeypatch) -> None:
    write("two.extxyz", frames)
    monkeypatch.setattr(module, "_relax_one", None)
    assert message in fails("relax", "two.extxyz", "--model", ETHANOL)
    assert files() == {"two.extxyz"}


def test_relax_checks_cells_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write("two.extxyz", [bulk("Cu"), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])])
    monkeypatch.setattr(module, "_relax_one", None)
    said = fails("relax", "two.extxyz", "--model", COPPER, "--cell")
    assert said.startswith("Error: structure 1: stress needs a volume")


def test_relax_asks_whether_the_format_takes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    write("two.extxyz", [bulk("Cu"), bulk("Cu", a=3.7)])
    monkeypatch.setattr(module, "AttnCalculator", None)
    said = fails("relax", "two.extxyz", "--model", COPPER, "-o", "POSCAR")
    assert said == (
        "Error: POSCAR: a file of this format holds one structure, and there are 2; take .xyz"
    )


@pytest.mark.parametrize("name", ["POSCAR", "coord", "out.cif", "out.traj"])
def test_relax_writes_what_ase_writes(name: str) -> None:
    """Also formats that ASE knows by the whole name."""
    write("one.extxyz", bulk("Cu", a=3.65, cubic=True))
    succeeds("relax", "one.extxyz", "--model", COPPER, "-o", name)
    assert len(read(name)) == 4
    assert files() == {"one.extxyz", name, str(Path(name).with_suffix(".png"))}


@pytest.mark.parametrize("problem", [ValueError("it broke"), KeyboardInterrupt()])
def test_relax_keeps_what_is_done(problem: BaseException, monkeypatch) -> None:
    write("three.extxyz", [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.6, 3.7)])
    relax_one, calls = module._relax_one, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise problem
        return relax_one(*arguments)

    monkeypatch.setattr(module, "_relax_one", breaks)
    common = ("relax", "three.extxyz", "--model", COPPER, "--optimizer", "lbfgs")
    result = attncalc(*common, "-o", "out.xyz")
    saved = "2 of 3 structures are written to out.xyz"
    left = {"three.extxyz", "out.xyz"}
    if isinstance(problem, KeyboardInterrupt):
        assert (result.exit_code, result.stderr) == (130, f"stopped: {saved}\n")
        left.add("out.png")
    else:
        assert result.stderr == f"Error: structure 2: it broke; {saved}\n"
    assert len(read("out.xyz", ":")) == 2
    assert read("out.xyz", 1).get_forces().shape == (4, 3)
    assert files() == left


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_keeps_the_structure_at_hand(n: int, monkeypatch) -> None:
    write("some.extxyz", [bulk("Cu", a=3.6, cubic=True)] * (n - 1) + rattled(1))
    largest = module._fmax
    seen: list[float] = []

    def interrupted(optimizable) -> float:
        if len(seen) == n + 3:  # the perfect crystal takes no step
            raise KeyboardInterrupt
        seen.append(largest(optimizable))
        return seen[-1]

    monkeypatch.setattr(module, "_fmax", interrupted)
    common = ("relax", "some.extxyz", "--model", COPPER, "--optimizer", "lbfgs")
    result = attncalc(*common, "-o", "out.xyz", "--fmax", 1e-4)
    course = f"after 3 steps, largest force {seen[-1]:.4f} eV/Å"
    if n == 1:
        said = f"stopped: the structure {course} is written to out.xyz\n"
    else:
        said = f"stopped: 1 of 2 structures are written to out.xyz, and structure 1 {course}\n"
    assert (result.exit_code, result.stderr) == (130, said)
    frames = read("out.xyz", ":")
    assert len(frames) == n
    assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() == pytest.approx(seen[-1])
    forces = AttnCalculator(COPPER).get_forces(frames[-1])
    assert np.allclose(forces, frames[-1].get_forces(), atol=1e-3), "of these very positions"
    assert Path("out.png").is_file()


def test_relax_that_breaks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_):
        raise RuntimeError("it broke")

    write("two.extxyz", [bulk("Cu"), bulk("Cu", a=3.7)])
    monkeypatch.setattr(module, "_relax_one", breaks)
    said = fails("relax", "two.extxyz", "--model", COPPER, "--optimizer", "lbfgs")
    assert said == "Error: structure 0: it broke; 0 of 2 structures are written"
    assert files() == {"two.extxyz"}


def many() -> list[Atoms]:
    """Of different sizes; one is relaxed already, one has fixed atoms."""
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.7)] + [bulk("Cu", a=3.6)]
    for k, atoms in enumerate(frames[:2]):
        atoms.rattle(0.1, seed=k)
    frames[1].set_constraint(FixAtoms([0, 2]))
    return frames


def test_relax_of_several_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes the way it goes alone, with ASE's FIRE."""
    write("many.extxyz", many())
    said = succeeds("relax", "many.extxyz", "--model", COPPER, "-o", "out.xyz")
    relaxed, steps = read("out.xyz", ":"), re.findall(r"converged in (\d+) steps", said)
    assert len(steps) == 3
    assert steps[2] == "0"
    for k, atoms in enumerate(many()):
        atoms.calc = AttnCalculator(COPPER)
        with FIRE(atoms, logfile=None) as fire:
            fire.run(fmax=0.01)
        assert fire.nsteps == int(steps[k])
        assert np.allclose(relaxed[k].positions, atoms.positions, atol=1e-4)
        energy = relaxed[k].get_potential_energy()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert relaxed[k].get_stress().shape == (6,)
    written = read("many.extxyz", 1).positions  # eight decimals
    assert np.array_equal(relaxed[1].positions[[0, 2]], written[[0, 2]])
    monkeypatch.setattr(module, "ATOMS_AT_ONCE", 1)
    assert (
        succeeds("relax", "many.extxyz", "--model", COPPER, "-o", "b.xyz").split("wrote")[0]
        == said.split("wrote")[0]
    )


def test_relax_of_several_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    write("many.extxyz", many())
    evaluate, calls = Forces.__call__, []

    def interrupted(self, system):
        calls.append(system)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(self, system)

    monkeypatch.setattr(Forces, "__call__", interrupted)
    result = attncalc("relax", "many.extxyz", "--model", COPPER, "-o", "out.xyz")
    assert result.exit_code == 130
    assert result.stderr == (
        "stopped: 1 of 3 structures are relaxed; 3 are written to out.xyz as they are\n"
    )
    assert "structure 0: NOT converged in 4 steps" in result.stdout
    assert len(read("out.xyz", ":")) == 3
    assert files() == {"many.extxyz", "out.xyz", "out.png"}


def test_relax_of_several_that_does_not_converge() -> None:
    write("many.extxyz", many())
    said = fails("relax", "many.extxyz", "--model", COPPER, "--steps", 2)
    assert said == "Error: 2 of 3 structures did not converge: take more --steps"


def test_relax_refuses_before_it_works(ethanol_file: str, monkeypatch) -> None:
    """A name that cannot be written is no surprise for after the relaxation."""
    monkeypatch.setattr(module, "AttnCalculator", None)
    Path("there.xyz").write_text("precious")
    common = ("relax", ethanol_file, "--model", ETHANOL, "-o")
    assert fails(*common, "there.xyz") == (
        "Error: there.xyz exists: choose another name, nothing is overwritten"
    )
    assert Path("there.xyz").read_text() == "precious"
    assert fails(*common, "no/out.xyz") == "Error: no such folder: no"
    assert "out.foo: ASE writes no structure file with this ending" in fails(*common, "out.foo")
    assert "out: ASE writes no structure file with this ending" in fails(*common, "out")


def test_stress_of_a_molecule_is_one_line(ethanol_file: str) -> None:
    said = fails("relax", ethanol_file, "--model", ETHANOL, "--cell")
    assert said == "Error: stress needs a volume: this structure does not have three cell vectors"


# ------------------------------------------------------------------------------------------- md


def test_md(ethanol_file: str) -> None:
    said = succeeds(
        *("md", ethanol_file, "--model", ETHANOL, "--steps", 30, "--every", 10, "-o", "run.xyz")
    )
    assert re.fullmatch(
        r"wrote run\.xyz \(4 frames\), run\.csv, run\.png; \d+ neighbour lists in \d+ steps\n", said
    )
    assert files() == {ethanol_file, "run.xyz", "run.csv", "run.png"}
    assert len(read("run.xyz", ":")) == 4
    with open("run.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_md_of_a_crystal(ensemble: str, copper_file: str) -> None:
    succeeds(*("md", copper_file, "--model", COPPER, "--ensemble", ensemble, "--steps", 4))
    trajectory = {"copper.md.xyz"} if ensemble == "npt" else {"copper.md.h5md", "copper.md.ckpt"}
    assert files() == {copper_file, "copper.md.csv", "copper.md.png"} | trajectory


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_md_by_ase(ensemble: str, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--ensemble", ensemble, "--steps", 4)
    succeeds(*common, "--engine", "ase", "-o", "ase.traj")
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


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_md_that_goes_on_is_the_run_that_was_not_stopped(ensemble: str, copper_file: str) -> None:
    common = ("md", copper_file, "--model", COPPER, "--ensemble", ensemble, "--every", 10)
    succeeds(*common, "--steps", 60, "-o", "whole.h5md")
    succeeds(*common, "--steps", 25, "-o", "part.h5md")
    assert states("part.h5md")[-1][0] == 25
    said = succeeds("md", "--resume", "part.h5md", "--steps", 60)
    assert said.startswith("part.h5md: going on at step 25 of 60\nwrote part.h5md (7 frames), ")
    assert states("part.h5md") == states("whole.h5md")
    assert Path("part.csv").read_text() == Path("whole.csv").read_text()
    said = succeeds("md", "--resume", "part.h5md")
    assert said == "part.h5md: 60 steps are done; --steps N goes on to N\n"


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Of a process that goes on, however slow the machine."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved_steps() -> int:
    return load_checkpoint("run.ckpt").state.step if Path("run.ckpt").exists() else -1


def test_md_that_is_killed_goes_on_bit_for_bit(copper_file: str) -> None:
    """kill -9, three times, whenever it comes."""
    common = ("md", copper_file, "--model", COPPER, "--every", 5, "--steps")
    code = "import sys; from attncalc.md import job; job.SECONDS_BETWEEN_CHECKPOINTS = 0.1\n"
    code += "from attncalc.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, common), "1000000", "-o", "run.h5md"]
    reached = -1
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda before=reached: saved_steps() > before, process)
            time.sleep(0.3)
        finally:
            process.kill()
            process.wait()
        reached = saved_steps()
        command = [sys.executable, "-c", code, "md", "--resume", "run.h5md"]
    succeeds("md", "--resume", "run.h5md", "--steps", reached + 50)
    succeeds(*common, reached + 50, "-o", "whole.h5md")
    assert states("run.h5md") == states("whole.h5md")
    assert Path("run.csv").read_text() == Path("whole.csv").read_text()
    assert not [name for name in files() if name.startswith(".")]


def test_md_of_another_process_is_left_alone(copper_file: str) -> None:
    """Neither resumed nor, where somebody removed its files, begun anew, until it is gone."""
    code = "from attncalc.md import h5md_writer, job; from attncalc.cli import main\n"
    code += "h5md_writer.BUFFER_SECONDS = job.SECONDS_BETWEEN_CHECKPOINTS = 1e3; main()"
    common = ("md", copper_file, "--model", COPPER, "-o", "run.h5md")
    command = [sys.executable, "-c", code, *common, "--steps", "1000000"]
    process = subprocess.Popen(command)
    try:
        wait_until(Path("run.ckpt").exists, process)
        log = Path("run.csv").stat().st_ino
        there = f"run.h5md: another run is still writing it (process {process.pid}): wait for "
        there += "its end, or stop it"
        for more in ((), ("--steps", 2_000_000)):
            assert fails("md", "--resume", "run.h5md", *more) == f"Error: {there}"
        assert Path("run.csv").stat().st_ino == log
        for ending in ("h5md", "csv", "ckpt"):
            Path(f"run.{ending}").unlink()
        assert fails(*common, "--steps", 20) == f"Error: {Path.cwd() / there}"
        assert not [name for name in files() if name.startswith("run.")]
    finally:
        process.kill()
        process.wait()
    succeeds(*common, "--steps", 20)
    assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}


def test_md_that_is_told_to_end(copper_file: str) -> None:
    """SIGTERM, as of a batch queue: everything is saved."""
    command = [sys.executable, "-m", "attncalc.cli", "md", copper_file, "--model", COPPER]
    command += ["--steps", "1000000", "--every", "10", "-o", "run.h5md"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = Path("run.csv")
    try:
        wait_until(lambda: log.exists() and log.stat().st_size > 5000, process)
    finally:
        process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume run.h5md" in said
    state = load_checkpoint("run.ckpt").state
    assert state.step > 0
    assert states("run.h5md")[-1][0] == state.step
    assert files() == {copper_file, "run.h5md", "run.csv", "run.png", "run.ckpt"}


def test_md_resume_bad_input(copper_file: str) -> None:
    succeeds("md", copper_file, "--model", COPPER, "--steps", 2, "-o", "run.h5md")
    others = "--resume takes everything from the run itself: leave --model, STRUCTURE away"
    for arguments, message in (
        (("--resume", "run.xyz"), "run.xyz: only a run that writes .h5md can be resumed"),
        (
            ("--resume", "no.h5md"),
            "no such file: no.h5md; a run is resumed from its .h5md, .ckpt and .csv",
        ),
        ((copper_file, "--model", COPPER, "--resume", "run.h5md"), others),
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
    assert said.endswith("not the model that the run began with: a trajectory has one model")


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
    assert said == "Error: the constraint FixBondLengths is ASE's only: take --engine ase"


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
    said = succeeds("md", "a.xyz", *common, "--temperature", 5, "-o", "b.xyz")
    found = re.match(r"velocities of the file are kept \(T = (\d+) K\)\n", said)
    with open("b.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(found[1]) == pytest.approx(float(first["temperature_K"]), abs=0.5)
    assert float(found[1]) > 50
    assert np.allclose(read("b.xyz", 0).get_momenta(), last.get_momenta(), atol=1e-6)
    for shown in ("(momenta) in the file are kept", "unless the file has some"):
        assert shown in " ".join(attncalc("md", "--help").output.split())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--pressure", "nan", "pressure must be a finite number, got nan"),
        ("--seed", "-1", "seed must be an integer and not negative, got -1"),
        ("--steps", "0", "n_steps must be a positive integer, got 0"),
    ],
)
def test_md_settings(option: str, value: str, message: str, copper_file: str) -> None:
    assert fails("md", copper_file, "--model", COPPER, option, value) == f"Error: {message}"
    assert files() == {copper_file}


@pytest.mark.parametrize("name", ["run.xyz", "run.csv", "run.png", "run.ckpt"])
def test_md_overwrites_nothing(name: str, copper_file: str) -> None:
    Path(name).write_text("precious")
    said = fails("md", copper_file, "--model", COPPER, "--steps", 1, "-o", "run.xyz")
    assert said == f"Error: {name} exists: choose another name, nothing is overwritten"
    assert Path(name).read_text() == "precious"
    assert files() == {copper_file, name}


def test_md_that_explodes(ethanol_file: str) -> None:
    said = fails(
        *("md", ethanol_file, "--model", ETHANOL, "--timestep", 20, "--steps", 500, "-o", "a.xyz")
    )
    assert re.match(r"Error: stopped at \d+\.0 fs: .*; the last sane frame is in a\.xyz\. ", said)
    assert len(read("a.xyz", ":")) >= 1
    assert Path("a.png").read_bytes().startswith(b"\x89PNG"), "of what there is"


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
        "stopped: 6 of 10000 steps are done; run.h5md holds them to 3.0 fs; go on with "
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
    common = ("md", copper_file, "--model", COPPER, "--engine", "ase", "--every", 3)
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

    monkeypatch.setattr(Forces, "__call__", interrupted)
    result = attncalc("md", copper_file, "--model", COPPER, "-o", name)
    assert result.exit_code == 130
    assert files() == {copper_file}, "the next try finds the names free"


def test_md_draws_some_frames_of_a_long_run(copper_file: str, monkeypatch) -> None:
    drawn: list = []
    draw = module.plots.md_summary

    def seen(rows, frames, **options):
        drawn.append((rows, frames, options))
        return draw(rows, frames, **options)

    monkeypatch.setattr(module.plots, "md_summary", seen)
    monkeypatch.setattr(module, "MOST_FRAMES", 4)
    common = ("md", copper_file, "--model", COPPER, "--steps", 9, "--every", 1)
    succeeds(*common, "--temperature", 200, "-o", "run.xyz")
    ((rows, frames, options),) = drawn
    assert len(rows) == 10
    assert len(frames) == 4
    assert np.allclose(frames[-1].positions, read("run.xyz", -1).positions), "the very last"
    assert options == {
        "title": "Cu4, cu-emt, NVT",
        "ensemble": "nvt",
        "target": 200.0,
        "n_dof": 12,
    }
    succeeds(*common, "--ensemble", "nve", "-o", "nve.h5md")
    assert drawn[1][2]["target"] is None


# ------------------------------------------------------------------------ eval, verify, models


def labelled(n: int) -> list[Atoms]:
    """Copper with EMT's labels, which the model was trained on."""
    frames = []
    for k in range(n):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.08, seed=k)
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def table(text: str) -> dict[str, list[float]]:
    rows = (line.rsplit(maxsplit=2) for line in text.splitlines() if re.search(r"\d$", line))
    found: dict[str, list[float]] = {}
    for words in rows:
        numbers = [float(word) for word in words if re.fullmatch(r"[\d.]+", word)]
        label = " ".join(word for word in words if not re.fullmatch(r"[\d.]+", word))
        found[label] = numbers
    return found


def test_eval() -> None:
    frames = labelled(6)
    write("cu.extxyz", frames)
    said = succeeds("eval", COPPER, "cu.extxyz", "--dtype", "float64")
    assert said.startswith("6 structures of cu.extxyz, labels ")
    rows = table(said)
    assert set(rows) == {
        "energy, meV",
        "energy, meV/atom",
        "force, meV/Å",
        "stress, meV/Å³",
        "force on Cu, meV/Å",
    }
    assert rows["force on Cu, meV/Å"] == rows["force, meV/Å"]
    assert rows["energy, meV/atom"] == pytest.approx(np.array(rows["energy, meV"]) / 4, abs=1e-3)
    calculator = AttnCalculator(COPPER, dtype="float64")
    off = [calculator.get_forces(atoms) - atoms.get_forces() for atoms in frames]
    mae, rmse = rows["force, meV/Å"]
    assert mae == pytest.approx(1e3 * np.abs(off).mean(), abs=1e-3)
    assert rmse == pytest.approx(1e3 * np.sqrt(np.square(off).mean()), abs=1e-3)
    assert 0 < mae < 150, "the model knows EMT's copper"
    energies = [calculator.get_potential_energy(a) - a.get_potential_energy() for a in frames]
    assert rows["energy, meV"][0] == pytest.approx(1e3 * np.abs(energies).mean(), abs=1e-3)


def test_table_columns_never_run_together() -> None:
    rows = [("", "MAE", "RMSE"), ("energy, meV", "123456789.123", "1.000"), ("x", "2.5", "")]
    assert module._table(rows) == (
        "                       MAE   RMSE\n"
        "energy, meV  123456789.123  1.000\n"
        "x                      2.5"
    )


def test_eval_far_off() -> None:
    """Total energies of another method: numbers as long as they like."""
    (atoms,) = labelled(1)
    atoms.calc.results["energy"] -= 1e8
    write("cu.extxyz", atoms)
    mae, rmse = table(succeeds("eval", COPPER, "cu.extxyz"))["energy, meV"]
    assert mae == rmse == pytest.approx(1e11, rel=1e-3)


def test_eval_of_a_split_that_is_not_there() -> None:
    write("cu.extxyz", labelled(2))
    said = fails("eval", COPPER, "cu.extxyz", "--split", "test_01")
    assert said == "Error: cu.extxyz: no split 'test_01'; stored splits: none"
    assert files() == {"cu.extxyz"}


def test_eval_leaves_a_report() -> None:
    """Unasked, and again and again; but nothing else is replaced."""
    write("cu.extxyz", labelled(2))
    for _ in range(2):
        said = succeeds("eval", COPPER, "cu.extxyz")
        assert said.splitlines()[-1] == "wrote eval-cu-emt-cu.html"
        assert files() == {"cu.extxyz", "eval-cu-emt-cu.html"}
    page = Path("eval-cu-emt-cu.html").read_text()
    assert f'<data value="{1e3 * force_mae("cu.extxyz")!r}">' in page
    assert "<title>cu-emt on cu.extxyz</title>" in page
    assert succeeds("eval", COPPER, "cu.extxyz", "-o", "mine.html").endswith("wrote mine.html\n")
    Path("other.html").write_text("precious")
    said = fails("eval", COPPER, "cu.extxyz", "--report", "other.html")
    assert said == "Error: other.html exists: choose another name, nothing is overwritten"
    assert Path("other.html").read_text() == "precious"


def force_mae(path: str) -> float:
    """eV/Å, in batches, as `attncalc eval` goes."""
    dataset = data.read(path)
    predicted = np.concatenate(predict(load(COPPER), dataset).forces)
    return float(np.abs(predicted - np.concatenate(dataset.forces)).mean())


def test_eval_warns_of_units_that_do_not_match() -> None:
    frames = labelled(30)
    for atoms in frames:
        atoms.calc.results["energy"] *= 23.0605
    write("cu.extxyz", frames)
    result = attncalc("eval", COPPER, "cu.extxyz", "--no-report")
    assert result.exit_code == 0
    assert re.match(
        "Warning: cu.extxyz: .* energies in kcal/mol beside forces in eV", result.stderr
    )


def test_eval_says_in_the_terminal_what_the_report_says() -> None:
    frames = labelled(8)
    for atoms in frames:
        atoms.calc.results["energy"] += 1000.0 * len(atoms)
    write("cu.extxyz", frames)
    said = succeeds("eval", COPPER, "cu.extxyz", "--no-report")
    assert re.search(r"Note: Energies are off by a constant per element: without it", said)


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


def test_eval_without_a_report() -> None:
    write("cu.extxyz", labelled(2))
    assert "wrote" not in succeeds("eval", COPPER, "cu.extxyz", "--no-report")
    assert files() == {"cu.extxyz"}


def test_eval_of_a_committee_tells_what_its_spread_is_worth(ethanol_file: str) -> None:
    atoms = read(ethanol_file)
    atoms.calc = AttnCalculator(ETHANOL)
    atoms.get_forces()
    write("labelled.extxyz", atoms)
    said = succeeds("eval", f"{ETHANOL}-committee", "labelled.extxyz")
    start = "spread of the committee: "
    lines = [line.removeprefix(start) for line in said.splitlines() if line.startswith(start)]
    assert [line.split(" errors are ")[0] for line in lines] == ["force", "energy per atom"]
    found = (
        r"errors are \d+\.\d\d times as large, ENCE \d+ % \(by chance 11 %\), rank correlation -?\d"
    )
    assert re.search(found, lines[0])  # 9 atoms: one bin of 27 numbers
    (page,) = Path.cwd().glob("eval-*.html")
    assert "What the spread of the committee tells" in page.read_text()


def test_eval_asks_for_the_report_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AttnCalculator", None)
    said = fails("eval", COPPER, "cu.extxyz", "-o", "report.pdf")
    assert said == "Error: report.pdf: a report must end in .html"
    assert fails("eval", COPPER, "cu.extxyz", "-o", "no/a.html") == "Error: no such folder: no"


def test_the_name_of_a_report() -> None:
    """Model, data, labels and split; never a folder, whatever the split is called."""
    name = module._report_file(None, "runs/a.safetensors", "../b.npz", "md17", "../../c d")
    assert str(name) == "eval-a-b-md17-.._.._c_d.html"


def test_the_report_names_structures_as_the_file_does() -> None:
    frames = labelled(6)
    for k, atoms in enumerate(frames):
        atoms.info["split"] = "test" if k >= 4 else "train"
    frames[5].calc.results["forces"] = frames[5].get_forces() + 5.0
    write("cu.extxyz", frames)
    succeeds("eval", COPPER, "cu.extxyz", "--split", "test", "-o", "r.html")
    page = Path("r.html").read_text()
    worst = re.findall(r"<tr><td>(\d+)</td><td class=\"left\">Cu4", page)
    assert worst[0] == "5"
    assert set(worst) == {"4", "5"}
    assert "split test" in page


def test_verify(copper_file: str) -> None:
    said = succeeds("verify", COPPER, "--structure", copper_file)
    assert said.startswith("physics checks on periodic Cu4, 4 atoms\n")
    assert "stress = dE/dstrain / V" in said
    assert "FAILED" not in said
    assert succeeds("verify", COPPER).startswith("physics checks on Cu12, 12 atoms\n")


def test_verify_of_a_model_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from attncalc import checks

    monkeypatch.setattr(checks, "_batch_is_single", lambda *_: checks.Check("b", 1.0, 1e-9, "eV"))
    result = attncalc("verify", COPPER)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert result.stderr == "Error: the model fails 1 checks: b\n"


def test_models() -> None:
    header, *rows = succeeds("models").splitlines()
    for column in ("name", "network", "elements", "force MAE", "level of theory"):
        assert column in header
    (ethanol,) = [row for row in rows if row.startswith(ETHANOL + " ")]
    assert "so3krates" in ethanol
    assert "H C O" in ethanol


# -------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("options", "environment", "n_atoms", "expected"),
    [
        ((), None, 4, [1]),
        ((), None, 1372, []),
        ((), "2", 4, []),
        (("--threads", "3"), None, 4, [3]),
        (("--threads", "3"), "2", 1372, [3]),
    ],
)
def test_threads(options, environment, n_atoms: int, expected, monkeypatch) -> None:
    """One for small structures, unless the user says otherwise."""
    write("cu.extxyz", bulk("Cu", a=3.6, cubic=True).repeat(round((n_atoms / 4) ** (1 / 3))))
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    called: list[int] = []
    monkeypatch.setattr(module.torch, "set_num_threads", called.append)
    no_model = {
        "relax": ("relax", "cu.extxyz", "--model", "none"),
        "md": ("md", "cu.extxyz", "--model", "none"),
        "verify": ("verify", "none", "--structure", "cu.extxyz"),
    }
    for command in no_model.values():
        fails(*command, *options)
    assert called == len(no_model) * expected


def test_threads_of_eval_and_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    write("cu.extxyz", labelled(2))
    called: list[int] = []
    monkeypatch.setattr(module.torch, "set_num_threads", called.append)
    succeeds("eval", COPPER, "cu.extxyz", "--threads", 2)
    succeeds("verify", COPPER, "--threads", 2)
    assert called == [2, 2]
    assert attncalc("verify", COPPER, "--threads", 0).exit_code == 2


def test_threads_reach_the_model_and_a_run_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    write("cu.extxyz", bulk("Cu", a=3.6, cubic=True))
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    taken: list[int] = []
    take = Potential.take_threads
    monkeypatch.setattr(Potential, "take_threads", lambda self, n: (taken.append(n), take(self, n)))
    run = ("md", "cu.extxyz", "--model", COPPER, "--temperature", 10, "-o", "run.h5md")
    succeeds(*run, "--steps", 2, "--threads", 2)
    assert taken[-1] == 2
    for threads, expected in (((), 2), (("--threads", 3), 3)):
        succeeds("md", "--resume", "run.h5md", "--steps", 2 + expected, *threads)
        assert taken[-1] == expected


# -------------------------------------------------------------------------------------- convert


def test_convert(shared: Path) -> None:
    base = shared / "reference" / "so3krates" / "euclidean_default"
    arguments = ("convert", "so3krates", f"{base}_params.npz")
    arguments += ("--config", f"{base}_hyperparameters.json", "--elements", "H,C,N,O")
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert re.fullmatch(
        r"wrote out\.safetensors: [\d,]+ parameters, 4 elements\n"
        r"note: forces have a kink where an atom crosses the cutoff\n",
        said,
    )
    assert files() == {"out.safetensors"}
    assert load("out.safetensors").species == (1, 6, 7, 8)
    AttnCalculator("out.safetensors").get_potential_energy(molecule("CH3CH2OH"))
    before = Path("out.safetensors").read_bytes()
    assert "nothing is overwritten" in fails(*arguments, "-o", "out.safetensors")
    assert Path("out.safetensors").read_bytes() == before
    wrong = [*arguments[:-1], "H,Xx,Yy", "-o", "other.safetensors"]
    assert fails(*wrong) == "Error: no such element: Xx, Yy"
    assert files() == {"out.safetensors"}


def test_convert_equiformer(shared: Path) -> None:
    """The published network runs, and what it breaks is said at every turn."""
    base = shared / "reference" / "equiformer" / "nonlinear_l2"
    arguments = ("convert", "equiformer", f"{base}.weights.safetensors")
    arguments += ("--config", f"{base}.config.json", "--elements", "H,C,O")
    arguments += ("--std", 0.2, "--mean", -4208.5, "--n-atoms", 9)
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert said == (
        "wrote out.safetensors: 3,488,193 parameters, 3 elements\n"
        "note: energy and forces jump where an atom crosses the cutoff\n"
        "note: a molecule and its mirror image have different energies\n"
    )
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("out.safetensors")
    assert abs(atoms.get_potential_energy() + 4208.5) < 5
    failed = fails("verify", "out.safetensors")
    assert "reflection: energy unchanged" in failed
    assert "pair vanishes at the cutoff" in failed
    assert fails(*arguments[:-4], "--mean", 1.0, "-o", "other.safetensors") == (
        "Error: a mean energy needs n_atoms, the number of atoms of the molecule"
    )
    assert files() == {"out.safetensors"}


def test_convert_a_network_of_all_pairs(shared: Path) -> None:
    """The first So3krates: what it breaks is said, and crystals are refused."""
    base = shared / "reference" / "so3krates" / "sphc_nonlocal"
    arguments = ("convert", "so3krates", f"{base}_params.npz", "--config")
    arguments += (f"{base}_dynamic_hyperparameters.json", "--elements", "H,C,O")
    said = succeeds(*arguments, "-o", "out.safetensors")
    assert said.startswith("wrote out.safetensors: 66,298 parameters, 3 elements\nnote: ")
    assert "\nnote: two molecules far apart have another energy than each alone\n" in said
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("out.safetensors")
    atoms.get_potential_energy()
    failed = fails("verify", "out.safetensors")
    assert "reflection: energy unchanged" in failed
    assert "pair vanishes at the cutoff" in failed
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True
    with pytest.raises(ValueError, match=r"set atoms\.pbc = False or use a model of finite range"):
        atoms.get_potential_energy()


def test_relax_to_less_than_nothing() -> None:
    said = fails("relax", "no.xyz", "--model", ETHANOL, "--fmax", -1)
    assert said == "Error: --fmax must be above 0 eV/Å, got -1"


def test_convert_of_no_file() -> None:
    Path("a.json").write_text("{}")
    said = fails("convert", "so3krates", "no.npz", "--config", "a.json", "-o", "out.safetensors")
    assert "no.npz" in said
    assert files() == {"a.json"}


def test_convert_data() -> None:
    """Two files in one that trainings can stream."""
    for name, start in (("a.extxyz", 0), ("b.xyz", 3)):
        first = "Properties=species:S:1:pos:R:3:forces:R:3 energy="
        frames = [f"1\n{first}{start + k}\nH 0 0 0 0 0 1\n" for k in range(3)]
        Path(name).write_text("".join(frames))
    said = succeeds("convert", "data", "a.extxyz", "b.xyz", "-o", "all.h5")
    assert said == "wrote all.h5: 6 structures\n"
    assert data.stream("all.h5").energies.tolist() == [0, 1, 2, 3, 4, 5]
    assert "exists" in fails("convert", "data", "a.extxyz", "-o", "all.h5")
    assert "must end in .h5" in fails("convert", "data", "a.extxyz", "-o", "all.npz")
    assert "no.xyz: no such file" in fails("convert", "data", "no.xyz", "-o", "other.h5")
    assert not Path("other.h5").exists()


# ---------------------------------------------------------------------------------------- train

RECIPE = """\
name: tiny
data: cu.extxyz
split: {sizes: [6, 2, 2]}
config: {cutoff: 4.0, num_features: 8, num_heads: 2, degrees: [1], num_layers: 1, num_basis: 4}
epochs: 2
batch_size: 2
compile: never
"""


def test_train() -> None:
    """One smoke: a run, its files, and a model that the other commands take."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE)
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "\r" not in result.output, "no progress bar in a pipe"
    assert result.stdout.splitlines()[-1] == "wrote out/tiny.safetensors"
    assert {"tiny.safetensors", "tiny.md", "metrics.csv"} <= {p.name for p in Path("out").iterdir()}
    assert "# tiny" in result.stdout
    succeeds("eval", "out/tiny.safetensors", "cu.extxyz")


TRAIN_ONE_EPOCH = """
import time
from attncalc.cli import main
from attncalc.train.module import TrainingModule

step = TrainingModule.training_step

def until_the_second(module, batch, k):
    if module.current_epoch == 1:
        time.sleep(1000)
    step(module, batch, k)

TrainingModule.training_step = until_the_second
main()
"""


def test_train_in_a_folder_of_another_process() -> None:
    """Refused until that is gone, by kill -9; then the training goes on."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN_ONE_EPOCH, "train", "tiny.yaml", "-o", "out"],
        stderr=subprocess.DEVNULL,
    )
    checkpoint = Path("out/last.ckpt")
    try:
        wait_until(checkpoint.exists, process)
        left = {path: path.read_bytes() for path in Path("out").iterdir()}
        refused = attncalc("train", "tiny.yaml", "-o", "out")
        assert refused.exit_code == 1
        assert refused.stderr.splitlines()[-1] == (
            f"Error: out: another run is still writing it (process {process.pid}): wait for its "
            "end, or stop it"
        )
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == left
    finally:
        process.kill()
        process.wait()
    assert len(load_history(checkpoint)) == 1
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    assert len(load_history(checkpoint)) == 2
    assert not Path("out/.lock").exists()


def load_history(checkpoint: Path) -> list[dict[str, float]]:
    return torch.load(checkpoint, weights_only=True)["history"]


def train_other(network: str, config: str, more: str = "") -> Result:
    """Into the folder "out", by the recipe above but for the network."""
    start, end = RECIPE.split("config: ")
    end = end.partition("\n")[2]
    Path("tiny.yaml").write_text(f"{start}config: {{{config}}}\n{end}network: {network}\n{more}")
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    return result


EQUIFORMER = "cutoff: 4.0, channels: [8, 4], num_layers: 1, num_basis: 4, head_features: 8"
SPHC = "cutoff: 3.0, nonlocal_cutoff: 5, num_features: 12, num_layers: 1, num_basis: 4"


@pytest.mark.parametrize(
    ("network", "config", "more"),
    [
        ("equiformer", EQUIFORMER, ""),
        ("equiformer", EQUIFORMER, "denoising: {}\n"),
        ("equiformer", EQUIFORMER, "stress_weight: 1.0\n"),
        ("so3krates-sphc", SPHC, ""),
        ("so3krates-sphc", SPHC, "stress_weight: 1.0\n"),
    ],
)
def test_every_command_takes_every_network(
    network: str, config: str, more: str, copper_file: str
) -> None:
    write("cu.extxyz", labelled(10))
    result = train_other(network, config, more)
    assert f"| network | {network}, " in result.stdout
    said = "physnet cutoff function, non-local attention up to 5 Å |" in result.stdout
    assert said == (network == "so3krates-sphc")
    assert "**fault**" not in result.stdout
    assert ("denoising" in result.stdout) == ("denoising" in more)
    model = "out/tiny.safetensors"
    assert isinstance(load(model).network, NETWORKS[network][0])
    assert "FAILED" not in succeeds("verify", model)
    succeeds("verify", model, "--structure", copper_file)
    assert "force" in succeeds("eval", model, "cu.extxyz", "-o", "report.html")
    attncalc("relax", copper_file, "--model", model, "--cell", "--steps", 2, "-o", "relaxed.xyz")
    arguments = ("--ensemble", "nvt", "--steps", 4, "--every", 2, "-o", "run.xyz")
    succeeds("md", copper_file, "--model", model, *arguments)
    assert len(read("run.xyz", ":")) == 3


def test_the_card_names_faults() -> None:
    write("cu.extxyz", labelled(10))
    config = "cutoff: 4.0, channels: [4, 4], num_layers: 1, paths: all, cutoff_function: none"
    result = train_other("equiformer", config)
    assert (
        "| **fault** | energy and forces jump where an atom crosses the cutoff |" in result.stdout
    )
    assert (
        "| **fault** | a molecule and its mirror image have different energies |" in result.stdout
    )


def test_the_card_says_what_units_the_recipe_declared() -> None:
    """Wrong by a factor, energies and forces alike, nothing else can tell."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE + "energy_unit: kcal/mol\n")
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert "| units | eV, Å (by the recipe, the data file has energies in kcal/mol) |" in (
        result.stdout
    )


def test_train_messages() -> None:
    assert fails("train", "no.yaml") == "Error: no such recipe: no.yaml"
    Path("tiny.yaml").write_text(RECIPE + "epoch: 3\n")
    assert "did you mean 'epochs'?" in fails("train", "tiny.yaml")
    Path("tiny.yaml").write_text(RECIPE)
    assert "cu.extxyz" in fails("train", "tiny.yaml")


# ---------------------------------------------------------------------- errors of all commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relax", "no.xyz", "--model", ETHANOL), "no such file: no.xyz"),
        (("md", "no.xyz", "--model", ETHANOL), "no such file: no.xyz"),
        (("verify", ETHANOL, "--structure", "no.xyz"), "no such file: no.xyz"),
        (("relax", "bad.xyz", "--model", ETHANOL), "bad.xyz: not a structure file that ASE"),
        (("relax", "empty.xyz", "--model", ETHANOL), "empty.xyz: not a structure file that ASE"),
        (("relax", "ethanol.xyz", "--model", "ethnol"), "shipped: .*so3krates-ethanol"),
        (("verify", "ethnol"), "no model file and no shipped model 'ethnol'; shipped: "),
        (("eval", ETHANOL, "no.xyz"), "no.xyz"),
        (("relax", "ethanol.xyz", "--model", COPPER), "not trained on H C O; it knows: Cu"),
        (("md", "ethanol.xyz", "--model", COPPER), "not trained on H C O; it knows: Cu"),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "--timestep", "-1"),
            "timestep must be positive",
        ),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "-o", "a.h5"),
            "a.h5: a trajectory must end in .h5md, .xyz, .extxyz or .traj",
        ),
        (("md", "ethanol.xyz", "--model", ETHANOL, "-o", "no/a.xyz"), "no such folder: no"),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "--ensemble", "npt"),
            '"npt" needs a structure that is periodic',
        ),
        (("relax", "ethanol.xyz", "--model", ETHANOL, "--device", "banana"), "device must be"),
        (("verify", ETHANOL, "--device", "cuda:77"), "device 'cuda:77' is not there"),
    ],
    ids=lambda value: " ".join(Path(v).name for v in value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line(arguments: tuple, message: str, ethanol_file: str) -> None:
    Path("bad.xyz").write_text("hello\nworld\n")
    Path("empty.xyz").write_text("")
    before = files()
    assert re.search(message, fails(*arguments))
    assert files() == before, "a failed command leaves nothing behind"


def test_misspelt_options_are_usage_errors() -> None:
    result = attncalc("relax", "a.xyz", "--modle", ETHANOL)
    assert result.exit_code == 2
    assert "--modle" in result.stderr
    assert attncalc("relax", "a.xyz").exit_code == 2, "--model is required"
    assert attncalc("relaxx").exit_code == 2


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.model_file, "shipped_models", interrupted)
    result = attncalc("models")
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(module.model_file, "shipped_models", bug)
    assert isinstance(attncalc("models").exception, KeyError)


# ------------------------------------------------------------------------------ the real program


def program(*arguments: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("attncalc")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "attncalc.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_console_script(ethanol_file: str) -> None:
    done = program("relax", ethanol_file, "--model", ETHANOL, "--fmax", "0.05", "-o", "out.xyz")
    assert done.returncode == 0, done.stderr
    assert "wrote out.xyz" in done.stdout
    assert done.stderr == "", "neither progress bar nor warnings in a pipe"
    done = program("relax", ethanol_file, "--model", "ethnol")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no model file and no shipped model 'ethnol'")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(pty is None, reason="needs a pseudo terminal")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("relax", "cu.extxyz"), r"step/s, largest force \d\.\d{4} eV/Å, energy -?\d+\.\d{4} eV"),
        (("md", "cu.extxyz", "--steps", "50"), r"/50 .*step/s, \d+\.\d\d ns/day, T \d+ K, E "),
        (("eval", "cu.extxyz"), r"/2 \[.*structure/s\]"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_progress_on_a_terminal(arguments: tuple[str, ...], shown: str) -> None:
    """Rate and time left, and what one wants to watch."""
    write("cu.extxyz", labelled(2)[: 2 if arguments[0] == "eval" else 1])
    name, *rest = arguments
    model = [COPPER, *rest] if name == "eval" else [*rest, "--model", COPPER]
    seen = on_a_terminal(name, *model)
    assert re.search(shown, seen), seen
    assert re.search(r"\[\d\d:\d\d<(\?|\d\d:\d\d), ", seen), "time gone and left"
    assert "wrote " in seen


def on_a_terminal(*arguments: str) -> str:
    """What a program shows that believes to write to a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "attncalc.cli", *arguments]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = b""
        # the terminal's end is an error on Linux
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                seen += part
        os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode()
