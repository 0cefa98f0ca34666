"""Reuse of a neighbour list in the common step: atoms moved little, and the list is still valid.

`VerletList.update` defines the result. This module computes it in one compiled pass for the most
frequent case, one structure on the CPU with unchanged cell, elements and boundary conditions. It
returns None for everything else, including unusual structures and errors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.compiled import cpu_loops
from attncalc.graph import GraphArrays
from attncalc.neighbors.search import MIN_DISTANCE
from attncalc.system import System


class LoopInputs(NamedTuple):
    """Data of a neighbour list that the loop reads and that graphs made from it share.

    Attributes:
        reference: [n_atoms, 3] Å, positions that the list was built for.
        rows: [3, n_edges], int64: receivers, senders, and 1 if the edge represents its pair.
        cell_shifts: [n_edges, 3], int64.
        cell: [1, 3, 3] Å.
        species, system_idx: [n_atoms], int64.
    """

    reference: NDArray[np.float64]
    rows: NDArray[np.int64]
    cell_shifts: NDArray[np.int64]
    cell: NDArray[np.float64]
    species: NDArray[np.int64]
    system_idx: NDArray[np.int64]


class Seen:
    """Cell, boundary conditions and elements that were found equal to those of a list.

    In most steps these tensors are the same objects. For few atoms, comparing their values takes
    longer than the loop, so objects and versions are compared first: a change in place changes the
    version.
    """

    __slots__ = ("_tensors", "_versions")

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()

    def at_other_positions(self, system: System, reference: System) -> bool:
        """Return True for one structure on the CPU that differs from `reference` by positions only.

        None of its tensors may require gradients.
        """
        return (
            system.device.type == "cpu"
            and system.n_systems == 1
            and system.positions.shape == reference.positions.shape
            and not system.positions.requires_grad
            and not system.cell.requires_grad
            and self._equal(system, reference)
        )

    def _equal(self, system: System, reference: System) -> bool:
        """Return True if `system` has cell, boundary conditions and elements of `reference`."""
        now = (system.cell, system.pbc, system.atomic_numbers)
        if any(map(Tensor.is_inference, now)):  # inference tensors have no version
            return _equal(now, reference)
        versions = tuple([tensor._version for tensor in now])
        if len(self._tensors) == 3 and versions == self._versions:
            a, b, c = self._tensors
            if a is now[0] and b is now[1] and c is now[2]:
                # a cell that shares its memory with a numpy array changes without a new version
                return torch.equal(a, reference.cell)
        if not _equal(now, reference):
            return False
        self._tensors, self._versions = now, versions
        return True


def _equal(now: tuple[Tensor, Tensor, Tensor], reference: System) -> bool:
    then = (reference.cell, reference.pbc, reference.atomic_numbers)
    return all(map(torch.equal, now, then))


def reused_edges(
    system: System,
    reference: System,
    inputs: LoopInputs,
    seen: Seen,
    *,
    has_images: bool,
    cutoff: float,
    skin: float,
) -> GraphArrays | None:
    """Return the graph of `system` from a list built for `reference`; None if not determined.

    Args:
        system: any.
        reference: structure that the list was built for, with a skin, on the CPU.
        inputs: of the list.
        seen: memory of tensors that were equal to the reference's; it is updated.
        has_images: whether any cell shift is not zero.
        cutoff, skin: Å.
    """
    loops = cpu_loops("attncalc.neighbors.reuse_loop", _without_edges)
    if loops is None or not seen.at_other_positions(system, reference):
        return None
    holds, *of_edges = loops.near_edges(
        system.positions.numpy(),
        inputs.reference,
        skin / 2,  # two atoms that approach each other may use up the skin
        inputs.rows,
        inputs.cell_shifts,
        inputs.cell,
        has_images,
        cutoff,
        MIN_DISTANCE,
    )
    if not holds:
        return None
    return GraphArrays._make((*of_edges, inputs.species, inputs.system_idx))


def _without_edges(loops: Any) -> None:
    one, none = np.zeros((1, 3)), np.zeros((3, 0), np.int64)
    loops.near_edges(one, one, 0.0, none, none.T, np.eye(3)[None], False, 1.0, 0.0)
