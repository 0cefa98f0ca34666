"""Per-atom steps: norms, feed-forward networks, the last block's scalars, the energy."""

from typing import NamedTuple

from attncalc.kernels.equiformer.degree_loops import (
    add_by_degree,
    add_by_degree_gradient,
    columns_of,
    degree_norms,
    degree_norms_gradient,
    layer_norm,
    layer_norm_gradient,
)
from attncalc.kernels.equiformer.layout import Floats
from attncalc.kernels.equiformer.places import matrix, transposed
from attncalc.kernels.simd.loops import ONE, ZERO, add_to, inner_loop, sigmoid, stays_whole
from attncalc.kernels.simd.products import add_product
from attncalc.kernels.simd.row_loops import (
    add_rows,
    clear,
    fill_rows,
    head_of_silu,
    silu,
    times_factors,
    times_silu_slope,
)
from attncalc.kernels.simd.vectors import LANES, fill, fma, load, minus, store, times


class AtomWorkspace(NamedTuple):
    """Working space for n atoms.

    Attributes:
        x, d_x: [n, width], features.
        received: [n, width], messages, or the gradient with respect to them.
        spare: [n, width].
        gated: [n, ..], see `Layout.gated`. d_wide: [n, ..], see `Layout.wide`.
        sum, normal, hidden: [n, head features]. inverse: [n, 1].
    """

    x: Floats
    d_x: Floats
    received: Floats
    spare: Floats
    gated: Floats
    d_wide: Floats
    sum: Floats
    normal: Floats
    hidden: Floats
    inverse: Floats


@inner_loop
def normalise(n, layout, n_degrees, x, out, inverse):
    """Apply the equivariant layer norm without scales and bias; inverse [n, n_degrees] is kept."""
    stays_whole()
    layer_norm(n, x, layout.channels[0], out, inverse, 0)
    degree_norms(n, layout, n_degrees, x, out, inverse)


@inner_loop
def normalise_gradient(n, layout, n_degrees, given, normal, inverse, d_x):
    """Add the reverse of `normalise` to d_x; `given` is replaced."""
    stays_whole()
    layer_norm_gradient(n, given, layout.channels[0], normal, inverse, 0)
    degree_norms_gradient(n, layout, n_degrees, given, normal, inverse)
    _, end = columns_of(layout, n_degrees - 1)
    add_rows(n, given, end, d_x)


@inner_loop
def gate_atoms(n, layout, wide, gated):
    """Apply the gate of a feed-forward network."""
    stays_whole()
    for i in range(n):
        for l in range(len(layout.channels)):
            to, width = layout.gated[l], _hidden_width(layout, l)
            for k in range(0, width, LANES):
                s = sigmoid(load(wide, i, layout.gates[l] + k))
                for m in range(2 * l + 1):
                    v = load(wide, i, layout.wide[l] + m * width + k)
                    store(gated, i, to + m * width + k, times(v, s))


@inner_loop
def gate_atoms_gradient(n, layout, wide, given, out):
    """Reverse of `gate_atoms`: fill `out`, the gradient with respect to `wide`."""
    stays_whole()
    one = fill(ONE)
    for i in range(n):
        for l in range(len(layout.channels)):
            width = _hidden_width(layout, l)
            for k in range(0, width, LANES):
                v = load(wide, i, layout.gates[l] + k)
                s = sigmoid(v)
                slope = times(s, minus(one, s))
                if l == 0:  # its own gate
                    g = load(given, i, layout.gated[0] + k)
                    store(out, i, k, times(g, fma(v, slope, s)))
                    continue
                by_gate = fill(ZERO)
                for m in range(2 * l + 1):
                    g = load(given, i, layout.gated[l] + m * width + k)
                    column = layout.wide[l] + m * width + k
                    by_gate = fma(g, load(wide, i, column), by_gate)
                    store(out, i, column, times(g, s))
                store(out, i, layout.gates[l] + k, times(by_gate, slope))


@inner_loop
def _hidden_width(layout, l):
    """Channels of degree l in the hidden layer of feed-forward networks."""
    end = layout.gates[l + 1] if l + 1 < len(layout.channels) else layout.wide[1]
    return end - layout.gates[l]


