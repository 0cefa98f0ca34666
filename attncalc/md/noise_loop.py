"""The compiled loop of `attncalc.md.noise`: the same numbers, to the rounding of log and cos."""

import math

import numpy as np

from attncalc.compiled import compiled_loop

unsigned = np.uint64
LOW, SHIFT = unsigned(0xFFFFFFFF), unsigned(32)
MULTIPLY_A, MULTIPLY_C = unsigned(0xD2511F53), unsigned(0xCD9E8D57)
STEP_K, STEP_L = unsigned(0x9E3779B9), unsigned(0xBB67AE85)
ROUNDS = 10
PER_WORD = 2.0**-32


@compiled_loop()
def fill_normal(seed, step, replicas, system_idx, atom_in_system, noise):
    """noise[i] = three normal numbers of the atom."""
    for i in range(system_idx.shape[0]):
        a, b = unsigned(atom_in_system[i]), unsigned(step) & LOW
        c, d = unsigned(step) >> SHIFT, unsigned(0)
        k, l = unsigned(seed), unsigned(replicas[system_idx[i]])
        for _ in range(ROUNDS):
            ab, cd = a * MULTIPLY_A, c * MULTIPLY_C
            a, b, c, d = (cd >> SHIFT) ^ b ^ k, cd & LOW, (ab >> SHIFT) ^ d ^ l, ab & LOW
            k, l = (k + STEP_K) & LOW, (l + STEP_L) & LOW
        radius = math.sqrt(-2 * math.log((a + 0.5) * PER_WORD))
        angle = 2 * math.pi * ((b + 0.5) * PER_WORD)
        noise[i, 0] = radius * math.cos(angle)
        noise[i, 1] = radius * math.sin(angle)
        radius = math.sqrt(-2 * math.log((c + 0.5) * PER_WORD))
        noise[i, 2] = radius * math.cos(2 * math.pi * ((d + 0.5) * PER_WORD))
