"""Predictions for a data set and errors, against evaluation one by one and sums by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from networks import tiny_so3krates

from attncalc import Committee, Potential, System, data, evaluate
from attncalc.data.calibration import calibrations
from attncalc.data.errors import (
    Prediction,
    Statistics,
    energy_errors,
    energy_statistics,
    errors,
    force_bins,
    force_errors,
    force_statistics,
    force_statistics_by_element,
    predict,
    stress_statistics,
)
from attncalc.neighbors import VerletList
from attncalc.nn.so3krates import So3krates


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    network = So3krates(tiny_so3krates(3.5), 2).double()
    return Potential(network, (28, 29)).requires_grad_(False)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    structures = []
    for k in range(5):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((1 + k % 3, 1, 1))
        atoms.numbers[0] = 28
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        structures.append(atoms)
    return data.Dataset(
        structures=tuple(structures),
        energies=np.zeros(5),
        forces=tuple(np.zeros((len(atoms), 3)) for atoms in structures),
        stress=np.zeros((5, 3, 3)),
        source="cells.extxyz",
    )


@pytest.mark.parametrize("batch_atoms", [1, 16, 512])
def test_predict_is_one_evaluation_each(potential, dataset, batch_atoms):
    counted = []
    prediction = predict(potential, dataset, batch_atoms=batch_atoms, progress=counted.append)
    assert sum(counted) == len(dataset)
    for k, atoms in enumerate(dataset.structures):
        system = System.from_ase(atoms)
        verlet = VerletList.create(cutoff=3.5, skin=0.0, species=potential.species)
        result = evaluate(potential, verlet.update(system)[1])
        assert prediction.energies[k] == pytest.approx(result.energy.item(), rel=1e-12)
        assert np.allclose(prediction.forces[k], result.forces, rtol=0, atol=1e-12)
        assert np.allclose(prediction.stress[k], result.stress(system)[0], rtol=0, atol=1e-12)


def test_batches_are_as_large_as_asked(potential, dataset):
    """4, 8, 12, 4, 8 atoms: at most 16 together, a larger structure alone."""
    counted = []
    predict(potential, dataset, batch_atoms=16, progress=counted.append)
    assert counted == [2, 2, 1]
    counted.clear()
    predict(potential, dataset, batch_atoms=10, progress=counted.append)
    assert counted == [1, 1, 1, 1, 1]


def test_no_stress_is_asked_of_molecules(potential):
    pair = Atoms("CuNi", positions=[[0, 0, 0], [2.2, 0, 0]])
    molecules = data.Dataset(structures=(pair,), energies=[0.0])
    prediction = predict(potential, molecules)
    assert prediction.stress is None
    found = errors(prediction, molecules)
    assert (found.force_mae, found.force_rmse, found.stress_mae, found.stress_rmse) == (None,) * 4


def test_a_charge_that_the_model_ignores_is_refused(potential):
    ion = Atoms("CuNi", positions=[[0, 0, 0], [2.2, 0, 0]], info={"charge": 1})
    with pytest.raises(ValueError, match=r"^structure 0: total charge \+1 e"):
        predict(potential, data.Dataset(structures=(ion,), energies=[0.0]))


def test_errors_by_hand(dataset):
    two = dataset[[0, 1]]  # 4 and 8 atoms
    forces = [f.copy() for f in two.forces]
    forces[1][2, 0] = -3.6
    stress = two.stress.copy()
    stress[0, 1, 1] = 1.8
    found = errors(Prediction(np.array([0.4, -1.6]), tuple(forces), stress), two)
    assert found.energy_mae == pytest.approx(1.0)
    assert found.energy_rmse == pytest.approx(np.sqrt((0.16 + 2.56) / 2))
    assert found.energy_per_atom_mae == pytest.approx(0.15)
    assert found.force_mae == pytest.approx(3.6 / 36)
    assert found.force_rmse == pytest.approx(3.6 / 6)
    assert found.stress_mae == pytest.approx(1.8 / 18)
    assert found.stress_rmse == pytest.approx(1.8 / np.sqrt(18))
    assert found.n_structures == 2


def test_an_empty_data_set_is_refused(potential, dataset):
    with pytest.raises(ValueError, match=r"^cells.extxyz: the data set is empty"):
        predict(potential, dataset[:0])


def test_an_unknown_element_is_refused(potential, dataset):
    silver = dataset.structures[0].copy()
    silver.numbers[:] = 47
    strange = dataclasses.replace(dataset[:1], structures=(silver,))
    with pytest.raises(ValueError, match="not trained on Ag"):
        predict(potential, strange)


# ------------------------------------------------------------------- tables of the report


@pytest.fixture(scope="module")
def labelled(dataset) -> data.Dataset:
    """The same cells with random labels."""
    rng = np.random.default_rng(1)
    return dataclasses.replace(
        dataset,
        energies=rng.normal(size=5),
        forces=tuple(rng.normal(size=f.shape) for f in dataset.forces),
        stress=rng.normal(size=(5, 3, 3)),
    )


@pytest.fixture(scope="module")
def prediction(labelled) -> Prediction:
    rng = np.random.default_rng(2)
    return Prediction(
        labelled.energies + 0.1 * rng.normal(size=5),
        tuple(f + 0.1 * rng.normal(size=f.shape) for f in labelled.forces),
        labelled.stress + 0.1 * rng.normal(size=(5, 3, 3)),
    )


def test_statistics_by_hand():
    error = np.array([[1.0, -2.0], [3.0, -6.0]])
    found = Statistics.of(error, np.array([[0.0, 0.0], [4.0, 4.0]]))
    expected = Statistics(
        n=4, mean=-1.0, mae=3.0, rmse=np.sqrt(50 / 4), p95=5.55, largest=6.0, scatter=2.0
    )
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))
    assert found.relative == pytest.approx(np.sqrt(50 / 4) / 2)
    assert np.isnan(Statistics.of(error, np.zeros((2, 2))).relative)


def test_statistics_agree_with_errors(labelled, prediction):
    """Two ways to the numbers of the model card."""
    found = errors(prediction, labelled)
    energy = energy_statistics(prediction, labelled)
    assert energy["per structure"].mae == pytest.approx(found.energy_mae)
    assert energy["per structure"].rmse == pytest.approx(found.energy_rmse)
    assert energy["per atom"].mae == pytest.approx(found.energy_per_atom_mae)
    force, stress = force_statistics(prediction, labelled), stress_statistics(prediction, labelled)
    assert (force.mae, force.rmse) == pytest.approx((found.force_mae, found.force_rmse))
    assert (stress.mae, stress.rmse) == pytest.approx((found.stress_mae, found.stress_rmse))
    assert (force.n, stress.n) == (3 * 36, 45)


def test_by_element(labelled, prediction):
    numbers = np.concatenate([s.numbers for s in labelled.structures])
    error = np.concatenate(prediction.forces) - np.concatenate(labelled.forces)
    found = force_statistics_by_element(prediction, labelled)
    assert list(found) == [28, 29]
    for number, statistics in found.items():
        mine = np.abs(error[numbers == number])
        assert statistics.mae == pytest.approx(mine.mean())
        assert statistics.largest == mine.max()
    assert sum(s.n for s in found.values()) == error.size


def test_force_bins(labelled, prediction):
    """Every atom is in one bin, and every bin's numbers are those of its atoms."""
    size = np.linalg.norm(np.concatenate(labelled.forces), axis=1)
    error = force_errors(prediction, labelled)
    bins = force_bins(prediction, labelled, (0, 0.5, 0.9, 1))
    assert [b.n_atoms for b in bins] == [18, 14, 4]
    assert bins[0].low == size.min()
    assert bins[-1].high == size.max()
    assert [b.high for b in bins[:-1]] == [b.low for b in bins[1:]]
    mine = (size >= bins[1].low) & (size < bins[1].high)
    assert bins[1].mae == pytest.approx(np.abs(error[mine]).mean())
    assert bins[1].rmse == pytest.approx(np.sqrt((error[mine] ** 2).mean()))
    ratio = np.linalg.norm(error[mine], axis=1).mean() / size[mine].mean()
    assert bins[1].relative == pytest.approx(ratio)


