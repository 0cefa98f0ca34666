"""The compiled loops of `attncalc.kernels.attend`: plain loops over pairs, heads and features.

Arrays as documented at `attend_plain`. A pair (i, j) is visited once and serves both directions:
j -> i, then i -> j, with the same filter.

Helpers take a whole matrix, a row and a first column instead of a slice: Numba counts references
to slices, which costs more than the arithmetic on them. All indices are unsigned: signed ones
could be negative, and that check keeps loops out of vector registers.
"""

import numpy as np

from attncalc.compiled import compiled_loop

# sums may be reordered (to run in vector registers); NaN and infinity keep their meaning
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

unsigned = np.uint64
ONE, TWO, FOUR, FIVE = unsigned(1), unsigned(2), unsigned(4), unsigned(5)


@compiled_loop(fastmath=FASTMATH)
def _dot(a, i, s, b, j, t, n, zero):
    """Sum over k < n of a[i, s + k] b[j, t + k]."""
    total = zero
    for k in range(n):
        total += a[i, s + k] * b[j, t + k]
    return total


@compiled_loop(fastmath=FASTMATH)
def _dot3(a, i, s, b, j, t, c, p, n, zero):
    """Sum over k < n of a[i, s + k] b[j, t + k] c[p, s + k]."""
    total = zero
    for k in range(n):
        total += a[i, s + k] * b[j, t + k] * c[p, s + k]
    return total


@compiled_loop(fastmath=FASTMATH)
def _add(out, i, s, factor, a, j, t, n):
    """out[i, s + k] += factor a[j, t + k] for k < n."""
    for k in range(n):
        out[i, s + k] += factor * a[j, t + k]


@compiled_loop(fastmath=FASTMATH)
def _add_gradients(factor, projected, filters, d_projected, d_filters, i, j, p, s, t, n):
    """Gradients of factor * `_dot3` by queries, keys and filters."""
    for k in range(n):
        q, key, w = projected[i, s + k], projected[j, t + k], filters[p, s + k]
        scaled = factor * w
        d_filters[p, s + k] += factor * q * key
        d_projected[i, s + k] += scaled * key
        d_projected[j, t + k] += scaled * q


@compiled_loop(fastmath=FASTMATH)
def forward(
    projected,
    filters,
    envelope,
    harmonics,
    receivers,
    n_heads,
    degrees,
    feature_scale,
    geometry_scale,
    received,
):
    n_pairs, width = unsigned(envelope.shape[0]), unsigned(projected.shape[1]) // FIVE
    heads, n_degrees = unsigned(n_heads), unsigned(degrees.shape[0])
    head, part = width // heads, width // n_degrees
    zero = feature_scale * 0
    for p in range(n_pairs):
        c = envelope[p]
        for direction in range(TWO):
            i = unsigned(receivers[p + direction * n_pairs])
            j = unsigned(receivers[p + (ONE - direction) * n_pairs])
            for h in range(heads):
                s = h * head
                t = s + TWO * width
                alpha = (
                    c
                    * feature_scale
                    * _dot3(projected, i, s, projected, j, t, filters, p, head, zero)
                )
                _add(received, i, s, alpha, projected, j, s + FOUR * width, head)
            m = unsigned(0)
            for d in range(n_degrees):
                s = width + d * part
                t = s + TWO * width
                alpha = (
                    c
                    * geometry_scale
                    * _dot3(projected, i, s, projected, j, t, filters, p, part, zero)
                )
                if direction == ONE and degrees[d] % 2 == 1:
                    alpha = -alpha
                n = unsigned(2 * degrees[d] + 1)
                _add(received, i, width + m, alpha, harmonics, p, m, n)
                m += n


@compiled_loop(fastmath=FASTMATH)
def reverse(
    projected,
    filters,
    envelope,
    harmonics,
    receivers,
    n_heads,
    degrees,
    feature_scale,
    geometry_scale,
    d_received,
    d_projected,
    d_filters,
    d_envelope,
    d_harmonics,
):
    n_pairs, width = unsigned(envelope.shape[0]), unsigned(projected.shape[1]) // FIVE
    heads, n_degrees = unsigned(n_heads), unsigned(degrees.shape[0])
    head, part = width // heads, width // n_degrees
    zero = feature_scale * 0
    for p in range(n_pairs):
        c = envelope[p]
        d_c = zero
        for direction in range(TWO):
            i = unsigned(receivers[p + direction * n_pairs])
            j = unsigned(receivers[p + (ONE - direction) * n_pairs])
            for h in range(heads):
                s = h * head
                t, u = s + TWO * width, s + FOUR * width
                total = feature_scale * _dot3(
                    projected, i, s, projected, j, t, filters, p, head, zero
                )
                d_alpha = _dot(d_received, i, s, projected, j, u, head, zero)
                _add(d_projected, j, u, total * c, d_received, i, s, head)
                d_c += d_alpha * total
                slope = d_alpha * c * feature_scale
                _add_gradients(
                    slope, projected, filters, d_projected, d_filters, i, j, p, s, t, head
                )
            m = unsigned(0)
            for d in range(n_degrees):
                s = width + d * part
                t = s + TWO * width
                n = unsigned(2 * degrees[d] + 1)
                sign = geometry_scale
                if direction == ONE and degrees[d] % 2 == 1:
                    sign = -geometry_scale
                total = sign * _dot3(projected, i, s, projected, j, t, filters, p, part, zero)
                d_alpha = _dot(d_received, i, width + m, harmonics, p, m, n, zero)
                _add(d_harmonics, p, m, total * c, d_received, i, width + m, n)
                d_c += d_alpha * total
                slope = d_alpha * c * sign
                _add_gradients(
                    slope, projected, filters, d_projected, d_filters, i, j, p, s, t, part
                )
                m += n
        d_envelope[p] = d_c
