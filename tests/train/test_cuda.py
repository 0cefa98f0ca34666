"""Trainings on a GPU: the CPU's numbers, the same bits again, and back to the CPU afterwards.

The tests run on the CPU as well, so that they themselves are tested everywhere.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import assert_same_bits

from attncalc import AttnCalculator, data, load, train
from attncalc.kernels.collocation import collocated
from attncalc.ops import with_modules
from attncalc.train.batches import samples, to_device
from attncalc.train.module import TrainingModule, loss_of
from attncalc.train.processes import Processes
from attncalc.train.reproducible import ordered_sums
from attncalc.train.select_step import SHORTEST_COLLOCATED, unequal_sizes
from attncalc.train.start import new_potential
from attncalc.train.step import compiled, eager_step, trace, traced_step

Parts = tuple[data.Dataset, data.Dataset, data.Dataset]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def short(recipe: train.Recipe) -> train.Recipe:
    """Two epochs of five steps."""
    return dataclasses.replace(recipe, epochs=2)


def fit(
    device: torch.device, recipe: train.Recipe, parts: Parts, output: Path, *, stop_at: int = 0
) -> train.Training | None:
    """A training on this device; with `stop_at`, Ctrl-C is pressed in that step."""
    steps, devices = [], set()
    step, here = TrainingModule.training_step, TrainingModule._here

    def interrupted(module: TrainingModule, load, k: int) -> None:
        steps.append(k)
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        step(module, load, k)

    def on_device(module: TrainingModule, batch):
        moved = here(module, batch)
        devices.add(moved.energy.device.type)
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "device", device)
        patch.setattr(TrainingModule, "training_step", interrupted)
        patch.setattr(TrainingModule, "_here", on_device)
        if stop_at:
            with pytest.raises(KeyboardInterrupt, match="1 of 2 epochs are done"):
                train.fit(recipe, *parts[:2], output)
        done = None if stop_at else train.fit(recipe, *parts[:2], output)
    assert devices == {device.type}
    return done


def test_a_stopped_training_ends_with_the_same_bits(device, short, parts, tmp_path):
    fit(device, short, parts, tmp_path / "whole")
    fit(device, short, parts, tmp_path / "stopped", stop_at=8)
    fit(device, short, parts, tmp_path / "stopped")
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


def test_the_model_is_at_home_on_the_cpu(device, short, parts, tmp_path):
    done = fit(device, short, parts, tmp_path)
    assert done.potential.device.type == device.type
    atoms = parts[2].structures[0]
    here = AttnCalculator(done.model, device="cpu", dtype="float64").calculate_many([atoms])[0]
    there = AttnCalculator(done.model, device=str(device), dtype="float64")
    scale = max(1.0, np.abs(here["forces"]).max())
    for name, value in there.calculate_many([atoms])[0].items():
        assert np.abs(np.asarray(value) - here[name]).max() <= 1e-9 * scale, name


def test_a_training_moves_to_another_device(device, short, parts, tmp_path):
    """Begun on the CPU, as a run that is carried to a GPU."""
    exact = dataclasses.replace(short, dtype="float64")
    whole = fit(torch.device("cpu"), exact, parts, tmp_path / "whole")
    fit(torch.device("cpu"), exact, parts, tmp_path / "moved", stop_at=8)
    moved = fit(device, exact, parts, tmp_path / "moved")
    for ours, theirs in zip(moved.history, whole.history, strict=True):
        for name in ("train_loss", "validation_loss", "force_mae_meV_per_A"):
            # Adam divides by the root of second moments, which carries rounding along
            assert ours[name] == pytest.approx(theirs[name], rel=1e-7)
    state = load(whole.model, device="cpu").state_dict()
    for name, value in moved.potential.state_dict().items():
        torch.testing.assert_close(value.cpu(), state[name], rtol=1e-6, atol=1e-8)


def test_the_loss_of_a_training_is_that_of_the_cpu(device, short, parts, tmp_path):
    """Of a whole training, not of its parts: order of data, initial weights, chosen step."""
    once = dataclasses.replace(short, dtype="float64", epochs=1, batch_size=14)
    ours = fit(device, once, parts, tmp_path / "ours")
    theirs = fit(torch.device("cpu"), once, parts, tmp_path / "theirs")
    assert ours.history[0]["step"] == 1
    assert ours.history[0]["train_loss"] == pytest.approx(theirs.history[0]["train_loss"], rel=1e-9)


WAYS = {
    "plain": lambda plain, fast, weights, batch: eager_step(plain, weights),
    "collocated": lambda plain, fast, weights, batch: eager_step(fast, weights),
    "traced": lambda plain, fast, weights, batch: traced_step(fast, trace(fast, weights, batch)),
    "compiled": lambda plain, fast, weights, batch: traced_step(
        fast, compiled(trace(fast, weights, batch))
    ),
}


def assert_first_step_is_that_of_the_cpu(device, way, recipe, parts) -> None:
    exact = dataclasses.replace(recipe, dtype="float64")
    here = new_potential(exact, parts[0])
    batches = samples(parts[0], here.cutoff, here.species)
    there, batch = copy.deepcopy(here).to(device), unequal_sizes(batches)
    fast = with_modules(there, network=collocated(there.network, SHORTEST_COLLOCATED))
    weights, moved = loss_of(exact), to_device(batch, device)
    value, gradients = eager_step(here, weights)(batch)
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    tolerance = 1e-9 if way == "plain" else 1e-5
    with ordered_sums(device):
        ours, theirs = WAYS[way](there, fast, weights, moved)(moved)
    assert ours.device.type == device.type
    assert float(ours) == pytest.approx(float(value), rel=tolerance)
    for mine, expected in zip(theirs, gradients, strict=True):
        assert float((mine.cpu() - expected).norm()) <= tolerance * norm


@pytest.mark.parametrize("way", ["plain", "collocated"])
def test_the_first_step_is_that_of_the_cpu(device, way, recipe, parts):
    assert_first_step_is_that_of_the_cpu(device, way, recipe, parts)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler (g++)")
@pytest.mark.parametrize("way", ["traced", "compiled"])
def test_the_first_step_as_a_graph(way, recipe, parts):
    """On the CPU, tracing and compiling are tested in test_step.py."""
    assert_first_step_is_that_of_the_cpu(torch.device("cuda"), way, recipe, parts)
