"""Columns of the log of a run, a CSV file, and functions to read it in parts."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

# first columns, of every run
COLUMNS = ("time_fs", "temperature_K", "potential_eV", "kinetic_eV", "total_eV", "volume_A3")
CONSERVED = "conserved_eV"
# of a committee: the largest standard deviation over its members of the force on an atom
SPREAD = "force_spread_eV_A"
# of a model with known training environments: the largest of the atoms
NOVELTY = "novelty"
# eV per atom, of the conserved quantity
FLUCTUATION = 5e-3
# in a run shorter than this, fs, a fluctuation looks like a drift: so many times more is needed
SHORTEST, MORE = 500.0, 10.0
# bytes; a longer line is not of a log
LONGEST_LINE = 1000
# bytes read at once to count lines
BLOCK_BYTES = 1 << 20

Row = dict[str, float]


@dataclass
class LogSummary:
    """Summary of a log for the end of a run, without its lines.

    Attributes:
        n_rows: number of lines below the header.
        last: the last line, by column; None without lines.
        widest: the line with the largest spread of a committee, if any.
        furthest: the line with the largest novelty, if any.
        ends: first and last time [fs] and conserved quantity [eV] of each system, by number.
    """

    n_rows: int = 0
    last: Row | None = None
    widest: Row | None = None
    furthest: Row | None = None
    ends: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count one more line."""
        self.n_rows, self.last = self.n_rows + 1, row
        if SPREAD in row and (self.widest is None or row[SPREAD] > self.widest[SPREAD]):
            self.widest = row
        if NOVELTY in row and (self.furthest is None or row[NOVELTY] > self.furthest[NOVELTY]):
            self.furthest = row
        if CONSERVED in row:
            now = row["time_fs"], row[CONSERVED]
            system = int(row.get("system", 0))
            self.ends[system] = (*self.ends.get(system, now)[:2], *now)

    def drift(self, n_atoms: Sequence[int]) -> float:
        """Return the largest drift of the conserved quantity of a system, eV per atom and ps.

        Only the time step changes this quantity. A change of less than `FLUCTUATION`, or `MORE`
        times that in a run shorter than `SHORTEST`, counts as none, because it also fluctuates.

        Args:
            n_atoms: number of atoms of each system.
        """
        largest = 0.0
        for system, (began, before, ended, after) in self.ends.items():
            change = (after - before) / n_atoms[system]
            least = FLUCTUATION * (MORE if ended - began < SHORTEST else 1.0)
            if abs(change) > least and abs(change) > abs(largest) * (ended - began) / 1000:
                largest = 1000 * change / (ended - began)
        return largest


def columns_of(n_systems: int, own: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a run by the integrators of attncalc; `own` are the last."""
    system = ("system",) if n_systems > 1 else ()
    return (*system, *COLUMNS, CONSERVED, *own)


def line(values: Sequence[object]) -> bytes:
    """Return a line of numbers, or of column names, as the module csv writes it."""
    return (",".join(map(str, values)) + "\r\n").encode()


@dataclass
class Intact:
    """Beginning of a log that can be kept.

    Attributes:
        size: bytes of it, with the header; 0 if that is lost.
        step: of its last line; -1 without lines.
        summary: of these lines.
        damage: what is wrong after it; empty if the file just ends, or was cut off within a line.
        now: lines of the step at which the run continues, also if they are not kept.
    """

    size: int = 0
    step: int = -1
    summary: LogSummary = field(default_factory=LogSummary)
    damage: str = ""
    now: list[Row] = field(default_factory=list)


def intact_part(
    file: BinaryIO, columns: Sequence[str], n_systems: int, *, now: int, every: int, timestep: float
) -> Intact:
    """Find the part of its log that a run keeps if it continues at a step.

    Lines beyond the step are left out, and so is a last one whose step is not a multiple of
    `every`: it was written only because the run was stopped there.

    Args:
        file: the log, open at its beginning.
        columns: of the run.
        n_systems: of the run.
        now: step at which it continues.
        every: steps between lines.
        timestep: fs.

    Raises:
        ValueError: the file has other columns, or not a line every `every` steps.
    """
    header = line(columns)
    found = file.read(len(header))
    if found != header:
        # after a power cut, content that was not on disk yet consists of zeros
        if not header.startswith(found.rstrip(b"\0")):
            raise ValueError("not the log of this run (its columns are others)")
        return Intact(damage="line 1 is damaged")
    kept = Intact(size=len(header))
    waiting = False  # whether the line before was not kept; only the last one of a run may be so
    end, number, step = kept.size, 2, -1
    while first := file.readline(LONGEST_LINE):
        lines = [first, *(file.readline(LONGEST_LINE) for _ in range(n_systems - 1))]
        try:
            rows = [_row(text, columns, k) for k, text in enumerate(lines)]
        except ValueError:
            if lines[-1].endswith(b"\n") or file.read(1):  # else cut off by the end of the run
                kept.damage = f"line {number} is damaged"
            break
        before, step = step, round(rows[0]["time_fs"] / timestep)
        if step <= before or any(row["time_fs"] != rows[0]["time_fs"] for row in rows):
            kept.damage = f"line {number} is damaged"
            break
        if step > now:
            break
        if waiting or 0 <= before < step - every:
            raise ValueError(
                f"it has a line every {step - before} steps, the run continues with one every "
                f"{every}"
            )
        number, end = number + n_systems, end + sum(map(len, lines))
        kept.now = rows if step == now else []
        if step % every == 0 or before < 0:
            for row in rows:
                kept.summary.add(row)
            kept.size, kept.step = end, step
        else:
            waiting = True
    return kept


def _row(text: bytes, columns: Sequence[str], system: int) -> Row:
    if not text.endswith(b"\r\n"):
        raise ValueError("no end of the line")
    row = {
        name: int(value) if name == "system" else float(value)
        for name, value in zip(columns, text[:-2].split(b","), strict=True)
    }
    if row.get("system", system) != system or not math.isfinite(row["time_fs"]):
        raise ValueError("not the next line")
    return row


def count_rows(path: str | Path) -> int:
    """Return the number of lines of a log below its header."""
    with open(path, "rb") as file:
        blocks: Iterator[bytes] = iter(lambda: file.read(BLOCK_BYTES), b"")
        return max(sum(block.count(b"\n") for block in blocks) - 1, 0)


def read_log(path: str | Path, *, at_most: int | None = None, n_systems: int = 1) -> list[Row]:
    """Read the lines of a log, or those of evenly spaced times that include the last.

    Args:
        path: file by `Log` or `run_with_ase`.
        at_most: largest number of times; None reads all.
        n_systems: number of systems of the batch; each time has a line for each.

    Returns:
        A dictionary for every line, by column.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is damaged.
    """
    n_times = 0 if at_most is None else count_rows(path) // n_systems
    stride = 1 if at_most is None else max(1, -(-n_times // at_most))
    first = max(n_times - 1, 0) % stride
    with open(path, newline="") as file:
        header = file.readline().strip().split(",")
        chosen = (line for k, line in enumerate(file) if k // n_systems % stride == first)
        try:
            return [dict(zip(header, map(float, row), strict=True)) for row in csv.reader(chosen)]
        except ValueError as error:
            raise ValueError(f"{path}: a line is damaged ({error})") from None
