"""Attention over the edges of one atom: messages, and the gradients of all inputs.

A program handles one receiving atom a. The second index of the grid selects the features (0) or the
geometry (1), which share nothing but the differences of Euclidean variables. The program goes
through the atom's edges in blocks of B. The filters
w = table(d) + C(d) silu(I(chi_b - chi_a) W1 + b1) W2 are computed, used and discarded, and computed
again in the reverse pass. `attncalc.nn.so3krates.EuclideanAttention` is the definition.

Both directions of every pair are listed, one under each of its atoms, and w is equal for both. So
the reverse pass of atom a finds everything that depends on a's queries, keys and values among its
own edges: for each neighbour b it uses the coefficients of (a <- b) and of (b <- a). No program
adds to the memory of another atom, and sums have a fixed order.

A row of `projected` [n_atoms, 5 F] holds queries, keys, values of the features, then queries, keys
of the geometry. A row of `table` holds cubics of the filters of features and geometry side by side
[4, 2 F]; the last row is zero, for edges that do not count.
"""

import triton
import triton.language as tl

from attncalc.kernels.gpu.formulas import silu, silu_slope
from attncalc.kernels.so3krates_gpu.formulas import (
    add_product,
    cubic,
    cubic_slope,
    load_matrix,
    load_row,
    load_rows,
    matvec,
    matvec_transposed,
    repeat_parts,
    store_row,
    store_rows,
    sum_parts,
)

SIZE = tl.constexpr(2048)  # how many numbers of a weight are multiplied at a time


@triton.jit
def load_block(block, end, senders, knots, places, envelopes, zero_row, B: tl.constexpr):
    """Load edges from `block` on: index, validity, sender, row of tables, place in it, C(d)."""
    e = block + tl.arange(0, B)
    valid = e < end
    b = tl.load(senders + e, mask=valid, other=0)
    knot = tl.load(knots + e, mask=valid, other=zero_row)
    place = tl.load(places + e, mask=valid, other=0.0)
    return e, valid, b, knot, place, tl.load(envelopes + e, mask=valid, other=0.0)


@triton.jit
def squares_of(ev_a, ev, b, valid, of_degree, MP: tl.constexpr, RESTS: tl.constexpr):
    """chi_b - chi_a [B, M], and the sums of its squares over the orders [B, L]."""
    difference = tl.zeros([b.shape[0], MP], tl.float32)
    if not RESTS:
        difference = tl.where(valid[:, None], load_rows(ev, b, valid, MP, MP) - ev_a[None, :], 0.0)
    return difference, matvec_transposed(difference * difference, of_degree)


@triton.jit
def preactivation(squares, first, first_bias, KIND: tl.constexpr, L: tl.constexpr, K: tl.constexpr):
    """I W1 + b1 [B, K], and the part of W1 [L, K] that belongs to filters of this kind."""
    degree, column = tl.arange(0, L), KIND * K + tl.arange(0, K)
    weight = tl.load(first + degree[:, None] * (2 * K) + column[None, :])
    return matvec(squares, weight) + tl.load(first_bias + column)[None, :], weight


