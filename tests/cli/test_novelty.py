"""What commands say of structures that are outside what a model was trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from command_line import COPPER, attncalc, fails, files, succeeds

from attncalc import load, md, plots, save
from attncalc.calibrate import calibrate
from attncalc.md import job, with_ase
from attncalc.model_file import header

OUTSIDE = "outside the training data: atom"


def crystal(seed: int, amount: float = 0.05) -> Atoms:
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.rattle(amount, seed=seed)
    return atoms


def squeezed(amount: float = 0.1) -> Atoms:
    """With two atoms that are too close."""
    atoms = crystal(0)
    atoms.positions[1] += amount * (atoms.positions[0] - atoms.positions[1])
    return atoms


@pytest.fixture
def model() -> str:
    """A model of copper that knows its training, as a file."""
    potential = load(COPPER, device="cpu")
    calibrate(potential, [crystal(seed) for seed in range(60)])
    save(potential, "known.safetensors")
    return "known.safetensors"


@pytest.fixture
def inside(model: str) -> str:
    write("inside.extxyz", crystal(100, 0.02))
    return "inside.extxyz"


@pytest.fixture
def far_off(model: str) -> str:
    write("far.extxyz", squeezed(0.3))
    return "far.extxyz"


def labelled(atoms: Atoms) -> Atoms:
    """With the labels of EMT."""
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def ends_outside(*arguments: object) -> tuple[str, str]:
    """What a command says that ends with status 2."""
    result = attncalc(*arguments)
    assert result.exit_code == 2, result.output
    return result.stdout, result.stderr


# --------------------------------------------------------------------------------------- relax


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_relax_from_outside_to_inside(optimizer: str, model: str, far_off: str) -> None:
    """A warning on the way, and a good end."""
    result = attncalc(
        *("relax", far_off, "--model", model, "--optimizer", optimizer, "-o", "out.extxyz")
    )
    assert result.exit_code == 0, result.output
    (warning,) = result.stderr.splitlines()
    assert warning.startswith(f"Warning: structure 0, step 0: {OUTSIDE} ")
    assert "structure 0: converged in" in result.stdout


@pytest.mark.parametrize("n", [1, 2], ids=["alone", "in a batch"])
def test_relax_that_ends_outside(n: int, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lattice constants that the training did not hold."""
    write("big.extxyz", [bulk("Cu", a=4.3, cubic=True)] * n)
    titles: list[str] = []
    draw = plots.relax_summary

    def noted(*arguments, **named):
        figure = draw(*arguments, **named)
        titles.append(figure.get_suptitle())
        return figure

    monkeypatch.setattr(plots, "relax_summary", noted)
    said, told = ends_outside("relax", "big.extxyz", "--model", model, "--json", "-o", "out.xyz")
    found = json.loads(said)
    assert [one["novelty"] > 1 for one in found["structures"]] == [True] * n
    assert told.count(f": {OUTSIDE}") == n
    assert f"Error: {n} of {n} structures end outside the training data of {model}" in told
    assert "structure 0: OUTSIDE the training data (novelty" in told
    assert files() >= {"out.xyz", "out.png"}
    assert len(read("out.xyz", ":")) == n
    (title,) = titles
    assert "outside the training data" in title
    assert n > 1 or "converged" not in title


@pytest.mark.parametrize("n", [1, 2], ids=["alone", "in a batch"])
def test_relax_stops_when_unknown(n: int, model: str) -> None:
    """At the first such step; another structure goes on."""
    frames = [squeezed(0.3), crystal(5)][:n]
    write("some.extxyz", frames)
    said, _ = ends_outside(
        *("relax", "some.extxyz", "--model", model, "--stop-when-unknown", "-o", "out.xyz")
    )
    assert "structure 0: OUTSIDE" in said
    assert "in 0 steps" in said
    assert np.allclose(read("out.xyz", 0).positions, frames[0].positions, atol=1e-6)
    if n > 1:
        assert "structure 1: converged in" in said


