"""First layer for features that depend on the element alone: coefficients from tables.

Euclidean variables are zero there. So the attention coefficients of a pair are functions of its
distance for each pair of elements: H + L numbers instead of filters of 2 F. `messages` is the
definition. Rows of `coefficients` hold cubics [4, H + L], ordered by receiver's element, sender's,
interval.
"""

import triton
import triton.language as tl

from attncalc.kernels.so3krates_gpu.formulas import (
    cubic,
    cubic_slope,
    load_matrix,
    load_parts,
    load_row,
    load_row_parts,
    load_rows,
    load_transposed,
    matvec_transposed,
    store_row,
    store_row_parts,
    store_rows,
)


@triton.jit
def first_messages(
    rows,
    senders,
    knots,
    places,
    spherical,
    coefficients,
    elements,
    values,
    species,
    of_degree,
    features,
    ev_after,
    zero_row,
    n_species,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
):
    """Store features [n_atoms, F] of bare atoms plus messages, and messages ev_after [n_atoms, M].

    Args:
        rows .. spherical: see `messages`.
        elements, values: [n_species, F]: features of bare atoms, and their values in attention.
        species: [n_atoms].
        zero_row: row that is zero in the table of two elements.
    """
    a = tl.program_id(0)
    W: tl.constexpr = H + L
    D: tl.constexpr = F // H
    orders = load_transposed(of_degree, L, MP, MP)
    kind = tl.load(species + a)
    to_features = tl.zeros([B, H, D], tl.float32)
    to_ev = tl.zeros([B, MP], tl.float32)
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        b = tl.load(senders + e, mask=valid, other=0)
        knot = tl.load(knots + e, mask=valid, other=zero_row)
        place = tl.load(places + e, mask=valid, other=0.0)
        kind_b = tl.load(species + b, mask=valid, other=0)
        row = (kind * n_species + kind_b) * (zero_row + 1) + knot
        alpha = cubic(coefficients, row, place, 4 * W, H, W)
        beta = cubic(coefficients + H, row, place, 4 * W, L, W)
        to_features += alpha[:, :, None] * load_parts(values, kind_b, valid, F, H, D)
        to_ev += matvec_transposed(beta, orders) * load_rows(spherical, e, valid, MP, MP)
    bare = tl.sum(load_row_parts(elements, kind, F, H, D), 0)
    store_row_parts(features, a, bare + tl.sum(to_features, 0), F, H, D)
    store_row(ev_after, a, tl.sum(to_ev, 0), MP, MP)


@triton.jit
def first_messages_gradient(
    rows,
    senders,
    knots,
    places,
    spherical,
    coefficients,
    values,
    species,
    of_degree,
    parity,
    per_length,
    d_features,
    d_received,
    d_lengths,
    d_spherical,
    zero_row,
    n_species,
    F: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    B: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Reverse of `first_messages`; see `messages_gradient`."""
    a = tl.program_id(0)
    W: tl.constexpr = H + L
    D: tl.constexpr = F // H
    degrees = load_matrix(of_degree, L, MP, MP)
    orders = load_transposed(of_degree, L, MP, MP)
    signs = tl.load(parity + tl.arange(0, MP))[None, :]
    scale = tl.load(per_length)
    kind = tl.load(species + a)
    v = load_row_parts(values, kind, F, H, D)
    d_x = load_row_parts(d_features, a, F, H, D)
    d_y = load_row(d_received, a, MP, MP)[None, :]
    begin, end = tl.load(rows + a), tl.load(rows + a + 1)
    for block in range(begin, end, B):
        e = block + tl.arange(0, B)
        valid = e < end
        b = tl.load(senders + e, mask=valid, other=0)
        knot = tl.load(knots + e, mask=valid, other=zero_row)
        place = tl.load(places + e, mask=valid, other=0.0)
        kind_b = tl.load(species + b, mask=valid, other=0)
        to_a = (kind * n_species + kind_b) * (zero_row + 1) + knot
        to_b = (kind_b * n_species + kind) * (zero_row + 1) + knot
        from_a = tl.sum(d_x * load_parts(values, kind_b, valid, F, H, D), 2)
        from_b = tl.sum(load_parts(d_features, b, valid, F, H, D) * v, 2)
        along = tl.sum(from_a * cubic_slope(coefficients, to_a, place, 4 * W, H, W), 1)
        along += tl.sum(from_b * cubic_slope(coefficients, to_b, place, 4 * W, H, W), 1)
        y = load_rows(spherical, e, valid, MP, MP)
        d_y_b = load_rows(d_received, b, valid, MP, MP) * signs
        from_a = matvec_transposed(d_y * y, degrees)
        from_b = matvec_transposed(d_y_b * y, degrees)
        along += tl.sum(from_a * cubic_slope(coefficients + H, to_a, place, 4 * W, L, W), 1)
        along += tl.sum(from_b * cubic_slope(coefficients + H, to_b, place, 4 * W, L, W), 1)
        along *= scale
        beta_a = cubic(coefficients + H, to_a, place, 4 * W, L, W)
        beta_b = cubic(coefficients + H, to_b, place, 4 * W, L, W)
        d_harmonics = matvec_transposed(beta_a, orders) * d_y
        d_harmonics += matvec_transposed(beta_b, orders) * d_y_b
        if ADDS:
            d_harmonics += load_rows(d_spherical, e, valid, MP, MP)
            along += tl.load(d_lengths + e, mask=valid, other=0.0)
        store_rows(d_spherical, e, valid, d_harmonics, MP, MP)
        tl.store(d_lengths + e, along, mask=valid)
