"""`relax_batch`: many structures relaxed at once, each until its own forces vanish.

FIRE (Bitzek et al., PRL 97, 170201, 2006) with the parameters of ASE's: downhill, velocities turn
towards the forces and steps grow; uphill, they start again from rest. Every structure has its own
timestep and mixing, so that it goes the way it would go alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attncalc.md.force import Force, Function, force_of
from attncalc.md.velocities import MOST_STEPS
from attncalc.neighbors import ImpossiblePositions
from attncalc.nn.options import positive, whole_number
from attncalc.ops import segment_sum
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.system import System

FIRST_TIMESTEP, LONGEST_TIMESTEP = 0.1, 1.0  # Å / sqrt(eV), masses are 1
LONGEST_MOVE = 0.2  # Å, of all atoms of a structure together, as a root of squares
PATIENCE = 5  # downhill steps before the timestep grows
FASTER, SLOWER = 1.1, 0.5
FIRST_MIXING, LESS_MIXING = 0.1, 0.99
# structures that are done leave the batch when they are more than this share of it
IDLE = 0.3


@dataclass(frozen=True)
class Relaxed:
    """End of a relaxation of a batch.

    Attributes:
        system: all of them, in their order.
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
        largest_force: [n_systems] eV/Å, of an atom that may move.
        steps: [n_systems], int64: how many each took.
        interrupted: whether Ctrl-C ended it: then this is where they were.
    """

    system: System
    energy: Tensor
    forces: Tensor
    largest_force: Tensor
    steps: Tensor
    interrupted: bool


@dataclass(frozen=True)
class _Fire:
    """Structures on their way down.

    Attributes:
        system: those not yet done, and some that are.
        numbers: [n_systems], int64: which of all they are.
        fixed: [n_atoms], bool.
        velocities: [n_atoms, 3].
        timestep, mixing: [n_systems].
        downhill: [n_systems], int64: steps downhill in a row.
    """

    system: System
    numbers: Tensor
    fixed: Tensor
    velocities: Tensor
    timestep: Tensor
    mixing: Tensor
    downhill: Tensor

    @classmethod
    def start(cls, system: System, fixed: Tensor) -> _Fire:
        ones = torch.ones(system.n_systems, dtype=torch.float64, device=system.device)
        return cls(
            system=system,
            numbers=torch.arange(system.n_systems, device=system.device),
            fixed=fixed,
            velocities=torch.zeros_like(system.positions),
            timestep=FIRST_TIMESTEP * ones,
            mixing=FIRST_MIXING * ones,
            downhill=torch.zeros_like(ones, dtype=torch.int64),
        )

    def step(self, forces: Tensor, rests: Tensor) -> _Fire:
        """One step of those that do not rest; forces [n_atoms, 3], rests [n_systems]."""
        idx, n = self.system.system_idx, self.system.n_systems

        def total(values: Tensor) -> Tensor:
            return segment_sum(values.sum(1), idx, n)

        v = self.velocities
        down = total(forces * v) > 0
        grows = down & (self.downhill > PATIENCE)
        speed = torch.sqrt(total(v * v) / total(forces * forces).clamp(min=1e-30))
        turned = (1 - self.mixing)[idx, None] * v + (self.mixing * speed)[idx, None] * forces
        faster = (self.timestep * FASTER).clamp(max=LONGEST_TIMESTEP)
        timestep = torch.where(grows, faster, self.timestep)
        # at rest is no uphill: the first step keeps its timestep
        timestep = torch.where(down | (total(v * v) == 0), timestep, self.timestep * SLOWER)
        mixing = torch.where(grows, self.mixing * LESS_MIXING, self.mixing)
        mixing = torch.where(down, mixing, torch.full_like(mixing, FIRST_MIXING))
        v = torch.where(down[idx, None], turned, 0.0) + timestep[idx, None] * forces
        move = timestep[idx, None] * v
        length = torch.sqrt(total(move * move))
        scale = torch.where(rests, 0.0, (LONGEST_MOVE / length.clamp(min=1e-30)).clamp(max=1.0))
        positions = self.system.positions + scale[idx, None] * move
        return replace(
            self,
            system=replace(self.system, positions=positions),
            velocities=v,
            timestep=timestep,
            mixing=mixing,
            downhill=torch.where(down, self.downhill + 1, 0),
        )

    def without(self, gone: Tensor) -> _Fire:
        """Keep those that are not gone; gone [n_systems]."""
        stay, atoms = ~gone, ~gone[self.system.system_idx]
        return _Fire(
            system=_part(self.system, stay, atoms),
            numbers=self.numbers[stay],
            fixed=self.fixed[atoms],
            velocities=self.velocities[atoms],
            timestep=self.timestep[stay],
            mixing=self.mixing[stay],
            downhill=self.downhill[stay],
        )


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
    system: System,
    *,
    fmax: float = 0.01,
    steps: int = 1000,
    fixed: Tensor | None = None,
    first: int = 0,
    observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    look: Callable[[Tensor, System], Tensor | None] | None = None,
) -> Relaxed:
    """Relax the structures of a batch, cells kept, until no force exceeds `fmax`.

    A structure that is done rests, and leaves the batch with others: it costs no more.

    Args:
        potential: the model, its `Evaluator`, or any function `System -> Result`.
        system: the structures.
        fmax: eV/Å, largest force left on an atom that may move.
        steps: most steps.
        fixed: [n_atoms], bool: atoms that stay where they are.
        first: number of the first structure, for messages, where they are part of a longer list.
        observe: called before the first and after every step with the numbers of the structures
            still in the batch, their energies [eV] and largest forces [eV/Å].
        look: called after each `observe` with the same numbers and the structures; returns
            [n_systems], bool, of those that rest from now on, or None.

    Raises:
        ValueError: `fmax` or `steps` is not positive or `fmax` not finite, `fixed` has the wrong
            shape, the model does not know a structure, or atoms of one are on top of each other.
        FloatingPointError: a force is not finite; the message names the structure.
    """
    positive("fmax", fmax)
    whole_number("steps", steps, 1, MOST_STEPS)
    if fixed is not None and fixed.shape != (system.n_atoms,):
        raise ValueError(f"fixed must have shape [{system.n_atoms}], got {list(fixed.shape)}")
    force = force_of(potential, system.device)
    force.check(system)
    system = system.to(force.device)
    held = torch.zeros(system.n_atoms, dtype=torch.bool) if fixed is None else fixed.bool()
    fire = _Fire.start(system, held.to(force.device))
    ended = _Ended(system)
    try:
        force.renew(system)
        for step in range(steps + 1):
            result = force(fire.system)
            forces = result.forces.masked_fill(fire.fixed.unsqueeze(1), 0.0)
            largest = _largest(forces, fire.system)
            if not bool(torch.isfinite(largest).all()):
                worst = int(fire.numbers[~torch.isfinite(largest)][0])
                raise FloatingPointError(f"structure {first + worst}: a force is not finite")
            ended.note(fire, result, largest, step)
            if observe is not None:
                observe(fire.numbers, result.energy, largest)
            rests = largest <= fmax
            if look is not None and (stopped := look(fire.numbers, fire.system)) is not None:
                rests = rests | stopped.to(rests.device)
            if step == steps or bool(rests.all()):
                break
            if int(rests.sum()) > IDLE * fire.system.n_systems:
                forces = forces[~rests[fire.system.system_idx]]
                fire = fire.without(rests)
                rests = rests[~rests]
                force.renew(fire.system)
            fire = fire.step(forces, rests)
    except KeyboardInterrupt:
        if not ended.noted:
            raise
        return ended.relaxed(interrupted=True)
    except ImpossiblePositions:  # names a structure by its place among those still in the batch
        if system.n_systems > 1 or first > 0:
            _name_impossible(force, fire, first)
        raise
    return ended.relaxed(interrupted=False)


def _name_impossible(force: Force, fire: _Fire, first: int) -> None:
    """Ask structures one by one; of which one positions are impossible, by its number of all."""
    for k, number in enumerate(fire.numbers.tolist()):
        one = torch.arange(fire.system.n_systems, device=fire.system.device) == k
        try:
            force.renew(_part(fire.system, one, one[fire.system.system_idx]))
        except ImpossiblePositions as error:
            raise ImpossiblePositions(f"structure {first + number}: {error}") from None


class _Ended:
    """Collects where structures are, those that left the batch included."""

    def __init__(self, system: System) -> None:
        self._system, self._first = system, system.first_atoms
        n_systems, device = system.n_systems, system.device
        self.noted = False
        self._positions = system.positions.clone()
        self._forces = torch.zeros_like(self._positions)
        self._energy = torch.zeros(n_systems, dtype=torch.float64, device=device)
        self._largest = torch.full((n_systems,), torch.inf, dtype=torch.float64, device=device)
        self._steps = torch.zeros(n_systems, dtype=torch.int64, device=device)

    def note(self, fire: _Fire, result: Result, largest: Tensor, step: int) -> None:
        """Note results of the structures that are still in the batch."""
        self.noted = True
        numbers, idx = fire.numbers, fire.system.system_idx
        atoms = self._first[numbers[idx]] + fire.system.atom_in_system
        moved = (self._positions[atoms] != fire.system.positions).any(1)
        awake = segment_sum(moved.long(), idx, fire.system.n_systems) > 0
        self._steps[numbers] = torch.where(awake, step, self._steps[numbers])
        self._positions[atoms] = fire.system.positions
        self._forces[atoms] = result.forces
        self._energy[numbers] = result.energy
        self._largest[numbers] = largest

    def relaxed(self, *, interrupted: bool) -> Relaxed:
        system = replace(self._system, positions=self._positions)
        of_systems = (self._energy, self._forces, self._largest, self._steps)
        return Relaxed(system, *of_systems, interrupted)


def _largest(forces: Tensor, system: System) -> Tensor:
    """[n_systems] eV/Å: the longest force on an atom of each."""
    lengths = torch.linalg.vector_norm(forces, dim=1)
    zeros = torch.zeros(system.n_systems, dtype=lengths.dtype, device=lengths.device)
    return zeros.scatter_reduce(0, system.system_idx, lengths, "amax")
