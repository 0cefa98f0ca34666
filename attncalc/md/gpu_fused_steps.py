"""`attncalc.md.fused_steps` on a GPU: one Triton kernel for all parts of a step before the forces.

The tensor operations of `attncalc.md.noise` alone take two hundred launches. Numbers that must be
exact are passed as tensors: Triton rounds Python numbers to single precision.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attncalc.md.noise import LOW_32_BITS
from attncalc.md.state import MDState
from attncalc.ops import kept_tensor

ATOMS_PER_BLOCK = 128
# of random words: the inverse of their number, and a full turn
OF_RANDOM_WORDS = (1 / (LOW_32_BITS + 1), 2 * math.pi)


@triton.jit
def _uniform(word, per_word):
    # never 0, whose logarithm is infinite
    return (word.to(tl.float64) + 0.5) * per_word


@triton.jit
def _component(
    positions, momenta, forces, new_positions, new_momenta, at, here, free, mass, half, kept, shove
):
    """Do B A O A for one component of a block's atoms; return twice the mass times the heat."""
    before = tl.load(momenta + at, here) + half * tl.load(forces + at, here)
    before = tl.where(free, before, 0.0)
    after = tl.where(free, kept * before + shove, 0.0)
    moved = tl.load(positions + at, here) + half * (before + after) / mass
    tl.store(new_positions + at, moved, here)
    tl.store(new_momenta + at, after, here)
    return (after - before) * (after + before)


@triton.jit
def _kick_drift_thermalize_drift(
    positions,
    momenta,
    forces,
    masses,
    fixed,
    system_idx,
    atom_in_system,
    replicas,
    temperature,
    step,
    numbers,
    new_positions,
    new_momenta,
    heat,
    seed,
    n_atoms,
    temperature_stride,
    HAS_FIXED: tl.constexpr,
    THERMALIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = i < n_atoms
    half, kept, renewed = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    mass = tl.load(masses + i, here, other=1.0)
    free = here
    if HAS_FIXED:
        free = here & (tl.load(fixed + i, here, other=0) == 0)
    x, y, z = 0.0, 0.0, 0.0
    system = tl.load(system_idx + i, here, other=0)
    if THERMALIZES:
        kelvin = tl.load(temperature + temperature_stride * system, here, other=0.0)
        width = tl.sqrt(mass * (renewed * kelvin))
        atom = tl.load(atom_in_system + i, here, other=0).to(tl.uint32)
        now = tl.load(step)
        low, high = now.to(tl.uint32), (now >> 32).to(tl.uint32)
        key = (tl.load(replicas + system, here, other=0) << 32) | seed
        zero = atom * 0
        a, b, c, d = tl.philox(key, atom, low + zero, high + zero, zero)
        per_word, turn = tl.load(numbers + 3), tl.load(numbers + 4)
        radius = tl.sqrt(-2 * tl.log(_uniform(a, per_word)))
        angle = turn * _uniform(b, per_word)
        other = tl.sqrt(-2 * tl.log(_uniform(c, per_word)))
        x = width * (radius * tl.cos(angle))
        y = width * (radius * tl.sin(angle))
        z = width * (other * tl.cos(turn * _uniform(d, per_word)))
    twice = _component(
        positions,
        momenta,
        forces,
        new_positions,
        new_momenta,
        3 * i,
        here,
        free,
        mass,
        half,
        kept,
        x,
    )
    twice += _component(
        positions,
        momenta,
        forces,
        new_positions,
        new_momenta,
        3 * i + 1,
        here,
        free,
        mass,
        half,
        kept,
        y,
    )
    twice += _component(
        positions,
        momenta,
        forces,
        new_positions,
        new_momenta,
        3 * i + 2,
        here,
        free,
        mass,
        half,
        kept,
        z,
    )
    if THERMALIZES:
        # most blocks lie within one system: one addition to memory, not one for every atom
        mine = 0.5 * twice / mass
        first = tl.min(tl.where(here, system, 1 << 62), 0)
        within = here & (system == first)
        tl.atomic_add(heat + first, tl.sum(tl.where(within, mine, 0.0), 0), sem="relaxed")
        tl.atomic_add(heat + system, mine, here & (system != first), sem="relaxed")


def moved(
    state: MDState, time: float, kept: float, renewed: float, temperature: Tensor | None
) -> MDState:
    """Return the state after B A O A, or B A without a temperature.

    Args:
        state: before; on a GPU, or anywhere for Triton's interpreter.
        time: of O; B takes half of it, and each A half of it.
        kept: fraction of the momenta that O keeps.
        renewed: kB (1 - kept²).
        temperature: [1] or [n_systems] K.
    """
    system, fixed = state.system, state.fixed
    step: int | Tensor = state.step
    thermalizes = temperature is not None
    old = [tensor.contiguous() for tensor in (system.positions, state.momenta, state.forces)]
    positions, momenta = torch.empty_like(old[0]), torch.empty_like(old[1])
    heat = state.heat.clone() if thermalizes else state.heat
    if isinstance(step, int):  # a tensor already while steps are recorded
        step = torch.full((), step, dtype=torch.int64, device=positions.device)
    with torch.cuda.device_of(positions):
        _kick_drift_thermalize_drift[(triton.cdiv(system.n_atoms, ATOMS_PER_BLOCK),)](
            *old,
            state.masses,
            state.masses if fixed is None else fixed.view(torch.int8),
            system.system_idx,
            state.atom_in_system,
            state.replicas,
            state.masses if temperature is None else temperature,
            step,
            kept_tensor((time / 2, kept, renewed, *OF_RANDOM_WORDS), positions.device),
            positions,
            momenta,
            heat,
            state.seed,
            system.n_atoms,
            0 if temperature is None or temperature.shape[0] == 1 else 1,
            HAS_FIXED=fixed is not None,
            THERMALIZES=thermalizes,
            BLOCK=ATOMS_PER_BLOCK,
        )
    return state.with_positions(positions).replace(momenta=momenta, heat=heat)
