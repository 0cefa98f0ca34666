"""Training of charges, Hirshfeld ratios and dipoles, and of pair terms of longer range."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from attncalc import AttnCalculator, Potential, data, evaluate_many, load, save, train
from attncalc.fast import lower
from attncalc.nn.network import CompiledNetwork
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.train.batches import join, samples
from attncalc.train.module import loss_of
from attncalc.train.run_folder import checksum
from attncalc.train.select_step import unequal_sizes, with_distant_labels
from attncalc.train.start import new_potential
from attncalc.train.step import (
    eager_step,
    flatten,
    loss,
    predict,
    relative_error,
    trace,
    traced_step,
    unflatten,
)

SPECIES = (1, 6, 8)
CONFIG = {
    "cutoff": 3.0,
    "num_features": 64,
    "num_heads": 4,
    "degrees": [1, 2, 3, 4],
    "num_layers": 1,
    "num_basis": 8,
    "head_features": 16,
    "embed_charge": True,
}
OUTPUTS = {"charge_weight": 1.0, "hirshfeld_ratio_weight": 0.5, "dipole_weight": 0.2}


def structures() -> list[Atoms]:
    """Molecules and ions, some with pairs beyond the cutoff and some without."""
    found = []
    names = ("CH3CH2OH", "H2O", "CH3OH", "C2H6", "OH", "CH3OCH3", "CH4", "C6H6")
    for k, name in enumerate(names * 3):
        atoms = molecule(name)
        atoms.set_initial_magnetic_moments(None)
        atoms.rattle(0.05, seed=k)
        if name == "OH":
            atoms.info["charge"] = -1
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def recipe() -> train.Recipe:
    return train.Recipe(
        name="far",
        data="teacher.extxyz",
        split={"sizes": [18, 6]},
        config=CONFIG,
        pair_terms=["zbl", "electrostatics", "dispersion"],
        **OUTPUTS,
        epochs=30,
        batch_size=3,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.9,
        compile="never",
    )


@pytest.fixture(scope="module")
def parts(recipe) -> tuple[data.Dataset, data.Dataset]:
    """Labels of a random network with all terms."""
    torch.manual_seed(1)
    config = recipe.network_config(lambda: 6.0)
    network = train.recipe.NETWORKS["so3krates"][0](config, len(SPECIES))
    far = {"cutoff": 12.0, "all_pairs_in_molecules": True}
    teacher = Potential(
        network,
        SPECIES,
        pair_terms=[
            ZBLRepulsion(ZBLConfig(cutoff=3.0), SPECIES),
            DampedElectrostatics(ElectrostaticsConfig(**far), SPECIES),
            Dispersion(DispersionConfig(**far), SPECIES),
        ],
    ).requires_grad_(False)
    frames = structures()
    labels: dict[str, list] = {name: [] for name in ("energies", "forces", "charges", "ratios")}
    for _, result in evaluate_many(teacher, frames, batch_atoms=1):
        labels["energies"].append(result.energy.item())
        labels["forces"].append(result.forces.numpy())
        labels["charges"].append(result.charges.numpy())
        labels["ratios"].append(result.hirshfeld_ratios.numpy())
    dipoles = [q @ atoms.positions for q, atoms in zip(labels["charges"], frames, strict=True)]
    dataset = data.Dataset(
        tuple(frames),
        np.array(labels["energies"]),
        labels["forces"],
        source="teacher.extxyz",
        charges=labels["charges"],
        hirshfeld_ratios=labels["ratios"],
        dipoles=np.array(dipoles),
    )
    return dataset[:18], dataset[18:]


def batches_of(recipe, potential, dataset):
    options = {"long_range": potential.long_range_for, "labels": loss_of(recipe).of_outputs}
    return samples(dataset, potential.cutoff, potential.species, **options)


@pytest.fixture(scope="module")
def done(recipe, parts, tmp_path_factory):
    return train.fit(recipe, *parts, tmp_path_factory.mktemp("far"))


def test_the_labels_are_learnt(done) -> None:
    first, last = done.history[0], done.history[-1]
    columns = ("force_mae_meV_per_A", "charge_mae_e", "hirshfeld_ratio_mae", "dipole_mae_eA")
    for column in columns:
        assert last[column] < 0.7 * first[column], column


def test_predictions_are_those_of_the_model(recipe, parts, done) -> None:
    """What training compares with labels is what users get: by the plain path and the engine."""
    model = load(done.model)
    model.set_dtype(torch.float64)
    batch = join(batches_of(recipe, model, parts[1]))
    found = predict(model, batch.graphs, batch.volume)
    results = [result for _, result in evaluate_many(model, parts[1].structures, batch_atoms=1)]
    for name in ("forces", "charges", "hirshfeld_ratios"):
        theirs = torch.cat([getattr(result, name) for result in results])
        assert torch.allclose(getattr(found, name).detach(), theirs, rtol=0, atol=1e-9), name
    energies = torch.cat([result.energy for result in results])
    assert torch.allclose(found.energy.detach(), energies, rtol=0, atol=1e-9)
    calc = AttnCalculator(done.model, device="cpu")
    atoms = parts[1].structures[0].copy()
    atoms.calc = calc
    np.testing.assert_allclose(atoms.get_forces(), results[0].forces.numpy(), atol=1e-4)
    assert isinstance(calc.potential.network, CompiledNetwork)
    dipole = batch.system.positions[: len(atoms)].T @ results[0].charges
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole.numpy(), atol=1e-4)


def test_the_gradient_is_that_of_the_loss(recipe, parts) -> None:
    """Finite differences in all parameters at once, along a random direction."""
    double = dataclasses.replace(recipe, dtype="float64")
    potential = new_potential(double, parts[0])
    weights, batch = loss_of(double), join(batches_of(double, potential, parts[0][:5]))
    value, gradients = eager_step(potential, weights)(batch)
    torch.manual_seed(0)
    directions = [torch.randn_like(gradient) for gradient in gradients]
    values = []
    for step in (1e-7, -2e-7):
        with torch.no_grad():
            for parameter, direction in zip(potential.parameters(), directions, strict=True):
                parameter += step * direction
        values.append(
            float(loss(predict(potential, batch.graphs, batch.volume), batch, weights).detach())
        )
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1e-2
    assert float(value) == pytest.approx(sum(values) / 2, rel=1e-4)


@pytest.mark.no_cover
def test_shares_of_several_processes_add_up_to_the_loss(recipe, parts) -> None:
    """Charges and ratios are those of atoms, and dipoles those of structures."""
    potential = new_potential(recipe, parts[0])
    of_each, weights = batches_of(recipe, potential, parts[0]), loss_of(recipe)

    def value(batch) -> torch.Tensor:
        return loss(predict(potential, batch.graphs, batch.volume), batch, weights).detach()

    whole, *shares = (join([of_each[k] for k in some]) for some in ([0, 1, 4], [0], [1, 4]))
    total = 0.0
    for share in shares:
        sizes = ((len(one.dipoles), len(one.charges)) for one in (share, whole))
        ours, all_of_them = (torch.tensor(size, dtype=torch.float64) for size in sizes)
        total = total + value(dataclasses.replace(share, shares=ours / all_of_them))
    assert float(total) == pytest.approx(float(value(whole)), rel=1e-5)


def test_a_trace_holds_for_other_batches(recipe, parts) -> None:
    potential = new_potential(recipe, parts[0])
    weights, each = loss_of(recipe), batches_of(recipe, potential, parts[0])
    example = with_distant_labels(unequal_sizes(list(each)), weights)
    step = traced_step(potential, trace(potential, weights, example))
    plain = eager_step(potential, weights)
    for chosen in ([0, 1], [3], [1, 4], [7, 2, 6]):
        batch = with_distant_labels(join([each[k] for k in chosen]), weights)
        assert relative_error(step, plain, batch) < 1e-4, chosen


def test_sizes_of_long_graphs_are_their_own(recipe, parts) -> None:
    """Masked pairs, which count nothing, are added where all pairs of molecules are near."""
    tiny = parts[0][[k for k, a in enumerate(parts[0].structures) if len(a) < 6]]
    potential, weights = new_potential(recipe, parts[0]), loss_of(recipe)
    batch = unequal_sizes(list(batches_of(recipe, potential, tiny)))
    far, near = batch.long, batch.graph
    assert not {far.n_edges, len(far.pairs)} & {near.n_edges, len(near.pairs), near.n_atoms}
    assert 2 * len(far.pairs) == far.n_edges
    again = dataclasses.replace(batch, long=near)
    step = eager_step(potential, weights)
    assert relative_error(step, step, batch) == 0
    for ours, theirs in zip(step(batch)[1], step(again)[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_flatten_and_back(recipe, parts) -> None:
    potential = new_potential(recipe, parts[0])
    batch = join(batches_of(recipe, potential, parts[0][:3]))
    again = unflatten(flatten(batch), batch)
    assert again.all_pairs
    for ours, theirs in zip(flatten(again), flatten(batch), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_is_continued_without_repeating_what_it_is(done, parts, tmp_path) -> None:
    fine = train.Recipe(
        name="fine", data="x", split={"sizes": [18, 6]}, start_from=str(done.model), epochs=2
    )
    ended = train.fit(fine, *parts, tmp_path)
    assert ended.potential.network.config == load(done.model).network.config
    assert [type(term) for term in ended.potential.pair_terms] == [
        ZBLRepulsion,
        DampedElectrostatics,
        Dispersion,
    ]
    short = dataclasses.replace(fine, name="short", long_range_cutoff=6.0).with_start()
    assert new_potential(short, parts[0]).long_range == 6.0
    with pytest.raises(ValueError, match="pair_terms must be those of the model it starts from"):
        dataclasses.replace(fine, pair_terms=["zbl"]).with_start()


def test_latent_charges(recipe, parts, tmp_path) -> None:
    """Without labels of charges, they are what helps energies and forces."""
    bare = dataclasses.replace(parts[0], charges=None, hirshfeld_ratios=None, dipoles=None)
    rest = dataclasses.replace(parts[1], charges=None, hirshfeld_ratios=None, dipoles=None)
    latent = dataclasses.replace(
        recipe, epochs=3, long_range_cutoff=8.0, **dict.fromkeys(OUTPUTS, 0.0)
    )
    ended = train.fit(latent, bare, rest, tmp_path)
    assert ended.potential.long_range == 8.0
    assert not ended.potential.counts_all_pairs
    (_, result) = next(iter(evaluate_many(lower(ended.potential), rest.structures[:1])))
    assert float(result.charges.abs().max()) > 0


def test_a_killed_run_goes_on(recipe, parts, tmp_path) -> None:
    whole = train.fit(dataclasses.replace(recipe, epochs=4), *parts, tmp_path / "whole")
    for epochs in (2, 4):
        shorter = dataclasses.replace(recipe, epochs=4)
        if epochs == 2:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    train.module.TrainingModule, "on_validation_epoch_end", _stop_after(2)
                )
                with pytest.raises(RuntimeError, match="stopped"):
                    train.fit(shorter, *parts, tmp_path / "halves")
        else:
            halves = train.fit(shorter, *parts, tmp_path / "halves")
    for name, tensor in halves.potential.state_dict().items():
        assert torch.equal(tensor, whole.potential.state_dict()[name]), name


def _stop_after(epochs: int):
    before = train.module.TrainingModule.on_validation_epoch_end

    def stop(self) -> None:
        if self.current_epoch >= epochs:
            raise RuntimeError("stopped")
        before(self)

    return stop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "equiformer", "config": {"cutoff": 3.0}}, "dipole_weight needs an output"),
        ({"config": {**CONFIG, "predict_charges": False}}, "predict_charges must be true"),
        ({"long_range_cutoff": -1.0}, "long_range_cutoff must be positive"),
        ({"dipole_weight": -1.0}, "dipole_weight must not be negative"),
        ({"denoising": {}}, "denoising knows no charges"),
        ({"pair_terms": [], "long_range_cutoff": 9.0}, "no term of pair_terms has a longer range"),
    ],
)
def test_impossible_recipes(recipe, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipe, **changes)


def test_data_that_do_not_suit(recipe, parts, tmp_path) -> None:
    bare = dataclasses.replace(parts[0], charges=None)
    with pytest.raises(ValueError, match="training set has no charges, but the recipe's charge_w"):
        train.fit(recipe, bare, parts[1], tmp_path)
    frames = [atoms.copy() for atoms in parts[0].structures]
    frames[0].set_cell(np.eye(3) * 15)
    frames[0].pbc = True
    mixed = dataclasses.replace(parts[0], structures=frames)
    without = dataclasses.replace(recipe, dipole_weight=0.0)
    with pytest.raises(ValueError, match="molecules and periodic structures"):
        train.fit(without, mixed, parts[1], tmp_path)
    cut = new_potential(without, parts[0])
    cut.set_long_range_cutoff(6.0)
    save(cut, tmp_path / "cut.safetensors")
    started = dataclasses.replace(without, start_from=str(tmp_path / "cut.safetensors"), epochs=1)
    assert train.fit(started, mixed, parts[1], tmp_path / "run").potential.long_range == 6.0


def test_saved_models_keep_everything(done, tmp_path) -> None:
    save(done.potential, tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    assert again.counts_all_pairs
    assert again.predicts_charges


def test_training_with_an_ewald_sum(recipe, tmp_path) -> None:
    """Of crystals and molecules together, on energies, forces and stress."""
    frames = []
    for seed in range(12):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.set_cell([[3.2, 0, 0], [0.3, 3.1, 0], [0.1, 0.2, 3.3]])  # a stress needs a volume
        atoms.pbc = bool(seed % 3)
        frames.append(atoms)
    ewald = dataclasses.replace(
        recipe,
        pair_terms=["ewald"],
        config=CONFIG | {"embed_charge": False},
        epochs=2,
        stress_weight=1.0,
        **dict.fromkeys(OUTPUTS, 0.0),
        compile="always",
    )
    random = np.random.default_rng(0)
    labelled = data.Dataset(
        frames,
        np.zeros(12),
        [random.normal(size=(3, 3)) for _ in frames],
        stress=np.stack([np.eye(3) * 0.01 * k for k in range(12)]),
    )
    ended = train.fit(ewald, labelled[:9], labelled[9:], tmp_path)
    model = load(ended.model)
    model.set_dtype(torch.float64)
    options = {"long_range": model.long_range_for, "keeps_system": True}
    batch = join(samples(labelled, model.cutoff, model.species, **options))
    found = predict(model, batch.graphs, batch.volume)
    systems, results = zip(*evaluate_many(model, frames, batch_atoms=1), strict=True)
    forces = torch.cat([result.forces for result in results])
    assert torch.allclose(found.forces.detach(), forces, rtol=0, atol=1e-9)
    for k, (system, result) in enumerate(zip(systems, results, strict=True)):
        if system.pbc.all():
            assert torch.allclose(
                found.stress[k].detach(), result.stress(system)[0], rtol=0, atol=1e-9
            )
    again = unflatten(flatten(batch), batch)
    assert torch.equal(again.system.cell, batch.system.cell)


def test_electrostatics_are_there_once(recipe) -> None:
    with pytest.raises(ValueError, match="electrostatics and ewald of pair_terms are the same"):
        dataclasses.replace(recipe, pair_terms=["electrostatics", "ewald"])


def test_denoising_refuses_pair_terms(recipe) -> None:
    zero = dict.fromkeys(OUTPUTS, 0.0)
    with pytest.raises(ValueError, match="denoising knows no pair terms"):
        dataclasses.replace(recipe, pair_terms=["zbl"], denoising={}, **zero)


def test_the_folder_knows_what_the_training_sees(recipe, parts) -> None:
    """Other charges are other data for a training on charges, and for no other."""
    other = dataclasses.replace(parts[0], charges=[-q for q in parts[0].charges])
    labels = recipe.output_labels
    assert checksum(other, labels) != checksum(parts[0], labels)
    assert checksum(other) == checksum(parts[0])


def test_a_run_goes_on_when_its_start_is_gone(done, parts, tmp_path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(done.model, start)
    fine = train.Recipe(
        name="fine", data="x", split={"sizes": [18, 6]}, start_from=str(start), epochs=1
    )
    train.fit(fine, *parts, tmp_path / "run")
    start.unlink()
    assert len(train.fit(fine, *parts, tmp_path / "run").history) == 1
    with pytest.raises(FileNotFoundError):
        train.fit(fine, *parts, tmp_path / "other")


def test_a_start_of_another_network(done) -> None:
    fine = train.Recipe(
        name="fine",
        data="x",
        split={"sizes": [1, 1]},
        start_from=str(done.model),
        network="equiformer",
    )
    with pytest.raises(ValueError, match="starts from is a so3krates, not a equiformer"):
        fine.with_start()


def test_dipoles_of_crystals_and_slabs_with_an_ewald_sum(recipe, parts, tmp_path) -> None:
    frames = [atoms.copy() for atoms in parts[0].structures]
    for atoms in frames:
        atoms.set_cell(np.eye(3) * 15)
        atoms.pbc = (True, True, False)
    slabs = dataclasses.replace(parts[0], structures=frames)
    with pytest.raises(ValueError, match="periodic structures, whose dipole depends"):
        train.fit(recipe, slabs, slabs, tmp_path)
    ewald = dataclasses.replace(recipe, pair_terms=["ewald"], dipole_weight=0.0)
    with pytest.raises(ValueError, match="structure 0 of the validation set: the Ewald sum"):
        train.fit(ewald, parts[0], slabs, tmp_path)
