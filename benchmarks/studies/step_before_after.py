"""Time of an evaluation in this checkout and in another one.

    git worktree add ../before COMMIT
    python benchmarks/studies/step_before_after.py --other ../before -o matrix_order

The checkouts take turns, in processes of their own, on one thread. Times exclude neighbour lists.
The result is benchmarks/results/NAME.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "studies")]

from before_after import command
from result_files import machine_name, table
from result_files import write as write_result

MODELS = {
    "so3krates-organic": ("ethanol", "aspirin", "peptide", "water-192"),
    "so3krates-aspirin": ("aspirin",),
    "equiformer-aspirin": ("aspirin",),
}
SECONDS = 1.0
TIMED = """
import sys
from statistics import median

import torch

sys.path.insert(0, sys.argv[1])
from engines import timed
from structures import SYSTEMS

from attncalc import System, evaluate, load
from attncalc.evaluator import Evaluator

torch.set_num_threads(1)
system = System.from_ase(SYSTEMS[sys.argv[2]]())
evaluator = Evaluator(load(sys.argv[3], threads=1, device="cpu"))
graphs = evaluator._graphs(system)
step = lambda: evaluate(evaluator.potential, graphs)
print(median(timed(float(sys.argv[4]), {"step": step}, "cpu")["step"]))
"""


def timed(checkout: Path, model: str, system: str, seconds: float) -> float:
    """Return the median time of an evaluation, ms, in a process of its own."""
    more = (str(BENCHMARKS), system, model, str(seconds))
    arguments, environment = command(checkout, "-c", TIMED, *more)
    ended = subprocess.run(
        arguments, env=environment, cwd=checkout, check=True, capture_output=True, text=True
    )
    return float(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="the checkout of before")
    parser.add_argument("-o", "--output", required=True, help="name of the result")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    checkouts, rows = [arguments.other.resolve(), BENCHMARKS.parent], []
    for model, systems in MODELS.items():
        for checkout in checkouts:
            timed(checkout, model, systems[0], 0.0)  # compiles the loops
        for system in systems:
            each = [
                [timed(checkout, model, system, SECONDS) for checkout in checkouts]
                for _ in range(arguments.rounds)
            ]
            before, after = zip(*each, strict=True)
            # other processes can only increase the times, so compare the shortest ones
            ratio = min(after) / min(before)
            ends = [f"{min(one):.3f} to {max(one):.3f}" for one in (before, after)]
            rows.append([model, system, *ends, f"{ratio:.2f}"])
            print(*rows[-1], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=checkouts[0], check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    note = (
        f"{machine_name()}, 1 thread. Medians of {arguments.rounds} processes by turns, the "
        "least and the largest; the ratio is that of the least."
    )
    head = ["model", "system", f"before (commit {commit}), ms", "after, ms", "ratio"]
    path = BENCHMARKS / "results" / f"{arguments.output}.md"
    write_result(path, "\n".join([note, "", *table(head, rows)]))


if __name__ == "__main__":
    main()
