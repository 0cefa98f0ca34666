"""Trainings by several processes: the gradient of one, the weights of one, one end for all."""

import dataclasses
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import ends_in_time, says_all_to
from trainings import assert_same_bits, write

from attncalc import data, train
from attncalc.train.batches import BatchLoaders, join, samples, sizes_of
from attncalc.train.order import Shares
from attncalc.train.processes import Processes, _launched
from attncalc.train.start import new_potential
from attncalc.train.step import PENALTIES, Loss, eager_step, trace, traced_step

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    started = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **started},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ------------------------------------------------------------------------- the gradient, here


@pytest.fixture(scope="module")
def in_float64(recipe) -> train.Recipe:
    return dataclasses.replace(recipe, dtype="float64")


@pytest.mark.parametrize("penalty", ["norm", "square"])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_gradients_of_shares_add_up_to_that_of_the_step(in_float64, parts, penalty, n):
    """Shares have unequal numbers of atoms; of seven, some are empty."""
    potential = new_potential(in_float64, parts[0])
    of_each = samples(parts[0], potential.cutoff, potential.species)
    recipe = dataclasses.replace(in_float64, batch_size=5, penalty=penalty)
    weights = Loss(1.0, 0.7, 10.0, PENALTIES[penalty])
    step = eager_step(potential, weights)
    of_processes = [Shares(sizes_of(of_each), recipe, rank, n) for rank in range(n)]
    batches = BatchLoaders(of_each)
    for whole, *shares in zip(Shares(sizes_of(of_each), recipe), *of_processes, strict=True):
        taken = [k for share in shares for k in share.structures]
        assert sorted(taken) == sorted(whole.structures)
        value, gradient = step(join([of_each[k] for k in whole.structures]))
        found = [step(batch) for share in shares if (batch := batches[share]()) is not None]
        assert sum(v for v, _ in found).item() == pytest.approx(value.item(), rel=1e-12)
        for ours, theirs in zip(zip(*(g for _, g in found), strict=True), gradient, strict=True):
            torch.testing.assert_close(sum(ours), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.no_cover
def test_a_traced_step_reads_the_share(in_float64, parts):
    """Sizes of a share are no numbers in the trace."""
    potential = new_potential(in_float64, parts[0])
    of_each = samples(parts[0], potential.cutoff, potential.species)
    weights = Loss(1.0, 1.0, 10.0)
    graph = trace(potential, weights, join([of_each[k % 14] for k in range(9)]))
    step, plain = traced_step(potential, graph), eager_step(potential, weights)
    batch = dataclasses.replace(
        join(of_each[3:5]), shares=torch.tensor([0.4, 0.3], dtype=torch.float64)
    )
    (value, gradients), (theirs, plain_gradients) = step(batch), plain(batch)
    torch.testing.assert_close(value, theirs, rtol=1e-12, atol=1e-12)
    for ours, exact in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)
    assert value < 0.5 * plain(join(of_each[3:5]))[0]


# ---------------------------------------------------------------------------- who are we?


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, "env://")),
        # sbatch and salloc without srun: SLURM has started one process
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (
            {"SLURM_STEP_NODELIST": "gpu[07-09,12],cpu3", "SLURM_JOB_ID": "12345"},
            (1, 2, "tcp://gpu07:25796"),
        ),
        ({"SLURM_STEP_NODELIST": "a,b", "MASTER_PORT": "7"}, (1, 2, "tcp://a:7")),
        ({"SLURM_STEP_NODELIST": "n-1", "MASTER_ADDR": "there"}, (1, 2, "tcp://there:20001")),
    ],
)
def test_what_launchers_say(monkeypatch, said, found):
    known = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in [*known, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    if "SLURM_STEP_NODELIST" in said:
        said = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "1"} | said
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert _launched() == found


def test_what_several_processes_cannot(recipe):
    Processes(0, 1).check(recipe)
    Processes(2, 3).check(recipe)
    with pytest.raises(ValueError, match=r"batch_size 3 is the number .* of all 4 processes"):
        Processes(1, 4).check(recipe)
    config = {"cutoff": 3.4, "num_layers": 1}
    changes = {"network": "equiformer", "config": config, "stress_weight": 0.0, "denoising": {}}
    with pytest.raises(ValueError, match="denoising is trained by one process"):
        Processes(1, 2).check(dataclasses.replace(recipe, **changes))


