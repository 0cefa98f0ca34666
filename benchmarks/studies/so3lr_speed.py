"""SO3LR in attncalc and in so3krates-torch, same weights: energy + forces, 1 thread, float32.

    python benchmarks/studies/so3lr_speed.py so3lr.safetensors    # after `make peers`

Every measurement has a process of its own. Programs take turns within a round, and the results are
medians over all calls of all rounds. Times exclude neighbour lists. Pairs of longer range end at
12 Å in both programs. "without long range" omits electrostatics and dispersion, and "lists" is the
time to build the lists of both ranges. Memory is the peak of one process in a step of dynamics
beyond that before its first step, for periodic water of increasing size.

Results: benchmarks/results/so3lr-speed.json and so3lr-speed.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engines import _of_peer, peak_mib, so3lr_of_torch, step_of_ase, timed  # noqa: E402
from result_files import machine_name, table, write  # noqa: E402
from run import python_of, run_worker  # noqa: E402
from structures import SYSTEMS, water_box  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
CUTOFF = 12.0  # Å
TIMED = ("ethanol", "aspirin", "water-192", "water-1536")
BOXES = {"water-1536": (8, 8, 8), "water-12288": (16, 16, 16), "water-98304": (32, 32, 32)}
OURS, PEER = "attncalc", "so3krates-torch"


def ours(model: str, name: str, budget: float) -> dict:
    """Time whole steps, steps without the terms of longer range, and the building of lists."""
    from torch import nn

    from attncalc import AttnCalculator, System, evaluate, load
    from attncalc.evaluator import Evaluator
    from attncalc.physics.pair_term import long_range_of

    atoms = SYSTEMS[name]()
    system = System.from_ase(atoms)
    calculator = AttnCalculator(model, long_range_cutoff=CUTOFF, threads=1)
    evaluator = calculator.evaluator
    moved = system.with_positions(system.positions + 1e-3)
    evaluator._graphs(moved)
    graphs = evaluator._graphs(system)  # from existing lists, as in a step
    short = load(model)
    near = [term for term in short.pair_terms if long_range_of(term) is None]
    short.pair_terms = nn.ModuleList(near)
    network = Evaluator(short)
    network._graphs(moved)
    alone = network._graphs(system)
    calls = {
        "step": lambda: evaluate(evaluator.potential, graphs),
        "without_long_range": lambda: evaluate(network.potential, alone),
    }
    times = timed(budget, calls, "cpu")
    times |= timed(budget / 2, {"ase_step": step_of_ase(atoms, calculator)}, "cpu")
    fresh = Evaluator(load(model, long_range_cutoff=CUTOFF), skin=0.0)

    def lists() -> None:
        fresh._graphs(system), fresh._graphs(moved)  # without skin each needs its own lists

    times["lists"] = [half / 2 for half in timed(budget / 2, {"lists": lists}, "cpu")["lists"]]
    assert graphs.long is not None
    pairs = int(graphs.long.edge_mask.sum())
    return {"atoms": len(atoms), "edges": int(graphs.short.edge_mask.sum()), "pairs": pairs, **times}


def peer(name: str, budget: float) -> dict:
    """Time whole steps and steps without long range in so3krates-torch, and its calculator."""
    import numpy as np

    atoms = SYSTEMS[name]()
    atoms.info.update(charge=0, multiplicity=1, total_spin=0.0)
    if not atoms.pbc.any():
        atoms.set_cell(np.eye(3) * 60.0)
    row: dict = {"atoms": len(atoms)}
    for key, calculator in (
        ("step", so3lr_of_torch("cpu", long_range_cutoff=CUTOFF)),
        ("without_long_range", so3lr_of_torch("cpu")),
    ):
        model = calculator.models[0]
        batch = calculator._atoms_to_batch(atoms).to_dict()

        def network(one: dict, model: torch.nn.Module = model) -> None:
            model(one, compute_stress=False)

        times = _of_peer(network, batch, step_of_ase(atoms, calculator), "cpu", budget)
        row[key] = times["network"]
        if key == "step":
            row["ase_step"] = times["ase_step"]
    return row


def memory(model: str, name: str) -> dict:
    """Return the peak memory, MiB, of a process before and after two steps of dynamics."""
    from attncalc import System, md
    from attncalc.calculator import AttnCalculator

    atoms = water_box(BOXES[name])
    evaluator = AttnCalculator(model, long_range_cutoff=CUTOFF, threads=1).evaluator
    small = System.from_ase(water_box((4, 4, 4)))
    verlet = md.Verlet(0.01)
    md.run(verlet, evaluator, verlet.init(evaluator, small, seed=0), 1)  # compiles, and imports
    before = peak_mib("cpu")
    system = System.from_ase(atoms)
    md.run(verlet, evaluator, verlet.init(evaluator, system, seed=0), 2)
    return {"atoms": len(atoms), "before_MiB": before, "peak_MiB": peak_mib("cpu")}


def markdown(rows: dict[str, dict[str, dict]], boxes: dict[str, dict], notes: list[str]) -> str:
    """Return the tables in Markdown."""
    lines = [*notes, "", "## Energy + forces, ms per call", ""]
    body = []
    for name, of in rows.items():
        a, b = of[OURS], of.get(PEER, {})
        whole, part = a["step"], a["without_long_range"]
        theirs = [f"{b[key]:.2f}" if key in b else b.get("failed", "") for key in
                  ("step", "without_long_range")]
        body.append([name, str(a["atoms"]), str(a["edges"]), str(a["pairs"])])
        body[-1] += [f"{whole:.3f}", f"{part:.3f}", f"{100 * (1 - part / whole):.0f} %", *theirs]
        body[-1] += [f"{b['step'] / whole:.1f}" if "step" in b else ""]
        body[-1] += [f"{a['ase_step']:.2f}", f"{b['ase_step']:.2f}" if "ase_step" in b else ""]
        body[-1] += [f"{a['lists']:.2f}"]
    head = ["system", "atoms", "edges", f"pairs within {CUTOFF:.0f} Å", "attncalc"]
    head += ["without long range", "share of long range", PEER, f"{PEER} without long range"]
    head += ["ratio", "ASE step, attncalc", f"ASE step, {PEER}", "new lists"]
    lines += table(head, body)
    if boxes:
        lines += ["", "## Memory of a step of dynamics", ""]
        lines += table(
            ["system", "atoms", "MiB", "KiB per atom"],
            [
                [name, str(one["atoms"]), f"{used:.0f}", f"{1024 * used / one['atoms']:.1f}"]
                for name, one in boxes.items()
                for used in [one["peak_MiB"] - one["before_MiB"]]
            ],
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--systems", nargs="+", default=[*TIMED, *BOXES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=4.0, help="s per measurement, at least")
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=(OURS, PEER, "memory"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.set_num_threads(arguments.threads)
        (name,) = arguments.systems
        if arguments.worker == "memory":
            row = memory(arguments.model, name)
        elif arguments.worker == OURS:
            row = ours(arguments.model, name, arguments.budget)
        else:
            row = peer(name, arguments.budget)
        print(json.dumps(row), flush=True)
        return
    measured: dict[str, dict[str, dict]] = {}
    path, script = str(Path(arguments.model).resolve()), "studies/so3lr_speed.py"
    for turn in range(arguments.rounds):
        for name in (one for one in TIMED if one in arguments.systems):
            for engine in (OURS, PEER):
                if (python := python_of(engine, {})) is None:
                    continue
                key = (engine, name, 1)
                row = run_worker(python, key, arguments.budget, script=script, more=(path,))
                told = row.get("failed") or f"{median(row['step']):.3f} ms"
                print(f"round {turn + 1} of {arguments.rounds}: {engine} {name}: {told}", flush=True)
                kept = measured.setdefault(name, {}).setdefault(engine, row)
                if kept is not row and "failed" not in row:
                    for part, value in row.items():
                        kept[part] = kept[part] + value if isinstance(value, list) else value
    boxes = {}
    for name in (one for one in BOXES if one in arguments.systems):
        key = ("memory", name, 1)
        boxes[name] = run_worker(sys.executable, key, 0.0, script=script, more=(path,))
        print(f"memory of {name}: {boxes[name]}", flush=True)
    rows = {
        name: {
            engine: {k: median(v) if isinstance(v, list) else v for k, v in row.items()}
            for engine, row in of.items()
        }
        for name, of in measured.items()
    }
    notes = [machine_name(), "", f"{arguments.rounds} rounds by turns, 1 thread, float32."]
    content = {"machine": machine_name(), "rounds": arguments.rounds, "rows": rows, "memory": boxes}
    write(RESULTS / "so3lr-speed.json", json.dumps(content, indent=1) + "\n")
    write(RESULTS / "so3lr-speed.md", markdown(rows, boxes, notes))
    print((RESULTS / "so3lr-speed.md").read_text())


if __name__ == "__main__":
    main()
