"""Attention of So3krates over pairs in blocks: messages, and the gradient of all that goes in.

Pair p = (i, j) stands for both directions. In a block of pairs the filters
w = table(d) + C(d) silu(I(chi_j - chi_i) W1 + b1) W2 are made, used and forgotten; the reverse
pass makes them again. Cutoff function and norm of the coefficients are folded into tables and W2:
alpha = sum q_i w k_j is what `attncalc.nn.so3krates.EuclideanAttention` calls by this name.

Rows of `projected` hold, head by head, queries, keys and values of the features, then degree by
degree queries and keys of the geometry.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.loops import add_product, inner_loop, sigmoid, single
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

BLOCK = 72  # pairs: two filters of 128 and their gradients stay in the second cache
ZERO, ONE, TWO, THREE = single(0), single(1), single(2), single(3)


class Pairs(NamedTuple):
    """What is known of every pair (i, j); the first `n` entries of each array count.

    Attributes:
        i, j: int64.
        knot, place: interval of the tables, int64, and where in it, 0 to 1.
        envelope, envelope_slope: C(d), dC/dd in 1/Å.
        spherical: [.., M], Y of the direction from i to j.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    knot: NDArray[np.int64]
    place: NDArray[np.float32]
    envelope: NDArray[np.float32]
    envelope_slope: NDArray[np.float32]
    spherical: NDArray[np.float32]


class Filters(NamedTuple):
    """Weights of the filters of one layer.

    Attributes:
        table: [n_intervals, 8 F], cubics of the radial filters, features then geometry.
        first, first_bias: [n_degrees, F / 2], [1, F / 2], hidden layers of both spherical filters.
        second, second_transposed: [2, F / 4, F], [2, F, F / 4].
    """

    table: NDArray[np.float32]
    first: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    second: NDArray[np.float32]
    second_transposed: NDArray[np.float32]


class Orders(NamedTuple):
    """Which components belong to which degree.

    Attributes:
        masks: [n_degrees, M], 1 at the orders of a degree.
        mirrored: [n_degrees, M], (-1)^l there.
    """

    masks: NDArray[np.float32]
    mirrored: NDArray[np.float32]


class Shape(NamedTuple):
    """Sizes as lengths of tuples of zeros: the compiler knows those, and unrolls the loops.

    Attributes:
        heads, degrees: how many.
        head, part, hidden, orders: vectors of 16 in a head of the features, of the geometry, in the
            hidden layers of both spherical filters, in the Euclidean variables.
    """

    heads: tuple[int, ...]
    degrees: tuple[int, ...]
    head: tuple[int, ...]
    part: tuple[int, ...]
    hidden: tuple[int, ...]
    orders: tuple[int, ...]


@inner_loop
def add_to(a, i, k, v):
    """a[i, k : k + 16] += v."""
    store(a, i, k, plus(load(a, i, k), v))


@inner_loop
def _spread(shape, coefficients, row, masks, k):
    """Vector of coefficients[row, l] at all orders m of degree l, lanes k to k + 16."""
    spread = fill(ZERO)
    for l in range(len(shape.degrees)):
        spread = fma(fill(coefficients[row, l]), load(masks, l, k), spread)
    return spread


@inner_loop
def gather(shape, a, i, b, j, masks, l):
    """Sum over the orders m of degree l of a[i, lm] b[j, lm] (times the sign in `masks`)."""
    gathered = fill(ZERO)
    for v in range(len(shape.orders)):
        k = v * LANES
        gathered = fma(times(load(a, i, k), load(b, j, k)), load(masks, l, k), gathered)
    return total(gathered)


@inner_loop
def _tabulated(shape, begin, n, pairs, table, filters):
    """filters[q, :2 F] from the cubics table[interval, 8 F]."""
    width = 2 * LANES * len(shape.heads) * len(shape.head)
    for q in range(n):
        knot, t = pairs.knot[begin + q], fill(pairs.place[begin + q])
        for k in range(0, width, LANES):
            value = fma(t, load(table, knot, k + 3 * width), load(table, knot, k + 2 * width))
            value = fma(t, value, load(table, knot, k + width))
            store(filters, q, k, fma(t, value, load(table, knot, k)))


