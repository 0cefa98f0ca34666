"""What is done once per evaluation: the edges that count, embedding, forces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attncalc.kernels.equiformer_gpu import geometry as geo
from attncalc.kernels.equiformer_gpu import radial, turns
from attncalc.kernels.equiformer_gpu.launching import launch
from attncalc.kernels.equiformer_gpu.room import (
    PRECISION,
    Block,
    Edges,
    Room,
    up_to_power,
)
from attncalc.kernels.gpu.found import Found


def collected(room: Room) -> Edges:
    """Edges that count, and everything that depends on their vectors alone."""
    graph, s, c = room.graph, room.sizes, room.constants
    n_edges, n = room.n_edges, room.n
    kept = torch.empty(n_edges, dtype=torch.int32, device=room.device)
    vectors = graph.vectors.detach().contiguous()
    grid = (room.per_edges(64),)
    launch(
        geo.mark,
        grid,
        vectors,
        graph.edge_mask,
        n_edges,
        c.limits,
        kept,
        SMOOTH=room.smooth,
        BE=64,
        num_warps=2,
    )
    rank = torch.cumsum(kept, 0, dtype=torch.int32)
    ends = torch.full((2, n_edges), n, dtype=torch.int32, device=room.device)
    i, j = ends.unbind(0)
    edges = Edges(
        counts=rank[-1:].clone() if n_edges else torch.zeros_like(room.atoms),
        i=i,
        j=j,
        near=room.doubles(n_edges, 3),
        envelope=room.floats(n_edges),
        along=room.doubles(n_edges),
        basis=room.floats(n_edges, s.basis),
        slopes=room.floats(n_edges, s.basis),
        frames=room.floats(n_edges, s.frames),
        of_receivers=rank,
        of_senders=rank,
        order=rank,
    )
    launch(
        geo.collect,
        (room.per_edges(16),),
        vectors,
        graph.receivers,
        graph.senders,
        kept,
        rank,
        n_edges,
        c.limits,
        c.centres,
        c.widths,
        *edges[1:9],
        SMOOTH=room.smooth,
        BASIS=s.basis,
        N_BASIS=c.centres.shape[0],
        FRAMES=s.frames,
        BE=16,
        num_warps=4,
    )
    for degree, raising in enumerate(room.tables.raising, start=2):
        launch(
            geo.raise_frames,
            (room.per_edges(32),),
            raising,
            edges.counts,
            edges.frames,
            DEGREE=degree,
            ROW=raising.shape[1],
            FRAMES=s.frames,
            BE=32,
            BN=up_to_power((2 * degree + 1) ** 2),
            BK=32,
            PRECISION=PRECISION,
            num_warps=4,
        )
    senders, order = torch.sort(j, stable=True)
    atoms = torch.arange(n + 1, dtype=torch.int32, device=room.device)
    return edges._replace(
        of_receivers=torch.searchsorted(i, atoms, out_int32=True),
        of_senders=torch.searchsorted(senders, atoms, out_int32=True),
        order=order,
    )


def forces(
    room: Room,
    edges: Edges,
    energies: Tensor,
    d_envelope: Tensor,
    d_lengths: Tensor,
    d_turn: Tensor,
) -> Found:
    """From gradients by what edges are described with to forces and strain gradient."""
    repulsion, nothing = room.constants.repulsion, room.constants.limits
    repels, n_systems = repulsion is not None, room.graph.n_systems
    gradient = room.doubles(room.n_edges, 3)
    pair_energies = room.doubles(room.n_edges) if repels else nothing
    launch(
        geo.edge_gradient,
        (room.per_edges(),),
        edges.near,
        edges.frames,
        edges.along,
        d_envelope,
        d_lengths,
        d_turn,
        edges.i,
        edges.j,
        room.graph.species,
        *((nothing,) * 4 if repulsion is None else repulsion),
        edges.counts,
        gradient,
        pair_energies,
        FRAMES=room.sizes.frames,
        ENVELOPES=room.n_envelopes,
        LENGTHS=d_lengths.shape[1],
        TURNS=room.n_turns,
        REPELS=repels,
        BE=room.programs.edges,
        BV=up_to_power(room.n_envelopes),
        BL=up_to_power(d_lengths.shape[1]),
        BT=up_to_power(room.n_turns),
        num_warps=2,
    )
    forces, strains = room.doubles(room.n, 3), room.doubles(room.n, 9)
    launch(
        geo.forces_of_atoms,
        (room.n,),
        edges.near,
        gradient,
        pair_energies,
        edges.of_receivers,
        edges.of_senders,
        edges.order,
        energies,
        forces,
        strains,
        REPELS=repels,
        BE=32,
        num_warps=1,
    )
    systems = torch.arange(n_systems + 1, device=room.device)
    of_systems = torch.searchsorted(room.graph.system_idx, systems, out_int32=True)
    energy, strain_gradient = room.doubles(n_systems), room.doubles(n_systems, 3, 3)
    launch(
        geo.sums_of_systems,
        (n_systems,),
        energies,
        strains,
        of_systems,
        energy,
        strain_gradient,
        BA=128,
        num_warps=4,
    )
    return Found(energy, energies, forces, strain_gradient)


def _radial_constants(room: Room) -> dict[str, Any]:
    s, width = room.sizes, room.config.radial_features
    return {
        "BASIS": s.basis,
        "ROWS": s.basis_rows,
        "WIDTH": width,
        "HIDDEN": room.hidden_width,
        "BE": room.programs.in_radial,
        "W": up_to_power(width),
        "PRECISION": PRECISION,
        "num_warps": 8,
    }


def radial_hidden(room: Room, edges: Edges) -> Tensor:
    """[n_edges, networks * width], of all radial networks."""
    hidden = room.floats(room.n_edges, room.hidden_width)
    launch(
        radial.radial_hidden,
        (room.per_edges(room.programs.in_radial), room.n_blocks + 1),
        edges.basis,
        room.tables.flat,
        room.tables.radial,
        edges.counts,
        hidden,
        **_radial_constants(room),
    )
    return hidden


def radial_gradient(room: Room, edges: Edges, d_hidden: Tensor) -> Tensor:
    """[n_edges, networks], by the length."""
    d_lengths = room.floats(room.n_edges, room.n_blocks + 1)
    launch(
        radial.radial_gradient,
        (room.per_edges(room.programs.in_radial), room.n_blocks + 1),
        edges.basis,
        edges.slopes,
        room.tables.flat,
        room.tables.radial,
        edges.counts,
        d_hidden,
        d_lengths,
        NETS=room.n_blocks + 1,
        **_radial_constants(room),
    )
    return d_lengths


def embedded(room: Room, edges: Edges, amounts: Tensor) -> Tensor:
    """Features of elements and of the edges around each atom."""
    x, elements = room.floats(room.n, room.sizes.width), room.tables.elements
    launch(
        turns.embed,
        (room.n, room.n_tiles),
        amounts,
        edges.envelope,
        edges.frames,
        edges.of_receivers,
        room.graph.species,
        elements,
        room.tables.tiles,
        x,
        AMOUNTS=amounts.stride(0),
        FRAMES=room.sizes.frames,
        ELEMENTS=elements.shape[1],
        x_row=room.sizes.width,
        BE=room.programs.in_sums,
        Q=room.sizes.q,
        BC=room.sizes.step,
        num_warps=4,
    )
    return x


def embedded_gradient(
    room: Room, edges: Edges, amounts: Tensor, d_x: Tensor, d_amounts: Tensor, d_envelope: Tensor
) -> Tensor:
    """Reverse of `embedded`; the gradient by turns of the frames, with room for the rest."""
    d_turn = room.floats(room.n_edges, room.n_turns, 2)
    launch(
        turns.embed_gradient,
        (room.per_edges(), room.n_tiles),
        d_x,
        amounts,
        edges.envelope,
        edges.frames,
        edges.i,
        room.tables.tiles,
        room.tables.pole,
        edges.counts,
        d_amounts,
        d_envelope,
        d_turn,
        x_row=room.sizes.width,
        AMOUNTS=amounts.stride(0),
        FRAMES=room.sizes.frames,
        ENVELOPES=room.n_envelopes,
        TURNS=room.n_turns,
        FIRST_ENVELOPE=room.n_blocks * room.heads,
        FIRST_TURN=2 * room.n_blocks - 1,
        BE=room.programs.edges,
        Q=room.sizes.q,
        BC=room.sizes.step,
        num_warps=4,
    )
    return d_turn


def turning(room: Room, blocks: list[Block], edges: Edges, d_turn: Tensor) -> None:
    """Gradient by turns of the frames, of all blocks."""
    first, t = blocks[0], room.tables
    launch(
        turns.turning,
        (room.per_edges(), 2 * room.n_blocks - 1),
        first.d_features,
        first.features,
        first.d_values,
        first.values,
        t.couplings,
        t.value_couplings,
        t.strengths,
        t.couplings.shape[0],
        edges.counts,
        d_turn,
        features_row=first.features.stride(0),
        values_row=first.values.stride(0),
        WIDTH=first.features.shape[1],
        VALUE_WIDTH=first.values.shape[1],
        BLOCKS=room.n_blocks,
        TURNS=room.n_turns,
        BE=room.programs.edges,
        BC=up_to_power(max(room.config.channels[1:])),
        num_warps=4,
    )
