"""Energy, forces and strain gradient in one call: the order of things."""

from pathlib import Path
from typing import NamedTuple

from attncalc.kernels.equiformer.atom_loops import (
    add_bias,
    energies_and_gradient,
    feed_forward,
    feed_forward_gradient,
    normalise,
    normalise_gradient,
)
from attncalc.kernels.equiformer.degree_loops import add_by_degree, add_by_degree_gradient
from attncalc.kernels.equiformer.edge_loops import (
    add_turned_out,
    radial_weights,
    radial_weights_gradient,
    turn_in,
    turning,
)
from attncalc.kernels.equiformer.geometry_loops import (
    collect,
    forces_of_edges,
    forces_of_pair_terms,
    frames_of,
)
from attncalc.kernels.equiformer.layout import DOT, NONLINEAR, Doubles, Floats
from attncalc.kernels.equiformer.message_loops import (
    AtomRows,
    Shares,
    attend,
    attend_gradient,
    prepare,
    prepare_gradient,
    send,
    send_gradient,
    through,
    through_gradient,
)
from attncalc.kernels.equiformer.places import matrix
from attncalc.kernels.simd.keeping import kept_step
from attncalc.kernels.simd.loops import ZERO, inner_loop, single, stays_whole
from attncalc.kernels.simd.row_loops import clear, fill_rows
from attncalc.kernels.simd.vectors import LANES, fill, load, store, times


class Kept(NamedTuple):
    """What the forward pass leaves for the reverse, [n_blocks, ...].

    Attributes:
        normal: [.., 2, n_atoms, width], what went into attention and feed-forward network.
        inverse: [.., 2, n_atoms, n_degrees], of the norms.
        sources, targets, queries: [.., n_atoms, width], see `AtomRows`.
        wide: [.., n_atoms, ..], hidden layer of the feed-forward networks.
        shares, raised: [.., n_edges, heads], see `Shares`.
        results, values: [.., n_edges, ..], of the edges; where they are too many, [1, chunk, ..]
            and computed again.
    """

    normal: Floats
    inverse: Floats
    sources: Floats
    targets: Floats
    queries: Floats
    wide: Floats
    shares: Doubles
    raised: Doubles
    results: Floats
    values: Floats


class Numbers(NamedTuple):
    """How to go about it.

    Attributes:
        kind: of messages.
        chunk: most edges that are worked through at once, but all of an atom.
        keeps: whether `Kept` has room for the results of all edges.
    """

    kind: int
    chunk: int
    keeps: bool


@inner_loop
def _end_of_chunk(first, n_atoms, edges, most):
    """The atom before which the chunk ends that begins with `first`."""
    last = first + 1
    while last < n_atoms and edges.first[last + 1] - edges.first[first] <= most:
        last += 1
    return last


@inner_loop
def _atom_rows(kept, b):
    return AtomRows(kept.sources[b], kept.targets[b], kept.queries[b])


@inner_loop
def _shares(kept, b):
    return Shares(kept.shares[b], kept.raised[b])


@inner_loop
def _results(numbers, kept, b, first, n):
    """Room for results and values of the edges, kept or not."""
    if numbers.keeps:
        return kept.results[b][first : first + n], kept.values[b][first : first + n]
    return kept.results[0][:n], kept.values[0][:n]


@inner_loop
def _embed(n, n_edges, layout, w, species, numbers, edges, room, x):
    """Fill x: elements, and what neighbours are around."""
    stays_whole()
    for i in range(n):
        for k in range(0, x.shape[1], LANES):
            store(x, i, k, fill(ZERO))
        for k in range(0, layout.channels[0], LANES):
            store(x, i, k, load(w.elements, species[i], k))
    n_degrees, first = len(layout.channels), 0
    clear(1, room.row, room.row.shape[1])
    while first < n_edges:
        m = min(numbers.chunk, n_edges - first)
        frames_of(first, first + m, layout, w, edges, room.outer, room.raised)
        amounts = room.per_degree
        radial_weights(m, w, 0, edges.basis[first : first + m], room, amounts)
        for row in range(m):
            e = first + row
            _spread(layout, amounts, row, single(edges.envelope[e]), room.row)
            add_turned_out(layout, n_degrees, edges.frames, e, room.row, 0, x, edges.i[e])
        first += m


