"""A model inside TorchSim: the numbers of `calculate_many`, whatever states it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import voigt_6_to_full_3x3_stress
from contract import model_of_electrons

from attncalc import AttnCalculator, load

ts = pytest.importorskip("torch_sim", reason='needs TorchSim: pip install "attncalc[torchsim]"')
from attncalc.plugins.torchsim import TorchSimModel  # noqa: E402

CPU = torch.device("cpu")
# integrators and optimizers have another place in 0.3 than later
NVE = ts.Integrator.nve if hasattr(ts, "Integrator") else ts.integrators.nve
FIRE = ts.Optimizer.fire if hasattr(ts, "Optimizer") else ts.optimizers.fire


def ethanols(n: int = 4) -> list[Atoms]:
    structures = [molecule("CH3CH2OH") for _ in range(n)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=k)
    return structures


def silicons() -> list[Atoms]:
    """Triclinic, of different size."""
    structures = []
    for k in range(3):
        atoms = bulk("Si", cubic=True) * (2, 2, 1 + k)
        tilt = np.array([[1, 0.02, 0], [0.1, 1, 0], [0.05, 0.08, 1.0]])
        atoms.set_cell(atoms.cell.array @ tilt, scale_atoms=True)
        atoms.rattle(0.05, seed=k)
        structures.append(atoms)
    return structures


def state_of(structures: list[Atoms], dtype: torch.dtype = torch.float64):
    return ts.io.atoms_to_state(structures, CPU, dtype)


def assert_calculators(found: dict, structures: list[Atoms], model: str) -> None:
    expected = AttnCalculator(model, device="cpu").calculate_many(structures)
    ends = np.cumsum([0, *map(len, structures)])
    for k, one in enumerate(expected):
        assert found["energy"][k].item() == pytest.approx(one["energy"], abs=1e-9)
        forces = found["forces"][ends[k] : ends[k + 1]].numpy()
        np.testing.assert_allclose(forces, one["forces"], atol=1e-5)
        stress = one.get("stress", np.zeros(6))
        full = voigt_6_to_full_3x3_stress(stress)
        np.testing.assert_allclose(found["stress"][k].numpy(), full, atol=1e-7)


def test_molecules():
    structures = ethanols()
    model = TorchSimModel("so3krates-ethanol", device="cpu")
    assert_calculators(model(state_of(structures)), structures, "so3krates-ethanol")


def test_charges_and_multiplicities_of_a_state():
    structures = [molecule("H2O") for _ in range(3)]
    for atoms, charge, spin in zip(structures, (1, 0, -1), (2, 3, 4), strict=True):
        atoms.info = {"charge": charge, "spin": spin}
    model = TorchSimModel(model_of_electrons(), device="cpu")
    for given in ({"charge": [1, 0, -1]}, {"charge": [1, 0, -1], "spin": [2, 3, 4]}):
        state = state_of(structures)
        for name in ("charge", "spin"):
            values = torch.tensor(given[name]) if name in given else None
            setattr(state, name, values)
        chosen = [atoms.copy() for atoms in structures]
        for atoms in chosen:
            atoms.info = {name: atoms.info[name] for name in given}
        assert_calculators(model(state), chosen, model_of_electrons())


def test_triclinic_crystals_and_other_states_after_them():
    structures = silicons()
    model = TorchSimModel(load("so3krates-silicon", device="cpu"))
    for some in (structures, structures[1:], structures[:1], structures):
        assert_calculators(model(state_of(some)), some, "so3krates-silicon")
    larger = [atoms.copy() for atoms in structures]
    for atoms in larger:
        atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    assert_calculators(model(state_of(larger)), larger, "so3krates-silicon")


def test_positions_are_left_alone_and_the_dtype_is_that_asked_for():
    state = state_of(ethanols(), torch.float32)
    positions = state.positions.clone()
    found = TorchSimModel("so3krates-ethanol", device="cpu", dtype=torch.float32)(state)
    assert {values.dtype for values in found.values()} == {torch.float32}
    assert torch.equal(positions, state.positions)
    assert not list(TorchSimModel("so3krates-ethanol", device="cpu").parameters())


def test_atoms_that_are_wrapped_need_no_new_list():
    """TorchSim's integrators wrap at every step, and change states in place."""
    structures = silicons()[:2]
    for atoms in structures:
        atoms.wrap()
    model = TorchSimModel("so3krates-silicon", device="cpu")
    model(state := state_of(structures))
    rng = np.random.default_rng(0)
    for k in range(6):
        for atoms in structures:
            atoms.positions += rng.normal(scale=0.02, size=(len(atoms), 3))
            atoms.set_cell(atoms.cell.array * (1 + 1e-4 * k), scale_atoms=True)
            atoms.wrap()
        now = state_of(structures)
        state.positions.copy_(now.positions), state.cell.copy_(now.cell)
        assert_calculators(model(state), structures, "so3krates-silicon")
    assert model._batches.evaluator.neighbors.n_rebuilds == 1
    assert model._batches.evaluator.neighbors.n_updates == 7


def test_an_impossible_state_is_refused_and_forgotten():
    structures = silicons()[:1]
    model = TorchSimModel("so3krates-silicon", device="cpu")
    model(state_of(structures))
    spoilt = state_of(structures)
    spoilt.positions[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model(spoilt)
    assert_calculators(model(state_of(structures)), structures, "so3krates-silicon")


def test_what_the_model_does_not_know_is_refused_when_it_comes():
    model = TorchSimModel("so3krates-ethanol", device="cpu")
    model(state_of(ethanols()))
    with pytest.raises(ValueError, match="Si"):
        model(state_of(silicons()))
    charged = state_of(ethanols(2))
    charged.charge = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="charge"):
        model(charged)


def test_dynamics_and_relaxation():
    """Energy is conserved; the relaxed structures have no forces by the calculator."""
    structures = ethanols(3)
    model = TorchSimModel("so3krates-ethanol", device="cpu")
    energies = []
    options = {"model": model, "integrator": NVE, "temperature": 300, "timestep": 0.0005}
    state = state_of(structures)
    for _ in range(2):
        state = ts.integrate(system=state, n_steps=20, **options)
        kinetic = 0.5 * (state.momenta.square() / state.masses[:, None]).sum()
        energies.append(float(model(state)["energy"].sum() + kinetic))
    assert len(state.positions) == 27
    relaxed = ts.optimize(
        system=state_of(structures),
        model=model,
        optimizer=FIRE,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False),
        max_steps=300,
        steps_between_swaps=5,
    )
    found = ts.io.state_to_atoms(relaxed)
    results = AttnCalculator("so3krates-ethanol", device="cpu").calculate_many(found)
    assert max(np.linalg.norm(one["forces"], axis=1).max() for one in results) < 0.05
