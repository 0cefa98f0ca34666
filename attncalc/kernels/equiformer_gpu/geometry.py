"""Edges that count, their frames, radial basis and envelope; and the way back to forces.

A padded list has more edges than count. Those that do are written one after another in the order
of the list, so that what follows works on them alone; how many there are is known on the GPU only,
and arrays stay as long as the list.
"""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import in_range, rows_of

_PI = tl.constexpr(3.141592653589793)
# envelopes below are none: nothing of such an edge could be seen in the result
_FADED = tl.constexpr(1e-30)


@triton.jit
def _length(vectors, rows, live):
    """x, y, z, length Å in float64; those that are not there have length 1."""
    x = tl.load(vectors + 3 * rows, live, other=1)
    y = tl.load(vectors + 3 * rows + 1, live, other=0)
    z = tl.load(vectors + 3 * rows + 2, live, other=0)
    return x, y, z, tl.sqrt(x * x + y * y + z * z)


@triton.jit
def _envelope(length, cutoff):
    """1 - 10 s^3 + 15 s^4 - 6 s^5 up to the cutoff, and its slope."""
    s = length / cutoff
    rest = tl.where(s >= 1, 0.0, 1 - s)  # NaN stays
    value = rest * rest * rest * (1 + s * (3 + 6 * s))
    return value, -30 * s * s * rest * rest / cutoff


@triton.jit(do_not_specialize=["n_edges"])
def mark(vectors, mask, n_edges, limits, kept, SMOOTH: tl.constexpr, BE: tl.constexpr):
    """kept = 1 for edges that count, else 0."""
    rows, live = in_range(tl.program_id(0) * BE, n_edges, BE)
    counts = tl.load(mask + rows, live, other=0) != 0
    if SMOOTH:
        _, _, _, length = _length(vectors, rows.to(tl.int64), live)
        value, _ = _envelope(length, tl.load(limits))
        counts = counts & ~(value < _FADED)
    tl.store(kept + rows, counts.to(tl.int32), live)


@triton.jit(do_not_specialize=["n_edges"])
def collect(
    vectors,
    receivers,
    senders,
    kept,
    rank,
    n_edges,
    limits,
    centres,
    widths,
    i,
    j,
    near,
    envelope,
    along,
    basis,
    slopes,
    frames,
    SMOOTH: tl.constexpr,
    BASIS: tl.constexpr,
    N_BASIS: tl.constexpr,
    FRAMES: tl.constexpr,
    BE: tl.constexpr,
):
    """Everything of the edges that count, each at its rank.

    Args:
        vectors, receivers, senders: of the list.
        kept, rank: [n_edges], and their running sum.
        limits: [2] Å, cutoff, and the shortest length that is allowed.
        centres, widths: [N_BASIS], of the radial basis.
        i, j: receivers, senders.
        near: [n_edges, 3], vectors Å.
        envelope, along: [n_edges], c, and dc/dd in float64.
        basis, slopes: [n_edges, BASIS], b and db/dd.
        frames: [n_edges, FRAMES], D_0 and D_1 are filled.
    """
    edges, live = in_range(tl.program_id(0) * BE, n_edges, BE)
    live = live & (tl.load(kept + edges, live, other=0) != 0)
    rows = (tl.load(rank + edges, live, other=1) - 1).to(tl.int64)
    x, y, z, length = _length(vectors, edges.to(tl.int64), live)
    tl.store(i + rows, tl.load(receivers + edges, live, other=0).to(tl.int32), live)
    tl.store(j + rows, tl.load(senders + edges, live, other=0).to(tl.int32), live)
    tl.store(near + 3 * rows, x, live)
    tl.store(near + 3 * rows + 1, y, live)
    tl.store(near + 3 * rows + 2, z, live)
    cutoff = tl.load(limits)
    value, slope = _envelope(length, cutoff)
    if not SMOOTH:
        value, slope = value * 0 + 1, slope * 0
    value = tl.where(length < tl.load(limits + 1), float("nan"), value)
    tl.store(envelope + rows, value.to(envelope.dtype.element_ty), live)
    tl.store(along + rows, slope, live)
    # the radial basis, as `attncalc.basis.radial.ExpNormalBasis`
    k = tl.arange(0, BASIS)
    there = k < N_BASIS
    angle = tl.where(length >= cutoff, cutoff, length) / cutoff * _PI  # NaN stays
    fade, fade_slope = (1 + tl.cos(angle)) / 2, tl.sin(angle) * _PI / (-2 * cutoff)
    close = tl.exp(-length)
    offset = close[:, None] - tl.load(centres + k, there, other=0)[None, :]
    width = tl.load(widths + k, there, other=0)[None, :]
    bell = tl.where(there[None, :], tl.exp(-width * offset * offset), 0.0)
    to = rows_of(basis, rows, BASIS)[:, None] + k[None, :]
    tl.store(to, (fade[:, None] * bell).to(basis.dtype.element_ty), live[:, None])
    change = fade_slope[:, None] + fade[:, None] * 2 * width * offset * close[:, None]
    to = rows_of(slopes, rows, BASIS)[:, None] + k[None, :]
    tl.store(to, (bell * change).to(slopes.dtype.element_ty), live[:, None])
    _store_frames(x / length, y / length, z / length, rows_of(frames, rows, FRAMES), live)


