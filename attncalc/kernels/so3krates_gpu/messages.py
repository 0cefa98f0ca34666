"""Attention over the edges of one atom: messages, and the gradients of all inputs.

A program handles one receiving atom a. The second index of the grid selects the features (0) or the
geometry (1). The program goes through the atom's edges in blocks of B, and adds edge by edge until
the end: blocks [B, heads, width] are multiplied in place, without moving numbers between threads.
`attncalc.nn.so3krates.EuclideanAttention` is the definition.

Both directions of every pair are listed, one under each of its atoms, and the filter is equal for
both. So the reverse pass of atom a finds everything that depends on a's queries, keys and values
among its own edges: for each neighbour b it uses the coefficients of (a <- b) and of (b <- a). No
program adds to the memory of another atom, and sums have a fixed order.

A row of `projected` [n_atoms, 5 F] holds queries, keys, values of the features, then queries, keys
of the geometry. A row of `w` [n_edges, 2 F] holds the filters, see `filters`.
"""

import triton
import triton.language as tl

from attncalc.kernels.so3krates_gpu.formulas import (
    load_matrix,
    load_parts,
    load_row,
    load_row_parts,
    load_rows,
    load_transposed,
    matvec_transposed,
    store_parts,
    store_row,
    store_row_parts,
    store_rows,
)


@triton.jit
def load_block(block, end, senders, B: tl.constexpr):
    """Load edges from `block` on: index, validity, sender."""
    e = block + tl.arange(0, B)
    valid = e < end
    return e, valid, tl.load(senders + e, mask=valid, other=0)


@triton.jit
def messages(
    rows,
    senders,
    spherical,
    of_degree,
    projected,
    w,
    ev,
    features,
    ev_after,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    RESTS: tl.constexpr,
):
    """Add the messages to `features` [n_atoms, F]; store `ev` plus messages in ev_after.

    Args:
        rows: [n_atoms + 1], where an atom's edges begin.
        senders, spherical, w: those of edges.
        of_degree: [L, M].
        projected, ev: those of atoms. If RESTS, `ev` is zero and not read.
        ev_after: [n_atoms, M].
    """
    D: tl.constexpr = F // H
    P: tl.constexpr = F // L
    a = tl.program_id(0)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    if tl.program_id(1) == 0:
        q = load_row_parts(projected, a, 5 * F, H, D)
        to_features = tl.zeros([B, H, D], tl.float32)
        for block in range(begin, end, B):
            e, valid, b = load_block(block, end, senders, B)
            k = load_parts(projected + F, b, valid, 5 * F, H, D)
            v = load_parts(projected + 2 * F, b, valid, 5 * F, H, D)
            alpha = tl.sum(q * load_parts(w, e, valid, 2 * F, H, D) * k, 2)
            to_features += alpha[:, :, None] * v
        before = load_row_parts(features, a, F, H, D)
        store_row_parts(features, a, tl.sum(before, 0) + tl.sum(to_features, 0), F, H, D)
    else:  # other names: Triton refuses one name for two shapes
        orders = load_transposed(of_degree, L, MP, MP)
        query = load_row_parts(projected + 3 * F, a, 5 * F, L, P)
        to_ev = tl.zeros([B, MP], tl.float32)
        for block in range(begin, end, B):
            e, valid, b = load_block(block, end, senders, B)
            key = load_parts(projected + 4 * F, b, valid, 5 * F, L, P)
            beta = tl.sum(query * load_parts(w + F, e, valid, 2 * F, L, P) * key, 2)
            to_ev += matvec_transposed(beta, orders) * load_rows(spherical, e, valid, MP, MP)
        after = tl.sum(to_ev, 0)
        if not RESTS:
            after += load_row(ev, a, MP, MP)
        store_row(ev_after, a, after, MP, MP)


