"""`Dataset`: structures with their reference energies, forces and stresses, in ASE's units."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from attncalc.system import charge_and_spin, check_structure
from attncalc.text import one_line

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# labels of atoms besides forces, [n_atoms] of each structure
OF_ATOMS = ("charges", "hirshfeld_ratios")
# labels of structures besides the energy, and their shape
OF_STRUCTURES = {"stress": (3, 3), "dipoles": (3,)}
# labels that a data set has for all of its structures, or for none
OPTIONAL = ("forces", *OF_ATOMS, *OF_STRUCTURES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled structures; everything is checked once, here.

    Attributes:
        structures: one `ase.Atoms` per structure, without calculator; total charge (e) and
            multiplicity 2S+1 are in `info["charge"]` and `info["spin"]` if they are known.
        energies: [n] eV: total energies, with the energy zero of the source.
        forces: one [n_atoms, 3] eV/Å array per structure, or None.
        stress: [n, 3, 3] eV/Å³, (1/V) dE/dε as in ASE, or None.
        charges: one [n_atoms] e array of partial charges per structure, or None.
        hirshfeld_ratios: one [n_atoms] array of Hirshfeld volume ratios per structure, or None.
        dipoles: [n, 3] e Å, at the origin of the positions, or None.
        splits: name → [k] indices: the splits that the source defines.
        source: the file's name, without directories.
        level_of_theory: as stated by the source; "" if it states none.
        labels: name of the label set that was read from the source.
        isolated_energies: atomic number → eV: energies of isolated atoms, or None.
        indices: [n], structures of the source that belong to this data set, in order; None: all.

    Raises:
        ValueError: a shape is wrong, a number is not finite, a structure is impossible (an unknown
            element, a periodic direction without cell vector ...), or a split has an index out of
            range; the message starts with `source`.
    """

    structures: tuple[Atoms, ...]
    energies: Floats
    forces: tuple[Floats, ...] | None = None
    stress: Floats | None = None
    splits: Mapping[str, Integers] = field(default_factory=dict)
    source: str = "dataset"
    level_of_theory: str = ""
    labels: str = "default"
    isolated_energies: Mapping[int, float] | None = None
    charges: tuple[Floats, ...] | None = None
    hirshfeld_ratios: tuple[Floats, ...] | None = None
    dipoles: Floats | None = None
    indices: Integers | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the only way to set fields of a frozen dataclass
        try:
            put(self, "structures", tuple(self.structures))
            put(self, "energies", np.asarray(self.energies, dtype=np.float64))
            for name in ("forces", *OF_ATOMS):
                if (arrays := getattr(self, name)) is not None:
                    put(self, name, tuple(np.asarray(a, dtype=np.float64) for a in arrays))
            for name in OF_STRUCTURES:
                if (array := getattr(self, name)) is not None:
                    put(self, name, np.asarray(array, dtype=np.float64))
            put(self, "splits", {name: np.asarray(k) for name, k in self.splits.items()})
            self._check()
        except (ValueError, TypeError) as error:  # numpy's, for input that is not numeric
            raise ValueError(one_line(f"{self.source}: {error}")) from None

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray) -> Dataset:
        """The chosen structures as a new `Dataset`, without `splits`.

        Args:
            index: an integer (a data set of one), a slice, or a list or array of integers or
                of n booleans.

        Raises:
            IndexError: an index is out of range or is not an integer.
        """
        chosen = self.chosen(index)
        labels: dict[str, Any] = {
            name: values[chosen] if name in OF_STRUCTURES else tuple(values[k] for k in chosen)
            for name in OPTIONAL
            if (values := getattr(self, name)) is not None
        }
        return replace(
            self,
            structures=tuple(self.structures[k] for k in chosen),
            energies=self.energies[chosen],
            splits={},
            indices=chosen if self.indices is None else self.indices[chosen],
            **labels,
        )

    def chosen(self, index: int | slice | Sequence[int] | NDArray) -> Integers:
        """Return the indices [k] of the structures that `dataset[index]` selects."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        if not isinstance(index, slice) and len(index) == 0:
            index = slice(0, 0)  # numpy would turn an empty list into floats
        chosen = np.arange(len(self))[index]
        if chosen.ndim != 1:
            raise IndexError(f"the index must be one-dimensional, got shape {list(chosen.shape)}")
        return chosen

    def __add__(self, other: Dataset) -> Dataset:
        return concatenate([self, other])

    def _check(self) -> None:
        n = len(self)
        for k, atoms in enumerate(self.structures):
            if not isinstance(atoms, Atoms):
                raise ValueError(f"structure {k} must be an ase.Atoms, got {type(atoms).__name__}")
            if atoms.calc is not None:
                raise ValueError(f"structure {k} carries a calculator: use data.from_ase")
            if len(atoms) == 0:
                raise ValueError(f"structure {k} has no atoms")
        if self.energies.shape != (n,):
            raise ValueError(
                f"energies must have shape [{n}], one per structure, "
                f"got {list(self.energies.shape)}"
            )
        if self.indices is not None and len(self.indices) != n:
            raise ValueError(f"indices must have shape [{n}], got {list(self.indices.shape)}")
        _require_finite("energy", self.energies)
        _require_finite("position", [atoms.positions for atoms in self.structures])
        for k, atoms in enumerate(self.structures):
            check_structure(atoms, f"structure {k}: ")
            charge_and_spin(atoms, f"structure {k}: ")
        for name, singular in (("forces", "force"), *((name, name) for name in OF_ATOMS)):
            if (arrays := getattr(self, name)) is not None:
                self._check_of_atoms(name, singular, arrays)
        for name, shape in OF_STRUCTURES.items():
            if (array := getattr(self, name)) is None:
                continue
            if array.shape != (n, *shape):
                raise ValueError(f"{name} must have shape {[n, *shape]}, got {list(array.shape)}")
            _require_finite(name, array)
        for name, indices in self.splits.items():
            check_split(name, indices, n)
        for number, energy in (self.isolated_energies or {}).items():
            if number not in range(1, len(chemical_symbols)) or not np.isfinite(energy):
                raise ValueError(
                    f"the energy of the isolated atom {number} is not that of an element, "
                    f"got {energy}"
                )

    def _check_of_atoms(self, name: str, singular: str, arrays: Sequence[Floats]) -> None:
        n, columns = len(self), (3,) if name == "forces" else ()
        if len(arrays) != n:
            raise ValueError(f"{name} must have {n} arrays, one per structure, got {len(arrays)}")
        for k, (array, atoms) in enumerate(zip(arrays, self.structures, strict=True)):
            if array.shape != (len(atoms), *columns):
                raise ValueError(
                    f"{name} of structure {k} must have shape {[len(atoms), *columns]}, "
                    f"got {list(array.shape)}"
                )
        _require_finite(singular, arrays)


def joint_isolated_energies(known: Mapping[int, float], part: Dataset) -> dict[int, float]:
    """Return energies of isolated atoms of several parts, and of one more.

    Raises:
        ValueError: an energy differs, so the parts count energies from different zeros.
    """
    joint = dict(known)
    for number, energy in (part.isolated_energies or {}).items():
        if abs(joint.setdefault(number, energy) - energy) > 1e-6:
            raise ValueError(
                f"{part.source} gives another energy of the isolated atom {number} "
                f"({energy} eV) than the parts before it ({joint[number]} eV)"
            )
    return joint


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """Join data sets in order, without their `splits`.

    Energies are not converted, so all parts must have the same level of theory and the same energy
    zero. Charges, Hirshfeld ratios and dipoles are kept only if all parts have them.

    Raises:
        ValueError: `datasets` is empty, only some parts have forces or stress, the stated levels
            of theory differ, or the energies of an isolated atom differ.
    """
    parts = list(datasets)
    if not parts:
        raise ValueError("no data sets given: pass at least one Dataset")
    for name in ("forces", "stress"):
        having = [p.source for p in parts if getattr(p, name) is not None]
        missing = [p.source for p in parts if getattr(p, name) is None]
        if having and missing:
            raise ValueError(
                f"{having[0]} has {name} but {missing[0]} has not: "
                f"join data sets that agree, or set {name}=None with dataclasses.replace"
            )
    level = joint_level({p.level_of_theory for p in parts})
    isolated: dict[int, float] = {}
    for part in parts:
        isolated = joint_isolated_energies(isolated, part)
    labels: dict[str, Any] = {}
    for name in OPTIONAL:
        values = [getattr(part, name) for part in parts]
        if all(value is not None for value in values):
            joined = np.concatenate if name in OF_STRUCTURES else _chained
            labels[name] = joined(values)
    return Dataset(
        structures=tuple(atoms for p in parts for atoms in p.structures),
        energies=np.concatenate([p.energies for p in parts]),
        **labels,
        source=" + ".join(dict.fromkeys(p.source for p in parts)),
        level_of_theory=level,
        labels=" + ".join(dict.fromkeys(p.labels for p in parts)),
        isolated_energies=isolated or None,
    )


def joint_level(levels: set[str]) -> str:
    """Return the level of theory of joined structures; "" if none of them states it.

    Raises:
        ValueError: the stated levels differ.
    """
    stated = levels - {""}
    if len(stated) > 1:
        raise ValueError(
            "structures of different levels of theory cannot be joined: "
            + ", ".join(sorted(stated))
        )
    return "".join(stated)


def _chained(parts: Sequence[Sequence[Floats]]) -> tuple[Floats, ...]:
    return tuple(itertools.chain(*parts))


def _require_finite(what: str, values: Floats | Sequence[Floats]) -> None:
    if len(values) == 0:
        return
    flat = values if isinstance(values, np.ndarray) else np.concatenate(values)
    if np.isfinite(flat).all():  # the fast path: search for a bad structure only if there is one
        return
    first = next(k for k, value in enumerate(values) if not np.isfinite(value).all())
    raise ValueError(f"the {what} of structure {first} is not finite: remove it from the data")


def check_split(name: str, indices: NDArray, n: int) -> None:
    """Refuse a split that is not a list of different structure indices.

    Raises:
        ValueError: an index is not an integer, out of range or repeated; the message names the
            split.
    """
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f'split "{name}" must be a list of integers')
    if len(indices) and not (indices.min() >= 0 and indices.max() < n):
        raise ValueError(f'split "{name}" lists structures beyond the {n} of the data set')
    if len(np.unique(indices)) != len(indices):
        raise ValueError(f'split "{name}" lists a structure twice')
