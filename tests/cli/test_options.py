"""--threads, of PyTorch and of the model; --long-range-cutoff."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from command_line import COPPER, attncalc, fails, labelled, succeeds

from attncalc import load
from attncalc.md import read_h5md
from attncalc.potential import Potential
from attncalc.structures import evaluate_many


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
    monkeypatch.setattr(torch, "set_num_threads", called.append)
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
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    succeeds("eval", COPPER, "cu.extxyz", "--threads", 2)
    succeeds("verify", COPPER, "--threads", 2)
    assert called == [2, 2]
    assert attncalc("verify", COPPER, "--threads", 0).exit_code == 2


def test_threads_and_dtype_reach_the_model_and_a_run_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("cu.extxyz", bulk("Cu", a=3.6, cubic=True))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    other = {torch.float32: torch.float64, torch.float64: torch.float32}[load(COPPER).dtype]
    taken: list[tuple[int, torch.dtype]] = []
    take = Potential.set_num_threads
    monkeypatch.setattr(
        Potential,
        "set_num_threads",
        lambda self, n: (taken.append((n, self.dtype)), take(self, n)),
    )
    run = ("md", "cu.extxyz", "--model", COPPER, "--temperature", 10, "-o", "run.h5md")
    dtype = ("--dtype", str(other).removeprefix("torch."))
    succeeds(*run, "--steps", 2, "--threads", 2, *dtype)
    assert taken[-1] == (2, other)
    for threads, expected in (((), 2), (("--threads", 3), 3)):
        succeeds("md", "--resume", "run.h5md", "--steps", 2 + expected, *threads)
        assert taken[-1] == (expected, other)


def test_long_range_cutoff(ethanol_file: str, charged_model: str) -> None:
    """The energies are those of `load(long_range_cutoff=)`, and a run keeps its choice."""
    (start,) = read(ethanol_file, ":")
    wanted = {}
    for cutoff in (2.5, math.inf):
        ((_, result),) = evaluate_many(load(charged_model, long_range_cutoff=cutoff), [start])
        wanted[cutoff] = float(result.energy)
    assert wanted[2.5] != pytest.approx(wanted[math.inf], abs=1e-4)
    short = ("--long-range-cutoff", 2.5)
    run = ("md", ethanol_file, "--model", charged_model, "--every", 1, "--temperature", 50)
    for name, cutoff in (("default", ()), ("inf", ("--long-range-cutoff", "inf")), ("2.5", short)):
        succeeds(*run, "--steps", 1, "-o", f"{name}.h5md", *cutoff)
        energy = read_h5md(f"{name}.h5md")[0].get_potential_energy()
        assert energy == pytest.approx(wanted[2.5 if name == "2.5" else math.inf], abs=1e-6)
    succeeds("md", "--resume", "inf.h5md", "--steps", 2)
    assert len(read_h5md("inf.h5md")) == 3
    succeeds(*run, "--steps", 3, "-o", "whole.h5md", *short)
    succeeds("md", "--resume", "2.5.h5md", "--steps", 3)
    parts, whole = read_h5md("2.5.h5md"), read_h5md("whole.h5md")
    assert [one.get_potential_energy() for one in parts] == [
        one.get_potential_energy() for one in whole
    ]
    other = ("md", "--resume", "2.5.h5md", "--steps", 5, "--long-range-cutoff", 3)
    assert fails(*other) == (
        "Error: --resume uses the settings of the run: remove --long-range-cutoff"
    )

    succeeds("relax", ethanol_file, "--model", charged_model, "--fmax", 100, *short)
    assert read("ethanol.relaxed.xyz").get_potential_energy() == pytest.approx(wanted[2.5])
    start.calc = SinglePointCalculator(start, energy=wanted[2.5], forces=np.zeros((9, 3)))
    write("labelled.extxyz", start)
    said = succeeds("eval", charged_model, "labelled.extxyz", "--no-report", *short)
    (error,) = re.findall(r"energy, meV +(\S+)", said)
    assert float(error) < 0.01
    succeeds("verify", charged_model, "--structure", ethanol_file, *short)


def test_long_range_cutoff_that_is_none(charged_model: str) -> None:
    atoms = molecule("H2O", vacuum=4.0, pbc=True)
    write("periodic.extxyz", atoms)
    run = ("md", "periodic.extxyz", "--model", charged_model, "--long-range-cutoff")
    for wrong in (0, -1, "nan"):
        assert "long_range_cutoff must be a positive number of Å, got" in fails(*run, wrong)
    assert "all pairs" in fails(*run, "inf")
    assert attncalc(*run, "far").exit_code == 2
    without = ("verify", COPPER, "--long-range-cutoff", 5)
    assert (
        fails(*without) == "Error: long_range_cutoff: this model has no pair term of longer range"
    )


@pytest.mark.parametrize(
    "command", [("sample", "-o", "data.h5", "--molecules", 3), ("distill", "start.xyz")]
)
def test_minutes_are_a_number(command: tuple[str, ...]) -> None:
    for wrong, says in (("nan", "nan is not a number of minutes"), ("-1", "not in the range")):
        done = attncalc(*command, "--oracle", "ase.calculators.emt:EMT", "--minutes", wrong)
        assert done.exit_code == 2
        assert says in done.output


@pytest.mark.parametrize("written", [{}, {"total_charge": 1}, {"charge": 1, "total_charge": 1}])
def test_total_charge_of_the_option(charged_model: str, written: dict[str, int]) -> None:
    """It stands in place of what the file says, under either name."""
    start = molecule("CH3CH2OH")[:-1]
    ion = start.copy()
    ion.info["charge"] = -1
    ((_, wanted),) = evaluate_many(load(charged_model), [ion])
    write("ion.extxyz", Atoms(start, info=written))
    options = ("--model", charged_model, "--charge", -1)
    succeeds("relax", "ion.extxyz", *options, "--fmax", 100, "-o", "relaxed.xyz")
    relaxed = read("relaxed.xyz")
    assert relaxed.get_potential_energy() == pytest.approx(float(wanted.energy))
    assert relaxed.info["charge"] == -1
    assert "total_charge" not in relaxed.info
    for integrator, target in (("native", "ion.h5md"), ("ase", "ase.xyz")):
        again = ("--steps", 1, "--integrator", integrator, "-o", target)
        succeeds("md", "ion.extxyz", *options, *again)
    (first,) = read_h5md("ion.h5md", slice(0, 1))
    assert first.info["charge"] == -1
    assert first.get_potential_energy() == pytest.approx(float(wanted.energy))
    assert read("ase.xyz", 0).get_potential_energy() == pytest.approx(float(wanted.energy))
    assert "remove --charge" in fails("md", "--resume", "ion.h5md", "--charge", -1)


def test_a_multiplicity_of_the_option(charged_model: str, ethanol_file: str) -> None:
    wrong = ("--model", charged_model, "--multiplicity")
    for command in ("relax", "md"):
        assert "multiplicity 3: this model supports" in fails(command, ethanol_file, *wrong, 3)
        assert 'atoms.info["spin"] = 2 is impossible' in fails(command, ethanol_file, *wrong, 2)


def test_charges_of_many_structures_are_their_own(ethanol_file: str) -> None:
    said = fails("relax", ethanol_file, "--charge", 1, "--workers", 2)
    assert "write charge=-1 spin=1 into the second line of each structure" in said
