"""Pairs within the cutoff, their spherical harmonics, and the gradient of edge vectors."""

import math

import numpy as np

from attncalc.kernels.simd.barrier import forget_ghosts, row_for
from attncalc.kernels.simd.loops import ZERO, inner_loop


@inner_loop
def harmonics(x, y, z, degrees, norms, legendre, cosines, sines, out, row):
    """Store Y_lm of a unit vector in out[row], in the order and norm of `attncalc.basis.so3`.

    Y_lm = N_lm Q_lm(z) times the real (m >= 0) or imaginary part of (x + i y)^|m|, with Q_lm the
    m-th derivative of the Legendre polynomial P_l.

    Args:
        norms: [l_max + 1, l_max + 1], N_lm.
        legendre, cosines, sines: filled with Q [l_max + 2, l_max + 2] and powers [l_max + 1], which
            `harmonics_gradient` reads.
    """
    highest = cosines.shape[0] - 1
    cosines[0], sines[0] = 1.0, 0.0
    for m in range(1, highest + 1):
        cosines[m] = x * cosines[m - 1] - y * sines[m - 1]
        sines[m] = x * sines[m - 1] + y * cosines[m - 1]
    double_factorial = 1.0
    for m in range(highest + 1):
        legendre[m, m + 1] = 0.0
        legendre[m, m] = double_factorial
        double_factorial *= 2 * m + 1
        if m < highest:
            legendre[m + 1, m] = (2 * m + 1) * z * legendre[m, m]
        for l in range(m + 2, highest + 1):
            legendre[l, m] = (
                (2 * l - 1) * z * legendre[l - 1, m] - (l + m - 1) * legendre[l - 2, m]
            ) / (l - m)
    middle = 0
    for d in range(degrees.shape[0]):
        l = degrees[d]
        middle += l
        out[row, middle] = norms[l, 0] * legendre[l, 0]
        for m in range(1, l + 1):
            factor = norms[l, m] * legendre[l, m]
            out[row, middle + m] = factor * cosines[m]
            out[row, middle - m] = factor * sines[m]
        middle += l + 1


@inner_loop
def harmonics_gradient(degrees, norms, legendre, cosines, sines, given, row):
    """Sum over lm of given[row, lm] times the gradient of Y_lm with respect to x, y, z.

    It is the gradient of the polynomials that `harmonics` evaluates: only its part perpendicular to
    the direction is meaningful.
    """
    gx, gy, gz = 0.0, 0.0, 0.0
    middle = 0
    for d in range(degrees.shape[0]):
        l = degrees[d]
        middle += l
        gz += given[row, middle] * norms[l, 0] * legendre[l, 1]
        for m in range(1, l + 1):
            real, imaginary = given[row, middle + m], given[row, middle - m]
            gz += norms[l, m] * legendre[l, m + 1] * (real * cosines[m] + imaginary * sines[m])
            factor = m * norms[l, m] * legendre[l, m]
            gx += factor * (real * cosines[m - 1] + imaginary * sines[m - 1])
            gy += factor * (imaginary * cosines[m - 1] - real * sines[m - 1])
        middle += l + 1
    return gx, gy, gz


@inner_loop
def collect(
    barrier,
    vectors,
    receivers,
    senders,
    mask,
    pairs,
    cutoff,
    shortest,
    envelope_table,
    degrees,
    norms,
    collected,
    which,
    lengths,
    directions,
):
    """Keep the pairs within the cutoff; return their number, or -1 if one is too short.

    Args:
        barrier: that of this thread.
        envelope_table: [n_intervals, 4]: cubic of C(d) in each of the intervals of equal length
            between `shortest` and `cutoff`.
        collected: `Pairs`, filled.
        which, lengths, directions: filled with edge, length and direction.
    """
    n_intervals = envelope_table.shape[0]
    per_length = n_intervals / (cutoff - shortest)
    highest = norms.shape[0] - 1
    legendre = np.zeros((highest + 2, highest + 2))
    cosines, sines = np.empty(highest + 1), np.empty(highest + 1)
    forget_ghosts(barrier)
    n = 0
    for p in range(pairs.shape[0]):
        e = pairs[p]
        if not mask[e]:
            continue
        x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
        d = math.sqrt(x * x + y * y + z * z)
        if d >= cutoff:
            continue
        if not d >= shortest:  # NaN too
            return -1
        collected.i[n], collected.j[n], which[n] = receivers[e], senders[e], e
        collected.to[n] = row_for(barrier, senders[e])
        lengths[n] = d
        x, y, z = x / d, y / d, z / d
        directions[n, 0], directions[n, 1], directions[n, 2] = x, y, z
        u = (d - shortest) * per_length
        k = min(int(u), n_intervals - 1)
        t = u - k
        collected.knot[n], collected.place[n] = k, t
        c = envelope_table[k]
        collected.envelope[n] = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
        slope = c[1] + t * (2 * c[2] + t * 3 * c[3])
        collected.envelope_slope[n] = slope * per_length
        harmonics(x, y, z, degrees, norms, legendre, cosines, sines, collected.spherical, n)
        n += 1
    return n


@inner_loop
def gradient_by_vectors(
    n,
    which,
    lengths,
    directions,
    degrees,
    norms,
    d_lengths,
    d_spherical,
    d_vectors,
):
    """Add to d_vectors, from gradients with respect to length and harmonics of every pair."""
    highest = norms.shape[0] - 1
    legendre = np.zeros((highest + 2, highest + 2))
    cosines, sines = np.empty(highest + 1), np.empty(highest + 1)
    spherical = np.empty((1, d_spherical.shape[1]))
    for p in range(n):
        x, y, z = directions[p, 0], directions[p, 1], directions[p, 2]
        harmonics(x, y, z, degrees, norms, legendre, cosines, sines, spherical, 0)
        gx, gy, gz = harmonics_gradient(degrees, norms, legendre, cosines, sines, d_spherical, p)
        d, e = lengths[p], which[p]
        radial = d_lengths[p] - (gx * x + gy * y + gz * z) / d
        d_vectors[e, 0] += gx / d + radial * x
        d_vectors[e, 1] += gy / d + radial * y
        d_vectors[e, 2] += gz / d + radial * z


@inner_loop
def start_ev(n, pairs, parity, scale, ev):
    """Add the neighbours' sum of C(d) Y(u), times `scale`, to the Euclidean variables."""
    for p in range(n):
        i, c = pairs.i[p], pairs.envelope[p] * scale
        to = pairs.to[p]
        for k in range(parity.shape[0]):
            ev[i, k] += c * pairs.spherical[p, k]
            ev[to, k] += c * parity[k] * pairs.spherical[p, k]


@inner_loop
def start_ev_gradient(n, pairs, parity, scale, d_ev, d_spherical, d_lengths):
    """Reverse of `start_ev`."""
    for p in range(n):
        i, j, c = pairs.i[p], pairs.j[p], pairs.envelope[p] * scale
        along = ZERO
        for k in range(parity.shape[0]):
            both = d_ev[i, k] + parity[k] * d_ev[j, k]
            along += both * pairs.spherical[p, k]
            d_spherical[p, k] += c * both
        d_lengths[p] += along * pairs.envelope_slope[p] * scale
