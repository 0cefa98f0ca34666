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
from torch.utils.data import ConcatDataset

from attncalc import data
from attncalc.calibrate import calibrate, some_of
from attncalc.data import Dataset
from attncalc.data.errors import Errors
from attncalc.data.fingerprints import count_known, count_repeated, fingerprints
from attncalc.data.readers import require_one_unit
from attncalc.data.statistics import (
    electrons,
    with_possible_stress,
)
from attncalc.data.streamed import errors_of
from attncalc.files import write_atomically
from attncalc.model_file import load, model_name, origin, save
from attncalc.potential import Committee, Potential
from attncalc.train.batches import join, samples, sizes_of, to_device
from attncalc.train.callbacks import LearningCurve, write_table
from attncalc.train.card import card
from attncalc.train.data_checks import (
    check_data,
    energies_are_known,
    require_matching_units,
    warn_of_near_copies,
    warn_unchecked,
)
from attncalc.train.denoising import denoising_step, margin, with_denoising
from attncalc.train.isolated import (
    energies_of_isolated,
    errors_of_isolated,
    isolated_atoms,
    print_isolated,
)
from attncalc.train.loop import Done, read_done, train_loop
from attncalc.train.messages import print_network, print_plan, print_reference_energies
from attncalc.train.module import TrainingModule, loss_of
from attncalc.train.order import Sizes, n_steps, typical
from attncalc.train.processes import Processes, connect
from attncalc.train.recipe import Recipe
from attncalc.train.reproducible import ordered_sums
from attncalc.train.run_folder import MARK, checksum, is_resumed, locked_folder, remembered
from attncalc.train.select_step import select_step
from attncalc.train.start import (
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
        TypeError: `recipe` is not a Recipe.
        KeyboardInterrupt: Ctrl-C; its message says how to continue.
    """
    _require_recipe(recipe)
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
            check_data(recipe, processes, output, training, validation, test)
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


def _require_recipe(recipe: Recipe) -> None:
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a Recipe, got {type(recipe).__name__}: Recipe.from_yaml reads a file, "
            "Recipe(**keys) takes a dictionary"
        )


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
    require_matching_units(recipe, sample)
    warn_unchecked(recipe, sample)
    if recipe.test_data is not None and parts[2] is not None:
        require_matching_units(recipe, data.sample(parts[2]))
    warn_of_near_copies(recipe, dataset, recipe.test_data is None and parts[2] is not None)
    return parts


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
        TypeError: `recipe` is not a Recipe, or the data are not data sets.
        KeyboardInterrupt: Ctrl-C; its message says how to continue.
    """
    for role, dataset in (("training", training), ("validation", validation)):
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{role} must be a Dataset, got {type(dataset).__name__}: attncalc.data.read makes "
                "one of a file, attncalc.data.from_ase of a list of ase.Atoms"
            )
    _require_recipe(recipe)
    output = Path(output if output is not None else Path("runs") / recipe.name)
    processes = connect()
    with processes.together():
        recipe = _suited(_with_start(recipe, output), training, processes)
        check_data(recipe, processes, output, training, validation)
        require_matching_units(recipe, data.sample(training))
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
            print_network(potential, recipe, processes, output)
            are_known = energies_are_known(recipe, training)
            print_reference_energies(potential, training, are_known=are_known)
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
            print_plan(recipe, module.n_steps, seconds, done)
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
    return is_resumed(recipe, output), read_done(output / "last.ckpt")


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
    numbers = [int(row["epoch"]) for row in done.history]
    # of each member of a committee, whose first epoch follows the last one of the member before
    n_epochs = [n for n, after in zip(numbers, [*numbers[1:], 0], strict=True) if after <= n]
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
        "epochs": max(n_epochs),
        "fewest_epochs": min(n_epochs),
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
