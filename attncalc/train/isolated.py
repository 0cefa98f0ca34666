"""Isolated atoms as structures of a training, which teach the energy of atoms that separate."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
from ase import Atoms
from ase.data import ground_state_magnetic_moments

from attncalc.data import Dataset
from attncalc.data.statistics import elements_of
from attncalc.potential import Potential
from attncalc.structures import evaluate, fresh_graphs
from attncalc.system import System
from attncalc.train.recipe import Recipe

log = logging.getLogger(__name__)

# structures of the training set for each isolated atom
FOR_EACH = 10
# how often a training sees an isolated atom, at least: without neighbours there is one number to
# learn, but it is eV from the others
SEEN = 400
# most copies of it
MOST = 100
# Å, box of an isolated atom among periodic structures: its images are beyond any cutoff, and sums
# over the reciprocal lattice are short
BOX = 40.0
# eV per atom, from the strongest binding to atoms that repel each other: other energies have
# another zero or unit
PLAUSIBLE = (-15.0, 3.0)
# structures of which the binding is looked at
LOOKED_AT = 1000


def energies_of_isolated(recipe: Recipe, training: Dataset) -> dict[int, float]:
    """Return the energies of isolated atoms that are trained on, eV, by atomic number.

    There are none for delta models, because the energies are not differences, for networks that
    read the multiplicity, which the data do not state, and where the energies do not match the
    labels.

    Args:
        recipe: the recipe.
        training: structures with the elements of the model.
    """
    reads_spin = recipe.config.get("embed_spin", False)
    return {} if reads_spin or not recipe.energy_weight else matching_energies(recipe, training)


def matching_energies(recipe: Recipe, training: Dataset) -> dict[int, float]:
    """Return the energies of isolated atoms that have the labels' zero, eV, by atomic number.

    Args:
        recipe, training: as in `energies_of_isolated`.
    """
    known = training.isolated_energies
    if not known or recipe.baseline or not _is_plausible(binding(training)):
        return {}
    return {z: known[z] for z in elements_of(training) if z in known}


def isolated_atoms(recipe: Recipe, training: Dataset) -> Dataset | None:
    """Return isolated atoms to train on beside a training set; None without energies of them.

    They have no forces and no stress, no charge, and the volume of a free atom.

    Args:
        recipe, training: as in `energies_of_isolated`.
    """
    if not (known := energies_of_isolated(recipe, training)):
        return None
    n_copies = len(training) / FOR_EACH / len(known)
    if recipe.epochs is not None and recipe.minutes is None:  # else a resumed run has others
        n_copies = max(n_copies, SEEN / recipe.epochs)
    numbers = [*known] * min(MOST, math.ceil(n_copies))
    n = len(numbers)
    box = {"cell": [BOX] * 3, "pbc": True} if training.structures[0].pbc.any() else {}
    structures = [Atoms([z], [[0.0, 0.0, 0.0]], **box) for z in numbers]
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


def binding(training: Dataset) -> float | None:
    """Return the median energy of structures relative to isolated atoms, eV per atom.

    None if the data do not have the energies of all atoms.
    """
    known, found = training.isolated_energies or {}, []
    for energy, atoms in zip(training.energies, training.structures[:LOOKED_AT], strict=False):
        numbers = atoms.numbers.tolist()
        if not known.keys() >= set(numbers):
            return None
        found.append((energy - sum(known[z] for z in numbers)) / len(numbers))
    return float(np.median(found))


def _is_plausible(bound: float | None) -> bool:
    return bound is None or PLAUSIBLE[0] < bound < PLAUSIBLE[1]


def print_isolated(isolated: Dataset | None, training: Dataset, potential: Potential) -> None:
    """Log which isolated atoms are trained on, or that their energies do not match the labels.

    Args:
        isolated: the isolated atoms.
        training: the other structures.
        potential: before the first step.
    """
    if isolated is not None:
        names = [str(atoms.symbols) for atoms in isolated.structures]
        numbers = (int(atoms.numbers[0]) for atoms in isolated.structures)
        known = dict(zip(numbers, isolated.energies.tolist(), strict=True))
        off = max(map(abs, errors_of_isolated(potential, known).values()))
        log.info(
            "training on the isolated atoms of the data too: %s, %d times an epoch each; their "
            "energies are off by up to %.2g eV now",
            " ".join(dict.fromkeys(names)),
            names.count(names[0]),
            off,
        )
    elif not _is_plausible(bound := binding(training)):
        log.warning(
            "%s: energies of isolated atoms are not used: the structures are at %+.4g eV per atom "
            "relative to them, where bound atoms are at -1 to -10; do both have the same zero and "
            "unit?",
            training.source,
            bound,
        )


def errors_of_isolated(potential: Potential, known: Mapping[int, float]) -> dict[int, float]:
    """Return energies of isolated atoms minus those of a potential, eV, by atomic number.

    Atoms that the model refuses, such as radicals of models of closed shells, count too. A network
    that reads the multiplicity gets that of the ground state.
    """
    if not known:
        return {}
    atoms = [Atoms([z], info={"spin": _multiplicity(z)}) for z in known]
    system = System.from_ase(atoms).to(potential.device)
    found = evaluate(potential, fresh_graphs(potential, system)).energy.tolist()
    return {z: known[z] - energy for z, energy in zip(known, found, strict=True)}


def _multiplicity(z: int) -> int:
    """Return the multiplicity of an atom's ground state; the lowest where ASE's table has none."""
    known = z < len(ground_state_magnetic_moments) and np.isfinite(ground_state_magnetic_moments[z])
    unpaired = int(ground_state_magnetic_moments[z]) if known else z % 2
    # the table has one too many for cerium, a singlet, and for einsteinium, a quartet
    return 1 + unpaired - (unpaired - z) % 2
