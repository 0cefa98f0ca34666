"""What watches a training run; most of it is tested by whole runs in test_training.py."""

import dataclasses
import logging
import math
import re
import sys

import lightning as L
import pytest

from attncalc import train
from attncalc.train import callbacks, training
from attncalc.train.callbacks import UseStep
from attncalc.train.module import TrainingModule
from attncalc.train.select_step import select_step
from attncalc.train.start import new_potential
from attncalc.train.step import Batch, Step


def test_a_callback_refuses_a_module_that_is_not_ours():
    callback = UseStep(lambda batch: None)
    with pytest.raises(TypeError, match="module must be a TrainingModule, got LightningModule"):
        callback.on_train_start(None, L.LightningModule())


def test_a_loss_that_is_no_number_is_never_the_best(recipe, parts, tmp_path, monkeypatch):
    """Nor does it keep a later one from being the best."""
    saved = []
    monkeypatch.setattr(callbacks, "save", lambda potential, path: saved.append(path))
    done = tmp_path / "there.safetensors"
    done.touch()
    module = TrainingModule(new_potential(recipe, parts[0]), recipe, 10)
    best = callbacks.BestModel(done, tmp_path / "metrics.csv")
    for loss, is_best in (
        (math.nan, False),
        (2.0, True),
        (3.0, False),
        (math.nan, False),
        (1, True),
    ):
        saved.clear()
        module.sums = {"loss": loss, "n": 1.0}
        best.on_validation_epoch_end(None, module)
        assert bool(saved) == is_best, loss
        module.history.append({"validation_loss": loss})


def said(caplog) -> list[str]:
    """Lines about progress, whatever other parts of a training say at levels of other tests."""
    records = [r for r in caplog.records if r.name == "attncalc.train.callbacks"]
    return [record.getMessage() for record in records]


def test_without_a_terminal_progress_is_said_in_lines(recipe, parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="attncalc.train.callbacks")
    monkeypatch.setattr(callbacks, "SHORTEST_BETWEEN_LINES", 0.0)
    train.fit(dataclasses.replace(recipe, epochs=3), *parts[:2], tmp_path / "run")
    lines = said(caplog)
    assert [line[: line.index(",")] for line in lines] == [f"epoch {k} of 3" for k in (1, 2, 3)]
    assert all("validation E " in line and line.endswith(" left") for line in lines)
    assert all(" meV/Å, stress " in line and " meV/Å³; " in line for line in lines)
    assert lines[-1].endswith("; 00:00 left")


def test_with_a_time_budget_the_number_of_epochs_is_an_estimate(recipe, parts, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="attncalc.train.callbacks")
    train.fit(dataclasses.replace(recipe, epochs=None, minutes=0.02), *parts[:2], tmp_path / "run")
    lines = said(caplog)
    assert lines
    assert all(re.match(r"epoch \d+ of about \d+, ", line) for line in lines)


def test_short_epochs_are_not_all_said(recipe, parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="attncalc.train.callbacks")
    train.fit(recipe, *parts[:2], tmp_path / "quick")
    lines = said(caplog)
    assert [line[: line.index(",")] for line in lines] == ["epoch 1 of 4", "epoch 4 of 4"]


def test_long_epochs_are_said_in_parts(recipe, parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="attncalc.train.callbacks")
    monkeypatch.setattr(callbacks, "LONGEST_BETWEEN_LINES", 0.0)
    train.fit(dataclasses.replace(recipe, epochs=1), *parts[:2], tmp_path / "long")
    parts_said = [line.partition(";")[0] for line in said(caplog) if "steps done" in line]
    assert parts_said == [f"epoch 1 of 1, {k} steps done" for k in range(1, 6)]


def test_no_lines_beside_a_bar(recipe, parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="attncalc.train.callbacks")
    monkeypatch.setattr(callbacks, "SHORTEST_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(callbacks, "LONGEST_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train.fit(dataclasses.replace(recipe, epochs=2), *parts[:2], tmp_path / "terminal")
    assert not said(caplog)


def test_the_compiled_step_is_taken_within_an_epoch(recipe, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "STEPS_BETWEEN_LOOKS", 2)
    monkeypatch.setattr(callbacks, "has_one_core", lambda: False)
    taken = []

    class ReadyAtTheSecondLook:
        looks, failure = 0, ""

        def __init__(self, step: Step) -> None:
            self.step = step

        def start(self) -> None:
            pass

        def stop(self) -> None:
            pass

        @property
        def is_done(self) -> bool:
            self.looks += 1
            return self.looks == 2

        def make(self) -> Step:
            return self.compiled

        def compiled(self, batch: Batch):
            taken.append("compiled")
            return self.step(batch)

    def select(*arguments, **options):
        step, _ = select_step(*arguments, **options)

        def eager(batch: Batch):
            taken.append("eager")
            return step(batch)

        return eager, ReadyAtTheSecondLook(step)

    monkeypatch.setattr(training, "select_step", select)
    train.fit(dataclasses.replace(recipe, epochs=1), *parts[:2], tmp_path / "run")
    assert taken == ["eager"] * 2 + ["compiled"] * 3
