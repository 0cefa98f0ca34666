"""`pair_terms: [zbl]` of a recipe: trained, saved, loaded, by the engine, in dynamics."""

import dataclasses

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.units import fs

from attncalc import AttnCalculator, System, data, load, md, train
from attncalc.data.errors import errors, predict
from attncalc.fast import disagreement, lower
from attncalc.nn.network import CompiledNetwork
from attncalc.physics.zbl import ZBLRepulsion
from attncalc.train.start import new_potential

LABELS = "so3krates-xtb-small-molecules"


@pytest.fixture(scope="module")
def parts() -> tuple[data.Dataset, data.Dataset]:
    """Shaken ethanol, whose bonds are short enough for the repulsion, labelled by a model."""
    frames = []
    for seed in range(14):
        frames.append(molecule("CH3CH2OH"))
        frames[-1].rattle(0.05, seed=seed)
        frames[-1].calc = AttnCalculator(LABELS, device="cpu")
        frames[-1].get_forces()
    labelled = data.from_ase(frames, source="ethanol.extxyz")
    return labelled[:10], labelled[10:]


@pytest.fixture(scope="module")
def zbl_recipe() -> train.Recipe:
    return train.Recipe(
        name="zbl",
        data="ethanol.extxyz",
        split={"sizes": [10, 4]},
        config={
            "cutoff": 4.0,
            "num_features": 64,
            "num_heads": 4,
            "degrees": [1, 2, 3, 4],
            "num_layers": 1,
            "num_basis": 8,
            "head_features": 16,
        },
        pair_terms=["zbl"],
        epochs=20,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=2,
        ema_decay=0.8,
        compile="never",
    )


@pytest.fixture(scope="module")
def done(zbl_recipe, parts, tmp_path_factory):
    return train.fit(zbl_recipe, *parts, tmp_path_factory.mktemp("zbl"))


def test_the_term_is_trained_and_kept(zbl_recipe, parts, done) -> None:
    first, model = new_potential(zbl_recipe, parts[0]), load(done.model)
    (term,), (before,) = model.pair_terms, first.pair_terms
    assert isinstance(term, ZBLRepulsion)
    assert term.config.cutoff == 4.0
    assert not torch.equal(term.exponents, before.exponents)
    ours, theirs = (errors(predict(p, parts[1]), parts[1]) for p in (model, first))
    assert ours.force_mae < 0.9 * theirs.force_mae


def test_the_engine_and_dynamics_have_it(done) -> None:
    model = load(done.model)
    fast = lower(model)
    assert isinstance(fast.network, CompiledNetwork)
    assert disagreement(fast, model) < 1e-4
    system = System.from_ase(molecule("CH3CH2OH"))
    verlet = md.Verlet(0.25 * fs)
    state = verlet.init(model, system, temperature=50.0, seed=0)
    last = md.run(verlet, model, state, 40)
    assert float((last.conserved - state.conserved).abs()) < 0.02
    close = molecule("CH3CH2OH")
    close.positions[1] += 0.35 * (close.positions[0] - close.positions[1])
    energies = [
        AttnCalculator(one, device="cpu").get_potential_energy(close)
        for one in (model, _without_terms(model))
    ]
    assert energies[0] - energies[1] > 1.0
    assert np.isfinite(AttnCalculator(model, device="cpu").get_forces(close)).all()


def _without_terms(model):
    bare = load(LABELS).__class__(
        model.network,
        model.species,
        scale=model.scale.tolist(),
        reference_energies=model.reference_energies.tolist(),
    )
    return bare.requires_grad_(False)


def test_another_training_goes_on_with_it(zbl_recipe, parts, done) -> None:
    again = dataclasses.replace(zbl_recipe, start_from=str(done.model), name="again")
    (ours,), (theirs,) = new_potential(again, parts[0]).pair_terms, load(done.model).pair_terms
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    bare = dataclasses.replace(again, pair_terms=[])
    with pytest.raises(ValueError, match=r"has ZBLRepulsion, the recipe's pair_terms are \(\)"):
        new_potential(bare, parts[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("zbl", "pair_terms must be a list of names, got 'zbl'"),
        (["coulomb"], "pair_terms must be of zbl, .*got 'coulomb'"),
        (["zbl", "zbl"], "pair_terms has a name twice"),
        (["zbl", "self_energy"], "self_energy of pair_terms belongs to electrostatics with a"),
    ],
)
def test_bad_names(zbl_recipe, names, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(zbl_recipe, pair_terms=names)
