#!/usr/bin/env python
"""Test whether non-local attention learns what a local network cannot learn; write nonlocal.md.

    python benchmarks/studies/nonlocal_data.py        # first: the data, 5 minutes
    python benchmarks/studies/nonlocal.py             # trains four networks, half an hour, and compares

The recipes `recipes/nonlocal-*.yaml` come in pairs that differ only in `nonlocal_attention`:
weights, data, epochs and seed are the same. Finished trainings are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc import load
from attncalc.data import read
from attncalc.data.errors import predict
from attncalc.plots.style import BLUE, GREY, ORANGE, tidy
from attncalc.train import Recipe

HERE = Path(__file__).resolve().parents[1]
PAGE, PICTURE = HERE / "studies" / "nonlocal.md", HERE / "results" / "nonlocal.png"
# name of the network in recipes -> its name in the report
KINDS = {"local": "local", "window": "non-local"}
COLOURS = {"local": ORANGE, "window": BLUE}


def trained(name: str, folder: Path) -> Path:
    """Return the model of a recipe, which is trained first if its run is not finished."""
    run = folder / f"nonlocal-{name}"
    model, card = (run / f"nonlocal-{name}.{ending}" for ending in ("safetensors", "md"))
    recipe = HERE / "recipes" / f"nonlocal-{name}.yaml"
    if card.exists():
        wanted = Recipe.from_yaml(recipe).network_config(lambda: 1.0)
        if load(model).network.config != wanted:
            sys.exit(f"{run}: trained by another recipe than {recipe.name}; move it away")
    else:
        data = folder / "nonlocal" / f"{name.partition('-')[0]}_train.extxyz"
        command = [sys.executable, "-m", "attncalc", "train", str(recipe), "--data", str(data)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # small networks gain nothing from two
        subprocess.run([*command, "-o", str(run)], check=True, env=alone)
    return model


def cumulenes(folder: Path) -> tuple[list[dict], dict]:
    """Return errors of the angle scan and of displaced frames by chain length; and the scans."""
    data = {
        part: read(folder / "nonlocal" / f"cumulene_{part}.extxyz") for part in ("profile", "test")
    }
    models = {kind: load(trained(f"cumulene-{kind}", folder)) for kind in KINDS}
    predicted = {
        kind: {part: predict(model, dataset) for part, dataset in data.items()}
        for kind, model in models.items()
    }
    rows, scans = [], {}
    sizes = {part: np.array([len(a) - 4 for a in d.structures]) for part, d in data.items()}
    for n in sorted(set(sizes["profile"])):
        chosen = np.flatnonzero(sizes["profile"] == n)
        atoms = data["profile"].structures[chosen[0]]
        truth = data["profile"].energies[chosen]
        row = {
            "molecule": f"C{n}H4",
            "length": float(np.ptp(atoms.positions[:, 2])),
            "height": float(np.ptp(truth)),
        }
        scans[row["molecule"]] = {"GFN2-xTB": (truth - truth.mean()).tolist()}
        displaced = np.flatnonzero(sizes["test"] == n)
        for kind in KINDS:
            profile = predicted[kind]["profile"].energies[chosen]
            # scans are compared by their shape, without a constant shift
            shape = profile - profile.mean()
            scans[row["molecule"]][kind] = shape.tolist()
            row[f"{kind}_profile"] = float(np.sqrt(np.mean((shape - truth + truth.mean()) ** 2)))
            errors = predicted[kind]["test"].energies[displaced] - data["test"].energies[displaced]
            row[f"{kind}_energy"] = float(np.abs(errors).mean())
            forces = [predicted[kind]["test"].forces[k] - data["test"].forces[k] for k in displaced]
            row[f"{kind}_force"] = float(np.abs(np.concatenate(forces)).mean())
        rows.append(row)
    return rows, scans


def polyynes(folder: Path) -> list[dict]:
    """Return errors of molecule and cation: energies, all forces, and forces at the far end."""
    data = read(folder / "nonlocal" / "polyyne_test.extxyz")
    protonated = np.array([len(atoms) == 13 for atoms in data.structures])
    rows = []
    for name, which in (("C10H2", ~protonated), ("C10H3+", protonated)):
        row: dict = {"molecule": name}
        for kind in KINDS:
            found = predict(load(trained(f"polyyne-{kind}", folder)), data)
            row[f"{kind}_energy"] = float(np.abs(found.energies - data.energies)[which].mean())
            errors = [found.forces[k] - data.forces[k] for k in np.flatnonzero(which)]
            row[f"{kind}_force"] = float(np.abs(np.concatenate(errors)).mean())
            # the lower end: carbons 0 to 2 and the first hydrogen, atom 10
            far = [error[[0, 1, 2, 10]] for error in errors]
            row[f"{kind}_far"] = float(np.abs(np.concatenate(far)).mean())
        rows.append(row)
    return rows


def draw(scans: dict) -> None:
    """Plot the scans of the angle, with a panel for each chain."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(scans), sharey=True)
    for axes, (name, curves) in zip(panels, scans.items(), strict=True):
        angles = np.linspace(0, 180, len(curves["GFN2-xTB"]))
        axes.plot(angles, curves["GFN2-xTB"], color=GREY, linewidth=4, label="GFN2-xTB")
        for kind, colour in COLOURS.items():
            axes.plot(angles, curves[kind], color=colour, label=KINDS[kind])
        axes.set_title(name)
        axes.set_xlabel("angle between the ends / degrees")
        axes.set_xticks([0, 90, 180])
        tidy(axes)
    panels[0].set_ylabel("energy - mean / eV")
    panels[0].legend(frameon=False, fontsize="small")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def page(of_cumulenes: list[dict], of_polyynes: list[dict], runs: list[dict]) -> str:
    """Return the report in Markdown."""

    def pair(row: dict, name: str) -> list[str]:
        return [f"{1e3 * row[f'{kind}_{name}']:.1f}" for kind in KINDS]

    def ratio(row: dict, name: str) -> str:
        return f"{row[f'local_{name}'] / row[f'window_{name}']:.1f}"

    head = ["molecule", "length / Å", "scan / meV"]
    head += ["local", "non-local", "ratio", "E local", "non-local", "F local", "non-local"]
    rows = [
        [
            row["molecule"],
            f"{row['length']:.1f}",
            f"{1e3 * row['height']:.0f}",
            *pair(row, "profile"),
            ratio(row, "profile"),
            *pair(row, "energy"),
            *pair(row, "force"),
        ]
        for row in of_cumulenes
    ]
    ends = [
        [
            row["molecule"],
            *pair(row, "energy"),
            *pair(row, "force"),
            *pair(row, "far"),
            ratio(row, "far"),
        ]
        for row in of_polyynes
    ]
    costs = [
        [run["name"], f"{run['parameters']:,}", f"{run['epochs']}", f"{run['minutes']:.0f}"]
        for run in runs
    ]
    end_head = ["molecule", "E local", "non-local", "F local", "non-local"]
    end_head += ["far end, local", "non-local", "ratio"]
    return "\n".join(
        [
            "# An effect across a long molecule",
            "",
            "Two networks of the same size, trained on the same frames for the same number of "
            "epochs: `so3krates-sphc` with and without non-local attention",
            "(`nonlocal_attention: window` or `none`; the window has no weights of its own).",
            "",
            *(f"* {run['name']}: {run['settings']}" for run in runs),
            "",
            "    python benchmarks/studies/nonlocal_data.py && python benchmarks/studies/nonlocal.py",
            "",
            "## Cumulenes: the angle between the ends",
            "",
            "The energy depends on the angle between the two CH2 groups, however long the chain. "
            "In an exactly linear chain, messages carry no direction across it, so a local network",
            "relates the directions of the two ends only by a pair of atoms that see one each: up "
            "to three cutoffs, 15 Å here, with any weights and any number of layers",
            "(`test_a_linear_chain_longer_than_three_cutoffs`). In C9H4 such pairs exist, but at "
            "the rim of their cutoffs, and nothing was learned from them. The window has no",
            "such end but its range.",
            "",
            "Energies at GFN2-xTB. *Scan*: RMS error of the shape of the energy over the angle of "
            "the relaxed molecule (never trained on), in meV, beside the",
            "height of the scan itself. E and F: MAE on displaced frames of the test set, meV and "
            "meV/Å.",
            "",
            *table(head, rows),
            "",
            "![scans of the angle](../results/nonlocal.png)",
            "",
            "## Polyyne: a proton at the other end",
            "",
            "C10H2 and C10H3+ from chains of the same distribution of shapes, total charge not "
            "given to either network. *Far end*: MAE of the forces on the last",
            "three carbons and the hydrogen of the end without the proton, 10 to 14 Å away from "
            "it. This is within reach of the local network (atoms halfway see both ends),",
            "so it could learn the effect; the table says what it did learn. E in meV, F in meV/Å.",
            "",
            *table(end_head, ends),
            "",
            "## What it cost",
            "",
            *table(["training", "parameters", "epochs", "wall time / min"], costs),
            "",
            f"{machine_name()}, one thread each, beside other work: times are no benchmark. Data "
            "made by `benchmarks/studies/nonlocal_data.py`, seed 0.",
            "",
        ]
    )


def cost(name: str, folder: Path) -> dict:
    potential = load(trained(name, folder))
    info, config = potential.training_info, potential.network.config
    far = "no non-local attention"
    if config.nonlocal_attention != "none":
        far = f"non-local attention up to {config.nonlocal_cutoff:g} Å"
    return {
        "name": name,
        "settings": f"cutoff {config.cutoff:g} Å, {config.num_layers} layers, {far}",
        "parameters": potential.n_parameters,
        "epochs": info["epochs"],
        "minutes": info["wall_time_s"] / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where runs are")
    folder = parser.parse_args().runs
    rows, scans = cumulenes(folder)
    ends = polyynes(folder)
    names = [f"{molecule}-{kind}" for molecule in ("cumulene", "polyyne") for kind in KINDS]
    runs = [cost(name, folder) for name in names]
    draw(scans)
    numbers = {"cumulenes": rows, "scans": scans, "polyynes": ends, "runs": runs}
    write(HERE / "results" / "nonlocal.json", json.dumps(numbers, indent=1) + "\n")
    write(PAGE, page(rows, ends, runs))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
