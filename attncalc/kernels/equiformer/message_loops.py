"""Messages to the atoms of one chunk, weighted by attention; and their reverse.

With envelope c and logit l, the share of an edge is p = c exp(l) / sum of c exp(l), and its
attention c p.
"""

import math
from typing import NamedTuple

from attncalc.kernels.equiformer.edge_loops import (
    add_turned_out,
    multiply,
    multiply_gradient,
    radial_weights,
    radial_weights_gradient,
    turn_in,
    turning,
)
from attncalc.kernels.equiformer.layout import DOT, NONLINEAR, Doubles, Floats
from attncalc.kernels.equiformer.places import matrix, transposed
from attncalc.kernels.simd.loops import (
    ONE,
    ZERO,
    add_to,
    inner_loop,
    sigmoid,
    silu_slope,
    single,
    stays_whole,
)
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import clear, fill_rows
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, minus, plus, store, times

LEAST, MORE = single(0.2), single(0.8)  # slope of the leaky ReLU on the left, and its increase
SMALLEST_SUM = 1e-16


class EdgeWorkspace(NamedTuple):
    """Working space for the edges of one chunk; n edges.

    Attributes:
        outer, raised: see `frames_of`.
        radial, radial_normal, radial_inverse: [2, n, hidden], [2, n, hidden], [n, 2], for both
            hidden layers of a radial network. d_radial: [2, n, hidden].
        features, d_features: [n, width], in the edges' frames.
        queries, d_queries: [n, width], of dot-product attention.
        weights, d_weights: [n, n_weights], of the weighted product.
        product: [n, widest unit].
        results, d_results: [n, ..], results of `multiply`.
        gated, d_gated: [n, width].
        values, d_values: [n, width].
        per_degree, other_per_degree: [n, channels of all degrees].
        leaky: [n, heads * features], hidden layer of the attention.
        logits, attention: [n, 16], zero beyond the heads.
        row, other_row: [1, width].
    """

    outer: Floats
    raised: Floats
    radial: Floats
    radial_normal: Floats
    radial_inverse: Floats
    d_radial: Floats
    features: Floats
    d_features: Floats
    queries: Floats
    d_queries: Floats
    weights: Floats
    d_weights: Floats
    product: Floats
    results: Floats
    d_results: Floats
    gated: Floats
    d_gated: Floats
    values: Floats
    d_values: Floats
    per_degree: Floats
    other_per_degree: Floats
    leaky: Floats
    logits: Floats
    attention: Floats
    row: Floats
    other_row: Floats


class AtomRows(NamedTuple):
    """Rows of atoms that edges of a block read, or their gradients: [n_atoms, width] each."""

    sources: Floats
    targets: Floats
    queries: Floats


class Shares(NamedTuple):
    """Shares of edges in one block, [n_edges, heads]: p, and p / c, which is not 0 for small c."""

    shares: Doubles
    raised: Doubles


@inner_loop
def prepare(kind, first, n, layout, w, b, edges, atoms, workspace):
    """Compute features, queries and weights of the edges from `first` on."""
    stays_whole()
    n_degrees = len(layout.channels)
    for row in range(n):
        e = first + row
        i, j = edges.i[e], edges.j[e]
        for k in range(0, workspace.row.shape[1], LANES):
            store(workspace.row, 0, k, plus(load(atoms.sources, j, k), load(atoms.targets, i, k)))
        turn_in(layout, n_degrees, edges.frames, e, workspace.row, 0, workspace.features, row)
        if kind == DOT:
            turn_in(layout, n_degrees, edges.frames, e, atoms.queries, i, workspace.queries, row)
    basis = edges.basis[first : first + n]
    radial_weights(n, w, b + 1, basis, workspace, workspace.weights)


@inner_loop
def gate(n, layout, n_used, results, gated):
    """gated = results times sigmoids of the gates; scalars are their own gates."""
    stays_whole()
    n_degrees, width = len(layout.channels), gated.shape[1]
    for row in range(n):
        for k in range(0, layout.channels[0], LANES):
            v = load(results, row, k)
            store(gated, row, k, times(v, sigmoid(v)))
        for l in range(1, n_degrees):
            at = width + layout.by_degree[l] - layout.channels[0]
            for k in range(0, layout.channels[l], LANES):
                s = sigmoid(load(results, row, at + k))
                for q in range(2 * min(l, n_used - 1) + 1):
                    column = layout.edge[l, q] + k
                    store(gated, row, column, times(load(results, row, column), s))


