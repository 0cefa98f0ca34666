"""Units of training data: tables, unit strings, and the factors to ASE's units (eV, Å).

Every number comes from `ase.units` (CODATA 2014). Units are converted in the readers and nowhere
else: a `Dataset` is always in eV, eV/Å and eV/Å³.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ase import units

from attncalc.text import one_line

# Written name -> size of the unit in eV.
ENERGY_UNITS: dict[str, float] = {
    "eV": units.eV,
    "meV": 1e-3 * units.eV,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
}
# Written name -> size of the unit in Å.
LENGTH_UNITS: dict[str, float] = {"Angstrom": units.Ang, "Bohr": units.Bohr, "nm": units.nm}
# Written name -> size of the unit in eV/Å³; an alternative to energy/length^3.
PRESSURE_UNITS: dict[str, float] = {"GPa": units.GPa, "kbar": 0.1 * units.GPa}

# Other spellings, in lower case and without blanks.
_SPELLINGS = {
    "electronvolt": "eV",
    "kcalmol": "kcal/mol",
    "kjmol": "kJ/mol",
    "ha": "Hartree",
    "eh": "Hartree",
    "e_h": "Hartree",
    "ry": "Rydberg",
    "ang": "Angstrom",
    "angstroms": "Angstrom",
    "a": "Angstrom",
    "å": "Angstrom",
    "a0": "Bohr",
    "a_0": "Bohr",
    "nanometer": "nm",
}
_TABLES = (ENERGY_UNITS, LENGTH_UNITS, PRESSURE_UNITS)
_NAMES = {name.lower(): name for table in _TABLES for name in table} | _SPELLINGS

# Longest texts that are parsed: regular expressions are slow for very long ones.
LONGEST_UNIT, LONGEST_ENTRY = 60, 2000

# (power of energy, power of length) of each quantity.
_DIMENSIONS = {"energy": (1, 0), "length": (0, 1), "forces": (1, -1), "stress": (1, -3)}
# Names of each quantity in a stored `units` entry.
_QUANTITY_NAMES = {
    "energy": ("E", "energy", "energies"),
    "length": ("R", "length", "positions", "coords", "pos", "cell"),
    "forces": ("F", "forces", "force"),
    "stress": ("stress",),
    "dipole": ("dipole", "dipoles"),
}


@dataclass(frozen=True)
class ReadOptions:
    """Options of a reader, given by the user; None means unspecified.

    Attributes:
        energy_unit, length_unit: units of the numbers in the file.
        labels: name of the label set to read.
        free_energy: True: `free_energy` is read as the energy; None: if it differs from the energy;
            False: if it differs, it is refused.
    """

    energy_unit: str | None = None
    length_unit: str | None = None
    labels: str | None = None
    free_energy: bool | None = None


@dataclass(frozen=True)
class Factors:
    """Factors that convert the numbers of a file to ASE's units.

    Attributes:
        energy: to eV.
        length: to Å.
        forces: to eV/Å.
        stress: to eV/Å³.
        dipole: to e Å.
    """

    energy: float
    length: float
    forces: float
    stress: float
    dipole: float


def parse_unit(text: str) -> tuple[float, tuple[int, int]]:
    """Read one unit such as "kcal/mol/angstrom", "Hartree/Bohr", "eV/A^3" or "GPa".

    Case is ignored, except that "MeV" is refused: it is a misspelt "meV".

    Returns:
        The size of the unit in ASE's units, and its powers of (energy, length).

    Raises:
        ValueError: the unit is not in the table.
    """
    if not isinstance(text, str):
        raise ValueError(f"a unit must be text, got {text!r}")
    if len(text) > LONGEST_UNIT:
        raise ValueError(f"unknown unit {one_line(text, longest=40)!r}")
    plain = text.strip().replace("**", "^")
    plain = re.sub(r"[\s*·]+([^\W\d]+)\^?-(\d)", r"/\1^\2", plain)  # "eV Å^-3" -> "eV/Å^3"
    plain = re.sub(r"\s+", "", plain)
    # "/mol" is the only quotient that is part of a unit's name.
    plain = re.sub(r"^(kcal|kj)/mol(\^1)?", r"\1mol", plain, flags=re.IGNORECASE)
    first, *below = plain.split("/")
    try:
        if first.startswith("MeV"):
            raise KeyError(first)
        name = _NAMES[first.lower()]
        size, dimension = _size_and_dimension(name)
        for part in below:
            base, _, digit = part.partition("^")
            length, power = LENGTH_UNITS[_NAMES[base.lower()]], int(digit or 1)
            if not 1 <= power <= 3:
                raise ValueError(power)
            size /= length**power
            dimension = (dimension[0], dimension[1] - power)
    except (KeyError, ValueError):
        raise ValueError(
            f"unknown unit {text!r}: use one of {', '.join((*ENERGY_UNITS, *LENGTH_UNITS))}, "
            "or a quotient such as eV/Angstrom"
        ) from None
    return size, dimension


def parse_entry(entry: str | Mapping[str, str]) -> dict[str, str]:
    """Split a stored `units` entry into one unit string per name.

    The entry has named units, "R, cell: angstrom; E: eV (rounded); F: eV/angstrom", with remarks in
    parentheses, after a comma or after "="; or bare units, "kcal/mol, kcal/mol/angstrom", which are
    assigned to quantities by their dimension. "E: eV, F: eV/angstrom" is read as with semicolons. A
    mapping is used as it is.

    Raises:
        ValueError: a bare unit is not in the table, or named units with commas are ambiguous.
    """
    if isinstance(entry, Mapping):
        return {str(name): str(unit) for name, unit in entry.items()}
    if len(str(entry)) > LONGEST_ENTRY:
        raise ValueError(f"the units entry has {len(str(entry))} characters, which is too long")
    plain = re.sub(r"\([^()]*\)", "", str(entry))
    stored: dict[str, str] = {}
    for piece in plain.split(";"):
        names, colon, rest = piece.partition(":")
        if colon:
            first, *others = re.split(r",(?=\s*\w+\s*:)", rest)
            units = [(names, first), *(tuple(more.split(":", 1)) for more in others)]
            if any("," in unit for _, unit in units[:-1]):  # a remark, or a name of what follows
                raise ValueError(f"units {one_line(entry, longest=60)!r}: separate them by ;")
            for names, unit in units:
                unit = re.split(r",|=", unit)[0].strip()
                stored |= {name.strip(): unit for name in names.split(",")}
            continue
        for bare in filter(None, (part.strip() for part in piece.split(","))):
            dimension = parse_unit(bare)[1]
            stored |= {q: bare for q, powers in _DIMENSIONS.items() if powers == dimension}
    return stored


def named_units(
    stored: Mapping[str, str],
    *,
    energy_name: str = "E",
    forces_name: str = "F",
    further: Collection[str] = (),
) -> dict[str, str]:
    """Return quantity ("energy", "length", "forces" ...) -> its key in `stored`.

    Args:
        stored: name → unit string, from `parse_entry`; case does not matter.
        energy_name: the file's name of the energies that are read.
        forces_name: the file's name of the forces that are read.
        further: the file's own names of stress and dipoles, such as "REF_stress".

    Raises:
        ValueError: positions and cell, or two other names of one quantity, are in different units.
    """
    own_names = {
        "energy": [energy_name],
        "forces": [forces_name],
        **{q: [one for one in further if one.endswith(q)] for q in ("stress", "dipole")},
    }
    found: dict[str, str] = {}
    for quantity, names in _QUANTITY_NAMES.items():
        own = _keys(stored, own_names.get(quantity, []))
        for name in own or _keys(stored, names):
            first = found.setdefault(quantity, name)
            sizes = [size_of(quantity, stored[n], f'stored units of "{n}"') for n in (first, name)]
            if not math.isclose(*sizes, rel_tol=1e-9):
                raise ValueError(
                    f"{first} is stored in {stored[first]} but {name} in {stored[name]}: "
                    f"all {quantity} must be in one unit"
                )
    return found


def _keys(stored: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return the keys of `stored` that are names, or else differ from one only in case."""
    spelt = {key.lower(): key for key in reversed(list(stored))}
    found = (name if name in stored else spelt.get(name.lower(), "") for name in names)
    return list(filter(None, dict.fromkeys(found)))


