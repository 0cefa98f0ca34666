"""One evaluation of an Equiformer potential, launch by launch.

Nothing is read back from the device and no shape depends on numbers there, so that a CUDA graph
can hold all of it; no sum depends on the order in which programs run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attncalc.kernels.equiformer_gpu.block_steps import (
    attention,
    attention_gradient,
    energies_of,
    feed_forward,
    feed_forward_gradient,
)
from attncalc.kernels.equiformer_gpu.edge_steps import (
    collected,
    embedded,
    embedded_gradient,
    forces,
    radial_gradient,
    radial_hidden,
    turning,
)
from attncalc.kernels.equiformer_gpu.room import Block, Room
from attncalc.kernels.gpu.found import Found


def evaluated(room: Room) -> Found:
    """Everything, forward and back."""
    edges = collected(room)
    hidden = radial_hidden(room, edges)
    weights = room.floats(room.n_edges, sum(room.sizes.n_weights))
    room.multiply(room.tables.weights, hidden, weights, count=edges.counts)
    d_weights = torch.empty_like(weights)
    amounts, *of_blocks = weights.split(room.sizes.n_weights, dim=1)
    d_amounts, *d_of_blocks = d_weights.split(room.sizes.n_weights, dim=1)
    x = embedded(room, edges, amounts)
    blocks = blocks_of(room, of_blocks, d_of_blocks)
    for block in blocks:
        attention(room, block, edges, x)
        if not block.last:
            feed_forward(room, block, x)
    energies, d_x = energies_of(room, blocks[-1], x)
    d_envelope = room.floats(room.n_edges, room.n_envelopes)
    for block in reversed(blocks):
        if not block.last:
            feed_forward_gradient(room, block, d_x, d_x)
        attention_gradient(room, block, edges, d_x, d_envelope)
    d_turn = embedded_gradient(room, edges, amounts, d_x, d_amounts, d_envelope)
    turning(room, blocks, edges, d_turn)
    d_hidden = torch.empty_like(hidden)
    room.multiply(room.tables.weights_back, d_weights, d_hidden, count=edges.counts)
    d_lengths = radial_gradient(room, edges, d_hidden)
    return forces(room, edges, energies, d_envelope, d_lengths, d_turn)


def blocks_of(room: Room, weights: list[Tensor], d_weights: list[Tensor]) -> list[Block]:
    """Room for all blocks, with the weights of their products."""
    s, n_edges, n_blocks = room.sizes, room.n_edges, room.n_blocks
    features = room.floats(n_edges, n_blocks, s.width)
    d_features = torch.empty_like(features)
    of_values = s.results if room.linear else s.width
    values = room.floats(n_edges, n_blocks, of_values)
    d_values = torch.empty_like(values)
    found = []
    for b, of in enumerate(room.tables.blocks):
        last = int(b == n_blocks - 1)
        results = values[:, b] if room.linear else room.floats(n_edges, s.results)
        n_norms = 1 if last else len(room.config.channels)
        found.append(
            Block(
                number=b,
                last=last,
                of=of,
                features=features[:, b],
                d_features=d_features[:, b],
                values=values[:, b],
                d_values=d_values[:, b],
                weights=weights[b],
                d_weights=d_weights[b],
                results=results,
                shares=room.floats(n_edges, room.heads),
                raised=room.floats(n_edges, room.heads),
                normal=room.floats(room.n, s.width),
                inverse=room.floats(room.n, len(room.config.channels)),
                normal_2=room.floats(room.n, s.width),
                inverse_2=room.floats(room.n, n_norms),
                wide=room.floats(room.n, s.wide[last]),
            )
        )
    return found
