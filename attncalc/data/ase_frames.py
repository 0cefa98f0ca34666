"""`from_ase`: labelled `ase.Atoms` as a data set; readers of ASE's formats end here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset, joint_level
from attncalc.data.frame_labels import (
    FURTHER,
    VIRIALS,
    choose_labels,
    further_labels,
    is_isolated,
    label_of,
    labels_of_all,
    labels_with_fallback,
    name_of_labels,
    other_label_sets,
    prefix_of_labels,
    reads_free_energy,
    stress_labels,
)
from attncalc.data.units import Factors, ReadOptions, factors, parse_entry
from attncalc.system import SYNONYMS, stated, what_is_ignored
from attncalc.text import one_line

log = logging.getLogger(__name__)

_SPLIT_KEYS = ("split", "group", "config_type")


def from_ase(
    frames: Sequence[Atoms],
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
    source: str = "frames",
) -> Dataset:
    """Turn labelled `ase.Atoms` into a `Dataset`.

    Energy, forces and stress are the results of each frame's calculator (ASE's reader puts an
    extended XYZ file's `energy`, `forces` and `stress` there), else `info["energy"]`,
    `arrays["forces"]`, `info["stress"]`; stress is in Voigt order or [3, 3]. A prefix defines
    another label set: `REF_energy`, `REF_forces`, `REF_stress` are the set "REF"; if it is the only
    set, forces and stress may be without prefix. If no frame has stress, all have a volume, and all
    have a virial ("virial" or "virials", in the unit of the energies), stress is -virial / volume.
    Partial charges ("charges", "mbis_charges" ...), "hirshfeld_ratios" and "dipole" are read in the
    same way, but only if all frames have them. If calculators have forces and a `free_energy` that
    is not their `energy`, it is read as the energy, because forces are its derivatives; then all
    frames need it. Charge and multiplicity are `info["charge"]` (or `info["total_charge"]`) and
    `info["spin"]` (or `info["multiplicity"]`); the multiplicity may be absent. Initial charges of
    atoms are not added up. Neutral single atoms whose `info["config_type"]` is "IsolatedAtom" are
    not structures of the data set; their energies are its `isolated_energies`. The values of
    `info["split"]`, `info["group"]` and `info["config_type"]` become `splits`, in the order of the
    frames.

    Args:
        frames: the structures with their labels; they are not changed.
        energy_unit: unit of the energies. A unit in `info["units"]` of the first frame takes
            precedence, and neither an argument nor a later frame may contradict it. The default is
            eV, ASE's convention for this format.
        length_unit: unit of positions and cell, with the same rules; the default is Å. Forces and
            stress are in energy/length and energy/length³.
        labels: name of the label set; None is the set without prefix, or the only one.
        source: name of the data set, with which error messages start.

    Raises:
        ValueError: there is no frame, a frame lacks a label that the first one has, or a number,
            shape or unit is wrong; the message is one line that starts with `source`.
    """
    return dataset_of(list(frames), ReadOptions(energy_unit, length_unit, labels), source)


def dataset_of(frames: Sequence[Atoms], options: ReadOptions, source: str) -> Dataset:
    """Return the data set of labelled frames as `from_ase` does, and warn of what is left out."""
    dataset = labelled(frames, options, source)
    warn_of_what_is_left_out(frames, dataset, set())
    return dataset


def labelled(everything: Sequence[Atoms], options: ReadOptions, source: str) -> Dataset:
    """Return the data set of labelled frames; see `from_ase`, also for the errors raised."""
    alone = [is_isolated(atoms) for atoms in everything]
    frames = [atoms for atoms, is_alone in zip(everything, alone, strict=True) if not is_alone]
    isolated = list(compress(everything, alone))
    where = source
    try:
        if not frames:
            what = "it contains no structures"
            raise ValueError(f"{what} but isolated atoms" if isolated else what)
        prefix = choose_labels(frames[0], options.labels)
        if options.labels is None and (others := other_label_sets(frames[0], prefix)):
            log.info("%s: its default labels are read; it has others: %s", source, others)
        to_ase = factors_of_frames(everything, options, prefix)
        if isolated:
            where = f"{source}, counted without isolated atoms"
        energies = labels_of_all(frames, prefix, "energy")
        forces = labels_with_fallback(frames, prefix, "forces")
        stress = stress_labels(frames, prefix, to_ase, source)
        of_isolated = [prefix + "energy"]  # names, the first one that an atom has
        if reads_free_energy(frames, options, prefix):
            energies = labels_of_all(frames, "", "free_energy")
            of_isolated = ["free_energy", *of_isolated]
            if energies is None:
                raise ValueError(
                    "no free_energy, which is read as the energy of earlier structures: put them "
                    "into separate files"
                )
            if options.free_energy is None:
                log.warning("%s: free_energy is read, not energy: forces derive from it", source)
        structures = tuple(_structure(k, atoms, to_ase) for k, atoms in enumerate(frames))
        fields: dict[str, Any] = {}
        with np.errstate(over="ignore"):  # overflow is reported by the check of the data set
            fields["energies"] = np.array([e.item() for e in energies or ()]) * to_ase.energy
            if forces is not None:
                fields["forces"] = [f * to_ase.forces for f in forces]
            fields["stress"] = stress
            fields["isolated_energies"] = _by_element(isolated, of_isolated, to_ase.energy)
        for name in FURTHER:
            if (values := further_labels(frames, prefix, name)) is not None:
                unit = to_ase.dipole if name == "dipoles" else 1.0
                fields[name] = [value * unit for value in values]
        fields["splits"] = _splits(frames)
        level = joint_level({str(atoms.info.get("level_of_theory", "")) for atoms in frames})
    except ValueError as error:
        raise ValueError(one_line(f"{where}: {error}")) from None
    if isolated:  # as in the file
        fields["indices"] = np.flatnonzero(np.logical_not(alone))
    dataset = Dataset(
        structures=structures,
        **fields,
        source=source,
        level_of_theory=level,
        labels=name_of_labels(prefix),
    )
    if not prefix:  # labels with a prefix are not results of calculators
        for k, atoms in enumerate(frames):
            _require_own_results(atoms, f"{where}: structure {k}")
    return dataset


def _by_element(
    isolated: Sequence[Atoms], names: Sequence[str], to_eV: float
) -> dict[int, float] | None:
    """Return energies, eV, of isolated atoms by atomic number; None if there are none.

    Args:
        isolated: the atoms.
        names: of their energies, the first one that an atom has.
        to_eV: factor.

    Raises:
        ValueError: an atom has no energy, or two atoms of an element have different ones.
    """
    known: dict[int, float] = {}
    for atoms in isolated:
        found = [value for name in names if (value := label_of(atoms, name)) is not None]
        if not found or np.size(found[0]) != 1 or np.asarray(found[0]).dtype.kind not in "iuf":
            raise ValueError(
                f"isolated {atoms.symbols} has no {names[-1]}, or not as one number: give it, or "
                "remove the atom"
            )
        (number,), energy = atoms.numbers.tolist(), np.asarray(found[0]).item() * to_eV
        if abs(known.setdefault(number, energy) - energy) > 1e-6:
            raise ValueError(f"isolated {atoms.symbols} has two energies: remove one of them")
    return known or None


def factors_of_frames(frames: Sequence[Atoms], options: ReadOptions, prefix: str) -> Factors:
    """Return the factors for the units of the first frame; later frames may state the same."""
    found: dict[str, Factors] = {}
    for k, atoms in enumerate(frames):
        entry = atoms.info.get("units", {} if k == 0 else None)
        if entry is None or repr(entry) in found:
            continue
        found[repr(entry)] = factors(
            parse_entry(entry),
            options,
            default_energy_unit="eV",
            energy_name=prefix + "energy",
            forces_name=prefix + "forces",
            further={prefix + name for name in ("stress", "dipole")} & atoms.info.keys(),
            others={*atoms.info, *atoms.arrays},
        )
        if len(set(found.values())) > 1:
            raise ValueError(f"structure {k} states other units than structure 0: convert one")
    return next(iter(found.values()))


def _structure(k: int, atoms: Atoms, to_ase: Factors) -> Atoms:
    """Return the bare structure in Å, with charge and multiplicity only."""
    info = {}
    for key, other in SYNONYMS.items():
        said = list(stated(atoms.info, key).values())
        if said:
            info[key] = said[0]
        if len(said) > 1 and not np.array_equal(*said):
            raise ValueError(f"structure {k} has {key} {said[0]}, but {other} {said[1]}")
    return Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions * to_ase.length,
        cell=atoms.cell.array * to_ase.length,
        pbc=atoms.pbc,
        info=info,
    )


def _splits(frames: Sequence[Atoms]) -> dict[str, NDArray[np.int64]]:
    splits: dict[str, NDArray[np.int64]] = {}
    for key in _SPLIT_KEYS:
        values = np.array([str(atoms.info.get(key, "")) for atoms in frames])
        for value in dict.fromkeys(values.tolist()):
            if value:
                # A group may have the name of a split: the first key keeps the plain name.
                name = value if value not in splits else f"{key}={value}"
                splits[name] = np.flatnonzero(values == value)
    return splits


def _require_own_results(atoms: Atoms, name: str) -> None:
    """Refuse results of a calculator that were computed for other positions, cell or elements."""
    calc = atoms.calc
    if calc is None or not calc.results or getattr(calc, "atoms", None) is None:
        return
    changes = set(compare_atoms(calc.atoms, atoms)) & {"positions", "numbers", "cell", "pbc"}
    if changes:
        raise ValueError(
            f"{name}: the results of its calculator are of another structure "
            f"({', '.join(sorted(changes))} differ): compute each structure with a calculator of "
            "its own, or keep the results with SinglePointCalculator"
        )


def warn_of_what_is_left_out(frames: Sequence[Atoms], dataset: Dataset, said: set[str]) -> None:
    """Warn of what is not read: electrons, virials and forces of another name.

    Args:
        frames: as in the file.
        dataset: what was read of them.
        said: warnings of earlier frames of the file, which are not repeated; new ones are added.
    """
    frames = [atoms for atoms in frames if not is_isolated(atoms)]
    if isolated := dataset.isolated_energies:
        names = " ".join(chemical_symbols[z] for z in isolated)
        log.info("%s: energies of isolated atoms are read: %s", dataset.source, names)
    pairs = zip(frames, dataset.structures, strict=True)
    ignored = Counter(what_is_ignored(atoms, read.info) for atoms, read in pairs)
    n = len(frames)
    found = {
        what: what if times == n else f"{times} of {n} structures: {what}"
        for what, times in ignored.items()
        if what
    }
    prefix = prefix_of_labels(dataset.labels)
    known = {prefix + name for name in VIRIALS}
    first = frames[0]
    virials = [name for name in first.info if "virial" in name.lower() and name not in known]
    if dataset.stress is None and virials:
        found["virial"] = f"{', '.join(virials)} is not read, but {prefix}virial is"
    forces = [name for name in first.arrays if "force" in name.lower()]
    if dataset.forces is None and forces:
        found["forces"] = f"there are no {prefix}forces, but {', '.join(forces)}"
    for what in found:
        if what not in said:
            log.warning("%s: %s", dataset.source, found[what])
    said.update(found)
