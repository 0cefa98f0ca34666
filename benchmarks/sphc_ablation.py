#!/usr/bin/env python
"""So3krates with SPHCs on MD17: with and without non-local attention, and beside MACE.

    make peers                                          # once: MACE in its own environment
    python benchmarks/sphc_ablation.py ../shared/data   # the folder of rmd17_*.npz; two hours

Trains `recipes/sphc-MOLECULE-KIND.yaml` (what is finished is not repeated), and a MACE of
mace-torch's default size on the same 950 frames in the same processor time, in batches of the same
size; tests all on the split test_01, and writes results/sphc-ablation.md. Cost is processor time on
one thread: of a training step (gradient of the errors of five structures by all weights), and of
energy + forces of one structure.
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
from tables import machine_name, table, write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MOLECULES = ("ethanol", "aspirin")
KINDS = {"local": "without", "window": "with"}
MACE_PYTHON = HERE.parent / ".venv-peers" / "mace-torch" / "bin" / "python"
BATCH, N_TRAIN, N_VALIDATION = 5, 950, 50
MACE = {  # the defaults of mace-torch's `mace_run_train`, but for the cutoff
    "model": "MACE",
    "r_max": 5.0,
    "hidden_irreps": "128x0e + 128x1o",
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
}


def cpu_ms(call, repeats: int) -> float:
    """Median processor time of a call, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def ours(molecule: str, kind: str, data: Path, runs: Path) -> dict:
    """Errors and cost of one of our networks."""
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
        command = [sys.executable, "-m", "attncalc.cli", "train", recipe, "--data", str(file)]
        subprocess.run([*command, "-o", str(run)], check=True)
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
    """The same of MACE, trained for so much processor time."""
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
    command = [str(MACE_PYTHON), __file__, "--worker", str(folder), str(budget_s)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return {"molecule": molecule} | json.loads(done.stdout.splitlines()[-1])


def mace_worker(folder: Path, budget_s: float) -> dict:
    """Runs in MACE's own environment: times a step and a call, trains by MACE's command, tests."""
    import contextlib

    import torch
    from ase.io import read
    from mace import data, modules, tools
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

    # one epoch to see what it takes, then as many as fit
    start = time.process_time()
    train(1, "probe")
    n_epochs = max(1, int(budget_s / (time.process_time() - start)))
    start = time.process_time()
    path = train(n_epochs, f"run{n_epochs}")
    spent = time.process_time() - start
    torch.set_default_dtype(torch.float32)
    model = torch.load(path, map_location="cpu", weights_only=False).float()
    weights = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    five, one = batch_of(BATCH), batch_of(1)

    def step() -> None:
        predicted = model(five.to_dict(), training=True, compute_force=True)
        torch.autograd.grad(weights(pred=predicted, ref=five), parameters, allow_unused=True)

    def call() -> None:
        model(one.to_dict(), training=False, compute_force=True)

    from mace.calculators import MACECalculator

    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float32")
    energies, forces = [], []
    for frame in read(folder / "test.extxyz", index=":"):
        frame.calc = calculator
        energies.append(frame.get_potential_energy() - frame.info["REF_energy"])
        forces.append(frame.get_forces() - frame.arrays["REF_forces"])
    return {
        "network": f"MACE, {MACE['hidden_irreps']}, mace-torch's defaults",
        "parameters": sum(p.numel() for p in parameters),
        "epochs": n_epochs,
        "training_s": spent,
        "energy_meV": 1e3 * float(np.abs(energies).mean()),
        "force_meV_per_A": 1e3 * float(np.abs(forces).mean()),
        "step_ms": cpu_ms(step, 5),
        "call_ms": cpu_ms(call, 10),
    }


def markdown(rows: list[dict], machine: str) -> str:
    """The table people read."""
    head = ["molecule, network", "parameters", "epochs", "training, CPU min"]
    head += ["E, meV", "F, meV/Å", "training step, ms", "energy + forces, ms"]
    cells = [
        [
            f"{row['molecule']}, {row['network']}",
            f"{row['parameters']:,}",
            str(row["epochs"]),
            f"{row['training_s'] / 60:.1f}",
            *(f"{row[key]:.1f}" for key in ("energy_meV", "force_meV_per_A")),
            *(f"{row[key]:.1f}" for key in ("step_ms", "call_ms")),
        ]
        for row in rows
    ]
    return "\n".join([machine, "", *table(head, cells), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of rmd17_MOLECULE.npz")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where runs are")
    parser.add_argument("--molecules", nargs="+", default=MOLECULES, choices=MOLECULES)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, budget_s = options.worker
        print(json.dumps(mace_worker(Path(folder), float(budget_s))))
        return
    rows = []
    for molecule in options.molecules:
        mine = [ours(molecule, kind, options.data, options.runs) for kind in KINDS]
        for row in mine:  # counted in steps: an unfinished run that went on has no other clock
            row["training_s"] = row["epochs"] * (N_TRAIN // BATCH) * row["step_ms"] / 1e3
        rows += mine
        rows.append(mace(molecule, options.data, options.runs, mine[-1]["training_s"]))
        print(markdown(rows, ""), file=sys.stderr, flush=True)
    machine = machine_name()
    write(RESULTS / "sphc-ablation.json", json.dumps({"machine": machine, "rows": rows}) + "\n")
    write(RESULTS / "sphc-ablation.md", markdown(rows, machine))
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
