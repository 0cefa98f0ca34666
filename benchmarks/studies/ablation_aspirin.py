"""Ablation of the Equiformer paper on aspirin: three kinds of attention, one budget.

    python benchmarks/studies/ablation_aspirin.py rmd17_aspirin.npz --epochs 20
    python benchmarks/studies/ablation_aspirin.py rmd17_aspirin.npz --epochs 40      # continues

Trains the recipes `recipes/equiformer-aspirin-ATTENTION.yaml`, the published function with the
published schedule of 1,500 epochs, each up to the same epoch. Tests their best models on the split
test_01, and writes results/ablation_aspirin.md with these results beside the authors' numbers.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

HERE = Path(__file__).resolve().parents[1]
PUBLISHED_EPOCHS = 1500
# attention -> description; energy and force MAE of the talk, meV and meV/Å, after 1,500 epochs
VARIANTS = {
    "nonlinear": ("non-linear messages, MLP attention", 5.4, 7.2),
    "linear": ("linear messages, MLP attention", 5.4, 8.2),
    "dot": ("linear messages, dot-product attention", 5.8, 9.2),
}


def history(folder: Path) -> list[dict[str, str]]:
    """Return the rows of all epochs that a run has finished."""
    table = folder / "metrics.csv"
    if not table.exists():
        return []
    with open(table) as file:
        return list(csv.DictReader(file))


def train_until(recipe: Path, data: Path, folder: Path, n_epochs: int) -> None:
    """Start or continue a training, and stop it by Ctrl-C after `n_epochs` epochs in total."""
    if len(history(folder)) >= n_epochs:
        return
    command = [sys.executable, "-m", "attncalc", "train", str(recipe), "--data", str(data)]
    running = subprocess.Popen(
        [*command, "-o", str(folder)],
        cwd=HERE.parent,
        # in a background shell, Ctrl-C is ignored and processes inherit this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    stopped = False
    try:
        while running.poll() is None:
            time.sleep(2)
            if len(history(folder)) >= n_epochs and not stopped:
                running.send_signal(signal.SIGINT)
                stopped = True
    except KeyboardInterrupt:  # the training has received it as well
        running.wait()
        raise
    if not stopped and running.returncode:
        sys.exit(f"{recipe.name}: the training ended with exit code {running.returncode}")


def tested(model: Path, data: Path) -> tuple[float, float, int]:
    """Return MAE of energies (meV) and forces (meV/Å) on test_01, and number of parameters."""
    from attncalc.data import read
    from attncalc.data.errors import errors, predict
    from attncalc.model_file import load

    dataset = read(data, labels="md17")
    test = dataset[dataset.splits["test_01"]]
    potential = load(model)
    found = errors(predict(potential, test), test)
    return 1e3 * found.energy_mae, 1e3 * found.force_mae, potential.n_parameters


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table, and the command that continues the trainings."""
    head = ["attention", "parameters", "epochs run", "hours", "energy MAE, meV"]
    head += ["force MAE, meV/Å", "published energy", "published force"]
    cells = []
    for row in rows:
        words, energy, force = VARIANTS[row["attention"]]
        cells.append(
            [
                *(f"{row['attention']}: {words}", f"{row['parameters']:,}", str(row["epochs"])),
                *(f"{row['hours']:.1f}", f"{row['energy']:.1f}", f"{row['force']:.1f}"),
                *(str(energy), str(force)),
            ]
        )
    lines = ["# Three attentions of Equiformer on aspirin (MD17 labels, split 01, lmax 2)", ""]
    lines += [
        f"{machine}. Best model so far of a schedule of {PUBLISHED_EPOCHS} epochs, tested on the "
        "1,000 structures of test_01; the published numbers are of the whole schedule, on another "
        "split. Parameters without the rows of elements that aspirin has not.",
        "",
    ]
    lines += table(head, cells)
    command = "python benchmarks/studies/ablation_aspirin.py rmd17_aspirin.npz --epochs N"
    return "\n".join([*lines, "", f"`{command}` goes on from there.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="rmd17_aspirin.npz, with the labels of MD17")
    parser.add_argument("--epochs", type=int, required=True, help="of each, in all")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="folder")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"no such file: {arguments.data}")

    rows = []
    for attention in VARIANTS:
        name = f"equiformer-aspirin-{attention}"
        folder = arguments.runs / name
        recipe = HERE / "recipes" / f"{name}.yaml"
        train_until(recipe, arguments.data.resolve(), folder, arguments.epochs)
        done = history(folder)
        energy, force, parameters = tested(folder / f"{name}.safetensors", arguments.data)
        hours = float(done[-1]["wall_time_s"]) / 3600
        rows.append(
            {"attention": attention, "parameters": parameters, "epochs": len(done)}
            | {"hours": hours, "energy": energy, "force": force}
        )
        content = {"machine": machine_name(), "rows": rows}
        write(HERE / "results" / "ablation_aspirin.json", json.dumps(content, indent=1) + "\n")
        write(HERE / "results" / "ablation_aspirin.md", markdown(rows, machine_name()))


if __name__ == "__main__":
    main()
