"""The radial networks of all blocks at once: two hidden layers, each with a norm and a SiLU.

Where the weights of a network stand is a row of ten numbers: first matrix, the same transposed,
second matrix, transposed, then bias, scale and bias of the norm of both layers.
"""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import in_range, rows_of
from attncalc.kernels.equiformer_gpu.norms import _EPSILON
from attncalc.kernels.gpu.formulas import sigmoid, silu_slope


@triton.jit
def _matrix(
    flat, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """[R, C] of a matrix [ROWS, COLUMNS], filled up with zeros."""
    r, c = tl.arange(0, R), tl.arange(0, C)
    mask = (r < ROWS)[:, None] & (c < COLUMNS)[None, :]
    return tl.load(flat + place + r[:, None] * COLUMNS + c[None, :], mask, other=0)


@triton.jit
def _row(flat, place, WIDTH: tl.constexpr, W: tl.constexpr):
    """[1, W] of a row, filled up with zeros."""
    k = tl.arange(0, W)
    return tl.load(flat + place + k, k < WIDTH, other=0)[None, :]


@triton.jit
def _layer(x, w, bias, WIDTH: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr):
    """Mean 0 and deviation 1 of x w + bias, [BE, W], and what it was multiplied with, [BE, 1]."""
    mask = (tl.arange(0, W) < WIDTH)[None, :]
    v = tl.dot(x, w, input_precision=PRECISION, out_dtype=x.dtype) + bias
    v = tl.where(mask, v - tl.sum(v, 1)[:, None] / WIDTH, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(v * v, 1)[:, None] / WIDTH + _EPSILON)
    return v * inverse, inverse


@triton.jit
def _layer_gradient(
    given, normal, inverse, scale, bias, w, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    """Reverse of a SiLU behind a `_layer`; w is the layer's matrix, transposed."""
    given = given * silu_slope(normal * scale + bias) * scale
    mean, along = tl.sum(given, 1)[:, None] / WIDTH, tl.sum(given * normal, 1)[:, None] / WIDTH
    # `given` is zero beyond the width, and the rows of w are
    given = (given - mean - normal * along) * inverse
    return tl.dot(given, w, input_precision=PRECISION, out_dtype=given.dtype)


@triton.jit
def radial_hidden(
    basis,
    flat,
    places,
    counts,
    hidden,
    BASIS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BE: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """hidden [n, networks * WIDTH] from basis [n, BASIS]; a program per BE edges and network.

    Args:
        ROWS: of the first matrix; further numbers of the basis are zero.
        HIDDEN: width of the rows of `hidden`.
        W: WIDTH or more, a power of 2.
    """
    n_rows = tl.load(counts)
    start, net = tl.program_id(0) * BE, tl.program_id(1)
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        place = places + net * 10
        k = tl.arange(0, BASIS)
        x = tl.load(rows_of(basis, rows, BASIS)[:, None] + k[None, :], live[:, None], other=0)
        w = _matrix(flat, tl.load(place), ROWS, WIDTH, BASIS, W)
        normal, _ = _layer(x, w, _row(flat, tl.load(place + 4), WIDTH, W), WIDTH, W, PRECISION)
        scale, bias = (
            _row(flat, tl.load(place + 5), WIDTH, W),
            _row(flat, tl.load(place + 6), WIDTH, W),
        )
        v = normal * scale + bias
        v = v * sigmoid(v)
        w = _matrix(flat, tl.load(place + 2), WIDTH, WIDTH, W, W)
        normal, _ = _layer(v, w, _row(flat, tl.load(place + 7), WIDTH, W), WIDTH, W, PRECISION)
        scale, bias = (
            _row(flat, tl.load(place + 8), WIDTH, W),
            _row(flat, tl.load(place + 9), WIDTH, W),
        )
        v = normal * scale + bias
        c = tl.arange(0, W)
        at = rows_of(hidden, rows, HIDDEN)[:, None] + (net * WIDTH + c)[None, :]
        tl.store(at, v * sigmoid(v), live[:, None] & (c < WIDTH)[None, :])


@triton.jit
def radial_gradient(
    basis,
    slopes,
    flat,
    places,
    counts,
    d_hidden,
    d_lengths,
    BASIS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    NETS: tl.constexpr,
    BE: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `radial_hidden`, down to lengths: fills d_lengths [n, NETS].

    Args:
        slopes: [n, BASIS], of the basis.
        d_hidden: [n, networks * WIDTH].
    """
    n_rows = tl.load(counts)
    start, net = tl.program_id(0) * BE, tl.program_id(1)
    if start < n_rows:
        rows, live = in_range(start, n_rows, BE)
        place = places + net * 10
        k, c = tl.arange(0, BASIS), tl.arange(0, W)
        x = tl.load(rows_of(basis, rows, BASIS)[:, None] + k[None, :], live[:, None], other=0)
        w = _matrix(flat, tl.load(place), ROWS, WIDTH, BASIS, W)
        normal, inverse = _layer(
            x, w, _row(flat, tl.load(place + 4), WIDTH, W), WIDTH, W, PRECISION
        )
        scale, bias = (
            _row(flat, tl.load(place + 5), WIDTH, W),
            _row(flat, tl.load(place + 6), WIDTH, W),
        )
        v = normal * scale + bias
        v = v * sigmoid(v)
        w = _matrix(flat, tl.load(place + 2), WIDTH, WIDTH, W, W)
        of_second, of_inverse = _layer(
            v, w, _row(flat, tl.load(place + 7), WIDTH, W), WIDTH, W, PRECISION
        )
        at = rows_of(d_hidden, rows, HIDDEN)[:, None] + (net * WIDTH + c)[None, :]
        given = tl.load(at, live[:, None] & (c < WIDTH)[None, :], other=0)
        w = _matrix(flat, tl.load(place + 3), WIDTH, WIDTH, W, W)
        then, shift = (
            _row(flat, tl.load(place + 8), WIDTH, W),
            _row(flat, tl.load(place + 9), WIDTH, W),
        )
        given = _layer_gradient(given, of_second, of_inverse, then, shift, w, WIDTH, PRECISION)
        w = _matrix(flat, tl.load(place + 1), WIDTH, ROWS, W, BASIS)
        given = _layer_gradient(given, normal, inverse, scale, bias, w, WIDTH, PRECISION)
        slope = tl.load(rows_of(slopes, rows, BASIS)[:, None] + k[None, :], live[:, None], other=0)
        tl.store(rows_of(d_lengths, rows, NETS) + net, tl.sum(given * slope, 1), live)
