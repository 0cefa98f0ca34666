"""Attention over the edges of each atom.

With c the envelope and l the logits, the share of an edge is p = c exp(l) / sum of c exp(l), and
its attention c p.
"""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import in_range, leaky, leaky_slope, rows_of

_SMALLEST_SUM = tl.constexpr(1e-16)


@triton.jit
def _logits(
    results,
    alpha,
    envelope,
    rows,
    live,
    head,
    column,
    results_row,
    ALPHA: tl.constexpr,
    FEATURES: tl.constexpr,
    BF: tl.constexpr,
):
    """Logits of some edges and one head, and their envelope, [BE]."""
    f = tl.arange(0, BF)
    inside = f < FEATURES
    first = head * FEATURES
    vector = tl.load(alpha + (first + f) * ALPHA + head, inside, other=0)
    at = rows_of(results, rows, results_row)[:, None] + (column + first + f)[None, :]
    hidden = tl.load(at, live[:, None] & inside[None, :], other=0)
    return tl.sum(leaky(hidden) * vector[None, :], 1), tl.load(envelope + rows, live, other=1)


@triton.jit
def attend(
    results,
    alpha,
    envelope,
    of_receivers,
    shares,
    raised,
    COLUMN: tl.constexpr,
    results_row,
    ALPHA: tl.constexpr,
    HEADS: tl.constexpr,
    FEATURES: tl.constexpr,
    BE: tl.constexpr,
    BF: tl.constexpr,
):
    """Shares of all edges; a program per atom and head.

    Args:
        results: [n_edges, results_row]; the hidden layer of the attention begins at COLUMN.
        alpha: [HEADS * FEATURES, ALPHA], one column per head.
        shares, raised: [n_edges, HEADS], filled: p, and p / c, which no small c makes zero.
    """
    atom, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(of_receivers + atom), tl.load(of_receivers + atom + 1)
    # the largest of l + log c cancels: it keeps exponentials in range, and the sum at 1 or more,
    # also where an edge that fades out has the largest logit by far
    largest = tl.full([], float("-inf"), dtype=results.dtype.element_ty)
    total = tl.full([], 0.0, dtype=results.dtype.element_ty)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        logits, c = _logits(
            results, alpha, envelope, rows, live, head, COLUMN, results_row, ALPHA, FEATURES, BF
        )
        levels = tl.where(live, logits + tl.log(c), float("-inf"))
        higher = tl.maximum(largest, tl.max(levels, 0))
        total *= tl.exp(largest - higher)
        total += tl.sum(tl.where(live, c * tl.exp(logits - higher), 0.0), 0)
        largest = higher
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        logits, c = _logits(
            results, alpha, envelope, rows, live, head, COLUMN, results_row, ALPHA, FEATURES, BF
        )
        power = tl.exp(logits - largest) / (total + _SMALLEST_SUM)
        to = rows_of(raised, rows, HEADS) + head
        tl.store(to, power, live)
        tl.store(rows_of(shares, rows, HEADS) + head, c * power, live)


@triton.jit
def _attention_gradient(
    d_attention,
    envelope,
    shares,
    rows,
    live,
    head,
    HEADS: tl.constexpr,
    n_tiles,
    BT: tl.constexpr,
):
    """Gradient by attention, envelope and share of some edges and one head, [BE]."""
    tile = tl.arange(0, BT)
    at = rows_of(d_attention, rows, HEADS * n_tiles)[:, None] + (head * n_tiles + tile)[None, :]
    parts = tl.load(at, live[:, None] & (tile < n_tiles)[None, :], other=0)
    c = tl.load(envelope + rows, live, other=0)
    return tl.sum(parts, 1), c, tl.load(rows_of(shares, rows, HEADS) + head, live, other=0)


@triton.jit(do_not_specialize=["first_envelope"])
def attend_gradient(
    d_attention,
    results,
    alpha,
    envelope,
    shares,
    raised,
    of_receivers,
    d_results,
    d_envelope,
    COLUMN: tl.constexpr,
    results_row,
    d_results_row,
    ALPHA: tl.constexpr,
    HEADS: tl.constexpr,
    FEATURES: tl.constexpr,
    n_tiles,
    ENVELOPES: tl.constexpr,
    first_envelope,
    BE: tl.constexpr,
    BF: tl.constexpr,
    BT: tl.constexpr,
):
    """Reverse of `attend`; a program per atom and head.

    Args:
        d_attention: [n_edges, HEADS, n_tiles], parts that are added up.
        d_results: [n_edges, d_results_row], filled from COLUMN on.
        d_envelope: [n_edges, ENVELOPES], column first_envelope + head is filled.
    """
    atom, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(of_receivers + atom), tl.load(of_receivers + atom + 1)
    f = tl.arange(0, BF)
    inside = f < FEATURES
    column = head * FEATURES + f
    vector = tl.load(alpha + column * ALPHA + head, inside, other=0)
    mean = tl.full([], 0.0, dtype=results.dtype.element_ty)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        given, c, share = _attention_gradient(
            d_attention, envelope, shares, rows, live, head, HEADS, n_tiles, BT
        )
        mean += tl.sum(share * c * given, 0)
    for start in range(first, last, BE):
        rows, live = in_range(start, last, BE)
        given, c, share = _attention_gradient(
            d_attention, envelope, shares, rows, live, head, HEADS, n_tiles, BT
        )
        power = tl.load(rows_of(raised, rows, HEADS) + head, live, other=0)
        off_mean = c * given - mean
        to = rows_of(d_envelope, rows, ENVELOPES) + first_envelope + head
        tl.store(to, share * given + power * off_mean, live)
        mask = live[:, None] & inside[None, :]
        at = rows_of(results, rows, results_row)[:, None] + (COLUMN + column)[None, :]
        slope = leaky_slope(tl.load(at, mask, other=0)) * vector[None, :]
        to = rows_of(d_results, rows, d_results_row)[:, None] + (COLUMN + column)[None, :]
        tl.store(to, slope * (share * off_mean)[:, None], mask)
