"""`Callback`: what a run calls on the way, to write its files mostly."""

from __future__ import annotations

from attncalc.md.integrator import Integrator
from attncalc.md.state import MDState


class Callback:
    """Action every so many steps; what a subclass does not need it leaves as it is here.

    Attributes:
        every: steps; it is called with every state whose number of steps is a multiple of it, and
            with the first and the last one.
        stops: True where the run is to end with the state that it has just been called with, which
            all callbacks then see.
    """

    every: int
    stops: bool = False

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Prepare for the first step of a new run."""

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Prepare to go on, instead of `begin`: forget what lies beyond this state."""

    def __call__(self, state: MDState) -> None:
        """Take a state."""
        raise NotImplementedError

    def flush(self) -> None:
        """Make everything so far safe."""

    def end(self) -> None:
        """Finish after the last step, and after an error."""

    def forget(self) -> None:
        """Remove the files that it made for a run that could not begin, after `end`."""
