"""Labels of `ase.Atoms`: their sets, names and shapes; stress of virials, and free energies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from attncalc.data.arrays import NAMES_OF_ATOMS
from attncalc.data.units import Factors, ReadOptions, parse_entry, size_of
from attncalc.result import has_volume
from attncalc.system import stated
from attncalc.text import one_line

log = logging.getLogger(__name__)

# -virial is the derivative of the energy with respect to strain, as in QUIP and MACE
VIRIALS = ("virial", "virials")
# Allowed sizes of labels; Dataset checks the forces.
_SIZES = {"energy": (1,), "free_energy": (1,), "stress": (6, 9)}
# Names of further labels, which are read if all frames have them.
FURTHER = {**NAMES_OF_ATOMS, "dipoles": ("dipole", "dipoles")}
# energies that forces are not derivatives of
_NO_LABELS = ("_energy", "free_energy", "zero_point_energy", "kinetic_energy")
# `config_type` of isolated atoms, whose energies are reference energies (a convention of MACE)
ISOLATED = ("isolatedatom", "isolated_atom")


def is_isolated(atoms: Atoms) -> bool:
    """Return True for a neutral atom whose energy is a reference energy."""
    kind = str(atoms.info.get("config_type", "")).lower()
    return len(atoms) == 1 and kind in ISOLATED and not any(stated(atoms.info, "charge").values())


def _label_sets(atoms: Atoms) -> dict[str, str]:
    """Return the label sets with energies, by name, and the prefixes of their keys."""
    sets = {"default": ""} if label_of(atoms, "energy") is not None else {}
    for key in atoms.info:
        if key.endswith("_energy") and key not in _NO_LABELS:
            sets[name_of_labels(key.removesuffix("energy"))] = key.removesuffix("energy")
    return sets


def name_of_labels(prefix: str) -> str:
    """Return the name of a label set, from the prefix of its keys."""
    return prefix.rstrip("_") or "default"


def prefix_of_labels(name: str) -> str:
    """Return the prefix of the keys of a label set, from its name."""
    return "" if name == "default" else f"{name}_"


def other_label_sets(atoms: Atoms, prefix: str) -> str:
    """Return the names of the label sets but the one with this prefix, for a message."""
    return ", ".join(name for name, other in _label_sets(atoms).items() if other != prefix)


def choose_labels(atoms: Atoms, labels: str | None) -> str:
    """Return the prefix of the label set's keys: "" for the default set, else "NAME_"."""
    sets = _label_sets(atoms)
    if labels is None and ("default" in sets or len(sets) == 1):
        return next(iter(sets.values()))
    if not sets:
        raise ValueError('structure 0 has no energy: info["energy"] or a calculator is needed')
    if labels not in sets:
        wish = "several label sets" if labels is None else f"no label set {labels!r}"
        raise ValueError(f"{wish}: labels must be one of {', '.join(sets)}")
    return sets[labels]


def label_of(atoms: Atoms, key: str) -> NDArray | float | None:
    """Return a result of the calculator, else an entry of `info` or `arrays`; None without one."""
    if atoms.calc is not None and atoms.calc.results.get(key) is not None:
        return atoms.calc.results[key]
    return atoms.info.get(key, atoms.arrays.get(key))


