"""Norms and activations of features, and linear maps with one matrix per degree."""

import math

from attncalc.kernels.equiformer.places import matrix, transposed
from attncalc.kernels.simd.loops import (
    ONE,
    ZERO,
    inner_loop,
    sigmoid,
    silu_slope,
    single,
    stays_whole,
)
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import normalise_row, normalise_row_gradient
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, minus, store, times, total

NORM_EPSILON = single(1e-5)


@inner_loop
def layer_norm(n, x, width, out, inverse, column):
    """Set mean 0, deviation 1 in columns before `width`; inverse[:n, column] is 1 / deviation."""
    stays_whole()
    for i in range(n):
        inverse[i, column] = normalise_row(x, i, width, NORM_EPSILON, out)


@inner_loop
def layer_norm_gradient(n, given, width, normal, inverse, column):
    """Reverse of `layer_norm`, whose result is `normal`; `given` is replaced."""
    stays_whole()
    for i in range(n):
        normalise_row_gradient(given, i, width, normal, inverse[i, column])


@inner_loop
def degree_norm(n, x, first, last, out, inverse, column):
    """Set mean square 1 in columns from `first` to before `last`."""
    stays_whole()
    share = ONE / single(last - first)
    for i in range(n):
        gathered = fill(ZERO)
        for k in range(first, last, LANES):
            v = load(x, i, k)
            gathered = fma(v, v, gathered)
        inverse[i, column] = ONE / single(math.sqrt(total(gathered) * share + NORM_EPSILON))
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
    for i in range(n):
        for k in range(0, scale.shape[1], LANES):
            v = fma(load(normal, i, k), load(scale, 0, k), load(bias, 0, k))
            slope = times(silu_slope(v, sigmoid(v)), load(scale, 0, k))
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
        _add_degree(n, l, matrix(flat, places[l]), x, x_first, out, out_first)


@inner_loop
def add_by_degree_gradient(n, flat, places, given, given_first, out, out_first):
    """Reverse of `add_by_degree`: add given_l W_l^T."""
    stays_whole()
    for l in range(places.shape[0]):
        _add_degree(n, l, transposed(flat, places[l]), given, given_first, out, out_first)


@inner_loop
def _add_degree(n, l, w, x, x_first, out, out_first):
    for k in range(2 * l + 1):
        column, out_column = x_first[l] + k * w.shape[0], out_first[l] + k * w.shape[1]
        add_product(n, x, column, w, out, out_column)
