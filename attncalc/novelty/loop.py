"""Compiled loop of `attncalc.novelty.environments`."""

import math

import numpy as np

from attncalc.compiled import compiled_loop


@compiled_loop()
def update_novelty(
    features,
    mean,
    whiten,
    centres,
    closest,
    margin,
    vectors,
    receivers,
    senders,
    mask,
    species,
    out,
):
    """Raise `out` [n_atoms] to the novelty of each atom; see `Environments` for the formula."""
    n_components, n_centres = centres.shape[1:]
    coordinates = np.empty(n_components, np.float32)
    squares = np.empty(n_centres, np.float32)
    for i in range(features.shape[0]):
        s = species[i]
        for k in range(n_components):
            coordinates[k] = 0
        for f in range(mean.shape[1]):
            off = features[i, f] - mean[s, f]
            for k in range(n_components):
                coordinates[k] += off * whiten[s, f, k]
        squares[:] = 0
        for k in range(n_components):
            for c in range(n_centres):
                off = coordinates[k] - centres[s, k, c]
                squares[c] += off * off
        distance = math.sqrt(squares.min())
        if not distance <= out[i]:  # NaN too, which max() would leave out
            out[i] = distance
    for e in range(receivers.shape[0]):
        i, j = receivers[e], senders[e]
        edge = closest[species[i], species[j]]
        x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
        square = x * x + y * y + z * z
        if mask[e] and square < edge * edge:
            out[i] = max(out[i], (edge - math.sqrt(square)) / margin)
