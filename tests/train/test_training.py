"""Whole trainings, tiny ones: what they leave behind, how they stop and go on."""

import csv
import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from command_line import ends_in_time, says_all_to
from trainings import assert_same_bits, write

from attncalc import data, load, train
from attncalc.data.errors import errors, predict
from attncalc.data.fingerprints import count_repeated
from attncalc.train import callbacks, data_checks, training
from attncalc.train import recipe as recipes
from attncalc.train.batches import join, samples
from attncalc.train.data_checks import check_data, require_matching_units
from attncalc.train.loop import SafeCheckpoints
from attncalc.train.module import TrainingModule
from attncalc.train.processes import connect
from attncalc.train.start import new_potential
from attncalc.train.step import PENALTIES, Loss, loss
from attncalc.train.step import predict as predict_for_loss
from attncalc.train.training import _without_folders, read_split


def test_what_is_left_behind(finished, recipe):
    done, output = finished
    assert {path.name for path in output.iterdir()} == {
        *("tiny.safetensors", "metrics.csv", "learning_curve.png", "last.ckpt", "recipe.json")
    }
    assert done.model == output / "tiny.safetensors"
    rows = list(csv.DictReader((output / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    assert [float(r["validation_loss"]) for r in rows] == [
        r["validation_loss"] for r in done.history
    ]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    assert (output / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "recipe.json").read_text())["name"] == "tiny"


def test_a_recipe_may_leave_epochs_and_batches_to_the_data(
    recipe, parts, tmp_path, caplog, monkeypatch
):
    n_atoms = sum(len(atoms) for atoms in parts[0].structures)
    monkeypatch.setattr(recipes, "ATOMS_IN_ALL", 3 * n_atoms)
    monkeypatch.setattr(recipes, "FEWEST_EPOCHS", 1)
    silent = dataclasses.replace(recipe, epochs=None, batch_size=None)
    with caplog.at_level(logging.INFO):
        done = train.fit(silent, *parts[:2], tmp_path / "run")
    size = min(5, round(100 * len(parts[0]) / n_atoms))
    assert len(done.history) == 3
    assert done.history[-1]["step"] == 3 * -(-len(parts[0]) // size)
    plan = f"3 epochs, {done.history[-1]['step']:.0f} steps of {size} structures in all"
    assert any(plan in line and "by steps as the first ones" in line for line in caplog.messages)
    assert "these widths are not multiples of 16: num_features / num_heads = 4, " in caplog.text
    assert train.fit(silent, *parts[:2], tmp_path / "run").history == done.history  # is the same


def test_the_model_knows_the_numbers_of_its_data(finished, recipe, parts):
    potential = finished[0].potential
    measured = data.avg_num_neighbors(parts[0], recipe.config["cutoff"])
    assert potential.network.config.avg_num_neighbors == measured
    assert potential.species == (28, 29)
    # least squares of what the untrained network leaves of the labels
    start = new_potential(recipe, parts[0])
    assert torch.equal(potential.reference_energies, start.reference_energies)
    left = parts[0].energies - predict(start, parts[0]).energies
    counts = [[(s.numbers == z).sum() for s in parts[0].structures] for z in (28, 29)]
    assert np.abs(np.array(counts) @ left).max() < 1e-3  # nothing that elements could explain


def test_the_best_model_has_the_validation_loss_of_its_epoch(finished, recipe, parts):
    """Recomputed from the file; with it, the averaged weights are what is saved."""
    done, _ = finished
    best = min(done.history, key=lambda row: row["validation_loss"])
    potential = load(done.model)
    batch = join(samples(parts[1], potential.cutoff, potential.species))
    weights = Loss(
        recipe.energy_weight, recipe.force_weight, recipe.stress_weight, PENALTIES[recipe.penalty]
    )
    with torch.enable_grad():
        value = loss(predict_for_loss(potential, batch.graphs, batch.volume), batch, weights)
    assert value.item() == pytest.approx(best["validation_loss"], rel=1e-5)
    found = errors(predict(potential, parts[1]), parts[1])
    assert 1e3 * found.energy_mae == pytest.approx(best["energy_mae_meV"], rel=1e-5)
    assert 1e3 * found.energy_per_atom_mae == pytest.approx(
        best["energy_mae_meV_per_atom"], rel=1e-5
    )
    assert 1e3 * found.force_mae == pytest.approx(best["force_mae_meV_per_A"], rel=1e-5)
    assert 1e3 * found.stress_mae == pytest.approx(best["stress_mae_meV_per_A3"], rel=1e-5)


def test_only_trainings_on_stresses_tell_their_errors(recipe, parts, tmp_path):
    short = dataclasses.replace(recipe, epochs=1, stress_weight=0.0)
    done = train.fit(short, *parts[:2], tmp_path)
    assert not [name for name in done.history[0] if "stress" in name]


def test_rows_of_an_earlier_version_lack_columns(tmp_path):
    callbacks.write_table([{"epoch": 1}, {"epoch": 2, "new": 0.5}], tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,new", "1,", "2,0.5"]


def test_the_averaged_weights_are_saved(recipe, parts, tmp_path, monkeypatch):
    """The average of the weights after every step, by the recursion, done here by hand."""
    after_step = []
    step = TrainingModule.training_step

    def recorded(module, batch, k):
        step(module, batch, k)
        after_step.append(torch.cat([p.detach().flatten() for p in module.trained]))

    monkeypatch.setattr(TrainingModule, "training_step", recorded)
    once = dataclasses.replace(recipe, epochs=1)
    potential = train.fit(once, *parts[:2], tmp_path).potential
    average = after_step[0]
    for n, weights in enumerate(after_step[1:], start=1):
        decay = min(recipe.ema_decay, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    saved = torch.cat([p.flatten() for p in potential.parameters()])
    torch.testing.assert_close(saved, average, rtol=1e-6, atol=1e-7)
    assert (saved - after_step[-1]).abs().max() > 1e-5


def test_a_short_run_saves_what_it_learnt(recipe, parts, tmp_path, monkeypatch):
    """With the defaults of long runs: 50 steps of averages over 1000, and 200 to get warm."""
    by_default = {f.name: f.default for f in dataclasses.fields(train.Recipe)}
    kept = {name: by_default[name] for name in ("ema_decay", "warmup_steps")}
    short = dataclasses.replace(recipe, epochs=10, **kept)
    last = []
    step = TrainingModule.training_step

    def recorded(module, batch, k):
        step(module, batch, k)
        last[:] = [torch.cat([p.detach().flatten() for p in module.trained])]

    monkeypatch.setattr(TrainingModule, "training_step", recorded)
    done = train.fit(short, *parts[:2], tmp_path)
    start, saved = (
        torch.cat([p.detach().flatten() for p in potential.parameters()])
        for potential in (new_potential(short, parts[0]), done.potential)
    )
    assert (saved - start).norm() > 0.6 * (last[0] - start).norm()
    assert max(row["learning_rate"] for row in done.history) > 0.4 * recipe.learning_rate


def test_what_is_not_checked_and_not_learnt_is_said(recipe, dataset, tmp_path, caplog):
    far = [s.copy() for s in dataset.structures]
    for k, atoms in enumerate(far):
        atoms.rattle(0.5, seed=k)
    apart = dataclasses.replace(dataset, structures=tuple(far), splits={})
    write(tmp_path / "cells.extxyz", apart)
    plain = dataclasses.replace(recipe, data=str(tmp_path / "cells.extxyz"), stress_weight=0.0)
    with caplog.at_level(logging.INFO):
        read_split(plain)
    assert "cells.extxyz: no structures are close enough to check energies" in caplog.text
    assert "has stresses, but the recipe's stress_weight is 0" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        read_split(dataclasses.replace(plain, stress_weight=1.0))
    assert "has stresses" not in caplog.text
    assert "cells.extxyz: too few cells differ by a small strain to check energies" in caplog.text


def test_global_random_numbers_stay_as_they_are(recipe, parts, tmp_path):
    before = torch.get_rng_state()
    train.fit(dataclasses.replace(recipe, epochs=1), *parts[:2], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def killed_at(moment: str, output: Path, said: Path, *fitted: object) -> None:
    """A training that ends itself without warning, as by kill -9 or a power cut; call it in a fork.

    Args:
        moment: one of those below.
        output: folder of the training.
        said: file for all that it writes to the terminal.
        fitted: other arguments of `train.fit`.
    """
    says_all_to(said)
    calls = 0

    def kill_at(n: int, function):
        def counted(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return counted

    steps = {"middle of epoch 3": 13, "behind step 2 of epoch 3": 13, "behind step 3 of epoch 1": 4}
    if moment in steps:
        if moment.startswith("behind"):
            callbacks.CHECKPOINT_EVERY = 0
        TrainingModule.training_step = kill_at(steps[moment], TrainingModule.training_step)
    else:
        replace, replace_checkpoint = os.replace, kill_at(2, os.replace)

        def is_checkpoint(source, target):
            (replace_checkpoint if str(target).endswith("last.ckpt") else replace)(source, target)

        os.replace = is_checkpoint
    train.fit(*fitted, output)


@pytest.mark.parametrize(
    ("moment", "epochs_done", "steps_done"),
    [
        ("middle of epoch 3", 2, 0),
        ("end of writing checkpoint 2", 1, 0),
        ("behind step 2 of epoch 3", 2, 2),
        ("behind step 3 of epoch 1", 0, 3),
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    finished, recipe, parts, tmp_path, moment, epochs_done, steps_done
):
    output, said = tmp_path / "run", tmp_path / "said"
    killed = multiprocessing.get_context("fork").Process(
        target=killed_at, args=(moment, output, said, recipe, *parts[:2])
    )
    killed.start()
    assert ends_in_time(killed)
    assert killed.exitcode == -signal.SIGKILL, said.read_text()
    assert said.read_text() == ""
    checkpoint = torch.load(output / "last.ckpt", weights_only=True)
    assert [row["epoch"] for row in checkpoint["history"]] == list(range(1, epochs_done + 1))
    assert len(checkpoint["train_losses"]) == steps_done

    resumed = train.fit(recipe, *parts[:2], output)
    assert not list(output.glob(".*")), "the half-written file is gone"
    whole, whole_output = finished
    ours, theirs = resumed.potential.state_dict(), whole.potential.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same_bits(output, whole_output)


@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize(("which", "n_steps"), [(signal.SIGINT, 2), (signal.SIGTERM, 3)])
def test_ctrl_c_says_how_to_go_on(which, n_steps, recipe, data_file, tmp_path, monkeypatch):
    """So does SIGTERM, which lets the step end.

    No model is tested, no card written; the second call goes on.
    """
    output, steps = tmp_path / "run", []
    step = TrainingModule.training_step

    def interrupted(module, batch, k):
        steps.append(k)
        if len(steps) == 8:
            signal.raise_signal(which)
        step(module, batch, k)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            train.run(recipe, output, data=data_file)
    assert str(caught.value) == (
        f"1 of 4 epochs and {n_steps} steps are done; the same command continues from there "
        f"({output})"
    )
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (output / "tiny.md").exists()
    done = train.run(recipe, output, data=data_file)
    assert [row["epoch"] for row in done.history] == [1, 2, 3, 4]
    assert (output / "tiny.md").exists()


@pytest.mark.parametrize("wrong", [{"name": "mine"}, "mine.yaml"])
def test_other_types_of_recipe(wrong):
    with pytest.raises(TypeError, match=f"must be a Recipe, got {type(wrong).__name__}: Recipe.fr"):
        train.run(wrong)


def test_structures_that_are_no_data_set(recipe, parts, tmp_path):
    with pytest.raises(TypeError, match=r"validation must be a Dataset, got list: .*from_ase"):
        train.fit(recipe, parts[0], list(parts[1].structures), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _InterruptsPickle(type):
    """Ctrl-C at the moment in which pickle ignores every exception."""

    def __setattr__(cls, name, value):
        signal.raise_signal(signal.SIGINT)
        super().__setattr__(name, value)


class _Interrupting(metaclass=_InterruptsPickle):
    pass


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_is_not_lost_in_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        SafeCheckpoints().save_checkpoint({"state": _Interrupting()}, tmp_path / "last.ckpt")


def test_a_gradient_that_is_not_finite_stops_the_run(recipe, parts, tmp_path, monkeypatch):
    def broken_step(*_, **__):
        return lambda batch: (torch.tensor(1.0), [torch.full((1,), float("nan"))]), None

    monkeypatch.setattr(training, "select_step", broken_step)
    with pytest.raises(FloatingPointError, match="gradient is not finite in epoch 1: lower"):
        train.fit(recipe, *parts[:2], tmp_path)


def test_run_writes_a_card_and_tests_again_when_finished(
    recipe, data_file, tmp_path, monkeypatch, caplog
):
    recipe = dataclasses.replace(recipe, level_of_theory="EMT", epochs=2)
    output = tmp_path / "run"
    done = train.run(recipe, output, data=data_file, command="attncalc train /home/me/tiny.yaml")
    card = (output / "tiny.md").read_text()
    for private in ("/home", str(data_file.parent)):
        assert private not in card
        assert private.encode() not in done.model.read_bytes()
    info = load(done.model).training_info
    assert (info["n_train"], info["n_validation"], info["n_test"]) == (14, 5, 5)
    assert (info["total_charges"], info["closed_shells"]) == ([0, 0], False)
    for text in (
        *("# tiny", "| elements | Ni Cu |", "cells.extxyz", "| level of theory | EMT |"),
        *("14 training, 5 validation, 5 test", "`attncalc train tiny.yaml`", "2 epochs"),
        f"| energy | {1e3 * info['test_errors']['energy_mae']:.2f} |",
        f"| force | {1e3 * info['test_errors']['force_mae']:.2f} |",
        f"| stress | {1e3 * info['test_errors']['stress_mae']:.2f} |",
    ):
        assert text in card
    (output / "tiny.md").unlink()
    (output / "learning_curve.png").unlink()
    monkeypatch.setattr(TrainingModule, "training_step", None)
    with caplog.at_level(logging.INFO):
        again = train.run(recipe, output, data=data_file, command="attncalc train tiny.yaml")
    assert "has done its 2 epochs: nothing left to train" in caplog.text
    assert again.history == done.history
    assert (output / "tiny.md").read_text() == card
    assert (output / "learning_curve.png").exists()
    assert "baseline" not in card
    assert not load(done.model).baseline


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("attncalc train a.yaml --data /home/me/b.npz -o runs/c", "--data b.npz -o runs/c"),
        ("attncalc train /home/me/a.yaml --data=/home/me/b.npz", "train a.yaml --data=b.npz"),
        ("attncalc train a.yaml --data '/home/my self/my b.npz'", "--data 'my b.npz'"),
        ("attncalc train a.yaml -o/home/me/c", "train a.yaml -oc"),
        ("attncalc train ../a.yaml  --data b/c.npz", "train ../a.yaml  --data b/c.npz"),
    ],
)
def test_commands_without_private_folders(typed, told):
    """Cards and model files are made to be handed on."""
    assert _without_folders(typed).endswith(told)


def test_a_command_that_no_shell_can_read():
    with pytest.raises(ValueError, match=r"command must be readable by a shell \(No closing quot"):
        _without_folders("it's")


def test_run_looks_at_the_data_too(recipe, dataset, tmp_path):
    """Other numbers under the same file name; then the old ones under another name."""
    once = dataclasses.replace(recipe, epochs=1)
    for name, content in (("a", dataset), ("b", dataset[::-1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "cells.extxyz", content)
    done = train.run(once, tmp_path / "run", data=tmp_path / "a/cells.extxyz")
    with pytest.raises(ValueError, match=r"run holds a run on other data"):
        train.run(once, tmp_path / "run", data=tmp_path / "b/cells.extxyz")
    (tmp_path / "a/cells.extxyz").rename(tmp_path / "renamed.extxyz")
    again = train.run(once, tmp_path / "run", data=tmp_path / "renamed.extxyz")
    assert again.history == done.history


def test_a_damaged_checkpoint_is_named(recipe, parts, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match=r"last.ckpt: the checkpoint is damaged \("):
        train.fit(recipe, *parts[:2], tmp_path)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("torch_writes", [True, False])
def test_a_checkpoint_executes_nothing(recipe, parts, tmp_path, torch_writes):
    content = {"history": [], "bomb": Bomb(tmp_path / "executed")}
    if torch_writes:
        torch.save(content, tmp_path / "last.ckpt")
    else:
        (tmp_path / "last.ckpt").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"last.ckpt: the checkpoint is damaged \("):
        train.fit(recipe, *parts[:2], tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_separate_test_file(recipe, dataset, data_file, tmp_path):
    write(tmp_path / "test.extxyz", dataset[20:])
    separate = dataclasses.replace(
        recipe,
        epochs=1,
        data=str(data_file),
        test_data="test.extxyz",
        folder=str(tmp_path),
        split={"sizes": [14, 5]},
    )
    done = train.run(separate, tmp_path / "run")
    assert done.potential.training_info["n_test"] == 4


def test_a_test_file_of_another_level_of_theory_is_refused(recipe, parts, tmp_path):
    known, other = (dataclasses.replace(parts[0], level_of_theory=one) for one in ("PBE", "HF"))
    with pytest.raises(ValueError, match=r"the test set has another level of theory .* \(HF, not"):
        check_data(recipe, connect(), tmp_path, known, parts[1], other)
    check_data(recipe, connect(), tmp_path, known, parts[1], known)
    check_data(recipe, connect(), tmp_path, parts[0], parts[1], other)


def test_a_test_file_of_another_label_set_is_told(recipe, parts, tmp_path, caplog):
    other = dataclasses.replace(parts[0], labels="REF")
    check_data(recipe, connect(), tmp_path, *parts[:2], other)
    assert "the test set has another label set than the training set (REF, not defa" in caplog.text


def test_energies_that_cannot_be_learnt_are_told(caplog):
    """They would decide which epoch is the best."""
    known, other = (
        data.Dataset(structures=(Atoms("CO2"), Atoms(more)), energies=np.zeros(2))
        for more in ("C2O4", "CO")
    )
    data_checks._warn_undetermined(known, known, "a.xyz: the validation set")
    assert not caplog.messages
    data_checks._warn_undetermined(known, other, "a.xyz: the test set")
    assert caplog.messages[0].startswith(
        "a.xyz: the test set: 1 structure of compositions that are no combination of those of the "
        "training set, the first is CO: their energies cannot be learnt"
    )


def test_a_starting_model_of_the_same_method_knows_the_energies(recipe, parts):
    start = dataclasses.replace(recipe, start_from="so3krates-organic")
    theirs = dataclasses.replace(parts[0], level_of_theory="SO3LR (PBE0+MBD)")
    other = dataclasses.replace(parts[0], level_of_theory="EMT")
    assert data_checks.energies_are_known(dataclasses.replace(start, level_of_theory=""), theirs)
    assert not data_checks.energies_are_known(start, other)
    assert not data_checks.energies_are_known(recipe, theirs)


def write_splits(path: Path, dataset: data.Dataset, first: str, second: str) -> Path:
    """Write a file whose first 18 structures are in one split, and the others in another."""
    write(path, dataset)
    frames = ase.io.read(path, ":")
    for k, atoms in enumerate(frames):
        atoms.info["split"] = first if k < 18 else second
    ase.io.write(path, frames, format="extxyz")
    return path


def test_no_test_set_among_named_splits(recipe, dataset, tmp_path):
    path = write_splits(tmp_path / "cells.extxyz", dataset, "bulk", "slab")
    split = {"train": "bulk", "n_validation": 4, "test": None}
    changed = dataclasses.replace(recipe, epochs=1, data=str(path), split=split)
    training, validation, test = read_split(changed)
    assert (len(training), len(validation), test) == (14, 4, None)
    done = train.run(changed, tmp_path / "run")
    assert done.potential.training_info["test_errors"] is None


def test_validation_structures_of_a_named_split_may_be_drawn(recipe, dataset, tmp_path):
    path = write_splits(tmp_path / "cells.extxyz", dataset, "training", "test")
    named = {"train": "training", "n_validation": 4, "test": "test"}

    def energies(**more) -> list[np.ndarray]:
        changed = dataclasses.replace(recipe, data=str(path), split=named | more)
        return [part.energies for part in read_split(changed)]

    np.testing.assert_allclose(energies()[1], dataset.energies[14:18])
    training, validation, test = energies(shuffle=True)
    assert sorted([*training, *validation]) == sorted(dataset.energies[:18])
    assert list(validation) != list(dataset.energies[14:18])
    np.testing.assert_allclose(test, dataset.energies[18:])


def test_sizes_may_be_taken_in_order(recipe, dataset, tmp_path):
    write(tmp_path / "cells.extxyz", dataset)
    split = {"sizes": [14, 5, "rest"], "shuffle": False}
    ordered = dataclasses.replace(recipe, data=str(tmp_path / "cells.extxyz"), split=split)
    found = [part.energies for part in read_split(ordered)]
    for part, whole in zip(found, (slice(14), slice(14, 19), slice(19, None)), strict=True):
        np.testing.assert_allclose(part, dataset.energies[whole])
    split["shuffle"] = True
    drawn = [part.energies for part in read_split(dataclasses.replace(ordered, split=split))]
    assert list(drawn[2]) != list(found[2])


def test_no_test_set_no_errors(recipe, data_file, tmp_path):
    two = dataclasses.replace(recipe, epochs=1, split={"sizes": [14, 5]})
    done = train.run(two, tmp_path / "run", data=data_file)
    assert done.potential.training_info["test_errors"] is None
    assert "Errors" not in (tmp_path / "run" / "tiny.md").read_text()


def test_a_missing_data_file_says_where_it_was_looked_for(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data file cells.extxyz is not in /") as caught:
        train.run(dataclasses.replace(recipe, folder=str(tmp_path)), tmp_path / "run")
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match=f"data file b.npz is not in {tmp_path}"):
        train.run(recipe, tmp_path / "run", data=tmp_path / "b.npz")


@pytest.mark.parametrize("role", ["training", "validation"])
def test_data_without_forces_are_refused(recipe, parts, tmp_path, role):
    bare = {
        role: dataclasses.replace(part, forces=None)
        for role, part in zip(("training", "validation"), parts, strict=False)
    }
    chosen = {"training": parts[0], "validation": parts[1], role: bare[role]}
    with pytest.raises(ValueError, match=f"^cells.extxyz: the {role} set has no forces: training"):
        train.fit(recipe, **chosen, output=tmp_path)


def test_a_stress_weight_without_stress_is_refused(recipe, parts, tmp_path):
    bare = dataclasses.replace(parts[0], stress=None)
    with pytest.raises(ValueError, match="the training set has no stress, but the recipe's"):
        train.fit(recipe, bare, parts[1], tmp_path)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_a_charge_that_the_network_would_ignore_is_refused(recipe, parts, tmp_path, role):
    chosen = {"training": parts[0], "validation": parts[1]}
    chosen[role] = with_electrons(chosen[role], charge=1)
    with pytest.raises(ValueError) as caught:
        train.fit(recipe, **chosen, output=tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"cells.extxyz: structure 2 of the {role} set: total charge +1 e: ")
    assert message.endswith("use a model with charge input (config: {embed_charge: true})")
    assert "\n" not in message
    assert not (tmp_path / "run").exists()
    if role == "validation":
        return
    # with an input for it, it is an input like others
    reads = dataclasses.replace(recipe, epochs=1, config={**recipe.config, "embed_charge": True})
    assert train.fit(reads, **chosen, output=tmp_path / "run").potential.network.reads_charge


def test_a_spin_that_the_network_would_ignore_is_refused(recipe, parts, tmp_path):
    lowest = 1 + int(parts[0].structures[2].numbers.sum()) % 2
    strange = with_electrons(parts[0], spin=lowest + 2)
    message = rf"^cells.extxyz: structure 2 of the training set: multiplicity {lowest + 2}: "
    with pytest.raises(ValueError, match=message):
        train.fit(recipe, strange, parts[1], tmp_path)


def test_a_charge_in_the_test_set_is_refused_before_training(recipe, parts, data_file, tmp_path):
    write(tmp_path / "test.extxyz", with_electrons(parts[2], charge=-1))
    separate = dataclasses.replace(
        recipe, folder=str(tmp_path), test_data="test.extxyz", split={"sizes": [14, 5]}
    )
    random_state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"^test.extxyz: structure 2 of the test set: total ch"):
        train.run(separate, tmp_path / "run", data=data_file)
    assert not (tmp_path / "run").exists()
    assert torch.equal(torch.get_rng_state(), random_state)


def with_electrons(dataset: data.Dataset, **info: int) -> data.Dataset:
    """The same with charge or spin of structure 2."""
    structures = [atoms.copy() for atoms in dataset.structures]
    structures[2].info.update(info)
    return dataclasses.replace(dataset, structures=structures)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_an_empty_split_is_refused(recipe, parts, tmp_path, role):
    chosen = {"training": parts[0], "validation": parts[1], role: parts[0][:0]}
    with pytest.raises(ValueError, match=f"^cells.extxyz: the {role} set is empty"):
        train.fit(recipe, **chosen, output=tmp_path)


def test_an_element_beyond_the_training_set_is_refused(recipe, parts, tmp_path, dataset):
    foreign = parts[2].structures[0].copy()
    foreign.numbers[0] = 47
    strange = dataclasses.replace(parts[2], structures=(foreign, *parts[2].structures[1:]))
    with pytest.raises(ValueError, match=r"^cells.extxyz: the validation set has .* \(Ag\)"):
        train.fit(recipe, parts[0], strange, tmp_path)
    write(tmp_path / "cells.extxyz", dataset[:19])
    write(tmp_path / "test.extxyz", strange)
    apart = dataclasses.replace(
        recipe, folder=str(tmp_path), test_data="test.extxyz", split={"sizes": [14, 5]}
    )
    with pytest.raises(ValueError, match=r"^test.extxyz: the test set has .* \(Ag\)"):
        train.run(apart, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_units_that_do_not_match_stop_a_training(recipe, dataset, tmp_path):
    """Before it begins; but who trains on forces alone may have any energies."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(40):
        atoms = dataset.structures[0].copy()
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
        frames.append(atoms)
    right = data.from_ase(frames, source="cells.extxyz")
    wrong = dataclasses.replace(right, energies=right.energies * 23.0605)
    message = (
        "^cells.extxyz: .* energies in kcal/mol beside forces in eV/Angstrom[?] .*or train on one"
    )
    with pytest.raises(ValueError, match=message):
        train.fit(recipe, wrong[:30], wrong[30:], tmp_path)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "cells.extxyz", wrong)
    from_file = dataclasses.replace(recipe, folder=str(tmp_path), split={"sizes": [6, 34]})
    with pytest.raises(ValueError, match=message):  # found in the whole, not in six structures
        train.run(from_file, tmp_path / "run")
    require_matching_units(recipe, right)
    require_matching_units(recipe, wrong[:6])
    for weight in ("energy_weight", "force_weight"):
        require_matching_units(dataclasses.replace(recipe, **{weight: 0.0}), wrong)


def test_a_delta_model_names_its_baseline_from_the_first_epoch(
    recipe, data_file, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(recipe, baseline="pair potentials", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_describe", None)
        with pytest.raises(TypeError):  # stopped before anything is described
            train.run(recipe, tmp_path / "run", data=data_file, command="attncalc train tiny.yaml")
    assert load(tmp_path / "run" / "tiny.safetensors").baseline == "pair potentials"
    done = train.run(recipe, tmp_path / "run", data=data_file, command="attncalc train tiny.yaml")
    assert load(done.model).baseline == "pair potentials"
    card = done.model.with_suffix(".md").read_text()
    assert "| **baseline** | pair potentials (delta model: add both) |" in card


def test_energies_without_weight_have_the_zero_of_the_labels(recipe, parts, tmp_path):
    alone = dataclasses.replace(recipe, energy_weight=0.0, epochs=2)
    done = train.fit(alone, *parts[:2], tmp_path)
    off = predict(done.potential, parts[0]).energies - parts[0].energies
    n_nickel = np.array([(atoms.numbers == 28).sum() for atoms in parts[0].structures])
    n_copper = np.array([(atoms.numbers == 29).sum() for atoms in parts[0].structures])
    # no numbers per element would reduce the errors any more
    assert abs(off @ n_nickel) < 1e-3
    assert abs(off @ n_copper) < 1e-3


def test_numbers_of_a_recipe_may_be_numpys(recipe, parts, tmp_path):
    numbers = {"epochs": np.int64(1), "split": {"sizes": [14, np.int64(5), 5]}}
    done = train.fit(dataclasses.replace(recipe, **numbers), *parts[:2], tmp_path)
    assert len(done.history) == 1


def test_atoms_that_are_all_alone_teach_nothing(recipe, tmp_path):
    pairs = [Atoms("Cu2", [[0, 0, 0], [0, 0, 9.0]])] * 4
    far = data.Dataset(pairs, np.zeros(4), [np.zeros((2, 3))] * 4, source="f")
    with pytest.raises(ValueError, match=r"^f: no two atoms of the training set are within the c"):
        train.fit(dataclasses.replace(recipe, stress_weight=0.0), far, far, tmp_path)


def changed(dataset: data.Dataset, k: int, **changes) -> data.Dataset:
    """The same with other attributes of structure k."""
    structures = [atoms.copy() for atoms in dataset.structures]
    for name, value in changes.items():
        setattr(structures[k], name, value)
    return dataclasses.replace(dataset, structures=structures)


@pytest.mark.parametrize("role", ["training", "validation", "test"])
def test_atoms_on_top_of_each_other_are_refused_before_training(
    recipe, parts, data_file, tmp_path, role
):
    sets = dict(zip(("training", "validation", "test"), parts, strict=True))
    positions = sets[role].structures[3].positions.copy()
    positions[2] = positions[0]
    sets[role] = changed(sets[role], 3, positions=positions)
    message = rf"^cells.extxyz: the {role} set: structure 3: atom 0 .* and atom 2 .* apart: remove"
    with pytest.raises(ValueError, match=message):
        check_data(recipe, connect(), tmp_path, *sets.values())


def test_electrons_that_the_model_will_refuse_are_refused_in_the_test_set(recipe, tmp_path):
    def molecules(*symbols: str, charge: int = 0) -> data.Dataset:
        frames = [Atoms(s, [[0, 0, 0], [0, 0, 2.3]], info={"charge": charge}) for s in symbols]
        zeros = [np.zeros((2, 3)) for _ in frames]
        energies = np.zeros(len(frames))
        return data.Dataset(frames, energies, zeros, source="pairs.extxyz")

    reads = dataclasses.replace(
        recipe, stress_weight=0.0, config={**recipe.config, "embed_charge": True}
    )
    closed = molecules("Ni2", "Cu2")
    check_data(reads, connect(), tmp_path, closed, closed, closed)
    for test, message in (
        (molecules("NiCu"), "the number of electrons is odd"),
        (molecules("Cu2", charge=2), "total charge [+]2 e: this model was trained on total char"),
    ):
        with pytest.raises(
            ValueError, match=f"^pairs.extxyz: structure 0 of the test set: {message}"
        ):
            check_data(reads, connect(), tmp_path, closed, closed, test)


def test_stresses_without_a_volume(recipe, parts, tmp_path, caplog):
    """They are not learnt from, and not tested."""
    flat = changed(parts[0], 4, cell=[9, 9, 0], pbc=[True, True, False])
    with pytest.raises(
        ValueError, match="training set has a stress of structure 4, which has no v"
    ):
        train.fit(recipe, flat, parts[1], tmp_path)
    test = changed(parts[2], 1, cell=[9, 9, 0], pbc=[True, True, False])
    data.write_hdf5([*parts[:2]], tmp_path / "cells.h5")
    data.write_hdf5([test], tmp_path / "test.h5")
    split = {"sizes": [14, 5]}
    more = {"folder": str(tmp_path), "data": "cells.h5", "test_data": "test.h5", "split": split}
    for stream in (False, True):
        plain = dataclasses.replace(recipe, epochs=1, stress_weight=0.0, stream=stream, **more)
        done = train.run(plain, tmp_path / f"run-{stream}")
        assert done.potential.training_info["test_errors"]["force_mae"] > 0
        assert done.potential.training_info["test_errors"]["stress_mae"] is None
    assert "test.h5: stresses of the test set are ignored: structure 1 has no v" in caplog.text


def test_structures_of_several_sets_are_counted(recipe, dataset, tmp_path, caplog):
    twice = data.concatenate([dataset, dataset[:3], dataset[:1]])
    write(tmp_path / "cells.extxyz", twice)
    split = {"sizes": [14, 10, "rest"], "shuffle": False}
    once = dataclasses.replace(recipe, epochs=1, folder=str(tmp_path), split=split)
    done = train.run(once, tmp_path / "run")
    said = "4 structures of the test set are in the training or validation set too"
    assert [line for line in caplog.messages if line.endswith(" too")] == [f"cells.extxyz: {said}"]
    assert f"| **repeated** | {said} |" in done.model.with_suffix(".md").read_text()
    assert done.potential.training_info["repeated"] == {"validation": 0, "test": 4}
    charged = [atoms.copy() for atoms in dataset.structures]
    for atoms in charged:
        atoms.info["charge"] = 2
    ions = dataclasses.replace(dataset, structures=charged)
    assert count_repeated(dataset, ions, None) == {"validation": 0, "test": 0}


def test_a_test_file_needs_no_split_and_is_found_again(recipe, dataset, tmp_path, monkeypatch):
    frames = ase.io.read(write(tmp_path / "all.extxyz", dataset), ":")
    for atoms in frames:
        atoms.info["split"] = "train_01"
    ase.io.write(tmp_path / "cells.extxyz", frames[:20], format="extxyz")
    ase.io.write(tmp_path / "test.extxyz", frames[20:], format="extxyz")
    more = {"test_data": "test.extxyz", "split": {"n_validation": 5}}
    separate = dataclasses.replace(recipe, epochs=1, folder=str(tmp_path), **more)
    done = train.run(separate, tmp_path / "run")
    assert done.potential.training_info["n_test"] == 4
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(train.read_run(tmp_path / "run")[1]["test"]) == 4
    (tmp_path / "cells.extxyz").rename(tmp_path / "test.extxyz")
    with pytest.raises(FileNotFoundError):
        train.read_run(tmp_path / "run", with_test_data=False)
    found = train.read_run(tmp_path / "run", data=tmp_path / "test.extxyz", with_test_data=False)
    assert found[1]["test"] is None
    with pytest.raises(ValueError, match=r"test.extxyz: not the test set that"):
        train.read_run(tmp_path / "run", data=tmp_path / "test.extxyz")


def test_stresses_of_crystals_with_a_forgotten_pbc_are_refused(recipe, parts, tmp_path):
    forgotten = parts[0]
    for k in range(len(forgotten)):
        forgotten = changed(forgotten, k, pbc=False)
    message = r"^cells.extxyz: the training set has stresses, but no structure with a periodic dir"
    with pytest.raises(ValueError, match=message):
        train.fit(recipe, forgotten, parts[1], tmp_path)


def test_frames_of_a_trajectory_drawn_at_random_are_warned_of(recipe, dataset, tmp_path, caplog):
    frames = []
    for k in range(40):  # a vibration
        atoms = dataset.structures[0].copy()
        atoms.positions[0] += 0.4 * np.sin(k / 6)
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
        atoms.info["split"] = "training" if k < 34 else "test"
        frames.append(atoms)
    path = write(tmp_path / "md.extxyz", data.from_ase(frames, source="md.extxyz"))
    marked = [atoms for atoms in ase.io.iread(path)]
    for atoms, frame in zip(marked, frames, strict=True):
        atoms.info["split"] = frame.info["split"]
    ase.io.write(path, marked, format="extxyz")

    def warned(split: dict, **more: object) -> str:
        caplog.clear()
        read_split(dataclasses.replace(recipe, data=str(path), split=split, **more))
        return caplog.text

    drawn = warned({"sizes": [30, 5, "rest"]})
    assert "md.extxyz: successive structures are near copies, as in a trajectory" in drawn
    assert "at random for validation and test are copies of training structures" in drawn
    assert "(split: {sizes: [30, 5, rest], shuffle: false})" in drawn
    assert "near copies" not in warned({"sizes": [30, 5, "rest"], "shuffle": False})
    assert "at random for validation are copies" in warned({"sizes": [30, 5]})
    separate = warned({"sizes": [30, 5]}, test_data=str(path))
    assert "at random for validation are copies" in separate
    named = {"train": "training", "n_validation": 5, "test": "test"}
    assert "near copies" not in warned(named)
    shuffled = warned(named | {"shuffle": True})
    assert "at random for validation are copies" in shuffled
    assert "take them in order (leave out shuffle)" in shuffled
