"""Filters of all edges, and the reverse: gradients with respect to lengths and ev.

A program handles a tile of edges. w = table(d) + C(d) silu(I(chi_b - chi_a) W1 + b1) W2 is stored,
[n_edges, 2 F] with the filters of the features first. The reverse pass replaces it by its gradient
(`messages_gradient`).
`attncalc.nn.so3krates.EuclideanAttention` is the definition.

A row of `table` holds cubics of the filters of features and geometry side by side [4, 2 F]; the
last row is zero, for edges that do not count.
"""

import triton
import triton.language as tl

from attncalc.kernels.gpu.formulas import silu, silu_slope
from attncalc.kernels.so3krates_gpu.formulas import (
    cubic,
    cubic_slope,
    load_matrix,
    load_rows,
    load_transposed,
    matvec_transposed,
    store_rows,
)


@triton.jit
def load_tile(n_edges, knots, places, zero_row, EDGES: tl.constexpr):
    """Load the edges of this program: index, validity, row of tables, place in it."""
    e = tl.program_id(0) * EDGES + tl.arange(0, EDGES)
    valid = e < n_edges
    knot = tl.load(knots + e, mask=valid, other=zero_row)
    return e, valid, knot, tl.load(places + e, mask=valid, other=0.0)


@triton.jit
def differences(e, valid, receivers, senders, ev, of_degree, MP: tl.constexpr):
    """chi_b - chi_a [T, M], and the sums of its squares over the orders [T, L]."""
    a = tl.load(receivers + e, mask=valid, other=0)
    b = tl.load(senders + e, mask=valid, other=0)
    difference = load_rows(ev, b, valid, MP, MP) - load_rows(ev, a, valid, MP, MP)
    return difference, matvec_transposed(difference * difference, of_degree)


@triton.jit
def preactivation(squares, first, first_bias, KIND: tl.constexpr, L: tl.constexpr, K: tl.constexpr):
    """I W1 + b1 [T, K] of features (KIND 0) or geometry (1)."""
    weight = load_transposed(first + KIND * K, L, K, 2 * K)
    bias = tl.load(first_bias + KIND * K + tl.arange(0, K))
    return matvec_transposed(squares, weight) + bias[None, :]


