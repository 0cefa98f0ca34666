"""Whose run a folder holds: recipe and data are compared, file names are not."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from trainings import stopped_at

from attncalc import data, train
from attncalc.train.run_folder import checksum, remembered


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of a finished run's folder, to be spoilt."""
    return shutil.copytree(finished[1], tmp_path / "run")


def with_other_energy(dataset: data.Dataset) -> data.Dataset:
    energies = dataset.energies.copy()
    energies[-1] = np.nextafter(energies[-1], 0)
    return dataclasses.replace(dataset, energies=energies)


def test_another_recipe_does_not_continue_the_run(finished, recipe, parts):
    other = dataclasses.replace(recipe, epochs=5, seed=3)
    with pytest.raises(ValueError, match=r"another recipe \(different: epochs, seed\): choose"):
        train.fit(other, *parts[:2], finished[1])


@pytest.mark.parametrize("role", ["training", "validation"])
def test_a_finished_run_on_other_data_is_not_handed_back(finished, recipe, parts, role):
    chosen = {"training": parts[0], "validation": parts[1]}
    chosen[role] = with_other_energy(chosen[role])
    before = (finished[1] / "recipe.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        train.fit(recipe, **chosen, output=finished[1])
    assert str(caught.value) == (
        f"{finished[1]} holds a run on other data (different: {role} set; now from cells.extxyz): "
        "choose another output folder, or remove this one to start again"
    )
    assert (finished[1] / "recipe.json").read_bytes() == before


def test_an_unfinished_run_does_not_go_on_with_other_data(recipe, parts, tmp_path):
    with stopped_at(5), pytest.raises(KeyboardInterrupt):
        train.fit(recipe, *parts[:2], tmp_path)
    with pytest.raises(
        ValueError, match=r"other data \(different: training set and validation set;"
    ):
        train.fit(recipe, *map(with_other_energy, parts[:2]), tmp_path)
    assert len(train.fit(recipe, *parts[:2], tmp_path).history) == 4


@pytest.mark.parametrize("name", ["/elsewhere/cells.extxyz", "renamed.npz"])
def test_data_that_have_moved_are_the_same(finished, folder, recipe, parts, name):
    moved = dataclasses.replace(recipe, data=name)
    assert train.fit(moved, *parts[:2], folder).history == finished[0].history


def test_a_folder_of_an_earlier_version_goes_on(finished, folder, recipe, parts):
    mark = folder / "recipe.json"
    content = json.loads(mark.read_text())
    content["corrects"] = content.pop("baseline")
    later = {"pair_terms": [], "denoising": None, "minutes": None}  # it did not write these
    assert later.items() <= content.items()
    content = {key: value for key, value in content.items() if key not in later}
    mark.write_text(json.dumps(content))
    assert train.fit(recipe, *parts[:2], folder).history == finished[0].history
    assert remembered(folder)[0].baseline is None


def test_a_checksum_sees_every_number_and_no_name():
    def dataset(*, stress=0.1, forces=0.1, energy=1.0, with_stress=True, source="a", **changes):
        options = {"numbers": [1, 8], "positions": [[0, 0, 0], [0, 0, 1]], "cell": [9, 9, 9]}
        atoms = Atoms(**(options | changes))
        return data.Dataset(
            structures=(atoms,),
            energies=[energy],
            forces=(np.full((2, 3), forces),),
            stress=np.full((1, 3, 3), stress) if with_stress else None,
            source=source,
        )

    known = {checksum(dataset())}
    assert checksum(dataset(source="b")) in known
    for change in (
        *({"stress": 0.2}, {"forces": 0.2}, {"energy": 2.0}, {"with_stress": False}),
        *({"numbers": [8, 1]}, {"positions": [[0, 0, 0], [0, 0, 2]]}, {"cell": [9, 9, 8]}),
        *({"pbc": True}, {"info": {"charge": 1}}, {"info": {"spin": 4}}),
    ):
        found = checksum(dataset(**change))
        assert found not in known, change
        known.add(found)


def test_results_of_others_are_not_overwritten(recipe, parts, tmp_path):
    """A model and notes that were there before any training."""
    there = [f"{recipe.name}.safetensors", f"{recipe.name}.md", "metrics.csv"]
    for name in there:
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="nothing is overwritten: choose another output"):
        train.fit(recipe, *parts[:2], tmp_path)
    assert [(tmp_path / name).read_text() for name in there] == ["mine"] * 3
    assert not (tmp_path / "recipe.json").exists()


def test_a_run_that_has_lost_its_checkpoint_keeps_its_model(finished, folder, recipe, parts):
    """Unless it was killed in its first epoch, before there was a checkpoint."""
    (folder / "last.ckpt").unlink()
    model = (folder / f"{recipe.name}.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="but no checkpoint to continue from"):
        train.fit(recipe, *parts[:2], folder)
    assert (folder / f"{recipe.name}.safetensors").read_bytes() == model
    head, first, *_ = (folder / "metrics.csv").read_bytes().splitlines(keepends=True)
    (folder / "metrics.csv").write_bytes(head + first)
    again = train.fit(recipe, *parts[:2], folder)
    assert again.history[0]["validation_loss"] == finished[0].history[0]["validation_loss"]
