#!/usr/bin/env python
"""Learning curves of recipes: error against the number of training structures.

    python benchmarks/studies/learning_curve.py models/so3krates-ethanol.yaml --data rmd17_ethanol.npz
    python benchmarks/studies/learning_curve.py a.yaml b.yaml --data d.npz --frames 100 950 --epochs 200

Each recipe is trained on the first n structures of its training set, with its own validation and
test set. The order is drawn once, so that larger sets contain the smaller ones. All trainings of a
recipe take about as many steps as the one on the whole set, so that fewer structures are seen more
often. Interrupted trainings continue, and finished ones are not repeated. After every training,
results/learning_curve.md, .json and .svg are written. The exponents are those of error ~ n^-b by
least squares.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc.data.errors import errors, predict
from attncalc.plots.style import SERIES, legend_above, logarithmic, tidy
from attncalc.train import Recipe, fit
from attncalc.train.training import read_split

HERE = Path(__file__).resolve().parents[1]
FRAMES = (100, 200, 400, 950)
QUANTITIES = {"energy": "meV", "force": "meV/Å"}


def trained(recipe: Recipe, frames: Iterable[int], runs: Path) -> Iterator[dict]:
    """Yield number of structures, epochs, time and test errors of every training."""
    training, validation, test = read_split(recipe)
    if test is None:
        raise SystemExit(f"{recipe.name}: a learning curve needs a test set")
    order = np.random.default_rng(recipe.seed).permutation(len(training))
    steps = recipe.epochs * -(-len(training) // recipe.batch_size)
    for n in frames:
        if not 0 < n <= len(training):
            raise SystemExit(f"{recipe.name}: --frames {n}, there are {len(training)} to train on")
        epochs = max(1, round(steps / -(-n // recipe.batch_size)))
        some = dataclasses.replace(recipe, name=f"{recipe.name}-{n}", epochs=epochs)
        done = fit(some, training[order[:n]], validation, runs / some.name)
        found = errors(predict(done.potential, test), test)
        yield {
            "recipe": recipe.name,
            "frames": n,
            "epochs": epochs,
            "hours": done.history[-1]["wall_time_s"] / 3600,
            "energy": 1e3 * found.energy_mae,
            "force": None if found.force_mae is None else 1e3 * found.force_mae,
        }


def exponent(frames: Iterable[int], errors: Iterable[float]) -> tuple[float, float, float]:
    """Return b and a of a n^-b by least squares of the logarithms, and the standard error of b.

    For one point all values are NaN; for two points the standard error is NaN.
    """
    x, y = np.log(list(frames)), np.log(list(errors))
    if len(x) < 2:
        return float("nan"), float("nan"), float("nan")
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    level = float(y.mean() - slope * x.mean())
    if len(x) < 3:
        return -slope, float(np.exp(level)), float("nan")
    residual = y - level - slope * x
    of_slope = np.sqrt(residual @ residual / (len(x) - 2) / (away @ away))
    return -slope, float(np.exp(level)), float(of_slope)


def curves(rows: list[dict], quantity: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return numbers of structures, in increasing order, and errors for every recipe."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["frames"]):
        if row[quantity]:
            frames, values = found.setdefault(row["recipe"], ([], []))
            frames.append(row["frames"])
            values.append(row[quantity])
    return found


def picture(rows: list[dict]) -> Figure:
    """Plot MAEs of energies and forces on logarithmic axes, with the fitted lines."""
    figure = Figure(figsize=(9.4, 4.3), layout="constrained")
    for axes, (quantity, unit) in zip(figure.subplots(1, 2), QUANTITIES.items(), strict=True):
        shown = []
        for k, (name, (frames, values)) in enumerate(curves(rows, quantity).items()):
            color = SERIES[k % len(SERIES)]
            b, a, _ = exponent(frames, values)
            label = name if np.isnan(b) else f"{name}: n^{-b:.2f}"
            axes.plot(frames, values, "o", color=color, label=label)
            axes.plot(frames, a * np.power(frames, -b), "--", color=color, linewidth=1)
            shown += values
        axes.set_xscale("log")
        axes.set_yscale("log")
        if shown:
            logarithmic(axes.yaxis, 0.8 * min(shown), 1.2 * max(shown))
        ticks = sorted({row["frames"] for row in rows})
        axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training structures")
        axes.set_ylabel(f"{quantity} MAE on the test set, {unit}")
        tidy(axes)
        legend_above(axes, columns=1)
    return figure


def markdown(rows: list[dict], machine: str) -> str:
    """Return tables with the errors of every training and the exponents of every recipe."""
    cells = [
        [
            *(row["recipe"], str(row["frames"]), str(row["epochs"]), f"{row['hours']:.2f}"),
            *("–" if row[q] is None else f"{row[q]:.2f}" for q in QUANTITIES),
        ]
        for row in rows
    ]
    head = ["recipe", "structures", "epochs", "hours", "energy MAE, meV", "force MAE, meV/Å"]
    fitted = [
        [f"{name}, {quantity}", f"{b:.2f}" + ("" if np.isnan(se) else f" ± {se:.2f}")]
        for quantity in QUANTITIES
        for name, points in curves(rows, quantity).items()
        for b, _, se in [exponent(*points)]
        if not np.isnan(b)
    ]
    lines = ["# Error against the number of training structures", "", f"{machine}.", ""]
    lines += table(head, cells)
    if fitted:
        lines += ["", "Exponent b of error ~ n^-b, with its standard error:", ""]
        lines += table(["", "b"], fitted)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, help="instead of the data files of the recipes")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="numbers of them")
    parser.add_argument("--epochs", type=int, help="on the whole set, instead of the recipes'")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="folder")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder")
    options = parser.parse_args()
    rows: list[dict] = []
    for path in options.recipes:
        recipe = Recipe.from_yaml(path)
        if options.data is not None:
            recipe = dataclasses.replace(recipe, data=str(options.data.absolute()))
        if options.epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=options.epochs)
        for row in trained(recipe, sorted(set(options.frames)), options.runs):
            rows.append(row)
            content = {"machine": machine_name(), "rows": rows}
            target = options.results / "learning_curve"
            write(target.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
            write(target.with_suffix(".md"), markdown(rows, machine_name()))
            drawn = io.StringIO()
            picture(rows).savefig(drawn, format="svg", metadata={"Date": None})
            write(target.with_suffix(".svg"), drawn.getvalue())
    print((options.results / "learning_curve.md").read_text())


if __name__ == "__main__":
    main()
