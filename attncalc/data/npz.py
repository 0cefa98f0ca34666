"""Reader of MD17-style `.npz`: one array per quantity, all structures along its first axis."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attncalc.data.arrays import (
    choose_labels,
    dataset_fields,
    is_of_structures,
    stresses_left_out,
    text,
)
from attncalc.data.dataset import Dataset
from attncalc.data.units import ReadOptions, factors, parse_entry
from attncalc.files.npz import read_arrays
from attncalc.files.reading import open_regular
from attncalc.text import one_line

log = logging.getLogger(__name__)


def read_npz(path: Path, options: ReadOptions) -> Dataset:
    """Read an `.npz` file of one composition, or of several padded with atomic number 0.

    The arrays, for n structures of up to N atoms, are `z` (N,) or (n, N), `R` (n, N, 3), `E` (n,)
    or (n, 1), and, optionally, `F` (n, N, 3), `cell` (3, 3) or (n, 3, 3), `pbc` (3,) or (n, 3)
    (default: periodic along every non-zero cell vector), `stress` (n, 3, 3) with ASE's sign,
    `charge` and `spin` () or (n,), isolated-atom energies `e0_z`, `e0`, integer arrays `train…`,
    `test…`, `val…` as splits, `units` (or sGDML's `e_unit`, `r_unit`) and `theory`. rMD17's own
    names (`nuclear_charges`, `coords`, `energies`, `forces`) mean the same.

    A pair `E_NAME`, `F_NAME` is the label set "NAME". The default set is called "rmd17" if the file
    also has a set "md17", and "default" otherwise. Pickled data are never loaded.

    Raises:
        ValueError: the file, one of its arrays or its units are invalid; the message is one line
            that starts with the file's name.
    """
    try:
        with open_regular(path) as file:  # an OSError is not reported as damage
            found = read_arrays(file)
        # pickled remarks (MD17's "name") are not needed
        arrays = {name: array for name, array in found.items() if array is not None}
        if pickled := [name for name in found.keys() - arrays.keys() if is_of_structures(name)]:
            raise ValueError(
                f"array {min(pickled)!r} is pickled (dtype object), and pickles are not read: save "
                "it as an array of numbers"
            )
        shapes = {name: array.shape for name, array in arrays.items()}
        chosen = choose_labels(shapes, options.labels)
        if left_out := stresses_left_out(shapes):
            log.warning("%s: %s", path.name, left_out)
        names = {"energy_name": chosen.energy, "forces_name": chosen.forces}
        to_ase = factors(_stored_units(arrays), options, **names, others=arrays)
        with np.errstate(over="ignore"):  # overflow is reported by the check of the data set
            fields = dataset_fields(arrays, to_ase, chosen)
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    return Dataset(**fields, source=path.name)


def _stored_units(arrays: Mapping[str, NDArray]) -> dict[str, str]:
    stored = parse_entry(text(arrays["units"])) if "units" in arrays else {}
    for key, quantity in (("e_unit", "E"), ("r_unit", "R")):  # as sGDML writes them
        if key in arrays:
            stored.setdefault(quantity, text(arrays[key]))
    return stored
