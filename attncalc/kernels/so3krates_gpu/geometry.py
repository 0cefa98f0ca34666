"""Edges that count, their spherical harmonics, and the gradient with respect to edge vectors."""

import triton
import triton.language as tl


@triton.jit
def legendre(z, l: tl.constexpr, m: tl.constexpr, p, before):
    """Next Q_lm, the m-th derivative of Legendre polynomial P_l, from those for l - 1 and l - 2."""
    return ((2 * l - 1) * z * p - (l + m - 1) * before) / (l - m)


@triton.jit(do_not_specialize=["n_edges"])
def find_edges(
    vectors,
    receivers,
    senders,
    mask,
    slots,
    numbers,
    envelope_table,
    norms,
    found_vectors,
    found_receivers,
    found_senders,
    knots,
    places,
    envelopes,
    envelope_slopes,
    spherical,
    n_edges,
    zero_row,
    LMAX: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
):
    """Move the edges that count together, and evaluate all functions of their vectors alone.

    Y_lm = N_lm Q_lm(z) times the real (m >= 0) or imaginary part of (x + i y)^|m|, in the order and
    norm of `attncalc.basis.so3`, for all l from 1 to LMAX: column l^2 + l - 1 + m.

    Args:
        vectors .. mask: of the graph.
        slots: [n_edges], new position of an edge, if it counts.
        numbers: [4] float64: shortest, cutoff, number of intervals, intervals per length.
        envelope_table: [n_intervals + 1, 4], float64: cubics of C(d); the last row is zero.
        norms: [(LMAX + 1)^2], N_lm, row after row.
        found_vectors .. spherical: stored. Edges shorter than `shortest` get NaN as place, which
            makes the energies of both atoms NaN.
    """
    e = tl.program_id(0) * B + tl.arange(0, B)
    counts = (e < n_edges) & (tl.load(mask + e, mask=e < n_edges, other=0) != 0)
    wide = e.to(tl.int64)
    x = tl.load(vectors + 3 * wide, mask=counts, other=1.0)
    y = tl.load(vectors + 3 * wide + 1, mask=counts, other=0.0)
    z = tl.load(vectors + 3 * wide + 2, mask=counts, other=0.0)
    slot = tl.load(slots + e, mask=counts, other=0).to(tl.int64)
    tl.store(found_vectors + 3 * slot, x, mask=counts)
    tl.store(found_vectors + 3 * slot + 1, y, mask=counts)
    tl.store(found_vectors + 3 * slot + 2, z, mask=counts)
    receiver = tl.load(receivers + e, mask=counts, other=0).to(tl.int32)
    sender = tl.load(senders + e, mask=counts, other=0).to(tl.int32)
    tl.store(found_receivers + slot, receiver, mask=counts)
    tl.store(found_senders + slot, sender, mask=counts)

    d = tl.sqrt(x * x + y * y + z * z)
    shortest, cutoff = tl.load(numbers), tl.load(numbers + 1)
    n_intervals, per_length = tl.load(numbers + 2), tl.load(numbers + 3)
    is_long_enough = d >= shortest  # False for NaN
    u = tl.where(is_long_enough, (tl.minimum(d, cutoff) - shortest) * per_length, 0.0)
    interval = tl.minimum(u, n_intervals - 1).to(tl.int32)
    knot = tl.where(d >= cutoff, zero_row, interval)
    t = u - interval.to(tl.float64)
    row = envelope_table + 4 * knot.to(tl.int64)
    c1, c2, c3 = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    envelope = tl.load(row) + t * (c1 + t * (c2 + t * c3))
    slope = (c1 + t * (2 * c2 + t * 3 * c3)) * per_length
    place = tl.where(is_long_enough, t.to(tl.float32), float("nan"))
    tl.store(knots + slot, knot, mask=counts)
    tl.store(places + slot, place, mask=counts)
    tl.store(envelopes + slot, envelope.to(tl.float32), mask=counts)
    tl.store(envelope_slopes + slot, slope.to(tl.float32), mask=counts)

    ux, uy, uz = (x / d).to(tl.float32), (y / d).to(tl.float32), (z / d).to(tl.float32)
    out = spherical + MP * slot
    cosine, sine = tl.full([B], 1.0, tl.float32), tl.zeros([B], tl.float32)
    diagonal = tl.full([B], 1.0, tl.float32)
    for m in tl.static_range(LMAX + 1):
        if m > 0:
            cosine, sine = ux * cosine - uy * sine, ux * sine + uy * cosine
            diagonal = diagonal * (2 * m - 1)
        p, before = diagonal, tl.zeros([B], tl.float32)
        for l in tl.static_range(m, LMAX + 1):
            if l > m:
                p, before = legendre(uz, l, m, p, before), p
            if l > 0:
                value = p * tl.load(norms + l * (LMAX + 1) + m)
                tl.store(out + l * l + l - 1 + m, value * cosine, mask=counts)
                if m > 0:
                    tl.store(out + l * l + l - 1 - m, value * sine, mask=counts)
    for k in tl.static_range((LMAX + 1) * (LMAX + 1) - 1, MP):
        tl.store(out + k, tl.zeros([B], tl.float32), mask=counts)


