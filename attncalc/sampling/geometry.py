"""Distortions of a molecule that need no energies: bonds, torsions, displacements, protons.

Positions are [n_atoms, 3] Å throughout; every function returns new ones.
"""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii, vdw_radii
from numpy.typing import NDArray
from rdkit import Chem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# bond, as the indices of its atoms
Bond = tuple[int, int]

# Å; structures with closer atoms are dropped: they switch off faster radial networks in a training
SHORTEST_CONTACT = 0.6
# over the sum of covalent radii; forces between closer atoms are too large for training anyway
SMALLEST_RATIO = 0.55
# Å, longest distance to the nearest atom; atoms of clusters are closer
FARTHEST_NEIGHBOR = 9.0
# over the sum of van der Waals radii, for atoms four or more bonds apart
SMALLEST_NONBONDED = 0.5
# Å, from a proton to the acceptor that it moves towards
LONGEST_HYDROGEN_BOND = 2.3
ACCEPTORS = (7, 8)

# bonds with hindered rotation, as in amides, esters, biaryls and conjugated chains
_HINDERED = (
    *("[CX3;$(C=[O,S,N])]-!@[N,O,S]", "a-!@a", "a-!@[CX3;$(C=*)]", "[CX3;$(C=*)]-!@[CX3;$(C=*)]"),
    *("a-!@[N,O,S]", "[S,P;$(*=O)]-!@[N,O]", "[SX2]-!@[SX2]", "[OX2]-!@[OX2]", "[NX3]-!@[NX3]"),
)


def refusal(numbers: Integers, positions: Floats) -> str:
    """Return the reason not to label a structure; "" if there is none.

    Reasons are two atoms that are too close, or an atom farther than `FARTHEST_NEIGHBOR` from all
    others, as dynamics of a stiff molecule may give.
    """
    if not np.isfinite(positions).all():
        return "positions not finite"
    if len(numbers) == 1:
        return ""
    lengths = distances(positions, positions)
    radii = covalent_radii[numbers]
    if are_too_close(lengths, radii[:, None] + radii):
        return "atoms too close"
    np.fill_diagonal(lengths, np.inf)
    return "atoms torn away" if (lengths.min(1) > FARTHEST_NEIGHBOR).any() else ""


def are_too_close(lengths: Floats, radii: Floats) -> bool:
    """Return True if two atoms are closer than `SHORTEST_CONTACT` or than any bond.

    Args:
        lengths: [n_atoms, n_atoms] Å, distances.
        radii: [n_atoms, n_atoms] Å, sums of covalent radii.
    """
    close = lengths < np.maximum(SHORTEST_CONTACT, SMALLEST_RATIO * radii)
    np.fill_diagonal(close, False)
    return bool(close.any())


def distances(positions: Floats, others: Floats) -> Floats:
    """Return the distances of two sets of atoms, [n_atoms, n_others] Å."""
    return np.linalg.norm(positions[:, None] - others[None], axis=-1)


