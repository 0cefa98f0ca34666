"""Per-atom steps of So3krates: norms, refinement, exchange, energy; and their reverse.

Rows are atoms. All widths are multiples of 16; narrower arrays are filled up with zeros.
"""

from attncalc.kernels.simd.loops import (
    ONE,
    TWO,
    ZERO,
    inner_loop,
    single,
)
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import (
    add_rows,
    clear,
    fill_rows,
    head_of_silu,
    normalise_row,
    normalise_row_gradient,
    silu,
    times_factors,
    times_silu_slope,
)
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, store, times

LAYER_NORM_EPSILON = single(1e-6)


@inner_loop
def _normalise(n, x, scale, bias, normal, inverse, out):
    """Layer norm; `normal` and `inverse` (1 / deviation) are kept for the reverse pass."""
    for i in range(n):
        inverse[i] = normalise_row(x, i, x.shape[1], LAYER_NORM_EPSILON, normal)
        for k in range(0, x.shape[1], LANES):
            store(out, i, k, fma(load(normal, i, k), load(scale, 0, k), load(bias, 0, k)))


@inner_loop
def _normalise_gradient(n, given, scale, normal, inverse):
    """Reverse of `_normalise`; `given` is replaced."""
    for i in range(n):
        for k in range(0, given.shape[1], LANES):
            store(given, i, k, times(load(given, i, k), load(scale, 0, k)))
        normalise_row_gradient(given, i, given.shape[1], normal, inverse[i])


@inner_loop
def project(n, x, weights_of_features, weights_of_geometry, projected):
    """Compute queries, keys, values of all heads, queries and keys of all degrees, side by side."""
    clear(n, projected, projected.shape[1])
    column = 0
    head = weights_of_features.shape[1]
    for h in range(weights_of_features.shape[0]):
        add_product(n, x, h * head, weights_of_features[h], projected, column)
        column += weights_of_features.shape[2]
    part = weights_of_geometry.shape[1]
    for l in range(weights_of_geometry.shape[0]):
        add_product(n, x, l * part, weights_of_geometry[l], projected, column)
        column += weights_of_geometry.shape[2]


@inner_loop
def project_gradient(n, given, features_transposed, geometry_transposed, d_x):
    """Add the reverse of `project` to d_x."""
    column = 0
    head = features_transposed.shape[2]
    for h in range(features_transposed.shape[0]):
        add_product(n, given, column, features_transposed[h], d_x, h * head)
        column += features_transposed.shape[1]
    part = geometry_transposed.shape[2]
    for l in range(geometry_transposed.shape[0]):
        add_product(n, given, column, geometry_transposed[l], d_x, l * part)
        column += geometry_transposed.shape[1]


@inner_loop
def refine(n, l, w, kept, x, wide):
    """Apply norm and residual MLP of layer l; values for the reverse pass are stored in `kept`.

    Args:
        x: [n, F], features with messages; replaced.
        wide: [n, F + 16 ..], working space.
    """
    normed, hidden = kept.normed[l], kept.hidden[l]
    _normalise(n, x, w.norm[l, 0], w.norm[l, 1], kept.normal[l, 0], kept.inverse[l, 0], normed)
    silu(n, normed, normed.shape[1], x)
    fill_rows(n, hidden, w.mlp_bias[l, 0])
    add_product(n, x, 0, w.mlp[l, 0], hidden, 0)
    silu(n, hidden, hidden.shape[1], wide)
    fill_rows(n, x, w.mlp_bias[l, 1])
    add_rows(n, normed, x.shape[1], x)
    add_product(n, wide, 0, w.mlp[l, 1], x, 0)


@inner_loop
def refine_gradient(n, l, w, kept, d_x, other, third):
    """Reverse of `refine`: d_x [n, F] is replaced; the others are working space [n, F]."""
    clear(n, other, other.shape[1])
    add_product(n, d_x, 0, w.mlp_transposed[l, 1], other, 0)
    times_silu_slope(n, kept.hidden[l], other.shape[1], other)
    clear(n, third, third.shape[1])
    add_product(n, other, 0, w.mlp_transposed[l, 0], third, 0)
    times_silu_slope(n, kept.normed[l], third.shape[1], third)
    add_rows(n, third, d_x.shape[1], d_x)
    _normalise_gradient(n, d_x, w.norm[l, 0], kept.normal[l, 0], kept.inverse[l, 0])