@inner_loop
def feed_forward(n, layout, w, b, normal, wide, gated, x):
    """Add the result of a feed-forward network to x; its first layer `wide` is kept."""
    stays_whole()
    fill_rows(n, wide, matrix(w.flat, w.first_bias[b]))
    add_by_degree(n, w.flat, w.first[b], normal, layout.atom, wide, layout.wide)
    gate_atoms(n, layout, wide, gated)
    add_bias(n, matrix(w.flat, w.then_bias[b]), x)
    add_by_degree(n, w.flat, w.then[b], gated, layout.gated, x, layout.atom)


@inner_loop
def add_bias(n, row, x):
    """x[:n, : width of row] += row, [1, width]."""
    stays_whole()
    for i in range(n):
        for k in range(0, row.shape[1], LANES):
            add_to(x, i, k, load(row, 0, k))


@inner_loop
def feed_forward_gradient(n, layout, w, b, wide, d_x, d_gated, d_wide, d_normal):
    """Reverse of `feed_forward`: fill d_normal, the gradient with respect to `normal`."""
    stays_whole()
    clear(n, d_gated, d_gated.shape[1])
    add_by_degree_gradient(n, w.flat, w.then[b], d_x, layout.atom, d_gated, layout.gated)
    gate_atoms_gradient(n, layout, wide, d_gated, d_wide)
    clear(n, d_normal, d_normal.shape[1])
    add_by_degree_gradient(n, w.flat, w.first[b], d_wide, layout.wide, d_normal, layout.atom)


@inner_loop
def read_out(n, layout, w, b, normal, inverse, workspace, energies):
    """Apply the last block's feed-forward network and the head, both to scalars alone.

    Args:
        b: index of the last block.
        normal, inverse: [n, ..], [n, n_degrees], working space.
        workspace: its x is read; the reverse pass needs the results in its other arrays.
        energies: [n] float64, added to.
    """
    stays_whole()
    first, then = w.first[b, 0], w.then[b, 0]
    wide, act, channels = workspace.d_wide, workspace.gated, layout.channels[0]
    layer_norm(n, workspace.x, channels, normal, inverse, 0)
    fill_rows(n, wide, matrix(w.flat, w.first_bias[b]))
    add_product(n, normal, 0, matrix(w.flat, first), wide, 0)
    silu(n, wide, first[3], act)
    fill_rows(n, workspace.sum, matrix(w.flat, w.then_bias[b]))
    add_product(n, workspace.x, 0, matrix(w.flat, w.shortcut[0]), workspace.sum, 0)
    add_product(n, act, 0, matrix(w.flat, then), workspace.sum, 0)
    layer_norm(n, workspace.sum, workspace.sum.shape[1], workspace.normal, workspace.inverse, 0)
    fill_rows(n, workspace.hidden, matrix(w.flat, w.hidden_bias[0]))
    add_product(n, workspace.normal, 0, matrix(w.flat, w.hidden[0]), workspace.hidden, 0)
    for i in range(n):
        head_of_silu(workspace.hidden, i, matrix(w.flat, w.energy[0]), 0, energies)


@inner_loop
def read_out_gradient(n, layout, w, b, normal, inverse, workspace, d_energies):
    """Reverse of `read_out`: fill d_x of the workspace, the gradient with respect to its x.

    Args:
        b .. workspace: as `read_out` left them.
        d_energies: [n] float64.
    """
    stays_whole()
    first, then = w.first[b, 0], w.then[b, 0]
    d_wide, act, channels = workspace.d_wide, workspace.gated, layout.channels[0]
    n_wide, d_sum, n_head = first[3], workspace.sum, workspace.sum.shape[1]
    times_factors(n, workspace.hidden, d_energies)
    clear(n, d_sum, n_head)
    add_product(n, workspace.hidden, 0, transposed(w.flat, w.hidden[0]), d_sum, 0)
    layer_norm_gradient(n, d_sum, n_head, workspace.normal, workspace.inverse, 0)
    clear(n, act, n_wide)
    add_product(n, d_sum, 0, transposed(w.flat, then), act, 0)
    times_silu_slope(n, d_wide, n_wide, act)
    clear(n, workspace.spare, channels)
    add_product(n, act, 0, transposed(w.flat, first), workspace.spare, 0)
    layer_norm_gradient(n, workspace.spare, channels, normal, inverse, 0)
    clear(n, workspace.d_x, workspace.d_x.shape[1])
    add_rows(n, workspace.spare, channels, workspace.d_x)
    add_product(n, d_sum, 0, transposed(w.flat, w.shortcut[0]), workspace.d_x, 0)
