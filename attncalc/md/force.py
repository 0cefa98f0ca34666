"""`Force`: all that dynamics asks of forces, and a plain function in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from attncalc.evaluator import Evaluator
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.system import System

Function = Callable[[System], Result]


@runtime_checkable
class Force(Protocol):
    """Energy and forces along a trajectory, by a neighbour list or without any.

    Attributes:
        device: of systems that it takes.
        looks_at_every_step: whether asking if the list holds costs nothing worth saving.
        recorder: records whole steps; None: nothing is recorded.
        recorded: the steps recorded last.
        neighbors: its list; None: it keeps none.
        lists: all lists that it keeps.
        dtype: of its least precise part.
    """

    device: torch.device
    looks_at_every_step: bool
    recorder: Any
    recorded: Any
    neighbors: Any
    dtype: torch.dtype

    @property
    def lists(self) -> Sequence[Any]: ...

    def __call__(self, system: System) -> Result:
        """Energy, forces and strain gradient."""

    def check(self, system: System) -> None:
        """Refuse what it does not know."""

    def follow(self, system: System) -> None:
        """Prepare for the first step of a run."""

    def renew(self, system: System) -> None:
        """Make a new list."""

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Result by the list as it is, and whether that may miss a pair: [], bool."""


class ForceOfFunction:
    """A function `System -> Result` as a force: it knows all systems and keeps no list.

    Args:
        function: of systems on this device.
        device: of the run.
    """

    looks_at_every_step = True
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
            TypeError: it returned no `Result`.
        """
        result: Any = self._function(system)
        if not isinstance(result, Result):
            kind = type(result).__name__
            raise TypeError(f"the force must return an attncalc.Result, got {kind}")
        return result

    def check(self, system: System) -> None:
        """Take any system."""

    def follow(self, system: System) -> None:
        """Keep no list."""

    def renew(self, system: System) -> None:
        """Keep no list."""

    def without_check(self, system: System) -> tuple[Result, Tensor]:
        """Call the function, which misses nothing."""
        return self(system), torch.zeros((), dtype=torch.bool, device=self.device)


def force_of(given: Any, device: torch.device) -> Force:
    """Make a force of a potential or a function; a force stays what it is.

    Args:
        given: a `Potential`, a `Force` or a function `System -> Result`.
        device: of the run, where `given` is a function.

    Raises:
        TypeError: it is none of them.
        ValueError: the potential is a delta model.
    """
    if isinstance(given, Potential):
        return Evaluator(given)
    if isinstance(given, Force):
        return given
    if not callable(given):
        kind = type(given).__name__
        raise TypeError(f"expected a Potential or a function System -> Result, got {kind}")
    return ForceOfFunction(given, device)
