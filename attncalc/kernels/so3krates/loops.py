"""What all loops of the engine share: the matrix product, the sigmoid, compiler settings."""

import numpy as np
from numba.core.registry import cpu_target

from attncalc.compiled import compiled_loop
from attncalc.kernels.so3krates.vectors import LANES, clip, fill, fma, over, tile, times

# sums may be reordered, products fused; NaN and infinity keep their meaning
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
inner_loop = compiled_loop(fastmath=FASTMATH, kept=False)  # only `step_loop`'s entry is kept
single = np.float32

_, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
# a tile must fit into the registers: 32 of 16 lanes with AVX-512, 16 of 8 with AVX2, 32 of 4 (NEON)
WIDE = 4 if "+avx512f" in _FEATURES else 1
_wide_6, _wide_3, _wide_1 = tile(6, WIDE), tile(3, WIDE), tile(1, WIDE)
_narrow_6, _narrow_3, _narrow_1 = tile(6, 1), tile(3, 1), tile(1, 1)


@inner_loop
def add_product(n, x, x_column, w, out, out_column):
    """out[:n, out_column : + M] += x[:n, x_column : + K] w, with w [K, M], M a multiple of 16."""
    n_columns = w.shape[1]
    column = 0
    while column + WIDE * LANES <= n_columns:
        row = 0
        while row + 6 <= n:
            _wide_6(x, x_column, w, out, out_column, row, column)
            row += 6
        while row + 3 <= n:
            _wide_3(x, x_column, w, out, out_column, row, column)
            row += 3
        while row < n:
            _wide_1(x, x_column, w, out, out_column, row, column)
            row += 1
        column += WIDE * LANES
    while column < n_columns:
        row = 0
        while row + 6 <= n:
            _narrow_6(x, x_column, w, out, out_column, row, column)
            row += 6
        while row + 3 <= n:
            _narrow_3(x, x_column, w, out, out_column, row, column)
            row += 3
        while row < n:
            _narrow_1(x, x_column, w, out, out_column, row, column)
            row += 1
        column += LANES


# tanh(y) = y P(y^2) / Q(y^2) for |y| <= 7.9, to the last digits of float32; beyond, it is 1
# (the rational function of Eigen's `ptanh`)
_TANH_END = single(7.9053111)
_P = tuple(
    single(c)
    for c in (
        4.89352455891786e-03,
        6.37261928875436e-04,
        1.48572235717979e-05,
        5.12229709037114e-08,
        -8.60467152213735e-11,
        2.00018790482477e-13,
        -2.76076847742355e-16,
    )
)
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = _P
_Q0, _Q1, _Q2, _Q3 = (
    single(c)
    for c in (
        4.89352518554385e-03,
        2.26843463243900e-03,
        1.18534705686654e-04,
        1.19825839466702e-06,
    )
)
_HALF = single(0.5)


@inner_loop
def sigmoid(x):
    """1 / (1 + exp(-x)) of a vector, as (1 + tanh(x / 2)) / 2: no exponential."""
    y = clip(times(x, fill(_HALF)), fill(-_TANH_END), fill(_TANH_END))
    s = times(y, y)
    p = fma(s, fill(_P6), fill(_P5))
    p = fma(s, p, fill(_P4))
    p = fma(s, p, fill(_P3))
    p = fma(s, p, fill(_P2))
    p = fma(s, p, fill(_P1))
    p = fma(s, p, fill(_P0))
    q = fma(s, fill(_Q3), fill(_Q2))
    q = fma(s, q, fill(_Q1))
    q = fma(s, q, fill(_Q0))
    return fma(over(times(y, p), q), fill(_HALF), fill(_HALF))
