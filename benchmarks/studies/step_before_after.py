"""Time of an evaluation in this checkout and in another one.

    git worktree add ../before COMMIT
    python benchmarks/studies/step_before_after.py --other ../before -o matrix_order

Both run by turns in processes of their own, on one thread, with neighbour lists outside of the
time. The result is benchmarks/results/NAME.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from result_files import machine_name, table
from result_files import write as write_result

MODELS = {
    "so3krates-organic": ("ethanol", "aspirin", "peptide", "water-192"),
    "so3krates-aspirin": ("aspirin",),
    "equiformer-aspirin": ("aspirin",),
}
SECONDS = 1.0
TIMED = """
import sys, time
from statistics import median

import torch

sys.path.insert(0, sys.argv[1])
from structures import SYSTEMS

from attncalc import System, evaluate, load
from attncalc.evaluator import Evaluator

torch.set_num_threads(1)
system = System.from_ase(SYSTEMS[sys.argv[2]]())
evaluator = Evaluator(load(sys.argv[3], threads=1, device="cpu"))
for _ in range(5):
    evaluator(system)
graphs, taken = evaluator._graphs(system), []
end = time.perf_counter() + float(sys.argv[4])
while not taken or time.perf_counter() < end:
    began = time.perf_counter()
    evaluate(evaluator.potential, graphs)
    taken.append(1e3 * (time.perf_counter() - began))
print(median(taken))
"""


def timed(checkout: Path, model: str, system: str, seconds: float) -> float:
    """Median time of an evaluation in ms, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TIMED, str(HERE), system, model, str(seconds)]
    ended = subprocess.run(
        command, cwd=checkout, env=environment, check=True, capture_output=True, text=True
    )
    return float(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="the checkout of before")
    parser.add_argument("-o", "--output", required=True, help="name of the result")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    checkouts, rows = [arguments.other.resolve(), HERE.parent], []
    for model, systems in MODELS.items():
        for checkout in checkouts:
            timed(checkout, model, systems[0], 0.0)  # loops are compiled
        for system in systems:
            each = [
                [timed(checkout, model, system, SECONDS) for checkout in checkouts]
                for _ in range(arguments.rounds)
            ]
            # others use the machine, too: what they take from a process is never negative
            before, after = (min(one) for one in zip(*each, strict=True))
            rows.append([model, system, f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}"])
            print(*rows[-1], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=checkouts[0], check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    note = (
        f"{machine_name()}, 1 thread. Median of the calls of a process, least of "
        f"{arguments.rounds} processes by turns. Others used the machine as well: a ratio is "
        "uncertain by a tenth or more."
    )
    head = ["model", "system", f"before (commit {commit}), ms", "after, ms", "ratio"]
    path = HERE / "results" / f"{arguments.output}.md"
    write_result(path, "\n".join([note, "", *table(head, rows)]))


if __name__ == "__main__":
    main()
