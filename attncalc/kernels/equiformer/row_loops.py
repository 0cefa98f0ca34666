"""What is done to rows of numbers, whatever they stand for: norms, biases, sums, activations."""

import math

from attncalc.kernels.equiformer.layout import matrix, transposed
from attncalc.kernels.equiformer.products import add_product, stays_whole
from attncalc.kernels.simd.loops import inner_loop, sigmoid, single
from attncalc.kernels.simd.vectors import (
    LANES,
    fill,
    fma,
    load,
    minus,
    plus,
    store,
    times,
    total,
)

ZERO, ONE = single(0), single(1)
LAYER_NORM_EPSILON = single(1e-5)


@inner_loop
def clear(n, x, width):
    """x[:n, :width] = 0."""
    stays_whole()
    for i in range(n):
        for k in range(0, width, LANES):
            store(x, i, k, fill(ZERO))


@inner_loop
def fill_rows(n, x, row):
    """x[:n, : width of row] = row, [1, width]: a product added to it has its bias."""
    stays_whole()
    for i in range(n):
        for k in range(0, row.shape[1], LANES):
            store(x, i, k, load(row, 0, k))


@inner_loop
def add_rows(n, x, width, out):
    """out[:n, :width] += x[:n, :width]."""
    stays_whole()
    for i in range(n):
        for k in range(0, width, LANES):
            store(out, i, k, plus(load(out, i, k), load(x, i, k)))


@inner_loop
def layer_norm(n, x, width, out, inverse, column):
    """Mean 0, deviation 1 in columns before `width`; inverse[:n, column] is 1 / deviation."""
    stays_whole()
    share = ONE / single(width)
    for i in range(n):
        gathered = fill(ZERO)
        for k in range(0, width, LANES):
            gathered = plus(gathered, load(x, i, k))
        mean = fill(total(gathered) * share)
        gathered = fill(ZERO)
        for k in range(0, width, LANES):
            offset = minus(load(x, i, k), mean)
            gathered = fma(offset, offset, gathered)
        inverse[i, column] = ONE / single(math.sqrt(total(gathered) * share + LAYER_NORM_EPSILON))
        factor = fill(inverse[i, column])
        for k in range(0, width, LANES):
            store(out, i, k, times(minus(load(x, i, k), mean), factor))


@inner_loop
def layer_norm_gradient(n, given, width, normal, inverse, column):
    """Reverse of `layer_norm`, whose result is `normal`; `given` is replaced."""
    stays_whole()
    share = ONE / single(width)
    for i in range(n):
        mean, along = fill(ZERO), fill(ZERO)
        for k in range(0, width, LANES):
            g = load(given, i, k)
            mean = plus(mean, g)
            along = fma(g, load(normal, i, k), along)
        mean, along = fill(total(mean) * share), fill(total(along) * share)
        factor = fill(inverse[i, column])
        for k in range(0, width, LANES):
            g = minus(minus(load(given, i, k), mean), times(load(normal, i, k), along))
            store(given, i, k, times(g, factor))


@inner_loop
def degree_norm(n, x, first, last, out, inverse, column):
    """Mean square 1 in columns from `first` to before `last`."""
    stays_whole()
    share = ONE / single(last - first)
    for i in range(n):
        gathered = fill(ZERO)
        for k in range(first, last, LANES):
            v = load(x, i, k)
            gathered = fma(v, v, gathered)
        inverse[i, column] = ONE / single(math.sqrt(total(gathered) * share + LAYER_NORM_EPSILON))
        factor = fill(inverse[i, column])
        for k in range(first, last, LANES):
            store(out, i, k, times(load(x, i, k), factor))


@inner_loop
def degree_norm_gradient(n, given, first, last, normal, inverse, column):
    """Reverse of `degree_norm`, whose result is `normal`; `given` is replaced."""
    stays_whole()
    share = ONE / single(last - first)
    for i in range(n):
        along = fill(ZERO)
        for k in range(first, last, LANES):
            along = fma(load(given, i, k), load(normal, i, k), along)
        along = fill(total(along) * share)
        factor = fill(inverse[i, column])
        for k in range(first, last, LANES):
            g = minus(load(given, i, k), times(load(normal, i, k), along))
            store(given, i, k, times(g, factor))


@inner_loop
def silu(n, x, width, out):
    """out = x sigmoid(x)."""
    stays_whole()
    for i in range(n):
        for k in range(0, width, LANES):
            v = load(x, i, k)
            store(out, i, k, times(v, sigmoid(v)))


@inner_loop
def times_silu_slope(n, x, width, given):
    """given *= silu'(x)."""
    stays_whole()
    one = fill(ONE)
    for i in range(n):
        for k in range(0, width, LANES):
            v = load(x, i, k)
            s = sigmoid(v)
            slope = fma(times(v, s), minus(one, s), s)
            store(given, i, k, times(load(given, i, k), slope))


@inner_loop
def scale_and_silu(n, normal, scale, bias, out):
    """out = silu(normal * scale + bias); `scale` and `bias` are [1, width]."""
    stays_whole()
    for i in range(n):
        for k in range(0, scale.shape[1], LANES):
            v = fma(load(normal, i, k), load(scale, 0, k), load(bias, 0, k))
            store(out, i, k, times(v, sigmoid(v)))


@inner_loop
def scale_and_silu_gradient(n, normal, scale, bias, given):
    """Reverse of `scale_and_silu`; `given` is replaced."""
    stays_whole()
    one = fill(ONE)
    for i in range(n):
        for k in range(0, scale.shape[1], LANES):
            v = fma(load(normal, i, k), load(scale, 0, k), load(bias, 0, k))
            s = sigmoid(v)
            slope = times(fma(times(v, s), minus(one, s), s), load(scale, 0, k))
            store(given, i, k, times(load(given, i, k), slope))


@inner_loop
def add_by_degree(n, flat, places, x, x_first, out, out_first):
    """Add x_l W_l to every degree that has a matrix.

    Args:
        places: [n_degrees, 4].
        x_first, out_first: [n_degrees], first columns, see `Layout`.
    """
    stays_whole()
    for l in range(places.shape[0]):
        w = matrix(flat, places[l])
        for k in range(2 * l + 1):
            column, out_column = x_first[l] + k * w.shape[0], out_first[l] + k * w.shape[1]
            add_product(n, x, column, w, out, out_column)


@inner_loop
def add_by_degree_gradient(n, flat, places, given, given_first, out, out_first):
    """Reverse of `add_by_degree`: adds given_l W_l^T."""
    stays_whole()
    for l in range(places.shape[0]):
        w = transposed(flat, places[l])
        for k in range(2 * l + 1):
            column, out_column = given_first[l] + k * w.shape[0], out_first[l] + k * w.shape[1]
            add_product(n, given, column, w, out, out_column)
