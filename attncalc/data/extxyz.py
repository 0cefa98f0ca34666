"""Reader of extended XYZ, and `from_ase` for labelled `ase.Atoms` that are already in memory."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import compress, islice
from pathlib import Path
from typing import IO, Any, AnyStr

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from attncalc.data.arrays import NAMES_OF_ATOMS
from attncalc.data.dataset import Dataset, joint_level
from attncalc.data.units import Factors, ReadOptions, factors, parse_entry, size_of
from attncalc.result import has_volume
from attncalc.system import SYNONYMS, stated, what_is_ignored
from attncalc.text import one_line

log = logging.getLogger(__name__)

# -virial is the derivative of the energy with respect to strain, as in QUIP and MACE
_VIRIALS = ("virial", "virials")
# Allowed sizes of labels; Dataset checks the forces.
_SIZES = {"energy": (1,), "free_energy": (1,), "stress": (6, 9)}
# Names of further labels, which are read if all frames have them.
FURTHER = {**NAMES_OF_ATOMS, "dipoles": ("dipole", "dipoles")}
# energies that forces are not derivatives of
_NO_LABELS = ("_energy", "free_energy", "zero_point_energy", "kinetic_energy")
_SPLIT_KEYS = ("split", "group", "config_type")
# `config_type` of isolated atoms, whose energies are reference energies (a convention of MACE)
ISOLATED = ("isolatedatom", "isolated_atom")
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
            to_ase = _factors(part, options, _prefix(dataset.labels))
            if to_ase != (of_all := of_all or to_ase):
                raise ValueError(f"{where}: it has other units than structure 0: convert one")
            _warn_left_out(part, dataset, said)
            yield dataset
            if first == 0:
                units = part[0].info.get("units")
                options = replace(options, labels=dataset.labels)
            if options.free_energy is None and dataset.labels == "default":
                options = replace(options, free_energy=_next_free_energy(part))
            first += len(part)


def _parts(frames: Iterator[Atoms], n: int | None) -> Iterator[list[Atoms]]:
    """Yield n frames at a time; parts of isolated atoms alone are joined to others."""
    part = list(islice(frames, n))
    while part:
        following = list(islice(frames, n))
        if following and any(all(map(_is_isolated, some)) for some in (part, following)):
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
    _warn_left_out(frames, dataset, set())
    return dataset


def labelled(everything: Sequence[Atoms], options: ReadOptions, source: str) -> Dataset:
    """Return the data set of labelled frames; see `from_ase`, also for the errors raised."""
    alone = [_is_isolated(atoms) for atoms in everything]
    frames = [atoms for atoms, is_alone in zip(everything, alone, strict=True) if not is_alone]
    isolated = list(compress(everything, alone))
    where = source
    try:
        if not frames:
            what = "it contains no structures"
            raise ValueError(f"{what} but isolated atoms" if isolated else what)
        prefix = _choose_labels(frames[0], options.labels)
        if options.labels is None and (others := _other_names(frames[0], prefix)):
            log.info("%s: its default labels are read; it has others: %s", source, others)
        to_ase = _factors(everything, options, prefix)
        if isolated:
            where = f"{source}, counted without isolated atoms"
        energies = _column(frames, prefix, "energy")
        forces = _with_fallback(frames, prefix, "forces")
        stress = _stress(frames, prefix, to_ase, source)
        of_isolated = [prefix + "energy"]  # names, the first one that an atom has
        if _reads_free_energy(frames, options, prefix):
            energies = _column(frames, "", "free_energy")
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
            if (values := _further(frames, prefix, name)) is not None:
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
        labels=_name_of(prefix),
    )
    if not prefix:  # labels with a prefix are not results of calculators
        for k, atoms in enumerate(frames):
            _require_own_results(atoms, f"{where}: structure {k}")
    return dataset


def _is_isolated(atoms: Atoms) -> bool:
    """Return True for a neutral atom whose energy is a reference energy."""
    kind = str(atoms.info.get("config_type", "")).lower()
    return len(atoms) == 1 and kind in ISOLATED and not any(stated(atoms.info, "charge").values())


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
        found = [value for name in names if (value := _label(atoms, name)) is not None]
        if not found or np.size(found[0]) != 1 or np.asarray(found[0]).dtype.kind not in "iuf":
            raise ValueError(
                f"isolated {atoms.symbols} has no {names[-1]}, or not as one number: give it, or "
                "remove the atom"
            )
        (number,), energy = atoms.numbers.tolist(), np.asarray(found[0]).item() * to_eV
        if abs(known.setdefault(number, energy) - energy) > 1e-6:
            raise ValueError(f"isolated {atoms.symbols} has two energies: remove one of them")
    return known or None


def _warn_left_out(frames: Sequence[Atoms], dataset: Dataset, said: set[str]) -> None:
    """Warn of what is not read: electrons, virials and forces of another name.

    Args:
        frames: as in the file.
        dataset: what was read of them.
        said: warnings of earlier frames of the file, which are not repeated; new ones are added.
    """
    frames = [atoms for atoms in frames if not _is_isolated(atoms)]
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
    prefix = _prefix(dataset.labels)
    known = {prefix + name for name in _VIRIALS}
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


def _factors(frames: Sequence[Atoms], options: ReadOptions, prefix: str) -> Factors:
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


def _label_sets(atoms: Atoms) -> dict[str, str]:
    """Return the label sets with energies, by name, and the prefixes of their keys."""
    sets = {"default": ""} if _label(atoms, "energy") is not None else {}
    for key in atoms.info:
        if key.endswith("_energy") and key not in _NO_LABELS:
            sets[_name_of(key.removesuffix("energy"))] = key.removesuffix("energy")
    return sets


def _name_of(prefix: str) -> str:
    return prefix.rstrip("_") or "default"


def _prefix(name: str) -> str:
    return "" if name == "default" else f"{name}_"


def _other_names(atoms: Atoms, prefix: str) -> str:
    """Return the names of the label sets but the one with this prefix, for a message."""
    return ", ".join(name for name, other in _label_sets(atoms).items() if other != prefix)


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


def _choose_labels(atoms: Atoms, labels: str | None) -> str:
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


def _label(atoms: Atoms, key: str) -> NDArray | float | None:
    if atoms.calc is not None and atoms.calc.results.get(key) is not None:
        return atoms.calc.results[key]
    return atoms.info.get(key, atoms.arrays.get(key))


def _column(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return one label of all frames; None if no frame has it."""
    values = [_label(atoms, prefix + name) for atoms in frames]
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


