"""Elementary operations of integrators by operator splitting; each makes a new state.

| letter | effect in a time h                                                   | here         |
|--------|----------------------------------------------------------------------|--------------|
| B      | momenta += h forces                                                  | `kick`       |
| A      | positions += h momenta / masses                                      | `drift`      |
| O      | momenta = c momenta + sqrt((1 - c²) m kB T) noise, c = exp(-gamma h) | `thermalize` |
| R      | thermal momenta *= a random number that thermalizes their energy     | `rescale`    |
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from ase import units
from torch import Tensor

from attncalc.md.force import Function
from attncalc.md.noise import RESCALING, normal_noise
from attncalc.md.state import MDState

State = TypeVar("State", bound=MDState)


def kick(state: State, time: float) -> State:
    """B: momenta change by forces; those of fixed atoms stay zero."""
    momenta = torch.add(state.momenta, state.forces, alpha=time)
    return state.replace(momenta=held(state, momenta))


def kick_by_new_forces(state: State, force: Function, time: float) -> State:
    """B with the energy and forces at the state's positions, which it then has."""
    result = force(state.system)
    momenta = torch.add(state.momenta, result.forces, alpha=time)
    return state.with_forces(result, momenta=held(state, momenta))


def drift(state: State, time: float) -> State:
    """A: positions change by velocities."""
    positions = torch.addcdiv(
        state.system.positions, state.momenta, state.masses.unsqueeze(1), value=time
    )
    return state.with_positions(positions)


def thermalize(state: State, time: float, temperature: Tensor, friction: float) -> State:
    """O: friction and random forces; the energy that they add counts as heat.

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
    momenta = held(state, torch.addcmul(kept * state.momenta, width, noise))
    # (p'² - p²) / 2 m
    twice = ((momenta - state.momenta) * (momenta + state.momenta)).sum(1) / state.masses
    return state.replace(momenta=momenta, heat=state.heat + 0.5 * state.per_system(twice))


def rescale(state: State, time: float, temperature: Tensor, relaxation: float) -> State:
    """R: one factor for all thermal momenta of a system (Bussi et al., J. Chem. Phys. 126, 014101).

    Drift and rotation that `n_dof` leaves out do not change.

    | paper               | here                                                     |
    |---------------------|----------------------------------------------------------|
    | K                   | `kinetic`                                                |
    | c = exp(-Δt / τ)    | `kept`                                                   |
    | (1 - c) K̄ / N_f     | `share`                                                  |
    | R(t)                | `first`, the first of 3 n_atoms random numbers           |
    | Σ_{i=2}^{N_f} R_i²  | `others`, of the random numbers 2 ... n_dof              |
    | α                   | `factor`                                                 |

    Args:
        state: before.
        time: ASE time units.
        temperature: [n_systems] or [1] K.
        relaxation: relaxation time of the kinetic energy, ASE time units.
    """
    idx, atom = state.system.system_idx, state.atom_in_system
    kept = math.exp(-time / relaxation)
    whole = state.momenta_of_the_whole()
    thermal = state.momenta - whole
    kinetic = 0.5 * state.per_system((thermal * thermal).sum(1) / state.masses)
    noise = normal_noise(state.seed, state.step, state.replicas, idx, atom, purpose=RESCALING)
    number = 3 * atom.unsqueeze(1) + torch.arange(3, device=atom.device)  # [n_atoms, 3]
    counted = (number > 0) & (number < state.n_dof[idx].unsqueeze(1))
    others = state.per_system((noise * noise * counted).sum(1))
    first = state.per_system(noise[:, 0] * (atom == 0))
    share = (1 - kept) * 0.5 * units.kB * temperature  # eV
    # sqrt(K'), with the sign of α
    root = torch.sqrt(kept * kinetic) + torch.sqrt(share) * first
    new = root * root + share * others
    # atoms at rest stay at rest: they have no direction of motion
    factor = torch.sqrt(new / kinetic.clamp(min=1e-300)) * torch.where(root < 0, -1.0, 1.0)
    return state.replace(
        momenta=whole + factor[idx].unsqueeze(1) * thermal,
        heat=state.heat + (new - kinetic) * (kinetic > 0),
    )


def held(state: MDState, momenta: Tensor) -> Tensor:
    """Return momenta with zeros for fixed atoms."""
    return momenta if state.fixed is None else momenta.masked_fill(state.fixed.unsqueeze(1), 0.0)
