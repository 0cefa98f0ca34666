"""Output folder of a training: locked against other runs, tied to one recipe and its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from attncalc import model_file
from attncalc.data import Dataset
from attncalc.files import FileLock, write_atomically
from attncalc.system import charge_and_spin
from attncalc.text import one_line
from attncalc.train.isolated import energies_of_isolated
from attncalc.train.processes import Processes
from attncalc.train.recipe import Recipe, with_current_names

# keys in the recipe.json of a folder beside those of the recipe
DATA, START, FILE, TEST_FILE = "data_sha256", "start_sha256", "data_file", "test_file"
# role of the energies of isolated atoms among the parts of the data
ISOLATED = "isolated atoms"
# file in an output folder that a training has begun in
MARK = "recipe.json"


@contextmanager
def locked_folder(
    output: Path,
    recipe: Recipe,
    training: Dataset,
    validation: Dataset,
    processes: Processes,
    test: Dataset | None = None,
) -> Iterator[None]:
    """Lock the output folder against other trainings, and make it if it does not exist.

    The first of several processes locks it for all.

    Raises:
        BlockingIOError: another training has locked it.
        FileExistsError: files of a run are there, but not its checkpoint.
        ValueError: the folder holds a run of another recipe, on other data, or from another start,
            or the processes have different data.
    """
    with ExitStack() as stack:
        with processes.together():
            parts = {"training": training, "validation": validation, "test": test}
            labels = recipe.output_labels
            data = {k: checksum(part, labels) for k, part in parts.items() if part is not None}
            if energies := energies_of_isolated(recipe, training):
                data[ISOLATED] = hashlib.sha256(json.dumps(energies).encode()).hexdigest()
            if processes.is_first:
                output.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(output))
                _remember(output, recipe, data, training.source)
        of_first = processes.from_first(lambda: data)
        with processes.together():
            if data != of_first:
                raise ValueError(
                    f"{training.source}: process {processes.rank} of this training has other data "
                    "than the first: give all of them the same, they share them out by themselves"
                )
        yield


def _remember(output: Path, recipe: Recipe, data: dict[str, str], source: str) -> None:
    """Record recipe and data in an output folder; refuse to continue another run.

    Files may be moved and renamed between two calls, because only their contents are compared. The
    model that a training started from may be missing later, but must not be another one.
    """
    mark = output / MARK
    ours = _as_in_a_file(recipe.as_dict())
    start = _start_checksum(recipe)
    begun = [*output.glob("last.ckpt"), *output.glob("member-*/last.ckpt")]
    if not begun:
        _refuse_results(output, recipe.name, began=mark.exists())
    if mark.exists() and begun:
        # a key that an older version did not write has its default
        theirs = _defaults() | _read(mark)
        their_data, their_start = theirs.pop(DATA, None) or {}, theirs.pop(START, None)
        theirs.pop(FILE, None), theirs.pop(TEST_FILE, None)
        start = start or their_start
        _refuse_other_recipe(output, ours, theirs)
        # a finished run may be tested on another test set
        changed = [
            role
            for role in ("training", "validation", ISOLATED)
            if their_data.get(role) != data.get(role)
        ]
        if changed:
            named = " and ".join(r if r == ISOLATED else f"{r} set" for r in changed)
            raise ValueError(
                f"{output} holds a run on other data (different: {named}; now "
                f"from {source}): choose another output folder, or remove this one to "
                "start again"
            )
        if their_start and start != their_start:
            raise ValueError(
                f"{output} holds a run that started from another model than {recipe.start_from} is "
                "now: choose another output folder, or remove this one to start again"
            )
    more = {DATA: data} | ({START: start} if start else {})
    for key, file in ((FILE, recipe.data), (TEST_FILE, recipe.test_data)):
        with suppress(FileNotFoundError):  # `fit` is given data, not a file
            more |= {key: str(recipe.find(file))} if file is not None else {}
    write_atomically(mark, json.dumps(ours | more, indent=1).encode())


def _refuse_results(output: Path, name: str, *, began: bool) -> None:
    """Refuse to overwrite results without a checkpoint, unless a kill in the first epoch left them.

    Raises:
        FileExistsError: there are some.
    """
    table = output / "metrics.csv"
    results = (output / f"{name}.safetensors", output / f"{name}.md", table)
    there = [path.name for path in results if path.exists()]
    n_epochs = table.read_bytes().count(b"\n") - 1 if table.is_file() else 0
    if there and not (began and n_epochs <= 1):
        raise FileExistsError(
            f"{output} has {' and '.join(there)} but no checkpoint to continue from, and nothing "
            "is overwritten: choose another output folder"
        )


def remembered(output: Path) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe of an output folder, and SHA-256 of its sets, by role.

    Raises:
        FileNotFoundError: no training has begun there.
        ValueError: the record of the training is damaged.
    """
    mark = output / MARK
    if not mark.is_file():
        raise FileNotFoundError(f"{output}: no training has begun in this folder (no {MARK})")
    try:
        content = _defaults() | _read(mark)
        data = dict(content.pop(DATA, None) or {})
        content.pop(START, None)
        for key, name in ((FILE, "data"), (TEST_FILE, "test_data")):
            file = content.pop(key, None)
            if isinstance(file, str) and Path(file).is_file():
                content[name] = file
        return Recipe(**content), data
    except (TypeError, ValueError) as error:
        remark = one_line(error).removeprefix(f"{mark}: ")
        raise ValueError(f"{mark}: damaged ({remark})") from None