def test_force_bins_by_another_number(labelled, prediction):
    n_atoms = sum(map(len, labelled.structures))
    number = np.arange(n_atoms, dtype=float)
    first, last = force_bins(prediction, labelled, (0, 0.5, 1), by=number)
    error = force_errors(prediction, labelled)
    assert (first.low, last.high) == (0, n_atoms - 1)
    assert first.n_atoms + last.n_atoms == n_atoms
    assert first.mae == pytest.approx(np.abs(error[number < first.high]).mean())
    assert last.mae == pytest.approx(np.abs(error[number >= last.low]).mean())


def test_angles_of_force_bins(labelled):
    turned = tuple(f @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]) for f in labelled.forces)
    flat = dataclasses.replace(labelled, forces=tuple(f * [1, 1, 0] for f in labelled.forces))
    quarter = Prediction(labelled.energies, tuple(f * [1, 1, 0] for f in turned), None)
    assert all(b.angle == pytest.approx(90) for b in force_bins(quarter, flat))


def test_force_bins_where_forces_vanish(dataset, prediction):
    """A perfect crystal: one bin, without a ratio or an angle."""
    (found,) = force_bins(prediction, dataset)
    assert (found.low, found.high, found.n_atoms) == (0.0, 0.0, 36)
    assert np.isnan(found.relative)
    assert np.isnan(found.angle)


