"""Checks during a run: whether atoms leave the training environments, and whether bonds break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ase import units
from torch import Tensor

from attncalc.bonds import NONMETALS, Bonds, broken_text
from attncalc.md.callback import Callback
from attncalc.md.force import Force
from attncalc.md.integrator import Column, Integrator
from attncalc.md.log_file import NOVELTY
from attncalc.md.state import MDState
from attncalc.novelty import outside_atom
from attncalc.ops import segment_max
from attncalc.system import System

# largest number of steps between two checks
EVERY = 20


def novelty_columns(force: Force) -> tuple[Column, ...]:
    """Return the column of the largest novelty of every system, if the model has a novelty."""
    model: Any = getattr(force, "plain", None)
    if model is None or not model.knows_its_training:
        return ()
    knowing: Any = force  # an `Evaluator`

    def largest(state: MDState) -> Tensor:
        novelty = torch.from_numpy(knowing.novelty(state.system)).to(state.energy.device)
        return segment_max(novelty, state.system.system_idx, state.system.n_systems)

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
        """Store the timestep, and forget what an earlier run found."""
        del state
        self._timestep, self._told, self.stops = integrator.timestep, False, False

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Store the timestep; if the run was stopped here, it is stopped again."""
        self.begin(state, integrator)
        if self._stop:
            self(state)

    def __call__(self, state: MDState) -> None:
        """Check a state, unless an atom has been reported."""
        if self._knowing is None or self._told:
            return
        novelty, system = self._knowing.novelty(state.system), state.system
        found = outside_atom(novelty, system.atomic_numbers.cpu().numpy())
        if found is None:
            return
        self._told, self.stops = True, self._stop
        where = ""
        if system.n_systems > 1:
            where = f"system {int(system.system_idx[found.atom])}: "
            number = int(state.atom_in_system[found.atom])
            found = found._replace(atom=number)
        self._tell(where + sentence(state.step, self._timestep, found))


class AlsoEvery(Callback):
    """Callback that calls another one at further steps.

    Args:
        callback: the other one, which is a callback of the run, too.
        every: steps between two calls.
    """

    def __init__(self, callback: Callback, *, every: int) -> None:
        self.every, self._callback = every, callback

    def __call__(self, state: MDState) -> None:
        """Process a state."""
        self._callback(state)


class BondWatch(Callback):
    """Callback of `md.run` that reports the first bonds that break between two nonmetals.

    It reports the bonds of one system of a batch, the first that it finds.

    Args:
        tell: called once, with a message.
        every: steps between two checks.
        first: systems whose bonds are looked at; None: those of the state with which the run begins
            or is resumed.
    """

    def __init__(
        self, tell: Callable[[str], None], *, every: int, first: System | None = None
    ) -> None:
        self.every, self._tell, self._timestep, self._first = every, tell, 0.0, first
        self._bonds: Bonds | None = None

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Find the bonds."""
        self._timestep = integrator.timestep
        first = state.system if self._first is None else self._first.to(state.system.device)
        bonds = Bonds.of(first, NONMETALS)
        self._bonds = bonds if len(bonds.lengths) else None

    def __call__(self, state: MDState) -> None:
        """Check a state, unless a bond has been reported."""
        if self._bonds is None or not (broken := self._bonds.broken(state.system)):
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


def sentence(step: int, timestep: float, found: object) -> str:
    """Return the message about something that was found for the first time.

    Args:
        step: number of the step.
        timestep: ASE time units.
        found: what was found.
    """
    return f"step {step} ({step * timestep / units.fs:.1f} fs): {found}"
