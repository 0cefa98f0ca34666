"""Equiformer: time and memory of calls and of a training step.

    python benchmarks/studies/equiformer.py ../shared/data/structures/*.xyz

Processor time of energy + forces per call of the published function (lmax 2 and 3, float32, one
thread), for every structure file and for three boxes of water of up to 5,184 atoms:

* by the compiled step;
* by PyTorch, which runs on all devices and trains, with all edges at once and in chunks.

Also a training step with forces on eight slightly displaced copies of the largest structure at
lmax 3. Every row is a process of its own. Memory is the rise of the peak above that for ethanol.
Results go to benchmarks/results/equiformer.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import statistics
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import in_a_process, machine_name, peak_mib, table, write

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "results"
# boxes of water of 192, 1,536 and 5,184 atoms -> number of molecules along an edge
WATER = {"water-192": 4, "water-1536": 8, "water-5184": 12}
AT_ONCE = 1 << 60  # bytes
COPIES = 8


def worker(task: str, size: str, structure: str, kept: int | None) -> dict:
    """Return the measurements of one process."""
    import torch
    from ase.build import molecule
    from engines import PUBLISHED, equiformer

    import attncalc.nn.equiformer as module

    torch.set_num_threads(1)
    if kept is not None:
        module.LARGEST_KEPT = kept
    potential = equiformer(size, **PUBLISHED)
    run = {"call": call, "torch": by_torch, "train": train}[task]
    run(potential, molecule("CH3CH2OH"), 1)
    before = peak_mib()
    found = run(potential, _read(structure), 5)
    found.pop("graph", None)
    return found | {"rise_MiB": peak_mib() - before}


def _read(structure: str):
    from ase.io import read
    from structures import water_box

    if structure in WATER:
        return water_box((WATER[structure],) * 3)
    return read(structure)


def call(potential, atoms, repeats: int) -> dict:
    """Time energy and forces by the compiled step, as in a calculator."""
    from attncalc.fast import lower

    return _called(lower(potential), potential, atoms, repeats)


def by_torch(potential, atoms, repeats: int) -> dict:
    """Time energy and forces with folded weights and autograd."""
    from attncalc.kernels.frozen_equiformer import frozen
    from attncalc.ops import with_modules

    folded = with_modules(potential, network=frozen(potential.network))
    found = _called(folded, potential, atoms, repeats)
    chunks = len(potential.network.chunks(found.pop("graph")))
    return found | {"chunks": chunks, "bytes_per_edge": potential.network.bytes_per_edge}


def _called(fast, potential, atoms, repeats: int) -> dict:
    from attncalc import System, evaluate
    from attncalc.neighbors import fresh_graph

    graph = fresh_graph(System.from_ase(atoms), cutoff=5.0, species=potential.species)
    if graph.n_edges > 50_000:  # takes a minute
        repeats = 1
    times = _timed(lambda: evaluate(fast, graph), repeats)
    return {"atoms": len(atoms), "edges": graph.n_edges, "graph": graph} | times


def train(potential, atoms, repeats: int) -> dict:
    """Time the gradient of energy and force errors by all weights, by double backward."""
    import numpy as np

    from attncalc.data import Dataset
    from attncalc.train.batches import join, samples
    from attncalc.train.step import Loss, eager_step

    rng = np.random.default_rng(0)
    structures = [atoms.copy() for _ in range(COPIES)]
    for copied in structures:
        copied.positions += rng.normal(scale=0.02, size=copied.positions.shape)
    dataset = Dataset(
        structures=structures,
        energies=np.zeros(COPIES),
        forces=[np.zeros((len(atoms), 3))] * COPIES,
        source="rattled copies",
    )
    potential.requires_grad_(True)
    batch = join(samples(dataset, 5.0, potential.species))
    step = eager_step(potential, Loss(1.0, 1.0, 0.0))
    chunks = len(potential.network.chunks(batch.graph))
    facts = {"atoms": COPIES * len(atoms), "edges": batch.graph.n_edges, "chunks": chunks}
    return facts | _timed(lambda: step(batch), min(repeats, 1))


def _timed(run, repeats: int) -> dict:
    if repeats > 1:
        run()  # warm-up
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return {"cpu_ms": statistics.median(times), "cpu_ms_min": min(times)}


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table in Markdown."""
    head = ["what", "lmax", "structure", "atoms", "edges", "edges worked through"]
    head += ["CPU ms, median", "least", "memory, MiB", "KiB per edge"]
    cells = []
    for row in rows:
        start = [row["what"], row["size"][1:], row["structure"]]
        if "failed" in row:
            cells.append([*start, "", "", row["failed"], "", "", "", ""])
            continue
        way = "by the compiled step"
        if "chunks" in row:
            n = row["chunks"]
            way = f"in {n} chunk{'s' * (n > 1)}" if n else "at once"
        counts = [f"{row['atoms']:,}", f"{row['edges']:,}", way]
        times = [f"{row['cpu_ms']:,.1f}", f"{row['cpu_ms_min']:,.1f}"]
        memory = [f"{row['rise_MiB']:,.0f}", f"{1024 * row['rise_MiB'] / row['edges']:.1f}"]
        cells.append([*start, *counts, *times, *memory])
    lines = [machine, "", *table(head, cells), ""]
    compiled = [row for row in rows if "chunks" not in row and "failed" not in row]
    boxes = [row for row in compiled if row["structure"] in WATER]
    if len(boxes) == len(WATER):
        atoms, times = ([math.log(row[key]) for row in boxes] for key in ("atoms", "cpu_ms"))
        exponent = statistics.linear_regression(atoms, times).slope
        lines += [f"Over the boxes of water, time grows as atoms^{exponent:.2f}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("structures", nargs="*", type=Path, help="files that ASE reads")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, size, structure, kept = arguments.worker
        print(json.dumps(worker(task, size, structure, int(kept) if kept != "auto" else None)))
        return
    from ase.io import read

    files = sorted(arguments.structures, key=lambda path: len(read(path)))
    plan = [
        ("energy + forces" if task == "call" else "by PyTorch", task, size, str(path), kept)
        for path in files
        for size in ("l2", "l3")
        for task, kept in (("call", "auto"), *(("torch", k) for k in ("auto", str(AT_ONCE), "0")))
    ]
    plan += [("energy + forces", "call", "l2", name, "auto") for name in WATER]
    if files:
        plan.append((f"training step, {COPIES} copies", "train", "l3", str(files[-1]), "auto"))
    rows: list[dict] = []
    for n, (what, task, size, structure, kept) in enumerate(plan, start=1):
        row = in_a_process(__file__, "--worker", task, size, structure, kept)
        named = {"what": what, "size": size, "structure": Path(structure).stem}
        by_itself = [r for r in rows if named.items() <= r.items()][:1]
        if task == "torch" and by_itself and by_itself[0].get("chunks") == row.get("chunks"):
            continue  # told to do what it does by itself
        rows.append({**named, **row})
        told = row.get("failed") or f"{row['cpu_ms']:.1f} ms, {row['rise_MiB']:.0f} MiB"
        print(f"[{n}/{len(plan)}] {what}, {size}, {Path(structure).stem}: {told}", flush=True)
        content = {"machine": machine_name(), "rows": rows}
        write(RESULTS / "equiformer.json", json.dumps(content, indent=1) + "\n")
        write(RESULTS / "equiformer.md", markdown(rows, machine_name()))


if __name__ == "__main__":
    main()
