"""HDF5 files with the atoms of all structures in a row: random access, and writing."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from attncalc.data.arrays import (
    COUNTS,
    NAMES,
    NAMES_OF_ATOMS,
    NUMBERS,
    OFFSETS,
    POSITIONS,
    bounds_of,
    choose_labels,
    dataset_fields,
    floats,
    key_of_split,
    n_structures,
    name_of_atoms,
    name_of_dipoles,
    splits_of,
)
from attncalc.data.dataset import (
    OF_ATOMS,
    OF_STRUCTURES,
    OPTIONAL,
    Dataset,
    Floats,
    Integers,
    joint_isolated_energies,
    joint_level,
)
from attncalc.data.hdf5 import (
    FOR_ALL,
    Array,
    add_declared_bytes,
    arrays_of,
    read_array,
    reading,
    stored_units,
)
from attncalc.data.units import ReadOptions, factors
from attncalc.files import replacing
from attncalc.files.hdf5_reading import LocalFile
from attncalc.files.hdf5_writing import WritableFile, append_structures, new_hdf5
from attncalc.system import charge_and_spin
from attncalc.text import counted

log = logging.getLogger(__name__)

# more splits, as of a file whose structures all have names of their own, are not written
MOST_SPLITS = 1000
# labels other than energies, forces and stress -> their names in a written file
FURTHER = {
    "charges": "atomic_charges",
    "hirshfeld_ratios": "hirshfeld_ratios",
    "dipoles": "dipoles",
}


class Rows:
    """Reader of one structure of a file at a time.

    Data per structure are kept in memory, data per atom are read on demand.

    Args:
        path: the file, which stays open.
        options: units and label set.

    Attributes:
        source: the file's name.
        energies: [n] eV.
        splits: name -> indices.
        labels: names of the optional labels of a `Dataset` that the file has.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or its structures are not stored in a row; the message is
            one line that starts with the file's name.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._path, self.source = path, path.name
        self._last: tuple[int, Dataset] | None = None
        with reading(path):
            file = self._file = LocalFile(path)
            root = arrays_of(file, "/")
            self.splits = {k: read_array(file, a) for k, a in splits_of(root).items()}
            for_all = {k: read_array(file, root[k]) for k in FOR_ALL if k in root}
            arrays = for_all | self._the_group(file)
            shapes = {key: array.shape for key, array in arrays.items()}
            self._labels = choose_labels(shapes, options.labels)
            self._to_ase = factors(stored_units(file, arrays, for_all, self._labels), options)
            wanted = (*NAMES, self._labels.energy, self._labels.forces)
            positions = next(shapes[key] for key in POSITIONS if key in shapes)
            n = n_structures(positions, shapes)
            of_atoms: dict[str, str | None] = dict.fromkeys(OF_ATOMS)
            if self._labels.has_others:
                of_atoms = {label: name_of_atoms(label, shapes, positions, n) for label in OF_ATOMS}
            per_atom = (*NUMBERS, *POSITIONS, self._labels.forces, *filter(None, of_atoms.values()))
            self._per_atom = {k: arrays[k] for k in per_atom if k in arrays}
            if "charges" in self._per_atom:  # that of a single atom would be read as total charge
                self._per_atom["atomic_charges"] = self._per_atom.pop("charges")
            ignored = {*per_atom, OFFSETS, COUNTS}
            if positions[0] != n:  # further arrays with one number per atom
                names = itertools.chain(*NAMES_OF_ATOMS.values())
                ignored |= {key for key in names if shapes.get(key, ())[:1] == positions[:1]}
            rest = [k for k in wanted if k in arrays and k not in ignored]
            add_declared_bytes({k: arrays[k] for k in rest}, 0, file.size)
            self._rest = {k: read_array(file, arrays[k]) for k in rest}
            having = {label for label, key in of_atoms.items() if key is not None}
            having |= {"forces"} if self._labels.forces in arrays else set()
            if self._labels.has_others:
                having |= {"stress"} if "stress" in arrays else set()
                having |= {"dipoles"} if name_of_dipoles(shapes, n) is not None else set()
            self.labels = tuple(label for label in OPTIONAL if label in having)
            stored = self._rest[self._labels.energy].reshape(-1)
            self.energies: Floats = floats(stored, self._labels.energy) * self._to_ase.energy
            counts = {k: read_array(file, arrays[k]) for k in (OFFSETS, COUNTS) if k in arrays}
            n_total = len(next(array for k, array in self._per_atom.items() if k in POSITIONS))
            self._bounds = np.asarray(bounds_of(counts, n_total, len(self.energies)))
            for key, array in self._per_atom.items():
                if array.shape[0] != n_total:
                    raise ValueError(f"{key} must have {n_total} rows, got {array.shape[0]}")
            if len(self._bounds) != len(self.energies) + 1:
                raise ValueError(
                    f"{len(self._bounds) - 1} structures by {', '.join(counts)}, but "
                    f"{len(self.energies)} energies"
                )
            if not np.isfinite(self.energies).all():
                first = int(np.argmin(np.isfinite(self.energies)))
                raise ValueError(f"the energy of structure {first} is not finite: remove it")

    def _the_group(self, file: LocalFile) -> dict[str, Array]:
        found = []
        for name in file.group_names:
            arrays = arrays_of(file, name)
            if any(isinstance(arrays.get(key), h5py.Dataset) for key in POSITIONS):
                found.append(arrays)
        flat = [a for a in found if any(k in a and a[k].ndim == 2 for k in POSITIONS)]
        if len(found) != 1 or not flat or not {OFFSETS, COUNTS} & flat[0].keys():
            raise ValueError(
                f"only structures in a row (positions [n_total, 3] with {OFFSETS}) can be left in "
                f"the file: `attncalc convert data {self.source} -o NEW.h5` writes them so"
            )
        return flat[0]

    def __call__(self, k: int) -> Dataset:
        """Read structure k of the file as a data set of one; the last one is cached."""
        if self._last is None or self._last[0] != k:
            try:
                self._last = k, self._read(k)
            except ValueError as error:
                text = str(error).replace("structure 0", f"structure {k}")
                raise ValueError(text) from None
        return self._last[1]

    def _read(self, k: int) -> Dataset:
        a, b = self._bounds[k : k + 2].tolist()
        with reading(self._path):
            arrays = {
                key: self._file.values(array, slice(a, b)) for key, array in self._per_atom.items()
            }
            arrays |= {key: self._of_structure(key, k) for key in self._rest}
            arrays[OFFSETS] = np.array([0, b - a])
            with np.errstate(over="ignore"):  # overflow is reported by the check of the data set
                fields = dataset_fields(arrays, self._to_ase, self._labels)
        return Dataset(**(fields | {"splits": {}}), source=self.source)

    def _of_structure(self, key: str, k: int) -> NDArray:
        array, n = self._rest[key], len(self.energies)
        # an array that all structures share has one axis less
        shared = array.ndim < {"cell": 3, "pbc": 2, "stress": 3, "dipoles": 2, "dipole": 2}.get(
            key, 1
        )
        is_table = key in ("e0", "e0_z")
        return array if shared or is_table or array.shape[0] != n else array[k : k + 1]