def factors(
    stored: Mapping[str, str],
    options: ReadOptions,
    *,
    default_energy_unit: str | None = None,
    energy_name: str = "E",
    forces_name: str = "F",
    further: Collection[str] = (),
    others: Collection[str] = (),
) -> Factors:
    """Determine the units of a file from its stored units and the user's options.

    A stored unit takes precedence. The default unit of lengths is Å. The default units of forces,
    stress and dipoles are energy/length, energy/length³ and e length.

    Args:
        stored: name → unit string, from `parse_entry`.
        options: units that the user states.
        default_energy_unit: convention of the format; None if there is none.
        energy_name: the file's name of the energies that are read.
        forces_name: the file's name of the forces that are read.
        further: the file's own names of stress and dipoles, such as "REF_stress".
        others: names of other quantities that the file has, whose units do not matter.

    Raises:
        ValueError: a unit is unknown or of the wrong dimension, an argument contradicts the file,
            the energy unit is not stated anywhere, or the file states the unit of an energy or
            force of an unknown name, which is not the one that would be used.
    """
    named = named_units(stored, energy_name=energy_name, forces_name=forces_name, further=further)
    sizes = {
        quantity: size_of(quantity, stored[name], f'stored units of "{name}"')
        for quantity, name in named.items()
    }
    for quantity, given in (("energy", options.energy_unit), ("length", options.length_unit)):
        if given is None:
            continue
        size = size_of(quantity, given, f"{quantity}_unit")
        if not math.isclose(sizes.setdefault(quantity, size), size, rel_tol=1e-9):
            raise ValueError(
                f"{quantity}_unit={given!r} contradicts the units stored in the file "
                f"({', '.join(f'{name}: {unit}' for name, unit in stored.items())}): "
                "leave the argument out"
            )
    if "energy" not in sizes:
        if default_energy_unit is None:
            raise ValueError(
                "the file does not state its energy unit: pass energy_unit, one of "
                + ", ".join(ENERGY_UNITS)
            )
        sizes["energy"] = ENERGY_UNITS[default_energy_unit]
    energy, length = sizes["energy"], sizes.get("length", LENGTH_UNITS["Angstrom"])
    found = Factors(
        energy=energy,
        length=length,
        forces=sizes.get("forces", energy / length),
        stress=sizes.get("stress", energy / length**3),
        dipole=sizes.get("dipole", length),
    )
    for quantity, own, used in (
        ("energy", energy_name, found.energy),
        ("forces", forces_name, found.forces),
    ):
        is_known = quantity in named or (quantity == "energy" and options.energy_unit is not None)
        if is_known:
            continue
        for name, unit in stored.items():
            if name not in others and not _is_of(quantity, unit, used):
                raise ValueError(
                    f'its units say "{name}: {unit}", but it has no such quantity: write "{own}: '
                    f'{unit}" if that is meant, or remove it'
                )
    return found


