"""`Result`: energy and its derivatives from one evaluation of one or many structures."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from attncalc.graph import OUTPUTS, OfArrays
from attncalc.novelty import NoveltyInputs
from attncalc.system import System

SMALLEST_VOLUME = 1e-8  # Å³; below it a cell has no volume

# largest `deviation` allowed between two ways to compute a `Result`; in float32, rounding alone
# gives 1e-6 to 1e-5
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}


@dataclass(frozen=True)
class Spread:
    """Sample standard deviation (n - 1) over the members of a committee.

    If members disagree, their mean should not be trusted. If they agree, all may still be wrong.

    Attributes:
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
    """

    energy: Tensor
    forces: Tensor


@dataclass(frozen=True)
class Result:
    """Energy and its derivatives, all float64 and detached.

    Attributes:
        energy: [n_systems] eV.
        energies: [n_atoms] eV, per atom; they add up to `energy`.
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV: dE / d strain, symmetric; see `stress`.
        spread: standard deviation over the members of a committee; None for a single potential.
        charges: [n_atoms] e; None unless all members predict them.
        hirshfeld_ratios: [n_atoms], see `attncalc.graph.AtomOutputs`; None unless all members
            predict them.
        surroundings: input of `novelty`; None if the training environments are not known.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor
    strain_gradient: Tensor
    spread: Spread | None = None
    charges: Tensor | None = field(default_factory=NoneType)
    hirshfeld_ratios: Tensor | None = field(default_factory=NoneType)
    surroundings: NoveltyInputs | None = None

    @functools.cached_property
    def novelty(self) -> NDArray[np.float64] | None:
        """Distance of each atom from the training environments, [n_atoms], without unit.

        1 is the edge of the environments, see `attncalc.novelty.Environments`. Novelty is computed
        at its first use. For a committee it is that of the first member with known training
        environments; None without one.
        """
        return None if self.surroundings is None else self.surroundings.novelty()

    def stress(self, system: System) -> Tensor:
        """Return the stress (1/V) dE / d strain, [n_systems, 3, 3] eV/Å³, with ASE's sign.

        Args:
            system: the structures that were evaluated.

        Raises:
            ValueError: a structure has no volume.
        """
        return self.strain_gradient / volumes_for_stress(system)[:, None, None]

    @property
    def arrays(self) -> ResultArrays:
        """Result as arrays on the CPU."""
        values = {name: getattr(self, name) for name in ResultArrays._fields}
        present = {name: value for name, value in values.items() if value is not None}
        return ResultArrays(**{name: value.cpu().numpy() for name, value in present.items()})


class ResultArrays(NamedTuple):
    """Arrays of a `Result` on the CPU."""

    energy: NDArray[Any]  # of float64, which `bincount` does not declare
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    strain_gradient: NDArray[np.float64]
    charges: NDArray[np.float64] | None = None
    hirshfeld_ratios: NDArray[np.float64] | None = None


class ResultOfArrays(OfArrays, Result):
    """Result made of `ResultArrays`."""


def mean_of(results: list[Result]) -> Result:
    """Return the mean of the results of a committee's members, with their spread."""

    def all_of(name: str) -> Tensor:
        return torch.stack([getattr(result, name) for result in results])

    energy_spread, energy = torch.std_mean(all_of("energy"), 0)
    forces_spread, forces = torch.std_mean(all_of("forces"), 0)
    return Result(
        energy=energy,
        energies=all_of("energies").mean(0),
        forces=forces,
        strain_gradient=all_of("strain_gradient").mean(0),
        spread=Spread(energy=energy_spread, forces=forces_spread),
        surroundings=next((one.surroundings for one in results if one.surroundings), None),
        **{
            name: all_of(name).mean(0)
            for name in OUTPUTS[1:]
            if all(getattr(result, name) is not None for result in results)
        },
    )


def volumes_for_stress(system: System) -> Tensor:
    """Return the volumes of the cells, [n_systems] Å³.

    Raises:
        ValueError: a structure has no volume.
    """
    volume = volumes(system)
    if (volume < SMALLEST_VOLUME).any():
        first = int((volume < SMALLEST_VOLUME).nonzero()[0])
        raise ValueError(
            f"structure {first} has no volume, so stress is not defined: set three cell vectors"
        )
    return volume


def deviation(ours: Result, theirs: Result, system_idx: Tensor) -> float:
    """Return the largest difference of energies and strain gradients per atom, forces and outputs.

    It is in eV, eV/Å and e. If the largest force component exceeds 1 eV/Å, or the strain gradient
    1 eV per atom, all differences except those of other outputs, such as charges, are divided by
    the larger of them: in a compressed crystal, large forces of neighbours cancel. NaN if any
    number is NaN, and infinite if only one of them has an output.

    Args:
        ours, theirs: results of the same structures.
        system_idx: [n_atoms], the structure of each atom.
    """
    n_atoms = torch.bincount(system_idx, minlength=len(theirs.energy)).view(-1, 1, 1)
    strain = theirs.strain_gradient / n_atoms
    scale = torch.stack([theirs.forces.abs().amax(), strain.abs().amax()]).amax().clamp(min=1.0)
    differences = [
        (ours.energies - theirs.energies).abs().amax(),
        (ours.forces - theirs.forces).abs().amax(),
        (ours.strain_gradient / n_atoms - strain).abs().amax(),
    ]
    outputs = []
    for name in OUTPUTS[1:]:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if (mine is None) != (other is None):
            return float("inf")
        if mine is not None:
            outputs.append((mine - other).abs().amax())
    return float(torch.stack([torch.stack(differences).amax() / scale, *outputs]).amax())


def volumes(system: System) -> Tensor:
    """Return the volume of each structure, [n_systems] Å³; zero without three cell vectors."""
    a, b, c = system.cell.unbind(1)
    return (torch.linalg.cross(a, b) * c).sum(1).abs()


def has_volume(atoms: Atoms) -> bool:
    """Return True if a structure has three independent cell vectors, as its stress needs."""
    return bool(atoms.cell.volume > SMALLEST_VOLUME)
