"""Functions that Triton kernels share."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of `silu`."""
    s = sigmoid(x)
    return s + x * s * (1.0 - s)


@triton.jit
def rounded(x):
    """x [float64], rounded to a multiple of 2^-42 (2e-13) if |x| < 2^9.

    Sums of such numbers are exact up to 2^11, thus the same in any order: also after a restart,
    when a new neighbour list has other pairs beyond the cutoff between those that count.
    """
    return (x + 1536.0) - 1536.0  # 1.5 * 2^10, whose neighbours are 2^-42 apart


@triton.jit
def store_sums(forces, virials, i, fx, fy, fz, xx, yy, zz, xy, xz, yz):
    """Store the sums of all numbers as force [3] and symmetric virial [9] of atom i."""
    tl.store(forces + 3 * i, tl.sum(fx))
    tl.store(forces + 3 * i + 1, tl.sum(fy))
    tl.store(forces + 3 * i + 2, tl.sum(fz))
    out = virials + 9 * i
    sxy, sxz, syz = tl.sum(xy), tl.sum(xz), tl.sum(yz)
    tl.store(out, tl.sum(xx))
    tl.store(out + 1, sxy)
    tl.store(out + 2, sxz)
    tl.store(out + 3, sxy)
    tl.store(out + 4, tl.sum(yy))
    tl.store(out + 5, syz)
    tl.store(out + 6, sxz)
    tl.store(out + 7, syz)
    tl.store(out + 8, tl.sum(zz))
