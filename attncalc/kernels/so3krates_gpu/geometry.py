"""Edges that count, their spherical harmonics, and the way back to forces and strain gradient."""

import triton
import triton.language as tl


@triton.jit
def legendre(z, l: tl.constexpr, m: tl.constexpr, p, before):
    """Next Q_lm, the m-th derivative of the Legendre polynomial P_l, from those of l - 1, l - 2."""
    return ((2 * l - 1) * z * p - (l + m - 1) * before) / (l - m)


@triton.jit(do_not_specialize=["n_edges"])
def find_edges(
    vectors,
    senders,
    mask,
    slots,
    numbers,
    envelope_table,
    norms,
    found_vectors,
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
    """Moves the edges that count together, and evaluates what depends on their vectors alone.

    Y_lm = N_lm Q_lm(z) times the real (m >= 0) or imaginary part of (x + i y)^|m|, in the order and
    norm of `attncalc.basis.so3`, for all l from 1 to LMAX: column l^2 + l - 1 + m.

    Args:
        vectors, senders, mask: of the graph.
        slots: [n_edges], where an edge goes if it counts.
        numbers: [4] float64: shortest, cutoff, number of intervals, intervals per length.
        envelope_table: [n_intervals + 1, 4], float64: cubics of C(d); the last row is zero.
        norms: [(LMAX + 1)^2], N_lm, row after row.
        found_vectors .. spherical: stored. Edges shorter than `shortest` have NaN as place, which
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
    sender = tl.load(senders + e, mask=counts, other=0).to(tl.int32)
    tl.store(found_senders + slot, sender, mask=counts)

    d = tl.sqrt(x * x + y * y + z * z)
    shortest, cutoff = tl.load(numbers), tl.load(numbers + 1)
    n_intervals, per_length = tl.load(numbers + 2), tl.load(numbers + 3)
    is_long_enough = d >= shortest  # not so for NaN
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
    """Sum over lm of given[.., lm] times the gradient of Y_lm by x, y, z.

    Of the polynomials that `find_edges` evaluates, so that only the part across the direction means
    something.

    Args:
        given: [B] pointers to rows of gradients by the harmonics.
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


@triton.jit
def repulsion(d, a, b, numbers, table, n_species):
    """Half of the energy of a pair at d [B], float64, and its derivative; 0 from the end on.

    Args:
        a, b: species.
        numbers: [10]: cutoff, switch-off, four exponents, four weights.
        table: [2, n_species]: charges, inverse lengths; see `attncalc.physics.zbl`.
    """
    cutoff, stop = tl.load(numbers), tl.load(numbers + 1)
    inside = (d < cutoff) & (d < stop)
    d = tl.where(inside, d, 0.5 * tl.minimum(cutoff, stop))
    inverse_length = tl.load(table + n_species + a) + tl.load(table + n_species + b)
    screening, d_screening = d * 0, d * 0
    for m in tl.static_range(4):
        rate = tl.load(numbers + 2 + m) * inverse_length
        term = tl.load(numbers + 6 + m) * tl.exp(-rate * d)
        screening += term
        d_screening -= rate * term
    s = d / cutoff
    rest = 1 - s
    envelope = rest * rest * rest * (1 + s * (3 + 6 * s))
    d_envelope = -30 * s * s * rest * rest / cutoff
    t = d / stop
    switch = 1 / (1 + tl.exp(1 / (1 - t) - 1 / t))
    d_switch = -switch * (1 - switch) * (1 / (t * t) + 1 / ((1 - t) * (1 - t))) / stop
    half = tl.load(table + a) * tl.load(table + b) / (2 * d)
    energy = half * envelope * switch * screening
    slope = half * (
        d_envelope * switch * screening
        + envelope * d_switch * screening
        + envelope * switch * d_screening
    )
    return tl.where(inside, energy, 0.0), tl.where(inside, slope - energy / d, 0.0)


@triton.jit
def forces_of_atoms(
    rows,
    vectors,
    senders,
    species,
    norms,
    d_lengths,
    d_spherical,
    repulsion_numbers,
    repulsion_table,
    n_species,
    energies,
    forces,
    strain_gradients,
    LMAX: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    REPELS: tl.constexpr,
):
    """Gradients by length and harmonics of every pair -> forces, and dE / d strain by atoms.

    An atom's edges carry the gradients of its pairs, each of which stands under both atoms: the
    force is their sum, the strain gradient takes half of each.

    Args:
        energies: [n_atoms], float64; REPELS adds the repulsion to them.
        forces: [n_atoms, 3], float64, stored.
        strain_gradients: [n_atoms, 6], float64, stored: xx, yy, zz, xy, xz, yz.
    """
    a = tl.program_id(0)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    fx, fy, fz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    sxx, syy, szz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    sxy, sxz, syz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    repelled = tl.zeros([B], tl.float64)
    kind = tl.load(species + a)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        wide = e.to(tl.int64)
        x = tl.load(vectors + 3 * wide, mask=valid, other=1.0)
        y = tl.load(vectors + 3 * wide + 1, mask=valid, other=0.0)
        z = tl.load(vectors + 3 * wide + 2, mask=valid, other=0.0)
        d = tl.sqrt(x * x + y * y + z * z)
        ux, uy, uz = x / d, y / d, z / d
        given = d_spherical + MP * wide
        gx, gy, gz = harmonics_gradient(
            ux.to(tl.float32), uy.to(tl.float32), uz.to(tl.float32), given, valid, norms, LMAX, B
        )
        gx, gy, gz = gx.to(tl.float64), gy.to(tl.float64), gz.to(tl.float64)
        along = tl.load(d_lengths + 2 * e, mask=valid, other=0.0)
        along += tl.load(d_lengths + 2 * e + 1, mask=valid, other=0.0)
        along = along.to(tl.float64)
        if REPELS:
            b = tl.load(senders + e, mask=valid, other=0)
            kind_b = tl.load(species + b, mask=valid, other=0)
            energy, slope = repulsion(
                d, kind, kind_b, repulsion_numbers, repulsion_table, n_species
            )
            repelled += tl.where(valid, energy, 0.0)
            along += 2 * slope
        radial = along - (gx * ux + gy * uy + gz * uz) / d
        gx = tl.where(valid, gx / d + radial * ux, 0.0)
        gy = tl.where(valid, gy / d + radial * uy, 0.0)
        gz = tl.where(valid, gz / d + radial * uz, 0.0)
        fx, fy, fz = fx + gx, fy + gy, fz + gz
        sxx, syy, szz = sxx + x * gx / 2, syy + y * gy / 2, szz + z * gz / 2
        sxy += (x * gy + y * gx) / 4
        sxz += (x * gz + z * gx) / 4
        syz += (y * gz + z * gy) / 4
    wide = a.to(tl.int64)
    tl.store(forces + 3 * wide, tl.sum(fx, 0))
    tl.store(forces + 3 * wide + 1, tl.sum(fy, 0))
    tl.store(forces + 3 * wide + 2, tl.sum(fz, 0))
    out = strain_gradients + 6 * wide
    tl.store(out, tl.sum(sxx, 0))
    tl.store(out + 1, tl.sum(syy, 0))
    tl.store(out + 2, tl.sum(szz, 0))
    tl.store(out + 3, tl.sum(sxy, 0))
    tl.store(out + 4, tl.sum(sxz, 0))
    tl.store(out + 5, tl.sum(syz, 0))
    if REPELS:
        tl.store(energies + a, tl.load(energies + a) + tl.sum(repelled, 0))


@triton.jit
def sums_of_systems(rows, energies, strain_gradients, energy, strain_gradient, B: tl.constexpr):
    """Sums over the atoms of each system, in a fixed order.

    Args:
        rows: [n_systems + 1], where a system's atoms begin.
        energies, strain_gradients: of atoms, see `forces_of_atoms`.
        energy, strain_gradient: [n_systems], [n_systems, 3, 3], float64, stored.
    """
    s = tl.program_id(0)
    column = tl.arange(0, 8)
    total = tl.zeros([B], tl.float64)
    totals = tl.zeros([B, 8], tl.float64)
    begin, end = tl.load(rows + s), tl.load(rows + s + 1)
    for block in range(begin, end, B):
        a = block + tl.arange(0, B)
        valid = a < end
        total += tl.load(energies + a, mask=valid, other=0.0)
        at = strain_gradients + 6 * a.to(tl.int64)[:, None] + column[None, :]
        totals += tl.load(at, mask=valid[:, None] & (column < 6)[None, :], other=0.0)
    tl.store(energy + s, tl.sum(total, 0))
    six = tl.sum(totals, 0)
    # xx, yy, zz, xy, xz, yz stand at 0, 4, 8, 1, 2, 5 of the rows, the last three at 3, 6, 7 too
    upper = tl.where(column < 3, 4 * column, tl.where(column < 5, column - 2, 5))
    lower = tl.where(column < 3, 4 * column, tl.where(column < 5, 3 * column - 6, 7))
    out = strain_gradient + 9 * s
    tl.store(out + upper, six, mask=column < 6)
    tl.store(out + lower, six, mask=column < 6)
