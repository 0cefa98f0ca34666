"""Turning features into the frames of edges and back, with the sums over edges that go with it.

A tile is some channels of one degree, 8 integers in a table: degree, first of its channels,
channels of the degree, column of the first component in rows of atoms, distance to the next
component, distance to what else the row holds (the targets), column in rows of one number per
degree and channel, nothing. Where the components stand in rows of edges is in a table of its own,
[n_degrees, Q], Q the next power of 2 from 2 lmax + 1 on.

D_l of an edge begins at column l (2l-1) (2l+1) / 3 of its frame, and D_0 is 1.
"""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import in_range, rows_of


@triton.jit
def _turned(
    x,
    atoms,
    at,
    step,
    frames,
    rows,
    degree,
    live,
    x_row,
    FRAMES: tl.constexpr,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """[BE, Q, BC]: D x, of the atoms that belong to the edges `rows`."""
    n, q, k = 2 * degree + 1, tl.arange(0, Q), tl.arange(0, BC)
    of_x = rows_of(x, atoms, x_row)[:, None] + (at + k)[None, :]
    frame = rows_of(frames, rows, FRAMES) + degree * (2 * degree - 1) * n // 3
    of_frame = frame[:, None] + (q * n)[None, :]
    inside = live[:, None] & (q < n)[None, :]
    total = tl.zeros([BE, Q, BC], dtype=x.dtype.element_ty)
    for m in range(n):
        d = tl.load(of_frame + m, inside, other=0)
        v = tl.load(of_x + m * step, live[:, None], other=0)
        total += d[:, :, None] * v[:, None, :]
    return total


@triton.jit
def _edge_columns(x, rows, columns, degree, channel, x_row, Q: tl.constexpr, BC: tl.constexpr):
    """[BE, Q, BC]: where the components of some channels stand in rows of edges."""
    column = tl.load(columns + degree * Q + tl.arange(0, Q)) + channel
    column = column[None, :, None] + tl.arange(0, BC)[None, None, :]
    return rows_of(x, rows, x_row)[:, None, None] + column


@triton.jit
def _attention_of_channels(
    envelope,
    shares,
    rows,
    live,
    channel,
    width,
    HEADS: tl.constexpr,
    BC: tl.constexpr,
):
    """[BE, BC]: envelope times share of the head to which each channel belongs."""
    head = (channel + tl.arange(0, BC)) // (width // HEADS)
    at = rows_of(shares, rows, HEADS)[:, None] + head[None, :]
    c = tl.load(envelope + rows, live, other=0)
    return c[:, None] * tl.load(at, live[:, None], other=0)


@triton.jit
def turn_in(
    both,
    frames,
    receivers,
    senders,
    tiles,
    columns,
    counts,
    features,
    both_row,
    FRAMES: tl.constexpr,
    features_row,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """features = D (sources of the sender + targets of the receiver).

    A program per BE edges and tile.

    Args:
        both: [n_atoms, both_row], sources and targets.
        features: [n_edges, features_row].
    """
    n_rows = tl.load(counts)
    start = tl.program_id(0) * BE
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        tile = tiles + tl.program_id(1) * 8
        degree, channel, at = tl.load(tile), tl.load(tile + 1), tl.load(tile + 3)
        step, to_targets = tl.load(tile + 4), tl.load(tile + 5)
        i = tl.load(receivers + rows, live, other=0)
        j = tl.load(senders + rows, live, other=0)
        turned = _turned(both, j, at, step, frames, rows, degree, live, both_row, FRAMES, BE, Q, BC)
        at += to_targets
        turned += _turned(
            both, i, at, step, frames, rows, degree, live, both_row, FRAMES, BE, Q, BC
        )
        inside = live[:, None, None] & (tl.arange(0, Q) < 2 * degree + 1)[None, :, None]
        to = _edge_columns(features, rows, columns, degree, channel, features_row, Q, BC)
        tl.store(to, turned, inside)


@triton.jit
def sum_turned_out(
    values,
    frames,
    envelope,
    shares,
    of_receivers,
    of_senders,
    order,
    tiles,
    columns,
    out,
    values_row,
    FRAMES: tl.constexpr,
    out_row,
    HEADS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """out = sum over edges of D^T values; a program per atom, tile and end of the edges.

    Args:
        values: [n_edges, values_row], in the edges' frames.
        envelope, shares: [n_edges], [n_edges, HEADS]: attention, read if WEIGHTED.
        of_receivers: [n_atoms + 1], first edge of every receiver.
        of_senders: the same in `order`, the edges by sender.
        out: [n_atoms, out_row].
    """
    atom, end = tl.program_id(0), tl.program_id(2)
    tile = tiles + tl.program_id(1) * 8
    degree, channel, width = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    at, step, to_targets = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5)
    if end == 0:
        first, last = tl.load(of_receivers + atom), tl.load(of_receivers + atom + 1)
        at += to_targets
    else:
        first, last = tl.load(of_senders + atom), tl.load(of_senders + atom + 1)
    n, m, k = 2 * degree + 1, tl.arange(0, Q), tl.arange(0, BC)
    total = tl.zeros([BE, Q, BC], dtype=values.dtype.element_ty)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        if end == 1:
            rows = tl.load(order + rows, live, other=0).to(tl.int32)
        frame = rows_of(frames, rows, FRAMES) + degree * (2 * degree - 1) * n // 3
        of_frame = frame[:, None] + m[None, :]
        inside = live[:, None] & (m < n)[None, :]
        of_values = rows_of(values, rows, values_row)[:, None] + (channel + k)[None, :]
        weights = tl.full([BE, BC], 1.0, dtype=values.dtype.element_ty)
        if WEIGHTED:
            weights = _attention_of_channels(
                envelope, shares, rows, live, channel, width, HEADS, BC
            )
        for q in range(n):
            column = tl.multiple_of(tl.load(columns + degree * Q + q), 16)
            v = weights * tl.load(of_values + column, live[:, None], other=0)
            d = tl.load(of_frame + q * n, inside, other=0)
            total += d[:, :, None] * v[:, None, :]
    to = rows_of(out, atom, out_row) + at + m[:, None] * step + k[None, :]
    tl.store(to, tl.sum(total, 0), (m < n)[:, None] & (k >= 0)[None, :])


@triton.jit
def send_gradient(
    d_received,
    values,
    frames,
    envelope,
    shares,
    receivers,
    tiles,
    columns,
    counts,
    d_values,
    d_attention,
    received_row,
    values_row,
    FRAMES: tl.constexpr,
    HEADS: tl.constexpr,
    n_tiles,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """Reverse of the weighted `sum_turned_out`; a program per BE edges and tile.

    Args:
        d_received: [n_atoms, received_row].
        d_values: [n_edges, values_row], filled.
        d_attention: [n_edges, HEADS, n_tiles], filled: what each tile adds to it.
    """
    n_rows = tl.load(counts)
    start, number = tl.program_id(0) * BE, tl.program_id(1)
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        tile = tiles + number * 8
        degree, channel, width = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
        at, step = tl.load(tile + 3), tl.load(tile + 4)
        i = tl.load(receivers + rows, live, other=0)
        turned = _turned(
            d_received, i, at, step, frames, rows, degree, live, received_row, FRAMES, BE, Q, BC
        )
        inside = live[:, None, None] & (tl.arange(0, Q) < 2 * degree + 1)[None, :, None]
        of_values = _edge_columns(values, rows, columns, degree, channel, values_row, Q, BC)
        along = tl.sum(turned * tl.load(of_values, inside, other=0), 1)
        weights = _attention_of_channels(envelope, shares, rows, live, channel, width, HEADS, BC)
        to = _edge_columns(d_values, rows, columns, degree, channel, values_row, Q, BC)
        tl.store(to, turned * weights[:, None, :], inside)
        head = (channel + tl.arange(0, BC)) // (width // HEADS)
        to = rows_of(d_attention, rows, HEADS * n_tiles) + number
        for h in tl.static_range(HEADS):
            part = tl.sum(tl.where((head == h)[None, :], along, 0.0), 1)
            tl.store(to + h * n_tiles, part, live)


@triton.jit
def embed(
    amounts,
    envelope,
    frames,
    of_receivers,
    species,
    elements,
    tiles,
    x,
    AMOUNTS: tl.constexpr,
    FRAMES: tl.constexpr,
    ELEMENTS: tl.constexpr,
    x_row,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """x = elements, and the sum over edges of amounts along them; a program per atom and tile.

    Args:
        amounts: [n_edges, AMOUNTS], one number per degree and channel.
        elements: [n_species, ELEMENTS], scalars.
        x: [n_atoms, x_row].
    """
    atom = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 8
    degree, channel = tl.load(tile), tl.load(tile + 1)
    at, step, by_degree = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 6)
    first, last = tl.load(of_receivers + atom), tl.load(of_receivers + atom + 1)
    n, m, k = 2 * degree + 1, tl.arange(0, Q), tl.arange(0, BC)
    total = tl.zeros([BE, Q, BC], dtype=x.dtype.element_ty)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        frame = rows_of(frames, rows, FRAMES) + degree * (2 * degree - 1) * n // 3
        d = tl.load(frame[:, None] + m[None, :], live[:, None] & (m < n)[None, :], other=0)
        of_amounts = rows_of(amounts, rows, AMOUNTS)[:, None] + (by_degree + k)[None, :]
        c = tl.load(envelope + rows, live, other=0)
        v = c[:, None] * tl.load(of_amounts, live[:, None], other=0)
        total += d[:, :, None] * v[:, None, :]
    element = tl.load(species + atom) * ELEMENTS + channel + k
    element = tl.load(elements + element, k < tl.where(degree == 0, BC, 0), other=0)
    result = tl.sum(total, 0) + tl.where((m == 0)[:, None], element[None, :], 0.0)
    to = rows_of(x, atom, x_row) + at + m[:, None] * step + k[None, :]
    tl.store(to, result, (m < n)[:, None] & (k >= 0)[None, :])


@triton.jit
def embed_gradient(
    d_x,
    amounts,
    envelope,
    frames,
    receivers,
    tiles,
    pole,
    counts,
    d_amounts,
    d_envelope,
    d_turn,
    x_row,
    AMOUNTS: tl.constexpr,
    FRAMES: tl.constexpr,
    ENVELOPES: tl.constexpr,
    TURNS: tl.constexpr,
    FIRST_ENVELOPE: tl.constexpr,
    FIRST_TURN: tl.constexpr,
    BE: tl.constexpr,
    Q: tl.constexpr,
    BC: tl.constexpr,
):
    """Reverse of `embed`; a program per BE edges and tile.

    Args:
        pole: [n_degrees, Q, 2], what of a component a turn of the pole to +x, +z brings from m = 0.
        d_amounts: [n_edges, AMOUNTS], filled.
        d_envelope: [n_edges, ENVELOPES], and d_turn: [n_edges, TURNS, 2]; one column from FIRST_..
            on is filled by each tile.
    """
    n_rows = tl.load(counts)
    start, number = tl.program_id(0) * BE, tl.program_id(1)
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        tile = tiles + number * 8
        degree, at, step = tl.load(tile), tl.load(tile + 3), tl.load(tile + 4)
        by_degree = tl.load(tile + 6)
        q, k = tl.arange(0, Q), tl.arange(0, BC)
        i = tl.load(receivers + rows, live, other=0)
        turned = _turned(d_x, i, at, step, frames, rows, degree, live, x_row, FRAMES, BE, Q, BC)
        along = tl.sum(tl.where((q == 0)[None, :, None], turned, 0.0), 1)
        of_amounts = rows_of(amounts, rows, AMOUNTS)[:, None] + (by_degree + k)[None, :]
        amount = tl.load(of_amounts, live[:, None], other=0)
        c = tl.load(envelope + rows, live, other=0)
        to = rows_of(d_amounts, rows, AMOUNTS)[:, None] + (by_degree + k)[None, :]
        tl.store(to, along * c[:, None], live[:, None])
        to = rows_of(d_envelope, rows, ENVELOPES) + FIRST_ENVELOPE + number
        tl.store(to, tl.sum(along * amount, 1), live)
        across = tl.sum(turned * (amount * c[:, None])[:, None, :], 2)
        to = rows_of(d_turn, rows, 2 * TURNS) + 2 * (FIRST_TURN + number)
        for side in tl.static_range(2):
            factor = tl.load(pole + (degree * Q + q) * 2 + side)
            tl.store(to + side, tl.sum(across * factor[None, :], 1), live)


@triton.jit
def _turning(given, x, couplings, strengths, n_couplings, live, BE: tl.constexpr, BC: tl.constexpr):
    """<given, G x> of rows, for the turns G that take the pole to +x and to +z."""
    k = tl.arange(0, BC)
    to_x = tl.zeros([BE], dtype=given.dtype.element_ty)
    to_z = tl.zeros([BE], dtype=given.dtype.element_ty)
    for number in range(n_couplings):
        row = couplings + number * 4
        a, b = tl.multiple_of(tl.load(row), 16), tl.multiple_of(tl.load(row + 1), 16)
        mask = live[:, None] & (k < tl.load(row + 2))[None, :]
        g_a = tl.load(given[:, None] + (a + k)[None, :], mask, other=0)
        g_b = tl.load(given[:, None] + (b + k)[None, :], mask, other=0)
        x_a = tl.load(x[:, None] + (a + k)[None, :], mask, other=0)
        x_b = tl.load(x[:, None] + (b + k)[None, :], mask, other=0)
        both = tl.sum(g_a * x_b - g_b * x_a, 1)
        to_x += both * tl.load(strengths + 2 * number)
        to_z += both * tl.load(strengths + 2 * number + 1)
    return to_x, to_z


@triton.jit
def turning(
    d_features,
    features,
    d_values,
    values,
    couplings,
    value_couplings,
    strengths,
    n_couplings,
    counts,
    d_turn,
    features_row,
    values_row,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    TURNS: tl.constexpr,
    BE: tl.constexpr,
    BC: tl.constexpr,
):
    """What turning the frames does to the energy; a program per BE edges, block, and kind.

    With D into the frame and D^T out of it, it is <d features, G features> of all blocks, minus
    <d values, G values> of all but the last, whose values are scalars.

    Args:
        d_features, features: [n_edges, BLOCKS, WIDTH]. d_values, values: [n_edges, BLOCKS, ...].
        couplings, value_couplings: 4 integers each: column, other column, channels, nothing.
        strengths: 2 numbers each, to +x and +z.
        d_turn: [n_edges, TURNS, 2]; columns before 2 BLOCKS - 1 are filled.
    """
    n_rows = tl.load(counts)
    start, number = tl.program_id(0) * BE, tl.program_id(1)
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        to = rows_of(d_turn, rows, 2 * TURNS) + 2 * number
        if number < BLOCKS:
            given = rows_of(d_features, rows, features_row) + number * WIDTH
            x = rows_of(features, rows, features_row) + number * WIDTH
            to_x, to_z = _turning(given, x, couplings, strengths, n_couplings, live, BE, BC)
            tl.store(to, to_x, live)
            tl.store(to + 1, to_z, live)
        else:
            given = rows_of(d_values, rows, values_row) + (number - BLOCKS) * VALUE_WIDTH
            x = rows_of(values, rows, values_row) + (number - BLOCKS) * VALUE_WIDTH
            to_x, to_z = _turning(given, x, value_couplings, strengths, n_couplings, live, BE, BC)
            tl.store(to, -to_x, live)
            tl.store(to + 1, -to_z, live)
