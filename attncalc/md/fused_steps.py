"""Several operations in one pass over the atoms: all before the forces, and velocity rescaling.

The functions of `attncalc.md.splitting` are the definition. These here give the same numbers, up to
rounding, by compiled loops: Numba's on the CPU, Triton's on a GPU. They return None elsewhere.
"""

from __future__ import annotations

import functools
import math
from typing import Any, TypeVar

import numpy as np
import torch
from ase import units
from torch import Tensor

from attncalc.compiled import cpu_loops, gpu_kernels
from attncalc.md.noise import RESCALING
from attncalc.md.state import MDState
from attncalc.system import System

State = TypeVar("State", bound=MDState)

_NONE = np.zeros(0, bool)


def kick_drift(state: MDState, time: float) -> MDState | None:
    """B for half of the time, A for all of it."""
    if (loops := _loops(state)) is not None:
        positions, momenta = loops.kick_drift(*_arrays(state), time)
        system = state.system.with_positions(torch.from_numpy(positions))
        return state.replace(system=system, momenta=torch.from_numpy(momenta))
    return _on_a_gpu(state, time, 1.0, 0.0, None)


def kick_drift_thermalize_drift(
    state: MDState, time: float, temperature: Tensor, friction: float
) -> MDState | None:
    """B and A for half of the time, O for all of it, A for the other half.

    Args:
        state: before.
        time: ASE time units.
        temperature: [n_systems] or [1] K.
        friction: 1 / ASE time.
    """
    kept = math.exp(-friction * time)
    renewed = units.kB * (1 - kept * kept)
    if (loops := _loops(state)) is None:
        return _on_a_gpu(state, time, kept, renewed, temperature)
    positions, momenta, heat = loops.kick_drift_thermalize_drift(
        *_arrays(state),
        time,
        kept,
        renewed,
        temperature.numpy(),
        state.seed,
        state.step,
        state.replicas.numpy(),
        state.system.system_idx.numpy(),
        state.atom_in_system.numpy(),
        state.heat.numpy(),
    )
    return state.replace(
        system=state.system.with_positions(torch.from_numpy(positions)),
        momenta=torch.from_numpy(momenta),
        heat=torch.from_numpy(heat),
    )


def rescale_at_once(
    state: State, time: float, temperature: Tensor, relaxation: float
) -> State | None:
    """R, on the CPU only.

    Args:
        state: before.
        time: ASE time units.
        temperature: [n_systems] or [1] K.
        relaxation: ASE time units.
    """
    if (loops := _loops(state)) is None:
        return None
    kept = math.exp(-time / relaxation)
    positions, momenta, _, masses, fixed = _arrays(state)
    momenta, heat = loops.rescale(
        positions,
        momenta,
        masses,
        fixed,
        state.n_dof.numpy(),
        temperature.numpy(),
        kept,
        0.5 * units.kB * (1 - kept),
        state.seed,
        state.step,
        RESCALING,
        state.replicas.numpy(),
        state.system.system_idx.numpy(),
        state.atom_in_system.numpy(),
        state.heat.numpy(),
    )
    return state.replace(momenta=torch.from_numpy(momenta), heat=torch.from_numpy(heat))


def _loops(state: MDState) -> Any:
    # steps are tensors while they are recorded
    if state.momenta.device.type != "cpu" or not isinstance(state.step, int):
        return None
    return cpu_loops("attncalc.md.loops")


def _arrays(state: MDState) -> tuple[np.ndarray, ...]:
    """Return positions, momenta, forces, masses, and the mask of fixed atoms."""
    tensors = (state.system.positions, state.momenta, state.forces, state.masses)
    fixed = _NONE if state.fixed is None else state.fixed.numpy()
    return *(tensor.numpy() for tensor in tensors), fixed


def _on_a_gpu(
    state: MDState, time: float, kept: float, renewed: float, temperature: Tensor | None
) -> MDState | None:
    device = state.momenta.device
    kernels = _kernels(device) if device.type == "cuda" else None
    return None if kernels is None else kernels.moved(state, time, kept, renewed, temperature)


@functools.cache
def _kernels(device: torch.device) -> Any | None:
    def trial(kernels: Any) -> None:
        one = _one_atom(device)
        kernels.moved(one, 1.0, 0.5, 0.5, one.masses)
        kernels.moved(one, 1.0, 1.0, 0.0, None)

    return gpu_kernels("attncalc.md.gpu_fused_steps", trial)


def _one_atom(device: torch.device) -> MDState:
    row = torch.ones(1, 3, dtype=torch.float64, device=device)
    one, zero = row[:, 0].clone(), torch.zeros(1, dtype=torch.int64, device=device)
    system = System(row, zero + 1, 0 * row.expand(1, 3, 3), row > 2, zero, one, zero + 1)
    return MDState(system, row, one, None, one, row, one, one, zero, zero, None, 0, 0)
