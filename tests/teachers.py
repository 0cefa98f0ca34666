"""Teachers that cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from networks import tiny_so3krates

from attncalc import Potential, save
from attncalc.nn.so3krates import So3krates

SPECIES = (1, 6, 7, 8, 9, 15, 16, 17)


def spheres(charge: int = 0) -> LennardJones:
    """Soft spheres, whatever their charge: `attncalc sample --oracle teachers:spheres`."""
    return LennardJones(sigma=0.9, epsilon=0.05, rc=6.0)


def deaf() -> LennardJones:
    """The same, which nobody can tell a charge."""
    return spheres()


class _HalfCharged(LennardJones):
    """Partial charges for an odd number of atoms only."""

    def calculate(self, *arguments, **named) -> None:
        super().calculate(*arguments, **named)
        if len(self.atoms) % 2:
            self.results["charges"] = np.zeros(len(self.atoms))


def half_charged(charge: int) -> LennardJones:
    return _HalfCharged(**spheres().parameters)


class _Electrons(Calculator):
    """E = charge + 10 multiplicity, without forces: what it was told."""

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, charge: int, multiplicity: int) -> None:
        super().__init__()
        self._energy = charge + 10.0 * multiplicity

    def calculate(self, atoms=None, properties=None, system_changes=()) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": self._energy, "forces": np.zeros((len(atoms), 3))}


def electrons(charge: int, *, multiplicity: int) -> _Electrons:
    if charge > 1:
        raise NotImplementedError("no charge above 1")
    return _Electrons(charge, multiplicity)


def electrons_by_keywords(**told: int) -> _Electrons:
    return _Electrons(**({"charge": 0, "multiplicity": 1} | told))


def no_calculator() -> int:
    return 3


def tiny_model(path: Path, species: tuple[int, ...] = SPECIES) -> Path:
    """A model file of random weights that knows charges and predicts everything."""
    torch.manual_seed(0)
    config = tiny_so3krates(
        3.0, embed_charge=True, predict_charges=True, predict_hirshfeld_ratios=True
    )
    save(Potential(So3krates(config, len(species)), species), path)
    return path
