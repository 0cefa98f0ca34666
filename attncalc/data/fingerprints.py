"""Fingerprints of training structures, by which a model file recognises them."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
from ase import Atoms

from attncalc.data.dataset import Dataset
from attncalc.system import charge_and_spin

# characters of one fingerprint: 48 bits; a billion pairs share one with odds of 1 to 280,000
LENGTH = 8
# most fingerprints in a model file: 8 kB
MOST = 1000
# Å: coordinates are rounded to this, so that structures with fewer digits have the same
# fingerprint, except for one coordinate in some thousands that is close to a rounding boundary
RESOLUTION = 1e-3


def fingerprint(atoms: Atoms) -> str:
    """Return elements, positions and cell of a structure as `LENGTH` characters."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(atoms.numbers, dtype="<i8").tobytes())
    for lengths in (atoms.positions, atoms.cell.array):
        # + 0.0 turns -0.0 into 0.0
        digest.update(np.ascontiguousarray(np.rint(lengths / RESOLUTION) + 0.0, "<f8").tobytes())
    return base64.b64encode(digest.digest())[:LENGTH].decode()


def fingerprints(dataset: Dataset) -> str:
    """Return the fingerprints of a data set, or of every n-th structure of a large one.

    Returns:
        At most `MOST` fingerprints, concatenated.
    """
    stride = -(-len(dataset) // MOST)
    return "".join(fingerprint(atoms) for atoms in dataset.structures[:: stride or 1])


def count_known(dataset: Dataset, known: str) -> int:
    """Return the number of structures of a data set whose fingerprints are among those given."""
    parts = {known[k : k + LENGTH] for k in range(0, len(known), LENGTH)}
    return sum(fingerprint(atoms) in parts for atoms in dataset.structures) if parts else 0


def count_repeated(training: Dataset, validation: Dataset, test: Dataset | None) -> dict[str, int]:
    """Count structures that are in an earlier set too, with the same charge and multiplicity.

    Returns:
        "validation": those in the training set; "test": those in the training or validation set.
    """
    counts, seen = {}, set(_identities(training))
    for role, dataset in (("validation", validation), ("test", test)):
        mine = [] if dataset is None else _identities(dataset)
        counts[role] = sum(one in seen for one in mine)
        seen.update(mine)
    return counts


def _identities(dataset: Dataset) -> list[tuple[object, ...]]:
    return [(fingerprint(atoms), *charge_and_spin(atoms)) for atoms in dataset.structures]
