"""Optimizers of many structures at once: each structure goes the way it would go alone.

An optimizer is what is known of the structures beside where they are. It says how far atoms move
next; `relax_batch` moves them, and leaves out structures that are done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from attncalc.ops import segment_sum
from attncalc.system import System


class Optimizer(Protocol):
    """The way down of many structures."""

    def step(self, system: System, forces: Tensor) -> tuple[Self, Tensor]:
        """Return what is known after this step, and by how much atoms move, [n_atoms, 3] Å.

        Args:
            system: the structures as they are.
            forces: [n_atoms, 3] eV/Å; zero on atoms that stay where they are.
        """

    def only(self, structures: Tensor, atoms: Tensor) -> Self:
        """Return what is known of some of them; structures [n_systems], atoms [n_atoms], bool."""


@dataclass(frozen=True)
class FIRE:
    """Fast inertial relaxation engine (Bitzek et al., PRL 97, 170201, 2006), parameters of ASE's.

    Downhill, velocities turn towards the forces and steps grow; uphill, they start again from
    rest. Every structure has its own timestep and mixing.

    Attributes:
        velocities: [n_atoms, 3].
        timestep: [n_systems], Å / sqrt(eV); masses are 1.
        mixing: [n_systems].
        downhill: [n_systems], int64: steps downhill in a row.
    """

    velocities: Tensor
    timestep: Tensor
    mixing: Tensor
    downhill: Tensor

    FIRST_TIMESTEP, LONGEST_TIMESTEP = 0.1, 1.0
    LONGEST_MOVE = 0.2  # Å, of all atoms of a structure together, as a root of squares
    PATIENCE = 5  # downhill steps before the timestep grows
    FASTER, SLOWER = 1.1, 0.5
    FIRST_MIXING, LESS_MIXING = 0.1, 0.99

    @classmethod
    def start(cls, system: System) -> FIRE:
        """Begin at rest."""
        ones = torch.ones(system.n_systems, dtype=torch.float64, device=system.device)
        downhill = torch.zeros_like(ones, dtype=torch.int64)
        velocities = torch.zeros_like(system.positions)
        return cls(velocities, cls.FIRST_TIMESTEP * ones, cls.FIRST_MIXING * ones, downhill)

    def step(self, system: System, forces: Tensor) -> tuple[FIRE, Tensor]:
        """One step of FIRE, see `Optimizer.step`."""
        idx, dot = system.system_idx, _products(system)
        v = self.velocities
        down = dot(forces, v) > 0
        grows = down & (self.downhill > self.PATIENCE)
        speed = torch.sqrt(dot(v, v) / dot(forces, forces).clamp(min=1e-30))
        turned = (1 - self.mixing)[idx, None] * v + (self.mixing * speed)[idx, None] * forces
        faster = (self.timestep * self.FASTER).clamp(max=self.LONGEST_TIMESTEP)
        timestep = torch.where(grows, faster, self.timestep)
        # at rest is no uphill: the first step keeps its timestep
        timestep = torch.where(down | (dot(v, v) == 0), timestep, self.timestep * self.SLOWER)
        mixing = torch.where(grows, self.mixing * self.LESS_MIXING, self.mixing)
        mixing = torch.where(down, mixing, torch.full_like(mixing, self.FIRST_MIXING))
        v = torch.where(down[idx, None], turned, 0.0) + timestep[idx, None] * forces
        move = timestep[idx, None] * v
        length = torch.sqrt(dot(move, move)).clamp(min=1e-30)
        move = move * (self.LONGEST_MOVE / length).clamp(max=1.0)[idx, None]
        return FIRE(v, timestep, mixing, torch.where(down, self.downhill + 1, 0)), move

    def only(self, structures: Tensor, atoms: Tensor) -> FIRE:
        """Keep some structures, see `Optimizer.only`."""
        of_structures = (self.timestep, self.mixing, self.downhill)
        return FIRE(self.velocities[atoms], *(values[structures] for values in of_structures))


@dataclass(frozen=True)
class _Change:
    """What one step changed.

    Attributes:
        moved: [n_atoms, 3] Å.
        steeper: [n_atoms, 3] eV/Å, of the gradient.
        weight: [n_systems], 1 over the product of the two; 0 where the change is not used.
    """

    moved: Tensor
    steeper: Tensor
    weight: Tensor


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton steps from the last changes of the gradient, without a line search.

    The two loops of Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4, with their
    scale of the first inverse Hessian (equation 7.20). A change along which the energy curves
    downwards is left out, so that every step goes downhill.

    Attributes:
        changes: the last ones, oldest first.
        last: positions [n_atoms, 3] Å and forces [n_atoms, 3] eV/Å one step ago; () at the start.
    """

    changes: tuple[_Change, ...]
    last: tuple[Tensor, ...]

    MEMORY = 30  # changes
    STIFFNESS = 70.0  # eV/Å², for the first step, as in ASE's
    LONGEST_MOVE = 0.2  # Å, of an atom

    @classmethod
    def start(cls, system: System) -> LBFGS:
        """Begin with nothing known, whatever the structures."""
        return cls((), ())

    def step(self, system: System, forces: Tensor) -> tuple[LBFGS, Tensor]:
        """One step of L-BFGS, see `Optimizer.step`."""
        idx, dot = system.system_idx, _products(system)
        changes = self._changes(system, forces, dot)
        move, parts = forces, list[Tensor]()
        for change in reversed(changes):
            part = change.weight * dot(change.moved, move)
            move = move - part[idx, None] * change.steeper
            parts.append(part)
        scale = torch.full_like(forces[:1, 0], 1 / self.STIFFNESS).expand(system.n_systems)
        for change in changes:  # of the last that is used
            curvature = change.weight * dot(change.steeper, change.steeper)
            scale = torch.where(change.weight > 0, 1 / curvature.clamp(min=1e-30), scale)
        move = scale[idx, None] * move
        for change, part in zip(changes, reversed(parts), strict=True):
            back = change.weight * dot(change.steeper, move)
            move = move + (part - back)[idx, None] * change.moved
        longest = longest_of(move, system).clamp(min=1e-30)
        move = move * (self.LONGEST_MOVE / longest).clamp(max=1.0)[idx, None]
        return LBFGS(changes, (system.positions, forces)), move

    def _changes(self, system: System, forces: Tensor, dot: _Dot) -> tuple[_Change, ...]:
        if not self.last:
            return ()
        positions, before = self.last
        moved, steeper = system.positions - positions, before - forces
        product = dot(moved, steeper)
        used = product > 1e-10 * torch.sqrt(dot(moved, moved) * dot(steeper, steeper))
        weight = torch.where(used, 1 / torch.where(used, product, 1.0), 0.0)
        return (*self.changes[-self.MEMORY + 1 :], _Change(moved, steeper, weight))

    def only(self, structures: Tensor, atoms: Tensor) -> LBFGS:
        """Keep some structures, see `Optimizer.only`."""
        changes = [
            _Change(change.moved[atoms], change.steeper[atoms], change.weight[structures])
            for change in self.changes
        ]
        return replace(self, changes=(*changes,), last=(*(values[atoms] for values in self.last),))


OPTIMIZERS: dict[str, type[FIRE] | type[LBFGS]] = {"lbfgs": LBFGS, "fire": FIRE}

_Dot = Callable[[Tensor, Tensor], Tensor]


def _products(system: System) -> _Dot:
    """Scalar product of two [n_atoms, 3], for each structure: [n_systems]."""
    idx, n = system.system_idx, system.n_systems
    # the sum over three numbers last: over many rows it costs more than the sum over atoms
    return lambda one, other: segment_sum(one * other, idx, n).sum(1)


def longest_of(vectors: Tensor, system: System) -> Tensor:
    """Length of the longest vector [n_atoms, 3] of each structure, [n_systems]."""
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    zeros = torch.zeros(system.n_systems, dtype=lengths.dtype, device=lengths.device)
    return zeros.scatter_reduce(0, system.system_idx, lengths, "amax")
