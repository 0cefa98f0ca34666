"""Constraints on what loops say of single atoms: charges that add up, ratios that are positive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph, Linearized


def constrained(found: Linearized, graph: Graph) -> Linearized:
    """Charges that add up to those of the systems, ratios without sign, and their gradient.

    Args:
        found: of loops, which look at one atom at a time.
        graph: on the CPU.
    """
    raw, pull = found
    system_idx, changed = graph.arrays.system_idx, {}
    if raw.charges is not None and not graph.is_part:
        charges = _with_totals(raw.charges.numpy(), graph.charge.numpy(), system_idx)
        changed["charges"] = torch.from_numpy(charges)
    if raw.hirshfeld_ratios is not None:
        changed["hirshfeld_ratios"] = raw.hirshfeld_ratios.abs()

    def pull_through(d_outputs: AtomOutputs) -> Tensor:
        d_raw = {}
        if (d_charges := d_outputs.charges) is not None and not graph.is_part:
            # the shift is its own transpose but for the totals, which no vector changes
            none = np.zeros(graph.n_systems)
            d_raw["charges"] = torch.from_numpy(_with_totals(d_charges.numpy(), none, system_idx))
        if (d_ratios := d_outputs.hirshfeld_ratios) is not None:
            assert raw.hirshfeld_ratios is not None
            d_raw["hirshfeld_ratios"] = d_ratios * raw.hirshfeld_ratios.sign()
        return pull(replace(d_outputs, **d_raw))

    return Linearized(replace(raw, **changed), pull_through)


def _with_totals(
    values: NDArray[np.float64], totals: NDArray[np.float64], system_idx: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Equal to `attncalc.graph.with_totals`, in a fraction of the time where atoms are few."""
    if len(totals) == 1:
        return values - (values.sum() - totals[0]) / len(values)
    n = len(totals)
    excess = np.bincount(system_idx, values, minlength=n) - totals
    return values - (excess / np.bincount(system_idx, minlength=n))[system_idx]
