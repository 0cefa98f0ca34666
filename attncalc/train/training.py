"""Training runs: `run` a recipe from its data to model file and card, or `fit` it on data sets."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ase.data import chemical_symbols
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from attncalc import data
from attncalc.calibrate import calibrate, some_of
from attncalc.data import Dataset
from attncalc.data.errors import Errors
from attncalc.data.fingerprints import count_known, count_repeated, fingerprints
from attncalc.data.readers import require_one_unit
from attncalc.data.statistics import (
    determines_each_element,
    electrons,
    elements_of,
    undetermined,
    with_possible_stress,
    without_volume,
)
from attncalc.data.streamed import errors_of
from attncalc.data.stress_checks import can_check_stress
from attncalc.fast import unfit_widths
from attncalc.files import write_atomically
from attncalc.model_file import NETWORKS, header, load, model_name, origin, save
from attncalc.physics.pair_term import of_all_pairs
from attncalc.potential import Committee, Potential
from attncalc.structures import check_system
from attncalc.system import System
from attncalc.text import counted
from attncalc.train.batches import join, samples, sizes_of, to_device
from attncalc.train.callbacks import LearningCurve, write_table
from attncalc.train.card import card, describe_repeated
from attncalc.train.denoising import denoising_step, margin, with_denoising
from attncalc.train.isolated import (
    energies_of_isolated,
    errors_of_isolated,
    isolated_atoms,
    print_isolated,
)
from attncalc.train.loop import Done, read_done, train_loop
from attncalc.train.module import TrainingModule, loss_of
from attncalc.train.order import Sizes, n_steps, typical
from attncalc.train.processes import Processes, connect
from attncalc.train.recipe import OUTPUT_WEIGHTS, Recipe
from attncalc.train.reproducible import ordered_sums
from attncalc.train.run_folder import MARK, checksum, locked_folder, remembered
from attncalc.train.select_step import select_step
from attncalc.train.start import (
    check_start,
    new_potential,
    on_the_labels,
)
from attncalc.train.step import Batch, eager_step
from attncalc.train.time_budget import (
    SECONDS_PER_MINUTE,
    epochs_that_fit,
    seconds_per_step,
)

log = logging.getLogger(__name__)

# Å, of searches that only refuse atoms on top of each other, as they do with any cutoff
ANY_CUTOFF = 0.1
# prefix of the folder name of a committee's member
MEMBER = "member-"


@dataclass(frozen=True)
class Training:
    """Result of a training run.

    Attributes:
        potential: the model with the lowest validation loss, or the committee of such models.
        model: path of the model file.
        history: one row of numbers per epoch, as in metrics.csv; of a committee, member by member.
    """

    potential: Potential
    model: Path
    history: list[dict[str, float]]


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    command: str = "",
    member: int | None = None,
) -> Training:
    """Read the recipe's data, train (or resume a stopped run), test, and write the card.

    A run that has done all its epochs is tested again, but not trained again. Of several processes
    (torchrun, srun) the first tests and writes; the others return after the training.

    Args:
        recipe: definition of the run.
        output: folder for model file, card, metrics.csv, learning curve and checkpoint;
            "runs/NAME" if not given.
        data: data file to use instead of the recipe's.
        command: shell command that reproduces this run, for the card. Absolute paths in it are
            reduced to file names, because cards are meant to be shared.
        member: train only this member of the recipe's committee, counted from 1, so that several
            can be trained at once; a later run without `member` combines them.

    Raises:
        FileNotFoundError: a file that the recipe names does not exist.
        ValueError: recipe or data are not usable; the message states the reason.
        BlockingIOError: another process trains in this folder.
        KeyboardInterrupt: Ctrl-C; its message says how to continue.
    """
    output = Path(output if output is not None else Path("runs") / recipe.name)
    command = _without_folders(command)
    if data is not None:
        recipe = dataclasses.replace(recipe, data=str(Path(data).absolute()))
    processes = connect()
    try:
        with processes.together():
            recipe = _with_start(recipe, output)
            if processes.is_first:
                log.info("reading %s", recipe.find(recipe.data).name)
            training, validation, test = read_split(recipe)  # all members are trained on one split
            if member is not None:
                output, recipe = output / f"{MEMBER}{member}", recipe.member(member)
            recipe = _suited(recipe, training, processes)
            _check(recipe, processes, output, training, validation, test)
        with locked_folder(output, recipe, training, validation, processes, test):
            done = _fit(recipe, training, validation, output, processes)
            if not processes.is_first:
                return done
            test_errors = None if test is None else errors_of(done.potential, test)
            _describe(done, recipe, (training, validation, test), test_errors, command)
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        raise KeyboardInterrupt(f"the same command continues from there ({output})") from None
    return done


def _with_start(recipe: Recipe, output: Path) -> Recipe:
    """Return `recipe.with_start()`, from the begun run if the starting model no longer exists."""
    try:
        return recipe.with_start()
    except FileNotFoundError:
        if not (output / MARK).is_file():
            raise
        begun, _ = remembered(output)
        return dataclasses.replace(
            recipe, network=begun.network, config=begun.config, pair_terms=begun.pair_terms
        )


def _suited(recipe: Recipe, training: Dataset, processes: Processes) -> Recipe:
    """Return the recipe with epochs and batch size, chosen for the data where it gives none."""
    if None not in (recipe.epochs, recipe.batch_size):
        return recipe
    n_atoms = sum(len(atoms) for atoms in training.structures)
    return recipe.suited_to(len(training), n_atoms, n_processes=processes.n)


def read_split(recipe: Recipe) -> tuple[Dataset, Dataset, Dataset | None]:
    """Read training, validation and test set of a recipe; the test set may be None."""
    dataset, parts = _read(recipe)
    sample = data.sample(dataset)  # of all structures: more of them are close to each other
    _require_matching_units(recipe, sample)
    _warn_unknown(recipe, sample)
    if recipe.test_data is not None and parts[2] is not None:
        _require_matching_units(recipe, data.sample(parts[2]))
    _warn_of_near_copies(recipe, dataset, recipe.test_data is None and parts[2] is not None)
    return parts


def _warn_of_near_copies(recipe: Recipe, dataset: Dataset, has_test: bool) -> None:
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


def _read(
    recipe: Recipe, *, with_test_data: bool = True
) -> tuple[Dataset, tuple[Dataset, Dataset, Dataset | None]]:
    """Return the data of a recipe, and their training, validation and test set."""
    units = {"energy_unit": recipe.energy_unit, "length_unit": recipe.length_unit}
    read = data.stream if recipe.stream else data.read
    dataset = read(recipe.find(recipe.data), labels=recipe.labels, **units)
    test: Dataset | None
    if "sizes" in recipe.split:
        seed = recipe.seed if recipe.split.get("shuffle", True) else None
        training, validation, *others = data.split(dataset, recipe.split["sizes"], seed=seed)
        test = others[0] if others and len(others[0]) else None
    else:
        named = {name: value for name, value in recipe.split.items() if name != "shuffle"}
        if recipe.test_data is not None:
            named.setdefault("test", None)
        seed = recipe.seed if recipe.split.get("shuffle") else None
        training, validation, test = data.official_split(dataset, **named, seed=seed)
        if named.get("test", "") is None:
            test = None
    if recipe.test_data is not None:
        test = None
        require_one_unit([recipe.data, recipe.test_data], recipe.energy_unit, recipe.length_unit)
        if with_test_data:
            test = read(recipe.find(recipe.test_data), labels=recipe.labels, **units)
    if test is not None:
        test = with_possible_stress(test, "stresses of the test set")
    return dataset, (training, validation, test)


def read_run(
    output: str | Path, *, data: str | Path | None = None, with_test_data: bool = True
) -> tuple[Recipe, dict[str, Dataset | None]]:
    """Read the recipe from the folder of a training, and the data with the split of the training.

    Args:
        output: folder of the training.
        data: data file, if it was moved after the training.
        with_test_data: False if the separate test file of a recipe is not needed.

    Returns:
        The recipe, and the sets "training", "validation" and "test"; the last may be None.

    Raises:
        FileNotFoundError: no training has begun there, or its data file is gone.
        ValueError: the data are not those of the training.
    """
    output = Path(output)
    recipe, checksums = remembered(output)
    if data is not None:
        recipe = dataclasses.replace(recipe, data=str(Path(data).absolute()))
    model = f"name the model file, {output / recipe.name}.safetensors"
    divided = recipe
    folder, number = output.resolve().name, recipe.name.rpartition("-")[2]
    if folder == MEMBER + number and number.isdecimal():
        # all members are trained on one split, that of the first seed
        divided = dataclasses.replace(divided, seed=recipe.seed - int(number) + 1)
    try:
        _, (training, validation, test) = _read(divided, with_test_data=with_test_data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: name the file that {output} was trained on") from None
    except ValueError as error:
        if data is None:
            raise
        raise ValueError(f"{error}; {output} was trained on other data: {model}") from None
    parts = {"training": training, "validation": validation, "test": test}
    for role, part in parts.items():
        if part is None or (role == "test" and role not in checksums):
            continue  # earlier versions stored no checksum of the test set
        if checksums.get(role) != checksum(part, recipe.output_labels):
            raise ValueError(
                f"{part.source}: not the {role} set that {output} was trained on; for other data "
                f"{model}"
            )
    return recipe, parts


def fit(
    recipe: Recipe, training: Dataset, validation: Dataset, output: str | Path | None = None
) -> Training:
    """Train on data sets; with several processes (torchrun, srun), each needs all of them.

    A run that was stopped or killed continues from its last checkpoint when the same recipe is
    started again with the same `output`. Checkpoints are written after each epoch and every five
    minutes. Without a compiled step, or with `compile: always`, the result is the same to the last
    bit as that of an uninterrupted run on the same machine.

    Args:
        recipe: its `data`, `labels`, units and `split` are not used here.
        training, validation: structures with energies and forces.
        output: folder for model, metrics and checkpoint; "runs/NAME" if not given. Each member of
            a committee has a folder in it.

    Raises:
        FileNotFoundError: the model that the recipe starts from does not exist.
        ValueError: data or starting model do not suit the recipe, energies, forces and stresses of
            the data do not match, or `output` holds a run of another recipe or on other data.
        BlockingIOError: another process trains in this folder.
        KeyboardInterrupt: Ctrl-C; its message says how to continue.
    """
    output = Path(output if output is not None else Path("runs") / recipe.name)
    processes = connect()
    with processes.together():
        recipe = _suited(_with_start(recipe, output), training, processes)
        _check(recipe, processes, output, training, validation)
        _require_matching_units(recipe, data.sample(training))
    with locked_folder(output, recipe, training, validation, processes):
        return _fit(recipe, training, validation, output, processes)


@torch.random.fork_rng(devices=[])  # keeps the global random state of the caller
def _fit(
    recipe: Recipe, training: Dataset, validation: Dataset, output: Path, processes: Processes
) -> Training:
    """Train on checked data in a locked folder."""
    if recipe.committee > 1:
        return _fit_committee(recipe, training, validation, output, processes)
    model = output / f"{recipe.name}.safetensors"
    goes_on, done = processes.from_first(lambda: _begun(recipe, output))
    history, planned = done.history, done.n_epochs or len(done.history)
    if recipe.minutes is not None and planned:
        recipe = dataclasses.replace(recipe, epochs=planned)
    if len(history) >= recipe.epochs:
        if processes.is_first:
            log.info("%s has done its %d epochs: nothing left to train", output, len(history))
            write_table(history, output / "metrics.csv")
            LearningCurve(output / "learning_curve.png", recipe.name).draw(history)
            _complete(model, recipe, training, validation)  # it may have been stopped before that
        return Training(load(model), model, history)
    with processes.together():
        # the starting model may be gone; the run's own best model has all but the last weights
        potential = (
            load(model, device="cpu").requires_grad_(True)
            if goes_on
            else new_potential(recipe, training)
        )
        if goes_on and recipe.denoising:  # its checkpoint has a denoising head
            potential = with_denoising(potential)
        potential.environments = None  # they belong to other weights
        potential = potential.to(processes.device)
        if processes.is_first:
            _print_network(potential, recipe, processes, output)
            are_known = _energies_are_known(recipe, training)
            _print_reference_energies(potential, training, are_known=are_known)
        reach = margin(recipe.denoising) if recipe.denoising else 0.0
        options: dict[str, Any] = {
            "long_range": potential.long_range_for,
            "labels": recipe.output_labels,
            "keeps_system": potential.reads_system,
        }
        if processes.is_first:
            log.info("making neighbour lists of %d structures", len(training))
        batches = samples(training, potential.cutoff, potential.species, margin=reach, **options)
        isolated = isolated_atoms(recipe, training)
        if processes.is_first and not recipe.baseline:
            print_isolated(isolated, training, potential)
        if isolated is not None:
            alone = samples(isolated, potential.cutoff, potential.species, **options)
            both: Any = [batches, alone]  # sequences are data sets for PyTorch, not for its types
            batches = cast("Sequence[Batch]", ConcatDataset(both))
        sizes = sizes_of(batches)
        seconds = _seconds_per_epoch(recipe, potential, batches, sizes, processes.n)
        if recipe.minutes is not None and not planned:
            n_epochs = max(1, epochs_that_fit(seconds, 0, SECONDS_PER_MINUTE * recipe.minutes))
            recipe = dataclasses.replace(recipe, epochs=n_epochs)
        module = TrainingModule(potential, recipe, n_steps(sizes, recipe), processes)
        if processes.is_first:
            _print_plan(recipe, module.n_steps, seconds, done)
        checked = samples(validation, potential.cutoff, potential.species, **options)
    if recipe.minutes is not None:  # clocks of processes differ
        module.plan(processes.from_first(lambda: module.n_epochs))
    processes.copy_first(list(potential.state_dict().values()))
    with ordered_sums(processes.device):
        with processes.together():
            compilation = None
            if recipe.denoising:
                step = denoising_step(potential, module.weights)
            else:
                tried = [to_device(batches[k], processes.device) for k in typical(sizes, recipe)]
                shortest = data.shortest_distance(training)
                step, compilation = select_step(
                    *(potential, module.weights, tried, recipe),
                    shortest=shortest,
                    n_steps=module.n_steps,
                )
        if not processes.all(compilation is not None):  # e.g. no compiler
            compilation = None
        trained, validated = (batches, sizes), (checked, sizes_of(checked))
        train_loop(module, step, compilation, trained, validated, recipe, output)
    # the other processes read the file only after it is written
    processes.from_first(lambda: _complete(model, recipe, training, validation))
    return Training(load(model), model, module.history)


def _print_plan(recipe: Recipe, n_steps: int, per_epoch: float, done: Done) -> None:
    per_step = f"{recipe.batch_size} structures"
    if recipe.batch_edges is not None:
        per_step = f"{recipe.batch_edges:,} edges"
    left = per_epoch * (recipe.epochs - len(done.history))
    log.info(
        "%s%d epochs, %d steps of %s in all, %d epochs%s are done; %s by steps as the first ones",
        "" if recipe.minutes is None else f"{recipe.minutes:g} minutes, so about ",
        *(recipe.epochs, n_steps, per_step, len(done.history)),
        done.and_steps,
        tqdm.format_interval(left),
    )


def _seconds_per_epoch(
    recipe: Recipe, potential: Potential, batches: Sequence[Batch], sizes: Sizes, n_processes: int
) -> float:
    """Return the duration of an epoch of eager steps, s."""
    n = len(batches)
    per_epoch = n_steps(sizes, dataclasses.replace(recipe, epochs=1))
    share = max(1, n // per_epoch // n_processes)
    batch = to_device(join([batches[k] for k in range(share)]), potential.device)
    return per_epoch * seconds_per_step(eager_step(potential, loss_of(recipe)), batch)


def _complete(model: Path, recipe: Recipe, training: Dataset, validation: Dataset) -> None:
    """Store the training environments of a model in its file.

    A training without energies leaves their zero anywhere, so the reference energies are fitted
    to the labels again.
    """
    potential = load(model)
    if potential.knows_its_training:
        return
    potential.training_info |= _known(recipe, training)  # a member of a committee has no more
    if not recipe.energy_weight:
        on_the_labels(potential, training)
    known = [*some_of(training.structures), *some_of(validation.structures)]
    calibrate(potential, known)
    save(potential, model)


def _begun(recipe: Recipe, output: Path) -> tuple[bool, Done]:
    """Return whether the run has a model to continue from, and what it has done."""
    for unfinished in output.glob(".*.part"):  # left by a run that was killed while writing
        unfinished.unlink()
    return _is_resumed(recipe, output), read_done(output / "last.ckpt")


def _fit_committee(
    recipe: Recipe, training: Dataset, validation: Dataset, output: Path, processes: Processes
) -> Training:
    members, history, wall_time = [], [], 0.0
    for k in range(1, recipe.committee + 1):
        log.info("member %d of %d", k, recipe.committee)
        member, folder = recipe.member(k), output / f"{MEMBER}{k}"
        with locked_folder(folder, member, training, validation, processes):
            done = _fit(member, training, validation, folder, processes)
        members.append(done.potential)
        history += [row | {"wall_time_s": wall_time + row["wall_time_s"]} for row in done.history]
        wall_time = history[-1]["wall_time_s"]
    model = output / f"{recipe.name}.safetensors"
    potential = Committee(members)
    processes.from_first(lambda: save(potential, model))
    return Training(load(model), model, history)


def _is_resumed(recipe: Recipe, output: Path) -> bool:
    """Return True if there are model and checkpoint to continue from."""
    return (output / f"{recipe.name}.safetensors").exists() and (output / "last.ckpt").exists()


def _check(
    recipe: Recipe,
    processes: Processes,
    output: Path,
    training: Dataset,
    validation: Dataset,
    test: Dataset | None = None,
) -> None:
    """Check for all errors that would otherwise appear later, perhaps after days."""
    processes.check(recipe)
    known, are_known = set(elements_of(training)), _energies_are_known(recipe, training)
    if processes.is_first:
        _print_data(training, validation, test)
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
    if not _is_resumed(recipe, output):  # else the starting model may be gone
        check_start(recipe, training)
        _check_periodicity(recipe, (training, validation))


def _energies_are_known(recipe: Recipe, training: Dataset) -> bool:
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


def _print_data(training: Dataset, validation: Dataset, test: Dataset | None) -> None:
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


def _print_network(
    potential: Potential, recipe: Recipe, processes: Processes, output: Path
) -> None:
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


def _print_reference_energies(potential: Potential, training: Dataset, *, are_known: bool) -> None:
    energies = zip(potential.species, potential.reference_energies.tolist(), strict=True)
    log.info(
        "reference energies: %s%s",
        ", ".join(f"{chemical_symbols[z]} {energy:.3f} eV" for z, energy in energies),
        ""
        if are_known or determines_each_element(training)
        else "; only their sum over a structure has a meaning, as its compositions are few",
    )


def _require_matching_units(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse labels whose units do not match, if the training uses both."""
    if recipe.energy_weight and recipe.force_weight and (what := data.unit_mismatch(dataset)):
        raise ValueError(f"{what} (or train on one of them: energy_weight: 0 or force_weight: 0)")
    if recipe.stress_weight and (what := data.stress_mismatch(dataset)):
        raise ValueError(f"{what} (or train without them: stress_weight: 0)")