@inner_loop
def gate_gradient(n, layout, n_used, results, given, out):
    """Reverse of `gate`: fill `out`, the gradient with respect to `results`."""
    stays_whole()
    n_degrees, width, one = len(layout.channels), given.shape[1], fill(ONE)
    for row in range(n):
        for k in range(0, layout.channels[0], LANES):
            v = load(results, row, k)
            store(out, row, k, times(load(given, row, k), silu_slope(v, sigmoid(v))))
        for l in range(1, n_degrees):
            at = width + layout.by_degree[l] - layout.channels[0]
            for k in range(0, layout.channels[l], LANES):
                s = sigmoid(load(results, row, at + k))
                by_gate = fill(ZERO)
                for q in range(2 * min(l, n_used - 1) + 1):
                    column = layout.edge[l, q] + k
                    g = load(given, row, column)
                    by_gate = fma(g, load(results, row, column), by_gate)
                    store(out, row, column, times(g, s))
                store(out, row, at + k, times(by_gate, times(s, minus(one, s))))


@inner_loop
def multiply_by_m(n, layout, n_used, flat, places, x, out):
    """Add the fixed product: one matrix per |m|, for both signs together or for each of them."""
    stays_whole()
    for m in range(n_used):
        _add_m(n, layout, m, matrix(flat, places[m]), x, out)


@inner_loop
def multiply_by_m_gradient(n, layout, n_used, flat, places, given, out):
    """Reverse of `multiply_by_m`."""
    stays_whole()
    for m in range(n_used):
        _add_m(n, layout, m, transposed(flat, places[m]), given, out)


@inner_loop
def _add_m(n, layout, m, w, x, out):
    column = layout.edge[m, max(2 * m - 1, 0)]
    add_product(n, x, column, w, out, column)
    width = layout.by_degree[-1] + layout.channels[-1] - layout.by_degree[m]
    if m and w.shape[0] == width:  # of one sign
        add_product(n, x, column + width, w, out, column + width)


@inner_loop
def leaky_logits(n, results, column, alpha, leaky, logits):
    """Compute logits of MLP attention, whose hidden layer begins at `column` of the results."""
    stays_whole()
    least, more = fill(LEAST), fill(MORE)
    for row in range(n):
        for k in range(0, alpha.shape[0], LANES):
            v = load(results, row, column + k)
            store(leaky, row, k, times(v, fma(more, sigmoid(v), least)))
    clear(n, logits, LANES)
    add_product(n, leaky, 0, alpha, logits, 0)


@inner_loop
def leaky_logits_gradient(n, results, column, alpha_transposed, d_logits, leaky, out):
    """Reverse of `leaky_logits`: fill `out` from `column` on; `leaky` is working space."""
    stays_whole()
    least, more = fill(LEAST), fill(MORE)
    width = alpha_transposed.shape[1]
    clear(n, leaky, width)
    add_product(n, d_logits, 0, alpha_transposed, leaky, 0)
    for row in range(n):
        for k in range(0, width, LANES):
            v = load(results, row, column + k)
            slope = fma(more, silu_slope(v, sigmoid(v)), least)
            store(out, row, column + k, times(load(leaky, row, k), slope))


@inner_loop
def dot_logits(n, layout, results, column, queries, heads, per_degree, logits):
    """Compute logits as products of queries and keys, which begin at `column` of the results."""
    stays_whole()
    for row in range(n):
        for l in range(len(layout.channels)):
            for k in range(0, layout.channels[l], LANES):
                both = fill(ZERO)
                for q in range(2 * l + 1):
                    at = layout.edge[l, q] + k
                    both = fma(load(results, row, column + at), load(queries, row, at), both)
                store(per_degree, row, layout.by_degree[l] + k, both)
    clear(n, logits, LANES)
    add_product(n, per_degree, 0, heads, logits, 0)


@inner_loop
def dot_logits_gradient(
    n, layout, results, column, queries, heads, d_logits, per_degree, d_results, d_queries
):
    """Reverse of `dot_logits`: fill d_results from `column` on, and d_queries."""
    stays_whole()
    clear(n, per_degree, per_degree.shape[1])
    add_product(n, d_logits, 0, heads, per_degree, 0)
    for row in range(n):
        for l in range(len(layout.channels)):
            for k in range(0, layout.channels[l], LANES):
                g = load(per_degree, row, layout.by_degree[l] + k)
                for q in range(2 * l + 1):
                    at = layout.edge[l, q] + k
                    store(d_results, row, column + at, times(g, load(queries, row, at)))
                    store(d_queries, row, at, times(g, load(results, row, column + at)))