# ------------------------------------------------------------------------- two real processes

# All of this happens in the same two processes: what one cannot do, both survive to be asked again.
JOB = """
import dataclasses, json, os, signal, sys, torch
torch.set_num_threads(1)
from attncalc import train
from attncalc.train import callbacks, training
from attncalc.train.module import TrainingModule

rank, said = int(os.environ["SLURM_PROCID"]), {}
step, check, split = TrainingModule.training_step, training.check_data, training.read_split
recipe = train.Recipe.from_yaml("tiny.yaml")

def attempt(name, *, at=None, what=None, **changes):
    calls = 0
    def counted(module, load, k):
        nonlocal calls
        calls += 1
        return step(module, (lambda: what(load())) if calls == at else load, k)
    TrainingModule.training_step = counted if at else step
    try:
        changed = dataclasses.replace(recipe, **changes)
        train.run(changed, name, command="attncalc train tiny.yaml")
        said[name] = "done"
    except BaseException as error:
        said[name] = [type(error).__name__, str(error)]
    with open(f"said-{rank}.json", "w") as file:
        json.dump(said, file)

def in_the_second(action):
    def do(batch):
        if rank == 1:
            action()
        return batch
    return do

def fail():
    raise ValueError("bad data")

def not_finite(batch):
    if batch is not None and rank == 1:
        batch.forces[0] = torch.nan
    return batch

def bad_file(*arguments):
    if rank == 1:
        raise OSError("no such disk here")
    return check(*arguments)

attempt("whole")
attempt("streamed", data="cells.h5", stream=True)
attempt("both precisions", dtype="float32", pair_terms=("zbl",))
attempt("failed", at=2, what=in_the_second(fail))
attempt("not finite", at=2, what=not_finite)
training.check_data = bad_file
attempt("bad file")
training.check_data = check
if rank == 1:
    training.read_split = lambda recipe: [part[::-1] for part in split(recipe)]
attempt("other data")
training.read_split = split
for which in (signal.SIGINT, signal.SIGTERM):
    attempt(which.name, at=8, what=in_the_second(lambda: signal.raise_signal(which)))
attempt("SIGINT")
signal.signal(signal.SIGTERM, lambda *_: None)
callbacks.CHECKPOINT_EVERY = 0
attempt("killed", at=13, what=in_the_second(lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.fixture(scope="module")
def folder(in_float64, dataset, tmp_path_factory) -> Path:
    """A recipe and its data."""
    folder = tmp_path_factory.mktemp("job")
    data.write_hdf5([data.read(write(folder / "cells.extxyz", dataset))], folder / "cells.h5")
    content = {name: value for name, value in in_float64.as_dict().items() if value is not None}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    (folder / "job.py").write_text(JOB)
    return folder


def as_rank(folder: Path, slurm: dict[str, str], port: int) -> None:
    """Do the job as one of two processes; call it in a fork."""
    says_all_to(folder / f"output-{slurm['SLURM_PROCID']}")
    os.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        os.environ.pop(name, None)
    os.environ |= slurm | {"MASTER_PORT": str(port)}
    runpy.run_path("job.py", run_name="__main__")


@pytest.fixture(scope="module")
def said(folder) -> list[dict]:
    """What the two processes report, which find what srun says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    ranks = [
        multiprocessing.get_context("fork").Process(
            target=as_rank,
            args=(folder, {**slurm, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}, port),
        )
        for k in (0, 1)
    ]
    for process in ranks:
        process.start()
    in_time = [ends_in_time(process) for process in ranks]
    outputs = [(folder / f"output-{k}").read_text() for k in (0, 1)]
    assert in_time == [True, True], outputs
    assert [process.exitcode for process in ranks] == [0, -signal.SIGKILL], outputs
    assert outputs == ["", ""]
    return [json.loads((folder / f"said-{k}.json").read_text()) for k in (0, 1)]


