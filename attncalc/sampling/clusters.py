"""Clusters of molecules: pairs and triples, molecules in water, salts, water alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import vdw_radii

from attncalc.sampling.geometry import Floats, Integers, distances, jittered, random_rotation

# most atoms of a cluster
MOST_ATOMS = 48
# Å, range of the closest contact in clusters of separate molecules
NEAREST, FARTHEST = 2.0, 8.0
# range of the closest contact in others, over the sum of van der Waals radii; 0.66: hydrogen bond
TOUCHING = 0.66, 1.05
# share of face-to-face contacts, which random orientations hardly ever give; and tangent of the
# largest angle between the normal of the planes and the line between the centres
STACKED, SLIPPED = 0.15, 0.6
# Å, rest geometry of water: O, H, H
_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])


@dataclass(frozen=True)
class Part:
    """Molecule of a cluster.

    Attributes:
        name: canonical SMILES.
        numbers: [n_atoms].
        positions: [n_atoms, 3] Å.
        charge: e.
    """

    name: str
    numbers: Integers
    positions: Floats
    charge: int


def water(rng: np.random.Generator) -> Part:
    """Return a water molecule, a little distorted."""
    return Part("O", np.array([8, 1, 1]), jittered(rng, _WATER, 0.03), 0)


def random_cluster(
    rng: np.random.Generator, molecules: Sequence[Part], solvents: Sequence[Part]
) -> Part | None:
    """Draw a cluster; None if its parts together have too many atoms or too much charge.

    A quarter of the clusters are 2 to 8 water molecules, some with an ion. A quarter are a molecule
    with 1 to 3 water molecules. The rest are pairs and triples of molecules, or salts if a part is
    an ion.

    Args:
        rng: source of all random choices.
        molecules: molecules that were drawn.
        solvents: small molecules and ions.
    """

    def one(parts: Sequence[Part]) -> Part:
        part = parts[int(rng.integers(len(parts)))]
        return Part(part.name, part.numbers, jittered(rng, part.positions, 0.03), part.charge)

    ions = [part for part in solvents if part.charge]
    choice = rng.random()
    if choice < 0.25:
        chosen = [water(rng) for _ in range(rng.integers(2, 9))]
        if rng.random() < 0.2 and ions:
            chosen[0] = one(ions)
    elif choice < 0.5:
        chosen = [one(molecules), *(water(rng) for _ in range(rng.integers(1, 4)))]
    else:
        chosen = [one(molecules), one(molecules if rng.random() < 0.5 else solvents)]
        opposite = [ion for ion in ions if ion.charge == -chosen[0].charge]
        if chosen[0].charge and opposite and rng.random() < 0.6:
            chosen[1] = one(opposite)
        if rng.random() < 0.15:
            chosen.append(one(solvents))
    n_atoms, charge = sum(len(p.numbers) for p in chosen), sum(p.charge for p in chosen)
    return packed(rng, chosen) if n_atoms <= MOST_ATOMS and abs(charge) <= 1 else None


def packed(rng: np.random.Generator, parts: Sequence[Part]) -> Part:
    """Put molecules together, one after the other, each from a random side or face to face.

    The closest contact of each molecule is 0.66 to 1.05 of the sum of van der Waals radii or, in
    one case of three, a distance of 2 to 8 Å. Among several attempts, one in which the contact is
    between a hydrogen atom and N, O or F is preferred.
    """
    numbers, positions = parts[0].numbers, parts[0].positions
    for part in parts[1:]:
        apart = rng.random() < 1 / 3
        wanted = rng.uniform(NEAREST, FARTHEST) if apart else rng.uniform(*TOUCHING)
        radii = vdw_radii[numbers][:, None] + vdw_radii[part.numbers]
        unit = np.ones_like(radii) if apart else radii
        best, best_score = None, -1.0
        arranged = _stacked if not apart and rng.random() < STACKED else _at_random
        for _ in range(5 if rng.random() < 0.6 else 1):
            turn, direction = arranged(rng, positions, part.positions)
            placed = _placed(positions, part.positions, turn, direction, unit, wanted)
            gaps = distances(positions, placed) / radii
            i, j = np.unravel_index(gaps.argmin(), gaps.shape)
            pair = {int(numbers[i]), int(part.numbers[j])}
            score = float(1 in pair and bool(pair & {7, 8, 9})) + 0.1 * rng.random()
            if score > best_score:
                best, best_score = placed, score
        assert best is not None
        numbers, positions = np.concatenate([numbers, part.numbers]), np.vstack([positions, best])
    name = ".".join(sorted(part.name for part in parts))
    return Part(name, numbers, positions, sum(part.charge for part in parts))


def _at_random(
    rng: np.random.Generator, positions: Floats, others: Floats
) -> tuple[Floats, Floats]:
    """Draw a rotation [3, 3] of others, and a direction."""
    del positions, others
    return random_rotation(rng).T, rng.normal(size=3)


def _stacked(rng: np.random.Generator, positions: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Draw a rotation [3, 3] of others that makes planes parallel, and a direction near the normal.

    The plane of a molecule is that of its two longest principal axes.
    """
    axes, its = principal_axes(positions), principal_axes(others)
    angle, side = rng.uniform(0, 2 * np.pi, 2)
    c, s = np.cos(angle), np.sin(angle)
    about_normal = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    slip = SLIPPED * rng.random() * np.array([np.cos(side), np.sin(side)])
    return its.T @ about_normal @ axes, axes[2] + slip @ axes[:2]


def principal_axes(positions: Floats) -> Floats:
    """Return principal axes as rows of a right-handed frame [3, 3], the longest extent first."""
    axes: Floats = np.linalg.svd(positions - positions.mean(0))[2]
    return axes * [[1], [1], [np.linalg.det(axes)]]


def _placed(
    positions: Floats, others: Floats, turn: Floats, direction: Floats, unit: Floats, wanted: float
) -> Floats:
    """Return the positions of others, turned and shifted until the closest distance is as wanted.

    Args:
        positions: [n_atoms, 3] Å.
        others: [n_others, 3] Å.
        turn: [3, 3], rotation of rows about the centre.
        direction: [3], direction of the shift, of any length.
        unit: [n_atoms, n_others] Å, units of the distances between pairs of atoms.
        wanted: closest distance, in these units.
    """
    turned = (others - others.mean(0)) @ turn + positions.mean(0)
    direction = direction / np.linalg.norm(direction)
    inside, outside = 0.0, 60.0
    for _ in range(24):  # bisection, to 4e-6 Å
        middle = 0.5 * (inside + outside)
        closest = (distances(positions, turned + middle * direction) / unit).min()
        inside, outside = (middle, outside) if closest < wanted else (inside, middle)
    return turned + outside * direction
