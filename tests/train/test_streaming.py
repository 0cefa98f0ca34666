"""Trainings on data that stay in their file end with the bits of those in memory."""

import dataclasses
import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from trainings import assert_same_bits

from attncalc import data, load, train
from attncalc.data import hdf5_rows
from attncalc.train import batches
from attncalc.train.batches import Samples


@pytest.fixture(scope="module")
def path(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5"
    data.write_hdf5([dataset] * 4, path)
    return path


@pytest.fixture(scope="module")
def plan(recipe, path) -> train.Recipe:
    sizes = {"sizes": [68, 20, "rest"]}
    return dataclasses.replace(recipe, data=str(path), epochs=2, batch_size=8, split=sizes)


@pytest.fixture(scope="module")
def in_memory(plan, tmp_path_factory):
    output = tmp_path_factory.mktemp("memory")
    return train.run(plan, output), output


@contextmanager
def count_alive(monkeypatch) -> Iterator[dict[str, int]]:
    """How many structures that were read, and graphs that were made, are there at once."""
    alive = {"structures": weakref.WeakSet(), "graphs": weakref.WeakSet()}
    most = dict.fromkeys(alive, 0)

    def noted(name, thing):
        alive[name].add(thing)
        if len(alive[name]) > most[name]:
            gc.collect()
            most[name] = max(most[name], len(alive[name]))
        return thing

    read, make = hdf5_rows.Rows._read, batches.fresh_graph
    monkeypatch.setattr(hdf5_rows.Rows, "_read", lambda rows, k: noted("structures", read(rows, k)))
    monkeypatch.setattr(batches, "fresh_graph", lambda *a, **b: noted("graphs", make(*a, **b)))
    gc.freeze()  # or every collection would look at all modules
    yield most
    gc.unfreeze()


@pytest.mark.parametrize("more", [{}, {"batch_edges": 800}])
def test_the_same_bits_and_never_all_in_memory(plan, in_memory, tmp_path, monkeypatch, more):
    whole, whole_output = in_memory
    if more:
        plan = dataclasses.replace(plan, **more)
        whole = train.run(plan, tmp_path / "memory")
        whole_output = tmp_path / "memory"
    with count_alive(monkeypatch) as most_alive:
        streamed = train.run(dataclasses.replace(plan, stream=True), tmp_path / "run")
    assert_same_bits(tmp_path / "run", whole_output)
    ours, theirs = load(streamed.model), load(whole.model)
    assert torch.equal(ours.reference_energies, theirs.reference_energies)
    assert ours.network.config == theirs.network.config
    found, expected = (one.training_info["test_errors"] for one in (ours, theirs))
    assert found == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}
    # 96 structures: those of a search for neighbours, of a validation batch and of trial steps
    assert 0 < most_alive["structures"] <= 4
    assert 0 < most_alive["graphs"] <= 64


def test_a_run_may_go_on_from_the_file(plan, in_memory, tmp_path, caplog):
    """The numbers are the same: it is the same run."""
    with caplog.at_level(logging.INFO):
        again = train.run(dataclasses.replace(plan, stream=True), in_memory[1])
    assert "nothing left to train" in caplog.text
    assert again.history == in_memory[0].history


def test_samples_are_made_when_they_are_asked_for(path, dataset):
    stream = data.stream(path)
    lazy = batches.samples(stream, 3.4, (28, 29))
    assert isinstance(lazy, Samples)
    assert len(lazy) == len(stream)
    kept = batches.samples(dataset, 3.4, (28, 29))
    assert isinstance(kept, list)
    for name in ("energy", "forces", "stress", "volume"):
        assert torch.equal(getattr(lazy[7], name), getattr(kept[7], name))
    assert torch.equal(lazy[7].graph.vectors, kept[7].graph.vectors)


def test_a_file_that_cannot_be_streamed_says_so(plan, dataset, tmp_path):
    other = dataclasses.replace(plan, data=str(tmp_path / "a.extxyz"), stream=True)
    (tmp_path / "a.extxyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(ValueError, match=r"^a.extxyz: .*attncalc convert data"):
        train.run(other, tmp_path / "run")
    with pytest.raises(ValueError, match="recipe: stream must be true or false, got 1"):
        dataclasses.replace(plan, stream=1)


def test_wrong_units_are_found_in_a_sample(plan, dataset, tmp_path):
    from ase.calculators.emt import EMT

    frames = []
    for k in range(40):
        atoms = dataset.structures[0].copy()
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
        frames.append(atoms)
    right = data.from_ase(frames)
    wrong = dataclasses.replace(right, energies=right.energies * 23.0605)
    data.write_hdf5([wrong], tmp_path / "wrong.h5")
    other = dataclasses.replace(plan, data=str(tmp_path / "wrong.h5"), stream=True)
    other = dataclasses.replace(other, split={"sizes": [30, 10]})
    with pytest.raises(ValueError, match=r"^wrong.h5: .* energies in kcal/mol beside forces"):
        train.run(other, tmp_path / "run")
