"""Reader of a model file's bytes, JSON and tensors, checked before anything is built from them.

The header is the file's metadata entry "attncalc"; `attncalc.model_file` describes its content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
UNITS = {"energy": "eV", "length": "Angstrom"}

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_STORED = {"F32": torch.float32, "F64": torch.float64}  # names of safetensors

# Bounds on the work of the loader for any file; models are far below them.
LARGEST_FILE = 1 << 29  # bytes
LARGEST_HEADER = 1 << 22  # bytes
DEEPEST_HEADER = 32  # lists and dictionaries inside each other
MOST_PAIR_TERMS = 100
MOST_MEMBERS = 100  # of a committee, including referred files
LONGEST_NAME = 200  # of a member, bytes

# Entries of a header for a potential, or for each member of a committee.
DESCRIPTION: dict[str, type] = {
    "network": str,
    "config": dict,
    "pair_terms": list,
    "species": list,
    "reference_energies": list,
    "scale": list,
    "dtype": str,
}

# Optional entry: the training environments, see `attncalc.novelty.Environments`.
NOVELTY = "novelty"
NOVELTY_ENTRIES: dict[str, type] = {
    "n_structures": int,
    "n_atoms": list,
    "n_features": int,
    "n_components": int,
}
# absent where there is one centre, the mean
N_CENTRES = "n_centres"
# numbers in its tensors: memory for them is allocated before they are read
MOST_NOVELTY = 1 << 22

# Entries of "training" with another name in files of earlier versions: old name -> name.
RENAMED_IN_TRAINING = {"corrects": "baseline"}
# Entries for a member in a file of its own.
REFERENCE: dict[str, type] = {"name": str, "sha256": str}

# Kinds of files that may be called .safetensors by mistake, by their first bytes.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "HDF5",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"{": "JSON",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
}


class StoredModel:
    """Model file whose header has been read and checked, but not its tensors.

    Args:
        file: open for reading; it stays open.

    Attributes:
        header: the entry "attncalc" of the metadata, with old names replaced by the present ones.
        shapes: of the tensors, by name.

    Raises:
        ValueError: the file is not a model file, or damaged; the message does not name the file.
    """

    def __init__(self, file: BufferedReader) -> None:
        size = _check_beginning(file)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        self._file, self._start = file, 8 + length
        described = _described_tensors(file.read(length), size - self._start)
        metadata = described.pop("__metadata__", {})
        text = metadata.get("attncalc") if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                "a safetensors file, but not a model of attncalc: weights of other programs are "
                "read by `attncalc convert`"
            )
        self.header = _parse(text)
        check_header(self.header)
        self._signed = _signed(self.header)  # before renaming: the checksum is of the old names
        self.header["training"] = {
            RENAMED_IN_TRAINING.get(key, key): value
            for key, value in self.header["training"].items()
        }
        for name, stored in described.items():
            if stored["dtype"] not in _STORED:
                raise ValueError(f"tensor {name!r} holds numbers that are not finite floats")
        self._described = described
        self.shapes = {name: tuple(stored["shape"]) for name, stored in described.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, read one by one; the checksum is compared after the last.

        Raises:
            ValueError: a number is not finite, the file is cut off, or the checksum differs.
        """
        digest = hashlib.sha256(self._signed.encode())
        for name in sorted(self._described):
            stored = self._described[name]
            first, last = stored["data_offsets"]
            self._file.seek(self._start + first)
            content = bytearray(last - first)
            if self._file.readinto(content) < last - first:
                raise ValueError("the file was cut off while it was read: download it again")
            kind = _STORED[stored["dtype"]]
            tensor = (
                torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
            )
            # in parts, to bound the memory of temporaries
            if not all(torch.isfinite(part).all() for part in tensor.split(1 << 20)):
                raise ValueError(f"tensor {name!r} holds numbers that are not finite floats")
            _add(digest, name, tensor)
            yield name, tensor.reshape(self.shapes[name])
        if self.header["checks"]["sha256"] != digest.hexdigest():
            raise ValueError("the checksum does not match, the file is damaged: download it again")


