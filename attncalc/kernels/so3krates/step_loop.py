"""Energy, forces and strain gradient in one call: the order of things."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.keeping import kept_step
from attncalc.kernels.simd.loops import inner_loop, single
from attncalc.kernels.simd.row_loops import clear
from attncalc.kernels.simd.team import (
    add_forces,
    add_ghosts,
    agreed,
    atoms_of,
    clear_ghosts,
    forces_for,
    meet,
)
from attncalc.kernels.simd.vectors import LANES
from attncalc.kernels.so3krates.atom_loops import (
    energies_and_gradient,
    exchange,
    exchange_gradient,
    project,
    project_gradient,
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
    forces_of_pairs,
    start_ev,
    start_ev_gradient,
)
from attncalc.kernels.so3krates.pair_loops import (
    Filters,
    Orders,
    messages,
    messages_gradient,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Weights(NamedTuple):
    """What the network has learned, [n_layers, ...] where nothing else is said.

    Attributes:
        table, first, first_bias, second, second_transposed: of the filters, see `Filters`.
        features, geometry: [.., H, F/H, 3 F/H], [.., n_degrees, F/n_degrees, 2 F/n_degrees],
            projections to queries, keys (and values).
        norm: [.., 4, 1, F], scale and bias after attention, scale and bias after exchange.
        mlp, mlp_bias: [.., 2, F, F], [.., 2, 1, F].
        exchange, exchange_bias: [.., E, E], [.., 1, E], E = F + n_degrees filled up to 16.
        head, head_bias, last: [F, G], [1, G], [1, G] of the energy head, not by layer.
        *_transposed: last two axes exchanged.
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
    """What does not come from training.

    Attributes:
        envelope: [n_intervals, 4], cubics of C(d).
        degrees: [n_degrees].
        norms: [l_max + 1, l_max + 1], of the harmonics.
        masks, mirrored: see `Orders`.
        parity: [sum of 2l+1].
        scale, reference: [n_species] eV: scale, and reference energy + scale * bias of the head.
    """

    envelope: Doubles
    degrees: NDArray[np.int64]
    norms: Doubles
    masks: Floats
    mirrored: Floats
    parity: Floats
    scale: Doubles
    reference: Doubles


class Numbers(NamedTuple):
    """Single numbers: Å, Å, factor of the initial Euclidean variables (0: they are zero)."""

    shortest: float
    cutoff: float
    start: float


class Kinds(NamedTuple):
    """Of which kind atoms are, and the tables of the first layer; see `first_layer_loops`.

    Attributes:
        of_atoms: [n_atoms].
        table: [n_kinds^2 n_intervals, 64]; without rows the first layer goes the general way.
        values: [n_kinds, F].
    """

    of_atoms: NDArray[np.int64]
    table: Floats
    values: Floats


class Space(NamedTuple):
    """Working space of one thread; kept between calls, since fresh memory costs page faults.

    Attributes:
        lengths, directions, which: of its pairs, see `collect`.
        d_spherical, d_lengths: gradients, of its pairs.
        normed, hidden, normal, inverse, ev, gain: what the reverse pass needs of every layer, of
            the atoms in its loops over atoms.
        wide .. third: of those atoms.
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


class Common(NamedTuple):
    """Working space that all threads have in common: rows of all atoms.

    Attributes:
        projected: [n_layers, n, 5 F].
        ev_before: [n_layers + 1, rows, M], Euclidean variables that each layer sees.
        d_x: [n, F].
        x, d_projected, d_ev: [rows, ..]; rows are those of atoms, then those of ghosts, see
            `attncalc.kernels.simd.team`.
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
def _copy(n, x, out):
    """out[:n] = x[:n]."""
    for i in range(n):
        for k in range(out.shape[1]):
            out[i, k] = x[i, k]