def random_rotation(rng: np.random.Generator) -> Floats:
    """Return a rotation matrix [3, 3], uniformly distributed (by a random quaternion)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def beyond(mol: Chem.Mol, bond: Bond) -> list[int]:
    """Return the atoms that move with the second atom of a bond; in a ring that atom only."""
    i, j = bond
    if mol.GetBondBetweenAtoms(i, j).IsInRing():
        return [j]
    found, waiting = {j}, [j]
    while waiting:
        for neighbor in mol.GetAtomWithIdx(waiting.pop()).GetNeighbors():
            k = neighbor.GetIdx()
            if k != i and k not in found:
                found.add(k)
                waiting.append(k)
    return sorted(found)


def torsions(mol: Chem.Mol) -> tuple[list[Bond], list[Bond]]:
    """Return the hindered bonds (amides, biaryls ...), and all bonds, that can be turned.

    Bonds in rings, bonds of terminal atoms, and double and triple bonds are excluded.
    """
    turning = [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        for bond in mol.GetBonds()
        if not bond.IsInRing()
        and bond.GetBondTypeAsDouble() < 2
        and min(bond.GetBeginAtom().GetDegree(), bond.GetEndAtom().GetDegree()) > 1
    ]
    patterns = map(Chem.MolFromSmarts, _HINDERED)
    matches = {frozenset(match) for p in patterns for match in mol.GetSubstructMatches(p)}
    return [bond for bond in turning if frozenset(bond) in matches], turning


def turned(mol: Chem.Mol, positions: Floats, bond: Bond, angle: float) -> Floats:
    """Turn one side of a bond by an angle [rad]."""
    i, j = bond
    side = beyond(mol, bond)
    axis = (positions[j] - positions[i]) / np.linalg.norm(positions[j] - positions[i])
    arms = positions[side] - positions[j]
    new = positions.copy()
    # Rodrigues' formula
    new[side] = (
        positions[j]
        + arms * np.cos(angle)
        + np.cross(axis, arms) * np.sin(angle)
        + np.outer(arms @ axis, axis) * (1 - np.cos(angle))
    )
    return new


def overlaps(mol: Chem.Mol, numbers: Integers, positions: Floats) -> bool:
    """Return True if atoms four or more bonds apart are closer than half their van der Waals radii.

    Turning a bond may lead to this.
    """
    apart = Chem.GetDistanceMatrix(mol) > 3
    radii = vdw_radii[numbers]
    least = SMALLEST_NONBONDED * (radii[:, None] + radii)
    return bool((apart & (distances(positions, positions) < least)).any())


def stretched(rng: np.random.Generator, mol: Chem.Mol, positions: Floats) -> Floats:
    """Stretch or compress one bond or two, by a factor of 0.8 to 1.6."""
    new = positions.copy()
    for _ in range(rng.integers(1, 3)):
        bond = mol.GetBondWithIdx(int(rng.integers(mol.GetNumBonds())))
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if rng.random() < 0.5:
            i, j = j, i
        factor = rng.uniform(0.8, 1.15) if rng.random() < 0.5 else rng.uniform(1.0, 1.6)
        new[beyond(mol, (i, j))] += (new[j] - new[i]) * (factor - 1)
    return jittered(rng, new, 0.02)


def jittered(rng: np.random.Generator, positions: Floats, width: float) -> Floats:
    """Displace every atom at random, by a normal distribution of a given width [Å]."""
    return positions + rng.normal(0, width, positions.shape)


def displaced(rng: np.random.Generator, mol: Chem.Mol, positions: Floats) -> Floats:
    """Displace atoms at random: independently, or along random modes that move neighbours together.

    In three cases of ten a homogeneous strain is added, and the displacements are smaller.
    """
    width = rng.uniform(0.02, 0.09)
    displacements = rng.normal(0, width, positions.shape)
    if rng.random() < 0.5:
        # the mean over an atom and its neighbours, taken twice, is a mode of long wavelength
        mean = Chem.GetAdjacencyMatrix(mol) + np.eye(len(positions))
        mean /= mean.sum(1, keepdims=True)
        modes = mean @ mean @ rng.normal(0, 3 * width, positions.shape)
        displacements = 0.5 * displacements + modes
    if rng.random() < 0.3:
        strain = rng.normal(0, 0.04, (3, 3))
        return positions @ (np.eye(3) + strain) + 0.3 * displacements
    return positions + displacements


def proton_transferred(
    rng: np.random.Generator, numbers: Integers, positions: Floats
) -> Floats | None:
    """Move a proton of a hydrogen bond part of the way to its acceptor; None without such a bond.

    Donors and acceptors are N and O. The new distances from the donor and from the acceptor are at
    least 0.95 Å, if there is room for both.
    """
    hydrogens = np.flatnonzero(numbers == 1)
    heavy = np.flatnonzero(np.isin(numbers, ACCEPTORS))
    if not len(hydrogens) or len(heavy) < 2:
        return None
    lengths = distances(positions[hydrogens], positions[heavy])
    order = np.argsort(lengths, axis=1)
    rows = np.arange(len(hydrogens))
    near, next_near = lengths[rows, order[:, 0]], lengths[rows, order[:, 1]]
    bonded = np.flatnonzero((near < 1.3) & (next_near < LONGEST_HYDROGEN_BOND))
    if not len(bonded):
        return None
    h = int(rng.choice(bonded))
    donor, acceptor = positions[heavy[order[h, 0]]], positions[heavy[order[h, 1]]]
    span = np.linalg.norm(acceptor - donor)
    nearest = min(0.5, float(0.95 / span))
    part = rng.uniform(nearest, 1 - nearest)
    new = positions.copy()
    new[hydrogens[h]] = donor + part * (acceptor - donor)
    return jittered(rng, new, 0.03)
