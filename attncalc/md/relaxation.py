"""`relax_batch`: relaxation of many structures at once, each until its own forces are small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from attncalc.md.force import Force, Function, force_of
from attncalc.md.inputs import Structures, fixed_atoms, mask_of
from attncalc.md.optimizers import OPTIMIZERS, Optimizer, longest_of
from attncalc.md.velocities import MOST_STEPS
from attncalc.neighbors import ImpossiblePositions
from attncalc.ops import segment_sum
from attncalc.options import one_of, positive, whole_number
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.system import System, as_list

# structures that are done leave the batch when they are more than this share of it
IDLE = 0.3


@dataclass(frozen=True)
class Relaxed:
    """Result of the relaxation of a batch.

    Attributes:
        system: all structures, in their order.
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
        largest_force: [n_systems] eV/Å, of an atom that may move.
        steps: [n_systems], int64: number of steps of each.
        interrupted: whether Ctrl-C ended it, before all structures were done.
    """

    system: System
    energy: Tensor
    forces: Tensor
    largest_force: Tensor
    steps: Tensor
    interrupted: bool


@dataclass(frozen=True)
class _Moving:
    """Structures in the batch during a relaxation.

    Attributes:
        system: structures that are not yet done, and some that are.
        numbers: [n_systems], int64: their numbers among all structures.
        fixed: [n_atoms], bool.
        optimizer: moves them.
    """

    system: System
    numbers: Tensor
    fixed: Tensor
    optimizer: Optimizer

    def step(self, forces: Tensor, rests: Tensor) -> _Moving:
        """Move structures except those that rest; forces [n_atoms, 3], rests [n_systems]."""
        optimizer, move = self.optimizer.step(self.system, forces)
        move = torch.where(rests[self.system.system_idx, None], 0.0, move)
        system = replace(self.system, positions=self.system.positions + move)
        return replace(self, system=system, optimizer=optimizer)

    def without(self, gone: Tensor) -> _Moving:
        """Remove structures from the batch; gone [n_systems]."""
        stay, atoms = ~gone, ~gone[self.system.system_idx]
        system, optimizer = _part(self.system, stay, atoms), self.optimizer.only(stay, atoms)
        return _Moving(system, self.numbers[stay], self.fixed[atoms], optimizer)


def _part(system: System, systems: Tensor, atoms: Tensor) -> System:
    number = torch.cumsum(systems.long(), 0) - 1
    return System(
        positions=system.positions[atoms],
        atomic_numbers=system.atomic_numbers[atoms],
        cell=system.cell[systems],
        pbc=system.pbc[systems],
        system_idx=number[system.system_idx[atoms]],
        charge=system.charge[systems],
        spin=system.spin[systems],
    )


def relax_batch(
    potential: Potential | Force | Function,
    structures: Structures,
    *,
    fmax: float = 0.01,
    steps: int = 1000,
    optimizer: str = "lbfgs",
    fixed: Tensor | ArrayLike | None = None,
    first: int = 0,
    observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    should_stop: Callable[[Tensor, System], Tensor | None] | None = None,
) -> Relaxed:
    """Relax the structures of a batch at fixed cells, until no force exceeds `fmax`.

    A structure that is done rests, and later leaves the batch with others, so that it costs nothing
    any more.

    Args:
        potential: the model, its `Evaluator`, or any function `System -> Result`.
        structures: of ASE, one or several, or a `System`.
        fmax: eV/Å, largest force left on an atom that may move.
        steps: largest number of steps.
        optimizer: "lbfgs" or "fire", which takes two to five times as many steps, and moves atoms
            less in each.
        fixed: [n_atoms], bool: True for fixed atoms; if not given, those that `FixAtoms` holds in
            structures of ASE.
        first: number of the first structure in messages, if they are part of a longer list.
        observe: called before the first and after every step with the numbers of the structures
            still in the batch, their energies [eV] and largest forces [eV/Å].
        should_stop: called after each `observe` with the same numbers and the structures; returns a
            mask [n_systems] of those that rest from now on, or None.

    Raises:
        ValueError: `fmax`, `steps` or `optimizer` is invalid, `fixed` is not True or False for each
            atom, a structure has another constraint than `FixAtoms` or is not known to the model,
            or two atoms lie on top of each other.
        FloatingPointError: a force is not finite; the message names the structure.
    """
    positive("fmax", fmax)
    whole_number("steps", steps, 1, MOST_STEPS)
    one_of("optimizer", optimizer, OPTIMIZERS)
    if isinstance(structures, System):
        system = structures
    else:
        many = as_list(structures)
        system = System.from_ase(many, first=first)
        held_by_ase = fixed_atoms(many, first=first)  # refuses other constraints
        fixed = held_by_ase if fixed is None else fixed
    held = torch.zeros(system.n_atoms, dtype=torch.bool) if fixed is None else fixed
    held = mask_of(held, system.n_atoms)
    force = force_of(potential, system.device)
    force.check(system)
    system = system.to(force.device)
    numbers = torch.arange(system.n_systems, device=system.device)
    moving = _Moving(system, numbers, held.to(force.device), OPTIMIZERS[optimizer].start(system))
    ended = _Ended(system)
    stopped = torch.zeros(system.n_systems, dtype=torch.bool, device=system.device)
    try:
        force.renew(system)
        for step in range(steps + 1):
            result = force(moving.system)
            forces = result.forces.masked_fill(moving.fixed.unsqueeze(1), 0.0)
            largest = longest_of(forces, moving.system)
            if not bool(torch.isfinite(largest).all()):
                worst = int(moving.numbers[~torch.isfinite(largest)][0])
                raise FloatingPointError(f"structure {first + worst}: a force is not finite")
            ended.note(moving, result, largest, step)
            if observe is not None:
                observe(moving.numbers, result.energy, largest)
            rests = largest <= fmax
            end = None if should_stop is None else should_stop(moving.numbers, moving.system)
            if end is not None:
                stopped[moving.numbers] |= end.to(stopped.device)
            rests = rests | stopped[moving.numbers]
            if step == steps or bool(rests.all()):
                break
            if int(rests.sum()) > IDLE * moving.system.n_systems:
                forces = forces[~rests[moving.system.system_idx]]
                moving = moving.without(rests)
                rests = rests[~rests]
                force.renew(moving.system)
            moving = moving.step(forces, rests)
    except KeyboardInterrupt:
        if not ended.noted:
            raise
        return ended.relaxed(interrupted=True)
    except ImpossiblePositions:  # it counts only structures that are still in the batch
        if system.n_systems > 1 or first > 0:
            _name_impossible(force, moving, first)
        raise
    return ended.relaxed(interrupted=False)


def _name_impossible(force: Force, moving: _Moving, first: int) -> None:
    """Raise an error that names the structure with impossible positions by its number of all."""
    for k, number in enumerate(moving.numbers.tolist()):
        one = torch.arange(moving.system.n_systems, device=moving.system.device) == k
        try:
            force.renew(_part(moving.system, one, one[moving.system.system_idx]))
        except ImpossiblePositions as error:
            raise ImpossiblePositions(f"structure {first + number}: {error}") from None


class _Ended:
    """Collects the results of all structures, including those that left the batch."""

    def __init__(self, system: System) -> None:
        self._system, self._first = system, system.first_atoms
        n_systems, device = system.n_systems, system.device
        self.noted = False
        self._positions = system.positions.clone()
        self._forces = torch.zeros_like(self._positions)
        self._energy = torch.zeros(n_systems, dtype=torch.float64, device=device)
        self._largest = torch.full((n_systems,), torch.inf, dtype=torch.float64, device=device)
        self._steps = torch.zeros(n_systems, dtype=torch.int64, device=device)

    def note(self, moving: _Moving, result: Result, largest: Tensor, step: int) -> None:
        """Note results of the structures that are still in the batch."""
        self.noted = True
        numbers, idx = moving.numbers, moving.system.system_idx
        atoms = self._first[numbers[idx]] + moving.system.atom_in_system
        moved = (self._positions[atoms] != moving.system.positions).any(1)
        awake = segment_sum(moved.long(), idx, moving.system.n_systems) > 0
        self._steps[numbers] = torch.where(awake, step, self._steps[numbers])
        self._positions[atoms] = moving.system.positions
        self._forces[atoms] = result.forces
        self._energy[numbers] = result.energy
        self._largest[numbers] = largest

    def relaxed(self, *, interrupted: bool) -> Relaxed:
        system = replace(self._system, positions=self._positions)
        of_systems = (self._energy, self._forces, self._largest, self._steps)
        return Relaxed(system, *of_systems, interrupted)
