"""Functions that the kernels share: products of tiles, norms, sums over orders, loads, cubics.

Letters of shapes: T atoms of a tile, B edges of a block, F features, H heads or parts of equal
width, L degrees, M orders of all degrees (MP: filled up to a power of two). `of_degree` [L, MP] is
1 where an order belongs to a degree, else 0. `matvec` with it repeats the number of a degree over
its orders, `matvec_transposed` sums over the orders of a degree.
"""

import triton
import triton.language as tl

LAYER_NORM_EPSILON = tl.constexpr(1e-6)


@triton.jit
def add_product(
    total,
    x,
    weight,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """total [ROWS, N] + x [ROWS, K] times weight [K, N] in memory.

    K is worked through in slices, so that about SIZE numbers of the weight are in registers at a
    time.
    """
    WANTED: tl.constexpr = SIZE // N if SIZE // N > 16 else 16
    SLICE: tl.constexpr = WANTED if K > WANTED else K
    if K == SLICE:
        total = tl.dot(x, load_matrix(weight, K, N, N), total, input_precision=PRECISION)
    else:
        slices = tl.reshape(x, [ROWS, K // SLICE, SLICE])
        which = tl.arange(0, K // SLICE)
        for s in range(K // SLICE):
            part = tl.sum(tl.where(which[None, :, None] == s, slices, 0.0), 1)
            rows = load_matrix(weight + s * SLICE * N, SLICE, N, N)
            total = tl.dot(part, rows, total, input_precision=PRECISION)
    return total


@triton.jit
def layer_norm(x, F: tl.constexpr):
    """Rows of x [T, F] with mean 0 and variance 1, and 1 / deviation [T]."""
    offset = x - (tl.sum(x, 1) / F)[:, None]
    inverse = 1 / tl.sqrt(tl.sum(offset * offset, 1) / F + LAYER_NORM_EPSILON)
    return offset * inverse[:, None], inverse


@triton.jit
def layer_norm_gradient(given, normal, inverse, F: tl.constexpr):
    """Reverse of `layer_norm`: gradient of its input, from that of its result [T, F]."""
    mean = tl.sum(given, 1) / F
    along = tl.sum(given * normal, 1) / F
    return (given - mean[:, None] - normal * along[:, None]) * inverse[:, None]


@triton.jit
def matvec(x, weight):
    """x [rows, K] times weight [K, N], for small K: row by row of the weight.

    It is not a sum over x[:, :, None] * weight[None, :, :]. The compiler (Triton 3.6) turns that
    into a matrix product in tf32, which loses digits and, for K < 8, is a different product.
    """
    ROWS: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    N: tl.constexpr = weight.shape[1]
    inner = tl.arange(0, K)
    total = tl.zeros([ROWS, N], tl.float32)
    for k in tl.static_range(K):
        column = tl.sum(tl.where(inner[None, :] == k, x, 0.0), 1)
        row = tl.sum(tl.where(inner[:, None] == k, weight, 0.0), 0)
        total += column[:, None] * row[None, :]
    return total


@triton.jit
def matvec_transposed(x, weight):
    """x [rows, N] times the transposed of weight [K, N]: a sum over the last axis.

    The compiler leaves this order of axes as it is, see `matvec`.
    """
    return tl.sum(x[:, None, :] * weight[None, :, :], 2)


@triton.jit
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """Load a matrix [ROWS, COLUMNS], the first columns of rows of STRIDE numbers."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return tl.load(pointer + row[:, None] * STRIDE + column[None, :])


@triton.jit
def load_transposed(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """Load the transposed [COLUMNS, ROWS] of what `load_matrix` loads."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return tl.load(pointer + row[None, :] * STRIDE + column[:, None])


@triton.jit
def load_rows(pointer, rows, valid, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the first COLUMNS of some rows of a matrix [.., STRIDE]; 0 where not valid."""
    at = rows.to(tl.int64)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :]
    return tl.load(pointer + at, mask=valid[:, None], other=0.0)


@triton.jit
def store_rows(pointer, rows, valid, values, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Store rows where `load_rows` reads them."""
    at = rows.to(tl.int64)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :]
    tl.store(pointer + at, values, mask=valid[:, None])


@triton.jit
def load_parts(
    pointer, rows, valid, STRIDE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Load rows [B, PARTS, COLUMNS] like `load_rows`: each in parts of equal width."""
    part = tl.arange(0, PARTS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = rows.to(tl.int64)[:, None, None] * STRIDE + part[None, :, :]
    return tl.load(pointer + at, mask=valid[:, None, None], other=0.0)


@triton.jit
def store_parts(
    pointer, rows, valid, values, STRIDE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store rows where `load_parts` reads them."""
    part = tl.arange(0, PARTS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = rows.to(tl.int64)[:, None, None] * STRIDE + part[None, :, :]
    tl.store(pointer + at, values, mask=valid[:, None, None])


@triton.jit
def load_row(pointer, row, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Load one row of a matrix [.., STRIDE]."""
    return tl.load(pointer + row.to(tl.int64) * STRIDE + tl.arange(0, COLUMNS))


@triton.jit
def store_row(pointer, row, values, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a row where `load_row` reads it."""
    tl.store(pointer + row.to(tl.int64) * STRIDE + tl.arange(0, COLUMNS), values)


@triton.jit
def load_row_parts(pointer, row, STRIDE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load one row in parts of equal width, [1, PARTS, COLUMNS]."""
    part = tl.arange(0, PARTS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(pointer + row.to(tl.int64) * STRIDE + part)[None, :, :]


@triton.jit
def store_row_parts(
    pointer, row, values, STRIDE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store values [PARTS, COLUMNS] where `load_row_parts` reads them."""
    part = tl.arange(0, PARTS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(pointer + row.to(tl.int64) * STRIDE + part, values)


@triton.jit
def cubic(table, rows, place, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Values [B, COLUMNS] of cubics a + b t + c t^2 + d t^3.

    Args:
        table: [.., STRIDE]: in every row WIDTH numbers a, then as many b, c and d.
        rows, place: [B], rows of the table and t.
    """
    at = table + rows.to(tl.int64)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :]
    t = place[:, None]
    value = tl.load(at + 2 * WIDTH) + t * tl.load(at + 3 * WIDTH)
    return tl.load(at) + t * (tl.load(at + WIDTH) + t * value)


@triton.jit
def cubic_slope(
    table, rows, place, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):
    """Derivatives of `cubic` with respect to t."""
    at = table + rows.to(tl.int64)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :]
    t = place[:, None]
    return tl.load(at + WIDTH) + t * (2 * tl.load(at + 2 * WIDTH) + 3 * t * tl.load(at + 3 * WIDTH))
