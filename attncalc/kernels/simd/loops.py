"""Code that all loops of the engines share: compiler settings, the sigmoid, cubics."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from attncalc.compiled import compiled_loop
from attncalc.kernels.simd.vectors import (
    clip,
    exponential,
    fill,
    fma,
    load,
    minus,
    over,
    plus,
    store,
    times,
)

# sums may be reordered, products fused; NaN and infinity keep their meaning
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
inner_loop = compiled_loop(fastmath=FASTMATH, kept=False)  # only the entry of a step is kept
single = np.float32
ZERO, ONE, TWO, THREE = single(0), single(1), single(2), single(3)


def _never_copied(typing: Any) -> Any:
    """Keep the compiler from inlining the function that calls this into its callers.

    Inlined long loops make compilation take minutes and gain nothing.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code


stays_whole: Callable[..., Any] = intrinsic(_never_copied)


@inner_loop
def add_to(a, i, k, v):
    """a[i, k : k + 16] += v."""
    store(a, i, k, plus(load(a, i, k), v))


# beyond this, e^x leaves the range of float32, and the sigmoid is 0 or 1 to all its digits
_END = single(87)
_MINUS_ONE = single(-1)


@inner_loop
def sigmoid(x):
    """1 / (1 + e^-x) of a vector, accurate to the last digits even where it is small."""
    y = clip(times(x, fill(_MINUS_ONE)), fill(-_END), fill(_END))
    return over(fill(ONE), plus(fill(ONE), exponential(y)))


@inner_loop
def silu_slope(x, s):
    """The derivative of x sigmoid(x), with s = sigmoid(x)."""
    return fma(times(x, s), minus(fill(ONE), s), s)


@inner_loop
def cubic(table, row, k, stride, t):
    """a + b t + c t^2 + d t^3; a, b, c, d are `stride` columns apart in a row, a at k."""
    value = fma(t, load(table, row, k + 3 * stride), load(table, row, k + 2 * stride))
    value = fma(t, value, load(table, row, k + stride))
    return fma(t, value, load(table, row, k))


@inner_loop
def cubic_slope(table, row, k, stride, linear, quadratic):
    """The derivative of `cubic` with respect to t; linear = 2 t, quadratic = 3 t^2."""
    slope = fma(linear, load(table, row, k + 2 * stride), load(table, row, k + stride))
    return fma(quadratic, load(table, row, k + 3 * stride), slope)
