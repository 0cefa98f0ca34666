"""What every block does: attention and feed-forward network; and the energies at the end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attncalc.kernels.equiformer_gpu import attention as att
from attncalc.kernels.equiformer_gpu import norms, products, turns
from attncalc.kernels.equiformer_gpu.launching import launch
from attncalc.kernels.equiformer_gpu.room import (
    Block,
    Edges,
    Room,
    up_to_power,
)

# columns of the matrix of attention vectors
ALPHA_WIDTH = 16


def tiles_of_values(room: Room, block: Block) -> int:
    """The last block's values are scalars."""
    return room.config.channels[0] // room.sizes.step if block.last else room.n_tiles


def attention(room: Room, block: Block, edges: Edges, x: Tensor) -> None:
    """Adds to x what neighbours send."""
    s, t, of, count = room.sizes, room.tables, block.of, edges.counts
    room.normalise(x, block.normal, block.inverse, t.parts)
    both = room.multiply(of.merge, block.normal, room.floats(room.n, 2 * s.width))
    launch(
        turns.turn_in,
        (room.per_edges(), room.n_tiles),
        both,
        edges.frames,
        edges.i,
        edges.j,
        t.both_tiles,
        t.columns,
        count,
        block.features,
        both_row=2 * s.width,
        FRAMES=s.frames,
        features_row=block.features.stride(0),
        BE=room.programs.edges,
        Q=s.q,
        BC=s.step,
        num_warps=4,
    )
    room.multiply(
        of.multiply,
        block.features,
        block.results,
        y=block.weights,
        mode=products.TIMES,
        count=count,
    )
    if of.second is not None:
        room.multiply(of.second, block.results, block.values, mode=products.GATED, count=count)
    launch(
        att.attend,
        (room.n, room.heads),
        block.results,
        t.flat[of.alpha :],
        edges.envelope,
        edges.of_receivers,
        block.shares,
        block.raised,
        results_row=block.results.stride(0),
        **_attention_constants(room),
    )
    received = room.floats(room.n, s.width)
    sum_turned_out(
        room,
        block.values,
        edges,
        received,
        t.tiles,
        t.value_columns,
        tiles_of_values(room, block),
        block,
    )
    room.multiply(of.project, received, x, add=True)


def _attention_constants(room: Room) -> dict[str, Any]:
    features = room.config.attention_features
    return {
        "COLUMN": room.sizes.attention,
        "ALPHA": ALPHA_WIDTH,
        "HEADS": room.heads,
        "FEATURES": features,
        "BE": room.programs.in_sums,
        "BF": up_to_power(features),
        "num_warps": 2,
    }


def sum_turned_out(
    room: Room,
    values: Tensor,
    edges: Edges,
    out: Tensor,
    tiles: Tensor,
    columns: Tensor,
    n_tiles: int,
    weighted_by: Block | None = None,
) -> None:
    """At receivers, by attention; or at both ends of the edges, as they are."""
    shares = edges.envelope if weighted_by is None else weighted_by.shares
    launch(
        turns.sum_turned_out,
        (room.n, n_tiles, 2 if weighted_by is None else 1),
        values,
        edges.frames,
        edges.envelope,
        shares,
        edges.of_receivers,
        edges.of_senders,
        edges.order,
        tiles,
        columns,
        out,
        values_row=values.stride(0),
        FRAMES=room.sizes.frames,
        out_row=out.stride(0),
        HEADS=room.heads,
        WEIGHTED=weighted_by is not None,
        BE=room.programs.in_sums,
        Q=room.sizes.q,
        BC=room.sizes.step,
        num_warps=4,
    )


