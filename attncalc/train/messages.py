"""Messages at the beginning of a training: data, network, reference energies and plan."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from attncalc.data import Dataset
from attncalc.data.statistics import determines_each_element, elements_of
from attncalc.fast import unfit_widths
from attncalc.potential import Potential
from attncalc.text import counted
from attncalc.train.loop import Done
from attncalc.train.processes import Processes
from attncalc.train.recipe import Recipe

log = logging.getLogger(__name__)


def print_plan(recipe: Recipe, n_steps: int, per_epoch: float, done: Done) -> None:
    """Print the number of epochs and steps, and the time left."""
    per_step = f"{recipe.batch_size} structures"
    if recipe.batch_edges is not None:
        per_step = f"{recipe.batch_edges:,} edges"
    left = per_epoch * (recipe.epochs - len(done.history))
    log.info(
        "%s%s, %s of %s in all, %d epochs%s are done; %s by steps as the first ones",
        "" if recipe.minutes is None else f"{recipe.minutes:g} minutes, so about ",
        *(counted(recipe.epochs, "epoch"), counted(n_steps, "step"), per_step, len(done.history)),
        done.and_steps,
        tqdm.format_interval(left),
    )


def print_data(training: Dataset, validation: Dataset, test: Dataset | None) -> None:
    """Print the sizes of the data sets, their source and elements."""
    sizes = {len(atoms) for atoms in training.structures} or {0}
    atoms = str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    log.info(
        "%s: %d structures to train on, %d to validate, %d to test; %s atoms each; elements %s",
        training.source,
        len(training),
        len(validation),
        0 if test is None else len(test),
        atoms,
        " ".join(chemical_symbols[z] for z in elements_of(training)),
    )


def print_network(potential: Potential, recipe: Recipe, processes: Processes, output: Path) -> None:
    """Print the size of the network, where it is trained, and widths that no engine takes."""
    where = f"{processes.n} processes on {processes.device.type}" if processes.n > 1 else ""
    log.info(
        "%s with %s parameters in %s on %s; results in %s",
        recipe.network,
        f"{potential.n_parameters:,}",
        recipe.dtype,
        where or f"{processes.device} ({counted(torch.get_num_threads(), 'thread')})",
        output,
    )
    if unfit := unfit_widths(potential.network):
        log.info(
            "steps of this model will not be compiled on a CPU and take ten times as long or more: "
            "these widths are not multiples of 16: %s",
            unfit,
        )


def print_reference_energies(potential: Potential, training: Dataset, *, are_known: bool) -> None:
    """Print the energy of every element, and whether it has a meaning alone."""
    energies = zip(potential.species, potential.reference_energies.tolist(), strict=True)
    log.info(
        "reference energies: %s%s",
        ", ".join(f"{chemical_symbols[z]} {energy:.3f} eV" for z, energy in energies),
        ""
        if are_known or determines_each_element(training)
        else "; only their sum over a structure has a meaning, as its compositions are few",
    )
