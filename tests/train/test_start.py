"""Trainings that start from another model's weights."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from damage import rewrite
from networks import tiny_so3krates
from trainings import stopped_at

from attncalc import Committee, data, load, save, train
from attncalc.data.errors import errors, predict
from attncalc.data.fingerprints import fingerprints
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential
from attncalc.train import start
from attncalc.train.isolated import errors_of_isolated
from attncalc.train.start import check_start, new_potential


@pytest.fixture
def before(finished) -> train.Training:
    """A trained model and its file."""
    return finished[0]


@pytest.fixture
def going_on(recipe, before) -> train.Recipe:
    return dataclasses.replace(recipe, start_from=str(before.model), name="on")


def shifted(dataset: data.Dataset, per_atom: float) -> data.Dataset:
    """The same labels counted from another zero."""
    n_atoms = np.array([len(s) for s in dataset.structures])
    return dataclasses.replace(dataset, energies=dataset.energies + per_atom * n_atoms)


def test_the_first_step_starts_at_the_weights_of_the_model(going_on, before, parts):
    potential = new_potential(going_on, parts[0])
    for name, tensor in before.potential.network.state_dict().items():
        assert torch.equal(potential.network.state_dict()[name], tensor), name
    assert all(p.requires_grad for p in potential.network.parameters())
    assert not any(p.requires_grad for p in load(before.model).network.parameters())
    # references are those that suit the network best, so no worse than the model's own
    ours, theirs = (errors(predict(p, parts[0]), parts[0]) for p in (potential, before.potential))
    assert ours.energy_rmse <= theirs.energy_rmse
    assert ours.force_mae == pytest.approx(theirs.force_mae, rel=1e-6)


def test_what_the_labels_do_not_tell_apart_stays_as_it_was(going_on, before, parts):
    """One composition, labelled by the model itself: no other composition may change."""
    ours = [s.copy() for s in parts[0].structures if s.get_chemical_formula() == "Cu3Ni"]
    unlabelled = data.Dataset(tuple(ours), np.zeros(len(ours)), source="one.npz")
    labelled = dataclasses.replace(
        unlabelled, energies=predict(before.potential, unlabelled).energies
    )
    potential = new_potential(going_on, labelled)
    assert len(ours) > 2
    theirs, found = (predict(p, parts[2]).energies for p in (before.potential, potential))
    np.testing.assert_allclose(found, theirs, atol=1e-3)


def test_labels_may_count_energies_from_another_zero(going_on, parts):
    here, there = (new_potential(going_on, d) for d in (parts[0], shifted(parts[0], -1234.5)))
    difference = predict(there, parts[2]).energies - predict(here, parts[2]).energies
    n_atoms = np.array([len(s) for s in parts[2].structures])
    np.testing.assert_allclose(difference / n_atoms, -1234.5, atol=1e-8)


def test_elements_may_be_fewer(going_on, before, parts):
    only = [k for k, s in enumerate(parts[0].structures) if set(s.numbers) == {28, 29}]
    assert before.potential.species == (28, 29)
    structures = tuple(parts[0].structures[k].copy() for k in only)
    for s in structures:
        s.numbers[:] = 29
    copper = data.Dataset(structures, parts[0].energies[only], source="copper.npz")
    potential = new_potential(going_on, copper)
    assert potential.species == (29,)
    np.testing.assert_allclose(
        np.concatenate(predict(potential, copper).forces),
        np.concatenate(predict(before.potential, copper).forces),
        atol=1e-6,
    )


def test_it_is_trained_on_and_remembered(going_on, recipe, before, parts, tmp_path):
    done = train.fit(dataclasses.replace(going_on, epochs=3), *parts[:2], tmp_path / "on")
    fresh = train.fit(dataclasses.replace(recipe, epochs=3), *parts[:2], tmp_path / "fresh")
    assert done.history[0]["validation_loss"] < fresh.history[0]["validation_loss"]
    after, start = load(done.model).network.state_dict(), before.potential.network.state_dict()
    assert not torch.equal(after["head.energy.weight"], start["head.energy.weight"])
    without = dataclasses.replace(going_on, epochs=3, start_from=None)
    with pytest.raises(ValueError, match=r"another recipe \(different: start_from\)"):
        train.fit(without, *parts[:2], tmp_path / "on")


def test_a_stopped_run_goes_on_without_what_it_started_from(recipe, before, parts, tmp_path):
    start = tmp_path / "start.safetensors"
    save(before.potential, start)
    on = dataclasses.replace(recipe, start_from=str(start), name="on", epochs=3)
    whole = train.fit(on, *parts[:2], tmp_path / "whole")
    with stopped_at(10), pytest.raises(KeyboardInterrupt):  # in the third epoch
        train.fit(on, *parts[:2], tmp_path / "stopped")
    save(new_potential(dataclasses.replace(recipe, seed=9), parts[0]), start)
    with pytest.raises(ValueError, match="started from another model than"):
        train.fit(on, *parts[:2], tmp_path / "stopped")
    start.unlink()
    done = train.fit(on, *parts[:2], tmp_path / "stopped")
    assert [row["epoch"] for row in done.history] == [1, 2, 3]
    for name, tensor in whole.potential.state_dict().items():
        assert torch.equal(done.potential.state_dict()[name], tensor), name
    again = train.fit(on, *parts[:2], tmp_path / "stopped")  # nothing left to do
    assert again.potential.reference_energies.tolist() == done.potential.reference_energies.tolist()


def test_members_of_a_committee_do_not_start_alike(going_on):
    with pytest.raises(ValueError, match="committee must be 1"):
        dataclasses.replace(going_on, committee=2)


def test_the_card_says_where_it_started(going_on, data_file, tmp_path):
    train.run(dataclasses.replace(going_on, epochs=1), tmp_path / "on", data=data_file)
    assert "| starts from | tiny |" in (tmp_path / "on" / "on.md").read_text()
    info = load(tmp_path / "on" / "on.safetensors").training_info
    none = {"data": "", "labels": "", "structures": "", "n_seen": None}
    assert info["start_from"] == {"name": "tiny"} | none


def test_a_start_on_the_same_file_is_told(going_on, before, dataset, data_file, tmp_path):
    from attncalc.report import Subject
    from attncalc.report.evaluation import remarks

    seen = load(before.model)
    seen.training_info["data"] = "cells.extxyz"
    save(seen, tmp_path / "seen.safetensors")
    again = dataclasses.replace(going_on, start_from=str(tmp_path / "seen.safetensors"), epochs=1)
    done = train.run(again, tmp_path / "on", data=data_file)
    card = (tmp_path / "on" / "on.md").read_text()
    assert "seen, trained on cells.extxyz: **the same file" in card
    said = remarks(done.potential, predict(done.potential, dataset), dataset, Subject("on"))
    assert any("The training started from seen" in remark for remark in said)


def test_test_structures_that_the_start_has_seen_are_counted(going_on, before, data_file, tmp_path):
    """Whatever the files are called."""
    from attncalc.report import Subject
    from attncalc.report.evaluation import remarks

    seen, path = load(before.model), tmp_path / "seen.safetensors"
    again = dataclasses.replace(going_on, start_from=str(path), epochs=1)
    known = data.Dataset([molecule("H2O")], np.zeros(1))
    for n_seen in (0, 3):
        seen.training_info |= {"data": "v1.xyz", "structures": fingerprints(known)}
        save(seen, path)
        run = tmp_path / f"run-{n_seen}"
        done = train.run(again, run, data=data_file)
        assert done.potential.training_info["start_from"]["n_seen"] == n_seen
        told = f"seen, trained on v1.xyz: **with {n_seen} of these test structures**"
        assert (told in (run / "on.md").read_text()) == bool(n_seen)
        test = train.read_run(run)[1]["test"]
        said = [*remarks(done.potential, predict(done.potential, test), test, Subject("on"))]
        told = f"seen, which was trained on {n_seen} of these {len(test)} structures"
        assert any(told in remark for remark in said) == bool(n_seen)
        known = test[:3]


def test_electron_embeddings_follow_their_elements():
    config = tiny_so3krates(3.0, embed_charge=True, embed_spin=True)
    network = So3krates(config, 3).double()
    chosen = network.for_species([2, 0])
    for name, tensor in chosen.state_dict().items():
        theirs = network.state_dict()[name]
        assert torch.equal(tensor, theirs if tensor.shape == theirs.shape else theirs[[2, 0]])
    assert chosen.embedding.element.dtype == torch.float64


def test_what_cannot_be_started_from(recipe, before, parts, tmp_path):
    def refusal(model, **changes) -> str:
        path = tmp_path / "start.safetensors"
        if isinstance(model, Potential):
            save(model, path)
        changed = dataclasses.replace(recipe, start_from=str(path), **changes)
        with pytest.raises(ValueError, match="start_from") as caught:
            train.fit(changed, *parts[:2], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    model = before.potential
    other = {**recipe.config, "num_features": 16}
    assert refusal(model, config=other) == (
        "start_from: start has num_features 8, the recipe's config has 16"
    )
    gold = Potential(model.network, [28, 79])
    assert refusal(gold) == ("start_from: start does not know an element of cells.extxyz (Cu)")
    zbl = ZBLRepulsion(ZBLConfig(3.4), (28, 29))
    assert "has ZBLRepulsion" in refusal(Potential(model.network, [28, 29], pair_terms=[zbl]))
    second = new_potential(dataclasses.replace(recipe, seed=9), parts[0])
    assert "one of its members" in refusal(Committee([model, second]))


def test_a_start_that_is_not_there(recipe, parts, tmp_path):
    missing = dataclasses.replace(recipe, start_from="nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        train.fit(missing, *parts[:2], tmp_path / "out")


def test_a_start_is_looked_for_beside_the_recipe(recipe, before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = dataclasses.replace(
        recipe, start_from=before.model.name, folder=str(before.model.parent)
    )
    assert beside.find_start() == before.model
    shipped = dataclasses.replace(recipe, start_from="so3krates-ethanol")
    assert shipped.find_start().name == "so3krates-ethanol.safetensors"


def test_reference_energies_of_a_large_set_are_fitted_to_some_of_it(recipe, parts, monkeypatch):
    """With every element, also one that a few structures have."""
    training = parts[0]
    whole = new_potential(recipe, training).reference_energies
    monkeypatch.setattr(start, "MOST_EVALUATED", 5)
    some = start._some_of_all_elements(training)
    assert len(some) < len(training)
    assert start.elements_of(some) == start.elements_of(training)
    assert torch.allclose(new_potential(recipe, training).reference_energies, whole, atol=0.25)


def test_labels_that_do_not_tell_elements_apart_keep_those_of_isolated_atoms(recipe, parts):
    """A data set of one molecule whose file has energies of isolated atoms."""
    atoms = [molecule("CH3CH2OH") for _ in range(3)]
    ethanol = data.Dataset(atoms, np.full(3, -4200.0), [np.zeros((9, 3))] * 3, source="ethanol")
    isolated = {1: -13.6, 6: -1029.5, 8: -2042.6}
    known = dataclasses.replace(ethanol, isolated_energies=isolated)
    without, found, delta = (
        new_potential(one, training)
        for one, training in (
            (recipe, ethanol),
            (recipe, known),
            (dataclasses.replace(recipe, baseline="tight binding"), known),
        )
    )
    assert found.species == tuple(isolated)
    off = np.array([*errors_of_isolated(found, isolated).values()])
    np.testing.assert_allclose(off / off[0], [1, 2 / 6, 1 / 6], rtol=1e-4)
    assert 0.1 < abs(off[0]) < 10, "the binding, shared by the atoms"
    counts = torch.tensor([6.0, 2.0, 1.0], dtype=found.reference_energies.dtype)
    total = counts @ without.reference_energies
    assert float(counts @ found.reference_energies) == pytest.approx(float(total), abs=1e-3)
    assert torch.equal(delta.reference_energies, without.reference_energies)
    two = {1: -13.6, 6: -1029.5}
    partly = new_potential(recipe, dataclasses.replace(ethanol, isolated_energies=two))
    np.testing.assert_allclose([*errors_of_isolated(partly, two).values()], 0, atol=1e-4)
    assert float(counts @ partly.reference_energies) == pytest.approx(float(total), abs=1e-3)


def test_a_failed_calculation_does_not_move_isolated_atoms(recipe, caplog):
    atoms = [molecule("CH3CH2OH") for _ in range(12)]
    energies = np.array([-4200.0] * 11 + [0.0])
    two = {1: -13.6, 6: -1029.5}
    ethanol = data.Dataset(
        atoms, energies, [np.zeros((9, 3))] * 12, source="ethanol", isolated_energies=two
    )
    found = new_potential(recipe, ethanol)
    assert "1 energy is far from" in caplog.text
    np.testing.assert_allclose([*errors_of_isolated(found, two).values()], 0, atol=1e-4)


def test_isolated_atoms_of_another_zero_move_nothing(going_on, before, parts):
    of_zero = dataclasses.replace(parts[0], isolated_energies={28: 0.0, 29: -1000.0})
    ours, theirs = (new_potential(going_on, one) for one in (of_zero, parts[0]))
    assert torch.equal(ours.reference_energies, theirs.reference_energies)


def test_another_model_starts_near_the_isolated_atoms_of_the_data(going_on, parts):
    """One composition, counted from another zero of energy than that of the model."""
    some = [k for k, s in enumerate(parts[0].structures) if s.get_chemical_formula() == "Cu3Ni"]
    alloys, zero = parts[0][some], {28: -1000.0, 29: -2000.0}
    moved = dataclasses.replace(alloys, energies=alloys.energies - 7000.0, isolated_energies=zero)
    found = new_potential(going_on, moved)
    assert max(map(abs, errors_of_isolated(found, zero).values())) < 10, "the binding"
    left = predict(found, moved).energies - moved.energies
    assert abs(left.mean()) < 0.01


def test_a_delta_model_is_no_start_for_total_energies(going_on, before, parts, tmp_path):
    model = load(before.model)
    model.training_info["baseline"] = "pair potentials"
    save(model, tmp_path / "delta.safetensors")
    on = dataclasses.replace(going_on, start_from=str(tmp_path / "delta.safetensors"))
    with pytest.raises(ValueError, match=r"delta is a delta model, .* from pair potentials: write"):
        check_start(on, parts[0])
    check_start(dataclasses.replace(on, baseline="pair potentials"), parts[0])


def test_failed_calculations_do_not_move_the_reference_energies(recipe, parts, caplog):
    usual = shifted(parts[0], -40_000.0)
    energies = usual.energies.copy()
    energies[[3, 7]] = 0.0
    with_failures = dataclasses.replace(usual, energies=energies)
    found = new_potential(recipe, with_failures)
    (said,) = caplog.messages
    assert said.startswith("cells.extxyz: 2 energies are far from those of the same elements, such")
    assert "Cu7Ni of 0.000 eV, Cu6Ni2 of 0.000 eV" in said
    kept = [k for k in range(len(usual)) if k not in (3, 7)]
    without = new_potential(recipe, usual[kept])
    off = found.reference_energies - without.reference_energies
    assert off.abs().max() < 1e-3


def test_an_equiformer_of_earlier_versions_keeps_its_norm(recipe, tmp_path):
    """Neither its file nor the recipe says which one it has."""
    config = EquiformerConfig(
        cutoff=4.0, avg_num_neighbors=8.0, channels=(16, 16), num_layers=1, norm="degree"
    )
    earlier = tmp_path / "earlier.safetensors"
    save(Potential(Equiformer(config, 3), (1, 6, 8)), earlier)
    rewrite(earlier, lambda header, _: header["config"].pop("norm"))
    atoms = [molecule("CH3CH2OH") for _ in range(3)]
    ethanol = data.Dataset(atoms, np.full(3, -4200.0), [np.zeros((9, 3))] * 3, source="ethanol")
    keys = {"network": "equiformer", "config": {}, "start_from": str(earlier)}
    started = dataclasses.replace(recipe, **keys).with_start()
    assert "norm" not in started.config
    assert new_potential(started, ethanol).network.config.norm == "degree"
    other = dataclasses.replace(started, config={**started.config, "norm": "joint"})
    with pytest.raises(ValueError, match="has norm degree, the recipe's config has joint"):
        new_potential(other, ethanol)


def test_isolated_atoms_and_mixed_compositions_are_no_failures(recipe, parts, caplog):
    atoms = [Atoms("Cu"), Atoms("Ni")]
    alone = data.Dataset(atoms, np.array([3.5, 4.4]), [np.zeros((1, 3))] * 2, source="alone")
    both = data.concatenate([dataclasses.replace(parts[0], stress=None), alone])
    new_potential(recipe, shifted(both, -40_000.0))
    assert not caplog.messages
