"""Time per edge in a batch of molecules and in a box of water, and reasons for the difference.

    python benchmarks/batching.py

The cases are 64 molecules of aspirin as 64 systems, the same far apart in one system, water at its
density, and water pulled apart to slightly fewer and slightly more atoms per edge than aspirin has.
They take turns in one process: energies and forces of a So3krates of SO3LR's size, one thread,
without the time of neighbour lists. Writes batching.json and .md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from engines import SO3LR, so3lr_sized
from result_files import machine_name, table, write
from structures import water_box

from attncalc import System, evaluate
from attncalc.fast import lower
from attncalc.neighbors import fresh_graph

HERE = Path(__file__).resolve().parent
PER_SIDE = 4
N_MOLECULES = PER_SIDE**3
APART = 30.0  # Å between molecules, beyond the cutoff
STRETCH = (1.3, 1.4)  # factors of the distances between molecules of water


def in_one_system(molecule: Atoms) -> Atoms:
    """Return 64 copies in one system, none within the cutoff of another."""
    together = Atoms()
    for place in np.ndindex(PER_SIDE, PER_SIDE, PER_SIDE):
        copy = molecule.copy()
        copy.positions += APART * np.array(place)
        together += copy
    return together


def stretched(box: Atoms, factor: float) -> Atoms:
    """Return the box with unchanged molecules that are `factor` times as far apart."""
    thin = box.copy()
    molecules = thin.positions.reshape(-1, 3, 3)
    centres = molecules.mean(1, keepdims=True)
    thin.positions = (molecules + (factor - 1) * centres).reshape(-1, 3)
    thin.set_cell(factor * box.cell)
    return thin


def measured(rounds: int) -> list[dict]:
    """Return one row per case."""
    potential = lower(so3lr_sized())
    aspirin, box = read(HERE / "aspirin.xyz"), water_box((8, 8, 8))
    cases = {
        f"{N_MOLECULES} aspirins, a batch": [aspirin] * N_MOLECULES,
        f"{N_MOLECULES} aspirins, one system": [in_one_system(aspirin)],
        "water": [box],
        **{f"water, {factor} times as far apart": [stretched(box, factor)] for factor in STRETCH},
    }
    graphs = {
        name: fresh_graph(
            System.from_ase(structures), cutoff=potential.cutoff, species=potential.species
        )
        for name, structures in cases.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, graph in graphs.items():
            start = time.process_time()
            evaluate(potential, graph)
            times[name].append(time.process_time() - start)
    return [
        {
            "case": name,
            "atoms": graph.n_atoms,
            "edges": graph.n_edges,
            "us_per_edge": 1e6 * median(times[name][1:]) / graph.n_edges,
        }
        for name, graph in graphs.items()
    ]


def markdown(rows: list[dict], rounds: int) -> str:
    """Return the table in Markdown."""
    head = ["what", "atoms", "edges", "atoms per edge", "µs per edge"]
    cells = [
        [
            *(row["case"], f"{row['atoms']:,}", f"{row['edges']:,}"),
            *(f"{row['atoms'] / row['edges']:.3f}", f"{row['us_per_edge']:.2f}"),
        ]
        for row in rows
    ]
    words = f"{SO3LR}; energies and forces, processor time, medians of {rounds} turns, one thread."
    return "\n".join([machine_name(), "", words, "", *table(head, cells), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be positive")
    torch.set_num_threads(1)
    rows = measured(options.rounds)
    text = markdown(rows, options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine_name(), "rounds": options.rounds, "rows": rows}
    write(options.output / "batching.json", json.dumps(content, indent=1) + "\n")
    write(options.output / "batching.md", text)
    print(text)


if __name__ == "__main__":
    main()
