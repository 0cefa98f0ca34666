"""Operations on rows of numbers: norms, biases, sums, activations."""

import math

from attncalc.kernels.simd.loops import (
    ONE,
    ZERO,
    add_to,
    inner_loop,
    sigmoid,
    silu_slope,
    single,
    stays_whole,
)
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


@inner_loop
def clear(n, x, width):
    """x[:n, :width] = 0."""
    stays_whole()
    for i in range(n):
        for k in range(0, width, LANES):
            store(x, i, k, fill(ZERO))


@inner_loop
def fill_rows(n, x, row):
    """x[:n, : width of row] = row, [1, width], such as the bias of a product added to it."""
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
            add_to(out, i, k, load(x, i, k))


@inner_loop
def normalise_row(x, i, width, epsilon, out):
    """out[i] = x[i] with mean 0, deviation 1 in columns before `width`; returns 1 / deviation."""
    share = ONE / single(width)
    gathered = fill(ZERO)
    for k in range(0, width, LANES):
        gathered = plus(gathered, load(x, i, k))
    mean = fill(total(gathered) * share)
    gathered = fill(ZERO)
    for k in range(0, width, LANES):
        offset = minus(load(x, i, k), mean)
        gathered = fma(offset, offset, gathered)
    inverse = ONE / single(math.sqrt(total(gathered) * share + epsilon))
    for k in range(0, width, LANES):
        store(out, i, k, times(minus(load(x, i, k), mean), fill(inverse)))
    return inverse


@inner_loop
def normalise_row_gradient(given, i, width, normal, inverse):
    """Reverse of `normalise_row`, whose result is `normal`; given[i] is replaced."""
    share = ONE / single(width)
    mean, along = fill(ZERO), fill(ZERO)
    for k in range(0, width, LANES):
        g = load(given, i, k)
        mean = plus(mean, g)
        along = fma(g, load(normal, i, k), along)
    mean, along = fill(total(mean) * share), fill(total(along) * share)
    for k in range(0, width, LANES):
        g = minus(minus(load(given, i, k), mean), times(load(normal, i, k), along))
        store(given, i, k, times(g, fill(inverse)))


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
    for i in range(n):
        for k in range(0, width, LANES):
            v = load(x, i, k)
            store(given, i, k, times(load(given, i, k), silu_slope(v, sigmoid(v))))


@inner_loop
def head_of_silu(hidden, i, last, row, out):
    """Last layer of a head: add silu(hidden[i]) . last[row] to out[i], in float64.

    Its gradient replaces hidden[i].
    """
    stays_whole()
    gathered = fill(ZERO)
    for k in range(0, hidden.shape[1], LANES):
        v, weight = load(hidden, i, k), load(last, row, k)
        s = sigmoid(v)
        gathered = fma(times(v, s), weight, gathered)
        store(hidden, i, k, times(silu_slope(v, s), weight))
    out[i] += total(gathered)


@inner_loop
def times_factors(n, x, factors):
    """Multiply the rows of x by `factors` [n] float64."""
    stays_whole()
    for i in range(n):
        factor = fill(single(factors[i]))
        for k in range(0, x.shape[1], LANES):
            store(x, i, k, times(load(x, i, k), factor))
