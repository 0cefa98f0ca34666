"""Checks of a recipe and its data before a training, for errors that would appear late."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from attncalc import data
from attncalc.data import Dataset
from attncalc.data.fingerprints import count_repeated
from attncalc.data.statistics import electrons, elements_of, undetermined, without_volume
from attncalc.data.stress_checks import can_check_stress
from attncalc.model_file import NETWORKS, header, load
from attncalc.physics.pair_term import of_all_pairs
from attncalc.potential import Potential
from attncalc.structures import check_system
from attncalc.system import System
from attncalc.text import counted
from attncalc.train.card import describe_repeated
from attncalc.train.messages import print_data
from attncalc.train.processes import Processes
from attncalc.train.recipe import Recipe
from attncalc.train.recipe_rules import OUTPUT_WEIGHTS
from attncalc.train.run_folder import is_resumed
from attncalc.train.start import check_start

log = logging.getLogger(__name__)

# Å, of searches that only refuse atoms on top of each other, as they do with any cutoff
ANY_CUTOFF = 0.1


def warn_of_near_copies(recipe: Recipe, dataset: Dataset, has_test: bool) -> None:
    """Warn if frames of a trajectory are drawn at random.

    Args:
        recipe: the recipe.
        dataset: all structures of its data file.
        has_test: whether a test set is drawn from them.
    """
    sizes = recipe.split.get("sizes")
    if not recipe.split.get("shuffle", sizes is not None):
        return
    if sizes is None:
        dataset = dataset[dataset.splits[recipe.split.get("train", "train_01")]]
    found = data.near_copies(dataset)
    if found is None:
        return
    if sizes is None:
        remedy = "leave out shuffle"
    else:
        remedy = f"split: {{sizes: [{', '.join(map(str, sizes))}], shuffle: false}}"
    log.warning(
        "%s: successive structures are near copies, as in a trajectory: distances change by %.3f Å "
        "from one to the next, by %.2f Å to others. Those drawn at random for validation%s are "
        "copies of training structures, and their errors too small: take them in order (%s), or "
        "whole trajectories",
        dataset.source,
        *found,
        " and test" if has_test and sizes is not None else "",
        remedy,
    )


def check_data(
    recipe: Recipe,
    processes: Processes,
    output: Path,
    training: Dataset,
    validation: Dataset,
    test: Dataset | None = None,
) -> None:
    """Check for all errors that would otherwise appear later, perhaps after days."""
    processes.check(recipe)
    known, are_known = set(elements_of(training)), energies_are_known(recipe, training)
    if processes.is_first:
        print_data(training, validation, test)
        if repeated := describe_repeated(count_repeated(training, validation, test)):
            log.warning("%s: %s", training.source, repeated)
    for role, dataset in (("training", training), ("validation", validation), ("test", test)):
        if dataset is None:
            continue
        where = f"{dataset.source}: the {role} set"
        if len(dataset) == 0:
            raise ValueError(f"{where} is empty")
        if role != "test" and dataset.forces is None:
            raise ValueError(
                f"{where} has no forces: training needs energies and "
                "forces, even if the weight of one of them is 0"
            )
        if role != "test" and recipe.stress_weight and dataset.stress is None:
            raise ValueError(f"{where} has no stress, but the recipe's stress_weight is not zero")
        if role != "test" and recipe.stress_weight and (k := without_volume(dataset)) >= 0:
            raise ValueError(
                f"{where} has a stress of structure {k}, which has no volume: set three cell "
                "vectors, or train without stresses (stress_weight: 0)"
            )
        is_periodic = any(atoms.pbc.any() for atoms in dataset.structures)
        if role == "training" and recipe.stress_weight and not is_periodic:
            raise ValueError(
                f"{where} has stresses, but no structure with a periodic direction: set pbc if "
                "these are crystals, or train without stresses (stress_weight: 0)"
            )
        for label in recipe.output_labels if role != "test" else ():
            if getattr(dataset, label) is None:
                key = OUTPUT_WEIGHTS[label]
                raise ValueError(f"{where} has no {label}, but the recipe's {key} is not zero")
            if label == "dipoles" and any(atoms.pbc.any() for atoms in dataset.structures):
                raise ValueError(
                    f"{where} has periodic structures, whose dipole depends on which images are "
                    "taken: set dipole_weight: 0"
                )
        if unseen := set(elements_of(dataset)) - known:
            names = " ".join(chemical_symbols[z] for z in sorted(unseen))
            raise ValueError(
                f"{where} has elements that the training set lacks ({names}): no model can "
                "learn them from it; split the data in another way"
            )
        level, wanted = dataset.level_of_theory, training.level_of_theory
        if role == "test" and len({level, wanted} - {""}) > 1:
            raise ValueError(
                f"{where} has another level of theory than the training set ({level}, not "
                f"{wanted}): compare them by attncalc eval, without test_data"
            )
        if processes.is_first and role == "test" and dataset.labels != training.labels:
            log.warning(
                "%s has another label set than the training set (%s, not %s): give the recipe "
                "`labels` if these are of different methods",
                *(where, dataset.labels, training.labels),
            )
        if processes.is_first and role != "training" and not are_known:
            _warn_undetermined(training, dataset, where)
        _check_system(recipe, dataset, role, electrons(training) if role != "training" else {})
        try:
            data.avg_num_neighbors(dataset, ANY_CUTOFF)
        except ValueError as error:
            remark = str(error).removeprefix(f"{dataset.source}: ")
            raise ValueError(f"{where}: {remark}") from None
    if not is_resumed(recipe, output):  # else the starting model may be gone
        check_start(recipe, training)
        _check_periodicity(recipe, (training, validation))


def energies_are_known(recipe: Recipe, training: Dataset) -> bool:
    """Return True if the starting model has reference energies of the same level of theory."""
    if recipe.start_from is None:
        return False
    try:
        theirs = header(recipe.find_start())["training"].get("level_of_theory", "")
    except FileNotFoundError:  # a begun run does not need it any more
        return True
    return (recipe.level_of_theory or training.level_of_theory) in ("", theirs)


def _warn_undetermined(training: Dataset, dataset: Dataset, where: str) -> None:
    if not len(unknown := undetermined(training, dataset)):
        return
    log.warning(
        "%s: %s of compositions that are no combination of those of the training set, the first is "
        "%s: their energies cannot be learnt; add isolated atoms, or start from a model of this "
        "level of theory",
        *(where, counted(len(unknown), "structure")),
        dataset.structures[int(unknown[0])].get_chemical_formula(),
    )


def _check_periodicity(recipe: Recipe, parts: Sequence[Dataset]) -> None:
    """Refuse data with molecules and periodic structures if the range of pair terms differs."""
    if recipe.long_range_cutoff is not None:
        return
    if recipe.start_from is None:
        terms = recipe.pair_term_modules(elements_of(parts[0]))
    else:  # its terms may have one cutoff for all structures
        terms = load(recipe.find_start(), device="cpu").all_pair_terms
    if not any(of_all_pairs(term) for term in terms):
        return
    if len({bool(atoms.pbc.any()) for part in parts for atoms in part.structures}) > 1:
        raise ValueError(
            f"{parts[0].source} has molecules and periodic structures, for which pair terms of "
            "longer range end at different distances: give the recipe a long_range_cutoff [Å]"
        )


def require_matching_units(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse labels whose units do not match, if the training uses both."""
    if recipe.energy_weight and recipe.force_weight and (what := data.unit_mismatch(dataset)):
        raise ValueError(f"{what} (or train on one of them: energy_weight: 0 or force_weight: 0)")
    if recipe.stress_weight and (what := data.stress_mismatch(dataset)):
        raise ValueError(f"{what} (or train without them: stress_weight: 0)")


