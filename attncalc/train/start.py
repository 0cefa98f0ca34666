"""Initial weights of a training: random numbers, or those of another model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from attncalc import data
from attncalc.data import Dataset
from attncalc.data.statistics import elements_of, far_from_composition, per_element
from attncalc.model_file import EARLIER, NETWORKS, PAIR_TERMS, load, model_name
from attncalc.model_header import DTYPES
from attncalc.potential import Committee, Potential
from attncalc.structures import evaluate_many
from attncalc.train.denoising import with_denoising
from attncalc.train.isolated import errors_of_isolated, matching_energies
from attncalc.train.recipe import Recipe

log = logging.getLogger(__name__)

# atoms of the structures that are evaluated together
ATOMS_AT_ONCE = 512
# most structures for the fit of the first reference energies: a plain network takes ms for each
MOST_EVALUATED = 2000
# structures in a warning
MOST_NAMED = 3


def new_potential(recipe: Recipe, training: Dataset) -> Potential:
    """Return the potential before the first step, with reference energies of the training data.

    Raises:
        FileNotFoundError: there is no model `start_from`.
        ValueError: that model does not suit recipe or data, see `check_start`.
    """
    if recipe.start_from is None:
        potential = _random(recipe, training)
    else:
        potential = _taken_over(_starting_model(recipe, training), training)
        if recipe.long_range_cutoff is not None:
            potential.set_long_range_cutoff(recipe.long_range_cutoff)
    potential.set_dtype(DTYPES[recipe.dtype])
    if recipe.baseline:  # stated by every model file that the training writes
        potential.training_info["baseline"] = recipe.baseline
    return on_the_labels(potential, training, matching_energies(recipe, training))


def check_start(recipe: Recipe, training: Dataset) -> None:
    """Refuse a `start_from` that does not suit recipe or data, before anything is done.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is a committee or a delta model while the recipe has no baseline, has other
            pair terms or hyper-parameters, or does not know an element of the data.
    """
    if recipe.start_from is not None:
        _starting_model(recipe, training)


def _random(recipe: Recipe, training: Dataset) -> Potential:
    network = NETWORKS[recipe.network][0]
    cutoff = float(recipe.config["cutoff"])
    config = recipe.network_config(lambda: _avg_num_neighbors(training, cutoff))
    elements = elements_of(training)
    torch.manual_seed(recipe.seed)
    terms = recipe.pair_term_modules(elements)
    potential = Potential(
        network(config, len(elements)),
        elements,
        pair_terms=terms,
    )
    return with_denoising(potential) if recipe.denoising else potential


def _avg_num_neighbors(training: Dataset, cutoff: float) -> float:
    found = data.avg_num_neighbors(training, cutoff)
    if found == 0:
        raise ValueError(
            f"{training.source}: no two atoms of the training set are within the cutoff of "
            f"{cutoff} Å: nothing can be learnt from it"
        )
    return found


def _taken_over(model: Potential, training: Dataset) -> Potential:
    """Return a model reduced to the elements of the data."""
    elements = elements_of(training)
    rows = [model.species.index(z) for z in elements]
    terms = [type(term)(term.config, tuple(elements)) for term in model.pair_terms]
    for ours, theirs in zip(terms, model.pair_terms, strict=True):
        ours.load_state_dict(theirs.state_dict())
    return Potential(
        model.network.for_species(rows),
        elements,
        pair_terms=terms,
        scale=model.scale[rows].tolist(),
        reference_energies=model.reference_energies[rows].tolist(),
    )


def on_the_labels(
    potential: Potential, training: Dataset, isolated: Mapping[int, float] | None = None
) -> Potential:
    """Shift the reference energies to fit the labels.

    The shift is fitted to labels minus predictions, so that the weights need not learn it: energies
    of an untrained network are arbitrary, and another level of theory has another zero of energy.
    Before, isolated atoms are shifted to their energies: then elements that the labels do not
    distinguish, like those of one molecule, are shifted by no more than the binding. Structures
    whose energies are far from all others, such as a failed calculation of zero energy, are named
    and left out of this fit.

    Args:
        potential: its reference energies are changed.
        training: structures with labels.
        isolated: energies of isolated atoms of the model's elements by atomic number, eV, as far as
            they are known.
    """
    some = _some_of_all_elements(training)
    known = isolated or {}
    _add_to_references(potential, errors_of_isolated(potential, known))
    results = evaluate_many(potential, some.structures, batch_atoms=ATOMS_AT_ONCE)
    energies = np.concatenate([result.energy.cpu().numpy() for _, result in results])
    _add_to_references(potential, _shift(some, some.energies - energies, known))
    return potential


def _add_to_references(potential: Potential, shift: Mapping[int, float]) -> None:
    ours = potential.reference_energies
    by_species = [shift.get(z, 0.0) for z in potential.species]
    ours += torch.tensor(by_species, dtype=ours.dtype, device=ours.device)


def _shift(
    training: Dataset, energies: NDArray[np.float64], known: Collection[int]
) -> dict[int, float]:
    """Fit energies [n] per element to structures, without those that are far from all others.

    Args:
        training: the structures.
        energies: [n] eV.
        known: elements of known isolated atoms, see `per_element`.
    """
    far = far_from_composition(training, energies)
    if len(far) == 0:
        return per_element(training, energies, known)
    named = [
        f"{training.structures[k].get_chemical_formula()} of {training.energies[k]:.3f} eV"
        for k in far[:MOST_NAMED]
    ]
    log.warning(
        "%s: %s far from those of the same elements, such as %s: failed calculations, very short "
        "distances or other charges?",
        training.source,
        "1 energy is" if len(far) == 1 else f"{len(far)} energies are",
        ", ".join(named),
    )
    kept = np.setdiff1d(np.arange(len(training)), far)
    if elements_of(training[kept]) != elements_of(training):
        return per_element(training, energies, known)
    return per_element(training[kept], energies[kept], known)


def _some_of_all_elements(training: Dataset) -> Dataset:
    """Return structures spread over a large data set, with all elements; all of a small one."""
    if len(training) <= MOST_EVALUATED:
        return training
    chosen = np.linspace(0, len(training) - 1, MOST_EVALUATED).astype(int).tolist()
    found = {z for k in chosen for z in training.structures[k].numbers.tolist()}
    for k, atoms in enumerate(training.structures):
        if not found.issuperset(numbers := set(atoms.numbers.tolist())):
            chosen.append(k)
            found |= numbers
    return training[chosen]


def _starting_model(recipe: Recipe, training: Dataset) -> Potential:
    path = recipe.find_start()
    model, name = load(path, device="cpu"), f"start_from: {model_name(str(path))}"
    if isinstance(model, Committee):
        raise ValueError(f"{name} is a committee: start from one of its members")
    theirs_too = [type(term) for term in model.pair_terms]
    if theirs_too != [PAIR_TERMS[term][0] for term in recipe.pair_terms]:
        found = ", ".join(kind.__name__ for kind in theirs_too) or "no pair terms"
        raise ValueError(f"{name} has {found}, the recipe's pair_terms are {recipe.pair_terms}")
    if not isinstance(model.network, NETWORKS[recipe.network][0]):
        raise ValueError(
            f"{name} is a network of another kind ({type(model.network).__name__}) than the "
            f"recipe's ({recipe.network})"
        )
    network: Any = model.network
    theirs = dataclasses.asdict(network.config)
    # avg_num_neighbors is that of the model if the recipe does not give it
    config = recipe.network_config(lambda: theirs["avg_num_neighbors"])
    for key, ours in dataclasses.asdict(config).items():
        if key in EARLIER.get(recipe.network, {}) and key not in recipe.config:
            continue  # that of the model
        if ours != theirs[key]:
            raise ValueError(f"{name} has {key} {theirs[key]}, the recipe's config has {ours}")
    if model.baseline and not recipe.baseline:
        raise ValueError(
            f"{name} is a delta model, which predicts differences from {model.baseline}: write "
            "`baseline: METHOD` for labels that are such differences, or start from another model"
        )
    if unknown := sorted(set(elements_of(training)) - set(model.species)):
        names = " ".join(chemical_symbols[z] for z in unknown)
        raise ValueError(f"{name} does not know an element of {training.source} ({names})")
    return model