@triton.jit
def filters(
    knot,
    place,
    envelope,
    squares,
    table,
    first,
    first_bias,
    second,
    KIND: tl.constexpr,
    F: tl.constexpr,
    L: tl.constexpr,
    B: tl.constexpr,
    RESTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """w [B, F] of features (KIND 0) or geometry (1)."""
    K: tl.constexpr = F // 4
    w = cubic(table + KIND * F, knot, place, 8 * F, F, 2 * F)
    if not RESTS:
        z, _ = preactivation(squares, first, first_bias, KIND, L, K)
        w = add_product(
            w, envelope[:, None] * silu(z), second + KIND * K * F, B, K, F, SIZE, PRECISION
        )
    return w


@triton.jit
def filters_gradient(
    d_w,
    knot,
    place,
    envelope,
    envelope_slope,
    squares,
    per_length,
    table,
    first,
    first_bias,
    second_transposed,
    KIND: tl.constexpr,
    F: tl.constexpr,
    L: tl.constexpr,
    B: tl.constexpr,
    RESTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `filters`: gradients with respect to lengths [B] and squares [B, L]."""
    K: tl.constexpr = F // 4
    slope = cubic_slope(table + KIND * F, knot, place, 8 * F, F, 2 * F)
    along = tl.sum(d_w * slope, 1) * per_length
    d_squares = tl.zeros([B, L], tl.float32)
    if not RESTS:
        d_hidden = tl.zeros([B, K], tl.float32)
        weight = second_transposed + KIND * F * K
        d_hidden = add_product(d_hidden, d_w, weight, B, F, K, SIZE, PRECISION)
        z, weight_of_z = preactivation(squares, first, first_bias, KIND, L, K)
        along += tl.sum(d_hidden * silu(z), 1) * envelope_slope
        d_z = d_hidden * silu_slope(z) * envelope[:, None]
        d_squares = matvec_transposed(d_z, weight_of_z)
    return along, d_squares


@triton.jit
def messages(
    rows,
    senders,
    knots,
    places,
    envelopes,
    spherical,
    table,
    first,
    first_bias,
    second,
    of_degree,
    projected,
    ev,
    features,
    ev_after,
    zero_row,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    RESTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the messages to `features` [n_atoms, F]; store `ev` plus messages in ev_after.

    Args:
        rows: [n_atoms + 1], where an atom's edges begin.
        senders .. spherical: those of edges.
        table .. second: weights of this layer's filters.
        of_degree: [L, M].
        projected, ev: those of atoms. If RESTS, `ev` is zero and not read, and the table includes
            the spherical part of the filters.
        ev_after: [n_atoms, M].
        zero_row: row of the table that is zero.
    """
    a = tl.program_id(0)
    of_degree = load_matrix(of_degree, L, MP)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    ev_a = tl.zeros([MP], tl.float32)
    if not RESTS:
        ev_a = load_row(ev, a, MP, MP)
    if tl.program_id(1) == 0:
        q = load_row(projected, a, 5 * F, F)[None, :]
        to_features = load_row(features, a, F, F)
        for block in range(begin, end, B):
            e, valid, b, knot, place, envelope = load_block(
                block, end, senders, knots, places, envelopes, zero_row, B
            )
            _, squares = squares_of(ev_a, ev, b, valid, of_degree, MP, RESTS)
            w = filters(
                *(knot, place, envelope, squares, table, first, first_bias, second),
                *(0, F, L, B, RESTS, PRECISION),
            )
            k = load_rows(projected + F, b, valid, 5 * F, F)
            v = load_rows(projected + 2 * F, b, valid, 5 * F, F)
            alpha = repeat_parts(sum_parts(q * w * k, B, F, H), B, F, H)
            to_features += tl.sum(alpha * v, 0)
        store_row(features, a, to_features, F, F)
    else:
        q = load_row(projected + 3 * F, a, 5 * F, F)[None, :]
        to_ev = ev_a
        for block in range(begin, end, B):
            e, valid, b, knot, place, envelope = load_block(
                block, end, senders, knots, places, envelopes, zero_row, B
            )
            _, squares = squares_of(ev_a, ev, b, valid, of_degree, MP, RESTS)
            w = filters(
                *(knot, place, envelope, squares, table, first, first_bias, second),
                *(1, F, L, B, RESTS, PRECISION),
            )
            k = load_rows(projected + 4 * F, b, valid, 5 * F, F)
            beta = sum_parts(q * w * k, B, F, L)
            y = load_rows(spherical, e, valid, MP, MP)
            to_ev += tl.sum(matvec(beta, of_degree) * y, 0)
        store_row(ev_after, a, to_ev, MP, MP)


@triton.jit
def messages_gradient(
    rows,
    senders,
    knots,
    places,
    envelopes,
    envelope_slopes,
    spherical,
    table,
    first,
    first_bias,
    second,
    second_transposed,
    of_degree,
    parity,
    per_length,
    projected,
    ev,
    d_features,
    d_received,
    d_projected,
    d_ev,
    d_lengths,
    d_spherical,
    zero_row,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    RESTS: tl.constexpr,
    ADDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `messages`.

    Args:
        parity: [M], Y(-u) / Y(u).
        per_length: [1], 1/Å, intervals of the table per length.
        d_features, d_received: gradients with respect to the sums of messages.
        d_projected: gradient with respect to `projected`, stored.
        d_ev: [n_atoms, 2, M], gradients with respect to `ev` through the features, and all others;
            the latter include `d_received`, since messages are added to `ev`. Stored.
        d_lengths, d_spherical: [n_edges, 2] (through features, geometry), [n_edges, M], stored or
            (ADDS) added to: gradients with respect to length and harmonics of the pair, equal for
            both edges of a pair.
    """
    a = tl.program_id(0)
    of_degree = load_matrix(of_degree, L, MP)
    per_length = tl.load(per_length)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    ev_a = tl.zeros([MP], tl.float32)
    if not RESTS:
        ev_a = load_row(ev, a, MP, MP)
    if tl.program_id(1) == 0:
        q = load_row(projected, a, 5 * F, F)[None, :]
        k = load_row(projected + F, a, 5 * F, F)[None, :]
        v = load_row(projected + 2 * F, a, 5 * F, F)[None, :]
        d_x = load_row(d_features, a, F, F)[None, :]
        d_q, d_k = tl.zeros([F], tl.float32), tl.zeros([F], tl.float32)
        d_v = tl.zeros([F], tl.float32)
        pulled = tl.zeros([MP], tl.float32)
        for block in range(begin, end, B):
            e, valid, b, knot, place, envelope = load_block(
                block, end, senders, knots, places, envelopes, zero_row, B
            )
            difference, squares = squares_of(ev_a, ev, b, valid, of_degree, MP, RESTS)
            w = filters(
                *(knot, place, envelope, squares, table, first, first_bias, second),
                *(0, F, L, B, RESTS, PRECISION),
            )
            d_x_b = load_rows(d_features, b, valid, F, F)
            v_b = load_rows(projected + 2 * F, b, valid, 5 * F, F)
            k_b = load_rows(projected + F, b, valid, 5 * F, F)
            from_a = repeat_parts(sum_parts(d_x * v_b, B, F, H), B, F, H) * k_b
            d_q += tl.sum(from_a * w, 0)
            q_b = load_rows(projected, b, valid, 5 * F, F)
            alpha = repeat_parts(sum_parts(q_b * w * k, B, F, H), B, F, H)
            d_v += tl.sum(alpha * d_x_b, 0)
            from_b = repeat_parts(sum_parts(d_x_b * v, B, F, H), B, F, H) * q_b
            d_k += tl.sum(from_b * w, 0)
            slope = tl.load(envelope_slopes + e, mask=valid, other=0.0)
            along, d_squares = filters_gradient(
                *(from_a * q + from_b * k, knot, place, envelope, slope, squares, per_length),
                *(table, first, first_bias, second_transposed, 0, F, L, B, RESTS, PRECISION),
            )
            if not RESTS:
                pulled -= 2 * tl.sum(matvec(d_squares, of_degree) * difference, 0)
            if ADDS:
                along += tl.load(d_lengths + 2 * e, mask=valid, other=0.0)
            tl.store(d_lengths + 2 * e, along, mask=valid)
        store_row(d_projected, a, d_q, 5 * F, F)
        store_row(d_projected + F, a, d_k, 5 * F, F)
        store_row(d_projected + 2 * F, a, d_v, 5 * F, F)
        store_row(d_ev, a, pulled, 2 * MP, MP)
    else:
        signs = tl.load(parity + tl.arange(0, MP))[None, :]
        q = load_row(projected + 3 * F, a, 5 * F, F)[None, :]
        k = load_row(projected + 4 * F, a, 5 * F, F)[None, :]
        pulled = load_row(d_received, a, MP, MP)
        d_y = pulled[None, :]
        d_q, d_k = tl.zeros([F], tl.float32), tl.zeros([F], tl.float32)
        for block in range(begin, end, B):
            e, valid, b, knot, place, envelope = load_block(
                block, end, senders, knots, places, envelopes, zero_row, B
            )
            difference, squares = squares_of(ev_a, ev, b, valid, of_degree, MP, RESTS)
            w = filters(
                *(knot, place, envelope, squares, table, first, first_bias, second),
                *(1, F, L, B, RESTS, PRECISION),
            )
            q_b = load_rows(projected + 3 * F, b, valid, 5 * F, F)
            k_b = load_rows(projected + 4 * F, b, valid, 5 * F, F)
            y = load_rows(spherical, e, valid, MP, MP)
            d_y_b = load_rows(d_received, b, valid, MP, MP) * signs
            to_a = matvec(sum_parts(q * w * k_b, B, F, L), of_degree)
            to_b = matvec(sum_parts(q_b * w * k, B, F, L), of_degree)
            d_harmonics = to_a * d_y + to_b * d_y_b
            if ADDS:
                d_harmonics += load_rows(d_spherical, e, valid, MP, MP)
            store_rows(d_spherical, e, valid, d_harmonics, MP, MP)
            from_a = repeat_parts(matvec_transposed(d_y * y, of_degree), B, F, L) * k_b
            from_b = repeat_parts(matvec_transposed(d_y_b * y, of_degree), B, F, L) * q_b
            d_q += tl.sum(from_a * w, 0)
            d_k += tl.sum(from_b * w, 0)
            slope = tl.load(envelope_slopes + e, mask=valid, other=0.0)
            along, d_squares = filters_gradient(
                *(from_a * q + from_b * k, knot, place, envelope, slope, squares, per_length),
                *(table, first, first_bias, second_transposed, 1, F, L, B, RESTS, PRECISION),
            )
            if not RESTS:
                pulled -= 2 * tl.sum(matvec(d_squares, of_degree) * difference, 0)
            if ADDS:
                along += tl.load(d_lengths + 2 * e + 1, mask=valid, other=0.0)
            tl.store(d_lengths + 2 * e + 1, along, mask=valid)
        store_row(d_projected + 3 * F, a, d_q, 5 * F, F)
        store_row(d_projected + 4 * F, a, d_k, 5 * F, F)
        store_row(d_ev + MP, a, pulled, 2 * MP, MP)


@triton.jit
def start_ev(rows, envelopes, spherical, start, ev, MP: tl.constexpr, B: tl.constexpr):
    """Store ev [n_atoms, M]: the neighbours' sum of C(d) Y(u), times start [1]."""
    a = tl.program_id(0)
    gathered = tl.zeros([MP], tl.float32)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        envelope = tl.load(envelopes + e, mask=valid, other=0.0)
        gathered += tl.sum(envelope[:, None] * load_rows(spherical, e, valid, MP, MP), 0)
    store_row(ev, a, gathered * tl.load(start), MP, MP)


@triton.jit
def start_ev_gradient(
    rows,
    senders,
    envelopes,
    envelope_slopes,
    spherical,
    parity,
    start,
    d_ev,
    d_lengths,
    d_spherical,
    MP: tl.constexpr,
    B: tl.constexpr,
):
    """Reverse of `start_ev`: add to d_lengths and d_spherical."""
    a = tl.program_id(0)
    scale = tl.load(start)
    signs = tl.load(parity + tl.arange(0, MP))[None, :]
    d_ev_a = (load_row(d_ev, a, 2 * MP, MP) + load_row(d_ev + MP, a, 2 * MP, MP))[None, :]
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        b = tl.load(senders + e, mask=valid, other=0)
        d_ev_b = load_rows(d_ev, b, valid, 2 * MP, MP) + load_rows(d_ev + MP, b, valid, 2 * MP, MP)
        both = scale * (d_ev_a + signs * d_ev_b)
        y = load_rows(spherical, e, valid, MP, MP)
        envelope = tl.load(envelopes + e, mask=valid, other=0.0)[:, None]
        d_y = load_rows(d_spherical, e, valid, MP, MP) + envelope * both
        store_rows(d_spherical, e, valid, d_y, MP, MP)
        along = tl.sum(both * y, 1) * tl.load(envelope_slopes + e, mask=valid, other=0.0)
        along += tl.load(d_lengths + 2 * e, mask=valid, other=0.0)
        tl.store(d_lengths + 2 * e, along, mask=valid)
