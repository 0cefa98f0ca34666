"""What a step does before the forces, in one pass over the atoms.

The verbs of `attncalc.md.integrators` are the definition; these are the same numbers, to rounding,
where compiled loops can run. They answer None elsewhere.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np
import torch
from ase import units

from attncalc.compiled import has_numba
from attncalc.md.state import MDState

_NONE = np.zeros(0, bool)


def kick_drift(state: MDState, time: float) -> MDState | None:
    """B for half of the time, A for all of it."""
    if not _on_the_cpu(state):
        return None
    positions, momenta = _loops().kick_drift(*_arrays(state), time)
    return state.at(torch.from_numpy(positions)).having(momenta=torch.from_numpy(momenta))


def kick_drift_shake_drift(
    state: MDState, time: float, temperature: torch.Tensor, friction: float
) -> MDState | None:
    """B and A for half of the time, O for all of it, A for the other half.

    Args:
        state: before.
        time: ASE time units.
        temperature: [n_systems] or [1] K.
        friction: 1 / ASE time.
    """
    if not _on_the_cpu(state):
        return None
    kept = math.exp(-friction * time)
    positions, momenta, heat = _loops().kick_drift_shake_drift(
        *_arrays(state),
        time,
        kept,
        units.kB * (1 - kept * kept),
        temperature.numpy(),
        state.seed,
        state.step,
        state.replicas.numpy(),
        state.system.system_idx.numpy(),
        state.atom_in_system.numpy(),
        state.heat.numpy(),
    )
    return state.at(torch.from_numpy(positions)).having(
        momenta=torch.from_numpy(momenta), heat=torch.from_numpy(heat)
    )


def _on_the_cpu(state: MDState) -> bool:
    return (
        state.momenta.device.type == "cpu"
        and isinstance(state.step, int)  # and not a tensor, as while steps are recorded
        and has_numba()
    )


def _arrays(state: MDState) -> tuple[np.ndarray, ...]:
    """Positions, momenta, forces, masses, and which atoms are fixed."""
    tensors = (state.system.positions, state.momenta, state.forces, state.masses)
    fixed = _NONE if state.fixed is None else state.fixed.numpy()
    return *(tensor.numpy() for tensor in tensors), fixed


@functools.cache
def _loops() -> ModuleType:
    """Compiled at their first call and kept in files from then on."""
    from attncalc.md import loops

    return loops
