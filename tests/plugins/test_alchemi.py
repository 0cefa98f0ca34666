"""A model inside ALCHEMI Toolkit: the numbers of `calculate_many`, and its own dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from ase.stress import voigt_6_to_full_3x3_stress
from crystals import silicon

from attncalc import AttnCalculator, Potential, load

pytest.importorskip("nvalchemi", reason='needs nvalchemi-toolkit: pip install "attncalc[alchemi]"')
from nvalchemi.data import AtomicData, Batch
from nvalchemi.dynamics import FIRE, NVE, FIRE2VariableCell

from attncalc.plugins.alchemi import AlchemiModel, to_batch

CPU = {"device": "cpu"}


def ethanols(n: int = 3) -> list[Atoms]:
    structures = [molecule("CH3CH2OH") for _ in range(n)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=k)
    return structures


def crystal() -> Atoms:
    """Two molecules of water in a triclinic cell."""
    atoms = molecule("H2O", cell=[[5.0, 0.2, 0.0], [0.5, 4.5, 0.3], [0.1, -0.4, 4.8]], pbc=True)
    other = atoms.copy()
    other.rotate(70, "x")
    other.translate([2.5, 2.0, 2.4])
    return atoms + other


def assert_calculators(found: dict, structures: list[Atoms], model: str | Potential) -> None:
    expected = AttnCalculator(model, device="cpu").calculate_many(structures)
    ends = np.cumsum([0, *map(len, structures)])
    for k, one in enumerate(expected):
        assert found["energy"][k].item() == pytest.approx(one["energy"], abs=1e-9)
        forces = found["forces"][ends[k] : ends[k + 1]].numpy()
        np.testing.assert_allclose(forces, one["forces"], atol=1e-5)
        full = voigt_6_to_full_3x3_stress(one.get("stress", np.zeros(6)))
        np.testing.assert_allclose(found["stress"][k].numpy(), full, atol=1e-7)


def test_molecules_ions_and_triclinic_crystals_in_one_batch():
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info={"charge": -1, "spin": 1})
    structures = [*ethanols(2), crystal(), ion, crystal() * (1, 2, 1)]
    structures[2].rattle(0.02, seed=1)
    potential = load("so3krates-organic", **CPU, long_range_cutoff=12.0)
    model = AlchemiModel(potential)
    for some in (structures, structures[2:], structures[:1], structures):
        batch = to_batch(some)
        before = batch.positions.clone()
        assert_calculators(model(batch), some, potential)
        assert torch.equal(batch.positions, before)


def test_batches_that_alchemi_makes_itself():
    """Without cells, charges and room for results; numbers are int32 there."""
    structures = ethanols()
    model = AlchemiModel(load("so3krates-ethanol", **CPU))
    data = [AtomicData.from_atoms(atoms, dtype=torch.float64) for atoms in structures]
    assert_calculators(model(Batch.from_data_list(data)), structures, "so3krates-ethanol")
    assert_calculators(model(data[1]), structures[1:2], "so3krates-ethanol")


def test_outputs_are_those_asked_for_in_the_dtype_of_the_batch():
    model = AlchemiModel("so3krates-ethanol", **CPU)
    batch = to_batch(ethanols(), dtype=torch.float32)
    found = model(batch)
    assert {values.dtype for values in found.values()} == {torch.float32}
    doubled = (model + AlchemiModel("so3krates-ethanol", **CPU))(batch)
    torch.testing.assert_close(doubled["forces"], 2 * found["forces"])
    model.set_config("active_outputs", {"energy"})
    assert set(model(batch)) == {"energy"}
    assert not list(model.parameters())


def test_dynamics_is_that_of_ase():
    """Units of time, masses and velocities; and as many steps from the same start."""
    structures = ethanols()
    rng = np.random.default_rng(0)
    for atoms in structures:
        atoms.set_momenta(rng.normal(scale=0.2, size=(9, 3)))
    batch, model = to_batch(structures), AlchemiModel("so3krates-ethanol", **CPU)
    nve = NVE(model, dt=0.5)
    nve.compute(batch)
    nve.run(batch, n_steps=20)
    assert model._batches.evaluator.neighbors.n_rebuilds == 1
    for k, atoms in enumerate(structures):
        atoms.calc = AttnCalculator("so3krates-ethanol", **CPU)
        VelocityVerlet(atoms, 0.5 * units.fs).run(20)
        mine = batch.batch_idx == k
        np.testing.assert_allclose(batch.positions[mine].numpy(), atoms.positions, atol=1e-6)
        assert batch.energy[k].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_relaxation_of_molecules():
    structures, model = ethanols(), AlchemiModel("so3krates-ethanol", **CPU)
    batch = to_batch(structures)
    fire = FIRE(model, dt=1.0)
    fire.compute(batch)
    fire.run(batch, n_steps=150)
    for k, atoms in enumerate(structures):
        atoms.positions = batch.positions[batch.batch_idx == k].numpy()
    results = AttnCalculator("so3krates-ethanol", **CPU).calculate_many(structures)
    assert max(np.linalg.norm(one["forces"], axis=1).max() for one in results) < 0.05


def test_a_cell_that_changes_is_followed():
    atoms = silicon()
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    batch, model = to_batch([atoms]), AlchemiModel("so3krates-silicon", **CPU)
    fire = FIRE2VariableCell(model, dt=1.0)
    fire.compute(batch)
    before = batch.energy.item()
    fire.run(batch, n_steps=20)
    assert batch.energy.item() < before - 0.1
    relaxed = Atoms(atoms.numbers, batch.positions.numpy(), cell=batch.cell[0].numpy(), pbc=True)
    assert np.abs(relaxed.cell.array - atoms.cell.array).max() > 1e-3
    kept = {key: batch[key] for key in ("energy", "forces", "stress")}
    assert_calculators(kept, [relaxed], "so3krates-silicon")


def test_what_the_model_does_not_know_is_refused():
    model = AlchemiModel("so3krates-ethanol", **CPU)
    model(to_batch(ethanols()))
    with pytest.raises(ValueError, match="Si"):
        model(to_batch([silicon()]))
    charged = to_batch(ethanols(2))
    charged.charge[1] = 1.0
    with pytest.raises(ValueError, match="charge"):
        model(charged)
    spoilt = to_batch(ethanols(1))
    spoilt.positions[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model(spoilt)
    with pytest.raises(NotImplementedError, match="no embeddings"):
        model.compute_embeddings(spoilt)
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        AlchemiModel("no-such-model")
