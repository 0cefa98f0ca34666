"""`Settings`: the numbers that define a run of `attncalc md`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from ase import units

from attncalc.md.extra_results import checked_names
from attncalc.md.noise import LOW_32_BITS
from attncalc.md.time_unit import check_friction, check_relaxation, check_timestep
from attncalc.md.velocities import MOST_STEPS
from attncalc.nn.options import whole_number

ENSEMBLES = ("nve", "nvt", "npt")


@dataclass(frozen=True)
class Settings:
    """Numbers that define a run.

    Attributes:
        ensemble: "nve" (velocity Verlet), "nvt" (Langevin, BAOAB, or Bussi's velocity rescaling) or
            "npt" (stochastic cell rescaling; with ASE's integrators, Martyna-Tobias-Klein).
        n_steps: number of steps.
        timestep: ASE time units (0.5 * ase.units.fs).
        temperature: K; in "nve" that of the initial velocities, unless the atoms have some.
        friction: 1 / ASE time (0.01 / ase.units.fs), of Langevin dynamics.
        pressure: GPa, of "npt".
        every: steps between frames of the trajectory and rows of the log.
        seed: of initial velocities and random forces; 0 .. 2^32 - 1.
        thermostat: "langevin" or "bussi", of "nvt": see `attncalc.md.integrators`.
        relaxation: relaxation time of velocity rescaling ("bussi", "npt"), ASE time units (100 *
            ase.units.fs).
        cell_relaxation: relaxation time of the cell in "npt", ASE time units (1000 * ase.units.fs).
        compressibility: 1/GPa, roughly that of the material; scales `cell_relaxation`.
        isotropic: whether the cell keeps its shape in "npt".
        write: further results in the trajectory, "charges" and "dipole", see
            `attncalc.md.extra_results`.

    Raises:
        ValueError: a setting is impossible; the message names it.
    """

    ensemble: str = "nvt"
    n_steps: int = 1000
    timestep: float = 0.5 * units.fs
    temperature: float = 300.0
    friction: float = 0.01 / units.fs
    pressure: float = 0.0
    every: int = 10
    seed: int = 0
    thermostat: str = "langevin"
    relaxation: float = 100 * units.fs
    cell_relaxation: float = 1000 * units.fs
    compressibility: float = 0.1
    isotropic: bool = True
    write: tuple[str, ...] = ()

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Settings:
        """Make settings from what `stored` returned, also in version 0.1, which had times in fs.

        Raises:
            TypeError, ValueError: an entry is unknown, of another type or out of range.
        """
        options = dict(stored)
        if options.pop("time", "fs") == "fs":
            if isinstance(options.get("timestep"), int | float):
                options["timestep"] = options["timestep"] * units.fs
            if isinstance(options.get("friction"), int | float):
                options["friction"] = options["friction"] / units.fs
        return cls(**options)

    def stored(self) -> dict[str, Any]:
        """Return all settings, for a JSON file."""
        return {**asdict(self), "time": "ASE"}

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble must be {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        for name in ("n_steps", "every"):
            if not is_integer(value := getattr(self, name)) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
            whole_number(name, value, 1, MOST_STEPS)
        # the range of the noise of attncalc's integrators, so that a seed is valid for ASE's, too
        if not is_integer(self.seed) or not 0 <= self.seed <= LOW_32_BITS:
            raise ValueError(f"seed must be an integer from 0 to 2^32 - 1, got {self.seed!r}")
        check_timestep(self.timestep)
        check_friction(self.friction)
        if not _is_finite(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature!r}")
        if not _is_finite(self.pressure):
            raise ValueError(f"pressure must be a finite number, got {self.pressure!r}")
        if not isinstance(self.thermostat, str):
            raise ValueError(f"thermostat must be a name, got {self.thermostat!r}")
        check_relaxation("relaxation", self.relaxation)
        check_relaxation("cell_relaxation", self.cell_relaxation)
        if not _is_finite(self.compressibility) or self.compressibility <= 0:
            raise ValueError(f"compressibility must be positive, got {self.compressibility!r}")
        if not isinstance(self.isotropic, bool):
            raise ValueError(f"isotropic must be true or false, got {self.isotropic!r}")
        object.__setattr__(self, "write", checked_names(self.write))


def is_integer(value: object) -> TypeGuard[int]:
    """Return True if a value is a whole number, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return -math.inf < value < math.inf  # type: ignore[operator]  # as in nn.options
