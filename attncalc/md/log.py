"""`Log`: one line of numbers every so many steps, as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import IO

import torch
from ase import units

from attncalc.files import Claim, refuse_existing, write_atomically
from attncalc.md.integrators import Integrator
from attncalc.md.state import MDState

# of every run, in front
COLUMNS = ("time_fs", "temperature_K", "potential_eV", "kinetic_eV", "total_eV", "volume_A3")
CONSERVED = "conserved_eV"
# of a committee: the largest standard deviation over its members of the force on an atom
SPREAD = "force_spread_eV_A"


class Log:
    """Time, temperature, energies and the conserved quantity of every system, as CSV.

    A batch has a column `system` in front, and a line for each.

    Args:
        path: new file.
        every: steps.

    Attributes:
        rows: what has been written.
    """

    def __init__(self, path: str | Path, *, every: int = 10) -> None:
        self.path, self.every = Path(path), every
        self.rows: list[dict[str, float]] = []
        self._file: IO[str] | None = None
        self._timestep = 0.0
        self._claim: Claim | None = None

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite, and start.

        Raises:
            FileExistsError: the file exists.
            FileNotFoundError: its folder does not.
            BlockingIOError: another run is writing it.
        """
        refuse_existing(self.path)
        self._claim = Claim(self.path)
        self._open(state, integrator)

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Go on behind this state; lines beyond it, and one that was cut off, are dropped.

        Raises:
            BlockingIOError: another run is writing it.
            FileNotFoundError: there is no such file.
            ValueError: it is not the log of this run up to this state; it stays as it is.
        """
        claim = Claim(self.path)
        try:
            self.rows = self._rows_before(state, integrator)
        except BaseException:
            claim.release()
            raise
        self._claim = claim
        self._open(state, integrator)

    def _rows_before(self, state: MDState, integrator: Integrator) -> list[dict[str, float]]:
        """Those of the file that stay."""
        now = state.step
        kept: list[dict[str, float]] = []
        with open(self.path, newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        columns = self._columns(state)
        if header != list(columns):
            raise ValueError(f"{self.path}: not the log of this run (its columns are others)")
        for number, line in enumerate(lines, start=2):
            try:
                row = {
                    name: int(value) if name == "system" else float(value)
                    for name, value in zip(columns, line, strict=True)
                }
            except ValueError:
                if number == len(lines) + 1:  # a killed run cuts off the last one
                    break
                raise ValueError(f"{self.path}: line {number} is damaged") from None
            step = round(row["time_fs"] * units.fs / integrator.timestep)
            # what is no multiple was written only because the run was stopped there
            if step <= now and (step % self.every == 0 or not kept):
                kept.append(row)
        expected = now - now % self.every
        reached = round(kept[-1]["time_fs"] * units.fs / integrator.timestep) if kept else -1
        if reached < expected:
            raise ValueError(f"{self.path}: ends before step {expected}, where the run goes on")
        return kept

    @staticmethod
    def _columns(state: MDState) -> tuple[str, ...]:
        system = ("system",) if state.system.n_systems > 1 else ()
        spread = () if state.spread is None else (SPREAD,)
        return (*system, *COLUMNS, CONSERVED, *spread)

    def _open(self, state: MDState, integrator: Integrator) -> None:
        self._timestep = integrator.timestep
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self._columns(state))
        table.writeheader()
        table.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())
        self._file = open(self.path, "a", newline="")  # noqa: SIM115 (open until `end`)

    def __call__(self, state: MDState) -> None:
        """Write a state, unless it is the last one written."""
        time = _time(state, self._timestep)
        if self._file is None or (self.rows and self.rows[-1]["time_fs"] == time):
            return
        volume = torch.linalg.det(state.system.cell).abs()
        volume = torch.where(volume > 0, volume, torch.nan)
        kinetic, conserved = state.kinetic_energy, state.conserved
        numbers = (state.temperature, state.energy, kinetic, state.energy + kinetic, volume)
        spread = () if state.spread is None else (state.spread,)
        lines = torch.stack([*numbers, conserved, *spread], dim=1).tolist()
        columns, several = self._columns(state), len(lines) > 1
        rows = [(k, time, *line) if several else (time, *line) for k, line in enumerate(lines)]
        new = [dict(zip(columns, row, strict=True)) for row in rows]
        csv.DictWriter(self._file, list(new[0])).writerows(new)
        self._file.flush()
        self.rows += new

    def flush(self) -> None:
        """Every line is flushed when it is written."""

    def end(self) -> None:
        """Close."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._claim is not None:
            self._claim.release()


def _time(state: MDState, timestep: float) -> float:
    """fs."""
    return state.step * timestep / units.fs
