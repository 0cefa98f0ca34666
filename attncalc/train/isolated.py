"""Isolated atoms as structures of a training, which teach the energy of atoms that separate."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.data import ground_state_magnetic_moments

from attncalc.data import Dataset
from attncalc.potential import Potential
from attncalc.structures import evaluate, fresh_graphs
from attncalc.system import System
from attncalc.train.recipe import Recipe
from attncalc.train.start import elements_of

# structures of the training set for each isolated atom
FOR_EACH = 10
# how often a training sees an isolated atom, at least: without neighbours there is one number to
# learn, but it is eV from the others
SEEN = 400
# most copies of it
MOST = 100
# Å, box of an isolated atom among periodic structures: its images are beyond any cutoff
BOX = 200.0


def isolated_atoms(recipe: Recipe, training: Dataset) -> Dataset | None:
    """Return isolated atoms to train on beside a training set; None if nothing is known of them.

    They have the energies of the data set, no forces and no stress, no charge, and the volume of a
    free atom. Delta models have none, because the energies are not differences.

    Args:
        recipe: the recipe.
        training: structures with the elements of the model.
    """
    known = training.isolated_energies or {}
    chosen = [z for z in elements_of(training) if z in known]
    if not chosen or recipe.baseline or not recipe.energy_weight:
        return None
    n_copies = len(training) / FOR_EACH / len(chosen)
    if recipe.epochs is not None:
        n_copies = max(n_copies, SEEN / recipe.epochs)
    numbers = chosen * min(MOST, math.ceil(n_copies))
    n = len(numbers)
    box = {"cell": [BOX] * 3, "pbc": True} if training.structures[0].pbc.any() else {}
    structures = [Atoms([z], [[0.0, 0.0, 0.0]], **box) for z in numbers]
    if recipe.config.get("embed_spin"):
        for atoms, z in zip(structures, numbers, strict=True):
            atoms.info["spin"] = round(ground_state_magnetic_moments[z]) + 1
    zeros = np.zeros((n, 1))
    return Dataset(
        structures=tuple(structures),
        energies=np.array([known[z] for z in numbers]),
        forces=tuple(np.zeros((n, 1, 3))),
        stress=None if training.stress is None else np.zeros((n, 3, 3)),
        charges=None if training.charges is None else tuple(zeros),
        hirshfeld_ratios=None if training.hirshfeld_ratios is None else tuple(zeros + 1.0),
        dipoles=None if training.dipoles is None else np.zeros((n, 3)),
        source=f"{training.source}: isolated atoms",
    )


def largest_error(potential: Potential, isolated: Dataset) -> float:
    """Return the largest error of the energies of isolated atoms, eV.

    Atoms that the model refuses, such as radicals of models of closed shells, count too.
    """
    system = System.from_ase(isolated.structures).to(potential.device)
    result = evaluate(potential, fresh_graphs(potential, system))
    return float(np.abs(result.energy.cpu().numpy() - isolated.energies).max())
