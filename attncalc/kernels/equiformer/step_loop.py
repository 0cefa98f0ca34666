"""Forward and reverse pass of Equiformer: the order of the steps."""

from pathlib import Path
from typing import NamedTuple

from attncalc.kernels.equiformer.atom_loops import (
    AtomWorkspace,
    add_bias,
    feed_forward,
    feed_forward_gradient,
    normalise,
    normalise_gradient,
    read_out,
    read_out_gradient,
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
    frames_of,
    gradient_by_vectors,
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
from attncalc.kernels.simd.barrier import (
    add_ghosts,
    agreed,
    atoms_of,
    clear_ghosts,
    wait_for_all,
)
from attncalc.kernels.simd.caching import cached_step, compile_at_once
from attncalc.kernels.simd.held import hold as _hold
from attncalc.kernels.simd.loops import ZERO, inner_loop, single, stays_whole
from attncalc.kernels.simd.row_loops import clear, fill_rows
from attncalc.kernels.simd.vectors import LANES, fill, load, store, times


class Kept(NamedTuple):
    """Results of the forward pass for the reverse pass of all atoms, [n_blocks, ...].

    Attributes:
        normal: [.., 2, n_atoms, width], inputs of attention and feed-forward network.
        inverse: [.., 2, n_atoms, n_degrees], of the norms.
        sources, targets, queries: [.., n_atoms, width], see `AtomRows`.
        wide: [.., n_atoms, ..], hidden layer of the feed-forward networks.
    """

    normal: Floats
    inverse: Floats
    sources: Floats
    targets: Floats
    queries: Floats
    wide: Floats


class KeptOfEdges(NamedTuple):
    """Results of the forward pass on the edges of one thread, [n_blocks, ...].

    Attributes:
        shares, raised: [.., n_edges, heads], see `Shares`.
        results, values: [.., n_edges, ..]; if there are too many edges, [1, chunk, ..] and computed
            again.
    """

    shares: Doubles
    raised: Doubles
    results: Floats
    values: Floats


class Numbers(NamedTuple):
    """Settings of the step.

    Attributes:
        kind: kind of messages.
        chunk: largest number of edges processed at once; edges of one atom are never split.
        keeps: whether `KeptOfEdges` has room for the results of all edges.
    """

    kind: int
    chunk: int
    keeps: bool


@inner_loop
def _end_of_chunk(first, end, edges, most):
    """Return the atom behind the last of the chunk that begins with `first`, at most `end`."""
    last = first + 1
    while last < end and edges.first[last + 1] - edges.first[first] <= most:
        last += 1
    return last


@inner_loop
def _atom_rows(kept, b):
    return AtomRows(kept.sources[b], kept.targets[b], kept.queries[b])


@inner_loop
def _is_last(w, b):
    """Return 1 for the last block, else 0."""
    return 1 if b == w.sources.shape[0] - 1 else 0


@inner_loop
def _own_rows(atoms, first, end):
    """Return the rows of `AtomWorkspace` from `first` to before `end`."""
    return AtomWorkspace(
        atoms.x[first:end],
        atoms.d_x[first:end],
        atoms.received[first:end],
        atoms.spare[first:end],
        atoms.gated[first:end],
        atoms.d_wide[first:end],
        atoms.sum[first:end],
        atoms.normal[first:end],
        atoms.hidden[first:end],
        atoms.inverse[first:end],
    )


@inner_loop
def _shares(of_edges, b):
    return Shares(of_edges.shares[b], of_edges.raised[b])


@inner_loop
def _results(numbers, of_edges, b, first, n):
    """Return memory for results and values of the edges, kept or not."""
    if numbers.keeps:
        return of_edges.results[b][first : first + n], of_edges.values[b][first : first + n]
    return of_edges.results[0][:n], of_edges.values[0][:n]


@inner_loop
def _embed(first_atom, end, n_edges, layout, w, species, numbers, edges, workspace, x):
    """Fill x of some atoms with embeddings of their elements and their neighbours."""
    stays_whole()
    for i in range(first_atom, end):
        for k in range(0, x.shape[1], LANES):
            store(x, i, k, fill(ZERO))
        for k in range(0, layout.channels[0], LANES):
            store(x, i, k, load(w.elements, species[i], k))
    n_degrees, first = len(layout.channels), 0
    clear(1, workspace.row, workspace.row.shape[1])
    while first < n_edges:
        m = min(numbers.chunk, n_edges - first)
        frames_of(first, first + m, layout, w, edges, workspace.outer, workspace.raised)
        amounts = workspace.per_degree
        radial_weights(m, w, 0, edges.basis[first : first + m], workspace, amounts)
        for row in range(m):
            e = first + row
            _spread(layout, amounts, row, single(edges.envelope[e]), workspace.row)
            add_turned_out(layout, n_degrees, edges.frames, e, workspace.row, 0, x, edges.i[e])
        first += m


@inner_loop
def _spread(layout, amounts, row, envelope, out):
    """Store amounts times envelope in the components along the edge; others are not touched."""
    factor = fill(envelope)
    for l in range(len(layout.channels)):
        for k in range(0, layout.channels[l], LANES):
            amount = load(amounts, row, layout.by_degree[l] + k)
            store(out, 0, layout.edge[l, 0] + k, times(amount, factor))


@inner_loop
def _embed_gradient(n_edges, layout, w, numbers, edges, workspace, d_x):
    """Reverse of `_embed`."""
    stays_whole()
    n_degrees, first = len(layout.channels), 0
    clear(1, workspace.other_row, workspace.other_row.shape[1])
    while first < n_edges:
        m = min(numbers.chunk, n_edges - first)
        amounts, d_amounts = workspace.per_degree, workspace.other_per_degree
        d_basis = edges.d_basis[first : first + m]
        radial_weights(m, w, 0, edges.basis[first : first + m], workspace, amounts)
        for row in range(m):
            e = first + row
            c = single(edges.envelope[e])
            turn_in(layout, n_degrees, edges.frames, e, d_x, edges.i[e], workspace.row, 0)
            _spread(layout, amounts, row, c, workspace.other_row)
            to_x, to_z = turning(layout, n_degrees, workspace.row, 0, workspace.other_row, 0)
            edges.d_turn[e, 0] -= to_x
            edges.d_turn[e, 1] -= to_z
            along = ZERO
            for l in range(n_degrees):
                for k in range(layout.channels[l]):
                    at, g = layout.by_degree[l] + k, workspace.row[0, layout.edge[l, 0] + k]
                    along += g * amounts[row, at]
                    d_amounts[row, at] = g * c
            edges.d_envelope[e] += along
        radial_weights_gradient(m, w, 0, d_amounts, workspace, d_basis)
        first += m


@inner_loop
def _attention(parts, first, end, b):
    """Add the attention of block b to x of the atoms from `first` to before `end`."""
    stays_whole()
    numbers, _, layout, plan, w, _, kept, atoms, _, edges, of_edges, workspace, barrier = parts
    last = _is_last(w, b)
    kind, n_used, n = numbers.kind, plan.n_used[last], end - first
    n_degrees = len(layout.channels)
    mine, rows = _own_rows(atoms, first, end), _atom_rows(kept, b)
    normal, sources, targets = (
        kept.normal[b, 0][first:end],
        rows.sources[first:end],
        rows.targets[first:end],
    )
    normalise(n, layout, n_degrees, mine.x, normal, kept.inverse[b, 0][first:end])
    fill_rows(n, sources, matrix(w.flat, w.source_bias[b]))
    add_by_degree(n, w.flat, w.sources[b], normal, layout.atom, sources, layout.atom)
    clear(n, targets, targets.shape[1])
    add_by_degree(n, w.flat, w.targets[b], normal, layout.atom, targets, layout.atom)
    if kind == DOT:
        queries = rows.queries[first:end]
        fill_rows(n, queries, matrix(w.flat, w.query_bias[b]))
        add_by_degree(n, w.flat, w.queries[b], normal, layout.atom, queries, layout.atom)
    clear(n, mine.received, mine.received.shape[1])
    wait_for_all(barrier)
    shares, atom = _shares(of_edges, b), first
    while atom < end:
        behind = _end_of_chunk(atom, end, edges, numbers.chunk)
        edge = edges.first[atom]
        m = edges.first[behind] - edge
        results, values = _results(numbers, of_edges, b, edge, m)
        prepare(kind, edge, m, layout, w, b, edges, rows, workspace)
        through(kind, m, layout, plan, last, w, b, workspace, results, values)
        attend(atom, behind, edge, edges, workspace.logits, shares)
        sent = values if kind == NONLINEAR else results
        send(edge, m, layout, n_used, w, edges, shares, sent, workspace, atoms.received)
        atom = behind
    add_bias(n, matrix(w.flat, w.projection_bias[b]), mine.x)
    add_by_degree(n, w.flat, w.projection[b], mine.received, layout.atom, mine.x, layout.atom)


@inner_loop
def _attention_gradient(parts, first, end, b):
    """Reverse of `_attention`: add to atoms.d_x and to the gradients of edges."""
    stays_whole()
    numbers, _, layout, plan, w, _, kept, atoms, d_rows, edges, of_edges, workspace, barrier = parts
    last = _is_last(w, b)
    kind, n_used, n = numbers.kind, plan.n_used[last], end - first
    n_degrees = len(layout.channels)
    mine, rows = _own_rows(atoms, first, end), _atom_rows(kept, b)
    flat, atom_layout = w.flat, layout.atom
    clear(n, mine.received, mine.received.shape[1])
    add_by_degree_gradient(
        n, flat, w.projection[b], mine.d_x, atom_layout, mine.received, atom_layout
    )
    d_sources, d_targets = d_rows.sources[first:end], d_rows.targets[first:end]
    d_queries = d_rows.queries[first:end]
    clear(n, d_sources, d_sources.shape[1])
    clear(n, d_targets, d_targets.shape[1])
    clear(n, d_queries, d_queries.shape[1])
    wait_for_all(barrier)
    clear_ghosts(barrier, d_rows.sources)
    d_received, shares, atom = atoms.received, _shares(of_edges, b), first
    while atom < end:
        behind = _end_of_chunk(atom, end, edges, numbers.chunk)
        edge = edges.first[atom]
        m = edges.first[behind] - edge
        results, values = _results(numbers, of_edges, b, edge, m)
        prepare(kind, edge, m, layout, w, b, edges, rows, workspace)
        if not numbers.keeps:
            through(kind, m, layout, plan, last, w, b, workspace, results, values)
        sent, d_sent = results, workspace.d_results
        if kind == NONLINEAR:
            sent, d_sent = values, workspace.d_values
        send_gradient(
            edge, m, layout, n_used, w, edges, shares, sent, d_received, workspace, d_sent
        )
        attend_gradient(atom, behind, edge, edges, shares, workspace.attention, workspace.attention)
        through_gradient(kind, m, layout, plan, last, w, b, workspace, results)
        prepare_gradient(kind, edge, m, layout, w, b, edges, workspace, d_rows)
        atom = behind
    wait_for_all(barrier)
    add_ghosts(barrier, d_rows.sources)
    d_normal = mine.spare
    clear(n, d_normal, d_normal.shape[1])
    add_by_degree_gradient(n, flat, w.sources[b], d_sources, atom_layout, d_normal, atom_layout)
    add_by_degree_gradient(n, flat, w.targets[b], d_targets, atom_layout, d_normal, atom_layout)
    if kind == DOT:
        add_by_degree_gradient(n, flat, w.queries[b], d_queries, atom_layout, d_normal, atom_layout)
    normal, inverse = kept.normal[b, 0][first:end], kept.inverse[b, 0][first:end]
    normalise_gradient(n, layout, n_degrees, d_normal, normal, inverse, mine.d_x)


def _forward(held, vectors, receivers, senders, mask, species, energies):
    """Add the energies; return the number of edges, or -1 if two atoms are too close.

    A thread updates the atoms that receive its edges. It reads rows of `kept` of other atoms after
    a barrier.

    Args:
        held: a `Held` of the network, from numbers to bias; kept .. d_rows, filled by all threads;
            edges .. barrier of this thread.
        vectors .. species: of the graph, with this thread's edges.
        energies: [n_atoms].
    """
    numbers, radial, layout, _, w, bias, kept, atoms, _, edges, _, workspace, barrier = held.parts
    n_degrees = len(layout.channels)
    n_edges = collect(barrier, len(species), vectors, receivers, senders, mask, radial, edges)
    n_edges = agreed(barrier, n_edges)
    if n_edges < 0:
        return n_edges
    first, end = atoms_of(barrier, len(species))
    n, mine = end - first, _own_rows(atoms, first, end)
    n_blocks = w.sources.shape[0]
    _embed(first, end, n_edges, layout, w, species, numbers, edges, workspace, atoms.x)
    for b in range(n_blocks):
        _attention(held.parts, first, end, b)
        if not _is_last(w, b):
            normal, wide = kept.normal[b, 1][first:end], kept.wide[b][first:end]
            normalise(n, layout, n_degrees, mine.x, normal, kept.inverse[b, 1][first:end])
            feed_forward(n, layout, w, b, normal, wide, mine.gated, mine.x)
    b = n_blocks - 1
    normal, inverse = kept.normal[b, 1][first:end], kept.inverse[b, 1][first:end]
    own_energies = energies[first:end]
    read_out(n, layout, w, b, normal, inverse, mine, own_energies)
    for i in range(n):
        own_energies[i] += bias
    return n_edges


def _reverse(held, n_atoms, n_edges, d_energies, d_vectors):
    """Add the gradient with respect to the vectors of this thread's edges.

    Gradients with respect to rows of other atoms go to ghosts, see `attncalc.kernels.simd.barrier`.

    Args:
        held: as in the forward pass, which has left its results in the working space.
        n_edges: return value of the forward pass.
        d_energies: [n_atoms].
        d_vectors: [n_edges of the graph, 3].
    """
    numbers, _, layout, _, w, _, kept, atoms, _, edges, _, workspace, barrier = held.parts
    n_degrees = len(layout.channels)
    first, end = atoms_of(barrier, n_atoms)
    n, mine = end - first, _own_rows(atoms, first, end)
    n_blocks = w.sources.shape[0]
    b = n_blocks - 1
    normal, inverse = kept.normal[b, 1][first:end], kept.inverse[b, 1][first:end]
    read_out_gradient(n, layout, w, b, normal, inverse, mine, d_energies[first:end])
    for b in range(n_blocks - 1, -1, -1):
        if not _is_last(w, b):
            normal, inverse = kept.normal[b, 1][first:end], kept.inverse[b, 1][first:end]
            wide, d_normal = kept.wide[b][first:end], mine.spare
            feed_forward_gradient(
                n, layout, w, b, wide, mine.d_x, mine.gated, mine.d_wide, d_normal
            )
            normalise_gradient(n, layout, n_degrees, d_normal, normal, inverse, mine.d_x)
        _attention_gradient(held.parts, first, end, b)
    _embed_gradient(n_edges, layout, w, numbers, edges, workspace, atoms.d_x)
    gradient_by_vectors(n_edges, edges, layout.frame[1], d_vectors)
    return n_edges


hold = cached_step(_hold, Path(__file__).parent, computes=False)
forward = cached_step(_forward, Path(__file__).parent)
reverse = cached_step(_reverse, Path(__file__).parent)
compile_at_once(forward, reverse)
