"""Formulas of single numbers, for Triton kernels."""

import triton
import triton.language as tl

from attncalc.kernels.gpu.formulas import sigmoid, silu_slope


@triton.jit
def leaky(x):
    """The smooth leaky ReLU, x (0.2 + 0.8 sigmoid(x))."""
    return x * (0.2 + 0.8 * sigmoid(x))


@triton.jit
def leaky_slope(x):
    """Of `leaky`."""
    return 0.2 + 0.8 * silu_slope(x)


@triton.jit
def in_range(first, last, BLOCK: tl.constexpr):
    """Numbers from `first` on, as many as a block has, and which of them are before `last`."""
    numbers = first + tl.arange(0, BLOCK)
    return numbers, numbers < last


@triton.jit
def rows_of(x, rows, width):
    """Where rows begin; in 64 bits, since a row of all edges may be beyond 2^31 numbers."""
    return x + rows.to(tl.int64) * width
