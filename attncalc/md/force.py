"""`Force`: protocol of forces in dynamics, and an implementation by a plain function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from ase.calculators.calculator import BaseCalculator
from torch import Tensor

from attncalc.evaluator import Evaluator
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.system import System

Function = Callable[[System], Result]


@runtime_checkable
class Force(Protocol):
    """Energy and forces along a trajectory, with or without a neighbour list.

    Attributes:
        device: of its systems.
        checks_list_every_step: whether it costs little to check the list at every step.
        recorder: records whole steps; None: nothing is recorded.
        recorded: the steps recorded last.
        neighbors: its neighbour list; None without one.
        lists: all its neighbour lists.
        dtype: of its least precise part.
    """

    device: torch.device
    checks_list_every_step: bool
    recorder: Any
    recorded: Any
    neighbors: Any
    dtype: torch.dtype

    @property
    def lists(self) -> Sequence[Any]: ...

    def __call__(self, system: System) -> Result:
        """Return energy, forces and strain gradient."""

    def check(self, system: System) -> None:
        """Refuse a system that it does not support."""

    def follow(self, system: System) -> None:
        """Prepare for the first step of a run."""

    def renew(self, system: System) -> None:
        """Build a new list."""

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Return the result from the present list, and True if it may miss a pair ([], bool)."""


class ForceOfFunction:
    """Force by a function `System -> Result`, which supports all systems and has no list.

    Args:
        function: of systems on this device.
        device: of the run.
    """

    checks_list_every_step = True
    neighbors: Any = None
    dtype = torch.float64
    lists: Sequence[Any] = ()

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function, self.device = function, device
        self.recorder: Any = None
        self.recorded: Any = None

    def __call__(self, system: System) -> Result:
        """Call the function.

        Raises:
            TypeError: it did not return a `Result`, or changed the system that it was given.
        """
        result: Any = self._function(system)
        if system.positions.requires_grad:
            raise TypeError(
                "the force called requires_grad_() of the positions it was given: differentiate by "
                "a copy, system.positions.clone().requires_grad_()"
            )
        if not isinstance(result, Result):
            kind = type(result).__name__
            raise TypeError(f"the force must return an attncalc.Result, got {kind}")
        return result

    def check(self, system: System) -> None:
        """Accept any system."""

    def follow(self, system: System) -> None:
        """Do nothing: there is no list."""

    def renew(self, system: System) -> None:
        """Do nothing: there is no list."""

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Call the function, which misses no pair."""
        return self(system), torch.zeros((), dtype=torch.bool, device=self.device)


def force_of(given: Any, device: torch.device) -> Force:
    """Make a force of a potential or a function; a force is returned as it is.

    Args:
        given: a `Potential`, a `Force` or a function `System -> Result`.
        device: of the run, if `given` is a function.

    Raises:
        TypeError: `given` is none of these.
        ValueError: the potential is a delta model.
    """
    if isinstance(given, Potential):
        return Evaluator(given)
    if isinstance(given, Force):
        return given
    if not callable(given):
        kind = type(given).__name__
        advice = ": `calculator.evaluator` is one" if isinstance(given, BaseCalculator) else ""
        raise TypeError(f"expected a Potential or a function System -> Result, got {kind}{advice}")
    return ForceOfFunction(given, device)