def _is_of(quantity: str, text: str, size: float) -> bool:
    """Return False for a unit of this quantity that has another size."""
    try:
        found, dimension = parse_unit(text)
    except ValueError:
        return True
    return dimension != _DIMENSIONS[quantity] or math.isclose(found, size, rel_tol=1e-9)


def _size_and_dimension(name: str) -> tuple[float, tuple[int, int]]:
    for table, dimension in zip(_TABLES, ((1, 0), (0, 1), (1, -3)), strict=True):
        if name in table:
            return table[name], dimension
    raise KeyError(name)


def _dipole_size(text: str, where: str) -> float:
    """Return the size in e Å of "Debye", "e Angstrom", "e*Bohr", "a.u." or the like."""
    plain = re.sub(r"[\s*·.]+", "", text[:LONGEST_UNIT]).lower()
    if plain in ("d", "debye"):
        return float(units.Debye)
    name = "Bohr" if plain == "au" else _NAMES.get(plain.removeprefix("e"), "")
    if name not in LENGTH_UNITS:
        raise ValueError(
            f"{where} = {one_line(text, longest=40)!r} is not a unit of dipoles: use Debye, "
            "e Angstrom or e Bohr"
        )
    return LENGTH_UNITS[name]


def size_of(quantity: str, text: str, where: str) -> float:
    """Return the size of a unit in ASE's units.

    Args:
        quantity: "energy", "length", "forces", "stress" or "dipole".
        text: the unit.
        where: beginning of the error message.

    Raises:
        ValueError: the unit is unknown, or belongs to another quantity.
    """
    if quantity == "dipole":
        return _dipole_size(text, where)
    try:
        size, dimension = parse_unit(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if dimension != _DIMENSIONS[quantity]:
        raise ValueError(f"{where} = {text!r} is not a unit of {quantity}")
    return size
