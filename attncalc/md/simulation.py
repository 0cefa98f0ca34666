"""`run`: dynamics in chunks of steps, with callbacks, and a stop if it explodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from ase import units
from torch import Tensor

from attncalc.md.callback import Callback
from attncalc.md.checkpoint import Checkpoint
from attncalc.md.cuda_graph import recorded_steps
from attncalc.md.force import Force, Function, force_of
from attncalc.md.integrator import Integrator
from attncalc.md.state import MDState
from attncalc.md.velocities import MOST_STEPS
from attncalc.md.with_ase import ADVICE, no_start
from attncalc.neighbors import ImpossiblePositions
from attncalc.nn.options import whole_number
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.signals import ctrl_c_in_loops, finished_before_ctrl_c
from attncalc.system import System

# steps between two checks, by device: the host waits for a GPU then, on a CPU it costs little
CHUNK = {"cpu": 20, "cuda": 50}
# one of so many lists is used longer by this fraction, to learn if lists last longer now
LISTS_BETWEEN_TRIALS, LONGER = 10, 1 / 8
# eV/Å: structures that a model describes have smaller forces
EXPLODING_FORCE = 1e3


def run(
    integrator: Integrator,
    potential: Potential | Force | Function,
    state: MDState,
    n_steps: int,
    *,
    callbacks: Sequence[Callback] = (),
    chunk: int | None = None,
) -> MDState:
    """Take `n_steps` steps from `state`.

    Steps are done in chunks. On a GPU the host does not wait for the device within a chunk: the
    neighbour list is checked at its end. A chunk in which an atom moved too far is discarded, and
    repeated with a new list and in halves. To make this rare, a list is rebuilt after as many steps
    as earlier lists of this run were valid. After every chunk energies, temperatures, forces and
    the conserved quantity are checked.

    Args:
        integrator: one of `attncalc.md.integrators`.
        potential: the model, its `Evaluator` (which several runs may share, one after the other),
            or any function `System -> Result`.
        state: from `integrator.init` or an earlier run; or from a checkpoint: then callbacks
            continue the files of its run, and its limit of temperature is kept.
        n_steps: number of steps.
        callbacks: called in this order, but checkpoints after all others, so that their files are
            up to date. Only the first state is saved by checkpoints first: from then on the run can
            be resumed. A run that fails before all callbacks have seen it leaves no files.
        chunk: steps; None chooses by the device.

    Returns:
        The last state: `n_steps` later, unless a callback stops the run (`Callback.stops`).

    Raises:
        FloatingPointError: the run exploded, and callbacks have seen the last good state; or the
            first state is unusable, and nothing has begun.
        NoSpaceLeft: the disk is full; files are as they were after the last step they have.
        ValueError: a number is out of range, or not an integer.
    """
    whole_number("n_steps", n_steps, 0, MOST_STEPS)
    for name, value in (("chunk", chunk), *(("every", one.every) for one in callbacks)):
        if value is not None:
            whole_number(name, value, 1, MOST_STEPS)
    force = force_of(potential, state.system.device)
    force.follow(state.system)
    callbacks = sorted(callbacks, key=lambda one: isinstance(one, Checkpoint))
    resumed = state.limit is not None
    limit = integrator.highest_temperature(state) if state.limit is None else state.limit
    state = state.replace(limit=limit)
    if what := _insane(state, limit, state):
        raise no_start(what)
    last = state.step + n_steps
    longest = CHUNK[force.device.type] if chunk is None else chunk
    lifetime = _ListLifetime()
    begun: list[Callback] = []
    seen = False  # whether callbacks have seen a state
    try:
        for callback in callbacks:
            begun.append(callback)
            (callback.resume if resumed else callback.begin)(state, integrator)
        with finished_before_ctrl_c():
            if not resumed:
                n_others = sum(not isinstance(one, Checkpoint) for one in callbacks)
                checkpoints_first = [*callbacks[n_others:], *callbacks[:n_others]]
                _call(checkpoints_first, state, at_all_costs=True)
            elif state.step == 0:  # stopped after the checkpoint, perhaps before all else
                _call(callbacks, state, at_all_costs=True)
            seen = True
        while state.step < last and not any(one.stops for one in callbacks):
            to_go = min(_steps_to_next(callbacks, state.step, last), longest)
            with ctrl_c_in_loops():
                try:
                    if not force.checks_list_every_step:
                        to_go = lifetime.prepare(force, state.system, to_go)
                except ImpossiblePositions as error:
                    what = str(error)
                else:
                    state, what = _advance(integrator, force, state, to_go, limit, lifetime)
            if what:
                _call(callbacks, state, at_all_costs=True)
                raise FloatingPointError(_exploded(state, integrator, what))
            _call(callbacks, state, at_all_costs=state.step == last)
            if any(one.stops for one in callbacks):
                _call(callbacks, state, at_all_costs=True)
    except KeyboardInterrupt:
        with finished_before_ctrl_c():  # a second Ctrl-C must not lose results
            if seen:
                _call(callbacks, state, at_all_costs=True)
            _end(begun, and_forget=not (seen or resumed))
        raise
    finally:
        with finished_before_ctrl_c():
            _end(begun, and_forget=not (seen or resumed))
    return state.as_first()


def _end(begun: list[Callback], *, and_forget: bool) -> None:
    """End all callbacks, even if one fails."""
    with ExitStack() as ends:
        while begun:
            callback = begun.pop()
            if and_forget:
                ends.callback(callback.forget)
            ends.callback(callback.end)


def _call(callbacks: Sequence[Callback], state: MDState, *, at_all_costs: bool) -> None:
    """Call the callbacks that are due."""
    due = [one for one in callbacks if at_all_costs or state.step % one.every == 0]
    if not due:
        return
    with finished_before_ctrl_c():  # no file is left half-written, and no frame written twice
        for callback in due:
            if isinstance(callback, Checkpoint):
                if callback.waits and not at_all_costs:
                    continue
                for other in callbacks:
                    other.flush()
            callback(state)


def _steps_to_next(callbacks: Sequence[Callback], step: int, last: int) -> int:
    return min([last - step, *(one.every - step % one.every for one in callbacks)])


class _ListLifetime:
    """Number of steps for which a neighbour list is valid, learnt from earlier lists."""

    def __init__(self) -> None:
        self.age = 0  # steps for which the present list was valid so far
        self.is_fresh = False  # True: it was built for the present state
        self.lasted: int | None = None  # None: no list has ended yet
        self.before_trial: int | None = None  # learnt number, while a larger one is tried
        self.n_renewed = 0

    def prepare(self, force: Force, system: System, n: int) -> int:
        """Build a new list if this one may end now; return the number of steps to take, at most n.

        Raises:
            ImpossiblePositions: no list can be built for these positions.
        """
        if self.lasted is None:
            return n
        if self.age >= self.lasted:
            self.renew(force, system)
            self.before_trial = None
            self.n_renewed += 1
            if self.n_renewed % LISTS_BETWEEN_TRIALS == 0:
                self.before_trial = self.lasted
                self.lasted += max(int(LONGER * self.lasted), 1)
        return min(n, self.lasted - self.age)

    def renew(self, force: Force, system: System) -> None:
        """Build a new list."""
        force.renew(system)
        self.age, self.is_fresh = 0, True

    def held(self, n: int) -> None:
        """Note that the list was valid for n more steps."""
        self.age += n
        self.is_fresh = False
        if self.lasted is not None:
            self.lasted = max(self.lasted, self.age)

    def ended(self, n: int) -> None:
        """Note that the list ended within the next n steps."""
        if self.before_trial is not None and self.before_trial > self.age:
            self.lasted = self.before_trial
        else:
            self.lasted = self.age or max(n // 2, 1)
        self.before_trial = None


def _advance(
    integrator: Integrator,
    force: Force,
    first: MDState,
    n: int,
    limit: Tensor,
    lifetime: _ListLifetime,
) -> tuple[MDState, str]:
    """Return the state n steps later and "", or the last good state and what was wrong after it."""
    try:
        state = _steps(integrator, force, first, n)
        if state is None:  # an atom moved too far for the list
            lifetime.ended(n)
            if not lifetime.is_fresh:  # again, with a new list
                lifetime.renew(force, first.system)
                state = _steps(integrator, force, first, n)
                if state is None:
                    lifetime.ended(n)
        what = "" if state is None else _insane(state, limit, first)
    except ImpossiblePositions as error:
        state, what = None, str(error)
    if state is not None and not what:
        lifetime.held(n)
        return state, ""
    if n == 1:
        return first, what
    half, what = _advance(integrator, force, first, n // 2, limit, lifetime)
    if what:
        return half, what
    return _advance(integrator, force, half, n - n // 2, limit, lifetime)


def _steps(integrator: Integrator, force: Force, state: MDState, n: int) -> MDState | None:
    """Return the state n steps later; None if a neighbour list was not valid on the way."""
    if force.checks_list_every_step or n == 1:
        for _ in range(n):
            state = integrator.step(state, force)
        return state
    if (replayed := recorded_steps(integrator, force, state)) is not None:
        return replayed.advance(state, n)
    stale: list[Tensor] = []

    def unchecked(system: System) -> Result:
        result, may_miss = force.without_check(system)
        stale.append(may_miss)
        return result

    for _ in range(n):
        state = integrator.step(state, unchecked)
    return None if bool(torch.stack(stale).any()) else state


def _insane(state: MDState, limit: Tensor, before: MDState) -> str:
    """Describe what is wrong with a state; "" if nothing is.

    Args:
        state: to be checked.
        limit: [n_systems] K: no system may be hotter.
        before: the state checked last. The conserved quantity, kinetic and potential energy less
            heat, may not have changed by more than k_B `limit` times the square root of the degrees
            of freedom. At a far too large timestep atoms fly apart within one step, and a
            thermostat that cools them again leaves no other trace.
    """
    kelvin, force = state.temperature_of_all_motion, state.forces.abs().amax()
    total = (kelvin + state.energy).sum() + force
    leap = state.conserved - before.conserved
    ratio = (leap / (units.kB * limit * state.n_dof.sqrt())).abs().amax()
    looked_at = torch.stack([total, (kelvin - limit).amax(), force, ratio])
    total, beyond, largest, ratio = looked_at.tolist()
    if not math.isfinite(total):
        return "energy, velocities or forces are no longer finite"
    if beyond > 0:  # again without drift and rotation, which takes longer
        temperature = state.temperature
        if bool(((temperature - limit) > 0).any()):
            hottest = float(temperature[(temperature - limit).argmax()])
            return f"the temperature reached {hottest:.0f} K"
    if largest > EXPLODING_FORCE:
        return f"a force reached {largest:.0f} eV/Å"
    if ratio > 1:
        lost = float(leap[leap.abs().argmax()])
        return f"energy is not conserved, it changed by {lost:+.1f} eV"
    return ""


def _exploded(state: MDState, integrator: Integrator, what: str) -> str:
    time = state.step * integrator.timestep / units.fs
    where = f"stopped at {time:.1f} fs: {what}"
    return f"{where}; what was written ends with the last sane state. {ADVICE}"
