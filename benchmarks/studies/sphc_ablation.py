"""So3krates with SPHCs on MD17: with and without non-local attention, compared with MACE.

    make peers                                          # once: MACE in its own environment
    python benchmarks/studies/sphc_ablation.py ../shared/data   # the folder of rmd17_*.npz; two hours

Trains `recipes/sphc-MOLECULE-KIND.yaml` (finished trainings are not repeated). By mace-torch's own
command, trains a MACE of default size on the same 950 frames in batches of the same size, for as
many epochs as fit into the time of our network with non-local attention. Tests all models on the
split test_01, and writes results/sphc-ablation.md.

Cost is processor time on one thread: of a training step (gradient of the errors of five structures
by all weights), and of energy + forces of one structure. The time of a training is the number of
steps times the time of a step, for both codes, without reading, validation and the optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "results"
MOLECULES = ("ethanol", "aspirin")
KINDS = {"local": "without", "window": "with"}
MACE_PYTHON = HERE.parent / ".venv-peers" / "mace-torch" / "bin" / "python"
BATCH, N_TRAIN, N_VALIDATION = 5, 950, 50
MACE = {  # defaults of mace-torch's `mace_run_train`, written out
    "model": "MACE",
    "r_max": 5.0,
    "hidden_irreps": "128x0e + 128x1o",
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
}


def cpu_ms(call, repeats: int) -> float:
    """Return the median processor time of a call, ms, after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def ours(molecule: str, kind: str, data: Path, runs: Path) -> dict:
    """Return errors and cost of one of our networks, which is trained if necessary."""
    import torch

    from attncalc import System, evaluate, load
    from attncalc.data import read
    from attncalc.neighbors import fresh_graph
    from attncalc.train.batches import join, samples
    from attncalc.train.step import Loss, eager_step

    torch.set_num_threads(1)
    name = f"sphc-{molecule}-{kind}"
    run, file = runs / name, data / f"rmd17_{molecule}.npz"
    if not (run / f"{name}.md").exists():
        recipe = str(HERE / "recipes" / f"{name}.yaml")
        command = [sys.executable, "-m", "attncalc", "train", recipe, "--data", str(file)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "-o", str(run)], check=True, env=alone)
    potential = load(run / f"{name}.safetensors")
    info = potential.training_info
    dataset = read(file, labels="md17")
    first = dataset[dataset.splits["train_01"][:BATCH]]
    atoms = first.structures[0]
    graph = fresh_graph(System.from_ase(atoms), cutoff=potential.cutoff, species=potential.species)
    call = cpu_ms(lambda: evaluate(potential, graph), 30)
    batch = join(samples(first, potential.cutoff, potential.species))
    step = eager_step(potential.requires_grad_(True), Loss(1.0, 1.0, 0.0))
    return {
        "molecule": molecule,
        "network": f"so3krates-sphc, {KINDS[kind]} non-local attention",
        "parameters": potential.n_parameters,
        "epochs": info["epochs"],
        "energy_meV": 1e3 * info["test_errors"]["energy_mae"],
        "force_meV_per_A": 1e3 * info["test_errors"]["force_mae"],
        "step_ms": cpu_ms(lambda: step(batch), 10),
        "call_ms": call,
    }


def mace(molecule: str, data: Path, runs: Path, budget_s: float) -> dict:
    """Return errors and cost of MACE, trained for `budget_s` seconds of processor time."""
    from ase.io import write as write_frames

    from attncalc.data import read

    folder = runs / f"mace-{molecule}"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = read(data / f"rmd17_{molecule}.npz", labels="md17")
    order = dataset.splits["train_01"]
    parts = {
        "train": order[:N_TRAIN],
        "valid": order[N_TRAIN : N_TRAIN + N_VALIDATION],
        "test": dataset.splits["test_01"],
    }
    for part, which in parts.items():
        frames = []
        for k in which:
            frame = dataset.structures[k].copy()
            frame.info["REF_energy"] = float(dataset.energies[k])
            frame.arrays["REF_forces"] = np.asarray(dataset.forces[k])
            frames.append(frame)
        write_frames(folder / f"{part}.extxyz", frames)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(MACE_PYTHON), __file__, str(folder), "--mace", str(budget_s)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return {"molecule": molecule} | json.loads(done.stdout.splitlines()[-1])


