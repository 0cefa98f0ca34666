"""Compiled loops of `attncalc.md.noise` and `attncalc.md.fused_steps`, equal to rounding."""

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
def _normal(seed, step, purpose, replica, atom):
    """Three normal numbers of an atom."""
    a, b = unsigned(atom), unsigned(step) & LOW
    c, d = unsigned(step) >> SHIFT, unsigned(purpose)
    k, l = unsigned(seed), unsigned(replica)
    for _ in range(ROUNDS):
        ab, cd = a * MULTIPLY_A, c * MULTIPLY_C
        a, b, c, d = (cd >> SHIFT) ^ b ^ k, cd & LOW, (ab >> SHIFT) ^ d ^ l, ab & LOW
        k, l = (k + STEP_K) & LOW, (l + STEP_L) & LOW
    radius = math.sqrt(-2 * math.log((a + 0.5) * PER_WORD))
    angle = 2 * math.pi * ((b + 0.5) * PER_WORD)
    other = math.sqrt(-2 * math.log((c + 0.5) * PER_WORD))
    other_angle = 2 * math.pi * ((d + 0.5) * PER_WORD)
    return radius * math.cos(angle), radius * math.sin(angle), other * math.cos(other_angle)


@compiled_loop()
def fill_normal(seed, step, purpose, replicas, system_idx, atom_in_system, noise):
    """noise[i] = three normal numbers of the atom."""
    for i in range(system_idx.shape[0]):
        x, y, z = _normal(seed, step, purpose, replicas[system_idx[i]], atom_in_system[i])
        noise[i, 0], noise[i, 1], noise[i, 2] = x, y, z


@compiled_loop()
def kick_drift(positions, momenta, forces, masses, fixed, time):
    """Positions and momenta after B for half of the time and A for all of it.

    `fixed` is empty where no atom is.
    """
    new_positions, new_momenta = np.empty_like(positions), np.zeros_like(momenta)
    for i in range(positions.shape[0]):
        free = fixed.shape[0] == 0 or not fixed[i]
        for c in range(3):
            if free:
                new_momenta[i, c] = momenta[i, c] + 0.5 * time * forces[i, c]
            new_positions[i, c] = positions[i, c] + time * new_momenta[i, c] / masses[i]
    return new_positions, new_momenta


@compiled_loop()
def kick_drift_shake_drift(
    positions,
    momenta,
    forces,
    masses,
    fixed,
    time,
    kept,
    renewed,
    temperature,
    seed,
    step,
    replicas,
    system_idx,
    atom_in_system,
    heat,
):
    """Positions, momenta and heat after B A O A; B and A for half of the time, O for all of it.

    `renewed` is kB (1 - kept²); `temperature` has one number, or one for each system; `fixed` is
    empty where no atom is.
    """
    new_positions, new_momenta = np.empty_like(positions), np.zeros_like(momenta)
    new_heat = heat.copy()
    half = 0.5 * time
    for i in range(positions.shape[0]):
        k = system_idx[i]
        free = fixed.shape[0] == 0 or not fixed[i]
        if not free:
            for c in range(3):
                new_positions[i, c] = positions[i, c]
            continue
        kelvin = temperature[k if temperature.shape[0] > 1 else 0]
        width = math.sqrt(masses[i] * (renewed * kelvin))
        noise = _normal(seed, step, 0, replicas[k], atom_in_system[i])
        twice = 0.0
        for c in range(3):
            before = momenta[i, c] + half * forces[i, c]
            after = kept * before + width * noise[c]
            new_positions[i, c] = positions[i, c] + half * (before + after) / masses[i]
            new_momenta[i, c] = after
            twice += (after - before) * (after + before)
        new_heat[k] += 0.5 * twice / masses[i]
    return new_positions, new_momenta, new_heat
