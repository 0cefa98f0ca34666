"""The compiled loops of `attncalc.kernels.attend`: plain loops over pairs, heads and features.

Arrays as documented at `attend`, of a block of pairs with their filters. A pair (i, j) is visited
once and serves both directions: j -> i, then i -> j, with the same filter.

Helpers take a whole matrix, a row and a first column instead of a slice: Numba counts references
to slices, which costs more than the arithmetic on them. All indices are unsigned: signed ones
could be negative, and that check keeps loops out of vector registers.
"""

import numpy as np

from attncalc.compiled import compiled_loop

# sums may be reordered (to run in vector registers); NaN and infinity keep their meaning
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

unsigned = np.uint64
ONE, TWO = unsigned(1), unsigned(2)


@compiled_loop(fastmath=FASTMATH)
def _dot(a, i, s, b, j, t, n, zero):
    """Sum over k < n of a[i, s + k] b[j, t + k]."""
    total = zero
    for k in range(n):
        total += a[i, s + k] * b[j, t + k]
    return total


@compiled_loop(fastmath=FASTMATH)
def _filtered(queries, i, sent, j, filters, p, s, n, zero):
    """Sum over k < n of queries[i, s + k] sent[j, s + k] filters[p, s + k]."""
    total = zero
    for k in range(n):
        total += queries[i, s + k] * sent[j, s + k] * filters[p, s + k]
    return total


@compiled_loop(fastmath=FASTMATH)
def _add(out, i, s, factor, a, j, t, n):
    """out[i, s + k] += factor a[j, t + k] for k < n."""
    for k in range(n):
        out[i, s + k] += factor * a[j, t + k]


@compiled_loop(fastmath=FASTMATH)
def _add_gradients(factor, queries, sent, filters, d_queries, d_sent, d_filters, i, j, p, s, n):
    """Gradients of factor * `_filtered` by queries, keys and filters."""
    for k in range(n):
        q, key, w = queries[i, s + k], sent[j, s + k], filters[p, s + k]
        scaled = factor * w
        d_filters[p, s + k] += factor * q * key
        d_queries[i, s + k] += scaled * key
        d_sent[j, s + k] += scaled * q


@compiled_loop(fastmath=FASTMATH)
def forward(
    queries, sent, filters, envelope, harmonics, first, second, n_heads, degrees, features, geometry
):
    n_pairs, width = unsigned(envelope.shape[0]), unsigned(queries.shape[1]) // TWO
    heads, n_degrees = unsigned(n_heads), unsigned(degrees.shape[0])
    head, part = width // heads, width // n_degrees
    for p in range(n_pairs):
        c = envelope[p]
        zero = c * 0
        for direction in range(TWO):
            i, j = unsigned(first[p]), unsigned(second[p])
            if direction == ONE:
                i, j = j, i
            for h in range(heads):
                s = h * head
                alpha = c * _filtered(queries, i, sent, j, filters, p, s, head, zero)
                _add(features, i, s, alpha, sent, j, s + TWO * width, head)
            m = unsigned(0)
            for d in range(n_degrees):
                s = width + d * part
                alpha = c * _filtered(queries, i, sent, j, filters, p, s, part, zero)
                if direction == ONE and degrees[d] % 2 == 1:
                    alpha = -alpha
                n = unsigned(2 * degrees[d] + 1)
                _add(geometry, i, m, alpha, harmonics, p, m, n)
                m += n


@compiled_loop(fastmath=FASTMATH)
def reverse(
    queries,
    sent,
    filters,
    envelope,
    harmonics,
    first,
    second,
    n_heads,
    degrees,
    d_features,
    d_geometry,
    d_queries,
    d_sent,
    d_filters,
    d_envelope,
    d_harmonics,
):
    n_pairs, width = unsigned(envelope.shape[0]), unsigned(queries.shape[1]) // TWO
    heads, n_degrees = unsigned(n_heads), unsigned(degrees.shape[0])
    head, part = width // heads, width // n_degrees
    for p in range(n_pairs):
        c = envelope[p]
        zero = c * 0
        d_c = zero
        for direction in range(TWO):
            i, j = unsigned(first[p]), unsigned(second[p])
            if direction == ONE:
                i, j = j, i
            for h in range(heads):
                s = h * head
                t = s + TWO * width
                total = _filtered(queries, i, sent, j, filters, p, s, head, zero)
                d_alpha = _dot(d_features, i, s, sent, j, t, head, zero)
                _add(d_sent, j, t, total * c, d_features, i, s, head)
                d_c += d_alpha * total
                slope = d_alpha * c
                _add_gradients(
                    slope, queries, sent, filters, d_queries, d_sent, d_filters, i, j, p, s, head
                )
            m = unsigned(0)
            for d in range(n_degrees):
                s = width + d * part
                n = unsigned(2 * degrees[d] + 1)
                total = _filtered(queries, i, sent, j, filters, p, s, part, zero)
                d_alpha = _dot(d_geometry, i, m, harmonics, p, m, n, zero)
                if direction == ONE and degrees[d] % 2 == 1:
                    d_alpha = -d_alpha
                    _add(d_harmonics, p, m, -total * c, d_geometry, i, m, n)
                else:
                    _add(d_harmonics, p, m, total * c, d_geometry, i, m, n)
                d_c += d_alpha * total
                slope = d_alpha * c
                _add_gradients(
                    slope, queries, sent, filters, d_queries, d_sent, d_filters, i, j, p, s, part
                )
                m += n
        d_envelope[p] = d_c
