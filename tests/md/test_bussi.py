"""Velocity rescaling: the canonical distribution of the motion that is counted, and of no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from states import assert_equal
from toys import assert_mean, gas, zeros_of

from attncalc import System, md
from attncalc.result import Result

FS = units.fs
BUSSI = md.Bussi(timestep=1 * FS, temperature=300.0, relaxation=10 * FS)
LENGTH = 1.5  # Å, of a bond at rest
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * LENGTH / np.sqrt(8)


def molecules(system: System) -> Result:
    """All pairs of each system's atoms, which are as many in all, are bonds of 10 eV/Å²."""
    n = system.n_systems
    x = system.positions.reshape(n, -1, 3)
    bonds = x.unsqueeze(2) - x.unsqueeze(1)  # [n, m, m, 3]
    lengths = torch.linalg.vector_norm(bonds, dim=3)
    stretch = (lengths - LENGTH) * (lengths > 0)
    energies = 0.25 * 10 * (stretch * stretch).sum(2)
    pulls = -10 * (stretch / lengths.clamp(min=1e-9)).unsqueeze(3) * bonds
    strain_gradient = torch.zeros(n, 3, 3, dtype=torch.float64)
    forces = pulls.sum(2).reshape(-1, 3)
    return Result(energies.sum(1), energies.reshape(-1), forces, strain_gradient)


def tetrahedra(n: int) -> System:
    return System.from_ase([Atoms("C4", TETRAHEDRON) for _ in range(n)])


def spin_and_drift(state: md.MDState) -> torch.Tensor:
    """[n_systems, 6]."""
    drift = state.per_system(state.momenta)
    weights = state.masses.unsqueeze(1)
    centre = state.per_system(weights * state.system.positions) / state.per_system(weights)
    arms = state.system.positions - centre[state.system.system_idx]
    return torch.cat([state.per_system(torch.linalg.cross(arms, state.momenta)), drift], dim=1)


@pytest.mark.parametrize("kind", ["gas", "fixed", "molecules", "linear"])
def test_kinetic_energy_has_mean_and_variance_of_the_canonical_ensemble(kind: str) -> None:
    n = 200
    system = System.from_ase(gas(4, np.tile(10 * np.eye(3), (n, 1, 1))))
    force, options, n_dof, wait = zeros_of, {}, 9, 50
    if kind == "molecules":
        system, force, n_dof = tetrahedra(n), molecules, 6
    if kind == "linear":  # at first, and stretched: it bends, and takes longer to cool
        line = Atoms("C3", np.outer([-1, 0, 1], [0.4, 0.5, 0.7]))
        system, force, n_dof = System.from_ase([line] * n), molecules, 3
        wait = 200
    if kind == "fixed":
        options, n_dof = {"fixed": (torch.arange(4 * n) % 4 == 1)}, 9
        assert n_dof == 3 * 3, "of the free atoms, whose momentum is not conserved"
    state = BUSSI.init(force, system, **options)
    assert state.n_dof.tolist() == [n_dof] * n
    temperatures = []
    for step in range(400):
        state = BUSSI.step(state, force)
        if step >= wait:
            temperatures.append(state.temperature.numpy())
    ratio = np.array(temperatures) / 300
    assert_mean(ratio, 1.0)
    assert_mean((ratio - 1) ** 2, 2 / n_dof)
    if kind != "fixed":
        assert spin_and_drift(state)[:, 3 if kind == "gas" else 0 :].abs().amax() < 1e-9


def test_each_system_has_its_temperature() -> None:
    bussi = replace(BUSSI, temperature=(100.0,) * 100 + (900.0,) * 100)
    state = bussi.init(zeros_of, System.from_ase(gas(8, np.tile(10 * np.eye(3), (200, 1, 1)))))
    found = []
    for _ in range(150):
        state = bussi.step(state, zeros_of)
        found.append(state.temperature.numpy())
    assert_mean(np.array(found)[50:, :100], 100.0)
    assert_mean(np.array(found)[50:, 100:], 900.0)