@triton.jit(do_not_specialize=["n_atoms"])
def filters(
    rows,
    receivers,
    senders,
    knots,
    places,
    envelopes,
    table,
    first,
    first_bias,
    second,
    of_degree,
    ev,
    w,
    n_atoms,
    zero_row,
    F: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    EDGES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the filters w [n_edges, 2 F] of a layer.

    Args:
        rows: [n_atoms + 1], where an atom's edges begin.
        receivers .. envelopes: those of edges.
        table .. second: weights of this layer's filters.
        of_degree: [L, M].
        ev: [n_atoms, M]. If RESTS, it is zero and not read, and the table includes the spherical
            part of the filters.
        zero_row: row of the table that is zero.
    """
    K: tl.constexpr = F // 4
    n_edges = tl.load(rows + n_atoms)
    if tl.program_id(0) * EDGES < n_edges:
        e, valid, knot, place = load_tile(n_edges, knots, places, zero_row, EDGES)
        if RESTS:
            for kind in tl.static_range(2):
                of_kind = cubic(table + kind * F, knot, place, 8 * F, F, 2 * F)
                store_rows(w + kind * F, e, valid, of_kind, 2 * F, F)
        else:
            envelope = tl.load(envelopes + e, mask=valid, other=0.0)
            degrees = load_matrix(of_degree, L, MP, MP)
            _, squares = differences(e, valid, receivers, senders, ev, degrees, MP)
            for kind in tl.static_range(2):
                hidden = envelope[:, None] * silu(
                    preactivation(squares, first, first_bias, kind, L, K)
                )
                for column in range(0, F, COLUMNS):
                    at = kind * F + column
                    part = cubic(table + at, knot, place, 8 * F, COLUMNS, 2 * F)
                    weight = load_matrix(second + kind * K * F + column, K, COLUMNS, F)
                    part = tl.dot(hidden, weight, part, input_precision=PRECISION)
                    store_rows(w + at, e, valid, part, 2 * F, COLUMNS)


@triton.jit(do_not_specialize=["n_atoms"])
def filters_gradient(
    rows,
    receivers,
    senders,
    knots,
    places,
    envelopes,
    envelope_slopes,
    table,
    first,
    first_bias,
    second_transposed,
    of_degree,
    per_length,
    ev,
    w,
    d_lengths,
    d_differences,
    n_atoms,
    zero_row,
    F: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    EDGES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESTS: tl.constexpr,
    ADDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `filters`.

    Args:
        per_length: [1], 1/Å, intervals of the table per length.
        w: [n_edges, 2 F], gradients with respect to filters.
        d_lengths: [n_edges], stored or (ADDS) added to.
        d_differences: [n_edges, M], gradient with respect to chi_b - chi_a of the pair (not of one
            of its two edges), stored unless RESTS.
    """
    K: tl.constexpr = F // 4
    n_edges = tl.load(rows + n_atoms)
    if tl.program_id(0) * EDGES < n_edges:
        e, valid, knot, place = load_tile(n_edges, knots, places, zero_row, EDGES)
        if RESTS:
            along = tl.zeros([EDGES], tl.float32)
            for kind in tl.static_range(2):
                d_w = load_rows(w + kind * F, e, valid, 2 * F, F)
                slope = cubic_slope(table + kind * F, knot, place, 8 * F, F, 2 * F)
                along += tl.sum(d_w * slope, 1)
            along *= tl.load(per_length)
        else:
            envelope = tl.load(envelopes + e, mask=valid, other=0.0)
            degrees = load_matrix(of_degree, L, MP, MP)
            difference, squares = differences(e, valid, receivers, senders, ev, degrees, MP)
            along, by_envelope = tl.zeros([EDGES], tl.float32), tl.zeros([EDGES], tl.float32)
            d_squares = tl.zeros([EDGES, L], tl.float32)
            for kind in tl.static_range(2):
                d_hidden = tl.zeros([EDGES, K], tl.float32)
                for column in range(0, F, COLUMNS):
                    at = kind * F + column
                    d_w = load_rows(w + at, e, valid, 2 * F, COLUMNS)
                    slope = cubic_slope(table + at, knot, place, 8 * F, COLUMNS, 2 * F)
                    along += tl.sum(d_w * slope, 1)
                    weight = load_matrix(second_transposed + at * K, COLUMNS, K, K)
                    d_hidden = tl.dot(d_w, weight, d_hidden, input_precision=PRECISION)
                z = preactivation(squares, first, first_bias, kind, L, K)
                by_envelope += tl.sum(d_hidden * silu(z), 1)
                d_z = d_hidden * silu_slope(z) * envelope[:, None]
                d_squares += matvec_transposed(d_z, load_matrix(first + kind * K, L, K, 2 * K))
            slope_of_envelope = tl.load(envelope_slopes + e, mask=valid, other=0.0)
            along = along * tl.load(per_length) + by_envelope * slope_of_envelope
            by_order = matvec_transposed(d_squares, load_transposed(of_degree, L, MP, MP))
            store_rows(d_differences, e, valid, 2 * by_order * difference, MP, MP)
        if ADDS:
            along += tl.load(d_lengths + e, mask=valid, other=0.0)
        tl.store(d_lengths + e, along, mask=valid)


@triton.jit
def ev_gradient(rows, d_differences, d_received, d_ev, MP: tl.constexpr, B: tl.constexpr):
    """Store the gradients with respect to ev [n_atoms, M], of differences and of messages.

    Args:
        d_differences: [n_edges, M].
        d_received: [n_atoms, M], gradient with respect to ev plus messages.
    """
    a = tl.program_id(0)
    total = tl.zeros([B, MP], tl.float32)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        total += load_rows(d_differences, e, e < end, MP, MP)
    at = a.to(tl.int64) * MP + tl.arange(0, MP)
    tl.store(d_ev + at, tl.load(d_received + at) - tl.sum(total, 0))