def mace_worker(folder: Path, budget_s: float) -> dict:
    """Train MACE by its own command, test it, and time a step and a call.

    This function runs in MACE's own environment.
    """
    import contextlib

    import torch
    from ase.io import read
    from mace import data, modules, tools
    from mace.calculators import MACECalculator
    from mace.cli.run_train import main as run_train
    from mace.tools import torch_geometric

    torch.set_num_threads(1)
    frames = read(folder / "train.extxyz", index=":")
    elements = sorted({int(z) for frame in frames for z in frame.numbers})
    keys = data.KeySpecification(
        info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"}
    )
    z_table = tools.AtomicNumberTable(elements)

    def batch_of(n: int):
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(frame, key_specification=keys),
                z_table=z_table,
                cutoff=MACE["r_max"],
            )
            for frame in frames[:n]
        ]
        loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=n)
        return next(iter(loader))

    def train(n_epochs: int, name: str) -> Path:
        arguments = {
            **MACE,
            "name": name,
            "train_file": folder / "train.extxyz",
            "valid_file": folder / "valid.extxyz",
            "E0s": "average",
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "batch_size": BATCH,
            "valid_batch_size": 25,
            "max_num_epochs": n_epochs,
            "device": "cpu",
            "default_dtype": "float32",
            "seed": 1,
            # the final learning rate is a hundredth of the first one, as in our trainings
            "scheduler": "ExponentialLR",
            "lr_scheduler_gamma": 0.01 ** (1 / n_epochs),
            "work_dir": folder / name,
        }
        flags = [f"--{key}={value}" for key, value in arguments.items()]
        before, sys.argv = sys.argv, ["mace_run_train", *flags, "--ema", "--amsgrad"]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                run_train()
        finally:
            sys.argv = before
        return folder / name / f"{name}.model"

    def load(path: Path) -> torch.nn.Module:
        torch.set_default_dtype(torch.float32)
        model = torch.load(path, map_location="cpu", weights_only=False)
        return model.float().requires_grad_(True)

    def timed(model: torch.nn.Module) -> tuple[float, float, int]:
        weights = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
        parameters = [p for p in model.parameters() if p.requires_grad]
        five, one = batch_of(BATCH), batch_of(1)

        def step() -> None:
            predicted = model(five.to_dict(), training=True, compute_force=True)
            torch.autograd.grad(weights(pred=predicted, ref=five), parameters, allow_unused=True)

        def call() -> None:
            model(one.to_dict(), training=False, compute_force=True)

        return cpu_ms(step, 10), cpu_ms(call, 30), sum(p.numel() for p in parameters)

    # a training of one epoch gives the time of a step, and so the number of epochs that fit
    step_ms, _, _ = timed(load(train(1, "probe")))
    n_epochs = max(1, round(1e3 * budget_s / (step_ms * N_TRAIN / BATCH)))
    model = load(train(n_epochs, f"run{n_epochs}"))
    step_ms, call_ms, n_parameters = timed(model)
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float32")
    energies, forces = [], []
    for frame in read(folder / "test.extxyz", index=":"):
        frame.calc = calculator
        energies.append(frame.get_potential_energy() - frame.info["REF_energy"])
        forces.append(frame.get_forces() - frame.arrays["REF_forces"])
    return {
        "network": f"MACE, {MACE['hidden_irreps']}",
        "parameters": n_parameters,
        "epochs": n_epochs,
        "energy_meV": 1e3 * float(np.abs(energies).mean()),
        "force_meV_per_A": 1e3 * float(np.abs(forces).mean()),
        "step_ms": step_ms,
        "call_ms": call_ms,
    }


def training_s(row: dict) -> float:
    """Return the processor time of all steps of a training, s."""
    return row["epochs"] * (N_TRAIN // BATCH) * row["step_ms"] / 1e3


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table in Markdown."""
    notes = (
        "Labels of MD17, 950 frames, batches of 5, test_01 (1,000 frames). Ours: Adam from 1e-3 "
        "to 1e-5, cosine; MACE: its command's defaults (Adam from 1e-2), with --ema --amsgrad and "
        "the rate falling to a hundredth, as many epochs as fit into the time of ours with "
        "attention. One seed each. Nobody reaches its limit in so short a time."
    )
    head = ["molecule, network", "parameters", "epochs", "training, CPU min"]
    head += ["E, meV", "F, meV/Å", "training step, ms", "energy + forces, ms"]
    cells = [
        [
            f"{row['molecule']}, {row['network']}",
            f"{row['parameters']:,}",
            str(row["epochs"]),
            f"{training_s(row) / 60:.1f}",
            *(f"{row[key]:.1f}" for key in ("energy_meV", "force_meV_per_A")),
            *(f"{row[key]:.1f}" for key in ("step_ms", "call_ms")),
        ]
        for row in rows
    ]
    title = "# So3krates with SPHCs on MD17: with and without non-local attention, and MACE"
    return "\n".join([title, "", f"{machine}. {notes}", "", *table(head, cells), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder of rmd17_MOLECULE.npz")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where runs are")
    parser.add_argument("--molecules", nargs="+", default=MOLECULES, choices=MOLECULES)
    parser.add_argument("--mace", type=float, metavar="S", help=argparse.SUPPRESS)  # for mace_worker
    options = parser.parse_args()
    if options.mace:
        print(json.dumps(mace_worker(options.data, options.mace)))
        return
    for molecule in options.molecules:
        if not (file := options.data / f"rmd17_{molecule}.npz").is_file():
            parser.error(f"no such file: {file}")
    if not MACE_PYTHON.exists():
        parser.error("MACE's environment is missing: make peers")
    rows = []
    for molecule in options.molecules:
        mine = [ours(molecule, kind, options.data, options.runs) for kind in KINDS]
        budget_s = training_s(mine[-1])
        rows += [*mine, mace(molecule, options.data, options.runs, budget_s)]
        print(markdown(rows, ""), file=sys.stderr, flush=True)
    machine = machine_name()
    write(RESULTS / "sphc-ablation.json", json.dumps({"machine": machine, "rows": rows}) + "\n")
    write(RESULTS / "sphc-ablation.md", markdown(rows, machine))
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