@inner_loop
def _invariants(shape, i, j, ev, masks, out):
    """out[0, l] = sum over m of (ev_j - ev_i)^2; the norm is folded into the weights."""
    for l in range(len(shape.degrees)):
        gathered = fill(ZERO)
        for v in range(len(shape.orders)):
            k = v * LANES
            difference = minus(load(ev, j, k), load(ev, i, k))
            gathered = fma(times(difference, difference), load(masks, l, k), gathered)
        out[0, l] = total(gathered)


@inner_loop
def _preactivation(shape, invariants, first, first_bias, k):
    z = load(first_bias, 0, k)
    for l in range(len(shape.degrees)):
        z = fma(fill(invariants[0, l]), load(first, l, k), z)
    return z


@inner_loop
def _hidden(shape, begin, n, pairs, ev, masks, weights, hidden):
    """hidden[q] = C(d) silu(I W1 + b1)."""
    invariants = np.empty((1, len(shape.degrees)), single)
    for q in range(n):
        p = begin + q
        _invariants(shape, pairs.i[p], pairs.j[p], ev, masks, invariants)
        c = fill(pairs.envelope[p])
        for v in range(len(shape.hidden)):
            k = v * LANES
            z = _preactivation(shape, invariants, weights.first, weights.first_bias, k)
            store(hidden, q, k, times(times(z, sigmoid(z)), c))


@inner_loop
def _hidden_and_slopes(shape, begin, n, pairs, ev, masks, weights, hidden, bare, slope):
    """As `_hidden`; bare = silu(z), slope = C(d) silu'(z)."""
    invariants = np.empty((1, len(shape.degrees)), single)
    one = fill(ONE)
    for q in range(n):
        p = begin + q
        _invariants(shape, pairs.i[p], pairs.j[p], ev, masks, invariants)
        c = fill(pairs.envelope[p])
        for v in range(len(shape.hidden)):
            k = v * LANES
            z = _preactivation(shape, invariants, weights.first, weights.first_bias, k)
            s = sigmoid(z)
            zs = times(z, s)
            store(bare, q, k, zs)
            store(hidden, q, k, times(zs, c))
            store(slope, q, k, times(c, fma(zs, minus(one, s), s)))


