"""Cost of non-local attention: time and memory against the number of atoms.

    python benchmarks/studies/nonlocal_cost.py

Energy + forces of water droplets of 24 to 2,160 atoms, one thread, float32, random weights of the
default size (132 features, 3 layers, local cutoff 5 Å):

* without non-local attention;
* with ours: pairs up to 30 Å, which are all pairs of a droplet of 2,160 atoms except for corners;
* with the published one: all pairs.

Every row is a process of its own. Memory is the rise of the peak above that for 24 atoms, including
the list of pairs. Results go to benchmarks/results/nonlocal-cost.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import in_a_process, machine_name, peak_mib, table, write

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "results"
DROPLETS = {24: (2, 2, 2), 81: (3, 3, 3), 192: (4, 4, 4), 375: (5, 5, 5)}
DROPLETS |= {648: (6, 6, 6), 1029: (7, 7, 7), 1536: (8, 8, 8), 2160: (8, 9, 10)}
NETWORKS = {
    "local": {"nonlocal_attention": "none"},
    "non-local, ours": {"nonlocal_attention": "window"},
    "non-local, published": {"nonlocal_attention": "dynamic", "form": "published", "paths": "all"},
}
FITTED = 300  # smallest number of atoms in the fit of the exponent


def worker(name: str, n_atoms: int) -> dict:
    """Return the measurements of one process."""
    import torch
    from structures import water_box

    from attncalc import Potential, System, evaluate
    from attncalc.neighbors import fresh_graph
    from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = So3kratesSphcConfig(cutoff=5.0, **NETWORKS[name])
    potential = Potential(So3kratesSphc(config, 2), (1, 8)).requires_grad_(False)

    def run(size: int) -> dict:
        atoms = water_box(DROPLETS[size])
        atoms.pbc = False
        graph = fresh_graph(System.from_ase(atoms), cutoff=potential.cutoff, species=(1, 8))
        times, repeats = [], 5 if graph.n_edges < 100_000 else 1
        for _ in range(1 + repeats):
            start = time.process_time()
            evaluate(potential, graph)
            times.append(1e3 * (time.process_time() - start))
        far = potential.network.geometry(graph).far
        pairs = 0 if far is None else far.n_edges // 2
        return {
            "network": name,
            "atoms": size,
            "near_pairs": graph.n_edges // 2 - pairs,
            "far_pairs": pairs,
            "cpu_ms": statistics.median(times[1:]),
        }

    run(24)
    before = peak_mib()
    return run(n_atoms) | {"rise_MiB": peak_mib() - before}


def measured(*task: str) -> dict:
    """Return one row, from a process of its own."""
    row = in_a_process(__file__, "--worker", *task)
    if "failed" in row:
        sys.exit(f"{' '.join(task)} atoms: {row['failed']}")
    return row


def markdown(rows: list[dict], machine: str) -> str:
    """Return the table in Markdown."""
    head = ["network", "atoms", "near pairs", "far pairs", "CPU ms", "memory, MiB"]
    cells = [
        [
            row["network"],
            *(f"{row[key]:,}" for key in ("atoms", "near_pairs", "far_pairs")),
            *(f"{row[key]:,.0f}" for key in ("cpu_ms", "rise_MiB")),
        ]
        for row in rows
    ]
    lines = [machine, "", *table(head, cells), ""]
    for name in NETWORKS:
        of_name = [row for row in rows if row["network"] == name and row["atoms"] > FITTED]
        atoms, times = ([math.log(row[key]) for row in of_name] for key in ("atoms", "cpu_ms"))
        slope = statistics.linear_regression(atoms, times).slope
        lines.append(f"* {name}: time grows as atoms^{slope:.2f} above {FITTED} atoms")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, n_atoms = arguments.worker
        print(json.dumps(worker(name, int(n_atoms))))
        return
    rows = []
    for name in NETWORKS:
        for n_atoms in DROPLETS:
            rows.append(measured(name, str(n_atoms)))
            print(rows[-1], file=sys.stderr, flush=True)
    machine = machine_name()
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "rows": rows}
    write(RESULTS / "nonlocal-cost.json", json.dumps(content, indent=1) + "\n")
    write(RESULTS / "nonlocal-cost.md", markdown(rows, machine))
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
