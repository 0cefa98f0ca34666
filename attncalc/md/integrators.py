"""Velocity Verlet and Langevin dynamics, one step at a time.

| letter | what it does in a time h                                             | here    |
|--------|----------------------------------------------------------------------|---------|
| B      | momenta += h forces                                                  | `kick`  |
| A      | positions += h momenta / masses                                      | `drift` |
| O      | momenta = c momenta + sqrt((1 - c²) m kB T) noise, c = exp(-gamma h) | `shake` |

Velocity Verlet is B A B, Langevin dynamics B A O A B (Leimkuhler & Matthews, AMRX 2013, 34), with
forces computed once before the last B.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import units
from ase.constraints import FixAtoms
from ase.data import atomic_masses
from numpy.typing import ArrayLike
from torch import Tensor

from attncalc.md.forces import Forces, forces_of
from attncalc.md.fused_steps import kick_drift, kick_drift_shake_drift
from attncalc.md.noise import LOW_32_BITS, normal_noise
from attncalc.md.state import MDState
from attncalc.md.time_unit import check_friction, check_timestep
from attncalc.md.velocities import Thermometer, runaway
from attncalc.nn.options import positive, whole_number
from attncalc.potential import Potential, Result
from attncalc.system import System

Force = Callable[[System], Result]

# eV of an atom: no potential energy holds it for a step
LARGEST_KINETIC_ENERGY = 1e6


def kick(state: MDState, time: float) -> MDState:
    """B: momenta change by forces; those of fixed atoms stay zero."""
    momenta = torch.add(state.momenta, state.forces, alpha=time)
    return state.having(momenta=_held(state, momenta))


def drift(state: MDState, time: float) -> MDState:
    """A: positions change by velocities."""
    positions = torch.addcdiv(
        state.system.positions, state.momenta, state.masses.unsqueeze(1), value=time
    )
    return state.at(positions)


def shake(state: MDState, time: float, temperature: Tensor, friction: float) -> MDState:
    """O: friction and random forces; what energy they bring counts as heat.

    Args:
        state: before.
        time: ASE time units.
        temperature: [n_systems] K.
        friction: 1 / ASE time.
    """
    kept = math.exp(-friction * time)
    thermal = units.kB * (1 - kept * kept) * temperature  # [n_systems] eV
    of_atoms = thermal if thermal.shape[0] == 1 else thermal[state.system.system_idx]
    width = torch.sqrt(state.masses * of_atoms).unsqueeze(1)
    noise = normal_noise(
        state.seed, state.step, state.replicas, state.system.system_idx, state.atom_in_system
    )
    momenta = _held(state, torch.addcmul(kept * state.momenta, width, noise))
    # (p'² - p²) / 2 m
    twice = ((momenta - state.momenta) * (momenta + state.momenta)).sum(1) / state.masses
    return state.having(momenta=momenta, heat=state.heat + 0.5 * state.per_system(twice))


def with_forces(state: MDState, result: Result) -> MDState:
    """The state with energy and forces at its positions."""
    spread = None
    if result.spread is not None:
        of_atoms = torch.linalg.vector_norm(result.spread.forces, dim=1)
        spread = torch.zeros_like(result.energy)
        spread = spread.scatter_reduce(0, state.system.system_idx, of_atoms, "amax")
    return state.having(energy=result.energy, forces=result.forces, spread=spread)


def _held(state: MDState, momenta: Tensor) -> Tensor:
    return momenta if state.fixed is None else momenta.masked_fill(state.fixed.unsqueeze(1), 0.0)


@dataclass(frozen=True)
class Verlet:
    """Constant energy: velocity Verlet.

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).

    Raises:
        ValueError: the timestep is not positive and finite, or not in ASE's unit.
    """

    timestep: float

    def __post_init__(self) -> None:
        check_timestep(self.timestep)

    def init(
        self,
        potential: Potential | Forces,
        system: System,
        *,
        temperature: float | Sequence[float] = 300.0,
        seed: int = 0,
        **given: Any,
    ) -> MDState:
        """The state to start from; see `initial_state`, which takes what else is `given`.

        Args:
            potential: the model.
            system: the structures.
            temperature: K, of the initial velocities: one number, or one for each system.
            seed: of the initial velocities.
            given: momenta, masses, fixed, replicas.
        """
        return initial_state(forces_of(potential), system, temperature, "nve", seed=seed, **given)

    def step(self, state: MDState, force: Force) -> MDState:
        """The state one timestep later."""
        h = self.timestep
        state = kick_drift(state, h) or drift(kick(state, h / 2), h)
        state = kick(with_forces(state, force(state.system)), h / 2)
        return state.having(step=state.step + 1)

    def highest_temperature(self, first: MDState) -> Tensor:
        """[n_systems] K: beyond this, a run from `first` has lost its molecules."""
        return runaway(first.temperature)


@dataclass(frozen=True)
class Langevin:
    """Constant temperature: Langevin dynamics by BAOAB.

    Attributes:
        timestep: ASE time units (0.5 * ase.units.fs).
        temperature: K, one number, or one for each system.
        friction: 1 / ASE time (0.01 / ase.units.fs).

    Raises:
        ValueError: a number is not positive and finite, or the timestep not in ASE's unit.
    """

    timestep: float
    temperature: float | tuple[float, ...]
    friction: float

    def __post_init__(self) -> None:
        check_timestep(self.timestep)
        check_friction(self.friction)
        temperatures = np.asarray(self.temperature)  # a tensor, an array, a list ...
        if temperatures.dtype.kind not in "iuf" or not temperatures.size:
            raise ValueError(f"temperature must be a number or numbers, got {self.temperature!r}")
        temperatures = temperatures.astype(float)
        plain = tuple(temperatures.tolist()) if temperatures.ndim else float(temperatures)
        object.__setattr__(self, "temperature", plain)
        for value in temperatures.ravel():
            positive("temperature", float(value))

    def init(
        self, potential: Potential | Forces, system: System, *, seed: int = 0, **given: Any
    ) -> MDState:
        """The state to start from, at this temperature; see `initial_state`.

        Args:
            potential: the model.
            system: the structures.
            seed: of initial velocities and random forces.
            given: momenta, masses, fixed, replicas.
        """
        return initial_state(
            forces_of(potential), system, self.temperature, "nvt", seed=seed, **given
        )

    def step(self, state: MDState, force: Force) -> MDState:
        """The state one timestep later."""
        h = self.timestep
        bath = (_of_systems(self.temperature, state.system), self.friction)
        moved = kick_drift_shake_drift(state, h, *bath)
        if moved is None:
            moved = drift(kick(state, h / 2), h / 2)
            moved = drift(shake(moved, h, *bath), h / 2)
        state = kick(with_forces(moved, force(moved.system)), h / 2)
        return state.having(step=state.step + 1)

    def highest_temperature(self, first: MDState) -> Tensor:
        """[n_systems] K: beyond this, a run from `first` has lost its molecules."""
        return runaway(
            torch.maximum(first.temperature, _of_systems(self.temperature, first.system))
        )


Integrator = Verlet | Langevin


def initial_state(
    force: Forces,
    system: System,
    temperature: float | Sequence[float],
    ensemble: str,
    *,
    seed: int = 0,
    momenta: Tensor | ArrayLike | None = None,
    masses: Tensor | ArrayLike | None = None,
    fixed: Tensor | ArrayLike | None = None,
    replicas: Tensor | ArrayLike | None = None,
) -> MDState:
    """Velocities, energy and forces of a batch that is about to move.

    Args:
        force: of the model; where that is, the state will be.
        system: the structures.
        temperature: K, of velocities drawn: one number, or one for each system.
        ensemble: "nve" or "nvt": which motion counts as heat, see `attncalc.md.velocities`.
        seed: of velocities drawn, and of the noise; 0 .. 2^32 - 1.
        momenta: [n_atoms, 3] amu Å / ASE time; drawn if not given, of exactly this temperature.
        masses: [n_atoms] amu; the elements' if not given.
        fixed: [n_atoms], bool: atoms that stay where they are.
        replicas: [n_systems], int64, not negative: names of the systems' noise; 0, 1, ... if not
            given.

    Raises:
        ValueError: the structures are not known to the model, a tensor has the wrong shape, or
            nothing can move.
        TypeError: what is no tensor is no array of numbers either.
    """
    whole_number("seed", seed, 0, LOW_32_BITS)
    system = system.to("cpu")
    n = system.n_systems
    kelvin = _of_systems(temperature, system).expand(n)
    if not (kelvin.isfinite() & (kelvin >= 0)).all():
        raise ValueError(f"temperature must be finite and not negative, got {temperature!r}")
    replicas = torch.arange(n) if replicas is None else _tensor("replicas", replicas).long()
    if replicas.shape != (n,) or (replicas < 0).any() or (replicas > LOW_32_BITS).any():
        raise ValueError(f"replicas must be {n} numbers between 0 and 2^32 - 1")
    if masses is None:
        masses = torch.from_numpy(atomic_masses)[system.atomic_numbers]
    masses = _shaped("masses", masses, (system.n_atoms,)).double()
    if not (masses.isfinite() & (masses > 0)).all():
        raise ValueError("masses must be positive and finite")
    if fixed is not None:
        fixed = _shaped("fixed", fixed, (system.n_atoms,)).bool()
        fixed = fixed if fixed.any() else None
    drawn, n_dof = _drawn(system, kelvin, ensemble, seed, replicas, masses, fixed)
    if momenta is not None:
        drawn = _shaped("momenta", momenta, (system.n_atoms, 3)).double()
    _check_momenta(drawn, masses)
    force.check(system)
    state = MDState(
        system=system,
        momenta=drawn,
        masses=masses,
        fixed=fixed,
        energy=torch.zeros(n, dtype=torch.float64),
        forces=torch.zeros_like(drawn),
        n_dof=n_dof,
        heat=torch.zeros(n, dtype=torch.float64),
        replicas=replicas,
        atom_in_system=system.atom_in_system,
        spread=None,
        step=0,
        seed=seed,
    )
    state = state.having(momenta=_held(state, state.momenta)).to(force.device)
    return with_forces(state, force(state.system))


def _drawn(
    system: System,
    kelvin: Tensor,
    ensemble: str,
    seed: int,
    replicas: Tensor,
    masses: Tensor,
    fixed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Momenta [n_atoms, 3] at exactly these temperatures, degrees of freedom [n_systems].

    Those of a system depend on seed and replica, and on nothing else in the batch.
    """
    held = torch.zeros(system.n_atoms, dtype=torch.bool) if fixed is None else fixed
    parts = zip(system.to_ase(), system.split(masses), system.split(held), strict=True)
    momenta, n_dof = [], []
    for k, (atoms, weights, still) in enumerate(parts):
        atoms.set_masses(weights.numpy())
        if still.any():
            atoms.set_constraint(FixAtoms(mask=still.numpy()))
        thermometer = Thermometer.for_run(atoms, ensemble)
        if kelvin[k] > 0:  # else they start from rest
            rng = np.random.default_rng([seed, int(replicas[k])])
            thermometer.draw(atoms, float(kelvin[k]), rng)
        momenta.append(torch.from_numpy(atoms.get_momenta()))
        n_dof.append(float(thermometer.n_dof))
    return torch.cat(momenta), torch.tensor(n_dof, dtype=torch.float64)