@inner_loop
def _spread(layout, amounts, row, envelope, out):
    """Into the components along the edge; others are not touched."""
    factor = fill(envelope)
    for l in range(len(layout.channels)):
        for k in range(0, layout.channels[l], LANES):
            amount = load(amounts, row, layout.by_degree[l] + k)
            store(out, 0, layout.edge[l, 0] + k, times(amount, factor))


@inner_loop
def _embed_gradient(n_edges, layout, w, numbers, edges, room, d_x):
    """Reverse of `_embed`."""
    stays_whole()
    n_degrees, first = len(layout.channels), 0
    clear(1, room.other_row, room.other_row.shape[1])
    while first < n_edges:
        m = min(numbers.chunk, n_edges - first)
        amounts, d_amounts = room.per_degree, room.other_per_degree
        d_basis = edges.d_basis[first : first + m]
        radial_weights(m, w, 0, edges.basis[first : first + m], room, amounts)
        for row in range(m):
            e = first + row
            c = single(edges.envelope[e])
            turn_in(layout, n_degrees, edges.frames, e, d_x, edges.i[e], room.row, 0)
            _spread(layout, amounts, row, c, room.other_row)
            to_x, to_z = turning(layout, n_degrees, room.row, 0, room.other_row, 0)
            edges.d_turn[e, 0] -= to_x
            edges.d_turn[e, 1] -= to_z
            along = ZERO
            for l in range(n_degrees):
                for k in range(layout.channels[l]):
                    at, g = layout.by_degree[l] + k, room.row[0, layout.edge[l, 0] + k]
                    along += g * amounts[row, at]
                    d_amounts[row, at] = g * c
            edges.d_envelope[e] += along
        radial_weights_gradient(m, w, 0, d_amounts, room, d_basis)
        first += m


@inner_loop
def _attention(n, layout, plan, last, w, b, numbers, edges, kept, room, atoms):
    """Adds to atoms.x what attention brings."""
    stays_whole()
    kind, n_used = numbers.kind, plan.n_used[last]
    n_degrees = len(layout.channels)
    normal, rows = kept.normal[b, 0], _atom_rows(kept, b)
    normalise(n, layout, n_degrees, atoms.x, normal, kept.inverse[b, 0])
    fill_rows(n, rows.sources, matrix(w.flat, w.source_bias[b]))
    add_by_degree(n, w.flat, w.sources[b], normal, layout.atom, rows.sources, layout.atom)
    clear(n, rows.targets, rows.targets.shape[1])
    add_by_degree(n, w.flat, w.targets[b], normal, layout.atom, rows.targets, layout.atom)
    if kind == DOT:
        fill_rows(n, rows.queries, matrix(w.flat, w.query_bias[b]))
        add_by_degree(n, w.flat, w.queries[b], normal, layout.atom, rows.queries, layout.atom)
    clear(n, atoms.received, atoms.received.shape[1])
    shares, first = _shares(kept, b), 0
    while first < n:
        end = _end_of_chunk(first, n, edges, numbers.chunk)
        edge = edges.first[first]
        m = edges.first[end] - edge
        results, values = _results(numbers, kept, b, edge, m)
        prepare(kind, edge, m, layout, w, b, edges, rows, room)
        through(kind, m, layout, plan, last, w, b, room, results, values)
        attend(first, end, edge, edges, room.logits, shares)
        sent = values if kind == NONLINEAR else results
        send(edge, m, layout, n_used, w, edges, shares, sent, room, atoms.received)
        first = end
    add_bias(n, matrix(w.flat, w.projection_bias[b]), atoms.x)
    add_by_degree(n, w.flat, w.projection[b], atoms.received, layout.atom, atoms.x, layout.atom)