def test_relax_by_a_model_that_knows_nothing(far_off: str) -> None:
    succeeds("relax", far_off, "--model", COPPER, "-o", "out.xyz")


# ------------------------------------------------------------------------------------------ md


def test_md_inside(model: str, inside: str) -> None:
    succeeds("md", inside, "--model", model, "--steps", 20, "-o", "run.h5md")
    rows = md.read_log("run.csv")
    assert all(0 < row["novelty"] <= 1 for row in rows)
    frames = md.read_h5md("run.h5md")
    assert [frame.info["novelty"] for frame in frames] == [row["novelty"] for row in rows]


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_that_leaves(integrator: str, model: str, inside: str) -> None:
    said, told = ends_outside(
        *("md", inside, "--model", model, "--temperature", 3000, "--steps", 200, "--json"),
        *("--integrator", integrator, "-o", "run.xyz"),
    )
    _, warning, *_, error = told.splitlines()  # first what the model is
    assert re.match(rf"Warning: step \d+ \(\d+\.\d fs\): {OUTSIDE} \d \(Cu\) has novelty", warning)
    assert error.startswith("Error: the run left the training data of the model: novelty ")
    assert json.loads(said)["steps"] == 200
    largest = max(row["novelty"] for row in md.read_log("run.csv"))
    assert json.loads(said)["largest_novelty"]["novelty"] == largest > 1


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_every_frame_is_looked_at(
    integrator: str, model: str, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one between two looks."""
    hot = ("md", inside, "--model", model, "--temperature", 3000, "--integrator", integrator)
    ends_outside(*hot, "--steps", 60, "--every", 1, "-o", "all.xyz")
    novelties = [row["novelty"] for row in md.read_log("all.csv")]
    first = next(step for step, novelty in enumerate(novelties) if novelty > 1)
    for module in (job, with_ase):
        monkeypatch.setattr(module, "EVERY", first - 1)
    _, told = ends_outside(*hot, "--steps", 2 * first, "--every", first, "-o", "some.xyz")
    assert re.findall(r"Warning: step (\d+)", told) == [str(first)]


@pytest.mark.parametrize("integrator", ["native", "ase"])
def test_md_stops_when_unknown(integrator: str, model: str, inside: str) -> None:
    hot = ("md", inside, "--model", model, "--temperature", 3000, "--integrator", integrator)
    said, told = ends_outside(
        *hot, "--steps", 200, "--json", "-o", "run.xyz", "--stop-when-unknown"
    )
    step = int(re.findall(r"step (\d+)", told)[0])
    assert 0 < step == json.loads(said)["steps"] < 200
    assert told.rstrip().endswith(f"it stopped at step {step} of 200")
    rows, frames = md.read_log("run.csv"), read("run.xyz", ":")
    assert [row["novelty"] > 1 for row in rows] == [False] * (len(rows) - 1) + [True]
    assert len(frames) == len(rows)
    assert rows[-1]["time_fs"] == pytest.approx(0.5 * step)
    # the first step of all, not of those that are written
    ends_outside(*hot, "--steps", step, "--every", 1, "-o", "all.xyz")
    novelties = [row["novelty"] for row in md.read_log("all.csv")]
    assert [novelty > 1 for novelty in novelties] == [False] * step + [True]


def test_a_run_that_was_stopped_goes_on(model: str, inside: str) -> None:
    """And ends with the bits of one that was not."""
    hot = ("--model", model, "--temperature", 3000, "--steps", 100)
    said, _ = ends_outside("md", inside, *hot, "-o", "whole.h5md", "--json")
    again, told = ends_outside("md", "--resume", "whole.h5md", "--json")
    assert json.loads(again) == json.loads(said)
    assert "Error: the run left the training data of the model: novelty " in told
    ends_outside("md", inside, *hot, "-o", "run.h5md", "--stop-when-unknown")
    at_the_stop = Path("run.h5md").read_bytes(), Path("run.csv").read_bytes()
    _, told = ends_outside("md", "--resume", "run.h5md", "--stop-when-unknown")
    assert re.search(r"it stopped at step \d+ of 100", told)
    assert (Path("run.h5md").read_bytes(), Path("run.csv").read_bytes()) == at_the_stop
    ends_outside("md", "--resume", "run.h5md")
    assert Path("run.csv").read_text() == Path("whole.csv").read_text()


def test_md_of_several_systems_names_the_first(model: str) -> None:
    write("some.extxyz", [crystal(0), squeezed(0.3)])
    _, told = ends_outside(
        *("md", "some.extxyz", "--model", model, "--replicas", 1, "--steps", 2, "-o", "run.h5md")
    )
    assert re.search(rf"Warning: system 1: step 0 \(0\.0 fs\): {OUTSIDE} [01] ", told)


# ---------------------------------------------------------------------------- eval, calibrate


def test_eval_tells_inside_from_outside(model: str) -> None:
    frames = [*(crystal(seed) for seed in range(5)), squeezed(0.3), squeezed(0.35)]
    write("frames.extxyz", [labelled(frame) for frame in frames])
    said = succeeds("eval", model, "frames.extxyz", "--no-report")
    found = re.search(
        r"2 of 7 structures are outside the training data; force MAE ([\d.]+) meV/Å inside, "
        r"([\d.]+) meV/Å outside",
        said,
    )
    assert found is not None, said
    assert float(found[1]) < float(found[2])
    said = succeeds("eval", COPPER, "frames.extxyz", "--no-report")
    assert "does not know its training data" in said


def test_calibrate() -> None:
    write("frames.extxyz", [labelled(crystal(seed % 100)) for seed in range(120)])
    said = succeeds("calibrate", COPPER, "frames.extxyz", "-o", "known.safetensors")
    assert said.splitlines() == [
        "100 of 120 structures describe what it knows: 400 Cu",  # 20 are copies
        "wrote known.safetensors",
    ]
    assert header("known.safetensors")["novelty"]["n_structures"] == 100
    ours, theirs = (load(path).state_dict() for path in ("known.safetensors", COPPER))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert "exists" in fails("calibrate", COPPER, "frames.extxyz", "-o", "known.safetensors")


def test_calibrate_on_a_file_without_units() -> None:
    frames = [crystal(seed) for seed in range(3)]
    cells, positions = (np.stack([getattr(a, k) for a in frames]) for k in ("cell", "positions"))
    np.savez("frames.npz", z=frames[0].numbers, R=positions, cell=cells, E=np.zeros(3))
    command = ("calibrate", COPPER, "frames.npz", "-o", "known.safetensors")
    assert "does not state its energy unit" in fails(*command)
    found = attncalc(*command, "--energy-unit", "Hartree")
    assert "3 of 3 structures describe what it knows" in found.stdout
    assert found.stderr == (
        "Warning: 3 different structures are few to learn the edge of what a model knows: 100 or "
        "more are better\n"
    )


def test_calibrate_refuses() -> None:
    write("frames.extxyz", [labelled(crystal(0))])
    arguments = ("calibrate", COPPER, "frames.extxyz", "-o")
    assert "must end in .safetensors" in fails(*arguments, "known.pt")
    assert "no split 'b'; stored splits: none" in fails(*arguments, "a.safetensors", "--split", "b")
    result = attncalc("calibrate", COPPER, "-o", "a.safetensors")
    assert "DATA is needed" in result.stderr
    write("water.extxyz", Atoms("OH2", positions=[(0, 0, 0), (1, 0, 0), (0, 1, 0)]))
    assert files() == {"frames.extxyz", "water.extxyz"}


@pytest.mark.parametrize("command", [["relax"], ["relax", "--shard", "1/1"], ["md"]])
def test_a_stop_needs_a_model_that_knows_its_training(command: list[str]) -> None:
    write("cu.extxyz", bulk("Cu", cubic=True))
    said = fails(*command, "cu.extxyz", "--model", COPPER, "--stop-when-unknown")
    assert "--stop-when-unknown needs a model that knows its training data" in said
