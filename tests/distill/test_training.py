"""What the members of a committee are trained with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from contract import ethanol

pytest.importorskip("lightning", reason="needs lightning: pip install attncalc[distill]")

from attncalc.data import Dataset
from attncalc.distill import training
from attncalc.distill.training import member_file, train_committee


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list:
    """Recipes of the trainings, in order; none takes place."""
    found = []

    def fit(recipe, data, validation, folder):
        found.append((recipe, data, validation, folder))
        return SimpleNamespace(potential=f"potential {len(found)}")

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "Committee", list)
    monkeypatch.setattr(training, "calibrate", lambda potential, data: found.append(data))
    monkeypatch.setattr(training, "save", lambda potential, path: None)
    monkeypatch.setattr(training, "load", lambda path: path)
    return found


def structures(n: int, charge: int = 0, spin: int = 1) -> Dataset:
    made = tuple(ethanol() for _ in range(n))
    for atoms in made:
        atoms.info |= {"charge": charge, "spin": spin}
    forces = tuple(np.zeros((9, 3)) for _ in made)
    return Dataset(made, np.zeros(n), forces, source="labels.h5")


def test_every_member_has_a_seed_of_its_own(recipes: list, tmp_path: Path) -> None:
    data, validation = structures(30), structures(4)
    train_committee(tmp_path, data, validation, [None, None, None], seed=7)
    *trainings, known = recipes
    assert [recipe.seed for recipe, *_ in trainings] == [7, 8, 9]
    # once each: copies on both sides of the cross-validation would hide what is new
    assert [*map(id, known)] == [*map(id, (*data.structures, *validation.structures))]
    for k, (recipe, repeated, held_out, folder) in enumerate(trainings, start=1):
        assert held_out is validation
        assert member_file(tmp_path, k).parent == folder
        assert len(repeated) % 30 == 0
        assert recipe.epochs * len(repeated) / recipe.batch_size == pytest.approx(1500, rel=0.1)


@pytest.mark.parametrize(
    ("charge", "spin", "options"),
    [
        (0, 1, set()),
        (1, 2, {"embed_charge"}),
        (-1, 2, {"embed_charge"}),
        (0, 3, {"embed_spin"}),
        (-1, 4, {"embed_charge", "embed_spin"}),
    ],
)
def test_networks_read_the_charge_and_spin_of_their_structure(
    recipes: list, tmp_path: Path, charge: int, spin: int, options: set[str]
) -> None:
    train_committee(tmp_path, structures(20, charge, spin), structures(2), [None], seed=0)
    (recipe, *_), _ = recipes
    assert {name for name, value in recipe.config.items() if value is True} == options


def test_members_that_start_from_a_model_have_its_network(recipes: list, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    train_committee(tmp_path, structures(20), structures(2), [start, None], seed=0, n_steps=40)
    (first, *_), (second, *_), _ = recipes
    assert (first.start_from, first.config) == (str(start), {})
    assert second.start_from is None
    assert second.config["num_layers"] == 3
