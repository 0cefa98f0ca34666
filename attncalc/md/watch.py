"""Checks during a run: whether atoms leave the training environments, and whether bonds break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ase import units
from torch import Tensor

from attncalc.bonds import Bonds, BrokenBond, broken_text
from attncalc.md.callback import Callback
from attncalc.md.force import Force
from attncalc.md.integrator import Column, Integrator
from attncalc.md.log_file import NOVELTY
from attncalc.md.state import MDState
from attncalc.novelty import outsider
from attncalc.system import System

# largest number of steps between two checks
EVERY = 20
# a metal has bonds to more and other neighbours from one moment to the next
NONMETALS = frozenset({1, 6, 7, 8, 9, 15, 16, 17, 34, 35, 53})


def novelty_columns(force: Force) -> tuple[Column, ...]:
    """Return the column of the largest novelty of every system, if the model has a novelty."""
    model: Any = getattr(force, "plain", None)
    if model is None or not model.knows_its_training:
        return ()
    knowing: Any = force  # an `Evaluator`

    def largest(state: MDState) -> Tensor:
        novelty = torch.from_numpy(knowing.novelty(state.system)).to(state.energy.device)
        idx = state.system.system_idx
        return torch.zeros_like(state.energy).scatter_reduce(0, idx, novelty, "amax")

    return (Column(NOVELTY, NOVELTY, "", largest),)


class Watch(Callback):
    """Callback of `md.run` that reports the first atom outside the training data.

    Args:
        force: an `Evaluator` of a model; with any other force nothing is checked.
        tell: called once, with a message.
        every: steps between two checks.
        stop: True: the run ends there, and this state is written.
    """

    def __init__(
        self, force: Force, tell: Callable[[str], None], *, every: int = EVERY, stop: bool = False
    ) -> None:
        self.every = every
        self._knowing: Any = force if novelty_columns(force) else None
        self._tell, self._stop, self._told, self._timestep = tell, stop, False, 0.0

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Store the timestep."""
        del state
        self._timestep = integrator.timestep

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Store the timestep."""
        self.begin(state, integrator)

    def __call__(self, state: MDState) -> None:
        """Check a state, unless an atom has been reported."""
        if self._knowing is None or self._told:
            return
        novelty, system = self._knowing.novelty(state.system), state.system
        found = outsider(novelty, system.atomic_numbers.cpu().numpy())
        if found is None:
            return
        self._told, self.stops = True, self._stop
        where = ""
        if system.n_systems > 1:
            where = f"system {int(system.system_idx[found.atom])}: "
            number = int(state.atom_in_system[found.atom])
            found = found._replace(atom=number)
        self._tell(where + sentence(state.step, self._timestep, found))


class BondWatch(Callback):
    """Callback of `md.run` that reports the first bonds that break between two nonmetals.

    Bonds are those of the state with which the run begins or is resumed.

    Args:
        tell: called once, with a message.
        every: steps between two checks.
    """

    def __init__(self, tell: Callable[[str], None], *, every: int) -> None:
        self.every, self._tell, self._timestep = every, tell, 0.0
        self._bonds: Bonds | None = None

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Find the bonds."""
        self._bonds, self._timestep = Bonds.of(state.system), integrator.timestep

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Find the bonds."""
        self.begin(state, integrator)

    def __call__(self, state: MDState) -> None:
        """Check a state, unless a bond has been reported."""
        if self._bonds is None or not (broken := covalent(self._bonds, state.system)):
            return
        self._bonds, where = None, ""
        if state.system.n_systems > 1:
            idx, number = state.system.system_idx, state.atom_in_system
            first = int(idx[broken[0].i])
            where = f"system {first}: "
            broken = [
                bond._replace(i=int(number[bond.i]), j=int(number[bond.j]))
                for bond in broken
                if int(idx[bond.i]) == first
            ]
        self._tell(where + sentence(state.step, self._timestep, broken_text(broken)))


def covalent(bonds: Bonds, system: System) -> list[BrokenBond]:
    """Return the bonds between two nonmetals that are broken in a later state of a system."""
    z = system.atomic_numbers
    return [bond for bond in bonds.broken(system) if {int(z[bond.i]), int(z[bond.j])} <= NONMETALS]


def sentence(step: int, timestep: float, found: object) -> str:
    """Return the message about something that was found for the first time.

    Args:
        step: number of the step.
        timestep: ASE time units.
        found: what was found.
    """
    return f"step {step} ({step * timestep / units.fs:.1f} fs): {found}"
