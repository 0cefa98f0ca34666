"""Random numbers as a pure function of (seed, replica, step, atom): no generator, no state.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a
counter of four 32-bit words and a key of two into four random words. Here

    counter = (atom within its system, step, step >> 32, purpose)    key = (seed, replica)

so noise does not depend on the rest of a batch, on chunks, or on interruptions of a run.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.compiled import cpu_loops

LOW_32_BITS = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
PER_WORD = 2.0**-32
# purposes; that of random forces is 0
RESCALING, CELL = 1, 2


def seed_of(momenta: Tensor | NDArray[np.float64]) -> int:
    """Return a seed made of momenta [n_atoms, 3], 0 .. 2^32 - 1.

    A run that begins where another ended thus has other noise. Equal noise would make it a copy of
    that run: trajectories of Langevin dynamics with the same noise converge (Uberuaga, Anghel and
    Voter, J. Chem. Phys. 120, 6363, 2004).
    """
    content = np.ascontiguousarray(momenta, dtype=np.float64).tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4])


def normal_noise(
    seed: int,
    step: int | Tensor,
    replicas: Tensor,
    system_idx: Tensor,
    atom_in_system: Tensor,
    *,
    purpose: int = 0,
) -> Tensor:
    """Return independent normal numbers of mean 0 and variance 1, [n_atoms, 3], float64.

    Args:
        seed: 0 .. 2^32 - 1.
        step: 0 .. 2^63 - 1; or [], int64, on the device, while steps are recorded.
        replicas: [n_systems], int64, 0 .. 2^32 - 1.
        system_idx: [n_atoms], int64.
        atom_in_system: [n_atoms], int64: counted from 0 in every system.
        purpose: another value gives other numbers within the same step.
    """
    on_the_cpu = system_idx.device.type == "cpu" and isinstance(step, int)
    if on_the_cpu and (loops := cpu_loops("attncalc.md.loops")) is not None:
        noise = np.empty((len(system_idx), 3))
        arrays = (replicas, system_idx, atom_in_system)
        loops.fill_normal(seed, step, purpose, *(tensor.numpy() for tensor in arrays), noise)
        return torch.from_numpy(noise)
    key = (torch.full_like(system_idx, seed), replicas[system_idx])
    if isinstance(step, Tensor):
        steps = step.expand_as(system_idx)
    else:
        steps = torch.full_like(system_idx, step)
    purposes = torch.full_like(system_idx, purpose)
    words = philox((atom_in_system, steps & LOW_32_BITS, steps >> 32, purposes), key)
    # never 0, whose logarithm is infinite
    first, second, third, fourth = ((word.double() + 0.5) * PER_WORD for word in words)
    radius, other = (torch.sqrt(-2 * torch.log(u)) for u in (first, third))
    angle = 2 * math.pi * second
    return torch.stack(
        [
            radius * torch.cos(angle),
            radius * torch.sin(angle),
            other * torch.cos(2 * math.pi * fourth),
        ],
        dim=1,
    )


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four random 32-bit words of a counter and a key, all int64 tensors of equal shape."""
    a, b, c, d = counter
    k, l = key
    for _ in range(ROUNDS):
        # int64 wraps around, and the bits are those of unsigned arithmetic
        ab, cd = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        high_ab, low_ab = (ab >> 32) & LOW_32_BITS, ab & LOW_32_BITS
        high_cd, low_cd = (cd >> 32) & LOW_32_BITS, cd & LOW_32_BITS
        a, b, c, d = high_cd ^ b ^ k, low_cd, high_ab ^ d ^ l, low_ab
        k, l = (k + KEY_STEPS[0]) & LOW_32_BITS, (l + KEY_STEPS[1]) & LOW_32_BITS
    return a, b, c, d
