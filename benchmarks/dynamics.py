"""Dynamics on this machine: ns/day of the shipped models, replicas in a batch, and large boxes.

    python benchmarks/dynamics.py

One thread, float32, Langevin dynamics at 300 K with 0.5 fs. Three tables: what a step costs through
ASE and in our own loop; the same for 1 to 64 replicas in one batch; and energy + forces of boxes of
water of 1,536 to 98,304 atoms by a network of SO3LR's size with random weights, with the memory
that it takes: three rounds over all boxes, every measurement in a process of its own. Results go to
benchmarks/results/dynamics.json and .md.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from run import growth
from tables import in_a_process, machine_name, table, write

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
SECONDS = 3.0  # of every measurement, at least
TIMESTEP = 0.5  # fs


def structure(name: str):
    """A structure near its minimum."""
    from ase.build import bulk
    from structures import SYSTEMS

    return bulk("Si", cubic=True) * (2, 2, 2) if name == "silicon" else SYSTEMS[name]()


def us_per_step(advance, n: int) -> float:
    """Median over rounds of `n` steps, after one that warms up."""
    advance(n)
    rounds = []
    start = time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        advance(n)
        rounds.append(1e6 * (time.perf_counter() - before) / n)
    return statistics.median(rounds)


def of_model(model: str) -> dict:
    """A step through ASE, in our own loop, and energy + forces alone."""
    from ase import units
    from ase.md.langevinbaoab import LangevinBAOAB

    from attncalc import AttnCalculator, System, load, md

    atoms = structure(MODELS[model])
    force = md.Forces(load(model))
    langevin = md.Langevin(TIMESTEP * units.fs, 300.0, 0.01 / units.fs)
    state = md.run(langevin, force, langevin.init(force, System.from_ase(atoms)), 200)
    now = [state]

    def ours(n: int) -> None:
        now[0] = md.run(langevin, force, now[0], n)

    row = {"model": model, "atoms": len(atoms)}
    row["ours_us"] = us_per_step(ours, 200)

    def alone(n: int) -> None:
        for _ in range(n):
            force(now[0].system)

    row["alone_us"] = us_per_step(alone, 200)
    atoms.positions = state.system.positions.numpy()
    atoms.set_momenta(state.momenta.numpy())
    atoms.calc = AttnCalculator(model)
    dynamics = LangevinBAOAB(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=300,
        T_tau=100 * units.fs,
        rng=np.random.default_rng(0),
    )
    row["ase_us"] = us_per_step(dynamics.run, 200)
    return row


def of_batch(model: str, n: int) -> dict:
    """A step of n replicas."""
    from ase import units

    from attncalc import System, load, md

    force = md.Forces(load(model))
    langevin = md.Langevin(TIMESTEP * units.fs, 300.0, 0.01 / units.fs)
    batch = System.from_ase([structure(MODELS[model])] * n)
    now = [md.run(langevin, force, langevin.init(force, batch), 50)]

    def advance(steps: int) -> None:
        now[0] = md.run(langevin, force, now[0], steps)

    return {"model": model, "replicas": n, "us": us_per_step(advance, 40) / n}


def of_box(n_atoms: int) -> dict:
    """Energy + forces of a box, and what memory rises to while they are computed."""
    import resource

    from engines import so3lr_sized
    from structures import water_box

    from attncalc import System, evaluate
    from attncalc.fast import lower
    from attncalc.neighbors import fresh_graph

    potential = lower(so3lr_sized())
    system = System.from_ase(water_box(BOXES[n_atoms]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    graph = fresh_graph(system, cutoff=potential.cutoff, species=potential.species)
    ms = us_per_step(lambda _: evaluate(potential, graph), 1) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"atoms": n_atoms, "edges": graph.n_edges, "ms": ms, "peak_MiB": peak} | {
        "rise_MiB": peak - before
    }


def markdown(content: dict) -> str:
    """The tables people read."""

    def ns_per_day(us: float) -> str:
        return f"{TIMESTEP * 1e-6 * 86400e6 / us:.1f}"

    lines = ["# Dynamics on one thread", "", f"{content['machine']}; float32, 0.5 fs, 300 K.", ""]
    head = ["model", "atoms", "energy + forces, µs", "a step of ours, µs", "through ASE, µs"]
    lines += table(
        [*head, "ours, ns/day", "through ASE, ns/day"],
        [
            [
                *(r["model"], str(r["atoms"])),
                *(f"{r[k]:.0f}" for k in ("alone_us", "ours_us", "ase_us")),
                *(ns_per_day(r["ours_us"]), ns_per_day(r["ase_us"])),
            ]
            for r in content["models"]
        ],
    )
    lines += ["", "Replicas in one batch:", ""]
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
    """One row per box, with the times of all rounds and the most memory that any took."""
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
    """One row, from a process of its own."""
    row = in_a_process(__file__, *task)
    if "failed" in row:
        sys.exit(f"{' '.join(task)}: {row['failed']}")
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    if len(sys.argv) > 1:
        import torch

        torch.set_num_threads(1)
        kind, *what = sys.argv[1:]
        row = {
            "model": lambda: of_model(what[0]),
            "batch": lambda: of_batch(what[0], int(what[1])),
            "box": lambda: of_box(int(what[0])),
        }[kind]()
        print(json.dumps(row))
        return
    content = {
        "machine": machine_name(),
        "models": [measured("model", model) for model in MODELS],
        "batches": [
            measured("batch", model, str(n))
            for model in ("so3krates-ethanol", "so3krates-aspirin")
            for n in REPLICAS
        ],
        "boxes": boxes_in_rounds(),
    }
    write(HERE / "results" / "dynamics.json", json.dumps(content, indent=1) + "\n")
    write(HERE / "results" / "dynamics.md", markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
