"""Polarizabilities and dispersion coefficients of free atoms.

The data are those of Tkatchenko and Scheffler (Phys. Rev. Lett. 102, 073005, 2009), who took them
from Chu and Dalgarno (J. Chem. Phys. 121, 4083, 2004) and others, with the elements added later in
SO3LR's code (JACS 147, 33723, 2025): H to No, in the order of atomic numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

# fmt: off
POLARIZABILITIES = (  # bohr^3
    4.5, 1.38, 164.2, 38, 21, 12, 7.4, 5.4, 3.8, 2.67, 162.7, 71, 60, 37, 25, 19.6, 15, 11.1,
    292.9, 160, 120, 98, 84, 78, 63, 56, 50, 48, 42, 40, 60, 41, 29, 25, 20, 16.8, 319.2, 199,
    126.74, 119.97, 101.6, 88.42, 80.08, 65.89, 56.1, 23.68, 50.6, 39.7, 70.22, 55.95, 43.67,
    37.65, 35, 27.3, 399.9, 275, 213.7, 204.7, 215.8, 208.4, 200.2, 192.1, 184.2, 158.3, 169.5,
    164.64, 156.3, 150.2, 144.3, 138.9, 137.2, 99.52, 82.53, 71.04, 63.04, 55.06, 42.51, 39.68,
    36.5, 33.9, 69.92, 61.8, 49.02, 45.01, 38.93, 33.54, 317.8, 246.2, 203.3, 217, 154.4, 127.8,
    150.5, 132.2, 131.2, 143.6, 125.3, 121.5, 117.5, 113.4, 109.4, 105.4,
)
C6 = (  # hartree bohr^6, of two equal atoms
    6.5, 1.46, 1387, 214, 99.5, 46.6, 24.2, 15.6, 9.52, 6.38, 1556, 627, 528, 305, 185, 134, 94.6,
    64.3, 3897, 2221, 1383, 1044, 832, 602, 552, 482, 408, 373, 253, 284, 498, 354, 246, 210, 162,
    129.6, 4691, 3170, 1968.58, 1677.91, 1263.61, 1028.73, 1390.87, 609.75, 469, 157.5, 339, 452,
    707.05, 587.42, 459.32, 396, 385, 285.9, 6846, 5727, 3884.5, 3708.33, 3911.84, 3908.75,
    3847.68, 3708.69, 3511.71, 2781.53, 3124.41, 2984.29, 2839.95, 2724.12, 2576.78, 2387.53,
    2371.8, 1274.8, 1019.92, 847.93, 710.2, 596.67, 359.1, 347.1, 298, 392, 717.44, 697, 571,
    530.92, 457.53, 390.63, 4224.44, 4851.32, 3604.41, 4047.54, 2367.42, 1877.1, 2507.88, 2117.27,
    2110.98, 2403.22, 1985.82, 1891.92, 1851.1, 1787.07, 1701, 1578.18,
)
# fmt: on


def free_atoms(atomic_numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return static polarizabilities [n] bohr³ and C6 coefficients [n] hartree bohr⁶, float64.

    Raises:
        ValueError: there are no data for an element.
    """
    unknown = [z for z in atomic_numbers if not 0 < z <= len(C6)]
    if unknown:
        known = f"{chemical_symbols[1]} to {chemical_symbols[len(C6)]}"
        raise ValueError(
            f"no polarizability of a free {chemical_symbols[unknown[0]]} atom; known: {known}"
        )
    rows = [z - 1 for z in atomic_numbers]
    tables = (torch.tensor(table, dtype=torch.float64) for table in (POLARIZABILITIES, C6))
    polarizabilities, coefficients = (table[rows] for table in tables)
    return polarizabilities, coefficients
