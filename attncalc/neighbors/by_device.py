"""Choice of the neighbour list that suits a device."""

from __future__ import annotations

from attncalc.graph import Edges
from attncalc.neighbors.matscipy_list import matscipy_list
from attncalc.neighbors.nvalchemi_list import has_nvalchemi, nvalchemi_list
from attncalc.neighbors.torch_list import torch_list
from attncalc.system import System


def neighbor_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff, by the backend that suits the system's device.

    matscipy on the CPU; on CUDA nvalchemi-toolkit-ops where installed, else plain torch.

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
    if system.device.type == "cuda" and has_nvalchemi():
        return nvalchemi_list(system, cutoff)
    return torch_list(system, cutoff)
