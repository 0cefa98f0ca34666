"""`Evaluator`: a compiled potential with reused neighbour lists, the base of all interfaces."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from attncalc.fast import lower, uncompiled
from attncalc.graph import ALL_PAIRS, Graph, Graphs
from attncalc.neighbors import SKIN, VerletList, skin_for
from attncalc.neighbors.verlet import LARGEST_SKIN
from attncalc.pickling import PlainlyPickled
from attncalc.potential import (
    Potential,
    evaluate,
    evaluate_with_virials,
    evaluate_without_waiting,
    require_potential,
)
from attncalc.recording import CudaGraph, Recorder
from attncalc.result import Result, volumes_for_stress
from attncalc.signals import raise_ctrl_c
from attncalc.structures import check_system, evaluate_many
from attncalc.system import System

FAR_SKIN = 3.0
"""Ratio of the skins of the list of longer range and the network's list, on a CPU."""


class Evaluator(PlainlyPickled):
    """Energy, forces and strain gradient of moving structures, or of many different ones.

    The potential is compiled at its first use, and the compiled one is compared with the original.
    Neighbour lists are reused between calls for as long as they are exact.

    Args:
        potential: the model, which is copied and not modified.
        skin: Å added to the cutoff of the neighbour lists; None chooses it by device and size, 0
            builds new lists whenever an atom moved.
        delta: True for a delta model and only for one: the caller adds its baseline's results.

    Raises:
        TypeError: `potential` is no `Potential`.
        ValueError: `skin` is invalid, or `delta` does not match the potential.

    Attributes:
        plain: copy of the potential, not compiled.
        neighbors: list within the network's cutoff.
        far_neighbors: list within the cutoff of pair terms, if that is longer; else None. If terms
            count all pairs of molecules, its cutoff is the one for the last structure.
        device, dtype: of the potential.
        checks_list_every_step: True if it costs little to check the lists at every step.
        recorder: records whole steps of dynamics; None: steps are not recorded.
        recorded: the steps recorded last.
    """

    @torch.inference_mode(False)  # weights that are copied in that mode cannot be used outside
    def __init__(
        self, potential: Potential, *, skin: float | None = None, delta: bool = False
    ) -> None:
        require_potential(potential)
        self._last: tuple[System, Result, tuple[int, ...]] | None = None
        if delta != bool(potential.baseline):
            raise ValueError(_wrong_delta(potential.baseline))
        self._given = copy.deepcopy(potential.lowered_from).requires_grad_(False).eval()
        self.plain = uncompiled(self._given)
        self.device, self.dtype = potential.device, potential.dtype
        self._chooses_skin = skin is None
        self._chooses_range = potential.counts_all_pairs
        self.checks_list_every_step = self.device.type == "cpu"
        # a term that reads structures copies numbers from the device: that cannot be recorded
        plain = self.checks_list_every_step or potential.reads_system
        self.recorder: Recorder | None = None if plain else CudaGraph
        self.recorded: Any = None
        skin = SKIN[self.device.type] if skin is None else skin
        options: Any = {"skin": skin, "species": potential.species}
        self.neighbors = VerletList.create(cutoff=potential.cutoff, **options)
        self.far_neighbors: VerletList | None = None
        if potential.long_range is not None:
            reach = potential.long_range
            options["skin"] = self._far_skin(skin)
            self.far_neighbors = VerletList.create(cutoff=reach, by_pairs=True, **options)

    @functools.cached_property
    def potential(self) -> Potential:
        """Potential in use: `plain` with compiled networks, where there is an engine."""
        with torch.inference_mode(False):  # a first step in that mode is refused, but later
            return lower(self._given)

    def __call__(self, system: System) -> Result:
        """Return the results of a system; neighbour lists are rebuilt if necessary.

        Charges and multiplicities are not checked at every step: `take` does that once. Elements
        and periodic directions must not be changed through NumPy arrays that share their memory.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed, also while a compiled loop returned its arrays.
            TypeError: `system` is not a `System`.
            ValueError: an element is unknown, a position is not finite, or two atoms lie on top of
                each other.
        """
        try:
            result = evaluate(self.potential, self._graphs(system))
        except SystemError as error:  # not by a context manager, which would slow down every step
            raise_ctrl_c(error)
        self._last = system, result, _versions(system)
        return result

    def novelty(self, system: System) -> NDArray[np.float64] | None:
        """Novelty of every atom, [n_atoms], see `Result.novelty`.

        It costs almost nothing for the system that was evaluated last; any other is evaluated.

        Raises:
            ValueError: the system cannot be evaluated, see `__call__`.
        """
        if not self.plain.knows_its_training:
            return None
        if self._last is not None:
            last, result, versions = self._last
            if last is system and versions and versions == _versions(system):
                return result.novelty
        return self(system).novelty

    def __getstate__(self) -> dict[str, Any]:
        # not `potential`, which is made again: tables of its engine take ten times the weights;
        # and no recorded step, which belongs to the GPU's memory
        state = {name: value for name, value in vars(self).items() if name != "potential"}
        return {**state, "_last": None, "recorded": None}

    def many(self, structures: Sequence[Atoms]) -> Iterator[tuple[System, Result]]:
        """Evaluate structures of any kind in batches, see `attncalc.structures.evaluate_many`."""
        return evaluate_many(self.potential, structures)

    def with_virials(self, system: System) -> tuple[Result, Tensor]:
        """Return the results and the virials of atoms, [n_atoms, 3, 3] eV.

        The virials are those of `attncalc.potential.atom_virials`.

        Raises:
            ValueError: the system cannot be evaluated, see `__call__`.
        """
        return evaluate_with_virials(self.potential, self._graphs(system))

    def stresses(self, system: System) -> Tensor:
        """Return the stress divided among atoms as in `with_virials`, [n_atoms, 3, 3] eV/Å³.

        Raises:
            ValueError: the system cannot be evaluated, see `__call__`, or has no volume.
        """
        _, virials = self.with_virials(system)
        return virials / volumes_for_stress(system)[system.system_idx][:, None, None]

    def check(self, system: System) -> None:
        """Refuse a system that the model does not describe.

        Raises:
            TypeError: `system` is not a `System`.
            ValueError: elements, charge, spin or boundary conditions are not supported, see
                `attncalc.structures.check_system`.
        """
        if not isinstance(system, System):
            raise TypeError(_not_a_system(system))
        check_system(self.plain, system)

    def take(self, system: System) -> System:
        """Check new structures, and return them on the device.

        If the skin is chosen automatically, it is chosen again for these structures.

        Raises:
            ValueError: the model does not describe them, see `check`.
        """
        self.check(system)
        system = system.to(self.device)
        if (skin := self._skin(system)) != self.neighbors.skin:
            self._keep(self._with_skin(skin, self.lists))
        return system

    @property
    def lists(self) -> list[VerletList]:
        """All neighbour lists."""
        return [self.neighbors, *([] if self.far_neighbors is None else [self.far_neighbors])]

    def follow(self, system: System) -> None:
        """Prepare the lists for the first step of a run."""
        if self._skin(system) != self.neighbors.skin:
            self.renew(system)
        elif not self.checks_list_every_step:
            self._graphs(system)

    def renew(self, system: System) -> None:
        """Build new lists for these positions, even if the old ones are valid."""
        skin = self._skin(system)
        lists = [self.neighbors]
        if self.far_neighbors is not None:
            lists.append(self._far_list(system))
        lists = self._with_skin(skin, lists)
        self._keep([one.update(system)[0] for one in lists])

    def _with_skin(self, skin: float, lists: Sequence[VerletList]) -> list[VerletList]:
        """Return empty lists: the network's with this skin, that of longer range with its own."""
        skins = (skin, self._far_skin(skin))
        return [replace(one, skin=its, listed=None) for one, its in zip(lists, skins, strict=False)]

    def _far_skin(self, skin: float) -> float:
        """Return the skin [Å] of the list of longer range, wider on a CPU.

        Loops over pairs skip those in the skin at little cost, but building a long list is slow.
        """
        return min(FAR_SKIN * skin, LARGEST_SKIN) if self.checks_list_every_step else skin

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Return results from the present lists, and True if one may miss a pair ([], bool).

        The host does not wait for the device. Results must be discarded if a list may miss a pair,
        or if energies are NaN, which can occur on a GPU (see `evaluate_without_waiting`).
        """
        stale = self.neighbors.needs_rebuild(system)
        if self.far_neighbors is not None:
            stale = stale | self.far_neighbors.needs_rebuild(system)
        far = None if self.far_neighbors is None else self.far_neighbors.graph(system)
        graphs = self._with(system, self.neighbors.graph(system), far)
        return evaluate_without_waiting(self.potential, graphs), stale

    def _graphs(self, system: System) -> Graphs:
        if not isinstance(system, System):
            raise TypeError(_not_a_system(system))
        neighbors, graph = self.neighbors.update(system)
        if self.far_neighbors is None:
            if self.recorder is None:
                self.neighbors = neighbors
            else:
                self._keep([neighbors])
            return Graphs(graph, system=system)
        far = self.far_neighbors
        # a valid list was built for the same boundary conditions, which determine its range
        if (far_graph := far.reuse(system)) is None:
            far, far_graph = self._far_list(system).update(system)
        self._keep([neighbors, far])
        return self._with(system, graph, far_graph)

    def _with(self, system: System, graph: Graph, far: Graph | None) -> Graphs:
        reach = None if self.far_neighbors is None else self.far_neighbors.cutoff
        return Graphs(graph, far, all_pairs=reach == ALL_PAIRS, system=system)

    def _far_list(self, system: System) -> VerletList:
        """Return the list of longer range; an empty one if its range has changed."""
        assert self.far_neighbors is not None
        reach = self.plain.long_range_for(system) if self._chooses_range else None
        if reach is None or reach == self.far_neighbors.cutoff:
            return self.far_neighbors
        return replace(self.far_neighbors, cutoff=reach, listed=None)

    def _keep(self, lists: list[VerletList]) -> None:
        """Store lists; recorded steps read the old arrays, so these are overwritten if they fit."""
        if self.recorder is not None:
            pairs = zip(lists, self.lists, strict=True)
            lists = [new.in_the_arrays_of(old) for new, old in pairs]
        self.neighbors = lists[0]
        if self.far_neighbors is not None:
            self.far_neighbors = lists[1]

    def _skin(self, system: System) -> float:
        return skin_for(system) if self._chooses_skin else self.neighbors.skin


def _versions(system: System) -> tuple[int, ...]:
    """Return numbers that change when atoms or cell are changed in place; () if unknown."""
    tensors = system.positions, system.cell
    if any(map(Tensor.is_inference, tensors)):  # these have no version
        return ()
    return tuple([tensor._version for tensor in tensors])


def _not_a_system(given: object) -> str:
    return (
        f"an Evaluator takes a System, not {type(given).__name__}: System.from_ase(atoms) makes "
        "one of ASE's structures, and evaluate_many(potential, structures) takes them"
    )


def _wrong_delta(baseline: str) -> str:
    if not baseline:
        return "this model is a whole potential, not a delta model: remove delta=True"
    return (
        f"this is a delta model for the baseline {baseline}: add the baseline's results, and pass "
        "delta=True"
    )
