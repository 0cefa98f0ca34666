"""Whole steps of dynamics in fixed tensors, recorded once and then replayed.

On a GPU a step of a small molecule is a hundred kernels of a few microseconds each, and Python
takes longer to launch them than they run. Therefore everything that a step reads and writes,
including the number of the step, stays in the same tensors, and the whole step is one graph of
kernels. States are copied in before a chunk of steps, and out after it. Once a neighbour list may
miss a pair, the remaining steps of a chunk leave the state as it is: no valid step is lost.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attncalc.md.state import MDState
from attncalc.recording import Recorder
from attncalc.result import ROUNDING, Result
from attncalc.system import System

if TYPE_CHECKING:
    from attncalc.md.force import Force
    from attncalc.md.integrator import Integrator

log = logging.getLogger(__name__)

# recorded steps that are compared with ordinary ones
PROBED = 2
# numbers: every tensor begins at a multiple, since kernels are compiled for aligned addresses
ALIGNMENT = 32
# how names of tensors of a state's system begin
SYSTEM = "system."
# Å, eV: error allowed then in positions, cells and heat per atom: errors of forces hardly matter
SAME = 1e-6


class _Buffers:
    """Fixed tensors of a state for recorded steps, and a step that reads and writes them.

    They have no reference to the recording, which refers to them: its memory is freed as soon as it
    is dropped.
    """

    def __init__(self, integrator: Integrator, force: Force, first: MDState) -> None:
        self.integrator, self.force = integrator, force
        self.number = torch.zeros((), dtype=torch.int64, device=force.device)
        self.doubles, views = _in_one_row(
            {name: one for name, one in _named(first).items() if one.dtype == torch.float64}
        )
        self.gaps = [view.gap for view in views.values()]
        self.state = _copied(first, {name: view.tensor for name, view in views.items()})
        self.state = self.state.replace(step=self.number)
        self.stale = torch.zeros((), dtype=torch.bool, device=force.device)
        self.checks_lists = torch.ones_like(self.stale)
        self.changing: list[str] = []  # names of tensors that a step replaces, known after one
        self.take_in(first)

    def step(self) -> None:
        """Take one step in the buffers, unless a list may miss a pair now or did before."""
        stale: list[Tensor] = []

        def force(system: System) -> Result:
            result, may_miss = self.force.without_check(system)
            stale.append(may_miss)
            return result

        old, new = _named(self.state), _named(self.integrator.step(self.state, force))
        self.stale.logical_or_(functools.reduce(torch.logical_or, stale) & self.checks_lists)
        self.changing = [name for name in old if new[name] is not old[name]]
        rows = [new[name].reshape(-1) for name in old if old[name].dtype == torch.float64]
        aligned = [part for pair in zip(rows, self.gaps, strict=True) for part in pair]
        # two kernels for all numbers
        torch.where(self.stale, self.doubles, torch.cat(aligned), out=self.doubles)
        for name in self.changing:
            if old[name].dtype != torch.float64:
                torch.where(self.stale, old[name], new[name], out=old[name])
        self.number.add_(~self.stale)

    def take_in(self, state: MDState) -> None:
        """Copy a state into the buffers."""
        torch._foreach_copy_(_tensors(self.state), _tensors(state))
        self.number.fill_(state.step)
        self.stale.fill_(False)

    def taken_out(self, first: MDState, n: int) -> MDState:
        """Return a copy of the state in the buffers, n steps after `first`."""
        copies = {name: _named(self.state)[name].clone() for name in self.changing}
        return _with(first, copies).replace(step=first.step + n)


class Recorded:
    """Recorded step of an integrator, for states of equal shapes and lists in fixed arrays.

    Args:
        integrator: of the steps.
        force: with lists for `first`; evaluations by these lists are recorded.
        first: a state.
        recorder: `CudaGraph` or a substitute.
    """

    def __init__(
        self, integrator: Integrator, force: Force, first: MDState, recorder: Recorder
    ) -> None:
        self.integrator, self._force = integrator, force
        self._listed = [one.listed for one in force.lists]
        self._buffers = _Buffers(integrator, force, first)
        self._replay = recorder(self._buffers.step)

    def fits(self, integrator: Integrator, force: Force, state: MDState) -> bool:
        """Return True if this step can be used for such states and the present lists of `force`."""
        mine = self._buffers.state
        return (
            self.integrator == integrator
            and all(a is b.listed for a, b in zip(self._listed, force.lists, strict=True))
            and mine.seed == state.seed
            and [(t.shape, t.dtype, t.device) for t in _tensors(mine)]
            == [(t.shape, t.dtype, t.device) for t in _tensors(state)]
        )

    def advance(self, state: MDState, n: int) -> MDState:
        """Return the state n steps later, or the last one for which all lists were valid.

        The host waits for the device once, at the end.
        """
        done = self._replayed(state, n)
        return self._buffers.taken_out(state, done) if done else state

    def deviation(self, state: MDState) -> float:
        """Return the largest difference of recorded steps from ordinary ones; 1 is allowed."""
        plain = state
        for _ in range(PROBED):
            plain = self.integrator.step(plain, lambda system: self._force.without_check(system)[0])
        self._buffers.checks_lists.fill_(False)
        self._replayed(state, PROBED)
        self._buffers.checks_lists.fill_(True)
        ours = self._buffers.taken_out(state, PROBED)
        rounding = ROUNDING[self._force.dtype]
        scale = plain.forces.abs().amax().clamp(min=1.0)
        n_atoms = plain.per_system(torch.ones_like(plain.masses))
        off = [
            (ours.forces - plain.forces).abs().amax() / scale / rounding,
            ((ours.energy - plain.energy) / n_atoms).abs().amax() / scale / rounding,
            (ours.system.positions - plain.system.positions).abs().amax() / SAME,
            (ours.system.cell - plain.system.cell).abs().amax() / SAME,
            ((ours.heat - plain.heat) / n_atoms).abs().amax() / SAME,
        ]
        return float(torch.stack(off).amax())  # NaN if any is

    def _replayed(self, state: MDState, n: int) -> int:
        """Take n steps in the buffers; return how many were taken while all lists were valid."""
        self._buffers.take_in(state)
        for _ in range(n):
            self._replay()
        return int(self._buffers.number) - state.step


def recorded_steps(integrator: Integrator, force: Force, state: MDState) -> Recorded | None:
    """Return recorded steps for such a state; None if nothing is recorded.

    They are compared with ordinary steps. If recording fails or they differ, a warning is logged,
    and nothing is recorded from then on.
    """
    if force.recorder is None:
        return None
    if force.recorded is None or not force.recorded.fits(integrator, force, state):
        force.recorded = None  # frees its memory first
        try:
            with torch.cuda.device_of(state.momenta):
                one = Recorded(integrator, force, state, force.recorder)
            off = one.deviation(state)
            if not off <= 1:
                raise RuntimeError(f"recorded steps are off by {off:.1e} of what rounding may do")
        except Exception as reason:  # no error of recording may stop the run
            log.warning("steps are not recorded here and take longer (%s)", reason)
            force.recorder = None
            return None
        force.recorded = one
    return force.recorded


def _named(state: MDState) -> dict[str, Tensor]:
    """Return all tensors of a state by name, except the number of its step."""
    own = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    own.pop("step", None)
    return own | {f"{SYSTEM}{name}": value for name, value in vars(state.system).items()}


def _tensors(state: MDState) -> list[Tensor]:
    return list(_named(state).values())


class _View(NamedTuple):
    """Part of a row of numbers that has the shape of a tensor, and the unused numbers behind it."""

    tensor: Tensor
    gap: Tensor


def _in_one_row(tensors: dict[str, Tensor]) -> tuple[Tensor, dict[str, _View]]:
    """Return a row of numbers, and views of it with the shapes of these tensors, aligned."""
    sizes = [one.numel() for one in tensors.values()]
    gaps = [-size % ALIGNMENT for size in sizes]
    row = next(iter(tensors.values())).new_zeros(sum(sizes) + sum(gaps))
    views, start = {}, 0
    for (name, one), size, gap in zip(tensors.items(), sizes, gaps, strict=True):
        end = start + size
        views[name] = _View(row[start:end].view(one.shape), row[end : end + gap])
        start = end + gap
    return row, views


def _copied(state: MDState, others: dict[str, Tensor]) -> MDState:
    """Return a copy of a state, in which `others` are used instead of new tensors, by name."""
    named = _named(state).items()
    new = {name: others[name] if name in others else tensor.clone() for name, tensor in named}
    return _with(state, new)


def _with(state: MDState, tensors: dict[str, Tensor]) -> MDState:
    """Return a state with other tensors, by the names of `_named`."""
    own: dict[str, Any] = {}
    of_system: dict[str, Any] = {}
    for name, tensor in tensors.items():
        part = of_system if name.startswith(SYSTEM) else own
        part[name.removeprefix(SYSTEM)] = tensor
    return state.replace(system=replace(state.system, **of_system), **own)