@triton.jit
def _store_frames(x, y, z, to, live):
    """D_0 and D_1, see `attncalc.basis.edge_frames`: no pole to divide by."""
    number = to.dtype.element_ty
    turn = tl.where(y < 0, -1.0, 1.0)
    y, z = y * turn, z * turn
    t = 1 / (1 + y)
    xz = -x * z * t
    tl.store(to, tl.full(x.shape, 1.0, number), live)
    tl.store(to + 1, x.to(number), live)
    tl.store(to + 2, ((1 - (x * x + z * z) * t) * turn).to(number), live)
    tl.store(to + 3, (z * turn).to(number), live)
    tl.store(to + 4, xz.to(number), live)
    tl.store(to + 5, (-z * turn).to(number), live)
    tl.store(to + 6, ((1 - z * z * t) * turn).to(number), live)
    tl.store(to + 7, (1 - x * x * t).to(number), live)
    tl.store(to + 8, (-x * turn).to(number), live)
    tl.store(to + 9, (xz * turn).to(number), live)


@triton.jit
def raise_frames(
    raising,
    counts,
    frames,
    DEGREE: tl.constexpr,
    ROW: tl.constexpr,
    FRAMES: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """D_l from D_(l-1) and D_1, l = DEGREE; a program per BE edges.

    Args:
        raising: [(3 (2l-1))^2, ROW], for the products of their numbers.
        frames: [n_edges, FRAMES].
    """
    n_rows = tl.load(counts)
    start = tl.program_id(0) * BE
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        BELOW: tl.constexpr = 2 * DEGREE - 1
        PRODUCTS: tl.constexpr = 9 * BELOW * BELOW
        SIZE: tl.constexpr = (2 * DEGREE + 1) * (2 * DEGREE + 1)
        FIRST: tl.constexpr = (DEGREE - 1) * (2 * DEGREE - 3) * BELOW // 3
        n = tl.arange(0, BN)
        of_frame = rows_of(frames, rows, FRAMES)[:, None]
        total = tl.zeros([BE, BN], dtype=frames.dtype.element_ty)
        for step in range(0, PRODUCTS, BK):
            # components a, b of the rotated vector, c, f of the given one
            number = step + tl.arange(0, BK)
            a, b = number // (9 * BELOW), number // (3 * BELOW) % 3
            c, f = number // 3 % BELOW, number % 3
            inside = number < PRODUCTS
            mask = live[:, None] & inside[None, :]
            below = tl.load(of_frame + (FIRST + a * BELOW + c)[None, :], mask, other=0)
            product = below * tl.load(of_frame + (1 + 3 * b + f)[None, :], mask, other=0)
            at = raising + number[:, None] * ROW + n[None, :]
            w = tl.load(at, inside[:, None] & (n < SIZE)[None, :], other=0)
            total = tl.dot(product, w, total, input_precision=PRECISION, out_dtype=total.dtype)
        to = of_frame + (FIRST + BELOW * BELOW + n)[None, :]
        tl.store(to, total, live[:, None] & (n < SIZE)[None, :])


@triton.jit
def _repulsion(length, a, b, numbers, exponents, weights, limits):
    """Half of the energy of two atoms, and its slope, as `attncalc.physics.zbl.ZBLRepulsion`.

    Args:
        a, b: species.
        numbers: [n_species, 2], charges and inverse lengths.
        exponents, weights: [4], of the screening.
        limits: [2] Å: cutoff, and where the repulsion has ended.
    """
    cutoff, end = tl.load(limits), tl.load(limits + 1)
    acts = (length < cutoff) & (length < end)
    d = tl.where(acts, length, end / 2)
    inverse_length = tl.load(numbers + 2 * a + 1) + tl.load(numbers + 2 * b + 1)
    screening, slope = d * 0, d * 0
    for m in tl.static_range(4):
        rate = tl.load(exponents + m) * inverse_length
        term = tl.load(weights + m) * tl.exp(-rate * d)
        screening += term
        slope -= rate * term
    envelope, d_envelope = _envelope(d, cutoff)
    t = d / end
    switch = 1 / (1 + tl.exp(1 / (1 - t) - 1 / t))
    d_switch = -switch * (1 - switch) * (1 / (t * t) + 1 / ((1 - t) * (1 - t))) / end
    half = tl.load(numbers + 2 * a) * tl.load(numbers + 2 * b) / (2 * d)
    energy = half * envelope * switch * screening
    slope = half * (
        d_envelope * switch * screening
        + envelope * d_switch * screening
        + envelope * switch * slope
    )
    return tl.where(acts, energy, 0.0), tl.where(acts, slope - energy / d, 0.0)


@triton.jit
def edge_gradient(
    near,
    frames,
    along,
    d_envelope,
    d_lengths,
    d_turn,
    i,
    j,
    species,
    numbers,
    exponents,
    weights,
    limits,
    counts,
    gradient,
    pair_energies,
    FRAMES: tl.constexpr,
    ENVELOPES: tl.constexpr,
    LENGTHS: tl.constexpr,
    TURNS: tl.constexpr,
    REPELS: tl.constexpr,
    BE: tl.constexpr,
    BV: tl.constexpr,
    BL: tl.constexpr,
    BT: tl.constexpr,
):
    """Gradient of the energy by edge vectors, of all that has been gathered; BE edges a program.

    Args:
        near, frames, along: see `collect`.
        d_envelope, d_lengths: [n_edges, ENVELOPES], [n_edges, LENGTHS]: parts.
        d_turn: [n_edges, TURNS, 2]: parts, by how far the pole moves to +x and +z of the frame.
        numbers .. limits: see `_repulsion`, read if REPELS.
        gradient: [n_edges, 3] eV/Å. pair_energies: [n_edges] eV, of the repulsion.
    """
    n_rows = tl.load(counts)
    start = tl.program_id(0) * BE
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        rows = rows.to(tl.int64)
        x, y, z, length = _length(near, rows, live)
        v, u, t = tl.arange(0, BV), tl.arange(0, BL), tl.arange(0, BT)
        at, mask = (
            (rows * ENVELOPES)[:, None] + v[None, :],
            live[:, None] & (v < ENVELOPES)[None, :],
        )
        by_envelope = tl.sum(tl.load(d_envelope + at, mask, other=0).to(tl.float64), 1)
        at, mask = (rows * LENGTHS)[:, None] + u[None, :], live[:, None] & (u < LENGTHS)[None, :]
        by_length = tl.sum(tl.load(d_lengths + at, mask, other=0).to(tl.float64), 1)
        by_length += by_envelope * tl.load(along + rows, live, other=0)
        if REPELS:
            a = tl.load(species + tl.load(i + rows, live, other=0))
            b = tl.load(species + tl.load(j + rows, live, other=0))
            energy, slope = _repulsion(length, a, b, numbers, exponents, weights, limits)
            tl.store(pair_energies + rows, energy, live)
            by_length += slope
        at, mask = (rows * TURNS)[:, None] + t[None, :], live[:, None] & (t < TURNS)[None, :]
        to_x = tl.sum(tl.load(d_turn + 2 * at, mask, other=0).to(tl.float64), 1) / length
        to_z = tl.sum(tl.load(d_turn + 2 * at + 1, mask, other=0).to(tl.float64), 1) / length
        frame = frames + rows * FRAMES
        # in the frame of the edge: across by turning it, along by its length
        gx = by_length * x / length
        gx += to_z * tl.load(frame + 4, live, other=0) + to_x * tl.load(frame + 7, live, other=0)
        gy = by_length * y / length
        gy += to_z * tl.load(frame + 5, live, other=0) + to_x * tl.load(frame + 8, live, other=0)
        gz = by_length * z / length
        gz += to_z * tl.load(frame + 6, live, other=0) + to_x * tl.load(frame + 9, live, other=0)
        tl.store(gradient + 3 * rows, gx, live)
        tl.store(gradient + 3 * rows + 1, gy, live)
        tl.store(gradient + 3 * rows + 2, gz, live)


@triton.jit
def _gradients(gradient, rows, live):
    """x, y, z of some edges."""
    gx = tl.load(gradient + 3 * rows, live, other=0)
    gy = tl.load(gradient + 3 * rows + 1, live, other=0)
    return gx, gy, tl.load(gradient + 3 * rows + 2, live, other=0)


@triton.jit
def forces_of_atoms(
    near,
    gradient,
    pair_energies,
    of_receivers,
    of_senders,
    order,
    energies,
    forces,
    strains,
    REPELS: tl.constexpr,
    BE: tl.constexpr,
):
    """What the edges of an atom add up to; a program per atom.

    Args:
        of_receivers, of_senders, order: see `turns.sum_turned_out`.
        energies: [n_atoms] eV, the repulsion is added.
        forces: [n_atoms, 3] eV/Å, filled.
        strains: [n_atoms, 9] eV, filled: strain gradient, symmetric.
    """
    atom = tl.program_id(0).to(tl.int64)
    first, last = tl.load(of_receivers + atom), tl.load(of_receivers + atom + 1)
    nothing = tl.zeros([BE], dtype=tl.float64)
    fx, fy, fz, energy = nothing, nothing, nothing, nothing
    xx, yy, zz, xy, xz, yz = nothing, nothing, nothing, nothing, nothing, nothing
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        rows = rows.to(tl.int64)
        gx, gy, gz = _gradients(gradient, rows, live)
        x, y, z = _gradients(near, rows, live)
        fx, fy, fz = fx + gx, fy + gy, fz + gz
        xx, yy, zz = xx + x * gx, yy + y * gy, zz + z * gz
        xy += (x * gy + y * gx) / 2
        xz += (x * gz + z * gx) / 2
        yz += (y * gz + z * gy) / 2
        if REPELS:
            energy += tl.load(pair_energies + rows, live, other=0)
    first, last = tl.load(of_senders + atom), tl.load(of_senders + atom + 1)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        rows = tl.load(order + rows, live, other=0)
        gx, gy, gz = _gradients(gradient, rows, live)
        fx, fy, fz = fx - gx, fy - gy, fz - gz
    tl.store(forces + 3 * atom, tl.sum(fx, 0))
    tl.store(forces + 3 * atom + 1, tl.sum(fy, 0))
    tl.store(forces + 3 * atom + 2, tl.sum(fz, 0))
    if REPELS:
        tl.store(energies + atom, tl.load(energies + atom) + tl.sum(energy, 0))
    to = strains + 9 * atom
    xy_all, xz_all, yz_all = tl.sum(xy, 0), tl.sum(xz, 0), tl.sum(yz, 0)
    tl.store(to, tl.sum(xx, 0))
    tl.store(to + 1, xy_all)
    tl.store(to + 2, xz_all)
    tl.store(to + 3, xy_all)
    tl.store(to + 4, tl.sum(yy, 0))
    tl.store(to + 5, yz_all)
    tl.store(to + 6, xz_all)
    tl.store(to + 7, yz_all)
    tl.store(to + 8, tl.sum(zz, 0))


@triton.jit
def sums_of_systems(energies, strains, of_systems, energy, strain_gradient, BA: tl.constexpr):
    """Energy [n_systems] and strain gradient [n_systems, 9]; a program per system.

    Args:
        of_systems: [n_systems + 1], first atom of every system.
    """
    system = tl.program_id(0)
    first, last = tl.load(of_systems + system), tl.load(of_systems + system + 1)
    column = tl.arange(0, 16)
    total = tl.zeros([BA], dtype=tl.float64)
    strain = tl.zeros([BA, 16], dtype=tl.float64)
    for start in range(first, last, BA):
        atoms, live = in_range(start, last, BA)
        total += tl.load(energies + atoms, live, other=0)
        mask = live[:, None] & (column < 9)[None, :]
        strain += tl.load(strains + 9 * atoms[:, None] + column[None, :], mask, other=0)
    tl.store(energy + system, tl.sum(total, 0))
    tl.store(strain_gradient + 9 * system + column, tl.sum(strain, 0), column < 9)