def _read(mark: Path) -> dict[str, Any]:
    try:
        content = json.loads(mark.read_bytes())
    except ValueError as error:
        content, what = None, one_line(error)
    else:
        what = "no dictionary"
    if not isinstance(content, dict):
        raise ValueError(
            f"{mark}: damaged ({what}); remove it to go on with the recipe as it is now"
        )
    return with_current_names(content)


def _start_checksum(recipe: Recipe) -> str | None:
    """Return the checksum of the model that a training starts from, if there is one."""
    if recipe.start_from is None:
        return None
    try:
        return model_file.checksum(recipe.find_start())
    except FileNotFoundError:
        return None


def _defaults() -> dict[str, Any]:
    defaults = {
        f.name: f.default for f in fields(Recipe) if f.default is not MISSING and f.name != "folder"
    }
    return _as_in_a_file(defaults)


def _as_in_a_file(content: dict[str, Any]) -> dict[str, Any]:
    """Return content as it is after writing and reading: lists instead of tuples."""
    read: dict[str, Any] = json.loads(json.dumps(content))
    return read


def checksum(dataset: Dataset, labels: Collection[str] = ()) -> str:
    """Return SHA-256 of everything that a training sees: structures and labels, not names.

    Args:
        dataset: one of its sets.
        labels: labels that are trained on in addition to energies, forces and stress.
    """
    digest = hashlib.sha256()

    def add(values: Any, kind: str) -> None:
        digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())

    # which labels there are, so that no two data sets give the same stream of bytes
    add([len(dataset), dataset.forces is not None, dataset.stress is not None], "<i8")
    for k, atoms in enumerate(dataset.structures):
        add([len(atoms), *charge_and_spin(atoms), *atoms.pbc, *atoms.numbers], "<i8")
        add(atoms.positions, "<f8")
        add(atoms.cell.array, "<f8")
        add(dataset.energies[k], "<f8")
        if dataset.forces is not None:
            add(dataset.forces[k], "<f8")
        if dataset.stress is not None:
            add(dataset.stress[k], "<f8")
        for label in sorted(labels):
            if (values := getattr(dataset, label)) is not None:
                digest.update(label.encode())
                add(values[k], "<f8")
    return digest.hexdigest()


def _refuse_other_recipe(output: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    def identity(content: Mapping[str, Any], key: str) -> object:
        if key in ("data", "test_data", "stream"):  # checksums compare their contents
            return None
        if content.get({"epochs": "minutes", "batch_size": "batch_edges"}.get(key, "")):
            return None  # the other key decides
        if key == "start_from":  # a file or a shipped name: its checksum tells more
            return bool(content.get(key))
        return content.get(key)

    changed = sorted(k for k in {*ours, *theirs} if identity(ours, k) != identity(theirs, k))
    if changed:
        raise ValueError(
            f"{output} holds a run of another recipe (different: {', '.join(changed)}): "
            "choose another output folder (its recipe may start_from this one), or remove this "
            "one to start again"
        )


def is_resumed(recipe: Recipe, output: Path) -> bool:
    """Return True if there are model and checkpoint to continue from."""
    return (output / f"{recipe.name}.safetensors").exists() and (output / "last.ckpt").exists()
