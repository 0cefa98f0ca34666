"""Attention of So3krates over blocks of pairs: messages, and the gradients of all inputs.

Pair p = (i, j) stands for both directions. The filters
w = table(d) + C(d) silu(I(chi_j - chi_i) W1 + b1) W2 are computed and used block by block. The
reverse pass reads them from `Kept`, or computes them again if those of all pairs would take too
much memory. Cutoff function and norm of the coefficients are folded into tables and W2, so that
alpha = sum q_i w k_j is the alpha of `attncalc.nn.so3krates.EuclideanAttention`.

A row of `projected` holds queries, keys and values of the features, head by head, then queries and
keys of the geometry, degree by degree.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.loops import (
    THREE,
    TWO,
    ZERO,
    add_to,
    cubic,
    cubic_slope,
    inner_loop,
    sigmoid,
    silu_slope,
    single,
)
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import clear
from attncalc.kernels.simd.vectors import (
    LANES,
    fill,
    fma,
    load,
    minus,
    store,
    times,
    total,
)

BLOCK = 72  # pairs: two filters of 128 and their gradients stay in the second-level cache


class Pairs(NamedTuple):
    """Values of every pair (i, j); the first `n` entries of each array count.

    Attributes:
        i, j: int64.
        to: int64, rows that contributions to j are added to.
        knot, place: interval of the tables, int64, and position in it, 0 to 1.
        envelope, envelope_slope: C(d), dC/dd in 1/Å.
        spherical: [.., M], Y of the direction from i to j.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    to: NDArray[np.int64] | None
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
        second, second_transposed: [2, F / 4, F], [2, F, F / 4], in the order of `in_blocks`.
    """

    table: NDArray[np.float32]
    first: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    second: NDArray[np.float32]
    second_transposed: NDArray[np.float32]


class Kept(NamedTuple):
    """Values of every pair that the reverse pass of a layer needs; if empty, it recomputes them.

    Attributes:
        filters: [.., 2 F].
        bare, slope: [.., F / 2], silu(z) and C(d) silu'(z) of the hidden layers.
    """

    filters: NDArray[np.float32]
    bare: NDArray[np.float32]
    slope: NDArray[np.float32]


class Orders(NamedTuple):
    """Degrees to which components belong.

    Attributes:
        masks: [n_degrees, M], 1 at the orders of a degree.
        mirrored: [n_degrees, M], (-1)^l at the orders of degree l.
    """

    masks: NDArray[np.float32]
    mirrored: NDArray[np.float32]


class Shape(NamedTuple):
    """Sizes as lengths of tuples of zeros: the compiler knows these, and unrolls the loops.

    Attributes:
        heads, degrees: number of heads, of degrees.
        head, part, hidden, orders: number of vectors of 16 in a head of the features, in one of the
            geometry, in the hidden layers of both spherical filters, in the Euclidean variables.
    """

    heads: tuple[int, ...]
    degrees: tuple[int, ...]
    head: tuple[int, ...]
    part: tuple[int, ...]
    hidden: tuple[int, ...]
    orders: tuple[int, ...]


@inner_loop
def _spread(shape, coefficients, row, first, masks, k):
    """Repeat coefficients of the degrees, from column `first` on, over the orders: lanes from k."""
    spread = fill(ZERO)
    for l in range(len(shape.degrees)):
        spread = fma(fill(coefficients[row, first + l]), load(masks, l, k), spread)
    return spread


@inner_loop
def send_orders(shape, pairs, p, i, to, orders, coefficients, first, received):
    """Add Y of a pair, times the coefficient of each degree, to `received` of both atoms.

    Args:
        to: row to add to for j.
        coefficients: [2, ..], of messages to i and to j; those of degrees begin at column `first`.
    """
    for v in range(len(shape.orders)):
        k = v * LANES
        y = load(pairs.spherical, p, k)
        add_to(received, i, k, times(_spread(shape, coefficients, 0, first, orders.masks, k), y))
        add_to(
            received, to, k, times(_spread(shape, coefficients, 1, first, orders.mirrored, k), y)
        )


@inner_loop
def send_orders_gradient(shape, p, i, j, orders, coefficients, first, d_received, d_spherical):
    """Reverse of `send_orders` with respect to Y: add to d_spherical."""
    for v in range(len(shape.orders)):
        k = v * LANES
        to_i = _spread(shape, coefficients, 0, first, orders.masks, k)
        to_j = _spread(shape, coefficients, 1, first, orders.mirrored, k)
        from_i = times(to_i, load(d_received, i, k))
        add_to(d_spherical, p, k, fma(to_j, load(d_received, j, k), from_i))


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
            store(filters, q, k, cubic(table, knot, k, width, t))


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
def _hidden(shape, begin, n, pairs, ev, masks, weights, hidden, block):
    """hidden[q] = C(d) silu(z), z = I W1 + b1; if `block` has rows for the reverse, fill them."""
    for_reverse = len(block.bare) > 0
    invariants = np.empty((1, len(shape.degrees)), single)
    for q in range(n):
        p = begin + q
        _invariants(shape, pairs.i[p], pairs.j[p], ev, masks, invariants)
        c = fill(pairs.envelope[p])
        for v in range(len(shape.hidden)):
            k = v * LANES
            z = _preactivation(shape, invariants, weights.first, weights.first_bias, k)
            s = sigmoid(z)
            zs = times(z, s)
            store(hidden, q, k, times(zs, c))
            if for_reverse:
                store(block.bare, q, k, zs)
                store(block.slope, q, k, times(c, silu_slope(z, s)))


@inner_loop
def _filters(shape, begin, n, pairs, ev, masks, weights, rests, hidden, block):
    """Fill the `Kept` of a block of pairs; `hidden` is working space."""
    _tabulated(shape, begin, n, pairs, weights.table, block.filters)
    if not rests:
        _hidden(shape, begin, n, pairs, ev, masks, weights, hidden, block)
        half, width = hidden.shape[1] // 2, block.filters.shape[1] // 2
        add_product(n, hidden, 0, weights.second[0], block.filters, 0)
        add_product(n, hidden, half, weights.second[1], block.filters, width)


@inner_loop
def _rows(kept, begin, n):
    return Kept(
        kept.filters[begin : begin + n],
        kept.bare[begin : begin + n],
        kept.slope[begin : begin + n],
    )


@inner_loop
def _coefficients(vectors, projected, i, j, query, key, filters, q, column):
    """Return sums of q_i w k_j and of q_j w k_i; `query`, `key`, `column` are first columns."""
    to_i, to_j = fill(ZERO), fill(ZERO)
    for v in range(len(vectors)):
        k = v * LANES
        w = load(filters, q, column + k)
        q_i, k_i = load(projected, i, query + k), load(projected, i, key + k)
        q_j, k_j = load(projected, j, query + k), load(projected, j, key + k)
        to_i, to_j = fma(times(q_i, w), k_j, to_i), fma(times(q_j, w), k_i, to_j)
    return total(to_i), total(to_j)


@inner_loop
def _coefficients_gradient(
    vectors,
    projected,
    i,
    j,
    to,
    query,
    key,
    filters,
    q,
    column,
    given_i,
    given_j,
    d_projected,
    d_filters,
):
    """Reverse of `_coefficients`: add to d_projected, fill d_filters, return the coefficients.

    Args:
        to: row of d_projected to add to for j.
    """
    to_i, to_j = fill(ZERO), fill(ZERO)
    for v in range(len(vectors)):
        k = v * LANES
        w = load(filters, q, column + k)
        q_i, k_i = load(projected, i, query + k), load(projected, i, key + k)
        q_j, k_j = load(projected, j, query + k), load(projected, j, key + k)
        qk_i, qk_j = times(q_i, k_j), times(q_j, k_i)
        to_i, to_j = fma(qk_i, w, to_i), fma(qk_j, w, to_j)
        store(d_filters, q, column + k, fma(given_i, qk_i, times(given_j, qk_j)))
        w_i, w_j = times(given_i, w), times(given_j, w)
        add_to(d_projected, i, query + k, times(w_i, k_j))
        add_to(d_projected, i, key + k, times(w_j, q_j))
        add_to(d_projected, to, query + k, times(w_j, k_i))
        add_to(d_projected, to, key + k, times(w_i, q_i))
    return total(to_i), total(to_j)


@inner_loop
def _one_block(width, n_hidden, n_for_reverse):
    return Kept(
        np.empty((BLOCK, 2 * width), single),
        np.empty((n_for_reverse, n_hidden), single),
        np.empty((n_for_reverse, n_hidden), single),
    )


@inner_loop
def messages(
    shape, n_pairs, pairs, orders, weights, ev, rests, kept, projected, features, received
):
    """Add all messages to the features [n_atoms, F] and to `received` [n_atoms, M].

    Args:
        rests: whether all Euclidean variables are zero; the spherical part of the filters is then
            included in the table.
        kept: `Kept` of the layer; if it has rows, they are filled.
        projected: [n_atoms, 5 F].
    """
    n_heads, n_degrees, n_hidden = len(shape.heads), len(shape.degrees), LANES * len(shape.hidden)
    head, part = LANES * len(shape.head), LANES * len(shape.part)
    width = n_heads * head
    one_block = _one_block(width, n_hidden, 0)
    hidden = np.empty((BLOCK, n_hidden), single)
    beta = np.empty((2, n_degrees), single)
    for begin in range(0, n_pairs, BLOCK):
        n = min(BLOCK, n_pairs - begin)
        block = _rows(kept, begin, n) if len(kept.filters) > 0 else one_block
        _filters(shape, begin, n, pairs, ev, orders.masks, weights, rests, hidden, block)
        filters = block.filters
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            to = pairs.to[p]
            for h in range(n_heads):
                query = 3 * h * head
                key, value = query + head, query + 2 * head
                alpha_i, alpha_j = _coefficients(
                    shape.head, projected, i, j, query, key, filters, q, h * head
                )
                for v in range(len(shape.head)):
                    k = v * LANES
                    column = h * head + k
                    add_to(features, i, column, times(fill(alpha_i), load(projected, j, value + k)))
                    given_j = times(fill(alpha_j), load(projected, i, value + k))
                    add_to(features, to, column, given_j)
            for l in range(n_degrees):
                query = 3 * width + 2 * l * part
                beta[0, l], beta[1, l] = _coefficients(
                    shape.part, projected, i, j, query, query + part, filters, q, width + l * part
                )
            send_orders(shape, pairs, p, i, to, orders, beta, 0, received)


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
    kept,
    projected,
    d_features,
    d_received,
    d_projected,
    d_ev,
    d_spherical,
    d_lengths,
):
    """Reverse of `messages`: add to the last four arguments.

    Args:
        per_length: 1/Å, intervals of the table per length.
        d_features, d_received: gradients with respect to the arrays that `messages` added to.
    """
    n_heads, n_degrees, n_hidden = len(shape.heads), len(shape.degrees), LANES * len(shape.hidden)
    head, part = LANES * len(shape.head), LANES * len(shape.part)
    width = n_heads * head
    one_block = _one_block(width, n_hidden, BLOCK)
    d_filters = np.empty((BLOCK, 2 * width), single)
    hidden = np.empty((BLOCK, n_hidden), single)
    d_hidden = np.empty((BLOCK, n_hidden), single)
    d_invariants = np.empty((1, n_degrees), single)
    beta = np.empty((2, n_degrees), single)
    for begin in range(0, n_pairs, BLOCK):
        n = min(BLOCK, n_pairs - begin)
        block = one_block
        if len(kept.filters) > 0:
            block = _rows(kept, begin, n)
        else:
            _filters(shape, begin, n, pairs, ev, orders.masks, weights, rests, hidden, block)
        filters = block.filters
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            to = pairs.to[p]
            for h in range(n_heads):
                query = 3 * h * head
                key, value = query + head, query + 2 * head
                d_alpha_i, d_alpha_j = fill(ZERO), fill(ZERO)
                for v in range(len(shape.head)):
                    k = v * LANES
                    d_i, d_j = load(d_features, i, h * head + k), load(d_features, j, h * head + k)
                    d_alpha_i = fma(d_i, load(projected, j, value + k), d_alpha_i)
                    d_alpha_j = fma(d_j, load(projected, i, value + k), d_alpha_j)
                alpha_i, alpha_j = _coefficients_gradient(
                    shape.head,
                    projected,
                    i,
                    j,
                    to,
                    query,
                    key,
                    filters,
                    q,
                    h * head,
                    fill(total(d_alpha_i)),
                    fill(total(d_alpha_j)),
                    d_projected,
                    d_filters,
                )
                for v in range(len(shape.head)):
                    k = v * LANES
                    d_i, d_j = load(d_features, i, h * head + k), load(d_features, j, h * head + k)
                    add_to(d_projected, i, value + k, times(fill(alpha_j), d_j))
                    add_to(d_projected, to, value + k, times(fill(alpha_i), d_i))
            for l in range(n_degrees):
                query = 3 * width + 2 * l * part
                beta[0, l], beta[1, l] = _coefficients_gradient(
                    shape.part,
                    projected,
                    i,
                    j,
                    to,
                    query,
                    query + part,
                    filters,
                    q,
                    width + l * part,
                    fill(gather(shape, d_received, i, pairs.spherical, p, orders.masks, l)),
                    fill(gather(shape, d_received, j, pairs.spherical, p, orders.mirrored, l)),
                    d_projected,
                    d_filters,
                )
            send_orders_gradient(shape, p, i, j, orders, beta, 0, d_received, d_spherical)
        _tabulated_gradient(shape, begin, n, pairs, per_length, weights.table, d_filters, d_lengths)
        if rests:
            continue
        clear(n, d_hidden, n_hidden)
        add_product(n, d_filters, 0, weights.second_transposed[0], d_hidden, 0)
        add_product(n, d_filters, width, weights.second_transposed[1], d_hidden, n_hidden // 2)
        for q in range(n):
            p = begin + q
            i, j = pairs.i[p], pairs.j[p]
            to = pairs.to[p]
            along = fill(ZERO)
            for v in range(len(shape.hidden)):
                k = v * LANES
                given = load(d_hidden, q, k)
                along = fma(given, load(block.bare, q, k), along)
                store(d_hidden, q, k, times(given, load(block.slope, q, k)))
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
                pull = times(_spread(shape, d_invariants, 0, 0, orders.masks, k), difference)
                add_to(d_ev, to, k, pull)
                store(d_ev, i, k, minus(load(d_ev, i, k), pull))


@inner_loop
def _tabulated_gradient(shape, begin, n, pairs, per_length, table, d_filters, d_lengths):
    """Add the contribution of the tables' slopes to d_lengths."""
    width = 2 * LANES * len(shape.heads) * len(shape.head)
    for q in range(n):
        knot, t = pairs.knot[begin + q], pairs.place[begin + q]
        linear, quadratic = fill(TWO * t), fill(THREE * t * t)
        along = fill(ZERO)
        for k in range(0, width, LANES):
            slope = cubic_slope(table, knot, k, width, linear, quadratic)
            along = fma(load(d_filters, q, k), slope, along)
        d_lengths[begin + q] += total(along) * per_length
