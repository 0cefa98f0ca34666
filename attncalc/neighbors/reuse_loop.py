"""Compiled loops of `attncalc.neighbors.reuse`."""

import math

import numpy as np

from attncalc.compiled import compiled_loop


@compiled_loop()
def moved_further(positions, reference, limit):
    """Return True if any atom is further than `limit` from its reference; True for NaN."""
    for i in range(positions.shape[0]):
        x = positions[i, 0] - reference[i, 0]
        y = positions[i, 1] - reference[i, 1]
        z = positions[i, 2] - reference[i, 2]
        if not math.sqrt(x * x + y * y + z * z) <= limit:
            return True
    return False


@compiled_loop()
def near_edges(positions, reference, limit, rows, shifts, cells, has_images, cutoff, closest):
    """Find the edges shorter than `cutoff`, in order, if the list is valid.

    Returns:
        holds: False if an atom moved further than `limit` or two are closer than `closest`; then
            the arrays are meaningless.
        vectors [n, 3], receivers [n], senders [n], edge_mask [n], pairs [n / 2]: as in `Graph`.
    """
    n_edges = rows.shape[1]
    vectors = np.empty((n_edges, 3))
    receivers, senders = np.empty(n_edges, np.int64), np.empty(n_edges, np.int64)
    pairs = np.empty(n_edges, np.int64)
    n, n_pairs = 0, 0
    cell = cells[0]
    holds = not moved_further(positions, reference, limit)
    if holds:
        for e in range(n_edges):
            i, j = rows[0, e], rows[1, e]
            x = positions[j, 0] - positions[i, 0]
            y = positions[j, 1] - positions[i, 1]
            z = positions[j, 2] - positions[i, 2]
            if has_images:
                a, b, c = shifts[e, 0], shifts[e, 1], shifts[e, 2]
                x += a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0]
                y += a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1]
                z += a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2]
            length = math.sqrt(x * x + y * y + z * z)
            if length < closest:
                holds = False
                break
            if length < cutoff:
                vectors[n, 0], vectors[n, 1], vectors[n, 2] = x, y, z
                receivers[n], senders[n] = i, j
                if rows[2, e]:
                    pairs[n_pairs] = n
                    n_pairs += 1
                n += 1
    mask = np.ones(n, np.bool_)
    return holds, vectors[:n], receivers[:n], senders[:n], mask, pairs[:n_pairs]
