"""Compiled loop of `attncalc.neighbors.pair_search`."""

import numpy as np

from attncalc.compiled import compiled_loop


@compiled_loop()
def find_pairs(points, wraps, bins, n_bins, reach, is_periodic, cell, cutoff, first):
    """Find all pairs of one structure within the cutoff, sorted by first atom, second atom, shift.

    Args:
        points: [n, 3] Å: positions of atoms in the cell; wraps: [n, 3]: cell vectors that were
            subtracted to get there.
        bins: [n, 3], int64: bin of each atom along each direction, of `n_bins` [3].
        reach: [3]: number of bins on either side that may be within the cutoff.
        is_periodic: [3].
        cell: [3, 3] Å.
        cutoff: Å.
        first: number of atoms of structures before this one, added to all indices.

    Returns:
        receivers, senders: [P], int32, receivers <= senders.
        shifts: [P, 3], int32: cell vectors that are added to the sender.
        shortest: Å, squared, of all pairs.
    """
    n = points.shape[0]
    # atoms sorted by bin, and where those of a bin begin
    begins = np.zeros(n_bins[0] * n_bins[1] * n_bins[2] + 1, np.int64)
    key = np.empty(n, np.int64)
    for i in range(n):
        key[i] = (bins[i, 0] * n_bins[1] + bins[i, 1]) * n_bins[2] + bins[i, 2]
        begins[key[i] + 1] += 1
    for k in range(begins.shape[0] - 1):
        begins[k + 1] += begins[k]
    order, filled = np.empty(n, np.int64), begins.copy()
    for i in range(n):
        order[filled[key[i]]] = i
        filled[key[i]] += 1
    square, shortest = cutoff * cutoff, np.inf
    counts, ends = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    senders, shifts = np.empty(0, np.int32), np.empty((0, 3), np.int32)
    low, high = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for stores in (False, True):
        if stores:
            for i in range(n):
                counts[i + 1] += counts[i]
            ends[:] = counts
            senders, shifts = np.empty(counts[n], np.int32), np.empty((counts[n], 3), np.int32)
        for j in range(n):
            for k in range(3):
                low[k], high[k] = bins[j, k] - reach[k], bins[j, k] + reach[k]
                if not is_periodic[k]:
                    low[k], high[k] = max(low[k], 0), min(high[k], n_bins[k] - 1)
            # downwards, so that images of an atom come with ascending shifts
            for a in range(high[0], low[0] - 1, -1):
                ma = a // n_bins[0] if is_periodic[0] else 0
                for b in range(high[1], low[1] - 1, -1):
                    mb = b // n_bins[1] if is_periodic[1] else 0
                    for c in range(high[2], low[2] - 1, -1):
                        mc = c // n_bins[2] if is_periodic[2] else 0
                        row = (a - ma * n_bins[0]) * n_bins[1] + b - mb * n_bins[1]
                        at = row * n_bins[2] + c - mc * n_bins[2]
                        x = points[j, 0] - ma * cell[0, 0] - mb * cell[1, 0] - mc * cell[2, 0]
                        y = points[j, 1] - ma * cell[0, 1] - mb * cell[1, 1] - mc * cell[2, 1]
                        z = points[j, 2] - ma * cell[0, 2] - mb * cell[1, 2] - mc * cell[2, 2]
                        for p in range(begins[at], begins[at + 1]):
                            i = order[p]
                            if i > j:
                                break  # atoms of a bin ascend
                            dx, dy, dz = x - points[i, 0], y - points[i, 1], z - points[i, 2]
                            d = dx * dx + dy * dy + dz * dz
                            if not d < square:
                                continue
                            sa = wraps[i, 0] - wraps[j, 0] - ma
                            sb = wraps[i, 1] - wraps[j, 1] - mb
                            sc = wraps[i, 2] - wraps[j, 2] - mc
                            if i == j and not (
                                sa > 0 or (sa == 0 and (sb > 0 or (sb == 0 and sc > 0)))
                            ):
                                continue
                            if not stores:
                                counts[i + 1] += 1
                                shortest = min(shortest, d)
                                continue
                            senders[ends[i]] = j + first
                            shifts[ends[i], 0], shifts[ends[i], 1] = sa, sb
                            shifts[ends[i], 2] = sc
                            ends[i] += 1
    receivers = np.empty(counts[n], np.int32)
    for i in range(n):
        receivers[counts[i] : counts[i + 1]] = i + first
    return receivers, senders, shifts, shortest
