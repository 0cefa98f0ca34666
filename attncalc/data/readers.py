"""`read` a file as a `Dataset`. A new format needs one reader and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from attncalc.data.ase_db import read_ase_db, read_ase_traj
from attncalc.data.dataset import Dataset
from attncalc.data.extxyz import read_extxyz, read_extxyz_in_parts
from attncalc.data.hdf5 import read_hdf5
from attncalc.data.npz import read_npz
from attncalc.data.units import ReadOptions
from attncalc.text import one_line

# in eV and Å, as ASE writes them, if the file states no unit
_OF_ASE = (".extxyz", ".xyz", ".db", ".traj")

_READERS: dict[str, Callable[[Path, ReadOptions], Dataset]] = {
    ".npz": read_npz,
    ".extxyz": read_extxyz,
    ".xyz": read_extxyz,
    ".db": read_ase_db,
    ".traj": read_ase_traj,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}


def read(
    path: str | PathLike[str],
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
) -> Dataset:
    """Read labelled structures from a file.

    | extension | format | details |
    |---|---|---|
    | `.npz` | MD17-style: one array per quantity | `attncalc.data.npz.read_npz` |
    | `.h5`, `.hdf5` | groups of such arrays, as in SPICE | `attncalc.data.hdf5.read_hdf5` |
    | `.xyz`, `.extxyz` | extended XYZ | `attncalc.data.from_ase` |
    | `.db` | ASE database | `attncalc.data.ase_db.read_ase_db` |
    | `.traj` | ASE trajectory | `attncalc.data.ase_db.read_ase_traj` |

    A unit that the file states takes precedence, and an argument that contradicts it is an error.
    If the file states none, `.npz` and HDF5 need `energy_unit`, while extended XYZ and ASE
    databases and trajectories are in eV, as ASE writes them. Lengths are in Å unless `length_unit`
    says otherwise. Forces are in energy/length. `attncalc.data.unit_mismatch` checks that energies
    and forces are consistent; a training calls it before it begins.

    Args:
        path: the file; its extension decides the format.
        energy_unit: "eV", "meV", "kcal/mol", "kJ/mol", "Hartree" or "Rydberg".
        length_unit: "Angstrom", "Bohr" or "nm".
        labels: label set to read if a file has several, e.g. "md17" or "rmd17" for the original
            and the recomputed labels of an rMD17 file; None is the file's default set.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the path is a folder or a pipe, or the file cannot be read.
        ValueError: the format is unknown, or the file's content, units or label sets are invalid;
            the message is one line that starts with the file's name.
    """
    path = Path(path)
    name = one_line(path.name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{name}: unknown extension {path.suffix!r}: use one of {', '.join(_READERS)}; files "
            "that ASE reads, as OUTCAR and vasprun.xml, are converted by: ase convert -n : "
            f"{name} data.extxyz"
        )
    if path.exists() and not path.is_file():  # reading a pipe would block forever
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise OSError(f"{name}: {kind}, not a data file")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file in {path.absolute().parent}")
    return reader(path, ReadOptions(energy_unit, length_unit, labels))


def require_one_unit(
    paths: Sequence[str | PathLike[str]], energy_unit: str | None, length_unit: str | None
) -> None:
    """Refuse a unit for files of which only some need one.

    Args:
        paths: the files.
        energy_unit, length_unit: for all of them, see `read`.

    Raises:
        ValueError: a unit other than eV and Å is given for extended XYZ or a file of ASE, which are
            in eV and Å, and for files of other formats.
    """
    units = [energy_unit or "eV", length_unit or "Angstrom"]
    names: dict[bool, str] = {}
    for path in map(Path, paths):
        names.setdefault(path.suffix.lower() in _OF_ASE, one_line(path.name))
    if units != ["eV", "Angstrom"] and len(names) > 1:
        raise ValueError(
            f"{names[False]} and {names[True]} cannot both be read in {' and '.join(units)}: "
            f"{Path(names[True]).suffix} is in eV and Å; bring them to one format by "
            "attncalc convert data"
        )


def read_parts(
    path: str | PathLike[str],
    n: int = 1000,
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
) -> Iterator[Dataset]:
    """Read a file like `read`, in parts of n structures; only extended XYZ is divided.

    Args:
        path: the file.
        n: structures per part.
        energy_unit, length_unit, labels: as for `read`.

    Raises:
        FileNotFoundError, OSError, ValueError: the file cannot be read or is invalid, see `read`;
            an error in a part is raised when that part is reached.
    """
    path = Path(path)
    if path.suffix.lower() in (".xyz", ".extxyz") and path.is_file():
        yield from read_extxyz_in_parts(path, n, ReadOptions(energy_unit, length_unit, labels))
    else:
        yield read(path, energy_unit=energy_unit, length_unit=length_unit, labels=labels)
