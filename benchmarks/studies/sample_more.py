#!/usr/bin/env python
"""Data beside those of `attncalc sample` where a general model is worst: phosphorus, contacts, rings.

    python benchmarks/studies/sample_more.py phosphorus runs/so3lr.safetensors \
        -o runs/phosphorus.h5 --molecules 5000
    python benchmarks/studies/sample_more.py contacts runs/so3lr.safetensors \
        -o runs/contacts.h5 --molecules 3000
    python benchmarks/studies/sample_more.py rings runs/so3lr.safetensors \
        -o runs/rings.h5 --molecules 1500

The sampler is the package's, with other numbers: two molecules of three with phosphorus; or as many
clusters as single molecules instead of a quarter, face to face twice as often, and half of them of
the small molecules of `fragments.SOLVENTS`, as benzene and formic acid; or as many clusters as
single molecules, nearly all of them two aromatic rings face to face. Molecules are held out by the
same hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attncalc.sampling import chunk, clusters, fragments
from attncalc.sampling.clusters import Part, random_cluster
from attncalc.sampling.geometry import jittered
from attncalc.sampling.run import Settings, sample

QUOTAS = {
    "phosphorus": {
        "phosphorus": 16,
        "sulfur": 3,
        "halogen": 2,
        "anion": 2,
        "tiny": 1,
        "cation": 1,
    },
    "contacts": {
        "tiny": 6,
        "carbonyl": 5,
        "nitrogen": 4,
        "oxygen": 3,
        "biaryl": 2,
        "nucleobase": 2,
        "sulfur": 2,
        "phosphorus": 1,
    },
    "rings": {
        "biaryl": 5,
        "nucleobase": 3,
        "phosphorus": 6,
        "sulfur": 4,
        "nitrogen": 3,
        "halogen": 2,
        "unusual": 2,
    },
}
RINGS = (
    *("c1ccccc1", "c1ccncc1", "c1ncncc1", "c1cnccn1", "c1ccnnc1", "c1cc[nH]c1", "c1c[nH]cn1"),
    *("c1ccoc1", "c1ccsc1", "c1cscn1", "c1cocn1", "c1ccc2ccccc2c1", "c1ccc2[nH]ccc2c1", "Fc1ccccc1"),
    *("Clc1ccccc1", "Cc1ccccc1", "Oc1ccccc1", "Nc1ccccc1", "O=Cc1ccccc1", "N#Cc1ccccc1"),
    *("O=c1cc[nH]c(=O)[nH]1", "Nc1ccnc(=O)[nH]1", "c1ccpcc1", "O=[N+]([O-])c1ccccc1"),
)


def more_small_ones(
    rng: np.random.Generator, molecules: Sequence[Part], solvents: Sequence[Part]
) -> Part | None:
    """Draw a cluster; half of the clusters are of small molecules only."""
    return random_cluster(rng, solvents if rng.random() < 0.5 else molecules, solvents)


def stacked_rings(
    rng: np.random.Generator, molecules: Sequence[Part], solvents: Sequence[Part]
) -> Part | None:
    """Draw a cluster; four of five are two rings face to face, three of a hundred three."""
    rings = [part for part in (*molecules, *solvents) if "c1" in part.name and not part.charge]
    if len(rings) < 2 or rng.random() < 0.2:
        return random_cluster(rng, molecules, solvents)
    n = 3 if rng.random() < 0.03 else 2
    chosen = [rings[k] for k in rng.integers(len(rings), size=n)]
    if sum(len(part.numbers) for part in chosen) > clusters.MOST_ATOMS:
        return None
    moved = [jittered(rng, part.positions, 0.02) for part in chosen]
    parts = [replace(part, positions=at) for part, at in zip(chosen, moved, strict=True)]
    return clusters.packed(rng, parts)


# at import, for worker processes import this file too
if (what := sys.argv[1] if len(sys.argv) > 1 else "") in QUOTAS:
    fragments.QUOTAS = QUOTAS[what]
if what == "contacts":
    chunk.CLUSTERS_PER_FRAME = 1.0
    chunk.N_SOLVENTS = 12
    chunk.random_cluster = more_small_ones
    clusters.STACKED = 0.35
if what == "rings":
    fragments.SOLVENTS = RINGS
    chunk.CLUSTERS_PER_FRAME = 1.0
    chunk.N_SOLVENTS = 10
    chunk.random_cluster = stacked_rings
    clusters.STACKED, clusters.SLIPPED = 1.0, 0.4


def main() -> None:
    """Sample, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=QUOTAS)
    parser.add_argument("oracle")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--molecules", type=int, required=True)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    settings = Settings(asked.oracle, asked.seed)
    done = sample(
        settings,
        asked.output,
        asked.molecules,
        workers=asked.workers,
        progress=lambda *numbers: print(*numbers, flush=True),
    )
    print(done.n_molecules, "molecules;", done.train, done.test, dict(done.refused))


if __name__ == "__main__":
    main()
