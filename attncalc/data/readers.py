"""`read`: from a file name to a `Dataset`. A new format is one reader and one line here."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from attncalc.data.dataset import Dataset
from attncalc.data.extxyz import read_extxyz
from attncalc.data.npz import read_npz

_READERS: dict[str, Callable[..., Dataset]] = {
    ".npz": read_npz,
    ".extxyz": read_extxyz,
    ".xyz": read_extxyz,
}


def read(
    path: str | PathLike[str],
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
) -> Dataset:
    """Read labelled structures from an MD17-style `.npz` or an extended XYZ file.

    A unit that the file states wins, and an argument that contradicts it is an error. Where the
    file states none, `.npz` needs `energy_unit`, and extended XYZ is in eV as ASE writes it;
    lengths are in Å unless `length_unit` says otherwise. Forces follow as energy/length.

    Args:
        path: the file; its extension decides the format.
        energy_unit: "eV", "meV", "kcal/mol", "kJ/mol", "Hartree" or "Rydberg".
        length_unit: "Angstrom", "Bohr" or "nm".
        labels: which label set, where a file has several, e.g. "md17" or "rmd17" for the original
            and the recomputed labels of an rMD17 file; None is the file's default set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is unknown, or the file's content, units or label sets do not fit;
            one line that starts with the file's name.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path.name}: unknown extension {path.suffix!r}: use one of {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path.name}: no such file in {path.absolute().parent}")
    return reader(path, energy_unit=energy_unit, length_unit=length_unit, labels=labels)