def attention_gradient(
    room: Room, block: Block, edges: Edges, d_x: Tensor, d_envelope: Tensor
) -> None:
    """Reverse of `attention`: adds to d_x."""
    s, t, of, count = room.sizes, room.tables, block.of, edges.counts
    n_tiles = tiles_of_values(room, block)
    d_received = room.multiply(of.project_back, d_x, room.floats(room.n, s.width))
    d_attention = room.floats(room.n_edges, room.heads, n_tiles)
    d_results = block.d_values if room.linear else room.floats(room.n_edges, s.results)
    launch(
        turns.send_gradient,
        (room.per_edges(), n_tiles),
        d_received,
        block.values,
        edges.frames,
        edges.envelope,
        block.shares,
        edges.i,
        t.tiles,
        t.value_columns,
        count,
        block.d_values,
        d_attention,
        received_row=s.width,
        values_row=block.values.stride(0),
        FRAMES=s.frames,
        HEADS=room.heads,
        n_tiles=n_tiles,
        BE=room.programs.edges,
        Q=s.q,
        BC=s.step,
        num_warps=4,
    )
    launch(
        att.attend_gradient,
        (room.n, room.heads),
        d_attention,
        block.results,
        t.flat[of.alpha :],
        edges.envelope,
        block.shares,
        block.raised,
        edges.of_receivers,
        d_results,
        d_envelope,
        results_row=block.results.stride(0),
        d_results_row=d_results.stride(0),
        n_tiles=n_tiles,
        ENVELOPES=room.n_envelopes,
        first_envelope=block.number * room.heads,
        BT=up_to_power(room.n_tiles),
        **_attention_constants(room),
    )
    if of.second_back is not None:
        d_gated = room.floats(room.n_edges, s.width)
        room.multiply(of.second_back, block.d_values, d_gated, count=count)
        gate_gradient(room, block.results, d_gated, d_results, t.gates[block.last], count)
    given = room.floats(room.n_edges, s.products[block.last])
    room.multiply(of.multiply_back, d_results, given, count=count)
    sums = t.sums[block.last]
    launch(
        products.times_gradient,
        (room.per_edges(room.programs.rows), sums.sums.shape[0]),
        given,
        block.features,
        block.weights,
        block.d_features,
        block.d_weights,
        sums.sums,
        sums.terms,
        count,
        given_row=given.stride(0),
        x_row=block.features.stride(0),
        y_row=block.weights.stride(0),
        d_x_row=block.d_features.stride(0),
        d_y_row=block.d_weights.stride(0),
        BM=room.programs.rows,
        BK=s.step,
        num_warps=4,
    )
    d_both = room.floats(room.n, 2 * s.width)
    sum_turned_out(room, block.d_features, edges, d_both, t.both_tiles, t.columns, room.n_tiles)
    d_normal = room.multiply(of.merge_back, d_both, room.floats(room.n, s.width))
    room.normalise_gradient(d_normal, block.normal, block.inverse, d_x, t.parts)


def gate_gradient(
    room: Room, x: Tensor, given: Tensor, out: Tensor, gates: Tensor, count: Tensor
) -> None:
    """Of edges or atoms."""
    launch(
        products.gate_gradient,
        (math.ceil(x.shape[0] / room.programs.rows), gates.shape[0]),
        x,
        given,
        out,
        gates,
        count,
        x_row=x.stride(0),
        given_row=given.stride(0),
        out_row=out.stride(0),
        gate_row=gates.shape[1],
        BM=room.programs.rows,
        BK=room.sizes.step,
        num_warps=4,
    )


def feed_forward(room: Room, block: Block, x: Tensor) -> None:
    """Adds to x."""
    room.normalise(x, block.normal_2, block.inverse_2, room.tables.parts)
    room.multiply(block.of.first, block.normal_2, block.wide)
    room.multiply(block.of.then, block.wide, x, mode=products.GATED, add=True)


def feed_forward_gradient(room: Room, block: Block, given: Tensor, d_x: Tensor) -> None:
    """Reverse of a feed-forward network, norm included: adds to d_x."""
    last, of = block.last, block.of
    d_gated = room.multiply(of.then_back, given, room.floats(room.n, room.sizes.gated[last]))
    d_wide = torch.empty_like(block.wide)
    gate_gradient(room, block.wide, d_gated, d_wide, room.tables.wide_gates[last], room.atoms)
    d_normal = room.multiply(of.first_back, d_wide, room.floats(room.n, room.sizes.width))
    room.normalise_gradient(d_normal, block.normal_2, block.inverse_2, d_x, room.tables.parts)


def energies_of(room: Room, last: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """[n] eV, without repulsion, and the gradient of their sum by x."""
    t, c, n, width = room.tables, room.constants, room.n, room.config.head_features
    room.normalise(x, last.normal_2, last.inverse_2, t.parts)
    room.multiply(last.of.first, last.normal_2, last.wide)
    summed = room.multiply(t.shortcut, x, room.floats(n, width))
    room.multiply(last.of.then, last.wide, summed, mode=products.GATED, add=True)
    normal, inverse = room.floats(n, width), room.floats(n, 1)
    room.normalise(summed, normal, inverse, t.head_part)
    hidden = room.multiply(t.hidden, normal, room.floats(n, width))
    energies, d_hidden = room.doubles(n), torch.empty_like(hidden)
    launch(
        norms.energies_of,
        (n,),
        hidden,
        t.energy,
        room.graph.species,
        c.scale,
        c.reference,
        energies,
        d_hidden,
        HIDDEN=width,
        BLOCK=room.head_block,
        num_warps=4,
    )
    d_normal = room.multiply(t.hidden_back, d_hidden, room.floats(n, width))
    d_summed = torch.empty_like(summed)
    room.normalise_gradient(d_normal, normal, inverse, d_summed, t.head_part, add=False)
    d_x = torch.zeros_like(x)
    room.multiply(t.shortcut_back, d_summed, d_x)
    feed_forward_gradient(room, last, d_summed, d_x)
    return energies, d_x
