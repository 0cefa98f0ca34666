"""The compiled loop of `attncalc.kernels.frozen_zbl`."""

import math

from attncalc.compiled import compiled_loop


@compiled_loop()
def repel(
    vectors,
    receivers,
    senders,
    mask,
    pairs,
    species,
    charges,
    inverse_lengths,
    exponents,
    weights,
    cutoff,
    switch_off,
    energies,
    gradient,
):
    """Add half of a pair's energy to both atoms, and store dE / d vectors [n_edges, 3].

    Edges are those of a `Graph`. `gradient` must start at zero: only edges of `pairs` are written.
    """
    for p in range(pairs.shape[0]):
        e = pairs[p]
        x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
        d = math.sqrt(x * x + y * y + z * z)
        if d >= min(switch_off, cutoff) or not mask[e]:
            continue
        i, j = receivers[e], senders[e]
        a, b = species[i], species[j]
        inverse_length = inverse_lengths[a] + inverse_lengths[b]
        screening, d_screening = 0.0, 0.0
        for m in range(exponents.shape[0]):
            rate = exponents[m] * inverse_length
            term = weights[m] * math.exp(-rate * d)
            screening += term
            d_screening -= rate * term
        s = d / cutoff
        envelope = (1 - s) ** 3 * (1 + s * (3 + 6 * s))
        d_envelope = -30 * s * s * (1 - s) ** 2 / cutoff
        t = d / switch_off
        switch = 1 / (1 + math.exp(1 / (1 - t) - 1 / t))
        d_switch = -switch * (1 - switch) * (1 / (t * t) + 1 / (1 - t) ** 2) / switch_off
        half = charges[a] * charges[b] / (2 * d)
        energy = half * envelope * switch * screening
        slope = half * (
            d_envelope * switch * screening
            + envelope * d_switch * screening
            + envelope * switch * d_screening
        )
        energies[i] += energy
        energies[j] += energy
        per_length = 2 * (slope - energy / d) / d
        gradient[e, 0] = per_length * x
        gradient[e, 1] = per_length * y
        gradient[e, 2] = per_length * z
