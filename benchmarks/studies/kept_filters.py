"""Time of an evaluation of So3krates with loops that keep the filters or recompute them.

    python benchmarks/studies/kept_filters.py      # a minute on a quiet machine

Both take turns in one process, for the general model; times exclude neighbour lists. Results:
benchmarks/results/kept_filters.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from result_files import machine_name, table
from result_files import write as write_result
from structures import SYSTEMS

from attncalc import System, load
from attncalc.evaluator import Evaluator
from attncalc.kernels.so3krates import engine

RESULTS = HERE.parent / "results"
MODEL = "so3krates-organic"
CALLS = {"ethanol": 200, "aspirin": 100, "peptide": 50, "water-192": 8, "water-1536": 1}
ROUNDS = 15


def evaluator(system: System, most: int) -> Evaluator:
    """Return an evaluator that has run this system with `most` as the limit of kept filters."""
    engine.MOST_KEPT = most
    made = Evaluator(load(MODEL, threads=1, device="cpu"))
    made(system)
    made(system)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limits, rows = {"again": 0, "kept": engine.MOST_KEPT}, []
    for name, n_calls in CALLS.items():
        system = System.from_ase(SYSTEMS[name]())
        ways = {way: evaluator(system, most) for way, most in limits.items()}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, evaluate in ways.items():
                began = time.perf_counter()
                for _ in range(n_calls):
                    evaluate(system)
                taken[way].append(1e3 * (time.perf_counter() - began) / n_calls)
        again, kept = (float(np.median(taken[way])) for way in ("again", "kept"))
        n_atoms = len(system.atomic_numbers)
        rows.append([name, str(n_atoms), f"{again:.3f}", f"{kept:.3f}", f"{kept / again:.2f}"])
        print(*rows[-1], flush=True)
    head = ["system", "atoms", "filters made again, ms", "filters kept, ms", "ratio"]
    lines = [f"{machine_name()}, 1 thread. {MODEL}, medians of {ROUNDS} rounds by turns.", ""]
    write_result(arguments.output / "kept_filters.md", "\n".join([*lines, *table(head, rows)]))


if __name__ == "__main__":
    main()
