"""Choice of the neighbour list that suits a device."""

from __future__ import annotations

import functools
from typing import Any

import torch

from attncalc.compiled import gpu_kernels
from attncalc.graph import Edges
from attncalc.neighbors.matscipy_list import matscipy_list
from attncalc.neighbors.nvalchemi_list import has_nvalchemi, nvalchemi_list
from attncalc.neighbors.torch_list import torch_list
from attncalc.system import System

LARGEST_FOR_ALL_PAIRS = 8192
"""Number of atoms of a structure up to which a GPU tries all pairs."""


def neighbor_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff, by the backend that suits the system's device.

    matscipy on the CPU. On CUDA a kernel that tries all pairs, for structures of up to
    `LARGEST_FOR_ALL_PAIRS` atoms; for larger ones, or without Triton, nvalchemi-toolkit-ops where
    installed, else plain torch.

    Args:
        system: one structure or a batch of different ones.
        cutoff: Å.

    Returns:
        Every pair in both directions with all periodic images (an atom's own included), sorted by
        receiver, then sender, then cell shift, on the system's device.

    Raises:
        ValueError: the cutoff is not positive, a position is not finite, or two atoms lie on top
            of each other.
    """
    if system.device.type == "cpu":
        return matscipy_list(system, cutoff)
    is_small = size_of_largest(system) <= LARGEST_FOR_ALL_PAIRS
    if is_small and (kernels := _kernels(system.device)) is not None:
        edges: Edges = kernels.triton_list(system, cutoff)
        return edges
    if system.device.type == "cuda" and has_nvalchemi():
        return nvalchemi_list(system, cutoff)
    return torch_list(system, cutoff)


def size_of_largest(system: System) -> int:
    """Return the number of atoms of the largest structure."""
    if system.n_systems == 1:
        return system.n_atoms
    return int(torch.bincount(system.system_idx).max())


@functools.cache
def _kernels(device: torch.device) -> Any | None:
    if device.type != "cuda":
        return None

    def trial(kernels: Any) -> None:
        row = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64, device=device)
        zero = torch.zeros(2, dtype=torch.int64, device=device)
        cell = 3 * torch.eye(3, dtype=torch.float64, device=device).unsqueeze(0)
        system = System(row, zero + 1, cell, cell[:, 0] > 1, zero, row[:1, 0], zero[:1] + 1)
        assert kernels.triton_list(system, 2.5).n_edges == 4  # a pair and its image

    return gpu_kernels("attncalc.neighbors.gpu_list", trial)
