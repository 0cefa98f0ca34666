"""`Bussi`: constant temperature by stochastic velocity rescaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attncalc.md.force import Function
from attncalc.md.fused_steps import kick_drift, rescale_at_once
from attncalc.md.integrator import of_systems, plain_temperatures, to_python_numbers
from attncalc.md.settings import Settings
from attncalc.md.splitting import drift, kick, kick_by_new_forces, rescale
from attncalc.md.start import AtTemperature
from attncalc.md.state import MDState
from attncalc.md.time_unit import check_relaxation, check_timestep


@dataclass(frozen=True)
class Bussi(AtTemperature):
    """Constant temperature: velocity Verlet and velocity rescaling, B A B R.

    B changes momenta by forces, A positions by momenta, R rescales momenta (Bussi, Donadio &
    Parrinello, J. Chem. Phys. 126, 014101, 2007). It disturbs the dynamics less than friction. The
    motion of the centre of mass and, for a molecule, rotation are conserved, as in "nve".

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).
        temperature: K, one number, or one for each system.
        relaxation: relaxation time of the kinetic energy, ASE time units (100 * ase.units.fs).

    Raises:
        ValueError: a number is not positive and finite, or a time is not in ASE's unit.
    """

    ensemble: ClassVar[str] = "nvt"
    thermometer: ClassVar[str] = "nve"
    times: ClassVar[tuple[str, ...]] = ("timestep", "relaxation")

    timestep: float
    temperature: float | tuple[float, ...]
    relaxation: float

    def __post_init__(self) -> None:
        to_python_numbers(self)
        check_timestep(self.timestep)
        check_relaxation("relaxation", self.relaxation)
        object.__setattr__(self, "temperature", plain_temperatures(self.temperature))

    @classmethod
    def from_settings(cls, settings: Settings) -> Bussi:
        """Make the integrator of a run by `attncalc md`."""
        return cls(settings.timestep, settings.temperature, settings.relaxation)

    def step(self, state: MDState, force: Function) -> MDState:
        """Return the state one timestep later."""
        h = self.timestep
        bath = (of_systems(self.temperature, state.system), self.relaxation)
        state = kick_drift(state, h) or drift(kick(state, h / 2), h)
        state = kick_by_new_forces(state, force, h / 2)
        state = rescale_at_once(state, h, *bath) or rescale(state, h, *bath)
        return state.replace(step=state.step + 1)
