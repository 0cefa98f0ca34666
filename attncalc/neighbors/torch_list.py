"""Neighbour list in plain torch, on any device: ghost images, bins as wide as the cutoff."""

from __future__ import annotations

import torch
from torch import Tensor

from attncalc.graph import Edges
from attncalc.neighbors.search import SEARCH_MARGIN, check_search, complete_cell, select_edges
from attncalc.system import System

CANDIDATES_AT_ONCE = 2_000_000
"""Candidate pairs held in memory together, about 150 bytes each."""


@torch.no_grad()
def torch_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff [Å], as `attncalc.neighbors.neighbor_list` does.

    Meant for up to about 10,000 atoms; every structure of a batch is searched at once.
    """
    check_search(system, cutoff)
    reach = cutoff + SEARCH_MARGIN
    wraps, atoms, images, points = _ghosts(system, reach)
    # images are listed atom by atom, so the atoms themselves are found in ascending order
    centers = (images == 0).all(1).nonzero().squeeze(1)
    found = [
        (receivers, atoms[ghosts], images[ghosts] - wraps[atoms[ghosts]] + wraps[receivers])
        for receivers, ghosts in _close_pairs(system, points, atoms, centers, reach)
    ]
    receivers, senders, shifts = (torch.cat(parts) for parts in zip(*found, strict=True))
    return select_edges(system, receivers, senders, shifts, cutoff)


def _ghosts(system: System, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Wrap the atoms into their cells, and list every image that may be within reach of one.

    Returns:
        wraps: [n_atoms, 3]: number of cells that wrapping moved an atom back.
        atoms: [n_ghosts]: atom of each image, ascending.
        images: [n_ghosts, 3]: cell shift of each image relative to the wrapped atom.
        points: [n_ghosts, 3] Å: position of each image.
    """
    idx, pbc = system.system_idx, system.pbc
    cell = complete_cell(system)
    inverse = torch.linalg.inv(cell)
    fractional = torch.einsum("nc,nck->nk", system.positions, inverse[idx])
    wraps = torch.where(pbc[idx], fractional.floor(), 0.0)
    fractional = fractional - wraps
    wrapped = system.positions - torch.einsum("nk,nkc->nc", wraps, cell[idx])
    # a column's length is one over the distance of lattice planes: `depth` is reach in cells
    depth = torch.linalg.vector_norm(inverse, dim=1) * reach  # [n_systems, 3]
    n_images = torch.where(pbc, depth.ceil(), 0.0).long()
    width = 2 * n_images + 1

    count = width.prod(1)[idx]  # [n_atoms]
    atoms = torch.repeat_interleave(count)
    nth = _count_up(count)
    wide = width[idx[atoms]]
    c = nth % wide[:, 2]
    b = nth // wide[:, 2] % wide[:, 1]
    a = nth // (wide[:, 2] * wide[:, 1])
    images = torch.stack((a, b, c), dim=1) - n_images[idx[atoms]]

    where, depth = fractional[atoms] + images, depth[idx[atoms]]
    near = ((images == 0) | ((where >= -depth) & (where <= 1 + depth))).all(1).nonzero().squeeze(1)
    atoms, images = atoms[near], images[near]
    offsets = torch.einsum("gk,gkc->gc", images.to(cell.dtype), cell[idx[atoms]])
    return wraps.long(), atoms, images, wrapped[atoms] + offsets


def _close_pairs(
    system: System, points: Tensor, atoms: Tensor, centers: Tensor, reach: float
) -> list[tuple[Tensor, Tensor]]:
    """Find pairs (atom, image) within reach, a chunk of atoms at a time, without self-pairs."""
    key, stride = _bin_keys(points, system.system_idx[atoms], reach)
    in_order, order = torch.sort(key)
    # nine rows of three bins, which are consecutive in the sorted keys
    row = torch.tensor([-1, 0, 1], device=key.device)
    rows = (row[:, None] * stride[0] + row * stride[1]).flatten()
    lookup = key[centers][:, None] + rows  # [n_atoms, 9]
    low = torch.searchsorted(in_order, lookup - 1)
    count = torch.searchsorted(in_order, lookup + 1, right=True) - low
    per_chunk = max(1, CANDIDATES_AT_ONCE // max(1, int(count.sum(1).max())))
    found = []
    for receivers in torch.arange(system.n_atoms, device=key.device).split(per_chunk):
        n = count[receivers].flatten()
        ghosts = order[torch.repeat_interleave(low[receivers].flatten(), n) + _count_up(n)]
        i = torch.repeat_interleave(receivers, count[receivers].sum(1))
        distance = torch.linalg.vector_norm(points[ghosts] - points[centers[i]], dim=1)
        near = ((distance < reach) & (ghosts != centers[i])).nonzero().squeeze(1)
        found.append((i[near], ghosts[near]))
    return found


def _bin_keys(points: Tensor, systems: Tensor, reach: float) -> tuple[Tensor, tuple[int, int]]:
    """Return an integer key per bin; keys of adjacent bins along the last axis differ by one.

    Returns:
        key: [n_points].
        stride: difference of the keys of adjacent bins along the first and the second axis.
    """
    bins, width = [], []
    for axis in (points / reach).floor().long().unbind(1):
        values, nth = torch.unique(axis, return_inverse=True)
        # gaps shrink to one empty bin: keys stay small however far the atoms are apart
        steps = values.diff().clamp(max=2)
        places = torch.cat((steps.new_ones(1), 1 + steps.cumsum(0)))
        bins.append(places[nth])
        width.append(int(places[-1]) + 2)
    key = ((systems * width[0] + bins[0]) * width[1] + bins[1]) * width[2] + bins[2]
    return key, (width[1] * width[2], width[2])


def _count_up(count: Tensor) -> Tensor:
    """Return [sum of count]: 0, 1, … count[0]-1, 0, 1, … count[1]-1, and so on."""
    first = count.cumsum(0) - count
    return torch.arange(int(count.sum()), device=count.device) - torch.repeat_interleave(
        first, count
    )