def labels_of_all(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return one label of all frames; None if no frame has it."""
    values = [label_of(atoms, prefix + name) for atoms in frames]
    if all(value is None for value in values):
        return None
    have = next(k for k, value in enumerate(values) if value is not None)
    for k, value in enumerate(values):
        if value is None:
            raise ValueError(
                f"structure {k} has no {prefix + name} but structure {have} has: remove "
                f"structure {k}" + ("" if "energy" in name else ", or this label from all")
            )
        if np.asarray(value).dtype.kind not in "iuf":
            raise ValueError(
                f"{prefix + name} of structure {k} is not a number: {one_line(repr(value))}"
            )
        if name in _SIZES and np.size(value) not in _SIZES[name]:
            raise ValueError(
                f"{prefix + name} of structure {k} must have "
                f"{' or '.join(map(str, _SIZES[name]))} numbers, got {np.size(value)}"
            )
    return [np.asarray(value, dtype=np.float64) for value in values]


def labels_with_fallback(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return a label of all frames, without its prefix if there is none with it."""
    found = labels_of_all(frames, prefix, name)
    if found is None and _is_only_set(frames, prefix):
        return labels_of_all(frames, "", name)
    return found


def _is_only_set(frames: Sequence[Atoms], prefix: str) -> bool:
    """Return True if a label set with a prefix is the only one with energies."""
    return bool(prefix) and all(
        list(_label_sets(atoms)) == [name_of_labels(prefix)] for atoms in frames
    )


def further_labels(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return an optional label of all frames; None if one has none, or not as numbers.

    If there is no other label set, names without prefix are accepted too.
    """
    prefixes = [prefix, ""] if _is_only_set(frames, prefix) else [prefix]
    for full in (one + key for one in prefixes for key in FURTHER[name]):
        values = [np.asarray(label_of(atoms, full)) for atoms in frames]
        shapes = [(3,) if name == "dipoles" else (len(atoms),) for atoms in frames]
        pairs = zip(values, shapes, strict=True)
        if all(value.shape == shape and value.dtype.kind in "iuf" for value, shape in pairs):
            return [value.astype(np.float64) for value in values]
    return None


def stress_labels(
    frames: Sequence[Atoms], prefix: str, to_ase: Factors, source: str
) -> NDArray[np.float64] | None:
    """Return the stresses of all frames, eV/Å³, or those that their virials give.

    None, with a warning, if only some frames have virials, or if only periodic ones have stresses.
    """
    is_only = _is_only_set(frames, prefix)
    names = [prefix + "stress", *(["stress"] if is_only else [])]
    without = [all(label_of(atoms, name) is None for name in names) for atoms in frames]
    if all(without):
        return _stress_of_virials(frames, [prefix, ""] if is_only else [prefix], to_ase, source)
    missing = [atoms for atoms, lacks in zip(frames, without, strict=True) if lacks]
    if missing and not any(atoms.pbc.any() for atoms in missing):
        log.warning(
            "%s: stress is left out: %d of %d structures are not periodic and have none",
            *(source, len(missing), len(frames)),
        )
        return None
    found = labels_with_fallback(frames, prefix, "stress") or ()
    return np.stack([_full(one) for one in found]) * to_ase.stress


def _stress_of_virials(
    frames: Sequence[Atoms], prefixes: Sequence[str], to_ase: Factors, source: str
) -> NDArray[np.float64] | None:
    """Return -virial / volume [n, 3, 3] eV/Å³; None if not all frames have both.

    Virials of atoms, which are no labels here, are in `atoms.arrays`.
    """
    missing: dict[str, int] = {}
    for name in (prefix + name for prefix in prefixes for name in VIRIALS):
        values = [atoms.info.get(name) for atoms in frames]
        pairs = zip(values, frames, strict=True)
        usable = [_is_virial(value) and has_volume(atoms) for value, atoms in pairs]
        if all(usable):
            stored = parse_entry(frames[0].info.get("units", {}))
            unit = stored.get(name)
            size = size_of("energy", unit, f'stored units of "{name}"') if unit else to_ase.energy
            volumes = np.array([atoms.cell.volume for atoms in frames]) * to_ase.length**3
            virials = np.stack([_full(np.asarray(value, dtype=np.float64)) for value in values])
            stress: NDArray[np.float64] = -size * virials / volumes[:, None, None]
            return stress
        if any(value is not None for value in values):
            missing[name] = len(frames) - sum(usable)
    if missing:
        name = min(missing, key=lambda name: missing[name])
        log.warning(
            "%s: %s is left out: %d of %d structures have none, or no volume",
            *(source, name, missing[name], len(frames)),
        )
    return None


def _is_virial(value: Any) -> bool:
    array = np.asarray(value)
    is_number = array.dtype.kind in "iuf" and array.size in _SIZES["stress"]
    return is_number and bool(np.isfinite(array).all())


def _full(stress: NDArray) -> NDArray[np.float64]:
    if stress.size == 6:
        return voigt_6_to_full_3x3_stress(stress.reshape(6))
    return stress.reshape(3, 3)


def reads_free_energy(frames: Sequence[Atoms], options: ReadOptions, prefix: str) -> bool:
    """Return True if the free energies of calculators are read as energies.

    Forces are their derivatives. With smeared occupations of electronic states, `energy` is
    extrapolated to zero smearing.
    """
    if prefix:
        return False
    if options.free_energy:
        return True
    differing = next((k for k, atoms in enumerate(frames) if _free_energy_differs(atoms)), None)
    if differing is not None and options.free_energy is False:
        raise ValueError(
            f"structure {differing} has a free_energy other than its energy, but earlier "
            "structures have none: put them into separate files"
        )
    return differing is not None


def next_free_energy(frames: Sequence[Atoms]) -> bool | None:
    """Return the option `free_energy` with which further frames of a file are read."""
    structures = [atoms for atoms in frames if not is_isolated(atoms)]
    if any(_free_energy_differs(atoms) for atoms in structures):
        return True
    return None if all(_has_free_energy(atoms) for atoms in structures) else False


def _free_energy_differs(atoms: Atoms) -> bool:
    return _has_free_energy(atoms) and atoms.calc.results["free_energy"] != label_of(
        atoms, "energy"
    )


def _has_free_energy(atoms: Atoms) -> bool:
    """Return True if the calculator of a frame has a free energy beside energy and forces."""
    free = None if atoms.calc is None else atoms.calc.results.get("free_energy")
    is_number = isinstance(free, float | np.floating) and bool(np.isfinite(free))
    return is_number and all(label_of(atoms, name) is not None for name in ("energy", "forces"))
