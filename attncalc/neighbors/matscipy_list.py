"""Neighbour list on the CPU by matscipy's cell list in C."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from attncalc.graph import Edges
from attncalc.neighbors.search import (
    SEARCH_MARGIN,
    bounding_cell,
    check_search,
    complete_cell,
    select_edges,
)
from attncalc.system import System

MAX_BINS_PER_DIRECTION = 64
"""matscipy allocates every bin of the box, so two fragments that fly apart would fill the memory.
Atoms beyond the box are put into its outermost bins, which is slower but correct. A periodic box
has more if it is longer, unless no pair crosses its faces."""

CANDIDATES_AT_ONCE = 500_000
"""Candidate pairs that are selected together, about 200 bytes each."""


def matscipy_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff [Å], as `attncalc.neighbors.neighbor_list` does.

    On another device than the CPU it costs two copies.
    """
    check_search(system, cutoff)
    reach = cutoff + SEARCH_MARGIN
    longest = MAX_BINS_PER_DIRECTION * reach
    searched, moved = _without_vacuum(system, reach, longest)
    cell, origin = bounding_cell(searched, max_extent=longest)
    cells, origins = cell.cpu().numpy(), origin.cpu().numpy()
    positions, pbc = searched.positions.detach().cpu().numpy(), searched.pbc.cpu().numpy()
    bounds = np.searchsorted(system.system_idx.cpu().numpy(), np.arange(system.n_systems + 1))
    found = []
    for k in range(system.n_systems):
        first, last = bounds[k], bounds[k + 1]
        i, j, shifts = neighbour_list(
            "ijS",
            positions=positions[first:last],
            cell=cells[k],
            pbc=pbc[k],
            cutoff=reach,
            cell_origin=origins[k],
        )
        i += first
        j += first
        if searched is not system:
            shifts += moved[i] - moved[j]
        found.append((i, j, shifts))
    candidates = [*found[0]]
    if len(found) > 1:
        candidates = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return _selected_in_parts(system, candidates, cutoff)


def _without_vacuum(
    system: System, reach: float, longest: float
) -> tuple[System, NDArray[np.int64]]:
    """Return the system, open along long directions in which it leaves a gap, and atoms' shifts.

    Along these directions, atoms are taken from the images that lie together, so no pair crosses
    the faces of the box.

    Args:
        system: the structures.
        reach: Å; a gap is wider.
        longest: Å, height of a box along a direction up to which it stays periodic.

    Returns:
        searched: the system to search, with its atoms moved by whole cell vectors.
        shifts: [n_atoms, 3], cell vectors that each atom was moved back by.
    """
    shifts = np.zeros((system.n_atoms, 3), dtype=np.int64)
    # two faces of a cell are as far apart as its vector is long, or closer
    lengths = torch.linalg.vector_norm(system.cell.detach(), dim=2)
    if not bool((system.pbc & (lengths > longest)).any()):
        return system, shifts
    cells = complete_cell(system).cpu().numpy()
    pbc, index = system.pbc.cpu().numpy().copy(), system.system_idx.cpu().numpy()
    positions = system.positions.detach().cpu().numpy().copy()
    for k in range(system.n_systems):
        of_system, inverse = index == k, np.linalg.inv(cells[k])
        heights = 1 / np.linalg.norm(inverse, axis=0)
        for d in np.flatnonzero(pbc[k] & (heights > longest)):
            along = positions[of_system] @ inverse[:, d]
            wrapped = np.sort(along % 1)
            gaps = np.diff(wrapped, append=wrapped[0] + 1)
            first = wrapped[(gaps.argmax() + 1) % len(wrapped)]  # the first atom behind the gap
            together = first + (along - first) % 1
            if (1 - np.ptp(together)) * heights[d] > reach:
                pbc[k, d] = False
                shifts[of_system, d] = np.rint(along - together)
        positions[of_system] -= shifts[of_system] @ cells[k]
    moved, is_periodic = torch.from_numpy(positions), torch.from_numpy(pbc)
    device = system.device
    return replace(system, positions=moved.to(device), pbc=is_periodic.to(device)), shifts


def _selected_in_parts(system: System, candidates: list[NDArray[Any]], cutoff: float) -> Edges:
    """Select edges of a few receivers at a time, which needs less memory than all at once.

    Args:
        system: the structures.
        candidates: receivers [n], ascending, senders [n] and cell shifts [n, 3].
        cutoff: Å.
    """
    receivers, n = candidates[0], len(candidates[0])
    # a part ends where a receiver does
    wanted = np.arange(CANDIDATES_AT_ONCE, n, CANDIDATES_AT_ONCE)
    ends = np.unique([*np.searchsorted(receivers, receivers[wanted], "right"), n])
    pairs = torch.empty(2, n, dtype=torch.int64, device=system.device)
    shifts = torch.empty(n, 3, dtype=torch.int64, device=system.device)
    begin = n_edges = 0
    for end in ends:
        i, j, images = (torch.from_numpy(x[begin:end]).to(system.device) for x in candidates)
        edges = select_edges(system, i, j, images, cutoff)
        here = slice(n_edges, n_edges + edges.n_edges)
        pairs[0, here], pairs[1, here] = edges.receivers, edges.senders
        shifts[here] = edges.cell_shifts
        begin, n_edges = end, here.stop
    return Edges(pairs[0, :n_edges], pairs[1, :n_edges], shifts[:n_edges])
