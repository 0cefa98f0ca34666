"""`Forces`: a potential that follows atoms in motion."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncalc.fast import lower
from attncalc.md.cuda_graph import CudaGraph, Recorder
from attncalc.neighbors import SKIN, VerletList, skin_for
from attncalc.potential import (
    Potential,
    Result,
    check_system,
    evaluate,
    evaluate_without_waiting,
)
from attncalc.system import System


class Forces:
    """Energy and forces of a potential along a trajectory: its fast path, and a list that is kept.

    Args:
        potential: stays as it is; what is used is a copy.
        skin: Å added to the cutoff of the neighbour list; None suits device and size.

    Raises:
        ValueError: the potential is a delta model.

    Attributes:
        neighbors: the list; a step that needs another one makes it.
        looks_at_every_step: whether asking if the list holds costs nothing worth saving.
        recorder: records whole steps, where that is of use; None: nowhere.
        recorded: the steps recorded last.
    """

    def __init__(self, potential: Potential, *, skin: float | None = None) -> None:
        if potential.baseline:
            raise ValueError(
                f"this is a delta model for the baseline {potential.baseline}: it cannot move "
                "atoms without the baseline's forces"
            )
        self.potential = copy.deepcopy(potential).requires_grad_(False).eval()
        self._fast = lower(self.potential)
        self._suits_itself = skin is None
        self.device = potential.device
        self.looks_at_every_step = self.device.type == "cpu"
        self.recorder: Recorder | None = None if self.looks_at_every_step else CudaGraph
        self.recorded: Any = None
        self.neighbors = VerletList.create(
            cutoff=potential.cutoff,
            skin=SKIN[self.device.type] if skin is None else skin,
            species=potential.species,
        )

    def __call__(self, system: System) -> Result:
        """At these positions; the list is made anew where it has to be.

        Raises:
            ValueError: as `VerletList.update`.
        """
        neighbors, graph = self.neighbors.update(system)
        self._keep(neighbors)
        return evaluate(self._fast, graph)

    def check(self, system: System) -> None:
        """Refuse what the model does not know.

        Raises:
            ValueError: as `attncalc.potential.check_system`.
        """
        check_system(self.potential, system)

    def follow(self, system: System) -> None:
        """Before the first step of a run: a list for these positions, where steps need one."""
        if self._skin(system) != self.neighbors.skin:
            self.renew(system)
        elif not self.looks_at_every_step:
            self._keep(self.neighbors.update(system)[0])

    def renew(self, system: System) -> None:
        """Make a list for these positions, whether the old one holds or not."""
        empty = replace(self.neighbors, skin=self._skin(system), listed=None)
        self._keep(empty.update(system)[0])

    def _keep(self, neighbors: VerletList) -> None:
        """Where the list before it was, if it fits there and what is recorded reads it there."""
        if self.recorder is not None:
            neighbors = neighbors.in_the_arrays_of(self.neighbors)
        self.neighbors = neighbors

    def _skin(self, system: System) -> float:
        return skin_for(system) if self._suits_itself else self.neighbors.skin

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """By the list as it is, and whether that may miss a pair: [], bool, on the device.

        Nothing waits for the device. Results of a list that may miss a pair must be thrown away.
        Energies may be NaN on a GPU, see `evaluate_without_waiting`: these must be, too.
        """
        stale = self.neighbors.needs_rebuild(system)
        result = evaluate_without_waiting(self._fast, self.neighbors.graph(system))
        return result, torch.as_tensor(stale)


def forces_of(potential: Potential | Forces) -> Forces:
    """A potential's `Forces`, or what it is already."""
    return potential if isinstance(potential, Forces) else Forces(potential)
