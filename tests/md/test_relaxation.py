"""Batched relaxation: every structure goes the way it goes alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength
from ase.optimize import FIRE, LBFGS
from contract import ethanol

from attncalc import AttnCalculator, System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md import optimizers, relaxation
from attncalc.result import Result


@pytest.fixture(scope="module")
def forces() -> Evaluator:
    return Evaluator(load("so3krates-ethanol"))


def rattled() -> list[Atoms]:
    frames = [ethanol() for _ in range(6)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.015 * (k + 1), seed=k)
    return frames


def test_every_structure_goes_the_way_of_ases_fire(forces: Evaluator) -> None:
    relaxed = md.relax_batch(forces, System.from_ase(rattled()), fmax=0.02, optimizer="fire")
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


def test_every_structure_goes_by_lbfgs_as_it_does_alone(forces: Evaluator) -> None:
    """To the energies of ASE's L-BFGS, in half the steps of FIRE or less."""
    relaxed = md.relax_batch(forces, System.from_ase(rattled()))
    assert relaxed.largest_force.amax() <= 0.01
    for k, atoms in enumerate(rattled()):
        alone = md.relax_batch(forces, System.from_ase(atoms))
        assert abs(int(alone.steps[0] - relaxed.steps[k])) <= 1
        atoms.calc = AttnCalculator("so3krates-ethanol")
        with LBFGS(atoms, logfile=None) as lbfgs:
            lbfgs.run(fmax=0.01)
        assert float(relaxed.energy[k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    by_fire = md.relax_batch(forces, System.from_ase(rattled()), optimizer="fire")
    assert 2 * relaxed.steps.sum() < by_fire.steps.sum()


def test_lbfgs_is_bfgs_with_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 7.16 of Nocedal & Wright, written out, in a well with uphill curvature beside it."""
    monkeypatch.setattr(optimizers.LBFGS, "MEMORY", 4)
    system = System.from_ase([Atoms("H2"), Atoms("H3"), Atoms("H4")])
    rng = np.random.default_rng(0)
    x = [rng.uniform(0.8, 1.5, size=(n, 3)) for n in (2, 3, 4)]  # beyond pi/4 it curves downwards
    stiffness = [rng.uniform(1, 30, size=one.shape) for one in x]
    optimizer, history, skipped = optimizers.LBFGS.start(system), [[], [], []], 0
    for _ in range(12):
        forces = [-k * np.sin(2 * one) for k, one in zip(stiffness, x, strict=True)]
        positions = torch.from_numpy(np.concatenate(x))
        there = replace(system, positions=positions)
        optimizer, moves = optimizer.step(there, torch.from_numpy(np.concatenate(forces)))
        for k, move in enumerate(system.split(moves.numpy())):
            size, scale, used = x[k].size, 1 / 70, []
            for (x0, f0), (x1, f1) in pairwise([*history[k], (x[k], forces[k])]):
                s, y = (x1 - x0).ravel(), (f0 - f1).ravel()
                used.append((s, y) if s @ y > 0 else None)
            skipped += used[-1:] == [None]
            inverse = np.eye(size)
            kept = [pair for pair in used[-4:] if pair]
            if kept:
                s, y = kept[-1]
                scale = (s @ y) / (y @ y)
            inverse = scale * inverse
            for s, y in kept:
                v = np.eye(size) - np.outer(y, s) / (s @ y)
                inverse = v.T @ inverse @ v + np.outer(s, s) / (s @ y)
            expected = (inverse @ forces[k].ravel()).reshape(-1, 3)
            longest = np.linalg.norm(expected, axis=1).max()
            expected *= min(1, 0.2 / longest)
            assert np.allclose(move, expected, rtol=1e-8, atol=1e-12)
            assert (move * forces[k]).sum() > 0
            history[k].append((x[k], forces[k]))
            x[k] = x[k] + move
    assert skipped > 2, "the energy curves downwards somewhere"


def springs(system: System) -> Result:
    """Atoms at springs of every stiffness, each pulling the next of its structure."""
    x = system.positions
    stiffness = torch.linspace(1, 40, 3, dtype=x.dtype) * (1 + system.atom_in_system[:, None])
    follows = system.atom_in_system > 0
    apart = torch.where(follows[:, None], x - x.roll(1, 0), 0.0)
    pull = 3 * apart**3
    energies = (0.5 * stiffness * x**2).sum(1) + (0.75 * apart**4).sum(1)
    forces = -stiffness * x - pull + pull.roll(-1, 0)
    energy = torch.zeros(system.n_systems, dtype=x.dtype).index_add(0, system.system_idx, energies)
    return Result(energy, energies, forces, x.new_zeros((system.n_systems, 3, 3)))


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_leaving_the_batch_changes_nothing(optimizer: str, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    frames = [Atoms(f"H{n}", positions=rng.normal(size=(n, 3))) for n in (5, 2, 9, 1, 4, 7)]
    found = []
    for idle in (0.0, 0.3, 2.0):  # at once, in groups, never
        monkeypatch.setattr(relaxation, "IDLE", idle)
        system = System.from_ase(frames)
        found.append(md.relax_batch(springs, system, fmax=1e-6, optimizer=optimizer))
    for one in found:
        assert one.largest_force.amax() <= 1e-6
        assert torch.equal(one.steps, found[0].steps)
        assert torch.allclose(one.system.positions, found[0].system.positions, rtol=0, atol=1e-9)
    assert len(set(found[0].steps.tolist())) > 3


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_fixed_atoms_stay(forces: Evaluator, optimizer: str) -> None:
    system = System.from_ase(rattled()[:2])
    fixed = torch.zeros(18, dtype=torch.bool)
    fixed[[0, 4, 11]] = True
    relaxed = md.relax_batch(forces, system, fixed=fixed, optimizer=optimizer)
    moved = (relaxed.system.positions != system.positions).any(1)
    assert torch.equal(moved, ~fixed)
    lengths = torch.linalg.vector_norm(relaxed.forces, dim=1)
    assert lengths[~fixed].amax() <= 0.01
    assert lengths[fixed].amax() > 0.01
    structures = rattled()[:2]
    structures[0].set_constraint(FixAtoms([0, 4]))
    structures[1].set_constraint(FixAtoms([2]))
    structures[1].set_momenta(np.ones((9, 3)))  # which mean nothing here
    of_ase = md.relax_batch(forces, structures, optimizer=optimizer)
    assert torch.equal(of_ase.system.positions, relaxed.system.positions)
    of_list = md.relax_batch(forces, system, optimizer=optimizer, fixed=fixed.tolist())
    assert torch.equal(of_list.system.positions, relaxed.system.positions)


def test_other_constraints_are_refused_whatever_is_fixed(forces: Evaluator) -> None:
    structures = rattled()[:2]
    structures[1].set_constraint(FixBondLength(0, 1))
    for options in ({}, {"fixed": torch.zeros(18, dtype=torch.bool)}):
        with pytest.raises(ValueError, match=r"^structure 6: the constraint FixBondLengths"):
            md.relax_batch(forces, structures, first=5, **options)


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
        ({"optimizer": "bfgs"}, "optimizer must be one of 'lbfgs', 'fire', got 'bfgs'"),
        ({"fixed": torch.ones(3)}, r"fixed must have shape \[9\], got \[3\]"),
        ({"fixed": range(9)}, "fixed must be True or False for each atom"),
    ],
)
def test_bad_input(options: dict, message: str, forces: Evaluator) -> None:
    with pytest.raises(ValueError, match=message):
        md.relax_batch(forces, System.from_ase(ethanol()), **options)


@pytest.mark.parametrize("given", [None, "ethanol.xyz", {}])
def test_what_is_no_structure(given: object, forces: Evaluator) -> None:
    said = rf"^expected ase\.Atoms or a list of them, got {type(given).__name__}$"
    for take in (lambda one: md.relax_batch(forces, one), System.from_ase):
        with pytest.raises(TypeError, match=said):
            take(given)


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
    step = relaxation._Moving.step

    def collides(self, *arguments):
        moving = step(self, *arguments)
        if self.system.n_systems < 6:
            moving.system.positions[-1] = moving.system.positions[-2]
        return moving

    monkeypatch.setattr(relaxation._Moving, "step", collides)
    with pytest.raises(ValueError, match=r"^structure 12: atom 7 "):
        md.relax_batch(forces, System.from_ase(rattled()), fmax=0.02, first=7)


def test_a_structure_that_is_told_to_rest_stays(forces: Evaluator) -> None:
    """From then on, also if nothing is said of it later."""
    starts = System.from_ase(rattled())
    calls = []

    def should_stop(numbers: torch.Tensor, system: System) -> torch.Tensor | None:
        calls.append(len(numbers))
        if len(calls) == 1:
            return numbers == 5
        return numbers < 0 if len(calls) % 2 else None

    relaxed = md.relax_batch(forces, starts, should_stop=should_stop)
    of_last = starts.system_idx == 5
    assert torch.equal(relaxed.system.positions[of_last], starts.positions[of_last])
    assert relaxed.largest_force[5] > 0.01
    assert relaxed.largest_force[:5].amax() <= 0.01
    assert len(calls) > 5
