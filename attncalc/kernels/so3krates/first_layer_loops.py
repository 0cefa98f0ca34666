"""First layer for atoms whose features depend on their kind alone: coefficients from tables.

If features depend on the kind of an atom alone (mostly its element), and Euclidean variables are
zero, the attention coefficients of a pair are functions of its distance for each pair of kinds:
H + n_degrees numbers instead of filters of 2 F. `pair_loops.messages` is the definition.

A row of coefficients has H lanes for the features, then one per degree.
"""

import numpy as np

from attncalc.kernels.simd.loops import (
    THREE,
    TWO,
    ZERO,
    add_to,
    cubic,
    cubic_slope,
    inner_loop,
    single,
)
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, plus, store, times, total
from attncalc.kernels.so3krates.pair_loops import (
    gather,
    send_orders,
    send_orders_gradient,
)


@inner_loop
def first_coefficients(shape, n_pairs, pairs, orders, kinds, table, n_kinds, gathered, received):
    """Add the coefficients of all pairs to `gathered`, and the messages of Y to `received`.

    Args:
        kinds: [n_atoms], int64.
        table: [n_kinds^2 n_intervals, 64], cubics, ordered by receiver's kind, sender's, interval.
        n_kinds: number of kinds.
        gathered: [n_atoms, 16 n_kinds], sums of coefficients for each kind of the sender.
    """
    n_intervals = table.shape[0] // (n_kinds * n_kinds)
    coefficients = np.empty((2, LANES), single)
    for p in range(n_pairs):
        i, j, knot, t = pairs.i[p], pairs.j[p], pairs.knot[p], fill(pairs.place[p])
        to = pairs.to[p]
        a, b = kinds[i], kinds[j]
        to_i = cubic(table, (a * n_kinds + b) * n_intervals + knot, 0, LANES, t)
        to_j = cubic(table, (b * n_kinds + a) * n_intervals + knot, 0, LANES, t)
        add_to(gathered, i, b * LANES, to_i)
        add_to(gathered, to, a * LANES, to_j)
        store(coefficients, 0, 0, to_i)
        store(coefficients, 1, 0, to_j)
        send_orders(shape, pairs, p, i, to, orders, coefficients, len(shape.heads), received)


@inner_loop
def first_features(shape, values, gathered, features):
    """Add the values [n_kinds, F] times the gathered coefficients to the features."""
    head = LANES * len(shape.head)
    for i in range(features.shape[0]):
        for z in range(values.shape[0]):
            for h in range(len(shape.heads)):
                coefficient = fill(gathered[i, z * LANES + h])
                for v in range(len(shape.head)):
                    k = h * head + v * LANES
                    add_to(features, i, k, times(coefficient, load(values, z, k)))


@inner_loop
def first_features_gradient(shape, values, d_features, gathered):
    """Reverse of `first_features`: replace `gathered` by the gradient with respect to it."""
    head = LANES * len(shape.head)
    for i in range(d_features.shape[0]):
        for z in range(values.shape[0]):
            for h in range(len(shape.heads)):
                pulled = fill(ZERO)
                for v in range(len(shape.head)):
                    k = h * head + v * LANES
                    pulled = fma(load(d_features, i, k), load(values, z, k), pulled)
                gathered[i, z * LANES + h] = total(pulled)


@inner_loop
def first_coefficients_gradient(
    shape,
    n_pairs,
    pairs,
    per_length,
    orders,
    kinds,
    table,
    n_kinds,
    gathered,
    d_received,
    d_spherical,
    d_lengths,
):
    """Reverse of `first_coefficients`: add to the last two; features and values are constants.

    Args:
        gathered: [n_atoms, 16 n_kinds], gradients with respect to the sums of coefficients.
    """
    n_intervals = table.shape[0] // (n_kinds * n_kinds)
    n_heads = len(shape.heads)
    coefficients = np.empty((2, LANES), single)
    given = np.zeros((2, LANES), single)
    for p in range(n_pairs):
        i, j, knot, t = pairs.i[p], pairs.j[p], pairs.knot[p], pairs.place[p]
        a, b = kinds[i], kinds[j]
        row_i = (a * n_kinds + b) * n_intervals + knot
        row_j = (b * n_kinds + a) * n_intervals + knot
        store(coefficients, 0, 0, cubic(table, row_i, 0, LANES, fill(t)))
        store(coefficients, 1, 0, cubic(table, row_j, 0, LANES, fill(t)))
        for h in range(n_heads):
            given[0, h] = gathered[i, b * LANES + h]
            given[1, h] = gathered[j, a * LANES + h]
        for l in range(len(shape.degrees)):
            given[0, n_heads + l] = gather(
                shape, d_received, i, pairs.spherical, p, orders.masks, l
            )
            given[1, n_heads + l] = gather(
                shape, d_received, j, pairs.spherical, p, orders.mirrored, l
            )
        linear, quadratic = fill(TWO * t), fill(THREE * t * t)
        along = times(load(given, 0, 0), cubic_slope(table, row_i, 0, LANES, linear, quadratic))
        along = plus(
            along, times(load(given, 1, 0), cubic_slope(table, row_j, 0, LANES, linear, quadratic))
        )
        d_lengths[p] += total(along) * per_length
        send_orders_gradient(shape, p, i, j, orders, coefficients, n_heads, d_received, d_spherical)
