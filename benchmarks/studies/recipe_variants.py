#!/usr/bin/env python
"""Effect of the settings of a recipe: one short training for each changed setting.

    python benchmarks/studies/recipe_variants.py ../shared/data/rmd17_ethanol.npz
    python benchmarks/studies/recipe_variants.py rmd17_ethanol.npz --epochs 100 --only "128 features"

The base is recipes/quick/so3krates-ethanol-quick.yaml, trained on the first 700 frames of train_01.
Errors are those on the other 300 frames at the best epoch. test_01 is not used, so that it remains
an independent test of the chosen settings. All trainings have the same small number of epochs, so
improvements of long trainings alone do not show. After every training, results are added to
results/recipe_variants.md and .json. Finished trainings are not repeated; stopped ones continue.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc.train import Recipe, fit
from attncalc.train.training import read_split

HERE = Path(__file__).resolve().parents[1]
RECIPE = HERE / "recipes" / "quick" / "so3krates-ethanol-quick.yaml"
SPLIT = {"train": "train_01", "n_validation": 300}
# settings of the training script of So3krates' authors, see
# recipes/so3krates-ethanol-published.yaml
THEIRS = {
    **{"penalty": "square", "energy_weight": 0.81, "force_weight": 0.99, "learning_rate": 1e-3},
    **{"schedule": "exponential", "warmup_steps": 0, "ema_decay": 0.0, "clip_norm": 1e9},
}
# name -> changed settings; those of the network are in "config"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "another seed": {"seed": 2},
    "a third seed": {"seed": 3},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "exponential schedule": {"schedule": "exponential"},
    "no average of the weights": {"ema_decay": 0.0},
    "mean squares": {"penalty": "square"},
    "energies ten times": {"energy_weight": 10.0},
    "batches of 2": {"batch_size": 2},
    "batches of 10": {"batch_size": 10},
    "training settings of the authors": THEIRS,
    "128 features": {"config": {"num_features": 128, "head_features": 128}},
    "2 layers": {"config": {"num_layers": 2}},
    "degrees 1 and 2": {"config": {"degrees": [1, 2]}},
    "a cutoff of 4": {"config": {"cutoff": 4.0}},
    "radial functions of PhysNet": {"config": {"radial_basis": "physnet"}},
    "no layer norms": {"config": {"layer_norms": []}},
}


def variant(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with the settings of a variant."""
    changes = dict(VARIANTS[name])
    changes["config"] = {**recipe.config, **changes.get("config", {})}
    file = f"{recipe.name}-{name.replace(' ', '-')}-{recipe.epochs}"
    return dataclasses.replace(recipe, name=file, **changes)


def trained(recipe: Recipe, name: str, runs: Path) -> dict:
    """Return errors on the validation frames, at the epoch with the smallest validation loss."""
    training, validation, _ = read_split(recipe)
    done = fit(recipe, training, validation, runs / recipe.name)
    best = min(done.history, key=lambda row: row["validation_loss"])
    return {
        "variant": name,
        "epochs": recipe.epochs,
        "parameters": sum(p.numel() for p in done.potential.parameters()),
        "minutes": done.history[-1]["wall_time_s"] / 60,
        "energy": best["energy_mae_meV"],
        "force": best["force_mae_meV_per_A"],
    }


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table in Markdown."""
    head = ["changed", "epochs", "parameters", "minutes", "energy MAE, meV", "force MAE, meV/Å"]
    cells = [
        [
            *(row["variant"], str(row["epochs"]), f"{row['parameters']:,}"),
            f"{row['minutes']:.1f}",
            *(f"{row[quantity]:.2f}" for quantity in ("energy", "force")),
        ]
        for row in rows
    ]
    lines = [
        "# What the settings of a recipe are worth",
        "",
        f"{machine}. So3krates on ethanol, MD17 labels, 700 frames of train_01, uncompiled, one "
        "thread; errors on the 300 others at the best epoch. Minutes count pauses, of a core that "
        "was shared. Each row changes something of "
        f"`recipes/quick/{RECIPE.name}`; the seeds show what chance does.",
        "",
        *table(head, cells),
        "",
        "`python benchmarks/studies/recipe_variants.py rmd17_ethanol.npz --epochs N` goes on from there.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="rmd17_ethanol.npz")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "variants")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"there is no file {options.data}")
    if options.epochs < 1:
        parser.error("--epochs must be positive")
    whole = Recipe.from_yaml(RECIPE)
    some = {"data": str(options.data.absolute()), "split": SPLIT, "compile": "never"}
    recipe = dataclasses.replace(whole, epochs=options.epochs, **some)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "recipe_variants.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in options.only:
        row = trained(variant(recipe, name), name, options.runs)
        same = [row[key] for key in ("variant", "epochs")]
        rows = [old for old in rows if [old["variant"], old["epochs"]] != same]
        rows = sorted(
            [*rows, row], key=lambda one: (one["epochs"], [*VARIANTS].index(one["variant"]))
        )
        content = {"machine": machine_name(), "rows": rows}
        write(file, json.dumps(content, indent=1) + "\n")
        write(options.output / "recipe_variants.md", markdown(rows, machine_name()))
    print((options.output / "recipe_variants.md").read_text())


if __name__ == "__main__":
    main()
