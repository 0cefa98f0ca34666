"""Reader of HDF5: groups of arrays, one per molecule, or all structures in one."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from attncalc.data.arrays import (
    NAMES,
    POSITIONS,
    Labels,
    choose_labels,
    dataset_fields,
    splits_of,
    stresses_left_out,
    text,
)
from attncalc.data.dataset import OPTIONAL, Dataset, concatenate
from attncalc.data.units import ReadOptions, factors, named_units, parse_entry, size_of
from attncalc.files.hdf5_reading import LocalFile
from attncalc.files.reading import open_regular, require_room
from attncalc.text import one_line

log = logging.getLogger(__name__)

# An array that has not been read, or the value of an attribute.
Array: TypeAlias = h5py.Dataset | NDArray
# Attributes of an array that hold its unit.
_UNIT_ATTRIBUTES = ("units", "unit")
# Names that apply to all groups if they are at the root of the file.
FOR_ALL = ("units", "level_of_theory", "theory", "e0", "e0_z")


def read_hdf5(path: Path, options: ReadOptions) -> Dataset:
    """Read an HDF5 file.

    Every group with positions, the root included, holds structures; groups are read in alphabetical
    order of their full names. The names of arrays are those of `read_npz`: `z`, `R`, `E`, `F` or
    `atomic_numbers`, `positions`, `energies`, `forces`, and so on. Three layouts are supported:

    * a group per composition: `z` [N] (or [n, N], padded with 0), `R` [n, N, 3], `E` [n],
      `F` [n, N, 3]. ANI-1, ANI-1x and SPICE files have this layout, and their own names
      (`coordinates`, `conformations`, `species` ...) are accepted;
    * all structures in a row: `z` [n_total], `R` [n_total, 3], `F` [n_total, 3], `E` [n], and
      `offsets` [n + 1], from 0 to n_total, or `n_atoms` [n];
    * a group per structure: `z` [N], `R` [N, 3], `F` [N, 3] and a single `E`.

    If present, `cell`, `pbc`, `stress`, `charge` and `spin` are read as in `read_npz`. Without
    `charge`, the formal charges in a group's `smiles` are added up, as in SPICE. Small arrays
    may be attributes of the group instead. At the root, `level_of_theory`, isolated-atom energies
    `e0_z`, `e0` and `units` apply to all groups, and integer arrays `train...`, `test...`, `val...`
    and `split_NAME` are splits: indices of structures in the order of reading.

    A unit is stored as an attribute "units" of an array, or in an attribute "units" of a group or
    of the root, as in "E: kcal/mol; F: kcal/mol/angstrom; R: angstrom".

    `E_NAME`, `F_NAME` are the label set "NAME", and so are `NAME_energy`, `NAME_forces` and
    `NAME.energy`, `NAME.forces`. The sign of `NAME_gradient`, instead of forces, is changed. A file
    that refers to another file, by links or otherwise, is refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file, one of its arrays or its units are invalid; the message is one line
            that starts with the file's name.
    """
    with reading(path):
        with LocalFile(path) as file:
            parts, splits = _parts(file, options)
        _require_equal_labels(parts)
    return _joined(path.name, parts, splits)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error inside into one line that starts with the file's name.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or its content is invalid.
    """
    with open_regular(path):
        pass  # OSError is raised here, and not reported as damage below
    try:
        yield
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    except Exception as error:  # the HDF5 library raises errors of many kinds
        raise ValueError(
            f"{path.name}: the file is truncated, damaged or not HDF5 ({one_line(error)}): "
            "download or write it again"
        ) from None


def _parts(
    file: LocalFile, options: ReadOptions
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray]]:
    """Return group name -> arguments of `Dataset`, in order, and the splits."""
    root = arrays_of(file, "/")
    splits = splits_of(root)
    declared = add_declared_bytes(splits, 0, file.size)
    for_all = {name: root[name] for name in FOR_ALL if name in root}
    declared = add_declared_bytes(for_all, declared, file.size)
    known = {name: read_array(file, array) for name, array in for_all.items()}
    parts: dict[str, dict[str, Any]] = {}
    left_out = ""
    for name in file.group_names:
        # one group at a time: a collection may have a hundred thousand
        arrays = known | arrays_of(file, name)
        if not any(isinstance(arrays.get(key), h5py.Dataset) for key in POSITIONS):
            continue
        with _of_group(name), np.errstate(over="ignore"):  # the check of the data set finds it
            shapes = {key: array.shape for key, array in arrays.items()}
            left_out = left_out or stresses_left_out(shapes)
            chosen = choose_labels(shapes, options.labels)
            options = dataclasses.replace(options, labels=chosen.name)  # one set in the whole file
            to_ase = factors(stored_units(file, arrays, known, chosen), options)
            keys = (*NAMES, chosen.energy, chosen.forces)
            wanted = {key: arrays[key] for key in keys if key in arrays}
            declared = add_declared_bytes(wanted, declared, file.size)
            read = {key: read_array(file, array) for key, array in wanted.items()}
            parts[name] = dataset_fields(read, to_ase, chosen)
    if left_out:
        log.warning("%s: %s", Path(file.filename).name, left_out)
    if not parts:
        raise ValueError(
            f"no positions: a group with one of the arrays {', '.join(POSITIONS)} is needed, "
            f"the file has {', '.join(file) or 'none'}"
        )
    return parts, {name: read_array(file, array) for name, array in splits.items()}


