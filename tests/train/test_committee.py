"""Committees: one recipe, several seeds, one model file."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attncalc import Committee, load, train
from attncalc.data.errors import predict
from attncalc.files import FileLock
from attncalc.train.training import read_split


@pytest.fixture(scope="module")
def two(recipe) -> train.Recipe:
    """Seeds 5 and 6, on a split drawn at random."""
    return dataclasses.replace(recipe, committee=2, seed=5, epochs=2)


@pytest.fixture(scope="module")
def trained(two, data_file, tmp_path_factory) -> tuple[train.Training, Path]:
    output = tmp_path_factory.mktemp("committee")
    return train.run(two, output, data=data_file, command="attncalc train two.yaml"), output


def test_members_are_the_recipe_with_other_seeds(trained, two, data_file):
    done, output = trained
    assert isinstance(done.potential, Committee)
    training, validation, _ = read_split(dataclasses.replace(two, data=str(data_file)))
    for k, member in enumerate(done.potential.members):
        alone = dataclasses.replace(two, committee=1, seed=5 + k, name=f"tiny-{k + 1}")
        again = train.fit(alone, training, validation, output.parent / f"alone-{k}").potential
        for name, tensor in again.state_dict().items():
            assert torch.equal(member.state_dict()[name], tensor), name
    first, second = done.potential.members
    assert not torch.equal(first.network.head.energy.weight, second.network.head.energy.weight)
    assert [row["epoch"] for row in done.history] == [1, 2, 1, 2]
    assert np.all(np.diff([row["wall_time_s"] for row in done.history]) > 0)


def test_the_file_is_their_mean_and_the_card_says_so(trained, parts):
    output = trained[1]
    model = load(output / "tiny.safetensors")
    members = [load(output / f"member-{k}" / f"tiny-{k}.safetensors") for k in (1, 2)]
    mean = np.mean([predict(member, parts[2]).energies for member in members], axis=0)
    np.testing.assert_allclose(predict(model, parts[2]).energies, mean, rtol=1e-12)
    card = (output / "tiny.md").read_text()
    assert "| network | mean of 2 x so3krates, " in card
    assert "2 epochs" in card
    assert "seeds 5 to 6" in card
    assert model.training_info["committee"] == 2
    # alone or in another committee, members know what they were trained on
    for member in (*members, *model.members):
        assert member.known_charges == (0, 0)
        assert member.training_info["closed_shells"] is False
        assert "level_of_theory" in member.training_info


def test_members_may_be_trained_one_by_one(trained, two, data_file, tmp_path):
    """By several processes at once, but each by one of them."""
    command, first = "attncalc train two.yaml", tmp_path / "member-1"
    first.mkdir()
    with FileLock(first):  # as the process has it that trains the first
        done = train.run(two, tmp_path, data=data_file, command=command, member=2)
        assert done.model == tmp_path / "member-2" / "tiny-2.safetensors"
        # evaluated before the others are trained
        assert len(train.read_run(tmp_path / "member-2", data=data_file)[1]["test"]) == 5
        # a folder of another name is no member's: its split is that of the recipe's own seed
        shutil.copytree(tmp_path / "member-2", tmp_path / "2")
        with pytest.raises(ValueError, match="not the training set that"):
            train.read_run(tmp_path / "2", data=data_file)
        for member in (1, None):
            with pytest.raises(BlockingIOError, match="member-1: another run is still writing it"):
                train.run(two, tmp_path, data=data_file, command=command, member=member)
    done = train.run(two, tmp_path, data=data_file, command=command, member=1)
    assert done.model == first / "tiny-1.safetensors"
    together = train.run(two, tmp_path, data=data_file, command=command)
    for name, tensor in trained[0].potential.state_dict().items():
        assert torch.equal(together.potential.state_dict()[name], tensor), name


@pytest.mark.parametrize("k", [0, 3])
def test_a_member_that_is_not_there(two, data_file, tmp_path, k):
    with pytest.raises(ValueError, match=f"there are members 1 to 2, not {k}"):
        train.run(two, tmp_path, data=data_file, member=k)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_that_of_one_kind_of_run(trained, two, recipe, data_file, tmp_path):
    alone = dataclasses.replace(two, committee=1)
    with pytest.raises(ValueError, match=r"another recipe \(different: committee\)"):
        train.run(alone, trained[1], data=data_file)
    train.run(alone, tmp_path, data=data_file)
    with pytest.raises(ValueError, match=r"another recipe \(different: committee\)"):
        train.run(two, tmp_path, data=data_file)


def test_a_recipe_without_members(recipe, data_file, tmp_path):
    with pytest.raises(ValueError, match="it trains one network, so there is no member"):
        train.run(recipe, tmp_path, data=data_file, member=1)
    with pytest.raises(ValueError, match="committee must be positive, got 0"):
        dataclasses.replace(recipe, committee=0)