def _warn_unknown(recipe: Recipe, dataset: Dataset) -> None:
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


def _known(recipe: Recipe, training: Dataset) -> dict[str, Any]:
    """Return what a model must know of its training to refuse others and to be compared."""
    level = recipe.level_of_theory or training.level_of_theory
    return {"level_of_theory": level, **electrons(training)}


def _describe(
    done: Training,
    recipe: Recipe,
    parts: tuple[Dataset, Dataset, Dataset | None],
    test_errors: Errors | None,
    command: str,
) -> None:
    """Write errors and origin into the model file and its card."""
    training, validation, test = parts
    off = errors_of_isolated(done.potential, energies_of_isolated(recipe, training))
    info = {
        "data": training.source,
        "labels": training.labels,
        **_known(recipe, training),
        "n_train": len(training),
        "structures": fingerprints(training),
        "n_validation": len(validation),
        "n_test": 0 if test is None else len(test),
        "repeated": count_repeated(training, validation, test),
        "isolated_error": max(map(abs, off.values()), default=None),
        "test_errors": None if test_errors is None else dataclasses.asdict(test_errors),
        "epochs": int(done.history[-1]["epoch"]),
        "wall_time_s": round(done.history[-1]["wall_time_s"], 1),
        "start_from": _start(recipe, done.potential, test),
        "seed": recipe.seed,
        "committee": recipe.committee,
        "command": command,
    }
    done.potential.training_info.update(info)
    save(done.potential, done.model)
    write_atomically(done.model.with_suffix(".md"), card(recipe, done.potential).encode())


def _start(recipe: Recipe, potential: Potential, test: Dataset | None) -> dict[str, Any] | None:
    """Return name and data of the model that the training started from, as far as known.

    With it, the number of test structures that it was trained on; None if it does not know its own.
    """
    if recipe.start_from is None:
        return None
    try:
        told = origin(recipe.find_start())
    except FileNotFoundError:  # an earlier test of the run may have stored them
        before = potential.training_info.get("start_from") or {}
        told = {key: str(before.get(key) or "") for key in ("data", "labels", "structures")}
    theirs = told["structures"]
    n_seen = count_known(test, theirs) if test is not None and theirs else None
    return {**told, "name": model_name(recipe.start_from), "n_seen": n_seen}


def _without_folders(command: str) -> str:
    """Return a shell command with absolute paths replaced by file names."""

    def shortened(word: str) -> str:
        # --data /a/b, --data=/a/b and -o/a/b
        return re.sub(r"^(--[^=]+=|-\w|)(/.*)$", lambda m: m[1] + Path(m[2]).name, word)

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(
            f"command must be readable by a shell ({error}), got {command!r}"
        ) from None
    short = [shortened(word) for word in words]
    return command if short == words else shlex.join(short)