@pytest.fixture(scope="module")
def alone(folder) -> train.Training:
    """The same training by one process."""
    recipe = train.Recipe.from_yaml(folder / "tiny.yaml")
    return train.run(recipe, folder / "alone", command="attncalc train tiny.yaml")


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_two_processes_train_what_one_does(said, folder, alone):
    assert [of_rank["whole"] for of_rank in said] == ["done", "done"]
    two, one = checkpoint(folder / "whole"), checkpoint(folder / "alone")
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        for name in theirs.keys() - {"wall_time_s"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-11), name
    for part in ("state_dict", "current_model_state"):
        for name, theirs in one[part].items():
            torch.testing.assert_close(two[part][name], theirs, rtol=1e-10, atol=1e-11)
    written = {path.name for path in (folder / "alone").iterdir()}
    assert {path.name for path in (folder / "whole").iterdir()} == written
    cards = [(folder / name / "tiny.md").read_text().splitlines() for name in ("whole", "alone")]
    assert [a for a, b in zip(*cards, strict=True) if a != b and "wall time" not in a] == []


@pytest.mark.slow
def test_two_processes_read_their_shares_from_a_file(said, folder):
    assert [of_rank["streamed"] for of_rank in said] == ["done", "done"]
    assert_same_bits(folder / "streamed", folder / "whole")


@pytest.mark.slow
def test_two_processes_train_a_pair_term_in_double_precision(said, folder):
    """Its parameters stand beside those of a network in single precision."""
    assert [of_rank["both precisions"] for of_rank in said] == ["done", "done"]
    recipe = train.Recipe.from_yaml(folder / "tiny.yaml")
    recipe = dataclasses.replace(recipe, dtype="float32", pair_terms=("zbl",))
    train.run(recipe, folder / "both alone", command="attncalc train tiny.yaml")
    two, one = checkpoint(folder / "both precisions"), checkpoint(folder / "both alone")
    assert two["history"][0]["train_loss"] == pytest.approx(
        one["history"][0]["train_loss"], rel=1e-5
    )
    kinds = {value.dtype for name, value in two["state_dict"].items() if "pair_terms" in name}
    assert kinds == {torch.float64}
    for name, theirs in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempt", "first", "second"),
    [
        ("failed", ["SystemExit", "0"], ["ValueError", "bad data"]),
        ("bad file", ["SystemExit", "0"], ["OSError", "no such disk here"]),
        (
            "other data",
            ["SystemExit", "0"],
            [
                "ValueError",
                "cells.extxyz: process 1 of this training has other data than the first",
            ],
        ),
        ("not finite", ["FloatingPointError", "the gradient is not finite"], ["SystemExit", "0"]),
        ("SIGTERM", ["KeyboardInterrupt", "1 of 4 epochs are done; the"], ["SystemExit", "0"]),
    ],
)
def test_what_one_cannot_do_ends_both_and_is_said_once(said, attempt, first, second):
    for of_rank, (kind, message) in zip(said, (first, second), strict=True):
        assert of_rank[attempt][0] == kind
        assert of_rank[attempt][1].startswith(message)


@pytest.mark.slow
def test_a_run_that_one_process_was_asked_to_end_goes_on(said, folder):
    """Its other one goes to the end of the step with it; afterwards, the same bits."""
    assert [of_rank["SIGINT"] for of_rank in said] == ["done", "done"]
    assert_same_bits(folder / "SIGINT", folder / "whole")


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on_by_the_same_command(said, folder):
    """Under torchrun, by the command line."""
    kind, message = said[0]["killed"]
    assert kind == "ConnectionError"
    assert message == (
        "another process of this training was killed or ended with an error: "
        "the same command continues from the last checkpoint"
    )
    written = checkpoint(folder / "killed")
    assert (len(written["history"]), len(written["train_losses"])) == (2, 2)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "-m", "attncalc", "train", "tiny.yaml", "-o", "killed"]
    process = launch(command, {}, folder)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert output.count("# tiny") == output.count("wrote killed/tiny.safetensors") == 1
    assert_same_bits(folder / "killed", folder / "whole")
