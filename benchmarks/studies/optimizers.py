"""Steps to the minimum: L-BFGS and FIRE in one batch, and ASE's L-BFGS one by one.

    python benchmarks/studies/optimizers.py            # with the extra `sample`; three minutes

The structures are those of `many_relaxations.py`: 64 conformers of 64 molecules, from a classical
force field. Results: benchmarks/results/optimizers.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.optimize import LBFGS

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from many_relaxations import MODEL, structures
from result_files import machine_name, table
from result_files import write as write_result

from attncalc import AttnCalculator, System, md

RESULTS = HERE.parent / "results"
FMAX, STEPS = 0.01, 1000  # eV/Å


def by_ase(calculator: AttnCalculator, frames: list[Atoms]) -> tuple[list[int], list[float]]:
    """Return number of steps and largest force, eV/Å, of each structure."""
    steps, largest = [], []
    for atoms in frames:
        atoms.calc = calculator
        with LBFGS(atoms, logfile=None) as optimizer:
            optimizer.run(fmax=FMAX, steps=STEPS)
        steps.append(optimizer.nsteps)
        largest.append(float(np.linalg.norm(atoms.get_forces(), axis=1).max()))
    return steps, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    frames = structures(arguments.structures, 0)
    calculator = AttnCalculator(MODEL, device="cpu")
    rows = []
    for name in ("lbfgs", "fire", "ASE's L-BFGS"):
        copies, began = [atoms.copy() for atoms in frames], time.process_time()
        if name in ("lbfgs", "fire"):
            kept = {"fmax": FMAX, "steps": STEPS, "optimizer": name}
            end = md.relax_batch(calculator.evaluator, System.from_ase(copies), **kept)
            steps, largest = end.steps.tolist(), end.largest_force.tolist()
        else:
            steps, largest = by_ase(calculator, copies)
        seconds, left = time.process_time() - began, sum(force > FMAX for force in largest)
        rows.append([name, f"{np.mean(steps):.0f}", str(max(steps)), str(left), f"{seconds:.1f}"])
        print(rows[-1], flush=True)
    headings = ["", "steps, mean", "steps, most", f"unfinished after {STEPS}", "CPU s"]
    notes = f"{machine_name()}, 1 thread. {len(frames)} molecules, {MODEL}, to {FMAX} eV/Å.\n\n"
    text = notes + "\n".join(table(headings, rows)) + "\n"
    write_result(arguments.output / "optimizers.md", text)


if __name__ == "__main__":
    main()
