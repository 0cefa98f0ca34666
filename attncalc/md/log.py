"""`Log`: one line of numbers every `every` steps, as CSV."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from ase import units

from attncalc.files import Appended, FileLock, folder_to_disk, refuse_existing
from attncalc.md.callback import Callback
from attncalc.md.integrator import Column, Integrator, own_columns
from attncalc.md.log_file import (
    Intact,
    LogSummary,
    columns_of,
    intact_part,
    line,
)
from attncalc.md.log_repair import lines_again, volume
from attncalc.md.state import MDState

log = logging.getLogger(__name__)


class Log(Callback):
    """Callback that logs time, temperature, energies and conserved quantity of systems, as CSV.

    For a batch the first column is `system`, and every system has a line. Lines are not kept in
    memory. A checkpoint of the same run waits until they are on disk.

    Args:
        path: new file.
        every: steps.
        also: further columns.
        trajectory: H5MD trajectory of the same run, written at least as often. If the log of a
            resumed run is missing, cut off or damaged, its lines are restored from it.

    Attributes:
        summary: number of lines, the last one, and those with the largest spread and novelty.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int = 10,
        also: Sequence[Column] = (),
        trajectory: str | Path | None = None,
    ) -> None:
        # the current folder may change before and during a run
        self.path, self.every, self._also = Path(path).absolute(), every, tuple(also)
        self.trajectory = None if trajectory is None else Path(trajectory).absolute()
        self.summary = LogSummary()
        self._file: Appended | None = None
        self._columns: tuple[str, ...] = ()
        self._own: tuple[Column, ...] = ()
        self._timestep = 0.0
        self._claim: FileLock | None = None

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Create the file; refuse to overwrite one.

        Raises:
            FileExistsError: the file exists.
            FileNotFoundError: its folder does not.
            BlockingIOError: another run is writing it.
            NoSpaceLeft: the disk is full.
        """
        refuse_existing(self.path)
        self._claim = FileLock(self.path)
        self._is_new = True
        self._open(state, integrator, Intact())

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Continue after this state; lines beyond it, and an incomplete line, are removed.

        Raises:
            BlockingIOError: another run is writing it.
            FileNotFoundError: there is no such file, and no trajectory to restore it from.
            NoSpaceLeft: the disk is full.
            ValueError: it is not the log of this run up to this state, and cannot be restored; it
                is not changed.
        """
        claim = FileLock(self.path)
        try:
            kept = self._kept(state, integrator)
            again: Iterable[list[tuple[float, ...]]] = ()
            if kept.step < state.step - state.step % self.every:
                again = self._made_again(state, integrator, kept)
            self._open(state, integrator, kept)
            for lines in again:
                self._write(lines)
            self.flush()
        except BaseException:
            self._close()
            claim.release()
            raise
        self._claim = claim

    def _kept(self, state: MDState, integrator: Integrator) -> Intact:
        """Find the part of the file to keep: nothing if it is missing and can be restored."""
        n_systems = state.system.n_systems
        try:
            with open(self.path, "rb") as file:
                kept = intact_part(
                    file,
                    columns_of(n_systems, _heads(self._own_columns(integrator, state))),
                    n_systems,
                    now=state.step,
                    every=self.every,
                    timestep=integrator.timestep / units.fs,
                )
            there = [row["potential_eV"] for row in kept.now]
            if there and there != state.energy.tolist():
                raise ValueError(
                    f"its energy at step {state.step} differs: this is the log of another run"
                )
            return kept
        except FileNotFoundError:
            if self.trajectory is None and state.step > 0:
                raise FileNotFoundError(f"no such file: {self.path}") from None
            return Intact(damage="there is no such file")
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _own_columns(self, integrator: Integrator, state: MDState) -> tuple[Column, ...]:
        return (*own_columns(integrator, state), *self._also)

    def _made_again(
        self, state: MDState, integrator: Integrator, kept: Intact
    ) -> Iterable[list[tuple[float, ...]]]:
        """Return lines from the trajectory, after a check that it has them."""
        expected = state.step - state.step % self.every
        if state.step == 0:  # the run was stopped before its first line, which is written next
            return ()
        what = kept.damage or f"ends before step {expected}, where the run continues"
        if self.trajectory is None:
            raise ValueError(f"{self.path}: {what}")
        lines = lines_again(
            self.trajectory,
            behind=kept.step,
            until=state.step,
            every=self.every,
            timestep=integrator.timestep,
            own=[one.name for one in self._own_columns(integrator, state)],
            device=state.system.cell.device,
        )
        try:
            first = next(lines)
        except ValueError as error:
            raise ValueError(f"{self.path}: {what}; {error}") from None
        log.warning(
            "%s: %s: lines up to step %d are written again from %s",
            *(self.path, what, expected, self.trajectory.name),
        )
        return chain([first], lines)

    def _open(self, state: MDState, integrator: Integrator, kept: Intact) -> None:
        self._timestep, self.summary = integrator.timestep, kept.summary
        self._own = self._own_columns(integrator, state)
        self._columns = columns_of(state.system.n_systems, _heads(self._own))
        self._file = Appended(self.path, kept.size)
        if kept.size == 0:
            self._file.append(line(self._columns))
            folder_to_disk(self.path.resolve().parent)

    def __call__(self, state: MDState) -> None:
        """Write a state, unless it was written last.

        Raises:
            NoSpaceLeft: the disk is full; nothing of the state is written.
        """
        time = state.step * self._timestep / units.fs
        last = self.summary.last
        if self._file is None or (last is not None and last["time_fs"] == time):
            return
        kinetic, conserved = state.kinetic_energy, state.conserved
        numbers = (state.temperature, state.energy, kinetic, state.energy + kinetic)
        own = (one.of(state) for one in self._own)
        columns = [*numbers, volume(state.system.cell), conserved, *own]
        rows = torch.stack(columns, dim=1).tolist()
        several = len(rows) > 1
        self._write([(k, time, *row) if several else (time, *row) for k, row in enumerate(rows)])

    def _write(self, lines: list[tuple[float, ...]]) -> None:
        """Write the lines of one step, all or none."""
        assert self._file is not None
        self._file.append(b"".join(map(line, lines)))
        for values in lines:
            self.summary.add(dict(zip(self._columns, values, strict=True)))

    def flush(self) -> None:
        """Bring all lines so far to disk; restore the file if it has been removed."""
        if self._file is not None:
            self._file.restore()
            self._file.to_disk()

    def end(self) -> None:
        """Close the file."""
        try:
            self.flush()
        finally:
            self._close()
            if self._claim is not None:
                self._claim.release()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _heads(columns: Iterable[Column]) -> list[str]:
    return [one.in_log for one in columns]
