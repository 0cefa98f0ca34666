"""Reader of MD17-style `.npz`: one array per quantity, all structures along its first axis."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from attncalc.data.arrays import choose_labels, dataset_fields, require_room, text
from attncalc.data.dataset import Dataset
from attncalc.data.units import factors, parse_entry
from attncalc.one_line import one_line


def read_npz(
    path: Path,
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
) -> Dataset:
    """Read an `.npz` file of one composition, or of several padded with atomic number 0.

    Understood are (n structures of up to N atoms): `z` (N,) or (n, N), `R` (n, N, 3), `E` (n,) or
    (n, 1), and, where present, `F` (n, N, 3), `cell` (3, 3) or (n, 3, 3), `pbc` (3,) or (n, 3)
    (default: periodic along every non-zero cell vector), `stress` (n, 3, 3) with ASE's sign,
    `charge` and `spin` () or (n,), isolated-atom energies `e0_z`, `e0`, integer arrays `train…`,
    `test…`, `val…` as splits, `units` (or sGDML's `e_unit`, `r_unit`) and `theory`. rMD17's own
    names (`nuclear_charges`, `coords`, `energies`, `forces`) mean the same.

    A pair `E_NAME`, `F_NAME` is the label set "NAME". The default set is called "rmd17" where a set
    "md17" lies beside it, and "default" otherwise. Nothing pickled is ever loaded.

    Args:
        path: the file.
        energy_unit: see `attncalc.data.read`.
        length_unit: see `attncalc.data.read`.
        labels: name of a label set; None is the default set.

    Raises:
        ValueError: the file is damaged, or one of its arrays or units is; one line that starts
            with the file's name.
    """
    try:
        with open(path, "rb") as file:  # what the system refuses is not damage
            arrays = _load_arrays(file)
        chosen = choose_labels({name: array.shape for name, array in arrays.items()}, labels)
        to_ase = factors(
            _stored_units(arrays),
            energy_unit=energy_unit,
            length_unit=length_unit,
            energy_name=chosen.energy,
            forces_name=chosen.forces,
        )
        with np.errstate(over="ignore"):  # found and named when the data set is checked
            fields = dataset_fields(arrays, to_ase, chosen)
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    return Dataset(**fields, source=path.name)


def _load_arrays(file: BinaryIO) -> dict[str, NDArray]:
    """All arrays of an archive that hold numbers or text; nothing is ever unpickled."""
    beginning = file.read(6)
    if beginning == b"\x93NUMPY":
        raise ValueError("this is a single array, not an .npz archive")
    if beginning and not beginning.startswith(b"PK"):
        raise ValueError("this is not an .npz archive, or its beginning is damaged")
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            unpacked = sum(member.file_size for member in members)
            require_room(unpacked, size, "it would unpack to")
            names = [member.filename for member in members]
            if len(set(names)) < len(names):
                raise ValueError(f"{max(names, key=names.count)!r} is in the archive twice")
            arrays = {m.filename[: -len(".npy")]: _array(archive, m) for m in members}
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib, bz2 and lzma raise whatever they stumble over
        raise ValueError(
            f"the file is truncated or damaged ({one_line(error)}): fetch or write it again"
        ) from None
    return {name: array for name, array in arrays.items() if array is not None}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray | None:
    """One array, or None for a pickled one: such remarks (MD17's "name") are not needed.

    `numpy.load` takes as much memory as the header asks for; here it must be what is there.
    """
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _ARRAY_HEADERS:  # only records have field names beyond Latin-1
                return None
            shape, by_column, dtype = _ARRAY_HEADERS[version](file)
        except zipfile.BadZipFile:
            raise
        except Exception as error:  # numpy evaluates a literal, where anything may go wrong
            raise ValueError(
                f"the file is damaged (header of {member.filename}: {one_line(error)}): fetch or "
                "write it again"
            ) from None
        content = file.read()
    if dtype.hasobject:
        return None
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(
            f"the file is damaged ({member.filename} holds {len(content)} bytes, its header says "
            f"{dtype.str} of shape {list(shape)}): fetch or write it again"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


_ARRAY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _stored_units(arrays: Mapping[str, NDArray]) -> dict[str, str]:
    stored = parse_entry(text(arrays["units"])) if "units" in arrays else {}
    for key, quantity in (("e_unit", "E"), ("r_unit", "R")):  # as sGDML writes them
        if key in arrays:
            stored.setdefault(quantity, text(arrays[key]))
    return stored
