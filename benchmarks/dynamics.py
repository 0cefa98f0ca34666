"""Molecular dynamics: ns/day of the shipped models, replicas in a batch, and large boxes.

    python benchmarks/dynamics.py [-o NAME]

One thread, float32, Langevin dynamics at 300 K with 0.5 fs. There are three tables:

* time of a step through ASE and in attncalc's own loop, and what both add to energy + forces;
* time of a step for 1 to 64 replicas in one batch;
* time and memory of energy + forces of boxes of water of 1,536 to 98,304 atoms, by a network of
  SO3LR's size with random weights, in three rounds over all boxes.

Every row comes from a process of its own. Results go to benchmarks/results/NAME.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from result_files import in_a_process, machine_name, peak_mib, table, write
from run import growth

HERE = Path(__file__).resolve().parent
MODELS = {
    "so3krates-ethanol": "ethanol",
    "equiformer-ethanol": "ethanol",
    "so3krates-aspirin": "aspirin",
    "so3krates-silicon": "silicon",
}
REPLICAS = (1, 4, 16, 64)
BOXES = {1536: (8, 8, 8), 6144: (8, 16, 16), 24576: (16, 16, 32), 98304: (32, 32, 32)}
BOX_ROUNDS = 3
STEPS = 100  # per round
SECONDS = 6.0  # at least, per measurement
TIMESTEP = 0.5  # fs


def structure(name: str):
    """Return a structure near its minimum."""
    from ase.build import bulk
    from structures import SYSTEMS

    return bulk("Si", cubic=True) * (2, 2, 2) if name == "silicon" else SYSTEMS[name]()


def us_per_step(calls: dict[str, Callable[[], object]], n: int) -> dict[str, list[float]]:
    """Return µs per step of every round, for calls that take turns and do `n` steps each."""
    from engines import timed

    times = timed(SECONDS * len(calls), calls, "cpu")
    return {name: [1e3 * ms / n for ms in rounds] for name, rounds in times.items()}


def of_model(model: str) -> dict:
    """Time energy + forces on a ready graph, and what ASE and attncalc's own loop add to them."""
    from ase import units
    from ase.md.langevinbaoab import LangevinBAOAB

    from attncalc import AttnCalculator, Evaluator, System, evaluate, load, md

    n = STEPS
    atoms = structure(MODELS[model])
    force = Evaluator(load(model))
    langevin = md.Langevin(TIMESTEP * units.fs, 300.0, 0.01 / units.fs)
    now = [md.run(langevin, force, langevin.init(force, System.from_ase(atoms)), 200)]
    atoms.positions = now[0].system.positions.numpy()
    atoms.set_momenta(now[0].momenta.numpy())
    still, moving = atoms.copy(), atoms.copy()
    _, graph = force.neighbors.update(now[0].system)
    calculator, moving.calc = AttnCalculator(model), AttnCalculator(model)
    dynamics = LangevinBAOAB(
        moving,
        TIMESTEP * units.fs,
        temperature_K=300,
        T_tau=100 * units.fs,
        rng=np.random.default_rng(0),
    )

    def alone() -> None:
        for _ in range(n):
            evaluate(force.potential, graph)

    def calculate() -> None:
        for _ in range(n):
            calculator.calculate(still, ["energy", "forces"], [])

    def ours() -> None:
        now[0] = md.run(langevin, force, now[0], n)

    calls = {"alone": alone, "calculate": calculate, "ours": ours, "ase": lambda: dynamics.run(n)}
    rounds = us_per_step(calls, n)
    row = {"model": model, "atoms": len(atoms), "rounds": len(rounds["alone"])}
    row |= {f"{name}_us": statistics.median(times) for name, times in rounds.items()}
    for name in ("calculate", "ours"):  # per round, because the machine's speed drifts
        added = [a - b for a, b in zip(rounds[name], rounds["alone"], strict=True)]
        row[f"{name}_adds_us"] = statistics.quantiles(added, n=4)
    return row


def of_batch(model: str, n: int) -> dict:
    """Time a step of n replicas."""
    from ase import units

    from attncalc import Evaluator, System, load, md

    force = Evaluator(load(model))
    langevin = md.Langevin(TIMESTEP * units.fs, 300.0, 0.01 / units.fs)
    batch = System.from_ase([structure(MODELS[model])] * n)
    now = [md.run(langevin, force, langevin.init(force, batch), 50)]

    def advance() -> None:
        now[0] = md.run(langevin, force, now[0], 40)

    (times,) = us_per_step({"batch": advance}, 40).values()
    return {"model": model, "replicas": n, "us": statistics.median(times) / n}


