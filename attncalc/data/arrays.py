"""Structures from named arrays, as `.npz` and HDF5 files hold them: names, layouts, label sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from attncalc.data.units import Factors

# Accepted names of each quantity: those of MD17 and sGDML, rMD17, plain words, and then those of
# HDF5 collections (ANI, SPICE, QCArchive).
NUMBERS = ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers", "elements", "species")
_SYMBOLS = "species"
POSITIONS = ("R", "coords", "positions", "coordinates", "conformations")
ENERGIES = ("E", "energies", "energy")
FORCES = ("F", "forces", "force")
GRADIENTS = ("gradients", "gradient")
# Bounds of the structures if the atoms of all structures are stored in a row.
OFFSETS, COUNTS = "offsets", "n_atoms"
_CHARGES = ("charge", "charges", "Q", "total_charge")
_SPINS = ("spin", "multiplicity")
_SMILES = "smiles"
# "[NH3+:4]", "[O-]", "[Ca+2]": within brackets, before the number of the atom
_FORMAL_CHARGE = re.compile(r"([+-]\d+|\++|-+)(?::\d+)?\]")
# partial charges of atoms, Hirshfeld volume ratios, dipole moments; "charges" with one number per
# structure are total charges, see above
NAMES_OF_ATOMS = {
    "charges": ("atomic_charges", "partial_charges", "mbis_charges", "charge_mbis", "charges"),
    "hirshfeld_ratios": ("hirshfeld_ratios", "hirsh_ratios"),
}
_DIPOLES = ("dipoles", "dipole")
_THEORIES = ("level_of_theory", "theory")
# In lower case, what other programs call a cell, of which some store the vectors as columns, and
# a stress, which may have another sign: neither is read.
_CELLS = (
    *("cell", "cells", "cellpar", "unit_cell", "cell_vectors", "cell_lengths"),
    *("lattice", "lattices", "lattice_vectors", "box", "boxes", "box_vectors", "box_lengths"),
)
_STRESSES = ("stress", "stresses", "virial", "virials")
# The original MD17 labels, which rMD17's own files keep beside the recomputed ones.
_OLD_LABELS = ("old_energies", "old_forces")
_OTHER_SPLIT = "split_"
_SPLIT = re.compile(r"^(train|training|test|val|valid|validation)(_\w+)?$")
# Everything that `dataset_fields` looks for, except labels and splits.
_ALL = (
    *(*NUMBERS, *POSITIONS, *_CHARGES, *_SPINS, *_THEORIES, OFFSETS, COUNTS),
    *(*NAMES_OF_ATOMS["charges"], *NAMES_OF_ATOMS["hirshfeld_ratios"], *_DIPOLES),
    *(_SMILES, "cell", "pbc", "stress", "e0", "e0_z"),
)
NAMES = tuple(dict.fromkeys(_ALL))  # "charges" may be of either kind, and is one array


class Labels(NamedTuple):
    """Label set of a file.

    Attributes:
        name: name of the set.
        energy: key of its energies.
        forces: key of its forces, or of its gradients; such an array need not exist.
        has_others: False: stress, charges, dipoles and so on, whose keys name no set, belong to
            another one.
    """

    name: str
    energy: str
    forces: str
    has_others: bool = True

    @property
    def sign(self) -> int:
        """Sign that turns the stored array into forces: -1 for a gradient, else 1."""
        own = self.forces == f"F_{self.name}"  # forces of a set that is called "gradient", say
        return -1 if self.forces.endswith(GRADIENTS) and not own else 1


def choose_labels(shapes: Mapping[str, tuple[int, ...]], labels: str | None) -> Labels:
    """Find the label sets of a file and choose one.

    Args:
        shapes: shapes of all arrays of the file, by key.
        labels: the set's name; None is the default set, or the only one.

    Raises:
        ValueError: there are no positions or no energies, there is no such set, or there are
            several and none is the default; or a cell has another name than `cell`.
    """
    _refuse_other_cells(shapes)
    sets = _label_sets(shapes)
    if not sets:
        raise ValueError(
            f"no energies: one of the keys {', '.join(ENERGIES)} is needed, "
            f"the file has {', '.join(shapes) or 'none'}"
        )
    default = next(iter(sets))
    if labels is None and (sets[default].energy in ENERGIES or len(sets) == 1):
        return sets[default]
    if labels not in sets:
        wish = "several label sets" if labels is None else f"no label set {labels!r}"
        raise ValueError(f"{wish}: labels must be one of {', '.join(sets)}")
    chosen = sets[labels]
    return chosen._replace(has_others=chosen.energy in ENERGIES or len(sets) == 1)


def _refuse_other_cells(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a cell of another name: without it, a crystal would be read as a molecule."""
    for key, shape in shapes.items():
        is_cell = shape[-1:] in ((3,), (6,), (9,))  # lengths, also with angles, or vectors
        if not {"cell", "pbc"} & set(shapes) and key.lower() in _CELLS and is_cell:
            raise ValueError(
                f"{key} is not read: store cell vectors as rows, as cell [n, 3, 3], or remove it "
                "if there is no periodic direction"
            )


