"""Readers of ASE databases (SQLite files) and of ASE trajectories (binary files)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ase.db
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.io.trajectory import Trajectory

from attncalc.data.ase_frames import dataset_of
from attncalc.data.dataset import Dataset
from attncalc.data.units import ReadOptions
from attncalc.text import one_line

_RESULTS = ("energy", "free_energy", "forces", "stress", "charges", "dipole")


def read_ase_db(path: Path, options: ReadOptions) -> Dataset:
    """Read an ASE database (`ase.db.connect`), with rows in the order of their ids.

    Energy, forces and stress are a row's calculated results, or are read from its `data`. `data`
    and key-value pairs have the meaning of `info` in `from_ase`: `REF_energy`, `REF_forces` are the
    label set "REF", `charge` (or `total_charge`) and `spin` are total charge and multiplicity,
    `split`, `group` and `config_type` define splits. Initial charges of atoms are not added up to a
    total charge.

    ASE's convention is eV and Å. Other units are stored in the database's `metadata`, as `units`
    (text or a dictionary, as in `attncalc.data.read`) or as SchNetPack writes them
    (`_property_unit_dict`, `_distance_unit`).

    Args:
        path: the file, which is not changed.
        options: units and label set.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged or not an ASE database, or a row has no label; the message
            is one line that starts with the file's name.
    """
    with _decoding(path, "ASE database"):
        charges = _total_charges(path)
        database = ase.db.connect(path, type="db", use_lock_file=False)
        metadata = database.metadata
        frames = [_atoms(row, metadata, charges) for row in database.select()]
    return dataset_of(frames, options, path.name)


def read_ase_traj(path: Path, options: ReadOptions) -> Dataset:
    """Read an ASE trajectory (`ase.io.Trajectory`); see `from_ase` for the names of labels.

    Energy, forces and stress are the results that the calculator of a frame had when it was
    written, without constraints. Arguments and errors are those of `read_ase_db`.
    """
    with _decoding(path, "ASE trajectory"), Trajectory(path) as file:
        frames = list(file)
    return dataset_of(frames, options, path.name)


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of ASE's decoders inside into one line that starts with the file's name.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, or not of this kind.
    """
    with open(path, "rb"):
        pass  # OSError is raised here, and not reported as damage below
    try:
        yield
    except Exception as error:  # errors of SQLite, and of any kind from ASE
        raise ValueError(
            f"{path.name}: the file is truncated, damaged or no {kind} "
            f"({one_line(error)}): download or write it again"
        ) from None


def _total_charges(path: Path) -> dict[int, Any]:
    """Return the values of `charge` among the key-value pairs of rows, by the number of the row.

    ASE writes them, but reads the sum of the initial charges of the atoms in their place. A file
    without ASE's table `systems` is refused, because ASE would create it. It must be a table of
    stored rows: a view or a virtual table may produce rows without end.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        found = connection.execute("SELECT type, sql FROM sqlite_master WHERE name = 'systems'")
        kind, sql = found.fetchone() or ("", "")
        if kind != "table" or not str(sql).startswith("CREATE TABLE"):
            raise ValueError("no such table: systems")
        rows = connection.execute(
            "SELECT id, key_value_pairs FROM systems WHERE key_value_pairs LIKE '%\"charge\"%'"
        )
        pairs = {number: json.loads(text) for number, text in rows}
    return {number: found["charge"] for number, found in pairs.items() if "charge" in found}


def _atoms(row: AtomsRow, metadata: Mapping[str, Any], charges: Mapping[int, Any]) -> Atoms:
    """Return the structure with its results, and all other data of the row in `info`."""
    info = {**row.data, **row.key_value_pairs}
    if row.id in charges:
        info["charge"] = charges[row.id]
    if "level_of_theory" in metadata:
        info.setdefault("level_of_theory", metadata["level_of_theory"])
    if "units" not in info and (units := _units(metadata)):
        info["units"] = units
    geometry = {name: row[name] for name in ("numbers", "positions", "cell", "pbc")}
    results = {name: value for name in _RESULTS if (value := row.get(name)) is not None}
    atoms = Atoms(**geometry, info=info)
    for name in ("initial_charges", "initial_magmoms"):
        if (values := row.get(name)) is not None:
            atoms.set_array(name, values)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _units(metadata: Mapping[str, Any]) -> Any:
    if "units" in metadata:
        return metadata["units"]
    stored = dict(metadata.get("_property_unit_dict", {}))
    if "_distance_unit" in metadata:
        stored["R"] = metadata["_distance_unit"]
    return stored
