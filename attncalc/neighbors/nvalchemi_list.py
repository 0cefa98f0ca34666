"""Neighbour list on CUDA by NVIDIA's nvalchemi-toolkit-ops (optional extra `cuda`)."""

from __future__ import annotations

import importlib.util

import torch

from attncalc.graph import Edges
from attncalc.neighbors.search import SEARCH_MARGIN, bounding_cell, check_search, select_edges
from attncalc.system import System


def has_nvalchemi() -> bool:
    """Return True if nvalchemi-toolkit-ops is installed, without importing it."""
    return importlib.util.find_spec("nvalchemiops") is not None


def nvalchemi_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff [Å], as `attncalc.neighbors.neighbor_list` does.

    The first call in a process compiles kernels (seconds) and keeps them in the user's cache.

    Raises:
        ImportError: nvalchemi-toolkit-ops is not installed.
        ValueError: the cutoff is not positive, a position is not finite, or two atoms lie on top
            of each other.
    """
    try:
        from nvalchemiops.torch.neighbors import NeighborOverflowError, neighbor_list
    except ImportError as error:
        raise ImportError(
            "this neighbour list needs nvalchemi-toolkit-ops: pip install 'attncalc[cuda]'"
        ) from error
    check_search(system, cutoff)
    cell, origin = bounding_cell(system)
    arguments = dict(
        positions=(system.positions.detach() - origin[system.system_idx]).contiguous(),
        cutoff=cutoff + SEARCH_MARGIN,
        cell=cell.contiguous(),
        pbc=system.pbc.contiguous(),
        batch_idx=system.system_idx.to(torch.int32),
        return_neighbor_list=True,
    )
    max_neighbors = 64
    while True:
        # its matrix form drops neighbours beyond max_neighbors silently; its list form raises
        try:
            pairs, _, shifts = neighbor_list(**arguments, max_neighbors=max_neighbors)
            break
        except NeighborOverflowError as overflow:
            max_neighbors = max(2 * max_neighbors, int(overflow.num_neighbors))
    return select_edges(system, pairs[0], pairs[1], shifts, cutoff)