def stresses_left_out(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a warning of stresses or virials of another name, which are not read, or ""."""
    others = [key for key in shapes if key.lower() in _STRESSES]
    if "stress" in shapes or not others:
        return ""
    return f"{', '.join(others)} is not read; stress [n, 3, 3] is, which is -virial / volume"


def _label_sets(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Labels]:
    positions = shapes[_first(shapes, POSITIONS, "positions")]
    sets: dict[str, Labels] = {}
    for key, shape in shapes.items():
        name, partners = _set_of(key)
        # One energy per structure: sGDML stores "E_min", "E_max" … beside them.
        if name and shape in _one_each(n_structures(positions, shapes), positions):
            forces = next((p for p in partners if p in shapes), partners[0])
            sets[name] = Labels(name, key, forces)
    if _OLD_LABELS[0] in shapes:
        sets["md17"] = Labels("md17", *_OLD_LABELS)
    energy = next((name for name in ENERGIES if name in shapes), None)
    if energy is None:
        return sets
    default = "rmd17" if "md17" in sets else "default"
    forces = next((name for name in (*FORCES, *GRADIENTS) if name in shapes), FORCES[0])
    return {default: Labels(default, energy, forces), **sets}


def _set_of(key: str) -> tuple[str, tuple[str, ...]]:
    """Return the label set whose energies a key holds ("" if none), and keys of its forces."""
    if key.startswith("E_"):
        return key[2:], (f"F_{key[2:]}",)
    match = re.fullmatch(r"(.+)([._])energ(y|ies)", key)
    if match is None or key in _OLD_LABELS or match[1] == "free":
        return "", ()
    return match[1], tuple(f"{match[1]}{match[2]}{name}" for name in (*FORCES[1:], *GRADIENTS))


def n_structures(positions: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of structures, from the shapes of the positions and of all arrays."""
    if len(positions) != 2:
        return positions[0] if positions else 1
    if len(shapes.get(OFFSETS, ())) == 1:
        return shapes[OFFSETS][0] - 1
    return shapes[COUNTS][0] if len(shapes.get(COUNTS, ())) == 1 else 1


def _one_each(n: int, positions: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return allowed shapes of one number per structure; that of a single one may be a scalar."""
    return {(n,), (n, 1)} | ({()} if n == 1 and len(positions) == 2 else set())


def dataset_fields(
    arrays: Mapping[str, NDArray], to_ase: Factors, labels: Labels
) -> dict[str, Any]:
    """Return the arguments of `Dataset`, made from named arrays.

    Three layouts of the atoms are supported: positions [n, N, 3] of n structures with N atoms
    each, the smaller ones padded with atomic number 0; positions [n_total, 3] of all structures one
    after the other, with `offsets` [n + 1] or `n_atoms` [n]; and positions [N, 3] of a single
    structure. Forces and atomic numbers have the same layout.

    Args:
        arrays: name -> array; the names are listed at the top of this module.
        to_ase: factors to ASE's units.
        labels: label set to read.

    Raises:
        ValueError: an array is missing or has a wrong shape or type.
    """
    positions = floats(_required(arrays, POSITIONS, "positions"), "positions")
    if positions.ndim not in (2, 3) or positions.shape[-1] != 3:
        raise ValueError(
            f"positions must have shape [n, n_atoms, 3], got {list(positions.shape)}; "
            f"[n_total, 3] does too, with {OFFSETS}"
        )
    numbers, rows = _atoms_of_each(arrays, positions, arrays[labels.energy].size)
    n = len(rows)
    if n == 0:
        raise ValueError("it contains no structures")
    energies = arrays[labels.energy]
    if energies.shape in _one_each(n, positions.shape):
        energies = energies.reshape(n)
    forces = arrays.get(labels.forces)
    if forces is not None and forces.shape != positions.shape:
        raise ValueError(
            f"{labels.forces} must have the shape of the positions, {list(positions.shape)}, "
            f"got {list(forces.shape)}"
        )
    cell, pbc = arrays.get("cell"), None
    if cell is not None:
        cell = _expand(floats(cell, "cell"), (n, 3, 3), "cell") * to_ase.length
        periodic = arrays["pbc"] if "pbc" in arrays else np.asarray(cell.any(axis=-1))
        pbc = _expand(periodic, (n, 3), "pbc")
        if pbc.dtype.kind not in "biuf":
            raise ValueError(f"pbc must be true or false, got an array of {pbc.dtype}")
        pbc = pbc.astype(bool)
    elif np.any(arrays.get("pbc", False)):
        raise ValueError("pbc is true, but there is no cell: store its vectors as rows of cell")
    infos = _charge_and_spin(arrays, n)
    structures = [
        Atoms(
            numbers=numbers[row],
            positions=positions[row] * to_ase.length,
            cell=None if cell is None else cell[k],
            pbc=None if pbc is None else pbc[k],
            info=infos[k],
        )
        for k, row in enumerate(rows)
    ]
    fields: dict[str, Any] = {
        "structures": structures,
        "energies": floats(energies, labels.energy) * to_ase.energy,
        "splits": splits_of(arrays),
        "isolated_energies": _isolated_energies(arrays, to_ase) if labels.has_others else None,
        "labels": labels.name,
    }
    if forces is not None:
        forces = floats(forces, labels.forces) * (labels.sign * to_ase.forces)
        fields["forces"] = [forces[row] for row in rows]
    if labels.has_others:
        fields |= _others(arrays, to_ase, positions, rows)
    theory = next((name for name in _THEORIES if name in arrays), None)
    if theory is not None:
        fields["level_of_theory"] = text(arrays[theory])
    return fields


def _others(
    arrays: Mapping[str, NDArray], to_ase: Factors, positions: NDArray, rows: list[Any]
) -> dict[str, Any]:
    """Return stress, labels of atoms and dipoles as arguments of `Dataset`."""
    fields: dict[str, Any] = {}
    n = len(rows)
    if "stress" in arrays:
        stress = floats(arrays["stress"], "stress") * to_ase.stress
        alone = positions.ndim == 2 and n == 1 and stress.shape == (3, 3)
        fields["stress"] = stress[None] if alone else stress
    shapes = {key: array.shape for key, array in arrays.items()}
    for label in NAMES_OF_ATOMS:
        name = name_of_atoms(label, shapes, positions.shape, n)
        if name is not None:
            values = floats(arrays[name], name).reshape(positions.shape[:-1])
            fields[label] = [values[row] for row in rows]
    if (name := name_of_dipoles(shapes, n)) is not None:
        fields["dipoles"] = floats(arrays[name], name).reshape(n, 3) * to_ase.dipole
    return fields


def name_of_atoms(
    label: str, shapes: Mapping[str, tuple[int, ...]], positions: tuple[int, ...], n: int
) -> str | None:
    """Return the key of a label with one number per atom, or None.

    Args:
        label: "charges" or "hirshfeld_ratios".
        shapes: shapes of all arrays, by key.
        positions: shape of the positions.
        n: number of structures.
    """
    of_atoms = positions[:-1]
    for name in NAMES_OF_ATOMS[label]:
        shape = shapes.get(name)
        is_total = name in _CHARGES and shape in {(n,), (n, 1)}
        if shape in (of_atoms, (*of_atoms, 1)) and not is_total:
            return name
    return None


def name_of_dipoles(shapes: Mapping[str, tuple[int, ...]], n: int) -> str | None:
    """Return the key of dipole vectors of n structures, or None."""
    fits = {(n, 3), (3,)} if n == 1 else {(n, 3)}
    return next((name for name in _DIPOLES if shapes.get(name) in fits), None)


def _atoms_of_each(
    arrays: Mapping[str, NDArray], positions: NDArray, n_energies: int
) -> tuple[NDArray[np.int64], list[Any]]:
    """Return atomic numbers, and for each structure the index of its atoms in per-atom arrays."""
    numbers = _elements(arrays, _first(arrays, NUMBERS, "atomic numbers"))
    if positions.ndim == 3:
        numbers = _expand(numbers, positions.shape[:2], "atomic numbers")
        if (numbers < 0).any():
            raise ValueError(f"atomic numbers must not be negative, got {numbers.min()}")
        return numbers, [(k, real) for k, real in enumerate(numbers > 0)]
    n_total = len(positions)
    if numbers.shape != (n_total,):
        raise ValueError(
            f"atomic numbers must have shape [{n_total}], as the positions have, "
            f"got {list(numbers.shape)}"
        )
    return numbers, [slice(a, b) for a, b in pairwise(bounds_of(arrays, n_total, n_energies))]


def bounds_of(arrays: Mapping[str, NDArray], n_total: int, n_energies: int) -> list[int]:
    """Return the bounds [n + 1] of the structures in an array over the atoms of all structures.

    Raises:
        ValueError: `offsets` or `n_atoms` are missing or do not fit the number of atoms.
    """
    if OFFSETS in arrays and arrays[OFFSETS].ndim == 1:
        bounds = integers(arrays[OFFSETS], OFFSETS)
    elif COUNTS in arrays and arrays[COUNTS].ndim == 1:
        bounds = np.cumsum([0, *integers(arrays[COUNTS], COUNTS)])
    elif n_energies == 1:
        return [0, n_total]
    else:
        raise ValueError(
            f"positions of shape [{n_total}, 3] and {n_energies} energies need {OFFSETS} "
            f"[{n_energies + 1}] or {COUNTS} [{n_energies}]"
        )
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n_total or (np.diff(bounds) < 1).any():
        rule = "rise from 0 to" if OFFSETS in arrays else "be positive and add up to"
        raise ValueError(
            f"{OFFSETS if OFFSETS in arrays else COUNTS} must {rule} the number of rows of the "
            f"positions, {n_total}"
        )
    return bounds.tolist()


def _elements(arrays: Mapping[str, NDArray], name: str) -> NDArray[np.int64]:
    """Return atomic numbers, also from chemical symbols, as in ANI-1."""
    array = arrays[name]
    if array.dtype.kind not in "SUO":
        if name == _SYMBOLS:  # numbers of this name are often indices into some table
            raise ValueError(
                f"{name} must be chemical symbols: store atomic numbers as {NUMBERS[0]}"
            )
        return integers(_required(arrays, (name,), "atomic numbers"), "atomic numbers")
    symbols = [text(np.asarray(symbol)) for symbol in array.reshape(-1)]
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown:
        raise ValueError(f"atomic numbers: no such element: {unknown[0]!r}")
    return np.array([atomic_numbers[symbol] for symbol in symbols], int).reshape(array.shape)


def _charge_and_spin(arrays: Mapping[str, NDArray], n: int) -> list[dict[str, int]]:
    infos: list[dict[str, int]] = [{} for _ in range(n)]
    for key, names in (("charge", _CHARGES), ("spin", _SPINS)):
        # Some sets keep charges of the atoms, (n, N), under the same name: these are not total.
        one_each = {(), (1,), (n,), (n, 1)}
        name = next((k for k in names if k in arrays and arrays[k].shape in one_each), None)
        if name is None:
            continue
        values = np.broadcast_to(integers(arrays[name], name).reshape(-1), (n,))
        for info, value in zip(infos, values, strict=True):
            info[key] = int(value)
    if _SMILES in arrays and not any("charge" in info for info in infos):
        for info, charge in zip(infos, _charges_in_smiles(arrays[_SMILES], n), strict=True):
            if charge:
                info["charge"] = charge
    return infos


def _charges_in_smiles(smiles: NDArray, n: int) -> list[int]:
    """Return the total charge [e] of each structure from SMILES, for files such as SPICE."""
    texts = [text(np.asarray(part)) for part in np.asarray(smiles).reshape(-1)]
    if max(map(len, texts), default=0) <= 1 and "[" in texts:
        texts = ["".join(texts)]  # ANI-1 stores a single one, as an array of letters
    charges = [_formal_charge(one) for one in texts]
    if len(set(charges)) <= 1:
        return [sum(charges[:1])] * n
    if len(charges) != n:
        raise ValueError(
            f"{_SMILES} says {len(charges)} charges for {n} structures: store charge [{n}] instead"
        )
    return charges


def _formal_charge(smiles: str) -> int:
    signs = _FORMAL_CHARGE.findall(smiles)
    return sum(int(s) if s[1:].isdigit() else s.count("+") - s.count("-") for s in signs)


def _isolated_energies(arrays: Mapping[str, NDArray], to_ase: Factors) -> dict[int, float] | None:
    if "e0" not in arrays or "e0_z" not in arrays:
        return None
    numbers = integers(arrays["e0_z"], "e0_z").reshape(-1)
    energies = floats(arrays["e0"], "e0").reshape(-1)
    if len(numbers) != len(energies):
        raise ValueError(
            f"e0 must have one energy per entry of e0_z, {len(numbers)}, got {len(energies)}"
        )
    return {int(z): float(e) * to_ase.energy for z, e in zip(numbers, energies, strict=True)}


def splits_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays that list the structures of a split, by the split's name.

    Keys are "train", "test_01", "val" …; any other name follows "split_".
    """
    return {
        key if _SPLIT.match(key) else key.removeprefix(_OTHER_SPLIT): array
        for key, array in arrays.items()
        if (_SPLIT.match(key) or key.startswith(_OTHER_SPLIT))
        and len(array.shape) == 1
        and np.issubdtype(array.dtype, np.integer)
    }


def is_of_structures(key: str) -> bool:
    """Return True if an array of this name holds elements, positions, energies or forces."""
    return key in (*NUMBERS, *POSITIONS, *ENERGIES, *FORCES)


def key_of_split(name: str) -> str:
    """Return the key from which `splits_of` reads a split of this name."""
    return name if _SPLIT.match(name) else _OTHER_SPLIT + name


def _first(keys: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in keys:
            return name
    raise ValueError(
        f"no {what}: one of the keys {', '.join(names)} is needed, the file has {', '.join(keys)}"
    )


def _required(arrays: Mapping[str, NDArray], names: tuple[str, ...], what: str) -> NDArray:
    array = arrays[_first(arrays, names, what)]
    if array.ndim == 0:
        raise ValueError(f"{what} must be an array, got {array}")
    return array


def _expand(array: NDArray, shape: tuple[int, ...], what: str) -> NDArray:
    """Broadcast an array that may be stored once for all structures."""
    if array.shape not in {shape, shape[1:]}:
        raise ValueError(
            f"{what} must have shape {list(shape[1:])} or {list(shape)}, got {list(array.shape)}"
        )
    return np.broadcast_to(array, shape)


def floats(array: NDArray, what: str) -> NDArray[np.float64]:
    """Convert an array of numbers to double precision.

    Raises:
        ValueError: the array does not hold real numbers; the message names it as `what`.
    """
    if array.dtype.kind not in "iuf":  # complex numbers and time spans would be cast silently
        raise ValueError(f"{what} must be numbers, got an array of {array.dtype}")
    return array.astype(np.float64)


def integers(array: NDArray, what: str) -> NDArray[np.int64]:
    """Convert whole numbers of any type to integers.

    Raises:
        ValueError: a number is not whole, or too large; the message names the array as `what`.
    """
    values = floats(array, what)
    wrong = (values != np.round(values)) | ~(np.abs(values) < 2**31)
    if wrong.any():
        raise ValueError(f"{what} must hold integers, got {values[wrong].flat[0]:g}")
    return values.astype(np.int64)


def text(array: NDArray) -> str:
    """Return the text in an array."""
    value = array.reshape(-1)[0] if array.size == 1 else array
    return value.decode() if isinstance(value, bytes) else str(value)