def _described_tensors(text: bytes, n_bytes: int) -> dict[str, Any]:
    """Parse the safetensors header; its tensors must fill the rest of the file without gaps."""
    try:
        described = json.loads(text, object_pairs_hook=_unique)
        tensors = [entry for name, entry in described.items() if name != "__metadata__"]
        end = 0
        for entry in sorted(tensors, key=lambda entry: entry["data_offsets"]):
            first, last = entry["data_offsets"]
            shape, kind = entry["shape"], entry["dtype"]
            if not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
                raise ValueError("a size is no whole number")
            each = _STORED[kind].itemsize if kind in _STORED else None
            if first != end or last < first or (each and math.prod(shape) * each != last - first):
                raise ValueError("tensors overlap, or leave gaps")
            end = last
        if end != n_bytes:
            raise ValueError(f"its tensors take {end} bytes, it has {n_bytes} for them")
    # text that is not JSON or has another structure raises one of these
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a safetensors file, or a damaged one ({error})") from None
    return described


def descriptions(header: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the description of each member of a committee, or of the only potential."""
    return header.get("members", [header])


def is_reference(member: dict[str, Any]) -> bool:
    """Return True if a committee's entry refers to another file."""
    return "sha256" in member


def signature(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return SHA-256 over all tensors and the header, except its entry "checks"."""
    return digest_of(_signed(header), tensors)


def _signed(header: dict[str, Any]) -> str:
    described = {key: value for key, value in header.items() if key != "checks"}
    return json.dumps(described, sort_keys=True)


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over a text, then names and numbers of tensors, which must be on the host."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        _add(digest, name, tensors[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(name.encode())
    digest.update(tensor.numpy().reshape(-1).data)


def _check_beginning(file: BufferedReader) -> int:
    """Return the size of the file; refuse it if its first bytes are not of a safetensors file."""
    beginning = file.read(32)
    size = file.seek(0, os.SEEK_END)
    if size > LARGEST_FILE:
        raise ValueError(
            f"{round(size / 2**30, 1):g} GiB, larger than any model file: is this a model file?"
        )
    length = int.from_bytes(beginning[:8], "little")  # of the safetensors header
    if 2 <= length <= size - 8 and len(beginning) > 8:
        if length > LARGEST_HEADER:
            raise ValueError(f"the header is damaged: it claims {length} bytes")
        return size
    what = next((name for magic, name in _OTHER_FILES.items() if beginning.startswith(magic)), "")
    if what:
        raise ValueError(
            f"not a safetensors file but {what}; only .safetensors is read, which cannot run code"
        )
    raise ValueError(
        "not a safetensors file, or a damaged one (empty)"
        if not size
        else "not a safetensors file, or a damaged one: download it again"
    )


def _parse(text: str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN, and limited nesting."""
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        depth = _nesting(header)
    except json.JSONDecodeError:
        raise ValueError("the header is damaged: it is not valid JSON") from None
    except ValueError as error:  # from the two hooks, or an integer of thousands of digits
        raise ValueError(f"the header is damaged: {error}") from None
    except RecursionError:
        depth = DEEPEST_HEADER + 1
    if depth > DEEPEST_HEADER:
        raise ValueError(f"the header is damaged: nested deeper than {DEEPEST_HEADER} levels")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        # readers differ in which of the two they use
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{next(k for k in counts if counts[k] > 1)!r} appears twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _nesting(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_nesting, inner), default=0) if isinstance(value, dict | list) else 0


def check_header(header: Any) -> None:
    """Refuse a damaged header; networks are looked up elsewhere.

    Raises:
        ValueError: an entry is missing, unknown, of the wrong type, or has an invalid value.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ValueError(
            f"file format {found!r} is not known; this version of attncalc reads {FORMAT}, "
            "a newer one may read it"
        )
    needed: dict[str, type] = {"format": int, "units": dict, "training": dict, "checks": dict}
    if "members" in header:
        _check_entries(header, {**needed, "members": list})
        if len(header["members"]) < 2:
            raise ValueError("a committee has two members or more")
        if len(header["members"]) > MOST_MEMBERS:
            raise ValueError(f"a committee has {MOST_MEMBERS} members or fewer")
        for member in header["members"]:
            if not isinstance(member, dict):
                raise ValueError("damaged entry in members")
            if is_reference(member):
                _check_entries(member, REFERENCE)
            else:
                _check_entries(member, _described(member))
    else:
        _check_entries(header, {**needed, **_described(header)})
    for description in descriptions(header):
        if is_reference(description):
            _check_reference(description)
        else:
            _check_description(description)
    if header["units"] != UNITS:
        raise ValueError(f"units {header['units']} are not {UNITS}")
    if list(header["checks"]) != ["sha256"]:
        raise ValueError("the checksum is missing, or something stands beside it")


def _described(description: dict[str, Any]) -> dict[str, type]:
    """Return the entries that a description must have; the training environments are optional."""
    return {**DESCRIPTION, NOVELTY: dict} if NOVELTY in description else DESCRIPTION


def _check_entries(header: dict[str, Any], needed: dict[str, type]) -> None:
    for key, kind in needed.items():
        if type(header.get(key)) is not kind:
            raise ValueError(f"header entry {key!r} is missing or not a {kind.__name__}")
    unknown = set(header) - set(needed)
    if unknown:
        raise ValueError(f"unknown header entries {sorted(unknown)}")


def _check_description(description: dict[str, Any]) -> None:
    if description["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {description['dtype']!r}")
    species = description["species"]
    if not species or not all(type(z) is int and 0 < z < 119 for z in species):
        raise ValueError("species are not atomic numbers")
    if len(set(species)) < len(species):
        raise ValueError("species contains an element twice")
    for key in ("reference_energies", "scale"):
        if not all(map(_is_finite, description[key])):
            raise ValueError(f"{key} contains a value that is not a finite number")
    if len(description["pair_terms"]) > MOST_PAIR_TERMS:
        raise ValueError(f"more than {MOST_PAIR_TERMS} pair_terms")
    if NOVELTY in description:
        _check_novelty(description[NOVELTY], len(species))


def _check_novelty(novelty: dict[str, Any], n_species: int) -> None:
    optional = {N_CENTRES: int} if N_CENTRES in novelty else {}
    _check_entries(novelty, NOVELTY_ENTRIES | optional)
    n_centres = novelty.get(N_CENTRES, 1)
    if n_centres < 1 or (n_centres > 1 and not novelty["n_components"]):
        raise ValueError(f"novelty: {n_centres} centres of clusters")
    numbers = [novelty["n_structures"], novelty["n_features"], novelty["n_components"]]
    n_atoms = novelty["n_atoms"]
    if len(n_atoms) != n_species or not all(type(n) is int and n >= 0 for n in numbers + n_atoms):
        raise ValueError("novelty: a number of atoms or structures is none")
    width, n_components = numbers[1:]
    per_column = n_species * max(n_components, 1)
    if n_components > width or per_column * width > MOST_NOVELTY:
        raise ValueError(f"novelty: {n_components} components of {width} features are too many")
    if per_column * (width + n_centres) > MOST_NOVELTY:
        raise ValueError(f"novelty: {n_centres} centres of {n_components} components are too many")


def _check_reference(reference: dict[str, Any]) -> None:
    """Refuse names that are not plain file names or lead out of the folder, and bad checksums."""
    name = reference["name"]
    plain = name.isprintable() and not any(character in name for character in "/\\:")
    if not plain or name.startswith(".") or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ValueError(f"a member is called {name!r}, which is no name of a file")
    if not re.fullmatch("[0-9a-f]{64}", reference["sha256"]):
        raise ValueError(f"the checksum of member {name!r} is none")


def _is_finite(value: Any) -> bool:
    # compared, not converted to float: an integer may be larger than any float
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
