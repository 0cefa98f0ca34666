"""What an engine for GPUs finds."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Found(NamedTuple):
    """Energies [n_systems], [n_atoms] eV, forces [n_atoms, 3], strain gradient [n_systems, 3, 3].

    Float64, on the device. NaN in `energy` (and wherever else they lead): two atoms of this system
    are closer than the engine is meant for, a position is not a number, or there is not enough
    memory for so many edges.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor
    strain_gradient: Tensor
