"""Reader of MD17-style `.npz`: one array per quantity, all structures along its first axis."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset
from attncalc.data.units import Factors, factors, parse_entry

# What each quantity is called: MD17 and sGDML, rMD17, and the plain words.
_NUMBERS = ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers")
_POSITIONS = ("R", "coords", "positions")
_ENERGIES = ("E", "energies", "energy")
_FORCES = ("F", "forces", "force")
_CHARGES = ("charge", "charges", "Q")
_SPINS = ("spin", "multiplicity")
# The original MD17 labels, which rMD17's own files keep beside the recomputed ones.
_OLD_LABELS = ("old_energies", "old_forces")
_SPLIT = re.compile(r"^(train|training|test|val|valid|validation)(_\w+)?$")


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
        arrays = _load_arrays(path)
        name, energy_name, forces_name = _choose_labels(arrays, labels)
        to_ase = factors(
            _stored_units(arrays),
            energy_unit=energy_unit,
            length_unit=length_unit,
            energy_name=energy_name,
            forces_name=forces_name,
        )
        fields = _dataset_fields(arrays, to_ase, energy_name, forces_name)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    return Dataset(**fields, source=path.name, labels=name)


def _load_arrays(path: Path) -> dict[str, NDArray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("this is a single array, not an .npz archive")
        with archive:
            return {
                key: array for key in archive.files if (array := _array(archive, key)) is not None
            }
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError("this is not an .npz archive") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"the file is truncated or damaged ({error}): fetch or write it again"
        ) from None


def _array(archive: Mapping[str, NDArray], key: str) -> NDArray | None:
    """One array, or None for a pickled one: such remarks (MD17's "name") are not needed."""
    try:
        return archive[key]
    except ValueError as error:
        if "allow_pickle" in str(error):
            return None
        raise


def _choose_labels(arrays: Mapping[str, NDArray], labels: str | None) -> tuple[str, str, str]:
    """The set's name and its keys of energies and forces."""
    # One energy per structure: sGDML stores "E_min", "E_max" … beside them.
    n = len(_required(arrays, _POSITIONS, "positions"))
    sets = {
        key[2:]: (key, f"F_{key[2:]}")
        for key, array in arrays.items()
        if key.startswith("E_") and array.ndim and len(array) == n
    }
    if _OLD_LABELS[0] in arrays:
        sets["md17"] = _OLD_LABELS
    energy_name = _first(arrays, _ENERGIES)
    if energy_name is not None:
        default = "rmd17" if "md17" in sets else "default"
        sets = {default: (energy_name, _first(arrays, _FORCES) or "F"), **sets}
    if not sets:
        raise ValueError(
            f"no energies: one of the keys {', '.join(_ENERGIES)} is needed, "
            f"the file has {', '.join(arrays) or 'none'}"
        )
    if labels is None:
        labels = next(iter(sets))
    if labels not in sets:
        raise ValueError(f"no label set {labels!r}: labels must be one of {', '.join(sets)}")
    return labels, *sets[labels]


def _stored_units(arrays: Mapping[str, NDArray]) -> dict[str, str]:
    stored = parse_entry(_text(arrays["units"])) if "units" in arrays else {}
    for key, quantity in (("e_unit", "E"), ("r_unit", "R")):  # as sGDML writes them
        if key in arrays:
            stored.setdefault(quantity, _text(arrays[key]))
    return stored


def _dataset_fields(
    arrays: Mapping[str, NDArray], to_ase: Factors, energy_name: str, forces_name: str
) -> dict[str, Any]:
    positions = _floats(_required(arrays, _POSITIONS, "positions"), "positions")
    if positions.ndim != 3 or positions.shape[-1] != 3:
        raise ValueError(f"positions must have shape [n, n_atoms, 3], got {list(positions.shape)}")
    n, n_atoms, _ = positions.shape
    numbers = _expand(_required(arrays, _NUMBERS, "atomic numbers"), (n, n_atoms), "atomic numbers")
    real = numbers > 0  # atomic number 0 pads the smaller structures
    energies = arrays[energy_name]
    if energies.shape == (n, 1):
        energies = energies[:, 0]
    forces = arrays.get(forces_name)
    if forces is not None and forces.shape != positions.shape:
        raise ValueError(
            f"{forces_name} must have the shape of the positions, {list(positions.shape)}, "
            f"got {list(forces.shape)}"
        )
    cell, pbc = arrays.get("cell"), None
    if cell is not None:
        cell = _expand(_floats(cell, "cell"), (n, 3, 3), "cell") * to_ase.length
        pbc = _expand(arrays.get("pbc", cell.any(axis=-1)).astype(bool), (n, 3), "pbc")
    infos = _charge_and_spin(arrays, n)
    structures = [
        Atoms(
            numbers=numbers[k, real[k]],
            positions=positions[k, real[k]] * to_ase.length,
            cell=None if cell is None else cell[k],
            pbc=None if pbc is None else pbc[k],
            info=infos[k],
        )
        for k in range(n)
    ]
    fields: dict[str, Any] = {
        "structures": structures,
        "energies": _floats(energies, energy_name) * to_ase.energy,
        "splits": {key: array for key, array in arrays.items() if _is_split(key, array)},
        "isolated_energies": _isolated_energies(arrays, to_ase),
    }
    if forces is not None:
        forces = _floats(forces, forces_name) * to_ase.forces
        fields["forces"] = [forces[k, real[k]] for k in range(n)]
    if "stress" in arrays:
        fields["stress"] = _floats(arrays["stress"], "stress") * to_ase.stress
    theory = _first(arrays, ("level_of_theory", "theory"))
    if theory is not None:
        fields["level_of_theory"] = _text(arrays[theory])
    return fields


def _charge_and_spin(arrays: Mapping[str, NDArray], n: int) -> list[dict[str, int]]:
    infos: list[dict[str, int]] = [{} for _ in range(n)]
    for key, names in (("charge", _CHARGES), ("spin", _SPINS)):
        name = _first(arrays, names)
        # Some sets keep charges of the atoms, (n, N), under the same name: these are not total.
        if name is None or arrays[name].shape not in {(), (1,), (n,), (n, 1)}:
            continue
        values = np.broadcast_to(arrays[name].reshape(-1), (n,))
        if not (values == np.round(values)).all():
            raise ValueError(
                f"{name} must hold integers, got {values[values != np.round(values)][0]}"
            )
        for info, value in zip(infos, values, strict=True):
            info[key] = int(value)
    return infos


def _isolated_energies(arrays: Mapping[str, NDArray], to_ase: Factors) -> dict[int, float] | None:
    if "e0" not in arrays or "e0_z" not in arrays:
        return None
    numbers, energies = arrays["e0_z"].reshape(-1), arrays["e0"].reshape(-1)
    if len(numbers) != len(energies):
        raise ValueError(
            f"e0 must have one energy per entry of e0_z, {len(numbers)}, got {len(energies)}"
        )
    return {int(z): float(e) * to_ase.energy for z, e in zip(numbers, energies, strict=True)}


def _is_split(key: str, array: NDArray) -> bool:
    return bool(_SPLIT.match(key)) and array.ndim == 1 and np.issubdtype(array.dtype, np.integer)


def _first(arrays: Mapping[str, NDArray], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _required(arrays: Mapping[str, NDArray], names: tuple[str, ...], what: str) -> NDArray:
    name = _first(arrays, names)
    if name is None:
        raise ValueError(
            f"no {what}: one of the keys {', '.join(names)} is needed, "
            f"the file has {', '.join(arrays)}"
        )
    if arrays[name].ndim == 0:
        raise ValueError(f"{what} must be an array, got {arrays[name]}")
    return arrays[name]


def _expand(array: NDArray, shape: tuple[int, ...], what: str) -> NDArray:
    """Repeat what is stored once for all structures."""
    if array.shape not in {shape, shape[1:]}:
        raise ValueError(
            f"{what} must have shape {list(shape[1:])} or {list(shape)}, got {list(array.shape)}"
        )
    return np.broadcast_to(array, shape)


def _floats(array: NDArray, what: str) -> NDArray[np.float64]:
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{what} must be numbers, got an array of {array.dtype}")
    return array.astype(np.float64)


def _text(array: NDArray) -> str:
    value = array.reshape(-1)[0] if array.size == 1 else array
    return value.decode() if isinstance(value, bytes) else str(value)
