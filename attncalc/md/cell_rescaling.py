"""`CellRescaling`: constant temperature and pressure.

Stochastic cell rescaling, isotropic (Bernetti & Bussi, J. Chem. Phys. 153, 114107, 2020) or of all
lengths and angles (Del Tatto, Raiteri, Bernetti & Bussi, Appl. Sci. 12, 1139, 2022), with velocity
rescaling as the thermostat. In a time h the cell is strained by

    M = β h / (3 τ) (P - P₀) + sqrt(2 kB T β h / (3 τ V)) R        cell -> cell exp(M)

with the pressure tensor P and the symmetric part R of a matrix of normal random numbers; if the
cell keeps its shape, only the trace of M is used. The exponential includes the Itô terms of the
papers. The stationary distribution of the positions of *all* atoms and of the cell is
exp(-(U + P₀ V) / kB T):

* The ideal-gas pressure is that of all particles, even if the momentum of the centre of mass is
  conserved: the missing degrees of freedom contribute kB T each.
* Fixed atoms keep their positions relative to the cell, and contribute by their forces only.

| papers            | here                                      |
|-------------------|-------------------------------------------|
| P₀, β_T, τ_p      | `pressure`, `compressibility`, `cell_relaxation` |
| V P_int           | `MDState.tension`                         |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from ase import units
from torch import Tensor

from attncalc.md.force import Function
from attncalc.md.fused_steps import rescale_at_once
from attncalc.md.integrator import of_systems, plain_temperatures, to_python_numbers
from attncalc.md.noise import CELL, normal_noise
from attncalc.md.settings import Settings
from attncalc.md.splitting import drift, kick, kick_by_new_forces, rescale
from attncalc.md.start import AtTemperature
from attncalc.md.state import MDState
from attncalc.md.time_unit import check_relaxation, check_timestep
from attncalc.neighbors import ImpossiblePositions
from attncalc.options import finite_number, positive
from attncalc.result import volumes

# of the series of exp: exact to rounding for a strain of 0.1 in a step, which is far too much
TERMS = 8
# of a step, also of a gas: a cell that collapses has so many neighbours that they fill the memory
LARGEST_STRAIN = 0.5


@dataclass(frozen=True)
class CellRescaling(AtTemperature):
    """Constant temperature and pressure: R' and B A B of velocity Verlet and R of `Bussi`.

    B changes momenta by forces, A positions by momenta. R' strains cell, positions and momenta
    between the first B and A, where forces are known; see `attncalc.md.cell_rescaling`. The
    orientation of the cell does not change.

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).
        temperature: K, one number, or one for each system.
        pressure: eV/Å³ (5 * ase.units.GPa).
        relaxation: relaxation time of the kinetic energy, ASE time units (100 * ase.units.fs).
        cell_relaxation: relaxation time of the volume, ASE time units (1000 * ase.units.fs), if
            `compressibility` is that of the material.
        compressibility: Å³/eV (0.1 / ase.units.GPa), roughly: it only scales `cell_relaxation`.
        isotropic: whether the cell keeps its shape.

    Raises:
        ValueError: a number is not finite, one other than the pressure is not positive, or a time
            is not in ASE's unit.
    """

    ensemble: ClassVar[str] = "npt"
    thermometer: ClassVar[str] = "npt"
    times: ClassVar[tuple[str, ...]] = ("timestep", "relaxation", "cell_relaxation")

    timestep: float
    temperature: float | tuple[float, ...]
    pressure: float
    relaxation: float
    cell_relaxation: float
    compressibility: float
    isotropic: bool = True

    def __post_init__(self) -> None:
        to_python_numbers(self)
        check_timestep(self.timestep)
        check_relaxation("relaxation", self.relaxation)
        check_relaxation("cell_relaxation", self.cell_relaxation)
        positive("compressibility", self.compressibility)
        finite_number("pressure", self.pressure)
        object.__setattr__(self, "temperature", plain_temperatures(self.temperature))

    @classmethod
    def from_settings(cls, settings: Settings) -> CellRescaling:
        """Make the integrator of a run by `attncalc md`."""
        return cls(
            timestep=settings.timestep,
            temperature=settings.temperature,
            pressure=settings.pressure * units.GPa,
            relaxation=settings.relaxation,
            cell_relaxation=settings.cell_relaxation,
            compressibility=settings.compressibility / units.GPa,
            isotropic=settings.isotropic,
        )

    def step(self, state: MDState, force: Function) -> MDState:
        """Return the state one timestep later."""
        h, kelvin = self.timestep, of_systems(self.temperature, state.system)
        tension = state.tension()
        strain = self._strain(state, tension, kelvin)
        is_recorded = isinstance(state.step, Tensor)
        if not is_recorded:  # else the host cannot look
            _refuse_collapse(strain)
        state, turned = deform(kick(state, h / 2), strain, turns_back=not self.isotropic)
        state = drift(state, h)
        state = kick_by_new_forces(state, force, h / 2)
        # work of the barostat by the trapezoidal rule: both ends are known
        work = -0.5 * ((tension * strain).sum((1, 2)) + (state.tension() * turned).sum((1, 2)))
        state, bath = state.replace(heat=state.heat + work), (kelvin, self.relaxation)
        state = rescale_at_once(state, h, *bath) or rescale(state, h, *bath)
        return state.replace(step=state.step + 1)

    def _strain(self, state: MDState, tension: Tensor, temperature: Tensor) -> Tensor:
        """Return M [n_systems, 3, 3] for a tension of that shape and temperature [n_systems]."""
        volume, thermal = volumes(state.system), units.kB * temperature
        eye = torch.eye(3, dtype=tension.dtype, device=tension.device)
        mobility = self.timestep * self.compressibility / (3 * self.cell_relaxation)  # Å³/eV
        missing = state.left_out / 3 * thermal  # eV
        excess = (tension + missing[:, None, None] * eye) / volume[:, None, None]
        noise = _noise_of_cells(state)
        width = torch.sqrt(2 * mobility * thermal / volume)[:, None, None]
        strain = mobility * (excess - self.pressure * eye) + width * noise
        return _trace(strain)[:, None, None] / 3 * eye if self.isotropic else strain


def _refuse_collapse(strain: Tensor) -> None:
    """Refuse a strain [n_systems, 3, 3] of one step with which the cell would collapse.

    A GPU would have to wait for the host: there, neighbour lists refuse a cell without volume.
    """
    if strain.device.type == "cpu" and (largest := float(strain.abs().amax())) > LARGEST_STRAIN:
        raise ImpossiblePositions(
            f"the barostat would strain the cell by {100 * largest:.3g} % in one step: is the "
            "pressure in the right unit (of attncalc md: GPa)? Else use a longer relaxation time "
            "of the cell, or a smaller compressibility"
        )


def deform(state: MDState, strain: Tensor, *, turns_back: bool) -> tuple[MDState, Tensor]:
    """R': transform positions and cell by a strain, and thermal momenta by its inverse.

    Args:
        state: before.
        strain: [n_systems, 3, 3], symmetric.
        turns_back: rotate everything so that the first vector of the cell keeps its direction, and
            the first two keep their plane.

    Returns:
        The state, and the strain after the rotation.
    """
    system, idx = state.system, state.system.system_idx
    forwards, backwards = _exp(torch.stack([strain, -strain]))
    if turns_back:
        turn = _frame(system.cell @ forwards).mT @ _frame(system.cell)
        forwards, backwards, strain = forwards @ turn, backwards @ turn, turn.mT @ strain @ turn
    whole = state.momenta_of_the_whole()
    thermal = state.momenta - whole
    positions = (system.positions.unsqueeze(1) @ forwards[idx]).squeeze(1)
    momenta = whole + (thermal.unsqueeze(1) @ backwards[idx]).squeeze(1)
    system = replace(system, positions=positions, cell=system.cell @ forwards)
    return state.replace(system=system, momenta=momenta), strain


def _noise_of_cells(state: MDState) -> Tensor:
    """Return the symmetric part of matrices of normal numbers, [n_systems, 3, 3]."""
    n, device = state.system.n_systems, state.momenta.device
    row = torch.arange(3 * n, device=device)
    noise = normal_noise(state.seed, state.step, state.replicas, row // 3, row % 3, purpose=CELL)
    matrices = noise.reshape(n, 3, 3)
    return 0.5 * (matrices + matrices.mT)


def _exp(matrices: Tensor) -> Tensor:
    """Return exponentials of [..., 3, 3]; `torch.matrix_exp` would wait for the device."""
    eye = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    result = eye.expand_as(matrices)
    for k in range(TERMS, 0, -1):
        result = eye + matrices @ result / k
    return result


def _frame(cell: Tensor) -> Tensor:
    """Return axes [n_systems, 3, 3]: along the first cell vector, in the plane of two, normal."""
    first = _unit(cell[:, 0])
    across = _unit(torch.linalg.cross(cell[:, 0], cell[:, 1]))
    return torch.stack([first, torch.linalg.cross(across, first), across], dim=1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)