def _with_fallback(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return a label of all frames, without its prefix if there is none with it."""
    found = _column(frames, prefix, name)
    if found is None and _is_only_set(frames, prefix):
        return _column(frames, "", name)
    return found


def _stress(
    frames: Sequence[Atoms], prefix: str, to_ase: Factors, source: str
) -> NDArray[np.float64] | None:
    """Return the stresses of all frames, eV/Å³, or those that their virials give.

    None, with a warning, if only some frames have virials, or if only periodic ones have stresses.
    """
    is_only = _is_only_set(frames, prefix)
    names = [prefix + "stress", *(["stress"] if is_only else [])]
    without = [all(_label(atoms, name) is None for name in names) for atoms in frames]
    if all(without):
        return _stress_of_virials(frames, [prefix, ""] if is_only else [prefix], to_ase, source)
    missing = [atoms for atoms, lacks in zip(frames, without, strict=True) if lacks]
    if missing and not any(atoms.pbc.any() for atoms in missing):
        log.warning(
            "%s: stress is left out: %d of %d structures are not periodic and have none",
            *(source, len(missing), len(frames)),
        )
        return None
    found = _with_fallback(frames, prefix, "stress") or ()
    return np.stack([_full(one) for one in found]) * to_ase.stress


def _stress_of_virials(
    frames: Sequence[Atoms], prefixes: Sequence[str], to_ase: Factors, source: str
) -> NDArray[np.float64] | None:
    """Return -virial / volume [n, 3, 3] eV/Å³; None if not all frames have both.

    Virials of atoms, which are no labels here, are in `atoms.arrays`.
    """
    missing: dict[str, int] = {}
    for name in (prefix + name for prefix in prefixes for name in _VIRIALS):
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


def _is_only_set(frames: Sequence[Atoms], prefix: str) -> bool:
    """Return True if a label set with a prefix is the only one with energies."""
    return bool(prefix) and all(list(_label_sets(atoms)) == [_name_of(prefix)] for atoms in frames)


def _reads_free_energy(frames: Sequence[Atoms], options: ReadOptions, prefix: str) -> bool:
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


def _next_free_energy(frames: Sequence[Atoms]) -> bool | None:
    """Return the option `free_energy` with which further frames of a file are read."""
    structures = [atoms for atoms in frames if not _is_isolated(atoms)]
    if any(_free_energy_differs(atoms) for atoms in structures):
        return True
    return None if all(_has_free_energy(atoms) for atoms in structures) else False


def _free_energy_differs(atoms: Atoms) -> bool:
    return _has_free_energy(atoms) and atoms.calc.results["free_energy"] != _label(atoms, "energy")


def _has_free_energy(atoms: Atoms) -> bool:
    """Return True if the calculator of a frame has a free energy beside energy and forces."""
    free = None if atoms.calc is None else atoms.calc.results.get("free_energy")
    is_number = isinstance(free, float | np.floating) and bool(np.isfinite(free))
    return is_number and all(_label(atoms, name) is not None for name in ("energy", "forces"))


def _further(frames: Sequence[Atoms], prefix: str, name: str) -> list[NDArray] | None:
    """Return an optional label of all frames; None if one has none, or not as numbers.

    If there is no other label set, names without prefix are accepted too.
    """
    prefixes = [prefix, ""] if _is_only_set(frames, prefix) else [prefix]
    for full in (one + key for one in prefixes for key in FURTHER[name]):
        values = [np.asarray(_label(atoms, full)) for atoms in frames]
        shapes = [(3,) if name == "dipoles" else (len(atoms),) for atoms in frames]
        pairs = zip(values, shapes, strict=True)
        if all(value.shape == shape and value.dtype.kind in "iuf" for value, shape in pairs):
            return [value.astype(np.float64) for value in values]
    return None


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


def _full(stress: NDArray) -> NDArray[np.float64]:
    if stress.size == 6:
        return voigt_6_to_full_3x3_stress(stress.reshape(6))
    return stress.reshape(3, 3)


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
