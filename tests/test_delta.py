"""Delta models: together with their baseline they move atoms, alone they refuse to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.mixing import LinearCombinationCalculator
from ase.io import write
from command_line import COPPER, attncalc, fails

from attncalc import AttnCalculator, Committee, Potential, load, save
from attncalc.evaluator import Evaluator


def delta_model(method: str = "EMT", weight: float = 1.0) -> Potential:
    potential = load(COPPER, dtype="float64")
    potential.training_info["baseline"] = method
    potential.scale *= weight
    return potential


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(delta_model(), tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def test_the_baseline_stays_in_the_file(model: Path) -> None:
    assert load(model).baseline == "EMT"
    assert load(COPPER).baseline == ""


def test_alone_it_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="for the baseline EMT: add the baseline's results, and pa"
    ):
        AttnCalculator(model)
    with pytest.raises(ValueError, match="for the baseline EMT: add the baseline's results"):
        Evaluator(load(model))
    with pytest.raises(ValueError, match="a whole potential, not a delta model: remove delta=True"):
        AttnCalculator(COPPER, delta=True)
    copper = tmp_path / "cu.extxyz"
    write(copper, bulk("Cu"))
    for command in ("relax", "md"):
        assert "for the baseline EMT" in fails(command, str(copper), "--model", str(model))
    assert sorted(tmp_path.iterdir()) == [copper, model]


def test_its_physics_can_be_looked_at(model: Path) -> None:
    assert attncalc("verify", str(model)).exit_code == 0


def test_its_errors_are_told_with_what_the_labels_must_be(model: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.get_forces()
    write(tmp_path / "cu.extxyz", [atoms, atoms])
    said = attncalc("eval", str(model), str(tmp_path / "cu.extxyz"), "--no-report").output
    assert "Note: This is a delta model for the baseline EMT: these errors are mea" in said
    said = attncalc("eval", str(COPPER), str(tmp_path / "cu.extxyz"), "--no-report").output
    assert "baseline" not in said


def test_beside_the_method_it_gives_the_sum(model: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    ours = AttnCalculator(model, dtype="float64", delta=True)
    alone = {}
    for name, calc in (("EMT", EMT()), ("ours", ours)):
        atoms.calc = calc
        alone[name] = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = LinearCombinationCalculator([EMT(), ours], [1.0, 1.0])
    sums = [a + b for a, b in zip(*alone.values(), strict=True)]
    found = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    for expected, got in zip(sums, found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_committees_of_delta_models(tmp_path: Path) -> None:
    members = [delta_model(), delta_model(weight=0.5)]
    committee = AttnCalculator(members, delta=True).potential
    assert committee.baseline == "EMT"
    save(Committee(members), tmp_path / "both.safetensors")
    both = load(tmp_path / "both.safetensors")
    assert both.baseline == both.members[1].baseline == "EMT"
    with pytest.raises(ValueError, match="baseline EMT"):
        Evaluator(both.members[0])
    AttnCalculator([both, delta_model(weight=0.25)], delta=True)
    for other, got in ((load(COPPER), "none, EMT"), (delta_model("PBE"), "EMT, PBE")):
        with pytest.raises(ValueError, match=f"the same baseline, got {got}"):
            Committee([members[1], other])
