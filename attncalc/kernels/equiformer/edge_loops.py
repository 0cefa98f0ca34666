"""Per-edge steps: rotations into their frames and back, radial networks, products.

Rows are edges of one chunk, numbered from 0.
"""

from attncalc.kernels.equiformer.degree_loops import (
    layer_norm,
    layer_norm_gradient,
    scale_and_silu,
    scale_and_silu_gradient,
)
from attncalc.kernels.equiformer.places import matrix, transposed
from attncalc.kernels.simd.loops import ZERO, add_to, inner_loop, single, stays_whole
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import clear, fill_rows
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, minus, store, times, total


@inner_loop
def turn_in(layout, n_degrees, frames, e, x, i, out, row):
    """out[row] = D x[i]: rotate into the frame of edge e."""
    for k in range(0, layout.channels[0], LANES):
        store(out, row, k, load(x, i, k))
    for l in range(1, n_degrees):
        n, width, begin = 2 * l + 1, layout.channels[l], layout.atom[l]
        for q in range(n):
            at, to = layout.frame[l] + q * n, layout.edge[l, q]
            for k in range(0, width, LANES):
                turned = fill(ZERO)
                for m in range(n):
                    turned = fma(fill(frames[e, at + m]), load(x, i, begin + m * width + k), turned)
                store(out, row, to + k, turned)


@inner_loop
def add_turned_out(layout, n_degrees, frames, e, x, row, out, i):
    """out[i] += D^T x[row]: rotate out of the frame of edge e."""
    for k in range(0, layout.channels[0], LANES):
        add_to(out, i, k, load(x, row, k))
    for l in range(1, n_degrees):
        n, width, begin = 2 * l + 1, layout.channels[l], layout.atom[l]
        for m in range(n):
            at = layout.frame[l] + m
            for k in range(0, width, LANES):
                turned = load(out, i, begin + m * width + k)
                for q in range(n):
                    factor = fill(frames[e, at + q * n])
                    turned = fma(factor, load(x, row, layout.edge[l, q] + k), turned)
                store(out, i, begin + m * width + k, turned)


@inner_loop
def turning(layout, n_degrees, given, i, x, row):
    """<given[i], G x[row]> for the generators G of rotations that take the pole to +x, to +z."""
    to_x, to_z = fill(ZERO), fill(ZERO)
    for c in range(layout.coupling_ends[n_degrees]):
        a, b = layout.couplings[c, 0], layout.couplings[c, 1]
        both = fill(ZERO)
        for k in range(0, layout.couplings[c, 2], LANES):
            both = fma(load(given, i, a + k), load(x, row, b + k), both)
            both = minus(both, times(load(given, i, b + k), load(x, row, a + k)))
        to_x = fma(both, fill(layout.coupling_values[c, 0]), to_x)
        to_z = fma(both, fill(layout.coupling_values[c, 1]), to_z)
    return total(to_x), total(to_z)


@inner_loop
def radial_hidden(n, w, b, basis, workspace):
    """Compute both hidden layers of radial network b; the result is workspace.radial[1]."""
    stays_whole()
    x = basis
    for layer in range(2):
        rows, places = w.radial_rows[b], (w.radial_first, w.radial_second)
        bias, scale = matrix(w.flat, rows[3 * layer]), matrix(w.flat, rows[3 * layer + 1])
        normal, inverse = workspace.radial_normal[layer], workspace.radial_inverse
        fill_rows(n, normal, bias)
        add_product(n, x, 0, matrix(w.flat, places[layer][b]), normal, 0)
        layer_norm(n, normal, normal.shape[1], normal, inverse, layer)
        x = workspace.radial[layer]
        scale_and_silu(n, normal, scale, matrix(w.flat, rows[3 * layer + 2]), x)


