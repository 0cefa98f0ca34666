"""Sample structures to try a model on when the user gives none."""

from __future__ import annotations

import numpy as np
from ase import Atoms

N_ATOMS = 12
CLOSEST = 1.1  # Å
N_PAIRS = 64
DIRECTION = np.array([0.48, 0.6, -0.64])  # of length 1


def sample_structures(species: tuple[int, ...]) -> list[Atoms]:
    """Return two clusters, a crystal of two atoms in a small cell, and two close atoms."""
    crystal = random_cluster(species, seed=2)[:2]
    crystal.numbers[:] = crystal.numbers[0]  # an even number of electrons
    crystal.set_cell([[3.1, 0.0, 0.0], [0.4, 2.9, 0.0], [0.2, -0.3, 3.3]])
    crystal.positions = [[0.0, 0.0, 0.0], [1.4, 1.5, 1.7]]
    crystal.pbc = True
    close = Atoms([species[0]] * 2, positions=[[0.0, 0.0, 0.0], [0.3, 0.5, 0.2]])
    return [random_cluster(species, seed=0), random_cluster(species, seed=1), crystal, close]


def pairs(species: tuple[int, ...], shortest: float, longest: float) -> list[Atoms]:
    """Return molecules of two equal atoms at many distances."""
    return [
        Atoms([species[k % len(species)]] * 2, positions=[[0, 0, 0], length * DIRECTION])
        for k, length in enumerate(np.linspace(shortest, longest, N_PAIRS))
    ]


def random_cluster(species: tuple[int, ...], seed: int = 0, *, odd_protons: bool = False) -> Atoms:
    """Return at most twelve random atoms, none closer than 1.1 Å, with an even number of protons.

    Args:
        species: elements that are drawn.
        seed: of positions and elements.
        odd_protons: draw an odd number of protons, if there is an element of odd number.
    """
    rng = np.random.default_rng(seed)
    positions = np.zeros((1, 3))
    while len(positions) < N_ATOMS:
        trial = rng.uniform(0, 4.0, 3)
        if np.linalg.norm(positions - trial, axis=1).min() > CLOSEST:
            positions = np.vstack([positions, trial])
    numbers = rng.choice(species, N_ATOMS)
    odd = np.flatnonzero(numbers % 2)
    if len(odd) % 2 != odd_protons and len(odd):
        # repeat an odd element, or remove its atom
        numbers[(odd[0] + 1) % N_ATOMS] = numbers[odd[0]]
        if np.count_nonzero(numbers % 2) % 2 != odd_protons:
            numbers = np.delete(numbers, odd[0])
            positions = np.delete(positions, odd[0], axis=0)
    return Atoms(numbers=numbers, positions=positions)
