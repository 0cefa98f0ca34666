"""Compiled loops of `attncalc.md.noise` and `attncalc.md.fused_steps`, equal to rounding."""

import math

import numpy as np

from attncalc.compiled import compiled_loop
from attncalc.md.velocities import LINEAR

unsigned = np.uint64
LOW, SHIFT = unsigned(0xFFFFFFFF), unsigned(32)
MULTIPLY_A, MULTIPLY_C = unsigned(0xD2511F53), unsigned(0xCD9E8D57)
STEP_K, STEP_L = unsigned(0x9E3779B9), unsigned(0xBB67AE85)
ROUNDS = 10
PER_WORD = 2.0**-32


@compiled_loop()
def _normal(seed, step, purpose, replica, atom):
    """Return three normal numbers of an atom."""
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
    """Set noise[i] to three normal numbers of atom i."""
    for i in range(system_idx.shape[0]):
        x, y, z = _normal(seed, step, purpose, replicas[system_idx[i]], atom_in_system[i])
        noise[i, 0], noise[i, 1], noise[i, 2] = x, y, z


@compiled_loop()
def kick_drift(positions, momenta, forces, masses, fixed, time):
    """Return positions and momenta after B for half of the time and A for all of it.

    `fixed` is empty if no atom is fixed.
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
def kick_drift_thermalize_drift(
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
    """Return positions, momenta and heat after B A O A, B and A for half of the time, O for all.

    `renewed` is kB (1 - kept²); `temperature` has one number, or one for each system; `fixed` is
    empty if no atom is fixed.
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


@compiled_loop()
def _turning(spin, inertia):
    """Return angular velocity from spin and the sums m x², m y², m z², m y z, m z x, m x y."""
    xx, yy, zz, yz, zx, xy = inertia
    trace = xx + yy + zz
    a, b, c, d, e, f = yy + zz, zz + xx, xx + yy, -yz, -zx, -xy
    bc, ca, ab = b * c - d * d, c * a - e * e, a * b - f * f
    de, ef, fd = d * e - c * f, e * f - a * d, f * d - b * e
    determinant = a * bc + f * de + e * fd
    if determinant <= LINEAR * trace**3:
        # atoms on a line: no rotation about it, and equal inertia about all axes across
        return spin[0] / trace, spin[1] / trace, spin[2] / trace
    return (
        (bc * spin[0] + de * spin[1] + fd * spin[2]) / determinant,
        (de * spin[0] + ca * spin[1] + ef * spin[2]) / determinant,
        (fd * spin[0] + ef * spin[1] + ab * spin[2]) / determinant,
    )


@compiled_loop()
def rescale(
    positions,
    momenta,
    masses,
    fixed,
    n_dof,
    temperature,
    kept,
    share,
    seed,
    step,
    purpose,
    replicas,
    system_idx,
    atom_in_system,
    heat,
):
    """Return momenta and heat after R.

    `share` is kB (1 - kept) / 2; `temperature` has one number, or one for each system; `fixed` is
    empty if no atom is fixed.
    """
    n_atoms, n = positions.shape[0], n_dof.shape[0]
    mass, left_out = np.zeros(n), -n_dof
    centre, drift, spin, turn = np.zeros((4, n, 3))
    inertia = np.zeros((n, 6))
    for i in range(n_atoms):
        k = system_idx[i]
        mass[k] += masses[i]
        if fixed.shape[0] == 0 or not fixed[i]:
            left_out[k] += 3
        for c in range(3):
            centre[k, c] += masses[i] * positions[i, c]
            drift[k, c] += momenta[i, c]
    for k in range(n):
        left_out[k] = math.floor(left_out[k] + 0.5)
        for c in range(3):
            centre[k, c] /= mass[k]
            drift[k, c] = drift[k, c] / mass[k] if left_out[k] > 0 else 0.0
    for i in range(n_atoms):
        k = system_idx[i]
        if left_out[k] > 3:
            x, y, z = positions[i] - centre[k]
            px, py, pz = momenta[i]
            spin[k, 0] += y * pz - z * py
            spin[k, 1] += z * px - x * pz
            spin[k, 2] += x * py - y * px
            inertia[k, 0] += masses[i] * x * x
            inertia[k, 1] += masses[i] * y * y
            inertia[k, 2] += masses[i] * z * z
            inertia[k, 3] += masses[i] * y * z
            inertia[k, 4] += masses[i] * z * x
            inertia[k, 5] += masses[i] * x * y
    for k in range(n):
        if left_out[k] > 3:
            turn[k, 0], turn[k, 1], turn[k, 2] = _turning(spin[k], inertia[k])
    whole = np.empty_like(momenta)
    kinetic, first, others = np.zeros((3, n))
    for i in range(n_atoms):
        k = system_idx[i]
        x, y, z = positions[i] - centre[k]
        whole[i, 0] = masses[i] * (drift[k, 0] + turn[k, 1] * z - turn[k, 2] * y)
        whole[i, 1] = masses[i] * (drift[k, 1] + turn[k, 2] * x - turn[k, 0] * z)
        whole[i, 2] = masses[i] * (drift[k, 2] + turn[k, 0] * y - turn[k, 1] * x)
        noise = _normal(seed, step, purpose, replicas[k], atom_in_system[i])
        for c in range(3):
            thermal = momenta[i, c] - whole[i, c]
            kinetic[k] += 0.5 * thermal * thermal / masses[i]
            number = 3 * atom_in_system[i] + c
            if number == 0:
                first[k] = noise[c]
            elif number < n_dof[k]:
                others[k] += noise[c] * noise[c]
    factor, new_heat = np.ones(n), heat.copy()
    for k in range(n):
        each = share * temperature[k if temperature.shape[0] > 1 else 0]
        root = math.sqrt(kept * kinetic[k]) + math.sqrt(each) * first[k]
        new = root * root + each * others[k]
        if kinetic[k] > 0:
            factor[k] = math.copysign(math.sqrt(new / kinetic[k]), root)
            new_heat[k] += new - kinetic[k]
    new_momenta = np.empty_like(momenta)
    for i in range(n_atoms):
        for c in range(3):
            thermal = momenta[i, c] - whole[i, c]
            new_momenta[i, c] = whole[i, c] + factor[system_idx[i]] * thermal
    return new_momenta, new_heat
