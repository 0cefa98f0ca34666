"""Choice of the kernels of a padded list on a GPU."""

from __future__ import annotations

import functools
from typing import Any

import torch

from attncalc.compiled import gpu_kernels
from attncalc.graph import Edges
from attncalc.system import System


def padded_kernels(system: System) -> Any | None:
    """Return `neighbors.gpu_padded`; None if it does not run, or if vectors require gradients."""
    if system.device.type != "cuda" or system.positions.requires_grad or system.cell.requires_grad:
        return None
    return _kernels(system.device)


@functools.cache
def _kernels(device: torch.device) -> Any | None:
    def trial(kernels: Any) -> None:
        row = torch.ones(1, 3, dtype=torch.float64, device=device)
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        cell = torch.eye(3, dtype=torch.float64, device=device).unsqueeze(0)
        system = System(row, zero + 1, cell, row > 0, zero, row[:, 0], zero + 1)
        loop = Edges(zero, zero, zero.expand(1, 3).clone())
        for periodic in (True, False):
            kernels.edges(system, loop, row, has_images=periodic, cutoff=1.0)
            kernels.stale(system, system, cell, is_periodic=periodic, cutoff=1.0, skin=1.0)

    return gpu_kernels("attncalc.neighbors.gpu_padded", trial)
