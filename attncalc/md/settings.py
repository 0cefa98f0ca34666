"""`Settings`: the numbers that define a run of `attncalc md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ase import units

from attncalc.md.extra_results import checked_names
from attncalc.md.noise import LOW_32_BITS
from attncalc.md.time_unit import check_friction, check_relaxation, check_timestep
from attncalc.md.velocities import MOST_STEPS
from attncalc.options import finite_number, one_of, positive, true_or_false, whole_number

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
        seed: of initial velocities and random forces; 0 .. 2^32 - 1. None: 0, or if the atoms have
            velocities, a number made of them: else a run that continues another one would repeat
            its noise.
        thermostat: "langevin" or "bussi", of "nvt": see `attncalc.md.integrators`.
        relaxation: relaxation time of velocity rescaling ("bussi", "npt"), ASE time units (100 *
            ase.units.fs).
        cell_relaxation: relaxation time of the cell in "npt", ASE time units (1000 * ase.units.fs).
        compressibility: 1/GPa, roughly that of the material; scales `cell_relaxation`.
        isotropic: whether the cell keeps its shape in "npt".
        write: further results in the trajectory, "charges", "dipole" and "stress", see
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
    seed: int | None = None
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
        one_of("ensemble", self.ensemble, ENSEMBLES)
        whole_number("n_steps", self.n_steps, 1, MOST_STEPS)
        whole_number("every", self.every, 1, MOST_STEPS)
        # the range of the noise of attncalc's integrators, so that a seed is valid for ASE's, too
        if self.seed is not None:
            whole_number("seed", self.seed, 0, LOW_32_BITS)
        check_timestep(self.timestep)
        check_friction(self.friction)
        positive("temperature", self.temperature)
        finite_number("pressure", self.pressure)
        if not isinstance(self.thermostat, str):
            raise ValueError(f"thermostat must be a name, got {self.thermostat!r}")
        check_relaxation("relaxation", self.relaxation)
        check_relaxation("cell_relaxation", self.cell_relaxation)
        positive("compressibility", self.compressibility)
        true_or_false("isotropic", self.isotropic)
        object.__setattr__(self, "write", checked_names(self.write))