def warn_unchecked(recipe: Recipe, dataset: Dataset) -> None:
    """Print which labels disagree, could not be checked, or are not used."""
    found = data.work_ratio(dataset)
    if what := data.label_mismatch(dataset):
        log.warning("%s", what)
    elif dataset.forces is not None and (found is None or not found.is_conclusive):
        log.info(
            "%s: no structures are close enough to check energies and forces against each other",
            dataset.source,
        )
    if recipe.stress_weight and dataset.stress is not None and not can_check_stress(dataset):
        log.info(
            "%s: too few cells differ by a small strain to check energies and stresses",
            dataset.source,
        )
    if dataset.stress is not None and not recipe.stress_weight:
        log.info(
            "%s has stresses, but the recipe's stress_weight is 0: no training on stresses",
            dataset.source,
        )


@torch.random.fork_rng(devices=[])  # the random weights are not used
def _check_system(
    recipe: Recipe, dataset: Dataset, role: str, known_electrons: dict[str, Any]
) -> None:
    network, elements = NETWORKS[recipe.network][0], elements_of(dataset)
    terms = recipe.pair_term_modules(elements)
    config = recipe.network_config(lambda: 1.0)
    untrained = network(config, len(elements))
    potential = Potential(untrained, elements, pair_terms=terms, training=known_electrons)
    for k, atoms in enumerate(dataset.structures):
        try:
            check_system(potential, System.from_ase(atoms))
        except ValueError as error:
            where = f"{dataset.source}: structure {k} of the {role} set"
            options = [f"embed_{key}" for key in ("charge", "spin") if f"{key} input" in str(error)]
            how = "".join(f" (config: {{{o}: true}})" for o in options if hasattr(config, o))
            if how and recipe.start_from is not None:  # whose config is that of the model
                how = ": start from a model that has it"
            if "was trained on" in str(error):
                how = "; split the data in another way"
            raise ValueError(f"{where}: {error}{how}") from None
