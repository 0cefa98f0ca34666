"""Matrix product of all loops, with tiles for narrow matrices too, compiled once."""

from numba.core.registry import cpu_target

from attncalc.kernels.simd.loops import inner_loop, stays_whole
from attncalc.kernels.simd.vectors import LANES, tile

_, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
# a tile must fit into the registers: 32 of 16 lanes with AVX-512, 16 of 8 with AVX2, 32 of 4 (NEON)
WIDE = 4 if "+avx512f" in _FEATURES else 1
_wide_6, _wide_3, _wide_1 = tile(6, WIDE), tile(3, WIDE), tile(1, WIDE)
# as many sums as the registers hold: fewer of them would have to wait for each other
_TALL = 12 if WIDE > 1 else 6
_pair_12, _pair_3, _pair_1 = tile(_TALL, 2), tile(3, 2), tile(1, 2)
_narrow_12, _narrow_3, _narrow_1 = tile(_TALL, 1), tile(3, 1), tile(1, 1)


@inner_loop
def add_product(n, x, x_column, w, out, out_column):
    """out[:n, out_column : + M] += x[:n, x_column : + K] w, with w [K, M], M a multiple of 16.

    The numbers of w have the order of `attncalc.kernels.simd.lanes.in_blocks`.
    """
    stays_whole()
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
    while column + 2 * LANES <= n_columns:
        row = 0
        while row + _TALL <= n:
            _pair_12(x, x_column, w, out, out_column, row, column)
            row += _TALL
        while row + 3 <= n:
            _pair_3(x, x_column, w, out, out_column, row, column)
            row += 3
        while row < n:
            _pair_1(x, x_column, w, out, out_column, row, column)
            row += 1
        column += 2 * LANES
    while column < n_columns:
        row = 0
        while row + _TALL <= n:
            _narrow_12(x, x_column, w, out, out_column, row, column)
            row += _TALL
        while row + 3 <= n:
            _narrow_3(x, x_column, w, out, out_column, row, column)
            row += 3
        while row < n:
            _narrow_1(x, x_column, w, out, out_column, row, column)
            row += 1
        column += LANES
