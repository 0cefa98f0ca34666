"""Rates of `attncalc sample`, and accuracy of SO3LR's energies between molecules.

    python benchmarks/studies/sampling.py rate gfn2
    python benchmarks/studies/sampling.py rate so3lr.safetensors
    attncalc sample -o gfn2.h5 --molecules 200 --seed 0 --oracle gfn2
    python benchmarks/studies/sampling.py energies gfn2.h5 so3lr.safetensors

These commands give the tables in docs/sampling.md. They need rdkit, tblite and the weights of
docs/so3lr.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tblite and torch read it at import

import argparse
import time
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from attncalc import data
from attncalc.sampling.chunk import KINDS, make_chunk
from attncalc.sampling.molecules import draw
from attncalc.sampling.oracles import load_oracle

ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17)
# number of structures that are labelled at once
BATCH = 128


def rate(name: str) -> None:
    """Print the processor time of the second chunk of seed 0."""
    oracle, seen = load_oracle(name), set[str]()
    for chunk, n_molecules in ((0, 5), (1, 50)):  # the first one includes compilation
        rng = np.random.default_rng([0, chunk, 0])
        molecules = [draw(rng, 50 * chunk + k, seen) for k in range(n_molecules)]
        start = time.process_time()
        found = make_chunk(oracle, np.random.default_rng([0, chunk, 1]), molecules, 8)
        seconds = time.process_time() - start
    n = len(found.frames)
    print(f"{found.n_labels} labels, {n} structures, {seconds:.1f} s, {60 * n / seconds:.0f}/min")


def energies(path: Path, name: str) -> None:
    """Print the residual energies of a linear fit by composition and sign of the charge."""
    theirs = data.read(path)
    with h5py.File(path) as file:
        kind, molecule = file["kind"][:], file["molecule"][:]
    oracle, labels = load_oracle(name), []
    for k in range(0, len(theirs), BATCH):
        labels += oracle.label(theirs.structures[k : k + BATCH])
    ours = np.array([label.energy for label in labels])
    pairs = zip(labels, theirs.forces, strict=True)
    mae = np.abs(np.concatenate([label.forces - forces for label, forces in pairs])).mean()
    print(f"{len(theirs)} structures, forces differ by {1e3 * mae:.0f} meV/Å in the mean")

    charges = np.array([atoms.info["charge"] for atoms in theirs.structures])
    columns = [[(atoms.numbers == z).sum() for z in ELEMENTS] for atoms in theirs.structures]
    counts = np.array(columns, dtype=float)
    inputs = np.column_stack([counts, charges == 1, charges == -1]).astype(float)
    lowest = np.zeros(len(theirs), dtype=bool)
    for k in np.unique(molecule[kind != KINDS.index("cluster")]):
        mine = np.flatnonzero(molecule == k)
        lowest[mine[theirs.energies[mine].argmin()]] = True
    large = lowest & (counts[:, 1:].sum(1) >= 4)
    chosen = {
        "all": np.ones(len(theirs), dtype=bool),
        "lowest, neutral": large & (charges == 0),
        "lowest": large,
    }
    for of, values in (("teacher", theirs.energies), (name, ours), ("-", ours - theirs.energies)):
        within = [values[molecule == k] - values[molecule == k].mean() for k in np.unique(molecule)]
        print(f"{of}: within a molecule {np.concatenate(within).std():.2f} eV")
        for what, rows in chosen.items():
            left = residual(inputs[rows], values[rows])
            median = np.median(np.abs(left) / counts[rows].sum(1))
            print(f"  {what} ({rows.sum()}): {left.std():.2f} eV, {1e3 * median:.0f} meV/atom median")


def residual(inputs: NDArray, values: NDArray) -> NDArray:
    return values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("rate").add_argument("oracle")
    compare = commands.add_parser("energies")
    compare.add_argument("data", type=Path)
    compare.add_argument("oracle")
    given = parser.parse_args()
    if given.command == "rate":
        rate(given.oracle)
    else:
        energies(given.data, given.oracle)
