"""Reader of extended XYZ files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import IO, AnyStr

from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict, read_xyz

from attncalc.data.ase_frames import factors_of_frames, labelled, warn_of_what_is_left_out
from attncalc.data.dataset import Dataset
from attncalc.data.frame_labels import is_isolated, next_free_energy, prefix_of_labels
from attncalc.data.units import Factors, ReadOptions
from attncalc.text import one_line

# Most characters of a comment line, which ASE parses one by one.
LONGEST_COMMENT = 1 << 20
MOST_ATOMS = 10**8


def read_extxyz(path: Path, options: ReadOptions) -> Dataset:
    """Read an extended XYZ file; see `from_ase` for the names of labels.

    Raises:
        ValueError: the file is damaged, or a frame lacks a label; the message is one line that
            starts with the file's name.
    """
    return next(read_extxyz_in_parts(path, None, options))


def read_extxyz_in_parts(path: Path, n: int | None, options: ReadOptions) -> Iterator[Dataset]:
    """Read an extended XYZ file like `read_extxyz`, n structures at a time; None for all.

    Raises:
        ValueError: a part is damaged, or a frame lacks a label; raised when that part is reached.
    """
    _require_last_newline(path)
    units, first, said = None, 0, set[str]()
    of_all: Factors | None = None
    with open(path, encoding="utf-8") as file:
        parts = _parts((parsed(*frame) for frame in delimited(file)), n)
        while True:
            try:
                part = next(parts, [])
            except ValueError as error:
                raise ValueError(
                    f"{path.name}: the file is truncated or not extended XYZ ({one_line(error)}): "
                    "download or write it again"
                ) from None
            if first > 0 and not part:
                return
            if units is not None:  # those of the first frame apply to all
                part[0].info.setdefault("units", units)
            where = path.name if first == 0 else f"{path.name}, counted from structure {first}"
            dataset = labelled(part, options, where)
            to_ase = factors_of_frames(part, options, prefix_of_labels(dataset.labels))
            if to_ase != (of_all := of_all or to_ase):
                raise ValueError(f"{where}: it has other units than structure 0: convert one")
            warn_of_what_is_left_out(part, dataset, said)
            yield dataset
            if first == 0:
                units = part[0].info.get("units")
                options = replace(options, labels=dataset.labels)
            if options.free_energy is None and dataset.labels == "default":
                options = replace(options, free_energy=next_free_energy(part))
            first += len(part)


def _parts(frames: Iterator[Atoms], n: int | None) -> Iterator[list[Atoms]]:
    """Yield n frames at a time; parts of isolated atoms alone are joined to others."""
    part = list(islice(frames, n))
    while part:
        following = list(islice(frames, n))
        if following and any(all(map(is_isolated, some)) for some in (part, following)):
            part += following
            continue
        yield part
        part = following


def read_frames(path: Path, index: slice = slice(None)) -> list[Atoms]:
    """Read the structures of an (extended) XYZ file, with or without labels.

    ASE parses each structure, but the frames are found here: ASE's own search for frames stops
    silently at an empty line, ignores superfluous columns, and does not end if the number of atoms
    is absurd.

    Args:
        path: the file.
        index: structures to read; the only negative number allowed is in `slice(-1, None)`, the
            last.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or not (extended) XYZ; the message is one line that names
            the structure.
    """
    with open(path, encoding="utf-8") as file:
        try:
            frames = delimited(file)
            if index == slice(-1, None):
                return [parsed(*frame) for frame in deque(frames, maxlen=1)]
            chosen = islice(frames, index.start, index.stop, index.step)
            return [parsed(*frame) for frame in chosen]
        except ValueError as error:
            raise ValueError(one_line(error)) from None


def delimited(file: IO[AnyStr], start: int = 0) -> Iterator[tuple[str, AnyStr, list[AnyStr]]]:
    """Yield the name, the comment line and the atom rows of each structure.

    Args:
        file: text or bytes, open at the beginning of a structure.
        start: number of that structure.

    Raises:
        ValueError: a structure does not begin with its number of atoms, its comment line has no
            end, or atoms are missing.
    """
    k = start
    while first := file.readline(100):
        where = f"structure {k}"
        if not first.strip():
            while rest := file.read(LONGEST_COMMENT):
                if rest.strip():
                    raise ValueError(f"an empty line where {where} should begin")
            return
        line = first if isinstance(first, str) else first.decode(errors="replace")
        n_atoms = _n_atoms_of(line, where)
        comment = file.readline(LONGEST_COMMENT)
        if len(comment) >= LONGEST_COMMENT:
            raise ValueError(f"{where}: the comment line has no end")
        rows = list(islice(file, n_atoms))
        if len(rows) < n_atoms:
            raise ValueError(f"{where} has {len(rows)} of its {n_atoms} atoms")
        yield where, comment, rows
        k += 1


def parsed(where: str, comment: str, rows: list[str]) -> Atoms:
    """Parse a structure that `delimited` has found.

    Raises:
        ValueError: it is not valid extended XYZ; the message is one line that begins with `where`.
    """
    try:
        info = key_val_str_to_dict(comment)
        _check_columns(rows, info.get("Properties"))
        text = StringIO("".join([f"{len(rows)}\n", comment, *rows]))
        return next(read_xyz(text, index=0, properties_parser=lambda _: info))
    except KeyError as error:  # from ASE's table of elements
        raise ValueError(f"{where}: {one_line(error)} is unknown") from None
    except Exception as error:  # ASE's parser raises errors of any kind
        raise ValueError(f"{where}: {one_line(error)}") from None


def _n_atoms_of(line: str, where: str) -> int:
    """Parse the number of atoms in the first line of a structure.

    Raises:
        ValueError: the line is not a plausible number of atoms.
    """
    if not (line.strip().isdecimal() and 0 < int(line) < MOST_ATOMS):
        raise ValueError(
            f"the number of atoms should stand where {where} begins, "
            f"got {one_line(line, longest=40)!r}"
        )
    return int(line)


def _check_columns(rows: Sequence[str], properties: object) -> None:
    """Refuse rows whose number of columns is not that of `Properties`."""
    counts = ["1", "3"] if properties is None else str(properties).split(":")[2::3]
    if not counts or not all(count.isdecimal() for count in counts):
        raise ValueError(f"Properties={properties!r} is not understood")
    expected = sum(map(int, counts))
    for k, row in enumerate(rows):
        found = len(row.split())
        if found < expected or (properties is not None and found > expected):
            raise ValueError(f"atom {k} has {found} columns instead of {expected}")


def _require_last_newline(path: Path) -> None:
    """Refuse a file without final newline: if its last number is cut off, a force is wrong."""
    with open(path, "rb") as file:
        content_end = file.seek(0, 2)
        file.seek(max(content_end - 1, 0))
        if file.read() not in (b"\n", b"\r", b""):
            raise ValueError(
                f"{path.name}: the file is truncated or not extended XYZ (no end of line at its "
                "end): download or write it again, or end its last line if nothing is missing"
            )
