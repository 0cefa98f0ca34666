"""attncalc md --write: charges and dipoles in trajectories, and in what is made of them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from command_line import COPPER, Forked, attncalc, fails, files, succeeds, wait_until

from attncalc import AttnCalculator
from attncalc.md import job, load_checkpoint, read_h5md

BOTH = ("--write", "charges,dipole")


def assert_as_the_calculator(frames, model: str, *, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    """Charges and dipole are those that the model has at the positions of the frame."""
    calculator = AttnCalculator(model)
    (again,) = (calculator.calculate_many([frame.copy() for frame in frames]),)
    for frame, result in zip(frames, again, strict=True):
        close = {"rtol": rtol, "atol": atol}
        np.testing.assert_allclose(frame.get_charges(), result["charges"], **close)
        np.testing.assert_allclose(frame.get_dipole_moment(), result["dipole"], **close)
    assert abs(frames[0].get_charges()).max() > 1e-3


@pytest.fixture
def run(ethanol_file: str, charged_model: str) -> tuple[object, ...]:
    return ("md", ethanol_file, "--model", charged_model, "--temperature", 100, "--timestep", 0.2)


def test_trajectories_hold_them(run: tuple, charged_model: str) -> None:
    succeeds(*run, "--steps", 20, *BOTH, "-o", "run.h5md")
    frames = read_h5md("run.h5md")
    assert len(frames) == 3
    assert_as_the_calculator(frames, charged_model)
    for name in ("run.xyz", "run.traj"):
        succeeds("export", "run.h5md", "-o", name)
        assert_as_the_calculator(read(name, ":"), charged_model)
    native = [*run, "--steps", 20, *BOTH, "-o"]
    for command in ([*native, "own.xyz"], [*native, "other.traj"]):
        succeeds(*command)
        assert_as_the_calculator(read(command[-1], ":"), charged_model)
    succeeds(*run, "--steps", 20, "--integrator", "ase", "-o", "ase.xyz")  # all that there is
    assert_as_the_calculator(read("ase.xyz", ":"), charged_model)
    succeeds(*run, "--steps", 10, "-o", "plain.h5md")
    assert {*read_h5md("plain.h5md")[0].calc.results} == {"energy", "forces"}


def test_replicas_hold_them(run: tuple, charged_model: str) -> None:
    write("two.xyz", [molecule("CH3CH2OH"), molecule("H2O")])
    command = [one if one != "ethanol.xyz" else "two.xyz" for one in run]
    succeeds(*command, "--steps", 20, "--replicas", 2, *BOTH, "-o", "run.h5md")
    for system in range(4):
        assert_as_the_calculator(read_h5md("run.h5md", system=system), charged_model)


def states(path: str) -> list[tuple[bytes, ...]]:
    return [
        (
            frame.positions.tobytes(),
            frame.get_momenta().tobytes(),
            frame.get_charges().tobytes(),
            frame.get_dipole_moment().tobytes(),
        )
        for frame in read_h5md(path)
    ]


def test_a_killed_run_goes_on_bit_for_bit(run: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "SECONDS_BETWEEN_CHECKPOINTS", 0.1)
    command = (*run, *BOTH, "--every", 3)

    def saved() -> int:
        return load_checkpoint("run.ckpt").state.step if Path("run.ckpt").exists() else -1

    process = Forked(*command, "--steps", 1_000_000, "-o", "run.h5md")
    try:
        wait_until(lambda: saved() > 0, process)
        time.sleep(0.3)
    finally:
        process.kill()
        process.ended()
    last = saved() + 20
    other = ("md", "--resume", "run.h5md", "--steps", last, "--write", "charges")
    assert fails(*other) == "Error: --resume uses the settings of the run: remove --write"
    succeeds("md", "--resume", "run.h5md", "--steps", last)
    succeeds(*command, "--steps", last, "-o", "whole.h5md")
    assert states("run.h5md") == states("whole.h5md")
    assert Path("run.csv").read_text() == Path("whole.csv").read_text()


def test_what_there_is_not_is_refused_at_the_start(
    run: tuple, charged_model: str, copper_file: str
) -> None:
    before = files()
    said = fails("md", copper_file, "--model", COPPER, "--write", "charges")
    assert said == "Error: cannot write charges: this model predicts no partial charges"
    write("box.extxyz", molecule("H2O", vacuum=4.0, pbc=True))
    before |= {"box.extxyz"}
    periodic = ("md", "box.extxyz", "--model", charged_model)
    assert "cannot write dipole: that of a periodic structure" in fails(*periodic, *BOTH)
    assert fails(*run, "--write", "charges,spins") == (
        "Error: write takes the names charges, dipole and stress, got charges, spins"
    )
    assert attncalc(*run, "--write", "charges,").exit_code == 2
    assert files() == before
    succeeds("md", "box.extxyz", "--model", charged_model, "--write", "charges", "--steps", 1)
    assert read_h5md("box.md.h5md")[0].get_charges().shape == (3,)


def test_stress_of_a_run_that_goes_on(copper_file: str) -> None:
    command = ("md", copper_file, "--model", COPPER, "--write", "stress")
    succeeds(*command, "--steps", 40, "-o", "whole.h5md")
    succeeds(*command, "--steps", 15, "-o", "part.h5md")
    succeeds("md", "--resume", "part.h5md", "--steps", 40)
    whole, part = (
        [frame.get_stress().tolist() for frame in read_h5md(f"{name}.h5md")]
        for name in ("whole", "part")
    )
    assert whole == part
    assert len(whole) == 5
    succeeds("export", "part.h5md", "-o", "part.xyz")
    assert np.allclose([frame.get_stress() for frame in read("part.xyz", ":")], whole, atol=1e-7)
    slab = read(copper_file)
    slab.pbc = [True, True, False]
    write("slab.extxyz", slab)
    said = fails("md", "slab.extxyz", "--model", COPPER, "--write", "stress")
    assert said.startswith("Error: cannot write stress: it is given for structures that are period")
