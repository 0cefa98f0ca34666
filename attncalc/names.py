"""Names of bonds as chemists write them."""

from __future__ import annotations

from ase.data import chemical_symbols


def pair_name(a: int, b: int) -> str:
    """Return the name of a bond between two atomic numbers: C-H and C-O, but O-H."""
    a, b = sorted((int(a), int(b)), key=lambda z: (z != 6, -z))
    return f"{chemical_symbols[a]}-{chemical_symbols[b]}"