def test_the_spread_of_a_prediction_is_that_of_its_members(potential, labelled):
    torch.manual_seed(1)
    other = Potential(So3krates(potential.network.config, 2).double(), (28, 29))
    members = [potential, other.requires_grad_(False)]
    found = predict(Committee(members), labelled)
    alone = [predict(member, labelled) for member in members]
    assert alone[0].forces_spread is None
    for k, spread in enumerate(found.forces_spread):
        by_hand = np.std([p.forces[k] for p in alone], axis=0, ddof=1)
        np.testing.assert_allclose(spread, by_hand, atol=1e-12)
    by_hand = np.std([p.energies for p in alone], axis=0, ddof=1)
    np.testing.assert_allclose(found.energies_spread, by_hand, atol=1e-12)
    assert alone[0].energies_spread is None
    assert calibrations(alone[0], labelled) == {}


def test_tables_without_labels(labelled, prediction):
    bare = dataclasses.replace(labelled, forces=None, stress=None)
    assert force_bins(prediction, bare) == []
    assert force_statistics_by_element(prediction, bare) == {}
    assert stress_statistics(prediction, bare) is None
    with pytest.raises(ValueError, match=r"^cells\.extxyz: the data set has no forces"):
        force_errors(prediction, bare)


def test_a_constant_per_element_is_taken_off(labelled, prediction):
    """3 eV per nickel and -2 eV per copper atom too much, over errors of 0.1 eV."""
    twice = data.concatenate([labelled, labelled])
    n_ni = np.array([(s.numbers == 28).sum() for s in twice.structures])
    n_cu = np.array([(s.numbers == 29).sum() for s in twice.structures])
    error = np.tile(prediction.energies - labelled.energies, 2)
    off = Prediction(twice.energies + error + 3.0 * n_ni - 2.0 * n_cu, prediction.forces * 2, None)
    counts = np.stack([n_ni, n_cu], axis=1).astype(float)
    left = error - counts @ np.linalg.lstsq(counts, error, rcond=None)[0]
    found, is_shifted = energy_errors(off, twice)
    assert is_shifted
    assert np.allclose(found, left / (n_ni + n_cu))
    energy = energy_statistics(off, twice)
    assert energy["shifted"].mae == pytest.approx(np.abs(found).mean())
    assert energy["per atom"].mae > 10 * energy["shifted"].mae


def test_no_constant_is_taken_off_in_vain(labelled, prediction):
    found, is_shifted = energy_errors(prediction, labelled)
    assert not is_shifted
    n_atoms = [len(s) for s in labelled.structures]
    assert np.allclose(found, (prediction.energies - labelled.energies) / n_atoms)
    two = labelled[[0, 1]]
    off = Prediction(two.energies + 100.0, prediction.forces[:2], None)
    assert not energy_errors(off, two)[1], "two numbers are fitted by two constants, always"
    five = data.Dataset((Atoms("H"),) * 5, energies=np.zeros(5))
    scattered = Prediction(np.array([2.0, 0, 2, 0, 2]), (), None)
    assert not energy_errors(scattered, five)[1], "a constant removes a fifth of the MAE only"
    assert energy_errors(Prediction(2 + scattered.energies, (), None), five)[1]


def test_scatter_is_what_composition_does_not_explain(labelled, prediction):
    n_atoms = np.array([len(s) for s in labelled.structures])
    far = dataclasses.replace(labelled, energies=labelled.energies - 1000.0 * n_atoms)
    ours = dataclasses.replace(prediction, energies=prediction.energies - 1000.0 * n_atoms)
    scatter = energy_statistics(prediction, labelled)["per atom"].scatter
    assert energy_statistics(ours, far)["per atom"].scatter == pytest.approx(scatter, abs=1e-9)
