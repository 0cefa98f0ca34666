"""Trainings of so many minutes, on a clock that a step moves by one second."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from trainings import stopped_at

from attncalc import data, train
from attncalc.train import callbacks, module, training
from attncalc.train.module import TrainingModule
from attncalc.train.order import Sizes, n_steps
from attncalc.train.time_budget import epochs_that_fit

STEPS_PER_EPOCH = 5


class Clock:
    """Time that passes only where a step is taken."""

    def __init__(self) -> None:
        self.now, self.seconds_per_step = 0.0, 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, usual = Clock(), TrainingModule.training_step

    def timed(ours: TrainingModule, load: object, k: int) -> None:
        usual(ours, load, k)
        clock.now += clock.seconds_per_step

    monkeypatch.setattr(TrainingModule, "training_step", timed)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(training, "seconds_per_step", lambda *_: 2.0)  # slower than what follows
    return clock


def of_minutes(recipe: train.Recipe, minutes: float) -> train.Recipe:
    return dataclasses.replace(recipe, minutes=minutes)


@pytest.mark.usefixtures("clock")
def test_as_many_epochs_as_fit(recipe, parts, tmp_path):
    done = train.fit(of_minutes(recipe, 0.5), *parts[:2], tmp_path)
    assert [row["wall_time_s"] for row in done.history] == [5, 10, 15, 20, 25, 30]
    # of a schedule for 15 steps, as timed before the first epoch, then for 30
    rates = [row["learning_rate"] for row in done.history]
    lowest = recipe.final_learning_rate / recipe.learning_rate
    expected = [1 / 3, *(k / 6 for k in range(2, 7))]
    assert rates == pytest.approx([recipe.learning_rate * lowest**part for part in expected])


def test_card_of_members_with_different_numbers_of_epochs(
    recipe, data_file, tmp_path, clock, monkeypatch
):
    usual = training._fit

    def fit(member: train.Recipe, *others: object) -> train.Training:
        clock.seconds_per_step = 2.0 if member.name.endswith("-2") else 1.0
        return usual(member, *others)

    monkeypatch.setattr(training, "_fit", fit)
    two = dataclasses.replace(of_minutes(recipe, 0.5), committee=2)  # 15 s for each
    output = train.run(two, tmp_path / "run", data=data_file, command="attncalc train a.yaml").model
    card = output.with_suffix(".md").read_text().splitlines()
    (line,) = (line for line in card if line.startswith("| training |"))
    assert line.startswith("| training | 1 to 3 epochs, 25 s wall time of all together")


def test_a_compiled_step_changes_the_number(recipe, parts, tmp_path, clock):
    usual = module.TrainingModule.on_validation_epoch_end

    def faster(ours: TrainingModule) -> None:
        usual(ours)
        clock.seconds_per_step = 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_validation_epoch_end", faster)
        done = train.fit(of_minutes(recipe, 0.5), *parts[:2], tmp_path)
    assert [row["wall_time_s"] for row in done.history] == [5 + 2.5 * k for k in range(11)]
    assert done.history[-1]["learning_rate"] == pytest.approx(recipe.final_learning_rate)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("step", [3, 13])
def test_it_goes_on_within_an_epoch(recipe, parts, tmp_path, monkeypatch, step):
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY", 0)
    recipe = of_minutes(recipe, 0.5)
    whole = train.fit(recipe, *parts[:2], tmp_path / "whole")
    with stopped_at(step), pytest.raises(KeyboardInterrupt):
        train.fit(recipe, *parts[:2], tmp_path / "stopped")
    done = train.fit(recipe, *parts[:2], tmp_path / "stopped")
    assert done.history == whole.history


@pytest.mark.usefixtures("clock")
def test_it_goes_on_for_the_rest_of_the_time(recipe, parts, tmp_path):
    recipe = of_minutes(recipe, 0.5)
    with stopped_at(12), pytest.raises(KeyboardInterrupt, match="2 of 6 epochs are done"):
        train.fit(recipe, *parts[:2], tmp_path)
    done = train.fit(recipe, *parts[:2], tmp_path)
    assert len(done.history) == 6
    assert done.history[-1]["wall_time_s"] == 30
    assert done.history[-1]["learning_rate"] == pytest.approx(recipe.final_learning_rate)
    assert len(train.fit(recipe, *parts[:2], tmp_path).history) == 6  # there is no time left


@pytest.mark.usefixtures("clock")
def test_the_first_epoch_is_finished(recipe, parts, tmp_path):
    done = train.fit(of_minutes(recipe, 0.01), *parts[:2], tmp_path)
    assert [row["epoch"] for row in done.history] == [1]
    assert len(train.fit(of_minutes(recipe, 0.01), *parts[:2], tmp_path).history) == 1


@pytest.mark.usefixtures("clock")
def test_epochs_that_minutes_overrule_are_not_compared(recipe, parts, tmp_path):
    """Earlier versions wrote others of them."""
    recipe = of_minutes(recipe, 0.5)
    with stopped_at(12), pytest.raises(KeyboardInterrupt):
        train.fit(recipe, *parts[:2], tmp_path)
    mark = tmp_path / "recipe.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"epochs": 1000}))
    assert len(train.fit(recipe, *parts[:2], tmp_path).history) == 6
    with pytest.raises(ValueError, match=r"another recipe \(different: minutes\)"):
        train.fit(of_minutes(recipe, 0.6), *parts[:2], tmp_path)


def test_steps_are_timed_with_a_clock_that_runs(recipe, parts, tmp_path):
    done = train.fit(of_minutes(recipe, 1e-4), *parts[:2], tmp_path)
    assert [row["step"] for row in done.history] == [STEPS_PER_EPOCH]


def test_a_committee_has_the_time_together(recipe):
    committee = dataclasses.replace(recipe, committee=3, minutes=90)
    assert committee.member(2).minutes == 30


@pytest.mark.parametrize(
    ("seconds", "done", "left", "epochs"),
    [(10.0, 3, 40.0, 7), (10.0, 3, 44.0, 7), (10.0, 3, 4.0, 3), (10.0, 3, -5.0, 3)],
)
def test_epochs_that_fit(seconds, done, left, epochs):
    assert epochs_that_fit(seconds, done, left) == epochs


def test_one_slow_epoch_ends_nothing(recipe, parts, tmp_path, clock):
    """As one in which a step is compiled, and the start of a run that goes on."""
    usual = TrainingModule.on_validation_epoch_end

    def slow(ours: TrainingModule) -> None:
        clock.now += {2: 30.0}.get(ours.current_epoch, 0.0)
        usual(ours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_validation_epoch_end", slow)
        done = train.fit(of_minutes(recipe, 1.0), *parts[:2], tmp_path)
    assert [row["wall_time_s"] for row in done.history] == [5, 10, 45, 50, 55, 60]
    assert done.history[-1]["learning_rate"] == pytest.approx(recipe.final_learning_rate)


@pytest.mark.usefixtures("clock")
def test_structures_that_stay_in_their_file(recipe, dataset, tmp_path):
    data.write_hdf5([dataset], tmp_path / "cells.h5")
    streamed = dataclasses.replace(
        of_minutes(recipe, 0.3), data="cells.h5", stream=True, folder=str(tmp_path)
    )
    assert len(train.run(streamed, tmp_path / "run").history) == 4


def test_steps_of_about_equal_edges(recipe):
    """Their number is estimated from the first epoch, not counted in all."""
    sizes = Sizes(np.full(20, 4), np.arange(40, 60))
    timed = dataclasses.replace(of_minutes(recipe, 1.0), batch_edges=200, epochs=10**6)
    one = n_steps(sizes, dataclasses.replace(timed, epochs=1))
    assert n_steps(sizes, timed) == 10**6 * one


def test_one_of_the_two_is_given(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: a\ndata: a.xyz\nsplit: {sizes: [1, 1]}\nconfig: {cutoff: 4}\nminutes: 5\n"
    )
    assert train.Recipe.from_yaml(file).minutes == 5
    file.write_text(file.read_text() + "epochs: 10\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: give epochs or minutes, not both"):
        train.Recipe.from_yaml(file)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "ten", True])
def test_minutes_that_are_none(recipe, minutes):
    with pytest.raises(ValueError, match="recipe: minutes must be"):
        of_minutes(recipe, minutes)