@triton.jit
def harmonics_gradient(
    ux,
    uy,
    uz,
    given,
    valid,
    norms,
    LMAX: tl.constexpr,
    B: tl.constexpr,
):
    """Sum over lm of given[.., lm] times the gradient of Y_lm with respect to x, y, z.

    It is the gradient of the polynomials that `find_edges` evaluates: only its part perpendicular
    to the direction is meaningful.

    Args:
        given: [B] pointers to rows of gradients with respect to the harmonics.
    """
    gx, gy, gz = tl.zeros([B], tl.float32), tl.zeros([B], tl.float32), tl.zeros([B], tl.float32)
    cosine, sine = tl.full([B], 1.0, tl.float32), tl.zeros([B], tl.float32)
    lower_cosine, lower_sine = tl.zeros([B], tl.float32), tl.zeros([B], tl.float32)
    diagonal = tl.full([B], 1.0, tl.float32)
    for m in tl.static_range(LMAX + 1):
        if m > 0:
            lower_cosine, lower_sine = cosine, sine
            cosine, sine = ux * cosine - uy * sine, ux * sine + uy * cosine
            diagonal = diagonal * (2 * m - 1)
        p, before = diagonal, tl.zeros([B], tl.float32)
        # the next derivative of the same polynomial
        dp, d_before = tl.zeros([B], tl.float32), tl.zeros([B], tl.float32)
        for l in tl.static_range(m, LMAX + 1):
            if l > m:
                p, before = legendre(uz, l, m, p, before), p
                if l == m + 1:
                    dp = diagonal * (2 * m + 1)
                else:
                    dp, d_before = legendre(uz, l, m + 1, dp, d_before), dp
            if l > 0:
                norm = tl.load(norms + l * (LMAX + 1) + m)
                real = tl.load(given + l * l + l - 1 + m, mask=valid, other=0.0) * norm
                gz += real * dp * cosine
                if m > 0:
                    imaginary = tl.load(given + l * l + l - 1 - m, mask=valid, other=0.0) * norm
                    gz += imaginary * dp * sine
                    gx += m * p * (real * lower_cosine + imaginary * lower_sine)
                    gy += m * p * (imaginary * lower_cosine - real * lower_sine)
    return gx, gy, gz


@triton.jit(do_not_specialize=["n_edges"])
def gradient_by_vectors(
    found_vectors,
    norms,
    d_lengths,
    d_spherical,
    mask,
    slots,
    d_vectors,
    n_edges,
    LMAX: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
):
    """Compute half of a pair's gradient with respect to the edge vector, for each of its edges.

    The gradients with respect to length and harmonics are those of pairs, given for both edges.

    Args:
        mask, slots: of the graph's edges, see `find_edges`.
        d_vectors: [n_edges, 3], float64, stored; zero for edges that do not count.
    """
    edge = tl.program_id(0) * B + tl.arange(0, B)
    inside = edge < n_edges
    valid = inside & (tl.load(mask + edge, mask=inside, other=0) != 0)
    e = tl.load(slots + edge, mask=valid, other=0)
    wide = e.to(tl.int64)
    x = tl.load(found_vectors + 3 * wide, mask=valid, other=1.0)
    y = tl.load(found_vectors + 3 * wide + 1, mask=valid, other=0.0)
    z = tl.load(found_vectors + 3 * wide + 2, mask=valid, other=0.0)
    d = tl.sqrt(x * x + y * y + z * z)
    ux, uy, uz = x / d, y / d, z / d
    given = d_spherical + MP * wide
    gx, gy, gz = harmonics_gradient(
        ux.to(tl.float32), uy.to(tl.float32), uz.to(tl.float32), given, valid, norms, LMAX, B
    )
    gx, gy, gz = gx.to(tl.float64), gy.to(tl.float64), gz.to(tl.float64)
    along = tl.load(d_lengths + e, mask=valid, other=0.0)
    radial = along.to(tl.float64) - (gx * ux + gy * uy + gz * uz) / d
    out = d_vectors + 3 * edge.to(tl.int64)
    tl.store(out, tl.where(valid, (gx / d + radial * ux) / 2, 0.0), mask=inside)
    tl.store(out + 1, tl.where(valid, (gy / d + radial * uy) / 2, 0.0), mask=inside)
    tl.store(out + 2, tl.where(valid, (gz / d + radial * uz) / 2, 0.0), mask=inside)
