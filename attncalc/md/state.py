"""`MDState`: everything that a step of dynamics reads and makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from ase import units
from torch import Tensor

from attncalc.md.velocities import LINEAR
from attncalc.ops import segment_sum
from attncalc.system import System


@dataclass(frozen=True)
class MDState:
    """Atoms in motion: one structure or many that know nothing of each other.

    A step makes a new state; two runs from the same state are the same run.

    Attributes:
        system: positions, cells, elements.
        momenta: [n_atoms, 3], amu Å / ASE time, float64; zero for fixed atoms.
        masses: [n_atoms] amu, float64.
        fixed: [n_atoms], bool: atoms that stay where they are; None: none.
        energy: [n_systems] eV, potential energy at these positions.
        forces: [n_atoms, 3] eV/Å.
        n_dof: [n_systems], float64: degrees of freedom that temperature counts.
        heat: [n_systems] eV: what a thermostat has put in so far.
        replicas: [n_systems], int64: names the noise of each system, whatever batch it is in.
        atom_in_system: [n_atoms], int64: counted from 0 in every system.
        spread: [n_systems] eV/Å: of a committee, the largest standard deviation over its members of
            the force on an atom; None for a single model.
        step: how many steps are done; while steps are recorded a tensor [], int64, on the device.
        seed: of the noise.
        limit: [n_systems] K: beyond this a run has lost its molecules; None before it begins.
    """

    system: System
    momenta: Tensor
    masses: Tensor
    fixed: Tensor | None
    energy: Tensor
    forces: Tensor
    n_dof: Tensor
    heat: Tensor
    replicas: Tensor
    atom_in_system: Tensor
    spread: Tensor | None
    step: int
    seed: int
    limit: Tensor | None = None

    @property
    def velocities(self) -> Tensor:
        """[n_atoms, 3] Å / ASE time."""
        return self.momenta / self.masses.unsqueeze(1)

    @property
    def kinetic_energy(self) -> Tensor:
        """[n_systems] eV."""
        return 0.5 * self.per_system((self.momenta * self.momenta).sum(1) / self.masses)

    def per_system(self, values: Tensor) -> Tensor:
        """Sums of atoms' values [n_atoms, ...] over each system, [n_systems, ...]."""
        if self.system.n_systems == 1:
            return values.sum(0, keepdim=True)
        return segment_sum(values, self.system.system_idx, self.system.n_systems)

    @property
    def temperature(self) -> Tensor:
        """[n_systems] K, of the motion that `n_dof` counts.

        Where drift and rotation of the whole are conserved, they are no heat.
        """
        return self._kelvin(self.kinetic_energy - self._energy_of_the_whole())

    @property
    def temperature_of_all_motion(self) -> Tensor:
        """[n_systems] K: no less than `temperature`, for it counts drift and rotation too."""
        return self._kelvin(self.kinetic_energy)

    def _kelvin(self, energy: Tensor) -> Tensor:
        return 2 * energy / (self.n_dof * units.kB)

    def _energy_of_the_whole(self) -> Tensor:
        """[n_systems] eV: of drift and rotation, where `n_dof` leaves them out."""
        idx = self.system.system_idx
        mobile = torch.ones_like(self.masses)
        if self.fixed is not None:
            mobile = mobile.masked_fill(self.fixed, 0.0)
        # 0, 3 for drift, 5 or 6 for both
        left_out = (3 * self.per_system(mobile) - self.n_dof).round()
        if not bool((left_out > 0).any()):
            return torch.zeros_like(self.energy)
        mass, momentum = self.per_system(self.masses), self.per_system(self.momenta)
        drift = 0.5 * (momentum * momentum).sum(1) / mass
        weights = self.masses.unsqueeze(1)
        centre = self.per_system(weights * self.system.positions) / mass.unsqueeze(1)
        arms = self.system.positions - centre[idx]
        spin = self.per_system(torch.linalg.cross(arms, self.momenta))  # [n_systems, 3]
        outer = self.per_system(weights.unsqueeze(2) * arms.unsqueeze(2) * arms.unsqueeze(1))
        trace = outer.diagonal(dim1=1, dim2=2).sum(1)
        inertia = trace[:, None, None] * torch.eye(3).to(outer) - outer
        # a linear molecule has no inertia about its axis, and does not turn about it
        inverse = torch.linalg.pinv(inertia, rtol=LINEAR, hermitian=True)
        turning = 0.5 * (spin * (inverse @ spin.unsqueeze(2)).squeeze(2)).sum(1)
        drift = torch.where(left_out > 0, drift, 0.0)
        return drift + torch.where(left_out > 3, turning, 0.0)

    @property
    def conserved(self) -> Tensor:
        """[n_systems] eV: kinetic and potential energy less heat; only the timestep moves it."""
        return self.kinetic_energy + self.energy - self.heat

    def having(self, **changes: Any) -> MDState:
        """The state with other values, as `dataclasses.replace` would make it.

        A step makes eight, and a state has so many fields that `replace` took a tenth of the step
        of a small molecule.
        """
        other = object.__new__(MDState)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def at(self, positions: Tensor) -> MDState:
        """The state with other positions [n_atoms, 3] Å."""
        return self.having(system=self.system.with_positions(positions))

    def to(self, device: torch.device | str) -> MDState:
        """The same state on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | System)
        }
        return replace(self, **moved)
