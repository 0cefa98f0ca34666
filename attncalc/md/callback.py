"""`Callback`: an action that a run repeats at regular intervals, mostly to write files."""

from __future__ import annotations

from pathlib import Path

from attncalc.md.integrator import Integrator
from attncalc.md.state import MDState


class Callback:
    """Action every `every` steps. Subclasses define `__call__`; other methods are optional.

    Attributes:
        every: steps; it is called with every state whose number of steps is a multiple of it, and
            with the first and the last one. At the end of a run it may get the same state again.
        stops: True: the run is to end with the state of the last call, with which all callbacks are
            then called.
        path: the file that it writes, if there is one.
    """

    every: int
    stops: bool = False
    path: Path
    _is_new = False  # of a file of this run

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Prepare for the first step of a new run."""

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Prepare to continue a run, as `begin` does; files also drop what is beyond the state."""
        self.begin(state, integrator)

    def __call__(self, state: MDState) -> None:
        """Process a state."""
        raise NotImplementedError

    def flush(self) -> None:
        """Bring everything so far to disk."""

    def end(self) -> None:
        """Finish after the last step, and after an error."""

    def forget(self) -> None:
        """Remove the file of a run that could not begin; called after `end`."""
        if self._is_new:
            self.path.unlink(missing_ok=True)
