"""One evaluation of an Equiformer potential, launch by launch.

Nothing is read back from the device and no shape depends on numbers there, so that a CUDA graph
can hold all of it; no sum depends on the order in which programs run.
"""

from __future__ import annotations

import torch

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
from attncalc.kernels.equiformer_gpu.room import Block, Found, Room


def evaluated(room: Room) -> Found:
    """Everything, forward and back."""
    edges = collected(room)
    hidden = radial_hidden(room, edges)
    amounts = room.multiply(
        room.tables.embed,
        hidden,
        room.floats(room.n_edges, room.sizes.per_degree),
        count=edges.counts,
    )
    x = embedded(room, edges, amounts)
    blocks = blocks_of(room)
    for block in blocks:
        attention(room, block, edges, hidden, x)
        if not block.last:
            feed_forward(room, block, x)
    energies, d_x = energies_of(room, blocks[-1], x)
    d_hidden = torch.empty_like(hidden)
    d_envelope = room.floats(room.n_edges, room.n_envelopes)
    for block in reversed(blocks):
        if not block.last:
            feed_forward_gradient(room, block, d_x, d_x)
        attention_gradient(room, block, edges, d_x, d_hidden, d_envelope)
    d_turn = embedded_gradient(room, edges, amounts, d_x, d_hidden, d_envelope)
    turning(room, blocks, edges, d_turn)
    d_lengths = radial_gradient(room, edges, d_hidden)
    return forces(room, edges, energies, d_envelope, d_lengths, d_turn)


def blocks_of(room: Room) -> list[Block]:
    """Room for all blocks."""
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
                weights=room.floats(n_edges, s.n_weights[last]),
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
