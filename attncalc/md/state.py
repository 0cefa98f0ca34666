"""`MDState`: all data that a step of dynamics reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from ase import units
from torch import Tensor

from attncalc.md.velocities import LINEAR
from attncalc.ops import segment_max, segment_sum
from attncalc.result import Result, volumes
from attncalc.system import System

FLOATS, WHOLE, FLAGS = (torch.float64, torch.float32), (torch.int64,), (torch.bool,)


class Stored(NamedTuple):
    """Tensor of a checkpoint, and its conditions.

    Attributes:
        name: its name there.
        kinds: dtypes that it may have.
        shape: numbers, "atoms" or "systems".
        least: smallest allowed value, if there is one.
        optional: whether it may be missing.
    """

    name: str
    kinds: tuple[torch.dtype, ...]
    shape: tuple[str | int, ...]
    least: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class MDState:
    """State of moving atoms, of one structure or of many that do not interact.

    A step makes a new state; two runs from the same state are identical.

    Attributes:
        system: positions, cells, elements.
        momenta: [n_atoms, 3], amu Å / ASE time, float64; zero for fixed atoms.
        masses: [n_atoms] amu, float64.
        fixed: [n_atoms], bool: True for fixed atoms; None: there are none.
        energy: [n_systems] eV, potential energy at these positions.
        forces: [n_atoms, 3] eV/Å.
        n_dof: [n_systems], float64: degrees of freedom that temperature counts.
        heat: [n_systems] eV: energy that a thermostat or barostat has added so far.
        replicas: [n_systems], int64: identifies the noise of each system in any batch.
        atom_in_system: [n_atoms], int64: counted from 0 in every system.
        spread: [n_systems] eV/Å: for a committee, the largest standard deviation over its members
            of the force on an atom; None for a single model.
        step: number of steps done; a tensor [], int64, on the device while steps are recorded.
        seed: of the noise.
        limit: [n_systems] K: temperature beyond which the run has exploded; None before a run
            begins and after it has ended.
        charges: [n_atoms] e, at these positions; None if the model does not predict them.
        strain_gradient: [n_systems, 3, 3] eV: dE / d strain at these positions; None if no
            system is periodic in all directions, or for a run that version 0.1 began.
        stored: tensors of the state in a checkpoint.
    """

    stored: ClassVar[tuple[Stored, ...]] = (
        Stored("momenta", FLOATS[:1], ("atoms", 3)),
        Stored("masses", FLOATS[:1], ("atoms",), 1e-12),
        Stored("fixed", FLAGS, ("atoms",), optional=True),
        Stored("energy", FLOATS, ("systems",)),
        Stored("forces", FLOATS, ("atoms", 3)),
        Stored("n_dof", FLOATS[:1], ("systems",), 1),
        Stored("heat", FLOATS[:1], ("systems",)),
        Stored("replicas", WHOLE, ("systems",), 0),
        Stored("atom_in_system", WHOLE, ("atoms",), 0),
        Stored("spread", FLOATS, ("systems",), 0, optional=True),
        Stored("limit", FLOATS[:1], ("systems",), 1e-12, optional=True),
        Stored("charges", FLOATS, ("atoms",), optional=True),
        Stored("strain_gradient", FLOATS, ("systems", 3, 3), optional=True),
    )

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
    charges: Tensor | None = None
    strain_gradient: Tensor | None = None

    @property
    def velocities(self) -> Tensor:
        """Velocities, [n_atoms, 3] Å / ASE time."""
        return self.momenta / self.masses.unsqueeze(1)

    @property
    def kinetic_energy(self) -> Tensor:
        """Kinetic energy, [n_systems] eV."""
        return 0.5 * self.per_system((self.momenta * self.momenta).sum(1) / self.masses)

    def per_system(self, values: Tensor) -> Tensor:
        """Return sums of atoms' values [n_atoms, ...] over each system, [n_systems, ...]."""
        if self.system.n_systems == 1:
            return values.sum(0, keepdim=True)
        return segment_sum(values, self.system.system_idx, self.system.n_systems)

    @property
    def temperature(self) -> Tensor:
        """Temperature of the motion that `n_dof` counts, [n_systems] K.

        Motion of the centre of mass and rotation do not count as heat if they are conserved.
        """
        if not bool((self.left_out > 0).any()):
            return self.temperature_of_all_motion
        thermal = self.momenta - self.momenta_of_the_whole()
        return self._kelvin(0.5 * self.per_system((thermal * thermal).sum(1) / self.masses))

    @property
    def temperature_of_all_motion(self) -> Tensor:
        """Temperature that includes drift and rotation, [n_systems] K; at least `temperature`."""
        return self._kelvin(self.kinetic_energy)

    def _kelvin(self, energy: Tensor) -> Tensor:
        return 2 * energy / (self.n_dof * units.kB)

    @property
    def left_out(self) -> Tensor:
        """Degrees of freedom that `n_dof` leaves out, [n_systems]: 0, 3 (drift), 5 or 6 (both).

        It is 5 for two atoms, which do not rotate about their line.
        """
        mobile = torch.ones_like(self.masses)
        if self.fixed is not None:
            mobile = mobile.masked_fill(self.fixed, 0.0)
        return (3 * self.per_system(mobile) - self.n_dof).round()

    def momenta_of_the_whole(self) -> Tensor:
        """Return momenta of drift and rotation, [n_atoms, 3], as far as `n_dof` leaves them out.

        While steps are recorded, the host does not wait for the device.
        """
        left_out, recorded = self.left_out.unsqueeze(1), isinstance(self.step, Tensor)
        if not recorded and not bool((left_out > 0).any()):
            return torch.zeros_like(self.momenta)
        idx = self.system.system_idx
        mass = self.per_system(self.masses).unsqueeze(1)
        drift = (left_out > 0) * self.per_system(self.momenta) / mass
        velocity = drift[idx]
        if recorded or bool((left_out > 3).any()):
            velocity = velocity + self._turning(left_out, mass)
        return self.masses.unsqueeze(1) * velocity

    def _turning(self, left_out: Tensor, mass: Tensor) -> Tensor:
        """Return velocities of rotation [n_atoms, 3]; `left_out` and `mass` are [n_systems, 1]."""
        idx, weights = self.system.system_idx, self.masses.unsqueeze(1)
        centre = self.per_system(weights * self.system.positions) / mass
        arms = self.system.positions - centre[idx]
        spin = self.per_system(torch.linalg.cross(arms, self.momenta))  # [n_systems, 3]
        outer = self.per_system(weights.unsqueeze(2) * arms.unsqueeze(2) * arms.unsqueeze(1))
        eye = torch.eye(3, dtype=outer.dtype, device=outer.device)
        trace = outer.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        inertia = torch.where(left_out.unsqueeze(2) > 3, trace.unsqueeze(2) * eye - outer, eye)
        a, b, c = inertia.unbind(1)
        adjugate = torch.stack(
            [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1
        )
        determinant = (a * adjugate[:, 0]).sum(1, keepdim=True)
        turning = (adjugate @ spin.unsqueeze(2)).squeeze(2) / determinant  # symmetric
        # atoms on a line: no rotation about it, and equal inertia about all axes across
        turning = torch.where(determinant > LINEAR * trace**3, turning, spin / trace)
        return torch.linalg.cross(((left_out > 3) * turning)[idx], arms)

    @property
    def conserved(self) -> Tensor:
        """Kinetic and potential energy less heat, [n_systems] eV, constant up to timestep error."""
        return self.kinetic_energy + self.energy - self.heat

    @property
    def dipole(self) -> Tensor:
        """Dipole moment of the charges, [n_systems, 3] e Å; for ions it depends on the origin.

        Raises:
            ValueError: the model does not predict charges.
        """
        if self.charges is None:
            raise ValueError("this model predicts no partial charges, and so no dipole")
        return self.per_system(self.charges.double().unsqueeze(1) * self.system.positions)

    @property
    def stress(self) -> Tensor:
        """Stress of the potential, without motion, [n_systems, 3, 3] eV/Å³, with ASE's sign.

        Raises:
            ValueError: the state has no strain gradient.
        """
        return self._strain_gradient() / volumes(self.system)[:, None, None]

    def _strain_gradient(self) -> Tensor:
        if self.strain_gradient is None:
            raise ValueError(
                "this state has no strain gradient, and so no pressure: begin with "
                "`integrator.init(potential, state)`"
            )
        return self.strain_gradient

    def tension(self) -> Tensor:
        """Return volume times pressure, of motion and forces, [n_systems, 3, 3] eV.

        Raises:
            ValueError: the state has no strain gradient.
        """
        thermal = self.momenta - self.momenta_of_the_whole()
        velocities = thermal / self.masses.unsqueeze(1)
        kinetic = self.per_system(thermal.unsqueeze(2) * velocities.unsqueeze(1))
        return kinetic - self._strain_gradient()

    @property
    def pressure(self) -> Tensor:
        """Pressure of motion and forces, [n_systems] eV/Å³; NaN if not periodic in all directions.

        It includes degrees of freedom that `n_dof` leaves out.

        Raises:
            ValueError: the state has no strain gradient.
        """
        missing = self.left_out * units.kB * self.temperature
        trace = self.tension().diagonal(dim1=1, dim2=2).sum(1)
        pressure = (trace + missing) / (3 * volumes(self.system))
        return torch.where(self.system.pbc.all(1), pressure, torch.nan)

    @classmethod
    def kept_of(cls, result: Result, system: System) -> dict[str, Tensor | None]:
        """Return the fields of a state that are computed with the forces."""
        spread = None
        if result.spread is not None:
            of_atoms = torch.linalg.vector_norm(result.spread.forces, dim=1)
            spread = segment_max(of_atoms, system.system_idx, system.n_systems)
        return {
            "energy": result.energy,
            "forces": result.forces,
            "spread": spread,
            "charges": result.charges,
            "strain_gradient": result.strain_gradient,
        }

    def with_forces(self, result: Result, **changes: Any) -> Self:
        """Return the state with energy and forces at its positions, and with other changes."""
        kept = self.kept_of(result, self.system)
        if self.strain_gradient is None:  # tensors of a state do not become more during a run
            del kept["strain_gradient"]
        return self.replace(**kept, **changes)

    def replace(self, **changes: Any) -> Self:
        """Return the state with other values, like `dataclasses.replace`.

        A step makes eight states, and a state has so many fields that `dataclasses.replace` took a
        tenth of the step of a small molecule.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other

    def as_first(self) -> Self:
        """Return the state without `limit`: from it `md.run` begins a new run."""
        return self.replace(limit=None)

    def with_positions(self, positions: Tensor) -> Self:
        """Return the state with other positions [n_atoms, 3] Å."""
        return self.replace(system=self.system.with_positions(positions))

    def to(self, device: torch.device | str) -> Self:
        """Return the same state on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | System)
        }
        return replace(self, **moved)
