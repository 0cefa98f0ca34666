"""Pairs of long range by a compiled loop, each once.

matscipy lists both edges of each pair, in bins as wide as the cutoff. With a cutoff of 13.5 Å, a
box of 1,536 atoms of water is one bin, and the list takes as long as ten steps of dynamics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncalc.compiled import cpu_loops
from attncalc.neighbors.half_list import ListedPairs, numbered
from attncalc.neighbors.search import MIN_DISTANCE, SEARCH_MARGIN, bounding_cell, check_search
from attncalc.system import System

BINS_PER_CUTOFF = 2
"""Bins along the cutoff: the more there are, the fewer atoms beyond it are tried."""

MOST_BINS = 64
"""Largest number of bins along a direction, so that far fragments do not fill the memory."""


def pair_list(system: System, cutoff: float) -> ListedPairs | None:
    """Return all pairs within the cutoff, sorted by first atom, second atom and cell shift.

    Args:
        system: structures on the CPU.
        cutoff: Å.

    Returns:
        The pairs, and a few that are up to 1e-6 Å longer; None without Numba, or if two atoms lie
        on top of each other.

    Raises:
        ValueError: the cutoff is not positive, or a position is not finite.
    """
    check_search(system, cutoff)
    if (loops := cpu_loops("attncalc.neighbors.pair_search_loop")) is None:
        return None
    reach = cutoff + SEARCH_MARGIN
    cells, origins = (tensor.numpy() for tensor in bounding_cell(system))
    bounds = np.searchsorted(system.system_idx.numpy(), np.arange(system.n_systems + 1))
    positions, pbc = system.positions.detach().numpy(), system.pbc.numpy()
    found = []
    for k in range(system.n_systems):
        here = slice(bounds[k], bounds[k + 1])
        given = _in_bins(positions[here], cells[k], origins[k], pbc[k], reach)
        box = (pbc[k], np.ascontiguousarray(cells[k]), reach)
        *parts, shortest = loops.find_pairs(*given, *box, bounds[k])
        if shortest < MIN_DISTANCE**2:
            return None
        found.append(parts)
    if len(found) == 1:
        receivers, senders, shifts = found[0]
    else:
        receivers, senders, shifts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ListedPairs(receivers, senders, *numbered(shifts))


def _in_bins(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    origin: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    reach: float,
) -> tuple[NDArray[Any], ...]:
    """Return points in the cell, wraps, bins, numbers of bins, and bins within reach."""
    inverse = np.linalg.inv(cell)
    fractional = (positions - origin) @ inverse
    wraps = np.where(pbc, np.floor(fractional), 0.0)
    heights = 1 / np.linalg.norm(inverse, axis=0)  # Å, distance of the cell's faces
    n_bins = np.clip(heights * BINS_PER_CUTOFF / reach, 1, MOST_BINS).astype(np.int64)
    bins = np.clip(np.floor((fractional - wraps) * n_bins), 0, n_bins - 1).astype(np.int64)
    # a little more, since rounding may put an atom beside its bin
    within = np.ceil(reach * n_bins / heights + 1e-6).astype(np.int64)
    return positions - wraps @ cell, wraps.astype(np.int64), bins, n_bins, within