@triton.jit
def messages_gradient(
    rows,
    senders,
    spherical,
    of_degree,
    parity,
    projected,
    w,
    d_features,
    d_received,
    d_projected,
    d_spherical,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Reverse of `messages`.

    Args:
        parity: [M], Y(-u) / Y(u).
        w: [n_edges, 2 F], filters; replaced by the gradient with respect to them.
        d_features, d_received: gradients with respect to the sums of messages.
        d_projected: gradient with respect to `projected`, stored.
        d_spherical: [n_edges, M], stored or (ADDS) added to: gradient with respect to the harmonics
            of the pair, equal for both of its edges, as is the gradient with respect to w.
    """
    D: tl.constexpr = F // H
    P: tl.constexpr = F // L
    a = tl.program_id(0)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    if tl.program_id(1) == 0:
        q = load_row_parts(projected, a, 5 * F, H, D)
        k = load_row_parts(projected + F, a, 5 * F, H, D)
        v = load_row_parts(projected + 2 * F, a, 5 * F, H, D)
        d_x = load_row_parts(d_features, a, F, H, D)
        d_q, d_k = tl.zeros([B, H, D], tl.float32), tl.zeros([B, H, D], tl.float32)
        d_v = tl.zeros([B, H, D], tl.float32)
        for block in range(begin, end, B):
            e, valid, b = load_block(block, end, senders, B)
            w_e = load_parts(w, e, valid, 2 * F, H, D)
            d_x_b = load_parts(d_features, b, valid, F, H, D)
            v_b = load_parts(projected + 2 * F, b, valid, 5 * F, H, D)
            from_a = tl.sum(d_x * v_b, 2)[:, :, None]
            from_a = from_a * load_parts(projected + F, b, valid, 5 * F, H, D)
            d_q += from_a * w_e
            q_b = load_parts(projected, b, valid, 5 * F, H, D)
            d_v += tl.sum(q_b * w_e * k, 2)[:, :, None] * d_x_b
            from_b = tl.sum(d_x_b * v, 2)[:, :, None] * q_b
            d_k += from_b * w_e
            tl.debug_barrier()  # small blocks are loaded by several threads
            store_parts(w, e, valid, from_a * q + from_b * k, 2 * F, H, D)
        store_row_parts(d_projected, a, tl.sum(d_q, 0), 5 * F, H, D)
        store_row_parts(d_projected + F, a, tl.sum(d_k, 0), 5 * F, H, D)
        store_row_parts(d_projected + 2 * F, a, tl.sum(d_v, 0), 5 * F, H, D)
    else:  # other names: Triton refuses one name for two shapes
        degrees = load_matrix(of_degree, L, MP, MP)
        orders = load_transposed(of_degree, L, MP, MP)
        signs = tl.load(parity + tl.arange(0, MP))[None, :]
        query = load_row_parts(projected + 3 * F, a, 5 * F, L, P)
        key = load_row_parts(projected + 4 * F, a, 5 * F, L, P)
        d_y = load_row(d_received, a, MP, MP)[None, :]
        d_query, d_key = tl.zeros([B, L, P], tl.float32), tl.zeros([B, L, P], tl.float32)
        for block in range(begin, end, B):
            e, valid, b = load_block(block, end, senders, B)
            filter_e = load_parts(w + F, e, valid, 2 * F, L, P)
            query_b = load_parts(projected + 3 * F, b, valid, 5 * F, L, P)
            key_b = load_parts(projected + 4 * F, b, valid, 5 * F, L, P)
            y = load_rows(spherical, e, valid, MP, MP)
            d_y_b = load_rows(d_received, b, valid, MP, MP) * signs
            to_a = matvec_transposed(tl.sum(query * filter_e * key_b, 2), orders)
            to_b = matvec_transposed(tl.sum(query_b * filter_e * key, 2), orders)
            d_harmonics = to_a * d_y + to_b * d_y_b
            if ADDS:
                d_harmonics += load_rows(d_spherical, e, valid, MP, MP)
            store_rows(d_spherical, e, valid, d_harmonics, MP, MP)
            by_a = matvec_transposed(d_y * y, degrees)[:, :, None] * key_b
            by_b = matvec_transposed(d_y_b * y, degrees)[:, :, None] * query_b
            d_query += by_a * filter_e
            d_key += by_b * filter_e
            tl.debug_barrier()  # small blocks are loaded by several threads
            store_parts(w + F, e, valid, by_a * query + by_b * key, 2 * F, L, P)
        store_row_parts(d_projected + 3 * F, a, tl.sum(d_query, 0), 5 * F, L, P)
        store_row_parts(d_projected + 4 * F, a, tl.sum(d_key, 0), 5 * F, L, P)


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
    d_ev_a = load_row(d_ev, a, MP, MP)[None, :]
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        b = tl.load(senders + e, mask=valid, other=0)
        both = scale * (d_ev_a + signs * load_rows(d_ev, b, valid, MP, MP))
        y = load_rows(spherical, e, valid, MP, MP)
        envelope = tl.load(envelopes + e, mask=valid, other=0.0)[:, None]
        d_y = load_rows(d_spherical, e, valid, MP, MP) + envelope * both
        store_rows(d_spherical, e, valid, d_y, MP, MP)
        along = tl.sum(both * y, 1) * tl.load(envelope_slopes + e, mask=valid, other=0.0)
        along += tl.load(d_lengths + e, mask=valid, other=0.0)
        tl.store(d_lengths + e, along, mask=valid)
