"""Work of one of many processes against its number of atoms: a box cut into 2 x 2 x 2 domains.

    python benchmarks/studies/domains.py             # ten minutes

No messages are sent. One domain is computed alone: with ghosts of one hop (whose rows are not
updated), and with deep ghosts. The whole box in one process is computed for comparison. Times are
CPU times of one thread. The script counts the bytes that ghosts would send in a step, both ways.

Results: benchmarks/results/domains.json and domains.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result
from structures import water_box

from attncalc import load
from attncalc.fast import lower
from attncalc.graph import Graphs
from attncalc.domain import (Box, Domain, Images, StructureTotals, reach_of)
from attncalc.potential import Potential, evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System

RESULTS = Path(__file__).resolve().parents[1] / "results"
SKIN = 1.0  # Å
ROUNDS = 5
FLOAT = 4  # bytes


def silicon(n: int) -> Atoms:
    """Return a cube of n³ cells with displaced atoms."""
    atoms = bulk("Si", cubic=True).repeat(n)
    atoms.rattle(0.05, seed=0)
    return atoms


# name -> function of the size that makes the structure, sizes, model
SYSTEMS: dict[str, tuple[Callable[[int], Atoms], Sequence[int], str]] = {
    "silicon": (silicon, (8, 10, 13, 16, 20), "so3krates-silicon"),
    "water": (lambda n: water_box((n, n, n)), (12, 16, 20, 24), "so3krates-organic"),
}


class Counting:
    """A `LayerExchange` that counts the bytes that it would send, and changes nothing."""

    def __init__(self, n_ghosts: int) -> None:
        self.n_ghosts, self.n_bytes = n_ghosts, 0

    def update(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Count the bytes of the rows of all ghosts."""
        self.n_bytes += FLOAT * self.n_ghosts * sum(array.shape[1] for array in arrays)

    give_back = update


def images_of(atoms: Atoms, reach: float) -> Images:
    """Return the atoms of the first eighth of the box, and all images within `reach` of it."""
    half = np.diag(atoms.cell.array) / 2
    atoms.wrap()
    own = np.flatnonzero((atoms.positions < half).all(1))
    positions, ids = [atoms.positions[own]], [own]
    for shift in itertools.product((-1, 0, 1), repeat=3):
        images = atoms.positions + shift @ atoms.cell.array
        is_near = ((images > -reach) & (images < half + reach)).all(1)
        if not any(shift):
            is_near[own] = False
        near = np.flatnonzero(is_near)
        positions.append(images[near])
        ids.append(near)
    rows = np.concatenate(ids)
    return Images(np.concatenate(positions), rows, atoms.numbers[rows], len(own))


def milliseconds(potential: Potential, graphs: Graphs) -> float:
    """Return the median CPU time of an evaluation, without the first one."""
    times = []
    for _ in range(ROUNDS + 1):
        before = time.thread_time()
        evaluate(potential, graphs)
        times.append(1e3 * (time.thread_time() - before))
    return median(times[1:])


def measure(atoms: Atoms, model: str) -> dict[str, float]:
    """Measure one size, for the network alone, because pairs of longer range divide evenly."""
    loaded = load(model, device="cpu")
    plain = Potential(loaded.network, loaded.species).requires_grad_(False)
    fast = lower(plain)
    composition = tuple(int((atoms.numbers == z).sum()) for z in plain.species)
    box, whole = Box(atoms.cell.array.copy(), atoms.pbc.copy()), StructureTotals(composition)
    found: dict[str, float] = {"atoms": len(atoms)}
    found["whole ms"] = milliseconds(fast, fresh_graphs(fast, System.from_ase(atoms)))
    for name, exchanges in (("exchanged", True), ("deep", False)):
        reach = reach_of(plain, exchanges=exchanges) + SKIN
        images = images_of(atoms, reach)
        domain = Domain.of(plain, images, box, whole, skin=SKIN, exchanges=exchanges)
        assert domain is not None
        counting = Counting(len(domain.rows) - domain.n_own)
        exchange: Any = counting if exchanges else None
        graphs = domain.graphs(images.positions, box, exchange=exchange)
        assert graphs is not None
        found["own"], found[f"{name} nodes"] = domain.n_own, len(domain.rows)
        found[f"{name} ms"] = milliseconds(fast, graphs)
        if exchanges:
            found["MB"] = counting.n_bytes / (ROUNDS + 1) / 1e6
    return found


def markdown(rows: dict[str, list[dict[str, float]]]) -> str:
    """Return the table in Markdown."""
    heads = ["system", "atoms per process", "nodes, exchanged", "nodes, deep", "MB per step"]
    heads += ["ms, exchanged", "ms, deep", "ms of the whole / 8", "efficiency, exchanged", "deep"]
    lines = []
    for name, sizes in rows.items():
        for row in sizes:
            share = row["whole ms"] * row["own"] / row["atoms"]
            lines.append(
                [
                    name,
                    *(f"{row[key]:.0f}" for key in ("own", "exchanged nodes", "deep nodes")),
                    f"{row['MB']:.1f}",
                    *(f"{row[key]:.1f}" for key in ("exchanged ms", "deep ms")),
                    f"{share:.1f}",
                    *(f"{100 * share / row[f'{way} ms']:.0f} %" for way in ("exchanged", "deep")),
                ]
            )
    return "\n".join([machine_name(), "", *table(heads, lines), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {}
    for name in arguments.systems:
        make, sizes, model = SYSTEMS[name]
        for size in sizes:
            rows.setdefault(name, []).append(measure(make(size), model))
            print(name, {key: round(value, 1) for key, value in rows[name][-1].items()}, flush=True)
    content = {"machine": machine_name(), "rows": rows}
    write_result(arguments.output / "domains.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / "domains.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
