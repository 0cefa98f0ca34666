"""Matrix products in groups: many small ones in one launch, with what comes before and after.

A job is a block of columns of one product, 8 integers in a table:

    column   first column of x
    depth    numbers to be summed over
    weight   where its columns of the matrix begin, in the array of all weights
    width    columns of that matrix, from one row to the next
    to       column of the result
    block    first of its rows in the table of blocks; not read for plain products
    bias     where its bias begins among the weights, or below 0
    left     columns that it has

What is multiplied is one of

    PLAIN    x
    TIMES    +- x y, as in a product with weights of edges
    GATED    x sigmoid(y)

and for the last two a table of blocks, 4 integers for every so many numbers, says where they stand
in x and y, and which sign they have.
"""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import in_range, rows_of
from attncalc.kernels.gpu.formulas import sigmoid, silu_slope

PLAIN, TIMES, GATED = 0, 1, 2
_PLAIN, _TIMES = tl.constexpr(PLAIN), tl.constexpr(TIMES)


@triton.jit
def grouped_product(
    x,
    y,
    flat,
    jobs,
    blocks,
    counts,
    out,
    x_row,
    y_row,
    out_row,
    MODE: tl.constexpr,
    ADD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = (out +) product + bias, for the first counts[0] rows; a program per job and BM rows.

    Args:
        x, y: [n, x_row], [n, y_row].
        flat: all weights.
        jobs, blocks: see above.
        counts: [1].
        out: [n, out_row].
    """
    n_rows = tl.load(counts)
    first = tl.program_id(0) * BM
    if first < n_rows:
        job = jobs + tl.program_id(1) * 8
        column, depth = tl.multiple_of(tl.load(job), 16), tl.load(job + 1)
        weight, width = tl.multiple_of(tl.load(job + 2), 16), tl.multiple_of(tl.load(job + 3), 16)
        to, block = tl.multiple_of(tl.load(job + 4), 16), tl.load(job + 5)
        bias, left = tl.load(job + 6), tl.load(job + 7)
        rows, live = in_range(first, n_rows, BM)
        k = tl.arange(0, BK)
        n, inside = in_range(0, left, BN)
        of_x, of_y = rows_of(x, rows, x_row), rows_of(y, rows, y_row)
        of_weights = flat + weight + k[:, None] * width + n[None, :]
        total = tl.zeros([BM, BN], dtype=out.dtype.element_ty)
        for step in range(0, depth, BK):
            if MODE == _PLAIN:
                a = tl.load(of_x[:, None] + (column + step + k)[None, :], live[:, None], other=0)
            else:
                place = blocks + (block + step // BK) * 4
                in_x, in_y = tl.load(place), tl.load(place + 1)
                in_x, in_y = tl.multiple_of(in_x, 16), tl.multiple_of(in_y, 16)
                a = tl.load(of_x[:, None] + (in_x + k)[None, :], live[:, None], other=0)
                b = tl.load(of_y[:, None] + (in_y + k)[None, :], live[:, None], other=0)
                if MODE == _TIMES:
                    a = a * b * tl.load(place + 2)
                else:
                    a = a * sigmoid(b)
            w = tl.load(of_weights, inside[None, :], other=0)
            total = tl.dot(a, w, total, input_precision=PRECISION, out_dtype=total.dtype)
            of_weights += BK * width
        shift = tl.load(flat + bias + n, n < tl.where(bias >= 0, left, 0), other=0)
        at = rows_of(out, rows, out_row)[:, None] + (to + n)[None, :]
        mask = live[:, None] & inside[None, :]
        total += shift[None, :]
        if ADD:
            total += tl.load(at, mask, other=0)
        tl.store(at, total, mask)


@triton.jit
def _sum_of_terms(
    given,
    y,
    out,
    terms,
    first,
    last,
    to,
    rows,
    live,
    given_row,
    y_row,
    out_row,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """out[:, to ..] = sum over terms of +- given y, BK columns of each."""
    k = tl.arange(0, BK)
    mask = live[:, None]
    of_given, of_y = rows_of(given, rows, given_row)[:, None], rows_of(y, rows, y_row)[:, None]
    total = tl.zeros([BM, BK], dtype=out.dtype.element_ty)
    for number in range(first, last):
        term = terms + number * 4
        in_given, in_y = tl.multiple_of(tl.load(term), 16), tl.multiple_of(tl.load(term + 1), 16)
        g = tl.load(of_given + (in_given + k)[None, :], mask, other=0)
        v = tl.load(of_y + (in_y + k)[None, :], mask, other=0)
        total += g * v * tl.load(term + 2)
    tl.store(rows_of(out, rows, out_row)[:, None] + (to + k)[None, :], total, mask)


@triton.jit
def times_gradient(
    given,
    x,
    y,
    d_x,
    d_y,
    sums,
    terms,
    counts,
    given_row,
    x_row,
    y_row,
    d_x_row,
    d_y_row,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Reverse of the products +- x y: fills d_x and d_y; a program per BM rows and BK columns.

    Args:
        given: [n, given_row], gradient by all products.
        x, y, d_x, d_y: [n, x_row], [n, y_row], [n, d_x_row], [n, d_y_row].
        sums: 4 integers each: first term, last + 1, column of the result, 0 for d_x, 1 for d_y.
        terms: 4 integers each: column of `given`, column of the other factor, sign.
        counts: [1], rows that count.
    """
    n_rows = tl.load(counts)
    start = tl.program_id(0) * BM
    if start < n_rows:
        rows, live = in_range(start, n_rows, BM)
        which = sums + tl.program_id(1) * 4
        first, last = tl.load(which), tl.load(which + 1)
        to = tl.multiple_of(tl.load(which + 2), 16)
        if tl.load(which + 3) == 0:
            _sum_of_terms(
                given, y, d_x, terms, first, last, to, rows, live, given_row, y_row, d_x_row, BM, BK
            )
        else:
            _sum_of_terms(
                given, x, d_y, terms, first, last, to, rows, live, given_row, x_row, d_y_row, BM, BK
            )


@triton.jit
def gate_gradient(
    x,
    given,
    out,
    gates,
    counts,
    x_row,
    given_row,
    out_row,
    gate_row,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Reverse of x sigmoid(gate): a program per BM rows and BK channels of one degree.

    Args:
        x: [n, x_row], values and gates.
        given: [n, given_row], gradient by what was gated.
        out: [n, out_row], filled: gradient by x.
        gates: gate_row integers each: number of components, column of the gate, then columns of
            every component in x and in `given`. Where the first is the gate's, x is its own gate.
        counts: [1], rows that count.
    """
    n_rows = tl.load(counts)
    start = tl.program_id(0) * BM
    if start < n_rows:
        rows, live = in_range(start, n_rows, BM)
        k, mask = tl.arange(0, BK), live[:, None]
        of_x, of_given = rows_of(x, rows, x_row)[:, None], rows_of(given, rows, given_row)[:, None]
        of_out = rows_of(out, rows, out_row)[:, None]
        which = gates + tl.program_id(1) * gate_row
        n_components, gate = tl.load(which), tl.multiple_of(tl.load(which + 1), 16)
        v = tl.load(of_x + (gate + k)[None, :], mask, other=0)
        s = sigmoid(v)
        if tl.load(which + 2) == gate:
            g = tl.load(of_given + (tl.load(which + 3) + k)[None, :], mask, other=0)
            tl.store(of_out + (gate + k)[None, :], g * silu_slope(v), mask)
        else:
            by_gate = tl.zeros([BM, BK], dtype=out.dtype.element_ty)
            for component in range(n_components):
                in_x = tl.multiple_of(tl.load(which + 2 + 2 * component), 16)
                in_given = tl.multiple_of(tl.load(which + 3 + 2 * component), 16)
                g = tl.load(of_given + (in_given + k)[None, :], mask, other=0)
                by_gate += g * tl.load(of_x + (in_x + k)[None, :], mask, other=0)
                tl.store(of_out + (in_x + k)[None, :], g * s, mask)
            tl.store(of_out + (gate + k)[None, :], by_gate * s * (1.0 - s), mask)
