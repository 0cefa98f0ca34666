"""Time of steps in this checkout and in another one: two processes take turns, one thread.

git worktree add ../before COMMIT
python benchmarks/studies/seam.py --other ../before -o seam
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name

HERE = Path(__file__).resolve().parents[2]
CASES = {  # model, structure, calls per turn
    "get_forces, ethanol, So3krates": 300,
    "get_forces, aspirin, So3krates": 150,
    "get_forces, ethanol, Equiformer": 40,
    "get_forces, 192 atoms of water": 10,
    "get_forces, 1,536 atoms of water": 2,
    "Langevin step, ethanol": 300,
    "Langevin step, aspirin": 150,
}

WORKER = """
import sys, time
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from ase import units
from ase.build import molecule
from structures import SYSTEMS
from engines import so3lr_sized
from attncalc import AttnCalculator, System, load, md

def calculate(model, atoms):
    calculator = AttnCalculator(model, device="cpu")
    where = [atoms.copy() for _ in range(7)]
    for one in where:
        one.calc = calculator
    rng = np.random.default_rng(0)
    for one in where:
        one.positions += rng.normal(scale=0.01, size=one.positions.shape)
    k = 0
    def call(n):
        nonlocal k
        for _ in range(n):
            k += 1
            where[k % 7].get_forces()
    return call

def langevin(model, atoms):
    potential = load(model)
    force = md.Forces(potential) if hasattr(md, "Forces") else __import__("attncalc").Evaluator(potential)
    moves = md.Langevin(0.5 * units.fs, 300.0, 0.01 / units.fs)
    now = [moves.init(force, System.from_ase(atoms), seed=0)]
    def call(n):
        now[0] = md.run(moves, force, now[0], n)
    return call

aspirin = SYSTEMS["aspirin"]()
made = {
    "get_forces, ethanol, So3krates": lambda: calculate("so3krates-ethanol", molecule("CH3CH2OH")),
    "get_forces, aspirin, So3krates": lambda: calculate("so3krates-aspirin", aspirin),
    "get_forces, ethanol, Equiformer": lambda: calculate("equiformer-ethanol", molecule("CH3CH2OH")),
    "get_forces, 192 atoms of water": lambda: calculate(so3lr_sized(), SYSTEMS["water-192"]()),
    "get_forces, 1,536 atoms of water": lambda: calculate(so3lr_sized(), SYSTEMS["water-1536"]()),
    "Langevin step, ethanol": lambda: langevin("so3krates-ethanol", molecule("CH3CH2OH")),
    "Langevin step, aspirin": lambda: langevin("so3krates-aspirin", aspirin),
}
calls = {}
for line in sys.stdin:
    name, n = line.rstrip().rsplit("|", 1)
    if name not in calls:
        calls[name] = made[name]()
        calls[name](3)
    began = time.perf_counter()
    calls[name](int(n))
    print((time.perf_counter() - began) / int(n), flush=True)
"""


def worker(checkout: Path) -> subprocess.Popen[str]:
    """Start a process with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(HERE / "benchmarks")],
        env=environment,
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def ask(process: subprocess.Popen[str], name: str, n: int) -> float:
    """Return the time of a call, s."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}|{n}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--other", type=Path, required=True, help="The checkout of before.")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--only", help="Part of the names of cases.")
    options.add_argument("-o", "--output", help="Name in benchmarks/results.")
    given = options.parse_args()
    both = {"before": worker(given.other.resolve()), "after": worker(HERE)}
    found: dict[str, dict[str, list[float]]] = {}
    for name, n in CASES.items():
        if given.only and given.only not in name:
            continue
        times: dict[str, list[float]] = {"before": [], "after": []}
        for process in both.values():
            ask(process, name, 1)
        for k in range(given.rounds):
            order = list(both.items())[:: 1 if k % 2 else -1]
            for which, process in order:
                times[which].append(ask(process, name, n))
        found[name] = times
        print(name, {which: 1e6 * median(values) for which, values in times.items()}, flush=True)
    rows = ["| µs, medians | before | after | after / before |", "|---|--:|--:|--:|"]
    for name, times in found.items():
        ratio = median(b / a for a, b in zip(times["before"], times["after"], strict=True))
        middle = " | ".join(f"{1e6 * median(times[which]):,.0f}" for which in times)
        rows.append(f"| {name} | {middle} | {ratio:.3f} |")
    print("\n".join(rows))
    if given.output:
        results = HERE / "benchmarks" / "results"
        (results / f"{given.output}.json").write_text(json.dumps(found, indent=1) + "\n")
        before, after = (commit_of(where) for where in (given.other, HERE))
        text = f"# An engine as a faster network\n\n{machine_name()}, one thread, two processes by turns, "
        text += f"{given.rounds} rounds; the ratio is the median over rounds. Before: {before}, "
        text += f"after: {after}. `get_forces` is called through ASE, at new positions.\n\n"
        text += "\n".join(rows) + "\n\n`python benchmarks/studies/seam.py --other CHECKOUT`\n"
        (results / f"{given.output}.md").write_text(text)


if __name__ == "__main__":
    main()
