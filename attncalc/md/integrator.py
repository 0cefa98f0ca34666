"""`Integrator`: protocol of integrators, one file each; `attncalc.md.integrators` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from ase import units
from torch import Tensor

from attncalc.md.force import Force, Function
from attncalc.md.inputs import Start
from attncalc.md.log_file import SPREAD
from attncalc.md.settings import Settings
from attncalc.md.state import MDState
from attncalc.ops import kept_tensor
from attncalc.options import positive
from attncalc.potential import Potential
from attncalc.system import System


class Column(NamedTuple):
    """Number of every system that a run logs besides temperature and energies.

    Attributes:
        in_log: header of the column in the log, with the unit.
        name: of the observable in a trajectory.
        unit: as written there.
        of: maps a state to [n_systems].
    """

    in_log: str
    name: str
    unit: str
    of: Callable[[Any], Tensor]


PRESSURE = Column("pressure_GPa", "pressure", "GPa", lambda state: state.pressure / units.GPa)
# of a committee
FORCE_SPREAD = Column(SPREAD, "force_spread", "eV Angstrom-1", lambda state: state.spread)


class Integrator(Protocol):
    """Frozen parameters, and a step from a state to the next.

    Attributes:
        timestep: ASE time units.
        ensemble: "nve", "nvt" or "npt".
        thermometer: the ensemble whose degrees of freedom it moves, see `Thermometer.for_run`.
        times: names of the parameters in units of time, or of 1 / time.
        state_type: class of its states, which lists the tensors of a checkpoint.
        columns: of the log, besides those of every run.
    """

    ensemble: ClassVar[str]
    thermometer: ClassVar[str]
    times: ClassVar[tuple[str, ...]]
    state_type: ClassVar[type[MDState]]
    columns: ClassVar[tuple[Column, ...]]

    @property
    def timestep(self) -> float:
        """ASE time units."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Integrator:
        """Make the integrator of a run by `attncalc md`."""

    def init(
        self, potential: Potential | Force | Function, structures: Start, **given: Any
    ) -> MDState:
        """Make the first state of a run."""

    def step(self, state: Any, force: Function) -> MDState:
        """Return the state one timestep later."""

    def highest_temperature(self, first: MDState) -> Tensor:
        """Return the temperatures [n_systems] K beyond which a run from `first` has exploded."""


def own_columns(integrator: Integrator, state: MDState) -> tuple[Column, ...]:
    """Return the columns of a run that not every run has."""
    return (
        *integrator.columns,
        *(() if state.strain_gradient is None else (PRESSURE,)),
        *(() if state.spread is None else (FORCE_SPREAD,)),
    )


def to_python_numbers(integrator: Any) -> None:
    """Replace settings that are NumPy scalars by Python numbers, which checkpoints can hold."""
    for name, value in list(vars(integrator).items()):
        if isinstance(value, np.generic):
            object.__setattr__(integrator, name, value.item())


def plain_temperatures(given: Any) -> float | tuple[float, ...]:
    """Return one temperature or several, of any numeric type, as Python floats.

    Raises:
        ValueError: they are not numbers, or one is not positive and finite.
    """
    temperatures = np.asarray(given)  # a tensor, an array, a list ...
    if temperatures.dtype.kind not in "iuf" or not temperatures.size:
        raise ValueError(f"temperature must be a number or numbers, got {given!r}")
    temperatures = temperatures.astype(float)
    for value in temperatures.ravel():
        positive("temperature", float(value))
    return tuple(temperatures.tolist()) if temperatures.ndim else float(temperatures)


def of_systems(temperature: Any, system: System) -> Tensor:
    """Return temperatures [n_systems] K, or [1] if one number is given.

    Raises:
        ValueError: there are several, but not one for each system.
    """
    if isinstance(temperature, float):  # first: the tests below take longer
        return kept_tensor((temperature,), system.device)
    if isinstance(temperature, np.ndarray | Tensor) and temperature.ndim == 0:
        return kept_tensor((float(temperature),), system.device)
    if not isinstance(temperature, Sequence | np.ndarray | Tensor):
        return kept_tensor((float(temperature),), system.device)
    if len(temperature) != system.n_systems:
        raise ValueError(
            f"temperature must be one number or one for each of the {system.n_systems} systems, "
            f"got {len(temperature)}"
        )
    return kept_tensor(tuple(map(float, temperature)), system.device)
