"""Time of a dynamics step by so3krates-organic, SO3LR and GFN2-xTB: 9 to 4,608 atoms, 1 thread.

    python benchmarks/studies/general_speed.py so3lr.safetensors

A step is a force call as in ASE's dynamics, after small displacements, with everything that the
calculators do. GFN2-xTB is tblite's calculator, which starts from the charges of the previous step.
Structures are molecules, and round clusters of water cut from a box at liquid density, so that no
program needs periodic cells. The last structure is a periodic box, without GFN2-xTB. Every
measurement has a process of its own. Programs take turns within a round, and the results are
medians over all steps of all rounds.

Results: benchmarks/results/general-speed.json and general-speed.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ase import Atoms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engines import step_of_ase, timed  # noqa: E402
from result_files import machine_name, table, write  # noqa: E402
from run import run_worker  # noqa: E402
from structures import SYSTEMS, water_box  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
GFN2, SO3LR, OURS = PROGRAMS = ("GFN2-xTB", "SO3LR", "so3krates-organic")


def cluster(n_molecules: int) -> Atoms:
    """Return the molecules of a box of water that are nearest to its centre."""
    box = water_box((8, 8, 8))
    oxygens = box.positions[::3]
    distances = np.linalg.norm(oxygens - oxygens.mean(axis=0), axis=1)
    chosen = np.argsort(distances, kind="stable")[:n_molecules]
    atoms = box[(3 * chosen[:, None] + np.arange(3)).ravel()]
    atoms.pbc, atoms.cell = False, None
    return atoms


STRUCTURES = {
    "ethanol": SYSTEMS["ethanol"],
    "aspirin": SYSTEMS["aspirin"],
    "peptide": SYSTEMS["peptide"],
    "34 waters": lambda: cluster(34),
    "167 waters": lambda: cluster(167),
    "1,536 waters, periodic": lambda: water_box((8, 16, 12)),
}


def calculator(program: str, so3lr: str) -> Any:
    """Return the ASE calculator of a program, with one thread."""
    from attncalc import AttnCalculator

    if program == GFN2:
        from tblite.ase import TBLite

        return TBLite(method="GFN2-xTB", verbosity=0)
    return AttnCalculator(so3lr if program == SO3LR else "so3krates-organic", threads=1)


def markdown(rows: dict[str, dict[str, dict]], rounds: int) -> str:
    """Return the table in Markdown."""
    body = []
    for name, of in rows.items():
        ours = of[OURS]["ms"]
        cells = [name, str(of[OURS]["atoms"])]
        for program in PROGRAMS:
            found = of.get(program)
            cells.append("" if found is None else found.get("failed") or f"{found['ms']:.2f}")
        for program in (GFN2, SO3LR):
            other = of.get(program, {}).get("ms")
            cells.append("" if other is None else f"{other / ours:.1f}")
        cells.append(f"{86.4e6 * 0.5e-6 / ours:.2g}")
        body.append(cells)
    head = ["structure", "atoms", *(f"{program}, ms" for program in PROGRAMS)]
    head += [f"{GFN2} / {OURS}", f"{SO3LR} / {OURS}", f"{OURS}, ns per day at 0.5 fs"]
    said = f"ASE steps, {rounds} rounds by turns, 1 thread, medians."
    return "\n".join([machine_name(), "", said, "", *table(head, body), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("so3lr", help="model file that `attncalc convert so3lr` wrote")
    parser.add_argument("--systems", nargs="+", default=list(STRUCTURES), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=4.0, help="s per measurement, at least")
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.set_num_threads(arguments.threads)
        atoms = STRUCTURES[arguments.systems[0]]()
        step = step_of_ase(atoms, calculator(arguments.worker, arguments.so3lr))
        times = timed(arguments.budget, {"step": step}, "cpu")["step"]
        print(json.dumps({"atoms": len(atoms), "step": times}), flush=True)
        return
    measured: dict[str, dict[str, dict]] = {}
    path, script = str(Path(arguments.so3lr).resolve()), "studies/general_speed.py"
    for turn in range(arguments.rounds):
        for name in arguments.systems:
            for program in PROGRAMS:
                if program == GFN2 and STRUCTURES[name]().pbc.any():
                    continue
                key = (program, name, 1)
                row = run_worker(sys.executable, key, arguments.budget, script=script, more=(path,))
                told = row.get("failed") or f"{median(row['step']):.3f} ms"
                said = f"round {turn + 1} of {arguments.rounds}: {program}, {name}: {told}"
                print(said, flush=True)
                kept = measured.setdefault(name, {}).setdefault(program, row)
                if kept is not row and "step" in kept:
                    kept["step"] += row.get("step", [])
    rows = {
        name: {
            program: {"atoms": row["atoms"], "ms": median(row["step"])} if "step" in row else row
            for program, row in of.items()
        }
        for name, of in measured.items()
    }
    content = {"machine": machine_name(), "rounds": arguments.rounds, "rows": rows}
    write(RESULTS / "general-speed.json", json.dumps(content, indent=1) + "\n")
    write(RESULTS / "general-speed.md", markdown(rows, arguments.rounds))
    print((RESULTS / "general-speed.md").read_text())


if __name__ == "__main__":
    main()