def test_heat_goes_in_the_relaxation_time() -> None:
    """The mean of the kinetic energy goes to its limit as exp(-time / relaxation)."""
    system = System.from_ase(gas(4, np.tile(10 * np.eye(3), (2000, 1, 1))))
    state = replace(BUSSI, temperature=900.0).init(zeros_of, system)
    hot = state.temperature.mean().item()
    for n_steps in (5, 10, 20):
        last = md.run(BUSSI, zeros_of, state, n_steps)
        expected = 300 + (hot - 300) * np.exp(-n_steps / 10)
        error = last.temperature.std().item() / np.sqrt(2000)
        assert last.temperature.mean().item() == pytest.approx(expected, abs=4 * error)
        assert error < 15


def test_drift_and_rotation_that_are_given_stay() -> None:
    """They are no heat: the thermostat neither counts nor changes them."""
    momenta = torch.randn(8, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    momenta += torch.tensor([2.0, 0.0, 0.0])
    first = BUSSI.init(molecules, tetrahedra(2), momenta=momenta)
    last = md.run(BUSSI, molecules, first, 100)
    assert spin_and_drift(first).abs().amax() > 1
    torch.testing.assert_close(spin_and_drift(last), spin_and_drift(first), rtol=1e-9, atol=1e-9)


def test_a_linear_molecule_keeps_its_rotation() -> None:
    pair = Atoms("O2", [[0.1, 0.2, 0.3], [1.1, 1.1, 1.0]])
    rng = np.random.default_rng(1)
    first = BUSSI.init(molecules, System.from_ase(pair), momenta=rng.normal(size=(2, 3)))
    assert first.n_dof.tolist() == [1]
    last = md.run(BUSSI, molecules, first, 60)
    torch.testing.assert_close(spin_and_drift(last), spin_and_drift(first), rtol=1e-9, atol=1e-9)


def test_the_conserved_quantity_moves_by_the_timestep_only() -> None:
    spread = []
    for timestep in (0.5, 1.0, 2.0):
        bussi = replace(BUSSI, timestep=timestep * FS)
        state = bussi.init(molecules, tetrahedra(20))
        energies, conserved = [], []
        for _ in range(int(200 / timestep)):
            state = bussi.step(state, molecules)
            energies.append((state.energy + state.kinetic_energy).numpy())
            conserved.append(state.conserved.numpy())
        spread.append(np.std(conserved, axis=0).mean())
        assert spread[-1] < 0.05 * np.std(energies, axis=0).mean()
    assert 3 < spread[1] / spread[0] < 5
    assert 3 < spread[2] / spread[1] < 5


def test_batching_does_not_matter() -> None:
    together = md.run(BUSSI, molecules, BUSSI.init(molecules, tetrahedra(3)), 50)
    options = {"replicas": torch.tensor([2])}
    alone = md.run(BUSSI, molecules, BUSSI.init(molecules, tetrahedra(1), **options), 50)
    torch.testing.assert_close(alone.momenta, together.momenta[8:], rtol=0, atol=1e-9)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    first = BUSSI.init(molecules, tetrahedra(3), seed=7)
    whole = md.run(BUSSI, molecules, first, 30)
    file = tmp_path / "run.ckpt"
    md.run(BUSSI, molecules, first, 13, callbacks=[md.Checkpoint(file)])
    integrator, state, _ = md.load_checkpoint(file)
    assert integrator == BUSSI
    assert_equal(md.run(integrator, molecules, state, 17), whole)


def test_atoms_at_rest_have_no_direction_to_go() -> None:
    first = BUSSI.init(zeros_of, tetrahedra(2), momenta=np.zeros((8, 3)))
    last = md.run(BUSSI, zeros_of, first, 5)
    assert not last.momenta.any()
    assert not last.heat.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relaxation": 0.0}, "relaxation must be positive, got 0.0"),
        ({"relaxation": 100.0}, "write 100 \\* ase.units.fs for 100 fs"),
        ({"temperature": -1.0}, "temperature must be positive, got -1"),
        ({"timestep": 0.5}, "write 0.5 \\* ase.units.fs"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BUSSI, **options)
