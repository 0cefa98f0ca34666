"""Predictions for a data set and errors, against evaluation one by one and sums by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from attncalc import Potential, System, data, evaluate
from attncalc.data.errors import Prediction, errors, predict
from attncalc.neighbors import VerletList
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import stress as stress_of


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    config = So3kratesConfig(
        cutoff=3.5,
        avg_num_neighbors=12.0,
        num_features=8,
        num_heads=2,
        degrees=(1, 2),
        num_layers=1,
        num_basis=6,
        head_features=None,
    )
    network = So3krates(config, 2).double()
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
        assert np.allclose(prediction.stress[k], stress_of(result, system)[0], rtol=0, atol=1e-12)


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
