"""Forward and reverse pass of So3krates: the order of the steps."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.barrier import (
    add_ghosts,
    agreed,
    atoms_of,
    clear_ghosts,
    wait_for_all,
)
from attncalc.kernels.simd.caching import cached_step, compile_at_once
from attncalc.kernels.simd.held import hold as _hold
from attncalc.kernels.simd.layer_rows import count, exchange_ghosts, pairs_of
from attncalc.kernels.simd.loops import inner_loop, single
from attncalc.kernels.simd.row_loops import clear
from attncalc.kernels.simd.vectors import LANES
from attncalc.kernels.so3krates.atom_loops import (
    exchange,
    exchange_gradient,
    project,
    project_gradient,
    read_out,
    read_out_gradient,
    refine,
    refine_gradient,
)
from attncalc.kernels.so3krates.first_layer_loops import (
    first_coefficients,
    first_coefficients_gradient,
    first_features,
    first_features_gradient,
)
from attncalc.kernels.so3krates.geometry_loops import (
    collect,
    gradient_by_vectors,
    start_ev,
    start_ev_gradient,
)
from attncalc.kernels.so3krates.pair_loops import (
    Filters,
    Kept,
    Orders,
    messages,
    messages_gradient,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Weights(NamedTuple):
    """Weights of the network, [n_layers, ...] unless stated otherwise.

    Attributes:
        table, first, first_bias, second, second_transposed: of the filters, see `Filters`.
        features, geometry: [.., H, F/H, 3 F/H], [.., n_degrees, F/n_degrees, 2 F/n_degrees],
            projections to queries, keys (and values).
        norm: [.., 4, 1, F], scale and bias after attention, scale and bias after exchange.
        mlp, mlp_bias: [.., 2, F, F], [.., 2, 1, F].
        exchange, exchange_bias: [.., E, E], [.., 1, E], E = F + n_degrees filled up to 16.
        head, head_bias, last: [n_outputs, ...]: [.., F, G], [.., 1, G], [.., n_species, G] of the
            heads.
        *_transposed: last two axes exchanged.

    Matrices that rows are multiplied by (second, features, geometry, mlp, exchange, head, and all
    transposed ones) have the order of `attncalc.kernels.simd.lanes.in_blocks`.
    """

    table: Floats
    first: Floats
    first_bias: Floats
    second: Floats
    second_transposed: Floats
    features: Floats
    features_transposed: Floats
    geometry: Floats
    geometry_transposed: Floats
    norm: Floats
    mlp: Floats
    mlp_transposed: Floats
    mlp_bias: Floats
    exchange: Floats
    exchange_transposed: Floats
    exchange_bias: Floats
    head: Floats
    head_transposed: Floats
    head_bias: Floats
    last: Floats


class Constants(NamedTuple):
    """Constants that do not come from training.

    Attributes:
        envelope: [n_intervals, 4], cubics of C(d).
        degrees: [n_degrees].
        norms: [l_max + 1, l_max + 1], of the harmonics.
        masks, mirrored: see `Orders`.
        parity: [sum of 2l+1].
        bias: [n_outputs, n_species], of the heads.
    """

    envelope: Doubles
    degrees: NDArray[np.int64]
    norms: Doubles
    masks: Floats
    mirrored: Floats
    parity: Floats
    bias: Doubles


class Numbers(NamedTuple):
    """Shortest length and cutoff [Å], factor of the initial Euclidean variables (0: zero)."""

    shortest: float
    cutoff: float
    start: float


class Kinds(NamedTuple):
    """Kinds of the atoms, and the tables of the first layer; see `first_layer_loops`.

    Attributes:
        of_atoms: [n_atoms].
        table: [n_kinds^2 n_intervals, 64]; if empty, the first layer is computed like the others.
        values: [n_kinds, F].
    """

    of_atoms: NDArray[np.int64]
    table: Floats
    values: Floats


class Space(NamedTuple):
    """Working space of one thread; kept between calls, since fresh memory costs page faults.

    Attributes:
        lengths, directions, which: length, direction and edge of its pairs, see `collect`.
        d_spherical, d_lengths: gradients with respect to harmonics and lengths of its pairs.
        normed, hidden, normal, inverse, ev, gain: values of every layer that the reverse pass
            needs, for the atoms of its loops over atoms.
        wide .. third: intermediate results for those atoms.
        filters, bare, slope: [n_layers, ..], see `Kept`.
    """

    lengths: Doubles
    directions: Doubles
    which: NDArray[np.int64]
    d_spherical: Floats
    d_lengths: Floats
    normed: Floats
    hidden: Floats
    normal: Floats
    inverse: Floats
    ev: Floats
    gain: Floats
    wide: Floats
    wide_too: Floats
    of_head: Floats
    other: Floats
    third: Floats
    filters: Floats
    bare: Floats
    slope: Floats


class Common(NamedTuple):
    """Working space that all threads share: rows of all atoms.

    Attributes:
        projected: [n_layers, n, 5 F].
        ev_before: [n_layers + 1, rows, M], Euclidean variables that each layer reads.
        d_x: [n, F].
        x, d_projected, d_ev: [rows, ..]; first the rows of atoms, then those of ghosts, see
            `attncalc.kernels.simd.barrier`.
    """

    projected: Floats
    ev_before: Floats
    d_x: Floats
    x: Floats
    d_projected: Floats
    d_ev: Floats


@inner_loop
def _filters(w, l):
    return Filters(w.table[l], w.first[l], w.first_bias[l], w.second[l], w.second_transposed[l])


@inner_loop
def _kept(own, l):
    return Kept(own.filters[l], own.bare[l], own.slope[l])


@inner_loop
def _copy(n, x, out):
    """out[:n] = x[:n]."""
    for i in range(n):
        for k in range(out.shape[1]):
            out[i, k] = x[i, k]


def _forward(
    held,
    vectors,
    receivers,
    senders,
    mask,
    edge_of_pair,
    species,
    features,
    kinds,
    gathered,
    rows,
    outputs,
):
    """Add the outputs; return the number of pairs, or -1 if two atoms are too close.

    Between two barriers, a thread works either on its pairs or on its atoms. For pairs, it reads
    rows of all atoms, and adds only to rows of its own atoms and ghosts. For atoms, it touches no
    others.

    Args:
        held: a `Held` of shape, numbers, constants, weights, `Common`, and this thread's `Pairs`,
            `Space` and `Barrier`.
        vectors .. species: of the graph, with this thread's edges and pairs.
        features: [n_atoms, F] of the bare atoms.
        kinds: those of the atoms.
        gathered: [rows, 16 n_kinds], working space that all threads share.
        rows: `LayerRows`: atoms of each layer. Rows of other atoms do not change and are not read.
        outputs: [n_outputs, n_atoms].
    """
    shape, numbers, constants, w, common, pairs, own, barrier = held.parts
    n_pairs = collect(
        barrier,
        vectors,
        receivers,
        senders,
        mask,
        edge_of_pair,
        numbers.cutoff,
        numbers.shortest,
        constants.envelope,
        constants.degrees,
        constants.norms,
        pairs,
        own.which,
        own.lengths,
        own.directions,
    )
    n_pairs = agreed(barrier, n_pairs)
    if n_pairs < 0:
        return n_pairs
    orders = Orders(constants.masks, constants.mirrored)
    n_layers, n_kinds = w.table.shape[0], kinds.values.shape[0]
    start = single(numbers.start)
    first, end = atoms_of(barrier, len(species))
    n = end - first
    x = common.x[first:end]
    own_gathered = gathered[first:end]
    _copy(n, features[first:end], x)
    clear(n, common.ev_before[0][first:end], common.ev_before.shape[2])
    if start != 0:
        wait_for_all(barrier)
        clear_ghosts(barrier, common.ev_before[0])
        start_ev(n_pairs, pairs, constants.parity, start, common.ev_before[0])
        wait_for_all(barrier)
        add_ghosts(barrier, common.ev_before[0])
    by_kind = n_kinds > 0
    for l in range(n_layers):
        rests = l == 0 and start == 0
        before, received = common.ev_before[l], common.ev_before[l + 1]
        if not rests:
            exchange_ghosts(barrier, rows, l + 1)
        seen, updated = count(first, end, rows.seen[l]), count(first, end, rows.updated[l])
        of_layer = pairs_of(n_pairs, pairs.i, rows.updated[l])
        after = received[first:end]
        _copy(seen, before[first:end], after)
        if l == 0 and by_kind:
            clear(seen, own_gathered, n_kinds * LANES)
            wait_for_all(barrier)
            clear_ghosts(barrier, gathered)
            clear_ghosts(barrier, received)
            first_coefficients(
                shape,
                of_layer,
                pairs,
                orders,
                kinds.of_atoms,
                kinds.table,
                n_kinds,
                gathered,
                received,
            )
            wait_for_all(barrier)
            add_ghosts(barrier, gathered)
            first_features(shape, kinds.values, own_gathered[:updated], x[:updated])
        else:
            project(seen, x, w.features[l], w.geometry[l], common.projected[l][first:end])
            wait_for_all(barrier)
            clear_ghosts(barrier, common.x)
            clear_ghosts(barrier, received)
            messages(
                shape,
                of_layer,
                pairs,
                orders,
                _filters(w, l),
                before,
                rests,
                _kept(own, l),
                common.projected[l],
                common.x,
                received,
            )
            wait_for_all(barrier)
            add_ghosts(barrier, common.x)
        add_ghosts(barrier, received)
        refine(updated, l, w, own, x, own.other)
        exchange(updated, l, w, own, constants.degrees, x, after, own.wide, own.wide_too)
    mine, updated = outputs[:, first:end], count(first, end, rows.updated[n_layers - 1])
    read_out(updated, w, x, species[first:end], own.of_head, mine)
    for k in range(mine.shape[0]):
        for i in range(updated):
            mine[k, i] += constants.bias[k, species[first + i]]
    return n_pairs


def _reverse(held, n_atoms, n_pairs, kinds, gathered, rows, d_outputs, d_vectors):
    """Add the gradient with respect to the vectors of this thread's edges.

    Args:
        held: as in the forward pass, which has left its results in the working space.
        n_pairs: return value of the forward pass.
        kinds .. rows: as in the forward pass.
        d_outputs: [n_outputs, n_atoms].
        d_vectors: [n_edges, 3].
    """
    shape, numbers, constants, w, common, pairs, own, barrier = held.parts
    orders = Orders(constants.masks, constants.mirrored)
    n_layers, n_kinds = w.table.shape[0], kinds.values.shape[0]
    per_length = single(constants.envelope.shape[0] / (numbers.cutoff - numbers.shortest))
    start = single(numbers.start)
    first, end = atoms_of(barrier, n_atoms)
    n = end - first
    d_x, d_ev = common.d_x[first:end], common.d_ev[first:end]
    own_gathered = gathered[first:end]
    by_kind = n_kinds > 0
    counted = count(first, end, rows.updated[n_layers - 1])
    read_out_gradient(counted, w, own.of_head, d_outputs[:, first:end], d_x)
    others = d_x[counted:]
    clear(n - counted, others, others.shape[1])
    clear(n_pairs, own.d_spherical, own.d_spherical.shape[1])
    own.d_lengths[:n_pairs] = 0
    clear(n, d_ev, d_ev.shape[1])
    for l in range(n_layers - 1, -1, -1):
        rests = l == 0 and start == 0
        seen, updated = count(first, end, rows.seen[l]), count(first, end, rows.updated[l])
        of_layer = pairs_of(n_pairs, pairs.i, rows.updated[l])
        exchange_gradient(updated, l, w, own, constants.degrees, d_x, d_ev, own.wide, own.wide_too)
        refine_gradient(updated, l, w, own, d_x, own.other, own.third)
        received = common.ev_before[l + 1]  # no longer needed: room for a copy
        _copy(seen, d_ev, received[first:end])
        if l == 0 and by_kind:
            first_features_gradient(shape, kinds.values, d_x[:seen], own_gathered[:seen])
            wait_for_all(barrier)
            first_coefficients_gradient(
                shape,
                of_layer,
                pairs,
                per_length,
                orders,
                kinds.of_atoms,
                kinds.table,
                n_kinds,
                gathered,
                received,
                own.d_spherical,
                own.d_lengths,
            )
            continue
        d_projected = common.d_projected[first:end]
        clear(seen, d_projected, d_projected.shape[1])
        wait_for_all(barrier)
        clear_ghosts(barrier, common.d_projected)
        clear_ghosts(barrier, common.d_ev)
        messages_gradient(
            shape,
            of_layer,
            pairs,
            per_length,
            orders,
            _filters(w, l),
            common.ev_before[l],
            rests,
            _kept(own, l),
            common.projected[l],
            common.d_x,
            received,
            common.d_projected,
            common.d_ev,
            own.d_spherical,
            own.d_lengths,
        )
        wait_for_all(barrier)
        add_ghosts(barrier, common.d_projected)
        add_ghosts(barrier, common.d_ev)
        project_gradient(seen, d_projected, w.features_transposed[l], w.geometry_transposed[l], d_x)
        if not rests:
            exchange_ghosts(barrier, rows, -(l + 1))
    if start != 0:
        wait_for_all(barrier)
        start_ev_gradient(
            n_pairs, pairs, constants.parity, start, common.d_ev, own.d_spherical, own.d_lengths
        )
    gradient_by_vectors(
        n_pairs,
        own.which,
        own.lengths,
        own.directions,
        constants.degrees,
        constants.norms,
        own.d_lengths,
        own.d_spherical,
        d_vectors,
    )
    return n_pairs


hold = cached_step(_hold, Path(__file__).parent, computes=False)
forward = cached_step(_forward, Path(__file__).parent)
reverse = cached_step(_reverse, Path(__file__).parent)
compile_at_once(forward, reverse)
