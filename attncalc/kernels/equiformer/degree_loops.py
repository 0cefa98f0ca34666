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
def degree_norms(n, layout, n_degrees, x, out, inverse):
    """Divide all degrees above 0 by a root mean square; inverse[:n, 0] is that of `layer_norm`."""
    stays_whole()
    for i in range(n):
        joint = ONE / (inverse[i, 0] * inverse[i, 0]) - NORM_EPSILON
        for l in range(1, n_degrees):
            first, last = columns_of(layout, l)
            gathered = fill(ZERO)
            for k in range(first, last, LANES):
                v = load(x, i, k)
                gathered = fma(v, v, gathered)
            inverse[i, l] = total(gathered) / single(last - first)
            joint += inverse[i, l]
        joint /= single(n_degrees)
        for l in range(1, n_degrees):
            first, last = columns_of(layout, l)
            square = joint if layout.joint_norm else inverse[i, l]
            inverse[i, l] = ONE / single(math.sqrt(square + NORM_EPSILON))
            factor = fill(inverse[i, l])
            for k in range(first, last, LANES):
                store(out, i, k, times(load(x, i, k), factor))


@inner_loop
def degree_norms_gradient(n, layout, n_degrees, given, normal, inverse):
    """Reverse of `degree_norms`, whose result is `normal`; `given` is replaced.

    In `given`, scalars have the reverse of their own norm already; a joint norm adds to it.
    """
    stays_whole()
    for i in range(n):
        together = ZERO
        if layout.joint_norm:
            for l in range(1, n_degrees):
                together += _along(layout, l, i, given, normal)
            together /= single(n_degrees)
        for l in range(1, n_degrees):
            first, last = columns_of(layout, l)
            along = together if layout.joint_norm else _along(layout, l, i, given, normal)
            along_each = fill(along / single(last - first))
            factor = fill(inverse[i, l])
            for k in range(first, last, LANES):
                g = minus(load(given, i, k), times(load(normal, i, k), along_each))
                store(given, i, k, times(g, factor))
        if layout.joint_norm and n_degrees > 1:
            width, factor = layout.channels[0], inverse[i, 1]
            of_scalars = fill(factor * factor * together / (inverse[i, 0] * single(width)))
            for k in range(0, width, LANES):
                g = minus(load(given, i, k), times(load(normal, i, k), of_scalars))
                store(given, i, k, g)


@inner_loop
def columns_of(layout, l):
    """First column of degree l in rows of atoms, and the one after its last."""
    first = layout.atom[l]
    return first, first + (2 * l + 1) * layout.channels[l]


@inner_loop
def _along(layout, l, i, given, normal):
    """Scalar product of two rows within degree l."""
    first, last = columns_of(layout, l)
    along = fill(ZERO)
    for k in range(first, last, LANES):
        along = fma(load(given, i, k), load(normal, i, k), along)
    return total(along)


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
