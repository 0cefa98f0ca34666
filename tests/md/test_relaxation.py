"""Batched relaxation: every structure goes the way it goes alone."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.optimize import FIRE
from contract import ethanol

from attncalc import AttnCalculator, System, load, md


@pytest.fixture(scope="module")
def forces() -> md.Forces:
    return md.Forces(load("so3krates-ethanol"))


def rattled() -> list[Atoms]:
    frames = [ethanol() for _ in range(6)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.015 * (k + 1), seed=k)
    return frames


def test_every_structure_goes_the_way_of_ases_fire(forces: md.Forces) -> None:
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


def test_fixed_atoms_stay(forces: md.Forces) -> None:
    system = System.from_ase(rattled()[:2])
    fixed = torch.zeros(18, dtype=torch.bool)
    fixed[[0, 4, 11]] = True
    relaxed = md.relax_batch(forces, system, fixed=fixed)
    moved = (relaxed.system.positions != system.positions).any(1)
    assert torch.equal(moved, ~fixed)
    lengths = torch.linalg.vector_norm(relaxed.forces, dim=1)
    assert lengths[~fixed].amax() <= 0.01
    assert lengths[fixed].amax() > 0.01


def test_steps_end(forces: md.Forces) -> None:
    relaxed = md.relax_batch(forces, System.from_ase(rattled()), steps=3)
    assert relaxed.steps.tolist() == [3] * 6
    assert relaxed.largest_force.amax() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmax": 0.0}, "fmax must be above 0"),
        ({"fmax": float("nan")}, "fmax must be above 0"),
        ({"fmax": float("inf")}, "fmax must be above 0 eV/Å and finite, got inf"),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"fixed": torch.ones(3)}, r"fixed must have shape \[9\], got \[3\]"),
    ],
)
def test_bad_input(options: dict, message: str, forces: md.Forces) -> None:
    with pytest.raises(ValueError, match=message):
        md.relax_batch(forces, System.from_ase(ethanol()), **options)


def test_a_force_that_is_not_finite_is_named(forces: md.Forces, monkeypatch) -> None:
    evaluate = md.Forces.__call__

    def broken(self, system):
        result = evaluate(self, system)
        result.forces[12] = torch.nan
        return result

    monkeypatch.setattr(md.Forces, "__call__", broken)
    with pytest.raises(FloatingPointError, match="structure 1: a force is not finite"):
        md.relax_batch(forces, System.from_ase(rattled()))