def arrays_of(file: LocalFile, group: str) -> dict[str, Array]:
    """Return the attributes and arrays of a group by name; the arrays are not read yet."""
    inner = file[group]
    found: dict[str, Array] = dict(file.attributes(inner))
    for name in inner:
        item = inner.get(name)  # None for a dangling link within the file
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item
    return found


def read_array(file: LocalFile, array: Array) -> NDArray:
    """Return the numbers or texts of an array or attribute."""
    return file.values(array) if isinstance(array, h5py.Dataset) else array


def add_declared_bytes(arrays: Mapping[str, Array], declared: int, file_size: int) -> int:
    """Add the declared sizes of arrays, in bytes, to those so far, and return the sum.

    A sparse file may declare any size, so the sum is limited.

    Raises:
        ValueError: the sum is too large for the size of the file.
    """
    declared += sum(array.nbytes for array in arrays.values())
    require_room(declared, file_size, "its arrays would take")
    return declared


def stored_units(
    file: LocalFile,
    arrays: Mapping[str, Array],
    for_all: Mapping[str, NDArray],
    labels: Labels,
) -> dict[str, str]:
    """Return quantity -> unit, from attributes of the root, of the group and of the arrays.

    Raises:
        ValueError: two of these units disagree, or one is unknown.
    """
    statements: list[tuple[str, str]] = []
    for level in (for_all, arrays):
        if "units" in level:
            entry = parse_entry(text(np.asarray(level["units"])))
            names = named_units(entry, energy_name=labels.energy, forces_name=labels.forces)
            statements += [(quantity, entry[name]) for quantity, name in names.items()]
    for quantity, keys in (
        ("energy", (labels.energy,)),
        ("forces", (labels.forces,)),
        ("length", (*POSITIONS, "cell")),
        ("stress", ("stress",)),
        ("dipole", ("dipole", "dipoles")),
    ):
        for key in keys:
            if isinstance(array := arrays.get(key), h5py.Dataset):
                found = file.attributes(array)
                statements += [(quantity, text(found[k])) for k in _UNIT_ATTRIBUTES if k in found]
    stored: dict[str, str] = {}
    for quantity, unit in statements:
        known = stored.setdefault(quantity, unit)
        sizes = [size_of(quantity, one, f"unit of {quantity}") for one in (known, unit)]
        if not math.isclose(*sizes, rel_tol=1e-9):
            raise ValueError(
                f"{quantity} is stored in two units, {known!r} and {unit!r}: correct one of them"
            )
    return stored


def _require_equal_labels(parts: Mapping[str, dict[str, Any]]) -> None:
    """Refuse parts if only some have forces or stress; drop other labels that only some have."""
    for label in OPTIONAL:
        if label not in ("forces", "stress") and not all(label in part for part in parts.values()):
            for part in parts.values():
                part.pop(label, None)
        having = next((name for name, fields in parts.items() if label in fields), None)
        missing = next((name for name, fields in parts.items() if label not in fields), None)
        if having and missing:
            raise ValueError(
                f"{missing} has no {label} but {having} has: "
                f"remove {missing}, or this label from all"
            )


def _joined(
    source: str, parts: Mapping[str, dict[str, Any]], splits: Mapping[str, NDArray]
) -> Dataset:
    datasets = [
        Dataset(**(fields | {"splits": {}}), source=source if name == "/" else f"{source}: {name}")
        for name, fields in parts.items()
    ]
    try:
        joined = concatenate(datasets)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return dataclasses.replace(joined, source=source, splits=splits)


@contextmanager
def _of_group(name: str) -> Iterator[None]:
    """Let error messages begin with the name of the group."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if name == "/" else f"{name}: {error}") from None
