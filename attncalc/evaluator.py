"""`Evaluator`: a potential made fast, with neighbour lists that are kept; what all doors ask."""

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

from attncalc.fast import lower
from attncalc.graph import ALL_PAIRS, Graph, Graphs
from attncalc.neighbors import SKIN, VerletList, skin_for
from attncalc.neighbors.verlet import LARGEST_SKIN
from attncalc.potential import (
    Potential,
    evaluate,
    evaluate_with_virials,
    evaluate_without_waiting,
)
from attncalc.recording import CudaGraph, Recorder
from attncalc.result import Result, volumes
from attncalc.signals import raise_ctrl_c
from attncalc.structures import check_system, evaluate_many
from attncalc.system import System

FAR_SKIN = 3.0
"""Skin of the list of longer range over that of the network's, on a CPU."""


class Evaluator:
    """Energy, forces and strain gradient of structures that move, or of many different ones.

    The potential is compiled when it is first needed, and compared with itself as it was; lists of
    neighbours are kept between calls for as long as they are exact.

    Args:
        potential: stays as it is; what is used is a copy.
        skin: Å added to the cutoff of the neighbour lists; None suits device and size, 0 makes new
            lists whenever an atom moved.
        delta: True for a delta model, to whose results somebody adds those of its baseline; refused
            otherwise.

    Raises:
        ValueError: the skin is no number of Å, or `delta` does not suit the potential.

    Attributes:
        plain: the potential as it was given.
        neighbors: list of the network's range.
        far_neighbors: list of the range of pair terms, where that is longer; else None. Where terms
            count all pairs of molecules, its range is that of the last structure.
        device, dtype: of the potential.
        looks_at_every_step: True where asking if a list holds costs nothing worth saving.
        recorder: records whole steps of dynamics, where that is of use; None: nowhere.
        recorded: the steps recorded last.
    """

    def __init__(
        self, potential: Potential, *, skin: float | None = None, delta: bool = False
    ) -> None:
        self._last: tuple[System, Result] | None = None
        if delta != bool(potential.baseline):
            raise ValueError(_wrong_delta(potential.baseline))
        self.plain = copy.deepcopy(potential).requires_grad_(False).eval()
        self.device, self.dtype = potential.device, potential.dtype
        self._chooses_skin = skin is None
        self._chooses_range = potential.counts_all_pairs
        self.looks_at_every_step = self.device.type == "cpu"
        # a term that reads structures reads numbers back, which no recording can
        plain = self.looks_at_every_step or potential.reads_system
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
        """Potential that runs: that given, with compiled networks where there is an engine."""
        with torch.inference_mode(False):  # where the first step may be asked for, and refused
            return lower(self.plain)

    def __call__(self, system: System) -> Result:
        """Results at these positions; lists are made anew where they have to be.

        Raises:
            KeyboardInterrupt: Ctrl-C, also while a compiled loop hands its arrays over.
            TypeError: no `System`.
            ValueError: as `VerletList.update`.
        """
        try:
            result = evaluate(self.potential, self._graphs(system))
        except SystemError as error:  # no context manager: this is every step
            raise_ctrl_c(error)
        self._last = system, result
        return result

    def novelty(self, system: System) -> NDArray[np.float64] | None:
        """Novelty of every atom, [n_atoms], see `Result.novelty`.

        Of the system that was evaluated last it costs next to nothing; any other is evaluated.

        Raises:
            ValueError: as `VerletList.update`.
        """
        if not self.plain.knows_its_training:
            return None
        last = self._last
        result = last[1] if last is not None and last[0] is system else self(system)
        return result.novelty

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def many(self, structures: Sequence[Atoms]) -> Iterator[tuple[System, Result]]:
        """Results of structures of any kind, see `attncalc.structures.evaluate_many`."""
        return evaluate_many(self.potential, structures)

    def with_virials(self, system: System) -> tuple[Result, Tensor]:
        """Results, and the virials of atoms [n_atoms, 3, 3] eV, see
        `attncalc.potential.atom_virials`.

        Raises:
            ValueError: as `VerletList.update`.
        """
        return evaluate_with_virials(self.potential, self._graphs(system))

    def stresses(self, system: System) -> Tensor:
        """[n_atoms, 3, 3] eV/Å³: the stress divided among atoms, as `with_virials` does it.

        Raises:
            ValueError: as `VerletList.update`.
        """
        _, virials = self.with_virials(system)
        return virials / volumes(system)[system.system_idx][:, None, None]

    def check(self, system: System) -> None:
        """Refuse what the model does not know.

        Raises:
            TypeError: no `System`.
            ValueError: as `attncalc.structures.check_system`.
        """
        if not isinstance(system, System):
            raise TypeError(_not_a_system(system))
        check_system(self.plain, system)

    def take(self, system: System) -> System:
        """Check structures that are not the last ones, and return them on the device.

        Where the skin is chosen by the structure, it suits these from now on.

        Raises:
            ValueError: as `check`.
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
        """Make lists for these positions before the first step of a run, where steps need some."""
        if self._skin(system) != self.neighbors.skin:
            self.renew(system)
        elif not self.looks_at_every_step:
            self._graphs(system)

    def renew(self, system: System) -> None:
        """Make lists for these positions, whether the old ones hold or not."""
        skin = self._skin(system)
        lists = [self.neighbors]
        if self.far_neighbors is not None:
            lists.append(self._far_list(system))
        lists = self._with_skin(skin, lists)
        self._keep([one.update(system)[0] for one in lists])

    def _with_skin(self, skin: float, lists: Sequence[VerletList]) -> list[VerletList]:
        """Empty lists: that of the network with this skin, that of longer range with its own."""
        skins = (skin, self._far_skin(skin))
        return [replace(one, skin=its, listed=None) for one, its in zip(lists, skins, strict=False)]

    def _far_skin(self, skin: float) -> float:
        """Å: loops over pairs drop those in the skin at little cost; a long list takes its time."""
        return min(FAR_SKIN * skin, LARGEST_SKIN) if self.looks_at_every_step else skin

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Results by the lists as they are, and whether one may miss a pair: [], bool.

        Nothing waits for the device. Results of a list that may miss a pair must be thrown away.
        Energies may be NaN on a GPU, see `evaluate_without_waiting`: these must be, too.
        """
        stale = torch.stack([torch.as_tensor(one.needs_rebuild(system)) for one in self.lists])
        far = None if self.far_neighbors is None else self.far_neighbors.graph(system)
        graphs = self._with(system, self.neighbors.graph(system), far)
        return evaluate_without_waiting(self.potential, graphs), stale.any()

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
        # one that holds was made for the same boundary conditions, and they decide its range
        if (far_graph := far.reuse(system)) is None:
            far, far_graph = self._far_list(system).update(system)
        self._keep([neighbors, far])
        return self._with(system, graph, far_graph)

    def _with(self, system: System, graph: Graph, far: Graph | None) -> Graphs:
        reach = None if self.far_neighbors is None else self.far_neighbors.cutoff
        return Graphs(graph, far, all_pairs=reach == ALL_PAIRS, system=system)

    def _far_list(self, system: System) -> VerletList:
        """Return the list of longer range, an empty one where the range is another."""
        assert self.far_neighbors is not None
        reach = self.plain.long_range_for(system) if self._chooses_range else None
        if reach is None or reach == self.far_neighbors.cutoff:
            return self.far_neighbors
        return replace(self.far_neighbors, cutoff=reach, listed=None)

    def _keep(self, lists: list[VerletList]) -> None:
        """Keep lists, in the old ones' arrays if they fit and what is recorded reads these."""
        if self.recorder is not None:
            pairs = zip(lists, self.lists, strict=True)
            lists = [new.in_the_arrays_of(old) for new, old in pairs]
        self.neighbors = lists[0]
        if self.far_neighbors is not None:
            self.far_neighbors = lists[1]

    def _skin(self, system: System) -> float:
        return skin_for(system) if self._chooses_skin else self.neighbors.skin


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
