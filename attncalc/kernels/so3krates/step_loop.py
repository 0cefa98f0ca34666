"""Energy, forces and strain gradient in one call: the order of things."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attncalc.kernels.simd.keeping import kept_step
from attncalc.kernels.simd.loops import inner_loop, single
from attncalc.kernels.simd.row_loops import clear
from attncalc.kernels.so3krates.atom_loops import (
    energies_and_gradient,
    exchange,
    exchange_gradient,
    project,
    project_gradient,
    refine,
    refine_gradient,
)
from attncalc.kernels.so3krates.first_layer_loops import first_messages, first_messages_gradient
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
    """Working space for n_atoms, n_pairs; kept between calls, since fresh memory costs page faults.

    Attributes:
        lengths, directions, which: of pairs, see `collect`.
        d_spherical, d_lengths: gradients, of pairs.
        projected, normed, hidden, normal, inverse, ev, gain: what the reverse pass needs of every
            layer; `ev_before` [n_layers + 1, n, M] are the Euclidean variables that it sees.
        x .. d_ev: of atoms.
    """

    lengths: Doubles
    directions: Doubles
    which: NDArray[np.int64]
    d_spherical: Floats
    d_lengths: Floats
    projected: Floats
    normed: Floats
    hidden: Floats
    normal: Floats
    inverse: Floats
    ev: Floats
    ev_before: Floats
    gain: Floats
    x: Floats
    wide: Floats
    wide_too: Floats
    of_head: Floats
    d_x: Floats
    other: Floats
    third: Floats
    d_projected: Floats
    d_ev: Floats


@inner_loop
def _filters(w, l):
    return Filters(w.table[l], w.first[l], w.first_bias[l], w.second[l], w.second_transposed[l])


def _step(
    shape,
    vectors,
    receivers,
    senders,
    mask,
    edge_of_pair,
    species,
    system_idx,
    features,
    pair_slopes,
    numbers,
    constants,
    w,
    kinds,
    gathered,
    pairs,
    space,
    energies,
    forces,
    strain_gradient,
):
    """Adds energies, forces and strain gradient; returns the number of pairs, -1: too close.

    Args:
        vectors .. system_idx: of the graph.
        features: [n_atoms, F] of the bare atoms.
        pair_slopes: of pair terms, see `forces_of_pairs`.
        numbers, constants, w, kinds: the network.
        gathered: [n_atoms, 16 n_kinds], working space.
        pairs, space: filled.
        energies: [n_atoms] eV.
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV.
    """
    n_pairs = collect(
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
        space.which,
        space.lengths,
        space.directions,
    )
    if n_pairs < 0:
        return n_pairs
    orders = Orders(constants.masks, constants.mirrored)
    n, n_layers = len(species), w.table.shape[0]
    per_length = single(constants.envelope.shape[0] / (numbers.cutoff - numbers.shortest))
    start = single(numbers.start)
    x, d_ev = space.x, space.d_ev
    for i in range(n):
        for k in range(x.shape[1]):
            x[i, k] = features[i, k]
    clear(n, space.ev_before[0], space.ev_before[0].shape[1])
    if start != 0:
        start_ev(n_pairs, pairs, constants.parity, start, space.ev_before[0])
    by_kind = len(kinds.table) > 0
    for l in range(n_layers):
        rests = l == 0 and start == 0
        before, after = space.ev_before[l], space.ev_before[l + 1]
        for i in range(n):
            for k in range(before.shape[1]):
                after[i, k] = before[i, k]
        if l == 0 and by_kind:
            first_messages(
                shape,
                n_pairs,
                pairs,
                orders,
                kinds.of_atoms,
                kinds.table,
                kinds.values,
                gathered,
                x[:n],
                after,
            )
        else:
            project(n, x, w.features[l], w.geometry[l], space.projected[l])
            messages(
                shape,
                n_pairs,
                pairs,
                orders,
                _filters(w, l),
                before,
                rests,
                space.projected[l],
                x,
                after,
            )
        refine(n, l, w, space, x, space.other)
        exchange(n, l, w, space, constants.degrees, x, after, space.wide, space.wide_too)
    energies_and_gradient(n, w, species, constants.scale, x, space.of_head, energies, space.d_x)
    for i in range(n):
        energies[i] += constants.reference[species[i]]
    clear(n_pairs, space.d_spherical, space.d_spherical.shape[1])
    space.d_lengths[:n_pairs] = 0
    clear(n, d_ev, d_ev.shape[1])
    for l in range(n_layers - 1, -1, -1):
        rests = l == 0 and start == 0
        exchange_gradient(
            n, l, w, space, constants.degrees, space.d_x, d_ev, space.wide, space.wide_too
        )
        refine_gradient(n, l, w, space, space.d_x, space.other, space.third)
        received = space.ev_before[l + 1]  # not needed any more: room for a copy
        for i in range(n):
            for k in range(d_ev.shape[1]):
                received[i, k] = d_ev[i, k]
        if l == 0 and by_kind:
            first_messages_gradient(
                shape,
                n_pairs,
                pairs,
                per_length,
                orders,
                kinds.of_atoms,
                kinds.table,
                kinds.values,
                gathered,
                space.d_x[:n],
                received,
                space.d_spherical,
                space.d_lengths,
            )
            continue
        clear(n, space.d_projected, space.d_projected.shape[1])
        messages_gradient(
            shape,
            n_pairs,
            pairs,
            per_length,
            orders,
            _filters(w, l),
            space.ev_before[l],
            rests,
            space.projected[l],
            space.d_x,
            received,
            space.d_projected,
            d_ev,
            space.d_spherical,
            space.d_lengths,
        )
        project_gradient(
            n, space.d_projected, w.features_transposed[l], w.geometry_transposed[l], space.d_x
        )
    if start != 0:
        start_ev_gradient(
            n_pairs, pairs, constants.parity, start, d_ev, space.d_spherical, space.d_lengths
        )
    forces_of_pairs(
        n_pairs,
        pairs,
        space.which,
        pair_slopes,
        system_idx,
        space.lengths,
        space.directions,
        constants.degrees,
        constants.norms,
        space.d_lengths,
        space.d_spherical,
        forces,
        strain_gradient,
    )
    return n_pairs


energy_and_forces = kept_step(_step, Path(__file__).parent)
