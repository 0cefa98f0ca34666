"""Fine-tuning: errors after few structures from the weights of a model and from random weights.

    python benchmarks/studies/fine_tuning.py ../shared/data                 # an hour on one core
    python benchmarks/studies/fine_tuning.py ../shared/data --steps 200 --runs /tmp/runs --output /tmp
    python benchmarks/studies/fine_tuning.py ../shared/data --tasks aspirin-from-so3lr 3bpa-from-so3lr \
        --frames 50 200 --starts model --name fine_tuning-so3lr    # with so3lr.safetensors here

The tasks are another level of theory and another molecule. Every model is trained twice on 50, 200
and 950 structures: from the weights of a shipped model and from random ones. Network, batches,
number of steps and structures are the same, and so are the 1,000 structures of the test. The error
before the first step is that of the shipped model with its reference energies moved to the new
labels. Finished trainings are not repeated, and interrupted ones continue. Writes fine_tuning.json,
.md and .png into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc import data as data_
from attncalc import load, train
from attncalc.data import Dataset
from attncalc.data.errors import errors, predict
from attncalc.model_file import header
from attncalc.plots.style import BLUE, GREY, ORANGE, logarithmic, tidy
from attncalc.train.recipe_rules import LEARNING_RATES, LEARNING_RATES_OF_STARTED
from attncalc.train.start import new_potential

HERE = Path(__file__).resolve().parents[1]
FRAMES = (50, 200, 950)
N_VALIDATION, N_TEST = 50, 1000
STARTS = {"both": (True, False), "model": (True,)}  # True: from the model's weights
BATCH = 5


@dataclass(frozen=True)
class Task:
    """A fine-tuning task.

    Attributes:
        words: description for the table.
        file, labels: the new data.
        start: a shipped model or a model file.
        test: file of test structures; None takes them from `file`.
    """

    words: str
    file: str
    labels: str | None
    start: str
    test: str | None = None


TASKS = {
    "ethanol-b3lyp": Task(
        "ethanol from PBE+vdW-TS at 500 K to B3LYP and high energies (QM22)",
        *("qm22_ethanol.npz", None, "so3krates-ethanol"),
    ),
    "malonaldehyde": Task(
        "from ethanol to malonaldehyde, both PBE+vdW-TS (MD17)",
        *("rmd17_malonaldehyde.npz", "md17", "so3krates-ethanol"),
    ),
    "malonaldehyde-from-xtb": Task(
        "from twelve other molecules at GFN2-xTB to malonaldehyde at PBE+vdW-TS (MD17)",
        *("rmd17_malonaldehyde.npz", "md17", "so3krates-xtb-small-molecules"),
    ),
    "ethanol-from-organic": Task(
        "from the general model (SO3LR) to ethanol at PBE+vdW-TS (MD17)",
        *("rmd17_ethanol.npz", "md17", "so3krates-organic"),
    ),
    "aspirin-from-organic": Task(
        "from the general model (SO3LR) to aspirin at PBE+vdW-TS (MD17)",
        *("rmd17_aspirin.npz", "md17", "so3krates-organic"),
    ),
    "aspirin-from-so3lr": Task(
        "from SO3LR (PBE0+MBD) to aspirin at PBE+vdW-TS (MD17)",
        *("rmd17_aspirin.npz", "md17", "so3lr.safetensors"),
    ),
    "3bpa-from-so3lr": Task(
        "from SO3LR (PBE0+MBD) to 3BPA at 300 K, wB97X/6-31G(d)",
        *("3bpa_train_300K.npz", None, "so3lr.safetensors", "3bpa_test_300K.npz"),
    ),
    "3bpa-from-organic": Task(
        "from the general model (SO3LR) to 3BPA at 300 K, wB97X/6-31G(d)",
        *("3bpa_train_300K.npz", None, "so3krates-organic", "3bpa_test_300K.npz"),
    ),
}


def parts_of(task: Task, data: Path) -> tuple[Dataset, Dataset, Dataset]:
    """Return 950 training, 50 validation and 1,000 test structures.

    They are the file's own split, or drawn at random. If there is a file of test structures, all
    other structures except those for validation are training structures.
    """
    dataset = data_.read(data / task.file, labels=task.labels)
    if task.test is not None:
        sizes = [len(dataset) - N_VALIDATION, N_VALIDATION, 0]
        training, validation, _ = data_.split(dataset, sizes, seed=1)
        test = data_.read(data / task.test, labels=task.labels)
        return training, validation, test[list(range(min(N_TEST, len(test))))]
    if "train_01" in dataset.splits:
        return data_.official_split(dataset, n_validation=N_VALIDATION)
    training, validation, test = data_.split(dataset, [FRAMES[-1], N_VALIDATION, N_TEST], seed=1)
    return training, validation, test


def recipe_of(
    name: str, task: Task, n: int, n_steps: int, *, from_model: bool, optimizer: str
) -> train.Recipe:
    """Return a recipe with the shipped model's network, from its weights or random ones."""
    described = header(task.start)
    config = dict(described["config"])
    del config["avg_num_neighbors"]  # taken from the model, or measured
    return train.Recipe(
        name=f"{name}-{n}-{'started' if from_model else 'random'}",
        data=task.file,
        labels=task.labels,
        split={"sizes": [n, N_VALIDATION, N_TEST]},  # `parts_of` makes the split
        config=config,
        pair_terms=[term["name"] for term in described.get("pair_terms", [])],
        start_from=task.start if from_model else None,
        epochs=-(-n_steps // -(-n // BATCH)),
        batch_size=BATCH,
        optimizer=optimizer,
        compile="never",
        seed=1,
    )


def mae(potential, test: Dataset) -> dict[str, float]:
    """Return MAEs of energies [meV] and forces [meV/Å]."""
    found = errors(predict(potential, test), test)
    return {"energy_meV": 1e3 * found.energy_mae, "force_meV_A": 1e3 * found.force_mae}


def trained(
    recipe: train.Recipe, n: int, parts: tuple[Dataset, Dataset, Dataset], folder: Path
) -> dict:
    """Return the row of a training, which is run, continued, or read if it is finished."""
    row_file = folder / "row.json"
    if row_file.exists():
        return json.loads(row_file.read_text())
    training, validation, test = parts
    done = train.fit(recipe, training[:n], validation, folder)
    row = {"frames": n, "epochs": recipe.epochs, "steps": int(done.history[-1]["step"])}
    row |= {"seconds": done.history[-1]["wall_time_s"], **mae(load(done.model), test)}
    write(row_file, json.dumps(row, indent=1) + "\n")
    return row


def rows_of(
    name: str, folder: Path, options: argparse.Namespace, sizes: list[int], starts: tuple[bool, ...]
) -> list[dict]:
    """Return rows of all trainings of a task, and of the model before the first step."""
    task = TASKS[name]
    parts = parts_of(task, options.data)
    given = {"n_steps": options.steps, "optimizer": options.optimizer}
    rows = []
    for from_model in starts:
        for n in sizes:
            recipe = recipe_of(name, task, n, from_model=from_model, **given)
            print(recipe.name, file=sys.stderr, flush=True)
            if from_model and n == sizes[0]:
                before = mae(new_potential(recipe, parts[0][:n]), parts[2])
                rows.append({"start": task.start, "frames": 0, "epochs": 0, "steps": 0, **before})
            row = trained(recipe, n, parts, folder / recipe.name)
            rows.append({"start": task.start if from_model else "", **row})
    return rows


def picture(content: dict[str, list[dict]]) -> Figure:
    """Plot force errors against the number of structures, with a panel for each task."""
    figure = Figure(figsize=(3.4 * len(content), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(content), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, content.items(), strict=True):
        shown = [row["force_meV_A"] for row in rows]
        labels = {True: (BLUE, f"from {TASKS[name].start}"), False: (ORANGE, "random start")}
        for start, (color, label) in labels.items():
            mine = [row for row in rows if row["frames"] and bool(row["start"]) == start]
            if not mine:
                continue
            numbers = [row["frames"] for row in mine]
            axes.plot(numbers, [r["force_meV_A"] for r in mine], "o-", color=color, label=label)
        (before,) = (row["force_meV_A"] for row in rows if row["frames"] == 0)
        axes.axhline(before, color=GREY, linewidth=1, linestyle="--", label="before training")
        axes.set(xscale="log", yscale="log", xlabel="structures", title=name)
        axes.set_ylim(0.8 * min(shown), 1.25 * max(shown))
        numbers = sorted({row["frames"] for row in rows} - {0})
        axes.set_xticks(numbers, [str(n) for n in numbers])
        axes.minorticks_off()
        logarithmic(axes.yaxis, 0.8 * min(shown), 1.25 * max(shown))
        tidy(axes)
        axes.legend(frameon=False, fontsize="x-small")
    panels[0].set_ylabel("force MAE, meV/Å")
    return figure


def markdown(content: dict[str, list[dict]], options: argparse.Namespace) -> str:
    """Return the table in Markdown."""
    lines = ["# Starting from another model", "", f"![Errors]({options.name}.png)", ""]
    first, second = (rates[options.optimizer] for rates in (LEARNING_RATES_OF_STARTED, LEARNING_RATES))
    rate = f"{first:g}" if options.starts == "model" else f"{first:g} or, at random, {second:g}"
    lines += [
        f"{machine_name()}. {options.steps:,} steps or the next whole epoch, batches of {BATCH}, "
        f"{options.optimizer} from {rate} to 1e-5, one seed; {N_VALIDATION} structures choose the best epoch, {N_TEST:,} others "
        "are tested. Both starts have the same network and the same budget, which is short: with "
        "more steps a random start comes closer. Minutes count pauses, of a core that was shared.",
    ]
    for task, rows in content.items():
        lines += ["", f"## {task}: {TASKS[task].words}", ""]
        cells = []
        for row in rows:
            told = [f"{row[key]:.1f}" for key in ("energy_meV", "force_meV_A")]
            minutes = f"{row['seconds'] / 60:.1f}" if row["frames"] else ""
            start = row["start"] or "random"
            cells.append([start, str(row["frames"]), f"{row['steps']:,}", minutes, *told])
        head = ["start", "structures", "steps", "minutes", "E MAE, meV", "F MAE, meV/Å"]
        lines += table(head, cells)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--steps", type=int, default=2000, help="of every training")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    runs = HERE.parent / "runs" / "fine_tuning"
    parser.add_argument("--runs", type=Path, default=runs, help="folder of the runs")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="of the tables")
    parser.add_argument("--name", default="fine_tuning", help="of the tables")
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES))
    parser.add_argument("--starts", choices=STARTS, default="both")
    parser.add_argument("--optimizer", choices=list(LEARNING_RATES), default="adam")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    content: dict[str, list[dict]] = {}
    table_file = options.output / options.name
    for name in options.tasks:
        folder = options.runs / f"{options.steps}-steps-{options.optimizer}"
        content[name] = rows_of(name, folder, options, options.frames, STARTS[options.starts])
        told = {"machine": machine_name(), "steps": options.steps, "rows": content}
        told["optimizer"] = options.optimizer
        told["tasks"] = {name: asdict(TASKS[name]) for name in content}
        write(table_file.with_suffix(".json"), json.dumps(told, indent=1) + "\n")
        text = markdown(content, options)
        write(table_file.with_suffix(".md"), text)
        picture(content).savefig(table_file.with_suffix(".png"))


if __name__ == "__main__":
    main()
