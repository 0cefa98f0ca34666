"""`Langevin`: constant temperature by friction and random forces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attncalc.md.force import Function
from attncalc.md.fused_steps import kick_drift_thermalize_drift
from attncalc.md.integrator import of_systems, plain_temperatures, to_python_numbers
from attncalc.md.settings import Settings
from attncalc.md.splitting import drift, kick, kick_by_new_forces, thermalize
from attncalc.md.start import AtTemperature
from attncalc.md.state import MDState
from attncalc.md.time_unit import check_friction, check_timestep


@dataclass(frozen=True)
class Langevin(AtTemperature):
    """Constant temperature: Langevin dynamics, B A O A B (Leimkuhler & Matthews, AMRX 2013, 34).

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).
        temperature: K, one number, or one for each system.
        friction: 1 / ASE time; 0.01 / ase.units.fs is a relaxation time of 100 fs.

    Raises:
        ValueError: a number is not positive and finite, or a time is not in ASE's unit.
    """

    ensemble: ClassVar[str] = "nvt"
    thermometer: ClassVar[str] = "nvt"
    times: ClassVar[tuple[str, ...]] = ("timestep", "friction")

    timestep: float
    temperature: float | tuple[float, ...]
    friction: float

    def __post_init__(self) -> None:
        to_python_numbers(self)
        check_timestep(self.timestep)
        check_friction(self.friction)
        object.__setattr__(self, "temperature", plain_temperatures(self.temperature))

    @classmethod
    def from_settings(cls, settings: Settings) -> Langevin:
        """Make the integrator of a run by `attncalc md`."""
        return cls(settings.timestep, settings.temperature, settings.friction)

    def step(self, state: MDState, force: Function) -> MDState:
        """Return the state one timestep later."""
        h = self.timestep
        bath = (of_systems(self.temperature, state.system), self.friction)
        moved = kick_drift_thermalize_drift(state, h, *bath)
        if moved is None:
            moved = drift(kick(state, h / 2), h / 2)
            moved = drift(thermalize(moved, h, *bath), h / 2)
        state = kick_by_new_forces(moved, force, h / 2)
        return state.replace(step=state.step + 1)