def _step(
    team,
    shape,
    vectors,
    receivers,
    senders,
    mask,
    edge_of_pair,
    species,
    system_idx,
    pair_slopes,
    features,
    numbers,
    constants,
    w,
    kinds,
    gathered,
    common,
    pairs,
    own,
    energies,
    forces,
    strain_gradient,
):
    """Adds energies, forces and strain gradient; returns the number of pairs, -1: too close.

    Between two meetings, a thread either goes through its pairs, reads rows of all atoms and adds
    to rows that are its own or its ghosts'; or it goes through its atoms, and touches no others.

    Args:
        team: None, or that of this thread.
        vectors .. system_idx: of the graph, with this thread's edges and pairs.
        pair_slopes: of pair terms, see `forces_of_pairs`.
        features: [n_atoms, F] of the bare atoms.
        numbers, constants, w, kinds: the network.
        gathered: [rows, 16 n_kinds], working space that all threads have in common, as `common`.
        pairs, own: filled.
        energies: [n_atoms] eV.
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV.
    """
    n_pairs = collect(
        team,
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
    n_pairs = agreed(team, n_pairs)
    if n_pairs < 0:
        return n_pairs
    orders = Orders(constants.masks, constants.mirrored)
    n_layers, n_kinds = w.table.shape[0], kinds.values.shape[0]
    per_length = single(constants.envelope.shape[0] / (numbers.cutoff - numbers.shortest))
    start = single(numbers.start)
    first, end = atoms_of(team, len(species))
    n = end - first
    x, d_x, d_ev = common.x[first:end], common.d_x[first:end], common.d_ev[first:end]
    own_gathered = gathered[first:end]
    _copy(n, features[first:end], x)
    clear(n, common.ev_before[0][first:end], common.ev_before.shape[2])
    if start != 0:
        meet(team)
        clear_ghosts(team, common.ev_before[0])
        start_ev(n_pairs, pairs, constants.parity, start, common.ev_before[0])
        meet(team)
        add_ghosts(team, common.ev_before[0])
    by_kind = n_kinds > 0
    for l in range(n_layers):
        rests = l == 0 and start == 0
        before, received = common.ev_before[l], common.ev_before[l + 1]
        after = received[first:end]
        _copy(n, before[first:end], after)
        if l == 0 and by_kind:
            clear(n, own_gathered, n_kinds * LANES)
            meet(team)
            clear_ghosts(team, gathered)
            clear_ghosts(team, received)
            first_coefficients(
                shape,
                n_pairs,
                pairs,
                orders,
                kinds.of_atoms,
                kinds.table,
                n_kinds,
                gathered,
                received,
            )
            meet(team)
            add_ghosts(team, gathered)
            first_features(shape, kinds.values, own_gathered, x)
        else:
            project(n, x, w.features[l], w.geometry[l], common.projected[l][first:end])
            meet(team)
            clear_ghosts(team, common.x)
            clear_ghosts(team, received)
            messages(
                shape,
                n_pairs,
                pairs,
                orders,
                _filters(w, l),
                before,
                rests,
                common.projected[l],
                common.x,
                received,
            )
            meet(team)
            add_ghosts(team, common.x)
        add_ghosts(team, received)
        refine(n, l, w, own, x, own.other)
        exchange(n, l, w, own, constants.degrees, x, after, own.wide, own.wide_too)
    mine = energies[first:end]
    energies_and_gradient(n, w, species[first:end], constants.scale, x, own.of_head, mine, d_x)
    for i in range(first, end):
        energies[i] += constants.reference[species[i]]
    clear(n_pairs, own.d_spherical, own.d_spherical.shape[1])
    own.d_lengths[:n_pairs] = 0
    clear(n, d_ev, d_ev.shape[1])
    for l in range(n_layers - 1, -1, -1):
        rests = l == 0 and start == 0
        exchange_gradient(n, l, w, own, constants.degrees, d_x, d_ev, own.wide, own.wide_too)
        refine_gradient(n, l, w, own, d_x, own.other, own.third)
        received = common.ev_before[l + 1]  # not needed any more: room for a copy
        _copy(n, d_ev, received[first:end])
        if l == 0 and by_kind:
            first_features_gradient(shape, kinds.values, d_x, own_gathered)
            meet(team)
            first_coefficients_gradient(
                shape,
                n_pairs,
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
        clear(n, d_projected, d_projected.shape[1])
        meet(team)
        clear_ghosts(team, common.d_projected)
        clear_ghosts(team, common.d_ev)
        messages_gradient(
            shape,
            n_pairs,
            pairs,
            per_length,
            orders,
            _filters(w, l),
            common.ev_before[l],
            rests,
            common.projected[l],
            common.d_x,
            received,
            common.d_projected,
            common.d_ev,
            own.d_spherical,
            own.d_lengths,
        )
        meet(team)
        add_ghosts(team, common.d_projected)
        add_ghosts(team, common.d_ev)
        project_gradient(n, d_projected, w.features_transposed[l], w.geometry_transposed[l], d_x)
    if start != 0:
        meet(team)
        start_ev_gradient(
            n_pairs, pairs, constants.parity, start, common.d_ev, own.d_spherical, own.d_lengths
        )
    to_forces, to_strain = forces_for(team, forces, strain_gradient)
    forces_of_pairs(
        n_pairs,
        pairs,
        own.which,
        pair_slopes,
        system_idx,
        own.lengths,
        own.directions,
        constants.degrees,
        constants.norms,
        own.d_lengths,
        own.d_spherical,
        to_forces,
        to_strain,
    )
    meet(team)
    add_forces(team, forces, strain_gradient)
    return n_pairs


energy_and_forces = kept_step(_step, Path(__file__).parent)