@inner_loop
def messages(shape, n_pairs, pairs, orders, weights, ev, rests, projected, features, received):
    """Adds all messages: to the features [n_atoms, F], to `received` [n_atoms, M].

    Args:
        rests: whether all Euclidean variables are zero: what the spherical part gives then is in
            the table.
        projected: [n_atoms, 5 F].
    """
    n_heads, n_degrees, n_hidden = len(shape.heads), len(shape.degrees), LANES * len(shape.hidden)
    head, part = LANES * len(shape.head), LANES * len(shape.part)
    width = n_heads * head
    filters = np.empty((BLOCK, 2 * width), single)
    hidden = np.empty((BLOCK, n_hidden), single)
    beta = np.empty((2, n_degrees), single)
    for begin in range(0, n_pairs, BLOCK):
        n = min(BLOCK, n_pairs - begin)
        _tabulated(shape, begin, n, pairs, weights.table, filters)
        if not rests:
            _hidden(shape, begin, n, pairs, ev, orders.masks, weights, hidden)
            add_product(n, hidden, 0, weights.second[0], filters, 0)
            add_product(n, hidden, n_hidden // 2, weights.second[1], filters, width)
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            for h in range(n_heads):
                query = 3 * h * head
                key, value = query + head, query + 2 * head
                to_i, to_j = fill(ZERO), fill(ZERO)
                for v in range(len(shape.head)):
                    k = v * LANES
                    w = load(filters, q, h * head + k)
                    to_i = fma(
                        times(load(projected, i, query + k), w),
                        load(projected, j, key + k),
                        to_i,
                    )
                    to_j = fma(
                        times(load(projected, j, query + k), w),
                        load(projected, i, key + k),
                        to_j,
                    )
                alpha_i, alpha_j = fill(total(to_i)), fill(total(to_j))
                for v in range(len(shape.head)):
                    k = v * LANES
                    column = h * head + k
                    add_to(features, i, column, times(alpha_i, load(projected, j, value + k)))
                    add_to(features, j, column, times(alpha_j, load(projected, i, value + k)))
            for l in range(n_degrees):
                query = 3 * width + 2 * l * part
                key = query + part
                to_i, to_j = fill(ZERO), fill(ZERO)
                for v in range(len(shape.part)):
                    k = v * LANES
                    w = load(filters, q, width + l * part + k)
                    to_i = fma(
                        times(load(projected, i, query + k), w),
                        load(projected, j, key + k),
                        to_i,
                    )
                    to_j = fma(
                        times(load(projected, j, query + k), w),
                        load(projected, i, key + k),
                        to_j,
                    )
                beta[0, l], beta[1, l] = total(to_i), total(to_j)
            for v in range(len(shape.orders)):
                k = v * LANES
                y = load(pairs.spherical, p, k)
                add_to(received, i, k, times(_spread(shape, beta, 0, orders.masks, k), y))
                add_to(received, j, k, times(_spread(shape, beta, 1, orders.mirrored, k), y))


@inner_loop
def messages_gradient(
    shape,
    n_pairs,
    pairs,
    per_length,
    orders,
    weights,
    ev,
    rests,
    projected,
    d_features,
    d_received,
    d_projected,
    d_ev,
    d_spherical,
    d_lengths,
):
    """Reverse of `messages`: adds to the last four.

    Args:
        per_length: 1/Å, intervals of the table per length.
        d_features, d_received: gradients by what `messages` added to.
    """
    n_heads, n_degrees, n_hidden = len(shape.heads), len(shape.degrees), LANES * len(shape.hidden)
    head, part = LANES * len(shape.head), LANES * len(shape.part)
    width = n_heads * head
    filters = np.empty((BLOCK, 2 * width), single)
    d_filters = np.empty((BLOCK, 2 * width), single)
    hidden = np.empty((BLOCK, n_hidden), single)
    bare = np.empty((BLOCK, n_hidden), single)
    slope = np.empty((BLOCK, n_hidden), single)
    d_hidden = np.empty((BLOCK, n_hidden), single)
    d_invariants = np.empty((1, n_degrees), single)
    beta = np.empty((2, n_degrees), single)
    for begin in range(0, n_pairs, BLOCK):
        n = min(BLOCK, n_pairs - begin)
        _tabulated(shape, begin, n, pairs, weights.table, filters)
        if not rests:
            _hidden_and_slopes(
                shape, begin, n, pairs, ev, orders.masks, weights, hidden, bare, slope
            )
            add_product(n, hidden, 0, weights.second[0], filters, 0)
            add_product(n, hidden, n_hidden // 2, weights.second[1], filters, width)
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            for h in range(n_heads):
                query = 3 * h * head
                key, value = query + head, query + 2 * head
                alpha_i, alpha_j = fill(ZERO), fill(ZERO)
                d_alpha_i, d_alpha_j = fill(ZERO), fill(ZERO)
                for v in range(len(shape.head)):
                    k = v * LANES
                    column = h * head + k
                    w = load(filters, q, column)
                    alpha_i = fma(
                        times(load(projected, i, query + k), w),
                        load(projected, j, key + k),
                        alpha_i,
                    )
                    alpha_j = fma(
                        times(load(projected, j, query + k), w),
                        load(projected, i, key + k),
                        alpha_j,
                    )
                    d_alpha_i = fma(
                        load(d_features, i, column), load(projected, j, value + k), d_alpha_i
                    )
                    d_alpha_j = fma(
                        load(d_features, j, column), load(projected, i, value + k), d_alpha_j
                    )
                alpha_i, alpha_j = fill(total(alpha_i)), fill(total(alpha_j))
                d_alpha_i, d_alpha_j = fill(total(d_alpha_i)), fill(total(d_alpha_j))
                for v in range(len(shape.head)):
                    k = v * LANES
                    column = h * head + k
                    w = load(filters, q, column)
                    q_i, k_i = load(projected, i, query + k), load(projected, i, key + k)
                    q_j, k_j = load(projected, j, query + k), load(projected, j, key + k)
                    to_i, to_j = times(d_alpha_i, w), times(d_alpha_j, w)
                    store(
                        d_filters,
                        q,
                        column,
                        fma(d_alpha_i, times(q_i, k_j), times(d_alpha_j, times(q_j, k_i))),
                    )
                    add_to(d_projected, i, query + k, times(to_i, k_j))
                    add_to(d_projected, i, key + k, times(to_j, q_j))
                    add_to(d_projected, i, value + k, times(alpha_j, load(d_features, j, column)))
                    add_to(d_projected, j, query + k, times(to_j, k_i))
                    add_to(d_projected, j, key + k, times(to_i, q_i))
                    add_to(d_projected, j, value + k, times(alpha_i, load(d_features, i, column)))
            for l in range(n_degrees):
                query = 3 * width + 2 * l * part
                key = query + part
                d_beta_i = fill(gather(shape, d_received, i, pairs.spherical, p, orders.masks, l))
                d_beta_j = fill(
                    gather(shape, d_received, j, pairs.spherical, p, orders.mirrored, l)
                )
                beta_i, beta_j = fill(ZERO), fill(ZERO)
                for v in range(len(shape.part)):
                    k = v * LANES
                    column = width + l * part + k
                    w = load(filters, q, column)
                    q_i, k_i = load(projected, i, query + k), load(projected, i, key + k)
                    q_j, k_j = load(projected, j, query + k), load(projected, j, key + k)
                    qk_i, qk_j = times(q_i, k_j), times(q_j, k_i)
                    beta_i, beta_j = fma(qk_i, w, beta_i), fma(qk_j, w, beta_j)
                    store(d_filters, q, column, fma(d_beta_i, qk_i, times(d_beta_j, qk_j)))
                    to_i, to_j = times(d_beta_i, w), times(d_beta_j, w)
                    add_to(d_projected, i, query + k, times(to_i, k_j))
                    add_to(d_projected, i, key + k, times(to_j, q_j))
                    add_to(d_projected, j, query + k, times(to_j, k_i))
                    add_to(d_projected, j, key + k, times(to_i, q_i))
                beta[0, l], beta[1, l] = total(beta_i), total(beta_j)
            for v in range(len(shape.orders)):
                k = v * LANES
                from_i = times(_spread(shape, beta, 0, orders.masks, k), load(d_received, i, k))
                from_j = _spread(shape, beta, 1, orders.mirrored, k)
                add_to(d_spherical, p, k, fma(from_j, load(d_received, j, k), from_i))
        _tabulated_gradient(shape, begin, n, pairs, per_length, weights.table, d_filters, d_lengths)
        if rests:
            continue
        for q in range(n):
            for v in range(len(shape.hidden)):
                k = v * LANES
                store(d_hidden, q, k, fill(ZERO))
        add_product(n, d_filters, 0, weights.second_transposed[0], d_hidden, 0)
        add_product(n, d_filters, width, weights.second_transposed[1], d_hidden, n_hidden // 2)
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            along = fill(ZERO)
            for v in range(len(shape.hidden)):
                k = v * LANES
                given = load(d_hidden, q, k)
                along = fma(given, load(bare, q, k), along)
                store(d_hidden, q, k, times(given, load(slope, q, k)))
            d_lengths[p] += total(along) * pairs.envelope_slope[p]
            for l in range(n_degrees):
                gathered = fill(ZERO)
                for v in range(len(shape.hidden)):
                    k = v * LANES
                    gathered = fma(load(d_hidden, q, k), load(weights.first, l, k), gathered)
                d_invariants[0, l] = TWO * total(gathered)
            for v in range(len(shape.orders)):
                k = v * LANES
                difference = minus(load(ev, j, k), load(ev, i, k))
                pull = times(_spread(shape, d_invariants, 0, orders.masks, k), difference)
                add_to(d_ev, j, k, pull)
                store(d_ev, i, k, minus(load(d_ev, i, k), pull))


@inner_loop
def _tabulated_gradient(shape, begin, n, pairs, per_length, table, d_filters, d_lengths):
    """Adds to d_lengths what the tables' slopes give."""
    width = 2 * LANES * len(shape.heads) * len(shape.head)
    for q in range(n):
        knot, t = pairs.knot[begin + q], pairs.place[begin + q]
        linear, quadratic = fill(TWO * t), fill(THREE * t * t)
        along = fill(ZERO)
        for k in range(0, width, LANES):
            slope = fma(linear, load(table, knot, k + 2 * width), load(table, knot, k + width))
            slope = fma(quadratic, load(table, knot, k + 3 * width), slope)
            along = fma(load(d_filters, q, k), slope, along)
        d_lengths[begin + q] += total(along) * per_length