@inner_loop
def _attention_gradient(n, layout, plan, last, w, b, numbers, edges, kept, room, atoms, d_rows):
    """Reverse of `_attention`: adds to atoms.d_x and to the gradients of edges."""
    stays_whole()
    kind, n_used = numbers.kind, plan.n_used[last]
    n_degrees = len(layout.channels)
    d_received, rows = atoms.received, _atom_rows(kept, b)
    clear(n, d_received, d_received.shape[1])
    add_by_degree_gradient(
        n, w.flat, w.projection[b], atoms.d_x, layout.atom, d_received, layout.atom
    )
    clear(n, d_rows.sources, d_rows.sources.shape[1])
    clear(n, d_rows.targets, d_rows.targets.shape[1])
    clear(n, d_rows.queries, d_rows.queries.shape[1])
    shares, first = _shares(kept, b), 0
    while first < n:
        end = _end_of_chunk(first, n, edges, numbers.chunk)
        edge = edges.first[first]
        m = edges.first[end] - edge
        results, values = _results(numbers, kept, b, edge, m)
        prepare(kind, edge, m, layout, w, b, edges, rows, room)
        if not numbers.keeps:
            through(kind, m, layout, plan, last, w, b, room, results, values)
        sent, d_sent = results, room.d_results
        if kind == NONLINEAR:
            sent, d_sent = values, room.d_values
        send_gradient(edge, m, layout, n_used, w, edges, shares, sent, d_received, room, d_sent)
        attend_gradient(first, end, edge, edges, shares, room.attention, room.attention)
        through_gradient(kind, m, layout, plan, last, w, b, room, results)
        prepare_gradient(kind, edge, m, layout, w, b, edges, room, d_rows)
        first = end
    d_normal = atoms.spare
    clear(n, d_normal, d_normal.shape[1])
    flat, atom = w.flat, layout.atom
    add_by_degree_gradient(n, flat, w.sources[b], d_rows.sources, atom, d_normal, atom)
    add_by_degree_gradient(n, flat, w.targets[b], d_rows.targets, atom, d_normal, atom)
    if kind == DOT:
        add_by_degree_gradient(n, flat, w.queries[b], d_rows.queries, atom, d_normal, atom)
    normalise_gradient(
        n, layout, n_degrees, d_normal, kept.normal[b, 0], kept.inverse[b, 0], atoms.d_x
    )


def _step(
    vectors,
    receivers,
    senders,
    mask,
    pairs,
    species,
    system_idx,
    pair_slopes,
    numbers,
    radial,
    layout,
    plan,
    w,
    scale,
    reference,
    edges,
    kept,
    room,
    atoms,
    d_rows,
    energies,
    forces,
    strain_gradient,
):
    """Adds energies, forces and strain gradient; returns the number of edges, -1: too close.

    Args:
        vectors .. system_idx: of the graph.
        pair_slopes: of pair terms, see `forces_of_pair_terms`.
        numbers .. reference: the network; scale and reference energies [n_species] eV.
        edges .. d_rows: filled.
        energies: [n_atoms] eV.
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV.
    """
    n, n_degrees = len(species), len(layout.channels)
    n_edges = collect(n, vectors, receivers, senders, mask, radial, edges)
    if n_edges < 0:
        return n_edges
    n_blocks = w.sources.shape[0]
    _embed(n, n_edges, layout, w, species, numbers, edges, room, atoms.x)
    for b in range(n_blocks):
        last = 1 if b == n_blocks - 1 else 0
        _attention(n, layout, plan, last, w, b, numbers, edges, kept, room, atoms)
        if not last:
            normal = kept.normal[b, 1]
            normalise(n, layout, n_degrees, atoms.x, normal, kept.inverse[b, 1])
            feed_forward(n, layout, w, b, normal, kept.wide[b], atoms.gated, atoms.x)
    b = n_blocks - 1
    normal, inverse = kept.normal[b, 1], kept.inverse[b, 1]
    energies_and_gradient(n, layout, w, b, species, scale, normal, inverse, atoms, energies)
    for i in range(n):
        energies[i] += reference[species[i]]
    for b in range(n_blocks - 1, -1, -1):
        last = 1 if b == n_blocks - 1 else 0
        if not last:
            d_normal = atoms.spare
            feed_forward_gradient(
                n, layout, w, b, kept.wide[b], atoms.d_x, atoms.gated, atoms.d_wide, d_normal
            )
            normalise_gradient(
                n, layout, n_degrees, d_normal, kept.normal[b, 1], kept.inverse[b, 1], atoms.d_x
            )
        _attention_gradient(n, layout, plan, last, w, b, numbers, edges, kept, room, atoms, d_rows)
    _embed_gradient(n_edges, layout, w, numbers, edges, room, atoms.d_x)
    forces_of_edges(n_edges, edges, layout.frame[1], system_idx, forces, strain_gradient)
    forces_of_pair_terms(
        vectors, receivers, senders, pairs, pair_slopes, system_idx, forces, strain_gradient
    )
    return n_edges


energy_and_forces = kept_step(_step, Path(__file__).parent)
