"""Batched relaxation: every structure goes the way it goes alone."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.optimize import FIRE
from contract import ethanol

from attncalc import AttnCalculator, System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md import relaxation


@pytest.fixture(scope="module")
def forces() -> Evaluator:
    return Evaluator(load("so3krates-ethanol"))


def rattled() -> list[Atoms]:
    frames = [ethanol() for _ in range(6)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.015 * (k + 1), seed=k)
    return frames


def test_every_structure_goes_the_way_of_ases_fire(forces: Evaluator) -> None:
    relaxed = md.relax_batch(forces, System.from_ase(rattled()), fmax=0.02)
    assert relaxed.largest_force.amax() <= 0.02
    assert not relaxed.interrupted
    for k, atoms in enumerate(rattled()):
        atoms.calc = AttnCalculator("so3krates-ethanol")
        with FIRE(atoms, logfile=None) as fire:
            fire.run(fmax=0.02)
        # rounding of float32 forces may decide about the last step
        assert abs(fire.nsteps - int(relaxed.steps[k])) <= 1
        assert float(relaxed.energy[k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert len(set(relaxed.steps.tolist())) > 2, "some left the batch before others"
    fresh = forces(relaxed.system)
    assert (relaxed.forces - fresh.forces).abs().amax() < 1e-4
    assert (relaxed.energy - fresh.energy).abs().amax() < 1e-5


def test_fixed_atoms_stay(forces: Evaluator) -> None:
    system = System.from_ase(rattled()[:2])
    fixed = torch.zeros(18, dtype=torch.bool)
    fixed[[0, 4, 11]] = True
    relaxed = md.relax_batch(forces, system, fixed=fixed)
    moved = (relaxed.system.positions != system.positions).any(1)
    assert torch.equal(moved, ~fixed)
    lengths = torch.linalg.vector_norm(relaxed.forces, dim=1)
    assert lengths[~fixed].amax() <= 0.01
    assert lengths[fixed].amax() > 0.01


def test_steps_end(forces: Evaluator) -> None:
    relaxed = md.relax_batch(forces, System.from_ase(rattled()), steps=3)
    assert relaxed.steps.tolist() == [3] * 6
    assert relaxed.largest_force.amax() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmax": 0.0}, "fmax must be positive, got 0.0"),
        ({"fmax": float("nan")}, "fmax must be positive, got nan"),
        ({"fmax": float("inf")}, "fmax must be finite, got inf"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"fixed": torch.ones(3)}, r"fixed must have shape \[9\], got \[3\]"),
    ],
)
def test_bad_input(options: dict, message: str, forces: Evaluator) -> None:
    with pytest.raises(ValueError, match=message):
        md.relax_batch(forces, System.from_ase(ethanol()), **options)


def test_a_force_that_is_not_finite_is_named(forces: Evaluator, monkeypatch) -> None:
    evaluate = Evaluator.__call__

    def broken(self, system):
        result = evaluate(self, system)
        result.forces[12] = torch.nan
        return result

    monkeypatch.setattr(Evaluator, "__call__", broken)
    with pytest.raises(FloatingPointError, match="structure 1: a force is not finite"):
        md.relax_batch(forces, System.from_ase(rattled()))
    with pytest.raises(FloatingPointError, match="structure 8: a force is not finite"):
        md.relax_batch(forces, System.from_ase(rattled()), first=7)


def test_atoms_on_top_of_each_other_are_named(forces: Evaluator, monkeypatch) -> None:
    """By the number of the structure among all, also when others have left the batch."""
    frames = rattled()
    frames[4].positions[3] = frames[4].positions[1]
    what = r"atom 1 \(\w\) and atom 3 \(\w\) are 0.0e\+00 Å apart"
    for first in (0, 7):
        with pytest.raises(ValueError, match=rf"^structure {first + 4}: {what}: remove"):
            md.relax_batch(forces, System.from_ase(frames), first=first)
    with pytest.raises(ValueError, match=rf"^{what}: remove"):
        md.relax_batch(forces, System.from_ase(frames[4]))
    step = relaxation._Fire.step

    def collides(self, *arguments):
        fire = step(self, *arguments)
        if self.system.n_systems < 6:
            fire.system.positions[-1] = fire.system.positions[-2]
        return fire

    monkeypatch.setattr(relaxation._Fire, "step", collides)
    with pytest.raises(ValueError, match=r"^structure 12: atom 7 "):
        md.relax_batch(forces, System.from_ase(rattled()), fmax=0.02, first=7)
