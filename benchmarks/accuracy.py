"""Train and test models on every available data set; tabulate errors beside published ones.

    python benchmarks/accuracy.py ../shared/data               # some hours on one core
    python benchmarks/accuracy.py ../shared/data --only-table

The script trains the recipes of benchmarks/recipes/quick one after the other, some minutes each,
and those of Equiformer for four molecules, an hour each. Every training is a process of its own.
The script may be stopped or killed at any moment: the same command continues the interrupted run
and does not repeat finished ones. After every run, it writes accuracy.md (in this folder) and
results/accuracy.json. They contain all runs so far, and the shipped models with the errors on their
cards.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mend_silicon
from published import MODELS, PUBLISHED, cell
from result_files import table, write

from attncalc.model_file import header
from attncalc.train import Recipe

HERE = Path(__file__).resolve().parent
QUICK = HERE / "recipes" / "quick"
# in the order of training: data set -> title, and labels if it has several kinds
DATA = {
    "ethanol": ("ethanol", "MD17"),
    "malonaldehyde": ("malonaldehyde", "MD17"),
    "acac": ("acetylacetone, 300 K", ""),
    "uracil": ("uracil", "MD17"),
    "benzene": ("benzene", "rMD17"),
    "lips20-P2S5": ("P2S5 (LiPS20)", ""),
    "mlearn-mo": ("molybdenum (mlearn)", ""),
    "mlearn-si": ("silicon (mlearn, mended)", ""),
    "3bpa": ("3BPA, 300 K", ""),
    "naphthalene": ("naphthalene", "MD17"),
    "aspirin": ("aspirin", "MD17"),
    "water": ("water (DeePMD-kit)", ""),
    "lips20-beta-Li3PS4": ("β-Li3PS4 (LiPS20)", ""),
    "lips20-Li7P3S11": ("Li7P3S11 (LiPS20)", ""),
    "lips20-Li2S": ("Li2S (LiPS20)", ""),
}
SHIPPED = {
    "so3krates-ethanol": "ethanol",
    "so3krates-ethanol-committee": "ethanol",
    "so3krates-ethanol-distilled": "ethanol",
    "equiformer-ethanol": "ethanol",
    "equiformer-ethanol-distilled": "ethanol",
    "ethanol-committee": "ethanol",
    "equiformer-ethanol-correction": "ethanol",
    "so3krates-aspirin": "aspirin",
    "so3krates-aspirin-committee": "aspirin",
    "so3krates-aspirin-distilled": "aspirin",
    "equiformer-aspirin": "aspirin",
    "equiformer-aspirin-distilled": "aspirin",
    "aspirin-committee": "aspirin",
    "equiformer-aspirin-correction": "aspirin",
    "so3krates-silicon": "mlearn-si",
}


# data for which no setting was chosen: network of the default recipe, for an hour
_EQUIFORMER = ("malonaldehyde", "acac", "3bpa", "uracil", "benzene", "naphthalene", "mlearn-mo")
_LIPS20 = ("lips20-P2S5", "lips20-beta-Li3PS4", "lips20-Li7P3S11", "lips20-Li2S")
HOUR = dict.fromkeys(_EQUIFORMER, "Equiformer") | dict.fromkeys(("water", *_LIPS20), "So3krates")


def recipe_of(data: str) -> Path:
    """Return the quick recipe of a data set."""
    return QUICK / f"so3krates-{data}-quick.yaml"


def recipes_of(data: str) -> dict[str, Path]:
    """Return all recipes that are trained on a data set, by their names in the table."""
    found = {"So3krates, quick": recipe_of(data)}
    if network := HOUR.get(data):
        found[f"{network}, an hour"] = QUICK.parent / f"{network.lower()}-{data}.yaml"
    return found


def is_finished(run: Path) -> bool:
    """Return True if a run is trained and tested: the card is the last file that it writes."""
    return any(run.glob("*.md"))


def epochs_done(run: Path) -> int:
    """Return the number of epochs so far."""
    if not (run / "metrics.csv").exists():
        return 0
    with open(run / "metrics.csv") as file:
        return len(list(csv.DictReader(file)))


def data_file(recipe: Recipe, data: Path, runs: Path) -> Path:
    """Return the data file of a recipe; that of silicon is made if it does not exist."""
    if recipe.data != "mlearn_Si_mended.extxyz":
        return data / recipe.data
    mended = runs / recipe.data
    if not mended.exists() or "IsolatedAtom" not in mended.read_text():  # of an earlier version
        mend_silicon.main(str(data / "mlearn_Si.extxyz"), str(runs / ".part.extxyz"))
        (runs / ".part.extxyz").rename(mended)
    return mended


def train(path: Path, data: Path, runs: Path) -> bool:
    """Start or continue the training of a recipe; return True if it is finished."""
    recipe = Recipe.from_yaml(path)
    file = data_file(recipe, data, runs)
    command = [sys.executable, "-m", "attncalc", "train", str(path), "--data", str(file)]
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    # in this folder, recipes find separate test files
    options = {"cwd": data, "env": environment, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([*command, "-o", str(runs / recipe.name)], **options) as running:
        try:
            return running.wait() == 0
        except BaseException:  # stop the training too: it would disturb a later run
            running.terminate()
            raise


def row_of(model: str | Path, name: str, data: str, command: str) -> dict:
    """Return errors and cost of a model, from its file."""
    content = header(model)
    info, errors = content["training"], content["training"]["test_errors"]
    stress = errors.get("stress_mae")
    return {
        "data": data,
        "model": name,
        "starts_from": (info.get("start_from") or {}).get("name", ""),
        "baseline": info.get("baseline", ""),
        "n_train": info["n_train"],
        "n_test": info["n_test"],
        "epochs": info["epochs"],
        "minutes": info["wall_time_s"] / 60,
        "energy_mae_meV": 1e3 * errors["energy_mae"],
        "energy_rmse_meV": 1e3 * errors["energy_rmse"],
        "force_mae_meV_A": 1e3 * errors["force_mae"],
        "force_rmse_meV_A": 1e3 * errors["force_rmse"],
        "stress_mae_meV_A3": None if stress is None else 1e3 * stress,
        "command": command,
    }


def rows_so_far(runs: Path) -> tuple[list[dict], list[str]]:
    """Return the rows of all finished runs by data set, and descriptions of unfinished runs."""
    rows, open_ = [], []
    for data in DATA:
        for title, path in recipes_of(data).items():
            recipe = Recipe.from_yaml(path)
            run = runs / recipe.name
            if is_finished(run):
                command = f"attncalc train {path.relative_to(HERE.parent)} --data {recipe.data}"
                model = run / f"{recipe.name}.safetensors"
                rows.append(row_of(model, title, data, command))
            else:
                length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.minutes} minutes"
                open_.append(f"{title}, {data} ({epochs_done(run)} epochs done of {length})")
        rows += [
            row_of(name, name, data, header(name)["training"]["command"])
            for name, of in SHIPPED.items()
            if of == data
        ]
    return rows, open_


def markdown(rows: list[dict], unfinished: list[str]) -> str:
    """Return the tables in Markdown."""
    lines = [
        "# Accuracy beside published numbers",
        "",
        "Errors on whole test sets. E: energy of the structure, meV; F: force components, meV/Å; "
        "stress: components, meV/Å³; minutes: wall time of the training on one core, compiling "
        "included; processors differed. Published: E / F, MAE unless it says RMSE, on the same "
        "labels unless it names others. Of MD17 and rMD17, ours are tested on the 1,000 frames of "
        "test_01, as those of rMD17 are; Equiformer on all that is left of MD17.",
        "",
        "**Budgets are unequal.** Published models have millions of parameters and were trained "
        "on GPUs, Equiformer for 17 to 61 hours each. *So3krates, quick* has 70,000 to 110,000, "
        "one seed, and the minutes stated on one core that other work shared: it shows that a "
        "data set is learnt, and how far one gets with so little. *Equiformer, an hour* and "
        "*So3krates, an hour* are the default recipes for data of one's own, with 0.5 and 0.3 "
        "million parameters. Their settings were not chosen for these structures, with two "
        "exceptions: 16 radial functions instead of 32 were chosen by test errors of uracil and "
        "malonaldehyde, and 4 Å by that of uracil; benzene and naphthalene had 32 "
        "([docs/equiformer.md](../docs/equiformer.md)). Quick rows except silicon began with the "
        "initial weights of before commit c646c29; acetylacetone, 3BPA and the quick row of "
        "silicon were trained without isolated atoms; Equiformers but equiformer-ethanol, "
        "equiformer-aspirin and their distilled versions have the norm of each degree "
        "(`norm: degree`): their commands give other numbers now.",
        "",
        "Frames of a *distilled* model: the 950 of the data five times, and others that "
        "models of the 950 labelled, most of them with tight binding "
        "([docs/few_frames.md](../docs/few_frames.md)). Epochs and minutes are those of the last "
        "training, without those of the model that it comes *after*, which are on its own card.",
        "",
    ]
    head = ["data", "labels", "model", "frames", "epochs", "minutes", "E MAE", "E RMSE"]
    head += ["F MAE", "F RMSE", "stress MAE", *MODELS]
    cells, seen = [], set()
    for row in rows:
        title, labels = DATA[row["data"]]
        model = row["model"]
        if row["starts_from"]:
            model += f" (after {row['starts_from']})"
        if row["baseline"]:
            model = f"{row['baseline']}, and {model}"
        stress = row["stress_mae_meV_A3"]
        others = ["" if row["data"] in seen else cell(m, row["data"], labels) for m in MODELS]
        seen.add(row["data"])
        cells.append(
            [
                *(title, labels, model, str(row["n_train"]), str(row["epochs"])),
                f"{row['minutes']:.0f}",
                *(f"{row[f'energy_{kind}_meV']:.1f}" for kind in ("mae", "rmse")),
                *(f"{row[f'force_{kind}_meV_A']:.1f}" for kind in ("mae", "rmse")),
                "" if stress is None else f"{stress:.2f}",
                *others,
            ]
        )
    lines += table(head, cells)
    if unfinished:
        lines += ["", f"Not finished: {', '.join(unfinished)}."]
    lines += ["", "Sources:", ""]
    lines += [f"- {one.model}, {', '.join(one.values)}: {one.source}." for one in PUBLISHED]
    lines += ["- So3krates: no number that could be read in its papers."]
    lines += [
        "",
        "Commands (`python benchmarks/accuracy.py DATA` trains what is not shipped):",
        "",
    ]
    lines += [f"- {row['model']}, {DATA[row['data']][0]}: `{row['command']}`" for row in rows]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", default=list(DATA), choices=list(DATA), metavar="NAME")
    parser.add_argument("--only-table", action="store_true", help="of what is there: train nothing")
    runs = HERE.parent / "runs" / "accuracy"
    parser.add_argument("--runs", type=Path, default=runs, help="folder of the runs")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of accuracy.md")
    options = parser.parse_args()
    data, runs = options.data.resolve(), options.runs.resolve()
    if not data.is_dir():
        parser.error(f"no such folder: {data}")
    runs.mkdir(parents=True, exist_ok=True)

    def tabulate() -> None:
        rows, unfinished = rows_so_far(runs)
        content = {"rows": rows, "unfinished": unfinished}
        results = options.output / "results"
        results.mkdir(parents=True, exist_ok=True)
        write(results / "accuracy.json", json.dumps(content, indent=1) + "\n")
        write(options.output / "accuracy.md", markdown(rows, unfinished))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    failed = []
    paths = [path for name in options.only for path in recipes_of(name).values()]
    for k, path in enumerate([] if options.only_table else paths, start=1):
        if is_finished(runs / path.stem):
            continue
        print(f"{k} of {len(paths)}: {path.stem}", file=sys.stderr, flush=True)
        if not train(path, data, runs):
            failed.append(path.stem)
        tabulate()
    tabulate()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the reasons stand above")


if __name__ == "__main__":
    main()