def of_box(n_atoms: int) -> dict:
    """Time energy + forces of a box, and measure the peak of memory during their computation."""
    from engines import so3lr_sized
    from structures import water_box

    from attncalc import System, evaluate
    from attncalc.fast import lower
    from attncalc.neighbors import fresh_graph

    potential = lower(so3lr_sized())
    system = System.from_ase(water_box(BOXES[n_atoms]))
    before = peak_mib()
    graph = fresh_graph(system, cutoff=potential.cutoff, species=potential.species)
    (times,) = us_per_step({"box": lambda: evaluate(potential, graph)}, 1).values()
    ms = statistics.median(times) / 1e3
    peak = peak_mib()
    return {"atoms": n_atoms, "edges": graph.n_edges, "ms": ms, "peak_MiB": peak} | {
        "rise_MiB": peak - before
    }


def markdown(content: dict) -> str:
    """Return the tables in Markdown."""

    def ns_per_day(us: float) -> str:
        return f"{TIMESTEP * 1e-6 * 86400e6 / us:.1f}"

    def added(row: dict, name: str) -> str:
        low, middle, high = row[f"{name}_adds_us"]
        return f"{middle:.0f} ({low:.0f} to {high:.0f})"

    lines = ["# Dynamics on one thread", "", f"{content['machine']}; float32, 0.5 fs, 300 K.", ""]
    head = ["model", "atoms", "energy + forces, µs", "`calculate` adds, µs", "a step of ours, µs"]
    head += ["which adds, µs", "through ASE, µs", "ours, ns/day", "through ASE, ns/day"]
    lines += table(
        head,
        [
            [
                *(r["model"], str(r["atoms"]), f"{r['alone_us']:.0f}", added(r, "calculate")),
                *(f"{r['ours_us']:.0f}", added(r, "ours"), f"{r['ase_us']:.0f}"),
                *(ns_per_day(r["ours_us"]), ns_per_day(r["ase_us"])),
            ]
            for r in content["models"]
        ],
    )
    lines += [
        "",
        "Energy + forces on a ready graph. What `AttnCalculator.calculate` and a step add to it "
        "(conversion, checks, the look at the neighbour list, the integrator, new lists) is the "
        f"median and the quartiles of differences round by round, of {STEPS} calls each. Through "
        "ASE: a step of its LangevinBAOAB.",
        "",
        "Replicas in one batch:",
        "",
    ]
    lines += table(
        ["model", *(f"{n}, µs per replica and step" for n in REPLICAS)],
        [
            [model] + [f"{r['us']:.0f}" for r in content["batches"] if r["model"] == model]
            for model in dict.fromkeys(r["model"] for r in content["batches"])
        ],
    )
    lines += ["", "Boxes of water, network of SO3LR's size (4.5 Å), energy + forces:", ""]
    boxes = content["boxes"]
    lines += table(
        ["atoms", "edges", "ms", "µs per atom", "memory, MiB", "KiB per atom"],
        [
            [
                *(f"{r['atoms']:,}", f"{r['edges']:,}", f"{statistics.median(r['ms']):.0f}"),
                f"{1e3 * statistics.median(r['ms']) / r['atoms']:.1f}",
                f"{r['peak_MiB']:.0f}",
                f"{1024 * r['rise_MiB'] / r['atoms']:.1f}",
            ]
            for r in boxes
        ],
    )
    rounds = [[(r["atoms"], r["ms"][k]) for r in boxes] for k in range(BOX_ROUNDS)]
    exponent, low, high = growth(rounds)
    lines += [
        "",
        f"Medians of {BOX_ROUNDS} rounds. Time grows as atoms^{exponent:.3f} "
        f"(95 % interval over the rounds: {low:.3f} to {high:.3f}).",
    ]
    return "\n".join([*lines, ""])


def boxes_in_rounds() -> list[dict]:
    """Return one row per box, with the times of all rounds and the largest memory."""
    rounds = [[measured("box", str(n)) for n in BOXES] for _ in range(BOX_ROUNDS)]
    return [
        {
            **rows[0],
            "ms": [row["ms"] for row in rows],
            **{key: max(row[key] for row in rows) for key in ("peak_MiB", "rise_MiB")},
        }
        for rows in zip(*rounds, strict=True)
    ]


def measured(*task: str) -> dict:
    """Return one row, from a process of its own."""
    row = in_a_process(__file__, "--worker", *task)
    if "failed" in row:
        sys.exit(f"{' '.join(task)}: {row['failed']}")
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--name", default="dynamics", help="of the results (%(default)s)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        import torch

        torch.set_num_threads(1)
        kind, *what = options.worker
        row = {
            "model": lambda: of_model(what[0]),
            "batch": lambda: of_batch(what[0], int(what[1])),
            "box": lambda: of_box(int(what[0])),
        }[kind]()
        print(json.dumps(row))
        return
    content = {"machine": machine_name(), **{name: make() for name, make in TABLES.items()}}
    output = HERE / "results" / options.name
    write(output.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write(output.with_suffix(".md"), markdown(content))
    print(markdown(content))


TABLES = {
    "models": lambda: [measured("model", model) for model in MODELS],
    "batches": lambda: [
        measured("batch", model, str(n))
        for model in ("so3krates-ethanol", "so3krates-aspirin")
        for n in REPLICAS
    ],
    "boxes": boxes_in_rounds,
}

if __name__ == "__main__":
    main()