def _check_momenta(momenta: Tensor, masses: Tensor) -> None:
    energies = 0.5 * (momenta * momenta).sum(1) / masses
    wrong = energies > LARGEST_KINETIC_ENERGY  # what is not finite is found by `run`
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"atom {first} moves with {float(energies[first]):.3g} eV, more than "
            f"{LARGEST_KINETIC_ENERGY:.0e} eV: are momenta in amu Å / ASE time, is the temperature "
            "in K?"
        )


def _of_systems(temperature: float | Sequence[float], system: System) -> Tensor:
    """[n_systems] K, or [1] where all have the same.

    Raises:
        ValueError: there are several, but not one for each system.
    """
    if not isinstance(temperature, Sequence | np.ndarray | Tensor):
        return _kelvin((float(temperature),), system.device)
    if len(temperature) != system.n_systems:
        raise ValueError(
            f"temperature must be one number or one for each of the {system.n_systems} systems, "
            f"got {len(temperature)}"
        )
    return _kelvin(tuple(map(float, temperature)), system.device)


@functools.cache
def _kelvin(temperatures: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept for good, not to be changed: recorded steps read it where it is."""
    return torch.tensor(temperatures, dtype=torch.float64, device=device)


def _tensor(name: str, values: Tensor | ArrayLike) -> Tensor:
    """On the CPU; of an array or list, a copy, which nobody else can change."""
    if isinstance(values, Tensor):
        return values.cpu()
    try:
        return torch.from_numpy(np.array(values, order="C"))
    except (TypeError, ValueError):
        kind = type(values).__name__
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {kind}") from None


def _shaped(name: str, values: Tensor | ArrayLike, shape: tuple[int, ...]) -> Tensor:
    tensor = _tensor(name, values)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    return tensor
