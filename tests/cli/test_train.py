"""attncalc train: recipes to models that every other command takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import read, write
from click.testing import Result
from command_line import Forked, attncalc, fails, labelled, succeeds, wait_until

from attncalc import load
from attncalc.model_file import NETWORKS
from attncalc.train.module import TrainingModule

RECIPE = """\
name: tiny
data: cu.extxyz
split: {sizes: [6, 2, 2]}
config: {cutoff: 4.0, num_features: 8, num_heads: 2, degrees: [1], num_layers: 1, num_basis: 4}
epochs: 2
batch_size: 2
compile: never
"""


def test_train() -> None:
    """One smoke: a run, its files, and a model that the other commands take."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE)
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "\r" not in result.output, "no progress bar in a pipe"
    assert result.stdout.splitlines()[-1] == "wrote out/tiny.safetensors"
    assert {"tiny.safetensors", "tiny.md", "metrics.csv"} <= {p.name for p in Path("out").iterdir()}
    assert "# tiny" in result.stdout
    succeeds("eval", "out/tiny.safetensors", "cu.extxyz")
    again = attncalc("train", "tiny.yaml", "-o", "out", "--json", "--quiet")  # is only tested again
    assert again.stderr == ""
    told = json.loads(again.stdout)
    assert told["model"] == "out/tiny.safetensors"
    assert told["epochs"] == 2
    mae = 1e3 * told["test_errors"]["force_mae"]
    assert f"| force | {mae:.2f} |" in Path(told["card"]).read_text()


def sleep_in_the_second_epoch() -> None:
    step = TrainingModule.training_step

    def until_the_second(module: TrainingModule, batch: Any, k: int) -> Any:
        if module.current_epoch == 1:
            time.sleep(1000)
        return step(module, batch, k)

    TrainingModule.training_step = until_the_second


def test_train_in_a_folder_of_another_process() -> None:
    """Refused until that is gone, by kill -9; then the training goes on."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE)
    train = ("train", "tiny.yaml", "-o", "out")
    process = Forked(*train, changed=sleep_in_the_second_epoch)
    checkpoint = Path("out/last.ckpt")
    try:
        wait_until(checkpoint.exists, process)
        left = {path: path.read_bytes() for path in Path("out").iterdir()}
        refused = attncalc(*train)
        assert refused.exit_code == 1
        assert refused.stderr.splitlines()[-1] == (
            f"Error: out: another run is still writing it (process {process.pid}): wait for its "
            "end, or stop it"
        )
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == left
    finally:
        process.kill()
        process.ended()
    assert len(load_history(checkpoint)) == 1
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    assert len(load_history(checkpoint)) == 2
    assert not Path("out/.lock").exists()


def load_history(checkpoint: Path) -> list[dict[str, float]]:
    return torch.load(checkpoint, weights_only=True)["history"]


def train_other(network: str, config: str, more: str = "") -> Result:
    """Into the folder "out", by the recipe above but for the network."""
    start, end = RECIPE.split("config: ")
    end = end.partition("\n")[2]
    Path("tiny.yaml").write_text(f"{start}config: {{{config}}}\n{end}network: {network}\n{more}")
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    return result


EQUIFORMER = "cutoff: 4.0, channels: [8, 4], num_layers: 1, num_basis: 4, head_features: 8"
SPHC = "cutoff: 3.0, nonlocal_cutoff: 5, num_features: 12, num_layers: 1, num_basis: 4"


@pytest.mark.parametrize(
    ("network", "config", "more"),
    [
        ("equiformer", EQUIFORMER, ""),
        ("equiformer", EQUIFORMER, "denoising: {}\n"),
        ("equiformer", EQUIFORMER, "stress_weight: 1.0\n"),
        ("so3krates-sphc", SPHC, ""),
        ("so3krates-sphc", SPHC, "stress_weight: 1.0\n"),
    ],
)
def test_every_command_takes_every_network(
    network: str, config: str, more: str, copper_file: str
) -> None:
    write("cu.extxyz", labelled(10))
    result = train_other(network, config, more)
    assert f"| network | {network}, " in result.stdout
    said = "physnet cutoff function, non-local attention up to 5 Å |" in result.stdout
    assert said == (network == "so3krates-sphc")
    assert "**fault**" not in result.stdout
    rows = result.stdout.splitlines()
    card = "\n".join(row for row in rows if not row.startswith("| command |"))  # of pytest, here
    assert ("denoising" in card) == ("denoising" in more)
    model = "out/tiny.safetensors"
    assert isinstance(load(model).network, NETWORKS[network][0])
    assert "FAILED" not in succeeds("verify", model)
    assert "force" in succeeds("eval", model, "cu.extxyz", "-o", "report.html")
    if more:  # the training was another, not the model
        return
    succeeds("verify", model, "--structure", copper_file)
    attncalc("relax", copper_file, "--model", model, "--cell", "--steps", 2, "-o", "relaxed.xyz")
    arguments = ("--ensemble", "nvt", "--steps", 4, "--every", 2, "-o", "run.xyz")
    # 2: a structure unlike the eight that it was trained on
    assert attncalc("md", copper_file, "--model", model, *arguments).exit_code in (0, 2)
    assert len(read("run.xyz", ":")) == 3


def test_the_card_names_faults() -> None:
    write("cu.extxyz", labelled(10))
    config = "cutoff: 4.0, channels: [4, 4], num_layers: 1, paths: all, cutoff_function: none"
    result = train_other("equiformer", config)
    assert (
        "| **fault** | energy and forces jump where an atom crosses the cutoff |" in result.stdout
    )
    assert (
        "| **fault** | a molecule and its mirror image have different energies |" in result.stdout
    )


def test_the_card_says_what_units_the_recipe_declared() -> None:
    """Wrong by a factor, energies and forces alike, nothing else can tell."""
    write("cu.extxyz", labelled(10))
    Path("tiny.yaml").write_text(RECIPE + "energy_unit: kcal/mol\n")
    result = attncalc("train", "tiny.yaml", "-o", "out")
    assert "| units | eV, Å (by the recipe, the data file has energies in kcal/mol) |" in (
        result.stdout
    )


def test_train_messages() -> None:
    assert fails("train", "no.yaml") == "Error: no such recipe: no.yaml"
    Path("tiny.yaml").write_text(RECIPE + "epoch: 3\n")
    assert "did you mean 'epochs'?" in fails("train", "tiny.yaml")
    Path("tiny.yaml").write_text(RECIPE)
    assert "cu.extxyz" in fails("train", "tiny.yaml")
