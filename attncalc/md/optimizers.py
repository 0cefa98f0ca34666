"""Optimizers of many structures at once; each structure moves as it would alone, up to rounding.

An optimizer holds what it has learnt about the structures, but not their positions. It computes the
next move of atoms; `relax_batch` moves them, and leaves out structures that are done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from attncalc.ops import segment_max, segment_sum
from attncalc.system import System


class Optimizer(Protocol):
    """Optimizer of many structures."""

    @classmethod
    def start(cls, system: System) -> Self:
        """Start from the present positions."""

    def step(self, system: System, forces: Tensor) -> tuple[Self, Tensor]:
        """Return the optimizer after this step, and the displacements of atoms, [n_atoms, 3] Å.

        Args:
            system: the structures at present.
            forces: [n_atoms, 3] eV/Å; zero on fixed atoms.
        """

    def only(self, structures: Tensor, atoms: Tensor) -> Self:
        """Return the optimizer of some structures, by masks [n_systems] and [n_atoms]."""


@dataclass(frozen=True)
class FIRE:
    """Fast inertial relaxation engine (Bitzek et al., PRL 97, 170201, 2006) with ASE's parameters.

    Downhill, velocities turn towards the forces and steps grow; uphill, atoms start again from
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
    LARGEST_STEP = 0.2  # Å, norm over all atoms of a structure
    PATIENCE = 5  # downhill steps before the timestep grows
    FASTER, SLOWER = 1.1, 0.5
    FIRST_MIXING, LESS_MIXING = 0.1, 0.99

    @classmethod
    def start(cls, system: System) -> FIRE:
        """Start at rest."""
        ones = torch.ones(system.n_systems, dtype=torch.float64, device=system.device)
        downhill = torch.zeros_like(ones, dtype=torch.int64)
        velocities = torch.zeros_like(system.positions)
        return cls(velocities, cls.FIRST_TIMESTEP * ones, cls.FIRST_MIXING * ones, downhill)

    def step(self, system: System, forces: Tensor) -> tuple[FIRE, Tensor]:
        """Take a step of FIRE, see `Optimizer.step`."""
        idx, dot = system.system_idx, _products(system)
        v = self.velocities
        down = dot(forces, v) > 0
        grows = down & (self.downhill > self.PATIENCE)
        speed = torch.sqrt(dot(v, v) / dot(forces, forces).clamp(min=1e-30))
        turned = (1 - self.mixing)[idx, None] * v + (self.mixing * speed)[idx, None] * forces
        faster = (self.timestep * self.FASTER).clamp(max=self.LONGEST_TIMESTEP)
        timestep = torch.where(grows, faster, self.timestep)
        # rest does not count as uphill: the first step keeps its timestep
        timestep = torch.where(down | (dot(v, v) == 0), timestep, self.timestep * self.SLOWER)
        mixing = torch.where(grows, self.mixing * self.LESS_MIXING, self.mixing)
        mixing = torch.where(down, mixing, torch.full_like(mixing, self.FIRST_MIXING))
        v = torch.where(down[idx, None], turned, 0.0) + timestep[idx, None] * forces
        move = timestep[idx, None] * v
        length = torch.sqrt(dot(move, move)).clamp(min=1e-30)
        move = move * (self.LARGEST_STEP / length).clamp(max=1.0)[idx, None]
        return FIRE(v, timestep, mixing, torch.where(down, self.downhill + 1, 0)), move

    def only(self, structures: Tensor, atoms: Tensor) -> FIRE:
        """Keep some structures, see `Optimizer.only`."""
        of_structures = (self.timestep, self.mixing, self.downhill)
        return FIRE(self.velocities[atoms], *(values[structures] for values in of_structures))


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton steps from the last changes of the gradient, without a line search.

    The inverse Hessian of BFGS is built from a few changes, in the compact form of Byrd, Nocedal &
    Schnabel (Math. Program. 63, 129, 1994, theorem 2.2), on a multiple of the unit matrix that fits
    the last change (Nocedal & Wright, Numerical Optimization, 2006, equation 7.20). A change along
    which the energy has negative curvature is ignored, so that every move starts downhill; the
    energy at its end may still be higher.

    Attributes:
        changes: [n_atoms, n_changes, 2, 3], oldest first: displacements [Å] and changes of the
            gradient [eV/Å]; zero for a structure without this change.
        products: [n_systems, n_changes, n_changes] eV, of displacements and gradient changes.
        squares: [n_systems, n_changes, n_changes] eV²/Å², of gradient changes with each other.
        scale: [n_systems] Å²/eV, of the unit matrix.
        last: positions [n_atoms, 3] Å and forces [n_atoms, 3] eV/Å one step ago.
    """

    changes: Tensor
    products: Tensor
    squares: Tensor
    scale: Tensor
    last: tuple[Tensor, Tensor] | None

    MEMORY = 30  # changes
    STIFFNESS = 70.0  # eV/Å², for the first step, as in ASE's
    LONGEST_MOVE = 0.2  # Å, of an atom

    @classmethod
    def start(cls, system: System) -> LBFGS:
        """Start without changes."""
        n, none = system.n_systems, system.positions.new_zeros((system.n_atoms, 0, 2, 3))
        square = none.new_zeros((n, 0, 0))
        return cls(none, square, square, none.new_full((n,), 1 / cls.STIFFNESS), None)

    def step(self, system: System, forces: Tensor) -> tuple[LBFGS, Tensor]:
        """Take a step of L-BFGS, see `Optimizer.step`."""
        now = self._with_last_change(system, forces)
        idx, scale = system.system_idx, now.scale
        # ones on the diagonal for ignored changes, so that the triangle can be solved
        diagonal = now.products.diagonal(dim1=1, dim2=2)
        triangle = now.products.triu() + torch.diag_embed((diagonal == 0).to(diagonal))
        along, bent = now._onto(system, forces)
        part = torch.linalg.solve_triangular(triangle, along.unsqueeze(2), upper=True)
        inner = diagonal.unsqueeze(2) * part + scale[:, None, None] * (now.squares @ part)
        inner = inner - (scale[:, None] * bent).unsqueeze(2)
        back = torch.linalg.solve_triangular(triangle.mT, inner, upper=False)
        of_changes = torch.cat([back, -scale[:, None, None] * part], 2)[idx]
        changes, of_changes = now.changes.flatten(1, 2), of_changes.flatten(1).unsqueeze(1)
        straight = scale[idx, None] * forces
        move = straight + (of_changes @ changes).squeeze(1)
        downhill = _products(system)(move, forces) > 0  # False only by rounding
        move = torch.where(downhill[idx, None], move, straight)
        longest = longest_of(move, system).clamp(min=1e-30)
        move = move * (self.LONGEST_MOVE / longest).clamp(max=1.0)[idx, None]
        return replace(now, last=(system.positions, forces)), move

    def _with_last_change(self, system: System, forces: Tensor) -> LBFGS:
        if self.last is None:
            return self
        (positions, before), dot = self.last, _products(system)
        moved, steeper = system.positions - positions, before - forces
        product, squared = dot(moved, steeper), dot(steeper, steeper)
        used = product > 1e-10 * torch.sqrt(dot(moved, moved) * squared)
        change = torch.where(
            used[system.system_idx, None, None], torch.stack([moved, steeper], 1), 0
        )
        kept = slice(max(0, self.changes.shape[1] + 1 - self.MEMORY), None)
        new = replace(
            self,
            changes=torch.cat([self.changes[:, kept], change.unsqueeze(1)], 1),
            scale=torch.where(used, product / squared.clamp(min=1e-30), self.scale),
        )
        column, square = new._onto(system, change[:, 1])
        products, squares = self.products[:, kept, kept], self.squares[:, kept, kept]
        return replace(
            new,
            # nothing is read below the diagonal
            products=torch.cat([_pad(products), column.unsqueeze(2)], 2),
            squares=torch.cat(
                [torch.cat([squares, square[:, None, :-1]], 1), square.unsqueeze(2)], 2
            ),
        )

    def _onto(self, system: System, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return products of both kinds of changes with vectors [n_atoms, 3], as for `changes`.

        Each has the shape [n_systems, n_changes].
        """
        values = self.changes.flatten(1, 2) @ vectors.unsqueeze(2)
        sums = segment_sum(values.squeeze(2), system.system_idx, system.n_systems)
        return sums.unflatten(1, (-1, 2)).unbind(2)

    def only(self, structures: Tensor, atoms: Tensor) -> LBFGS:
        """Keep some structures, see `Optimizer.only`."""
        last = self.last and (self.last[0][atoms], self.last[1][atoms])
        products, squares = self.products[structures], self.squares[structures]
        return LBFGS(self.changes[atoms], products, squares, self.scale[structures], last)


def _pad(matrices: Tensor) -> Tensor:
    """Append a row of zeros."""
    return torch.nn.functional.pad(matrices, (0, 0, 0, 1))


OPTIMIZERS: dict[str, type[Optimizer]] = {"lbfgs": LBFGS, "fire": FIRE}

_Dot = Callable[[Tensor, Tensor], Tensor]


def _products(system: System) -> _Dot:
    """Return the scalar product of two [n_atoms, 3] for each structure, [n_systems], a function."""
    idx, n = system.system_idx, system.n_systems
    # sum over components last: over many rows it costs more than the sum over atoms
    return lambda one, other: segment_sum(one * other, idx, n).sum(1)


def longest_of(vectors: Tensor, system: System) -> Tensor:
    """Return the length of the longest vector [n_atoms, 3] of each structure, [n_systems]."""
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    return segment_max(lengths, system.system_idx, system.n_systems)