def write_hdf5(parts: Dataset | Iterable[Dataset], path: str | Path) -> int:
    """Write data sets to one file, with all structures in a row.

    Units are eV and Å; splits are written too, up to `MOST_SPLITS`. Stress, charges, Hirshfeld
    ratios and dipoles are written only if all structures have them. Only one part at a time needs
    to be in memory. The file appears when it is complete.

    Args:
        parts: a data set, or several. Forces must be in all of them or in none.
        path: file to write, .h5 or .hdf5.

    Returns:
        The number of structures.

    Raises:
        ValueError: there is no structure, only some have forces, or the stated levels of theory
            differ.
    """
    if isinstance(parts, Dataset):
        parts = [parts]
    with replacing(path) as new, new_hdf5(new) as (file, raw):
        return _write(file, raw, parts)


def _write(file: h5py.File, raw: WritableFile, parts: Iterable[Dataset]) -> int:
    splits: dict[str, list[Integers]] = {}
    electrons: list[tuple[int, int]] = []
    said: set[str] = set()  # keys of `info` that a structure has
    level, n = "", 0
    labels: str | None = None
    has_forces: bool | None = None
    has_stress = False  # in some part
    left_out: set[str] = set()  # labels that are missing in some part, so they are not written
    isolated: dict[int, float] = {}
    for part in parts:
        if has_forces not in (None, part.forces is not None):
            raise ValueError(f"{part.source}: only some structures have forces: remove them")
        if labels not in (None, part.labels):
            log.warning(
                "%s: its label set %r was read, of what is before it %r: choose one set by labels "
                "if these are of different methods",
                *(part.source, part.labels, labels),
            )
        labels = part.labels
        has_forces, has_stress = part.forces is not None, has_stress or part.stress is not None
        for label in {"stress", *FURTHER} - left_out:
            if getattr(part, label) is None:
                left_out.add(label)
                file.pop(FURTHER.get(label, label), None)
        nothing: dict[str, Any] = dict.fromkeys(left_out)
        part = replace(part, **nothing)
        n_atoms = np.array([len(atoms) for atoms in part.structures])
        append_structures(file, raw, _columns(part), n_atoms)
        for name, indices in part.splits.items():
            splits.setdefault(name, []).append(n + indices)
        for atoms in part.structures:
            electrons.append(charge_and_spin(atoms))
            said |= atoms.info.keys()
        level = joint_level({level, part.level_of_theory})
        isolated = joint_isolated_energies(isolated, part)
        n += len(part)
    if n == 0:
        raise ValueError("no structures given to write")
    if has_stress and "stress" in left_out:
        log.warning("stress is left out: not all structures have it")
    for k, name in enumerate(("charge", "spin")):
        if name in said:
            file[name] = np.array(electrons)[:, k]
    impossible = sorted(name for name in splits if "/" in name or "\0" in name)
    if len(splits) > MOST_SPLITS:
        impossible = sorted(splits)
    if impossible:
        names = ", ".join(impossible[:3]) + (" ..." if len(impossible) > 3 else "")
        log.warning("%s not written: %s", counted(len(impossible), "split"), names)
    for name in splits.keys() - impossible:
        file[key_of_split(name)] = np.concatenate(splits[name])
    # texts of fixed length: those of variable length are stored in heaps, which may get damaged
    file.attrs["units"] = np.bytes_(
        "E: eV; F: eV/Angstrom; R: Angstrom; stress: eV/Angstrom^3; dipoles: e Angstrom"
    )
    if level:
        file.attrs["level_of_theory"] = np.bytes_(level.encode())
    if isolated:
        file["e0_z"], file["e0"] = list(isolated), list(isolated.values())
    return n


def _columns(part: Dataset) -> dict[str, NDArray]:
    structures = part.structures
    columns: dict[str, NDArray] = {
        "z": np.concatenate([atoms.numbers for atoms in structures]).astype(np.uint8),
        "R": np.concatenate([atoms.positions for atoms in structures]),
        "E": part.energies,
        "cell": np.stack([atoms.cell.array for atoms in structures]),
        "pbc": np.stack([atoms.pbc for atoms in structures]),
    }
    if part.forces is not None:
        columns["F"] = np.concatenate(part.forces)
    if part.stress is not None:
        columns["stress"] = part.stress
    for label, name in FURTHER.items():
        if (values := getattr(part, label)) is not None:
            columns[name] = values if label in OF_STRUCTURES else np.concatenate(values)
    return columns
