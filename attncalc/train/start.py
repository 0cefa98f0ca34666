"""Initial weights of a training: random numbers, or those of another model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from attncalc import data
from attncalc.data import Dataset
from attncalc.data.statistics import per_element
from attncalc.model_file import NETWORKS, PAIR_TERMS, load, model_name
from attncalc.model_header import DTYPES
from attncalc.potential import Committee, Potential
from attncalc.structures import evaluate_many
from attncalc.train.denoising import with_denoising
from attncalc.train.recipe import Recipe

# atoms of the structures that are evaluated together
ATOMS_AT_ONCE = 512
# most structures for the fit of the first reference energies: a plain network takes ms for each
MOST_EVALUATED = 2000


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
    return _on_the_labels(potential, training)


def check_start(recipe: Recipe, training: Dataset) -> None:
    """Refuse a `start_from` that does not suit recipe or data, before anything is done.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is a committee, has other pair terms or hyper-parameters, or does not know
            an element of the data.
    """
    if recipe.start_from is not None:
        _starting_model(recipe, training)


def elements_of(dataset: Dataset) -> list[int]:
    """Return the atomic numbers of a data set, in ascending order."""
    return sorted({z for atoms in dataset.structures for z in atoms.numbers.tolist()})


def _random(recipe: Recipe, training: Dataset) -> Potential:
    network = NETWORKS[recipe.network][0]
    cutoff = float(recipe.config["cutoff"])
    config = recipe.network_config(lambda: data.avg_num_neighbors(training, cutoff))
    elements = elements_of(training)
    torch.manual_seed(recipe.seed)
    terms = recipe.pair_term_modules(elements)
    potential = Potential(network(config, len(elements)), elements, pair_terms=terms)
    return with_denoising(potential) if recipe.denoising else potential


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


def _on_the_labels(potential: Potential, training: Dataset) -> Potential:
    """Shift the reference energies to fit the labels.

    The shift is fitted to labels minus predictions, so that the weights need not learn it: energies
    of an untrained network are arbitrary, and another level of theory has another zero of energy.
    Elements that the labels do not distinguish, like those of a single molecule, are not shifted
    against each other.
    """
    some = _some_of_all_elements(training)
    results = evaluate_many(potential, some.structures, batch_atoms=ATOMS_AT_ONCE)
    energies = np.concatenate([result.energy.cpu().numpy() for _, result in results])
    shift = per_element(some, some.energies - energies)
    by_species = [shift[z] for z in potential.species]
    potential.reference_energies += torch.tensor(by_species, dtype=torch.float64)
    return potential


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
        if ours != theirs[key]:
            raise ValueError(f"{name} has {key} {theirs[key]}, the recipe's config has {ours}")
    if unknown := sorted(set(elements_of(training)) - set(model.species)):
        names = " ".join(chemical_symbols[z] for z in unknown)
        raise ValueError(f"{name} does not know an element of {training.source} ({names})")
    return model
