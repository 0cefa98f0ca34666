#!/usr/bin/env python
"""Force along a bond that is longer than any in the training data, of several models.

    python benchmarks/studies/stretched_bonds.py so3krates-organic MODEL ... \\
        --data ../shared/data/rmd17_uracil.npz --labels md17

Of all test structures (test_01), the one is taken in which a bond exceeds its greatest length in
the training structures (train_01) most. Its two atoms are then moved along the bond, by the same
distance each. Results: benchmarks/results/stretched_bonds.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table, write

from attncalc import AttnCalculator, data
from attncalc.bonds import Bonds
from attncalc.system import System

RESULTS = Path(__file__).resolve().parents[1] / "results"
STEP = 0.05  # Å


def longest_bond(dataset: data.Dataset, train: str, test: str) -> tuple[int, int, int, float]:
    """Return test structure, both atoms of its bond, and the greatest length in training, Å."""
    first = dataset.structures[0]
    edges = Bonds.of(System.from_ase(first)).edges
    pairs = list(zip(edges.receivers.tolist(), edges.senders.tolist(), strict=True))
    lengths = {
        split: np.array(
            [
                [dataset.structures[k].get_distance(*pair) for pair in pairs]
                for k in dataset.splits[split]
            ]
        )
        for split in (train, test)
    }
    beyond = lengths[test] - lengths[train].max(axis=0)
    row, bond = np.unravel_index(int(beyond.argmax()), beyond.shape)
    greatest = float(lengths[train][:, bond].max())
    return (int(dataset.splits[test][row]), *pairs[bond], greatest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", default="md17")
    parser.add_argument("--train", default="train_01")
    parser.add_argument("--test", default="test_01")
    chosen = parser.parse_args()
    dataset = data.read(chosen.data, labels=chosen.labels)
    k, i, j, greatest = longest_bond(dataset, chosen.train, chosen.test)
    atoms, forces = dataset.structures[k], dataset.forces[k]
    here = atoms.get_distance(i, j)
    unit = atoms.get_distance(i, j, vector=True) / here
    calculators = {Path(name).stem: AttnCalculator(name) for name in chosen.models}
    name = f"{atoms.symbols[i]}-{atoms.symbols[j]}"
    start = STEP * np.ceil((greatest - 0.3) / STEP)
    rows = []
    for length in [*np.arange(start, greatest + 0.35, STEP), here]:
        moved = atoms.copy()
        moved.set_distance(i, j, length)
        cells = [f"{length:.2f}"]
        for calculator in calculators.values():
            moved.calc = calculator
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the table has the novelty
                force = moved.get_forces()[j] @ unit
            cells.append(f"{force:.1f} ({calculator.novelty[[i, j]].max():.1f})")
        if length == here:
            cells[0] += f", label {forces[j] @ unit:.1f}"
        rows.append((length, cells))
    lines = [
        f"# A {name} bond beyond the training data",
        "",
        f"Force on {atoms.symbols[j]} along the bond, eV/Å, and novelty of the two atoms (1 is the "
        f"edge of the training data), in structure {k} of {Path(chosen.data).name}. The greatest "
        f"length in the training structures ({chosen.train}) is {greatest:.2f} Å.",
        "",
        *table([f"{name}, Å", *calculators], [cells for _, cells in sorted(rows)]),
        "",
        f"{machine_name()}. `python benchmarks/studies/stretched_bonds.py {' '.join(chosen.models)}"
        f" --data {Path(chosen.data).name}`",
        "",
    ]
    write(RESULTS / "stretched_bonds.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
