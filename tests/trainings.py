"""What tests of trainings share: labelled files, runs that are stopped, and their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.io
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from attncalc import data
from attncalc.train.module import TrainingModule


def write(path: Path, dataset: data.Dataset) -> Path:
    """Write energies, forces and stresses as extended XYZ, and return the file."""
    frames = []
    for k, structure in enumerate(dataset.structures):
        atoms = structure.copy()
        labels = {"energy": dataset.energies[k], "stress": dataset.stress[k]}
        atoms.calc = SinglePointCalculator(atoms, forces=dataset.forces[k], **labels)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Ctrl-C before this step of a training, counted from 0."""
    usual = TrainingModule.training_step

    def interrupted(module: TrainingModule, load: object, k: int) -> None:
        if module.global_step == step:
            raise KeyboardInterrupt
        usual(module, load, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        yield


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_time_s"} for row in history]


def assert_same_bits(ours: Path, theirs: Path) -> None:
    """Compare the checkpoints of two folders: history, weights, averages, moments."""
    mine, whole = (
        torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)
        for folder in (ours, theirs)
    )
    assert without_time(mine["history"]) == without_time(whole["history"])
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(mine[part][name], whole[part][name]) for name in whole[part])
    for name, state in whole["optimizer_states"][0]["state"].items():
        found = mine["optimizer_states"][0]["state"][name]
        # numbers, as those of steps, beside tensors
        assert all(
            torch.equal(torch.as_tensor(found[key]), torch.as_tensor(state[key])) for key in state
        )
