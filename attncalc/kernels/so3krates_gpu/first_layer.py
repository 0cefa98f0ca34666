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
    load_row,
    load_rows,
    matvec,
    matvec_transposed,
    repeat_parts,
    store_row,
    store_rows,
    sum_parts,
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
    of_degree = load_matrix(of_degree, L, MP)
    kind = tl.load(species + a)
    to_features = load_row(elements, kind, F, F)
    to_ev = tl.zeros([MP], tl.float32)
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
        v = load_rows(values, kind_b, valid, F, F)
        to_features += tl.sum(repeat_parts(alpha, B, F, H) * v, 0)
        y = load_rows(spherical, e, valid, MP, MP)
        to_ev += tl.sum(matvec(beta, of_degree) * y, 0)
    store_row(features, a, to_features, F, F)
    store_row(ev_after, a, to_ev, MP, MP)


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
    of_degree = load_matrix(of_degree, L, MP)
    signs = tl.load(parity + tl.arange(0, MP))[None, :]
    scale = tl.load(per_length)
    kind = tl.load(species + a)
    v = load_row(values, kind, F, F)[None, :]
    d_x = load_row(d_features, a, F, F)[None, :]
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
        from_a = sum_parts(d_x * load_rows(values, kind_b, valid, F, F), B, F, H)
        from_b = sum_parts(load_rows(d_features, b, valid, F, F) * v, B, F, H)
        along = tl.sum(from_a * cubic_slope(coefficients, to_a, place, 4 * W, H, W), 1)
        along += tl.sum(from_b * cubic_slope(coefficients, to_b, place, 4 * W, H, W), 1)
        y = load_rows(spherical, e, valid, MP, MP)
        d_y_b = load_rows(d_received, b, valid, MP, MP) * signs
        from_a = matvec_transposed(d_y * y, of_degree)
        from_b = matvec_transposed(d_y_b * y, of_degree)
        along += tl.sum(from_a * cubic_slope(coefficients + H, to_a, place, 4 * W, L, W), 1)
        along += tl.sum(from_b * cubic_slope(coefficients + H, to_b, place, 4 * W, L, W), 1)
        along *= scale
        beta_a = cubic(coefficients + H, to_a, place, 4 * W, L, W)
        beta_b = cubic(coefficients + H, to_b, place, 4 * W, L, W)
        d_spherical_e = matvec(beta_a, of_degree) * d_y + matvec(beta_b, of_degree) * d_y_b
        if ADDS:
            d_spherical_e += load_rows(d_spherical, e, valid, MP, MP)
            along += tl.load(d_lengths + 2 * e, mask=valid, other=0.0)
        else:
            tl.store(d_lengths + 2 * e + 1, tl.zeros([B], tl.float32), mask=valid)
        store_rows(d_spherical, e, valid, d_spherical_e, MP, MP)
        tl.store(d_lengths + 2 * e, along, mask=valid)
