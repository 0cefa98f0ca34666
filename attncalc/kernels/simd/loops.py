"""What all loops of the engine share: the matrix product, the sigmoid, compiler settings."""

import numpy as np
from numba.core.registry import cpu_target

from attncalc.compiled import compiled_loop
from attncalc.kernels.simd.vectors import (
    LANES,
    clip,
    exponential,
    fill,
    over,
    plus,
    tile,
    times,
)

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


# beyond, e^x leaves the range of float32, and the sigmoid is 0 or 1 to all its digits
_END = single(87)
_ONE, _MINUS_ONE = single(1), single(-1)


@inner_loop
def sigmoid(x):
    """1 / (1 + e^-x) of a vector, to the last digits also where it is small."""
    y = clip(times(x, fill(_MINUS_ONE)), fill(-_END), fill(_END))
    return over(fill(_ONE), plus(fill(_ONE), exponential(y)))