@inner_loop
def attend(first, last, edge, edges, logits, shares):
    """Compute shares of all edges of receivers from `first` to before `last`, from `edge` on."""
    stays_whole()
    for i in range(first, last):
        begin, end = edges.first[i], edges.first[i + 1]
        for h in range(shares.shares.shape[1]):
            # the largest l + log c cancels; subtracting it keeps exponentials in range, and the sum
            # at 1 or more, even if an edge that fades out has by far the largest logit
            largest = -math.inf
            for e in range(begin, end):
                level = logits[e - edge, h] + math.log(edges.envelope[e])
                if not level <= largest:  # NaN too
                    largest = level
            gathered = SMALLEST_SUM
            for e in range(begin, end):
                raised = math.exp(logits[e - edge, h] - largest)
                shares.raised[e, h] = raised
                gathered += edges.envelope[e] * raised
            for e in range(begin, end):
                shares.raised[e, h] /= gathered
                shares.shares[e, h] = edges.envelope[e] * shares.raised[e, h]


@inner_loop
def attend_gradient(first, last, edge, edges, shares, d_attention, d_logits):
    """Reverse of `attend`: fill d_logits, which may be d_attention; add to edges.d_envelope."""
    stays_whole()
    for i in range(first, last):
        begin, end = edges.first[i], edges.first[i + 1]
        for h in range(shares.shares.shape[1]):
            mean = 0.0
            for e in range(begin, end):
                mean += shares.shares[e, h] * edges.envelope[e] * d_attention[e - edge, h]
            for e in range(begin, end):
                given, c, p = d_attention[e - edge, h], edges.envelope[e], shares.shares[e, h]
                off_mean = c * given - mean
                edges.d_envelope[e] += p * given + shares.raised[e, h] * off_mean
                d_logits[e - edge, h] = p * off_mean


@inner_loop
def per_channel(n, first, edges, shares, heads, attention, out):
    """out [n, channels of all degrees] = the attention of the channel's head."""
    stays_whole()
    for row in range(n):
        e = first + row
        store(attention, row, 0, fill(ZERO))
        for h in range(shares.shares.shape[1]):
            attention[row, h] = edges.envelope[e] * shares.shares[e, h]
    clear(n, out, heads.shape[1])
    add_product(n, attention, 0, heads, out, 0)


@inner_loop
def times_attention(layout, n_degrees, x, i, attention, row, out):
    """out[0] = x[i] times the attention of each channel of edge `row`, in the edge's frame."""
    for l in range(n_degrees):
        for k in range(0, layout.channels[l], LANES):
            factor = load(attention, row, layout.by_degree[l] + k)
            for q in range(2 * l + 1):
                at = layout.edge[l, q] + k
                store(out, 0, at, times(factor, load(x, i, at)))


@inner_loop
def through(kind, n, layout, plan, last, w, b, workspace, results, values):
    """Compute results, logits and, if not part of the results, values of the edges."""
    stays_whole()
    multiply(n, plan, last, w, b, workspace.features, workspace.weights, workspace.product, results)
    width, n_used = workspace.features.shape[1], plan.n_used[last]
    if kind == DOT:
        heads = transposed(w.flat, w.heads[0])
        per_degree = workspace.per_degree
        dot_logits(
            n, layout, results, width, workspace.queries, heads, per_degree, workspace.logits
        )
        return
    alpha = matrix(w.flat, w.alpha[b])
    leaky_logits(
        n, results, results.shape[1] - alpha.shape[0], alpha, workspace.leaky, workspace.logits
    )
    if kind == NONLINEAR:
        gate(n, layout, n_used, results, workspace.gated)
        bias = matrix(w.flat, w.value_bias[b])
        fill_rows(n, values, bias)
        multiply_by_m(n, layout, n_used, w.flat, w.second[b], workspace.gated, values)


@inner_loop
def send(first, n, layout, n_used, w, edges, shares, values, workspace, received):
    """Add the values times attention to the receivers."""
    stays_whole()
    attention = workspace.per_degree
    per_channel(n, first, edges, shares, matrix(w.flat, w.heads[0]), workspace.attention, attention)
    for row in range(n):
        e = first + row
        times_attention(layout, n_used, values, row, attention, row, workspace.row)
        add_turned_out(layout, n_used, edges.frames, e, workspace.row, 0, received, edges.i[e])


