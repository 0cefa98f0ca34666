"""Chunks on disk, and the HDF5 files that they are joined to."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from attncalc.files import replacing
from attncalc.files.hdf5_writing import append_structures, new_hdf5
from attncalc.sampling.chunk import KINDS, Chunk
from attncalc.sampling.molecules import is_held_out

Arrays = Mapping[str, NDArray[Any]]
# arrays of a chunk, per atom and per frame -> their names in the file, for `attncalc.data`
_PER_ATOM = {
    "numbers": "z",
    "positions": "R",
    "forces": "F",
    "charges": "atomic_charges",
    "hirshfeld_ratios": "hirshfeld_ratios",
}
_PER_FRAME = {
    **{"energy": "E", "charge": "charge", "spin": "spin", "dipole": "dipole"},
    **{"kind": "kind", "molecule": "molecule"},
}
# labels that an oracle may not give, for some or for all structures
_OPTIONAL = ("charges", "hirshfeld_ratios", "dipole")
UNITS = "E: eV; F: eV/Angstrom; R: Angstrom"


def chunk_bytes(chunk: Chunk, drawn: Sequence[str]) -> bytes:
    """Return a chunk as the content of an `.npz` file.

    Charges, Hirshfeld ratios and dipoles are stored if all frames have them. If only some have
    them, only their names are stored.

    Args:
        chunk: the frames.
        drawn: names of its molecules, including refused ones.
    """
    columns: dict[str, list[Any]] = {}
    for kind, name, atoms, labels in chunk.frames:
        for key, value in labels.arrays.items():
            columns.setdefault(key, []).append(value)
        columns.setdefault("kind", []).append(np.uint8(KINDS.index(kind)))
        columns.setdefault("name", []).append(name)
        columns.setdefault("n_atoms", []).append(len(atoms))
        columns.setdefault("numbers", []).append(atoms.numbers.astype(np.uint8))
        columns.setdefault("positions", []).append(atoms.positions.astype(np.float32))
        for key in ("charge", "spin"):
            columns.setdefault(key, []).append(np.int8(atoms.info[key]))
    incomplete = [k for k in _OPTIONAL if 0 < len(columns.get(k, ())) < len(chunk.frames)]
    for key in incomplete:
        del columns[key]
    arrays = {
        key: np.concatenate(values) if key in _PER_ATOM else np.array(values)
        for key, values in columns.items()
    }
    arrays |= {
        key: arrays[key].astype(np.float32) for key in ("forces", *_OPTIONAL) if key in arrays
    }
    about = {
        "refused": {k: n for k, n in chunk.refused.items() if n},
        "n_labels": chunk.n_labels,
        "n_outside": chunk.n_outside,
        "incomplete": incomplete,
    }
    content = io.BytesIO()
    arrays |= {"drawn": np.array(drawn), "about": np.array(json.dumps(about))}
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def read_chunk(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a chunk.

    Raises:
        ValueError: the file is damaged; the message gives advice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zip and numpy raise errors of many kinds
        raise ValueError(f"{path}: damaged ({error}): remove it and those behind it") from None


@dataclass
class Contents:
    """Statistics of a file.

    Attributes:
        frames, molecules: number of frames and molecules; a cluster counts as one molecule.
        kinds, charges: number of frames by kind, and by total charge in e.
        elements: number of atoms by symbol.
        squared_force: sum of squares of all force components, (eV/Å)².
        left_out: names of labels that only some frames have, so they are not written.
    """

    frames: int = 0
    molecules: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    charges: Counter[int] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)
    squared_force: float = 0.0
    left_out: tuple[str, ...] = ()

    @property
    def rms_force(self) -> float:
        """Root mean square of all force components, eV/Å."""
        return float(np.sqrt(self.squared_force / max(1, 3 * self.elements.total())))

    def add(self, arrays: Arrays) -> None:
        """Count the frames of a chunk."""
        self.frames += len(arrays["kind"])
        self.kinds.update(KINDS[k] for k in arrays["kind"])
        self.charges.update(arrays["charge"].tolist())
        numbers, counts = np.unique(arrays["numbers"], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.elements[chemical_symbols[number]] += count
        self.squared_force += float(np.square(arrays["forces"], dtype=np.float64).sum())


def write_frames(
    chunks: Sequence[Path], path: Path, *, held_out: bool, attributes: Mapping[str, str]
) -> Contents:
    """Write the frames of chunks to one HDF5 file, all structures in a row, for `data.stream`.

    In addition to the arrays of `attncalc.data.write_hdf5`, the file has `kind` [n], indices into
    the attribute `kinds`, and `molecule` [n], indices into the texts `molecule_smiles`. If the
    oracle gives them for all frames of all chunks, it also has `atomic_charges` [n_total] e,
    `hirshfeld_ratios` [n_total] and `dipole` [n, 3] e Å.

    Args:
        chunks: files of the chunks, in order.
        path: the new file; an existing one is replaced, or removed if there are no frames.
        held_out: True writes the frames of held-out molecules, False those of all others.
        attributes: attributes of the file.

    Raises:
        ValueError: a chunk is damaged.
    """
    left_out = _incomplete(chunks)
    columns = _PER_ATOM | _PER_FRAME
    contents = Contents(left_out=tuple(columns[key] for key in left_out))
    names: dict[str, int] = {}
    parts = _parts(chunks, held_out, left_out, names)
    first = next(parts, None)
    if first is None:
        path.unlink(missing_ok=True)
        return contents
    with replacing(path) as new, new_hdf5(new) as (file, raw):
        for arrays in itertools.chain((first,), parts):
            append_structures(file, raw, _columns(arrays), arrays["n_atoms"])
            contents.add(arrays)
        contents.molecules = len(names)
        # texts of fixed length: those of variable length are stored in heaps, which may get damaged
        file["molecule_smiles"] = np.array([name.encode() for name in names])
        texts = {"units": UNITS, "kinds": " ".join(KINDS), **attributes}
        for key, text in texts.items():
            file.attrs[key] = np.bytes_(text.encode())
    return contents


def _incomplete(chunks: Iterable[Path]) -> list[str]:
    """Return the labels that only some frames of the chunks have."""
    some, missing = set[str](), set[str]()
    for path in chunks:
        arrays = read_chunk(path)
        if "name" not in arrays:
            continue
        some |= {*arrays, *json.loads(str(arrays["about"])).get("incomplete", ())}
        for key in _OPTIONAL:
            rows = arrays["numbers" if key in _PER_ATOM else "kind"]
            # their columns may be too short in chunks of earlier runs
            if len(arrays.get(key, ())) != len(rows):
                missing.add(key)
    return [key for key in _OPTIONAL if key in some & missing]


def _parts(
    chunks: Iterable[Path], held_out: bool, left_out: Sequence[str], names: dict[str, int]
) -> Iterator[Arrays]:
    """Yield the arrays of the wanted frames of each chunk; add new names to the known ones."""
    for path in chunks:
        arrays = read_chunk(path)
        if "name" not in arrays:
            continue
        wanted_names = {name for name in set(arrays["name"]) if is_held_out(name) == held_out}
        wanted = np.array([name in wanted_names for name in arrays["name"]])
        if not wanted.any():
            continue
        atoms = np.repeat(wanted, arrays["n_atoms"])
        there = [key for key in arrays if key not in left_out]
        part = {key: arrays[key][atoms] for key in _PER_ATOM if key in there}
        part |= {key: arrays[key][wanted] for key in _PER_FRAME if key in there}
        part["n_atoms"] = arrays["n_atoms"][wanted]
        part["molecule"] = np.array(
            [names.setdefault(str(name), len(names)) for name in arrays["name"][wanted]]
        )
        yield part


def _columns(arrays: Arrays) -> Arrays:
    return {new: arrays[old] for old, new in (_PER_ATOM | _PER_FRAME).items() if old in arrays}
