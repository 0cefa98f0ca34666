"""A tiny training: shaken Cu-Ni cells with the energies, forces and stress of ASE's EMT."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pictures import draw_all
from trainings import write

from attncalc import data, train


@pytest.fixture(scope="session")
def dataset() -> data.Dataset:
    """24 cells of 4 to 8 atoms of two elements, with stress."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(24):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((1 + k % 2, 1, 1))
        atoms.numbers[: 1 + k % 3] = 28
        atoms.set_cell(atoms.cell * rng.uniform(0.97, 1.03), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
        frames.append(atoms)
    return data.from_ase(frames, source="cells.extxyz")


@pytest.fixture(scope="session")
def parts(dataset) -> tuple[data.Dataset, data.Dataset, data.Dataset]:
    return dataset[:14], dataset[14:19], dataset[19:]


@pytest.fixture(scope="session")
def recipe() -> train.Recipe:
    """Four epochs of five steps of a network that is as small as it can be."""
    return train.Recipe(
        name="tiny",
        data="cells.extxyz",
        split={"sizes": [14, 5, 5]},
        config={
            "cutoff": 3.4,
            "num_features": 8,
            "num_heads": 2,
            "degrees": [1, 2],
            "num_layers": 1,
            "num_basis": 6,
            "head_features": 8,
        },
        epochs=4,
        batch_size=3,
        optimizer="adam",
        learning_rate=1e-2,
        schedule="exponential",
        warmup_steps=2,
        ema_decay=0.8,
        stress_weight=10.0,
        compile="never",
    )


@pytest.fixture(scope="session")
def data_file(dataset, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cells.extxyz", dataset)


@pytest.fixture(scope="session")
def finished(recipe, parts, tmp_path_factory) -> tuple[train.Training, Path]:
    """An uninterrupted training and its folder, which nobody changes; its picture is drawn."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        draw_all(patch)
        return train.fit(recipe, *parts[:2], output), output
