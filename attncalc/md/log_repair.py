"""Lines of a log, restored from the trajectory of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from ase import units
from numpy.typing import NDArray

from attncalc.md.h5md import OBSERVABLES, clock, described, opened

# frames read at once
BLOCK = 4096


def lines_again(
    trajectory: Path,
    *,
    behind: int,
    until: int,
    every: int,
    timestep: float,
    own: Sequence[str],
    device: torch.device,
) -> Iterator[list[tuple[float, ...]]]:
    """Yield the lines of each step, with the numbers that the run has written.

    Args:
        trajectory: of the run.
        behind: step of the last line that still exists; -1: there is none.
        until: the step from which the run continues.
        every: steps between lines.
        timestep: ASE time units.
        own: observables of the run in its last columns.
        device: of the run, on which volumes are computed.

    Raises:
        FileNotFoundError: there is no such trajectory.
        ValueError: a step is missing in it, or it is damaged; raised before the first lines.
    """
    with opened(trajectory) as file:
        systems = described(file)
        steps, _ = clock(file, systems)
        _check_steps(steps, behind, until, every)
        for first in range(0, len(steps), BLOCK):
            some = slice(first, first + BLOCK)
            wanted = _wanted(steps[some], first, behind, until, every)
            if not wanted.any():
                continue
            values = [
                [file[f"{one.observables}/{name}/value"][some] for name in (*OBSERVABLES, *own)]
                for one in systems
            ]
            cells = np.stack(
                [file[f"{one.particles}/box/edges/value"][some] for one in systems], axis=1
            )
            volumes: list[float] = []
            for n in np.flatnonzero(wanted):
                if not volumes or not np.array_equal(cells[n], cells[n - 1]):
                    volumes = volume(torch.from_numpy(cells[n]).to(device)).tolist()
                time = int(steps[first + n]) * timestep / units.fs
                lines = []
                for k, of_system in enumerate(values):
                    potential, kinetic, conserved, kelvin, *others = (
                        float(value[n]) for value in of_system
                    )
                    numbers = (kelvin, potential, kinetic, potential + kinetic, volumes[k])
                    system = (k,) if len(systems) > 1 else ()
                    lines.append((*system, time, *numbers, conserved, *others))
                yield lines


def volume(cell: torch.Tensor) -> torch.Tensor:
    """Return volumes [n_systems] Å³ of cells [n_systems, 3, 3]; NaN without three vectors."""
    volumes = torch.linalg.det(cell).abs()
    return torch.where(volumes > 0, volumes, torch.nan)


def _wanted(steps: NDArray, first: int, behind: int, until: int, every: int) -> NDArray:
    """Mark frames whose line is lost, in a block that begins with frame `first`."""
    chosen = (steps > behind) & (steps <= until) & (steps % every == 0)
    if first == 0 and behind < 0:
        chosen[0] = True
    return chosen


def _check_steps(steps: h5py.Dataset, behind: int, until: int, every: int) -> None:
    reached = behind
    for first in range(0, len(steps), BLOCK):
        some = steps[first : first + BLOCK]
        for step in some[_wanted(some, first, behind, until, every)].tolist():
            if reached >= 0 and step != reached - reached % every + every:
                break
            reached = step
    if reached < until - until % every:
        lacking = reached - reached % every + every if reached >= 0 else 0
        raise ValueError(f"it does not hold step {lacking} either")