@inner_loop
def send_gradient(
    first, n, layout, n_used, w, edges, shares, values, d_received, workspace, d_values
):
    """Reverse of `send`: fill d_values, and workspace.attention with dE / d attention."""
    stays_whole()
    attention, by_attention = workspace.per_degree, workspace.other_per_degree
    heads = w.heads[0]
    per_channel(n, first, edges, shares, matrix(w.flat, heads), workspace.attention, attention)
    clear(n, by_attention, by_attention.shape[1])
    for row in range(n):
        e = first + row
        i = edges.i[e]
        turn_in(layout, n_used, edges.frames, e, d_received, i, workspace.row, 0)
        times_attention(layout, n_used, values, row, attention, row, workspace.other_row)
        to_x, to_z = turning(layout, n_used, workspace.row, 0, workspace.other_row, 0)
        edges.d_turn[e, 0] -= to_x
        edges.d_turn[e, 1] -= to_z
        times_attention(layout, n_used, workspace.row, 0, attention, row, workspace.other_row)
        for l in range(n_used):
            for k in range(0, layout.channels[l], LANES):
                both = fill(ZERO)
                for q in range(2 * l + 1):
                    at = layout.edge[l, q] + k
                    both = fma(load(workspace.row, 0, at), load(values, row, at), both)
                    store(d_values, row, at, load(workspace.other_row, 0, at))
                store(by_attention, row, layout.by_degree[l] + k, both)
    clear(n, workspace.attention, LANES)
    add_product(n, by_attention, 0, transposed(w.flat, heads), workspace.attention, 0)


@inner_loop
def through_gradient(kind, n, layout, plan, last, w, b, workspace, results):
    """Reverse of `through`, from d_values and dE / d logits, which is in workspace.attention."""
    stays_whole()
    n_used, d_results = plan.n_used[last], workspace.d_results
    if kind == DOT:
        heads = matrix(w.flat, w.heads[0])
        dot_logits_gradient(
            n,
            layout,
            results,
            workspace.features.shape[1],
            workspace.queries,
            heads,
            workspace.attention,
            workspace.per_degree,
            d_results,
            workspace.d_queries,
        )
    else:
        alpha = transposed(w.flat, w.alpha[b])
        column = results.shape[1] - alpha.shape[1]
        leaky_logits_gradient(
            n, results, column, alpha, workspace.attention, workspace.leaky, d_results
        )
    if kind == NONLINEAR:
        clear(n, workspace.d_gated, workspace.d_gated.shape[1])
        places = w.second[b]
        multiply_by_m_gradient(
            n, layout, n_used, w.flat, places, workspace.d_values, workspace.d_gated
        )
        gate_gradient(n, layout, n_used, results, workspace.d_gated, d_results)
    multiply_gradient(
        n,
        plan,
        last,
        w,
        b,
        workspace.features,
        workspace.weights,
        d_results,
        workspace.product,
        workspace.d_features,
        workspace.d_weights,
    )


@inner_loop
def prepare_gradient(kind, first, n, layout, w, b, edges, workspace, d_atoms):
    """Reverse of `prepare`, whose workspace it reads: add to d_atoms and the edges' gradients."""
    stays_whole()
    n_degrees = len(layout.channels)
    for row in range(n):
        e = first + row
        i, to = edges.i[e], edges.to[e]
        to_x, to_z = turning(layout, n_degrees, workspace.d_features, row, workspace.features, row)
        edges.d_turn[e, 0] += to_x
        edges.d_turn[e, 1] += to_z
        clear(1, workspace.row, workspace.row.shape[1])
        add_turned_out(
            layout, n_degrees, edges.frames, e, workspace.d_features, row, workspace.row, 0
        )
        for k in range(0, workspace.row.shape[1], LANES):
            g = load(workspace.row, 0, k)
            add_to(d_atoms.sources, to, k, g)
            add_to(d_atoms.targets, i, k, g)
        if kind == DOT:
            to_x, to_z = turning(
                layout, n_degrees, workspace.d_queries, row, workspace.queries, row
            )
            edges.d_turn[e, 0] += to_x
            edges.d_turn[e, 1] += to_z
            add_turned_out(
                layout, n_degrees, edges.frames, e, workspace.d_queries, row, d_atoms.queries, i
            )
    d_basis = edges.d_basis[first : first + n]
    radial_weights_gradient(n, w, b + 1, workspace.d_weights, workspace, d_basis)
