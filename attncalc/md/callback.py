"""`Callback`: an action that a run repeats at regular intervals, mostly to write files."""

from __future__ import annotations

from attncalc.md.integrator import Integrator
from attncalc.md.state import MDState


class Callback:
    """Action every `every` steps. Subclasses define `__call__`; other methods do nothing here.

    Attributes:
        every: steps; it is called with every state whose number of steps is a multiple of it, and
            with the first and the last one. At the end of a run it may get the same state again.
        stops: True: the run is to end with the state of the last call, with which all callbacks are
            then called.
    """

    every: int
    stops: bool = False

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Prepare for the first step of a new run."""

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Prepare to continue a run, instead of `begin`; drop what was written beyond the state."""

    def __call__(self, state: MDState) -> None:
        """Process a state."""
        raise NotImplementedError

    def flush(self) -> None:
        """Bring everything so far to disk."""

    def end(self) -> None:
        """Finish after the last step, and after an error."""

    def forget(self) -> None:
        """Remove the files of a run that could not begin; called after `end`."""
