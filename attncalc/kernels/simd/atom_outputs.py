"""Constraints on the outputs of loops: charges add up to the total, ratios are positive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attncalc.graph import Graph, OutputArrays


def constrained(
    raw: OutputArrays, graph: Graph
) -> tuple[OutputArrays, Callable[[OutputArrays], OutputArrays]]:
    """Shift charges to add up to those of their systems, and take absolute values of ratios.

    Other outputs stay as they are.

    Args:
        raw: outputs of the loops, which treat every atom alone.
        graph: a graph on the CPU.

    Returns:
        The constrained outputs, and the map from dE / d outputs to dE / d raw outputs.
    """
    charges, ratios = raw.charges, raw.hirshfeld_ratios
    system_idx, adds_up = graph.arrays.system_idx, charges is not None and graph.ghosts is None
    if adds_up:
        charges = _with_totals(charges, graph.charge.numpy(), system_idx)

    def transpose(d_outputs: OutputArrays) -> OutputArrays:
        by_charges, by_ratios = d_outputs.charges, d_outputs.hirshfeld_ratios
        if adds_up:
            # the shift is its own transpose, except for the totals, which are constants
            by_charges = _with_totals(by_charges, np.zeros(graph.n_systems), system_idx)
        if ratios is not None:
            by_ratios = by_ratios * np.sign(ratios)
        return d_outputs._replace(charges=by_charges, hirshfeld_ratios=by_ratios)

    positive = None if ratios is None else np.abs(ratios)
    return raw._replace(charges=charges, hirshfeld_ratios=positive), transpose


def _with_totals(
    values: NDArray[np.float64] | None,
    totals: NDArray[np.float64],
    system_idx: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Do what `attncalc.graph.with_totals` does, in a fraction of the time for few atoms."""
    assert values is not None
    if len(totals) == 1:
        return values - (values.sum() - totals[0]) / len(values)
    n = len(totals)
    excess = np.bincount(system_idx, values, minlength=n) - totals
    return values - (excess / np.bincount(system_idx, minlength=n))[system_idx]
