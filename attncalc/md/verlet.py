"""`Verlet`: constant energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from attncalc.md.force import Force, Function
from attncalc.md.fused_steps import kick_drift
from attncalc.md.inputs import Start
from attncalc.md.integrator import Column, to_python_numbers
from attncalc.md.settings import Settings
from attncalc.md.splitting import drift, kick, kick_by_new_forces
from attncalc.md.start import initial_state
from attncalc.md.state import MDState
from attncalc.md.time_unit import check_timestep
from attncalc.md.velocities import runaway
from attncalc.potential import Potential

# K, of drawn velocities if no temperature is given
TEMPERATURE = 300.0


@dataclass(frozen=True)
class Verlet:
    """Constant energy: velocity Verlet, B A B (B changes momenta by forces, A positions).

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).

    Raises:
        ValueError: the timestep is not positive and finite, or not in ASE's unit.
    """

    ensemble: ClassVar[str] = "nve"
    thermometer: ClassVar[str] = "nve"
    times: ClassVar[tuple[str, ...]] = ("timestep",)
    state_type: ClassVar[type[MDState]] = MDState
    columns: ClassVar[tuple[Column, ...]] = ()

    timestep: float

    def __post_init__(self) -> None:
        to_python_numbers(self)
        check_timestep(self.timestep)

    @classmethod
    def from_settings(cls, settings: Settings) -> Verlet:
        """Make the integrator of a run by `attncalc md`."""
        return cls(settings.timestep)

    def init(
        self,
        potential: Potential | Force | Function,
        structures: Start,
        *,
        temperature: float | Sequence[float] | None = None,
        seed: int | None = None,
        **given: Any,
    ) -> MDState:
        """Make the first state; see `initial_state`.

        Args:
            potential: the model, or a function `System -> Result`.
            structures: of ASE, one or several, with their masses, velocities and `FixAtoms`; or the
                state in which another run ended; or a `System`, which has none of these.
            temperature: K, one number, or one for each system, of new velocities. If not given,
                those of the structures are used; if these have none, they are drawn at 300 K.
            seed: of drawn velocities; None: see `initial_state`.
            given: momenta, masses, fixed, replicas, new_velocities, device; see `initial_state`.
        """
        given = {"new_velocities": temperature is not None, **given}
        kelvin = TEMPERATURE if temperature is None else temperature
        return initial_state(MDState, potential, structures, kelvin, "nve", seed=seed, **given)

    def step(self, state: MDState, force: Function) -> MDState:
        """Return the state one timestep later."""
        h = self.timestep
        state = kick_drift(state, h) or drift(kick(state, h / 2), h)
        state = kick_by_new_forces(state, force, h / 2)
        return state.replace(step=state.step + 1)

    def highest_temperature(self, first: MDState) -> Tensor:
        """Return the temperatures [n_systems] K beyond which a run from `first` has exploded."""
        return runaway(first.temperature)
