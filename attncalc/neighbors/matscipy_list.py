"""Neighbour list on the CPU by matscipy's cell list in C."""

from __future__ import annotations

import numpy as np
import torch
from matscipy.neighbours import neighbour_list

from attncalc.graph import Edges
from attncalc.neighbors.search import (
    SEARCH_MARGIN,
    bounding_cell,
    check_search,
    select_edges,
)
from attncalc.system import System

MAX_BINS_PER_OPEN_DIRECTION = 64
"""matscipy allocates every bin of the box, so two fragments that fly apart would fill the memory.
Atoms beyond the box are put into its outermost bins, which is slower but correct."""


def matscipy_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff [Å], as `attncalc.neighbors.neighbor_list` does.

    On another device than the CPU it costs two copies.
    """
    check_search(system, cutoff)
    reach = cutoff + SEARCH_MARGIN
    cell, origin = bounding_cell(system, max_extent=MAX_BINS_PER_OPEN_DIRECTION * reach)
    cells, origins = cell.cpu().numpy(), origin.cpu().numpy()
    positions, pbc = system.positions.detach().cpu().numpy(), system.pbc.cpu().numpy()
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
        found.append((i + first, j + first, shifts))
    i, j, shifts = (
        torch.from_numpy(np.concatenate(parts)).to(system.device)
        for parts in zip(*found, strict=True)
    )
    return select_edges(system, i, j, shifts, cutoff)