@inner_loop
def _orders_of(l, degrees):
    begin = 0
    for d in range(l):
        begin += 2 * degrees[d] + 1
    return begin, begin + 2 * degrees[l] + 1


@inner_loop
def exchange(n, l, w, kept, degrees, x, ev, wide, out):
    """Apply the exchange of layer l and the norm after it.

    Args:
        x: [n, F], replaced.
        ev: [n, M], replaced; the old values are stored in `kept`.
        wide, out: [n, F + 16 ..], working space.
    """
    width = x.shape[1]
    for i in range(n):
        for k in range(0, width, LANES):
            store(wide, i, k, load(x, i, k))
        for k in range(width, wide.shape[1], LANES):
            store(wide, i, k, fill(ZERO))
        for d in range(degrees.shape[0]):
            begin, end = _orders_of(d, degrees)
            gathered = ZERO
            for m in range(begin, end):
                kept.ev[l, i, m] = ev[i, m]
                gathered += ev[i, m] * ev[i, m]
            wide[i, width + d] = gathered
    fill_rows(n, out, w.exchange_bias[l])
    add_product(n, wide, 0, w.exchange[l], out, 0)
    add_rows(n, out, width, x)
    for i in range(n):
        for d in range(degrees.shape[0]):
            gain = ONE + out[i, width + d]
            kept.gain[l, i, d] = gain
            begin, end = _orders_of(d, degrees)
            for m in range(begin, end):
                ev[i, m] *= gain
    _normalise(n, x, w.norm[l, 2], w.norm[l, 3], kept.normal[l, 1], kept.inverse[l, 1], x)


@inner_loop
def exchange_gradient(n, l, w, kept, degrees, d_x, d_ev, wide, out):
    """Reverse of `exchange`: d_x, d_ev are replaced."""
    width = d_x.shape[1]
    _normalise_gradient(n, d_x, w.norm[l, 2], kept.normal[l, 1], kept.inverse[l, 1])
    for i in range(n):
        for k in range(0, width, LANES):
            store(wide, i, k, load(d_x, i, k))
        for k in range(width, wide.shape[1], LANES):
            store(wide, i, k, fill(ZERO))
        for d in range(degrees.shape[0]):
            begin, end = _orders_of(d, degrees)
            gathered = ZERO
            for m in range(begin, end):
                gathered += d_ev[i, m] * kept.ev[l, i, m]
            wide[i, width + d] = gathered
    clear(n, out, out.shape[1])
    add_product(n, wide, 0, w.exchange_transposed[l], out, 0)
    add_rows(n, out, width, d_x)
    for i in range(n):
        for d in range(degrees.shape[0]):
            gain, pull = kept.gain[l, i, d], TWO * out[i, width + d]
            begin, end = _orders_of(d, degrees)
            for m in range(begin, end):
                d_ev[i, m] = d_ev[i, m] * gain + pull * kept.ev[l, i, m]


@inner_loop
def read_out(n, w, x, species, hidden, outputs):
    """Add the results of all heads to `outputs` [n_outputs, n].

    Args:
        species: [n], rows of the last layers' weights.
        hidden: [n_outputs, n, head features]; replaced by the gradient of each output with respect
            to it.
    """
    for k in range(w.head.shape[0]):
        fill_rows(n, hidden[k], w.head_bias[k])
        add_product(n, x, 0, w.head[k], hidden[k], 0)
        for i in range(n):
            head_of_silu(hidden[k], i, w.last[k], species[i], outputs[k])


@inner_loop
def read_out_gradient(n, w, hidden, d_outputs, d_x):
    """Reverse of `read_out`: fill d_x.

    Args:
        hidden: as `read_out` left it.
        d_outputs: [n_outputs, n].
    """
    clear(n, d_x, d_x.shape[1])
    for k in range(w.head.shape[0]):
        times_factors(n, hidden[k], d_outputs[k])
        add_product(n, hidden[k], 0, w.head_transposed[k], d_x, 0)