@inner_loop
def radial_hidden_gradient(n, w, b, given, spare, workspace, d_basis):
    """Reverse of `radial_hidden`: add to d_basis; `given` [n, hidden] is replaced."""
    stays_whole()
    rows = w.radial_rows[b]
    for layer in range(1, -1, -1):
        scale, bias = matrix(w.flat, rows[3 * layer + 1]), matrix(w.flat, rows[3 * layer + 2])
        normal = workspace.radial_normal[layer]
        scale_and_silu_gradient(n, normal, scale, bias, given)
        layer_norm_gradient(n, given, given.shape[1], normal, workspace.radial_inverse, layer)
        if layer == 1:
            clear(n, spare, spare.shape[1])
            add_product(n, given, 0, transposed(w.flat, w.radial_second[b]), spare, 0)
            given = spare
    add_product(n, given, 0, transposed(w.flat, w.radial_first[b]), d_basis, 0)


@inner_loop
def radial_weights(n, w, b, basis, workspace, out):
    """out = results of radial network b for the edges."""
    stays_whole()
    radial_hidden(n, w, b, basis, workspace)
    fill_rows(n, out, matrix(w.flat, w.radial_offset[b]))
    add_product(n, workspace.radial[1], 0, matrix(w.flat, w.radial_last[b]), out, 0)


@inner_loop
def radial_weights_gradient(n, w, b, given, workspace, d_basis):
    """Reverse of `radial_weights`, whose workspace it reads: add to d_basis."""
    stays_whole()
    d_hidden, spare = workspace.d_radial[0], workspace.d_radial[1]
    clear(n, d_hidden, d_hidden.shape[1])
    add_product(n, given, 0, transposed(w.flat, w.radial_last[b]), d_hidden, 0)
    radial_hidden_gradient(n, w, b, d_hidden, spare, workspace, d_basis)


@inner_loop
def multiply(n, plan, last, w, b, features, weights, product, out):
    """Compute the weighted product of block b and the linear maps behind it.

    Args:
        last: 1 in the last block, else 0.
        features: [n, ..], in the edges' frames.
        weights: [n, ..], results of the radial network.
        product: [n, ..], working space.
        out: [n, ..], see `ProductPlan`.
    """
    stays_whole()
    fill_rows(n, out, matrix(w.flat, w.product_bias[b]))
    for unit in range(plan.n_units[last]):
        first, end = plan.units[last, unit, 0], plan.units[last, unit, 1]
        for s in range(first, end):
            to, of_w = plan.segments[last, s, 0], plan.segments[last, s, 1]
            of_x, width = plan.segments[last, s, 2], plan.segments[last, s, 3]
            sign = fill(single(1 - 2 * plan.segments[last, s, 4]))
            for row in range(n):
                for k in range(0, width, LANES):
                    x = times(load(features, row, of_x + k), sign)
                    store(product, row, to + k, times(x, load(weights, row, of_w + k)))
        for which in range(2):
            m = matrix(w.flat, w.product[b, unit, which])
            add_product(n, product, 0, m, out, plan.units[last, unit, 3 + which])


@inner_loop
def multiply_gradient(
    n, plan, last, w, b, features, weights, given, product, d_features, d_weights
):
    """Reverse of `multiply`: fill d_features and d_weights."""
    stays_whole()
    clear(n, d_features, d_features.shape[1])
    clear(n, d_weights, d_weights.shape[1])
    for unit in range(plan.n_units[last]):
        clear(n, product, plan.units[last, unit, 2])
        for which in range(2):
            m = transposed(w.flat, w.product[b, unit, which])
            add_product(n, given, plan.units[last, unit, 3 + which], m, product, 0)
        first, end = plan.units[last, unit, 0], plan.units[last, unit, 1]
        for s in range(first, end):
            to, of_w = plan.segments[last, s, 0], plan.segments[last, s, 1]
            of_x, width = plan.segments[last, s, 2], plan.segments[last, s, 3]
            sign = fill(single(1 - 2 * plan.segments[last, s, 4]))
            for row in range(n):
                for k in range(0, width, LANES):
                    g = times(load(product, row, to + k), sign)
                    x, f = load(features, row, of_x + k), load(weights, row, of_w + k)
                    d_x, d_f = load(d_features, row, of_x + k), load(d_weights, row, of_w + k)
                    store(d_features, row, of_x + k, fma(g, f, d_x))
                    store(d_weights, row, of_w + k, fma(g, x, d_f))
