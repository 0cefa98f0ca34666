"""`run`: dynamics in chunks of steps, with callbacks, and a stop if it explodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from ase import units
from torch import Tensor

from attncalc.md.callback import Callback
from attncalc.md.checkpoint import Checkpoint
from attncalc.md.cuda_graph import recorded_steps
from attncalc.md.force import Force, Function, force_of
from attncalc.md.integrator import Integrator
from attncalc.md.state import MDState
from attncalc.md.velocities import MOST_STEPS, n_conserved
from attncalc.md.with_ase import ADVICE, no_start
from attncalc.neighbors import ImpossiblePositions
from attncalc.options import whole_number
from attncalc.potential import Potential
from attncalc.result import Result
from attncalc.signals import ctrl_c_in_loops, finished_before_ctrl_c
from attncalc.system import System, is_list

# steps between two checks, by device: the host waits for a GPU then, on a CPU it costs little
CHUNK = {"cpu": 20, "cuda": 50}
# a chunk is longer than the rest of a list's expected life, by this part of the whole life
PART_BEYOND = 1 / 8
# eV/Å: structures that a model describes have smaller forces
EXPLODING_FORCE = 1e3
# eV/Å: rounding in single precision is smaller, the difference of two models larger
SAME_FORCE = 2e-3
# what a model may add to a state
OPTIONAL = ("spread", "charges")


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
    neighbour list is checked at its end. If an atom moved too far for the list, the steps before
    are kept, the others are discarded, and the run continues with a new list. To make the latter
    few, chunks end about when lists are expected to end, as earlier lists of this run did. After
    every chunk energies, temperatures, forces and the conserved quantity are checked.

    Args:
        integrator: one of `attncalc.md.integrators`.
        potential: the model, its `Evaluator` (which several runs may share, one after the other),
            or any function `System -> Result`.
        state: from `integrator.init` or an earlier run of such an integrator, of this model or
            another one, whose forces are then replaced; or from a checkpoint:
            then callbacks continue the files of its run, and its limit of temperature is kept.
            It is moved to the device of the model.
        n_steps: number of steps.
        callbacks: called in this order, but checkpoints after all others, so that their files are
            up to date. Only the first state is saved by checkpoints first: from then on the run can
            be resumed. A run that fails before all callbacks have seen it leaves no files.
        chunk: steps; None chooses by the device.

    Returns:
        The last state: `n_steps` later, unless a callback stops the run (`Callback.stops`).

    Raises:
        TypeError: `state` is something else, for example a structure; or `integrator` is a class,
            or one of `callbacks` no `Callback`.
        FloatingPointError: the run exploded, and callbacks have seen the last good state; or the
            first state is unusable, and nothing has begun.
        NoSpaceLeft: the disk is full; files are as they were after the last step they have.
        ValueError: a number is out of range, or not an integer; the state is of another integrator
            or ensemble; or the state of a checkpoint has other forces than the model gives.
    """
    whole_number("n_steps", n_steps, 0, MOST_STEPS)
    if isinstance(integrator, type):
        raise TypeError(f"integrator is the class {integrator.__name__}, not one with parameters")
    callbacks = _listed(callbacks)
    for name, value in (("chunk", chunk), *(("every", one.every) for one in callbacks)):
        if value is not None:
            whole_number(name, value, 1, MOST_STEPS)
    if not isinstance(state, MDState):
        raise TypeError(
            "state must be one that integrator.init(potential, structures) returns, "
            f"got {type(state).__name__}"
        )
    force = force_of(potential, state.system.device)
    if state.system.device != force.device:  # a checkpoint is loaded on the CPU
        state = state.to(force.device)
    force.follow(state.system)
    _require_own_state(integrator, state)
    callbacks = sorted(callbacks, key=lambda one: isinstance(one, Checkpoint))
    resumed = state.limit is not None
    if resumed:
        _require_same_forces(force, state)
    limit = integrator.highest_temperature(state) if state.limit is None else state.limit
    state = state.replace(limit=limit)
    if what := _divergence(state, limit, state):
        raise no_start(what)
    if not resumed:
        state = _with_forces_of(force, state)
        if what := _divergence(state, limit, state):
            raise no_start(what)
    last = state.step + n_steps
    longest = CHUNK[force.device.type] if chunk is None else chunk
    lifetime = _ListLifetime()
    n_others = sum(not isinstance(one, Checkpoint) for one in callbacks)
    checkpoints_first = [*callbacks[n_others:], *callbacks[:n_others]]
    begun: list[Callback] = []
    seen = False  # whether callbacks have seen a state
    try:
        with finished_before_ctrl_c():  # no lock is kept, and no file is cut in part
            for callback in checkpoints_first:  # they refuse a state before files are cut to it
                begun.append(callback)
                callback._is_new = False  # a file of an earlier run must not be forgotten
                (callback.resume if resumed else callback.begin)(state, integrator)
            if not resumed:
                _call(checkpoints_first, state, at_all_costs=True)
            elif state.step == 0 or n_steps == 0 or any(one.stops for one in callbacks):
                # stopped after the checkpoint, perhaps before all else; or its last frame again
                _call(callbacks, state, at_all_costs=True)
            seen = True
        while state.step < last and not any(one.stops for one in callbacks):
            to_go = min(_steps_to_next(callbacks, state.step, last), longest)
            with ctrl_c_in_loops():
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


def _listed(callbacks: Any) -> list[Callback]:
    """Return the callbacks as a list, and refuse everything else."""
    found = list(callbacks) if is_list(callbacks) else []
    wrong = [one for one in found if not isinstance(one, Callback)]
    if wrong or not is_list(callbacks):
        kind = type(wrong[0] if wrong else callbacks).__name__
        raise TypeError(f"callbacks must be a list of md.Callback, got {kind}")
    return found


def _require_own_state(integrator: Integrator, state: MDState) -> None:
    """Refuse a state of another integrator, with other data or degrees of freedom."""
    system = state.system
    of_atoms = torch.zeros_like(state.masses) if state.fixed is None else state.fixed.double()
    held = (state.per_system(of_atoms) > 0).tolist()
    sizes = torch.bincount(system.system_idx, minlength=system.n_systems).tolist()
    periodic = system.pbc.any(1).tolist()
    expected = [
        n_conserved(integrator.thermometer, n, is_periodic, is_held=is_held)
        for n, is_periodic, is_held in zip(sizes, periodic, held, strict=True)
    ]
    if type(state) is not integrator.state_type or state.left_out.tolist() != expected:
        raise ValueError(
            "this state is of another integrator or ensemble: begin with "
            "`integrator.init(potential, state)`, which keeps positions, momenta and masses"
        )


def _with_forces_of(force: Force, state: MDState) -> MDState:
    """Return the state, with new forces if it has those of another model."""
    result = force(state.system)
    anew = state.with_forces(result)
    n_atoms = state.per_system(torch.ones_like(state.masses))
    differs = (
        _largest(anew.forces - state.forces) > SAME_FORCE
        or _largest((anew.energy - state.energy) / n_atoms) > SAME_FORCE
        or any((getattr(anew, k) is None) != (getattr(state, k) is None) for k in OPTIONAL)
    )
    return anew if differs else state


def _largest(values: Tensor) -> float:
    return float(values.abs().amax())


def _require_same_forces(force: Force, state: MDState) -> None:
    """Refuse to continue a run with another model than it had."""
    difference = _largest(force(state.system).forces - state.forces)
    if difference > SAME_FORCE:
        raise ValueError(
            f"forces of the checkpoint differ by {difference:.2g} eV/Å from those of this model or "
            "function: a run continues with the one that it began with"
        )


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
    """Number of steps for which a neighbour list is valid, learnt from the list before."""

    def __init__(self) -> None:
        self.age = 0  # steps for which the present list was valid so far
        self.lasted: int | None = None  # that of the list before; None: no list has ended yet
        self.is_over = False  # True: the present list is not valid for the next step

    def chunk(self, n: int) -> int:
        """Return the number of steps to try, at most n."""
        if self.lasted is None:
            return n
        beyond = max(int(PART_BEYOND * max(self.lasted, self.age)), 2)
        return min(n, max(self.lasted - self.age, 0) + beyond)

    def prepare(self, force: Force, system: System) -> bool:
        """Build a new list if the present one is over; return True if it was.

        Raises:
            ImpossiblePositions: no list can be built for these positions.
        """
        was_over = self.is_over
        if was_over:
            force.renew(system)
            self.is_over = False
        return was_over

    def held(self, done: int, n: int) -> None:
        """Note that the list was valid for `done` of n steps."""
        self.age += done
        if done < n:
            self.lasted, self.age, self.is_over = self.age, 0, True


def _advance(
    integrator: Integrator,
    force: Force,
    first: MDState,
    n: int,
    limit: Tensor,
    lifetime: _ListLifetime,
) -> tuple[MDState, str]:
    """Return a state at most n steps later and "", or the last good one and what was wrong next."""
    n = lifetime.chunk(n)
    state = first
    try:
        is_new = False
        while state is first and not is_new:  # again, if the list was over from the beginning
            is_new = lifetime.prepare(force, first.system)
            state = _steps(integrator, force, first, n)
            lifetime.held(state.step - first.step, n)
        if state is first:  # a new list does not last for one step: a list for every step
            state = integrator.step(first, force)
            lifetime.is_over = False
        what = _divergence(state, limit, first)
    except ImpossiblePositions as error:
        what = str(error)
    if not what:
        return state, ""
    lifetime.age = max(lifetime.age - (state.step - first.step), 0)
    if n == 1:
        return first, what
    half, what = _advance(integrator, force, first, n // 2, limit, lifetime)
    if what:
        return half, what
    return _advance(integrator, force, half, first.step + n - half.step, limit, lifetime)


def _steps(integrator: Integrator, force: Force, first: MDState, n: int) -> MDState:
    """Return the state n steps later, or the last one for which neighbour lists were valid."""
    if force.checks_list_every_step or n == 1:
        state = first
        for _ in range(n):
            state = integrator.step(state, force)
        return state
    if (replayed := recorded_steps(integrator, force, first)) is not None:
        return replayed.advance(first, n)
    state, last = first, first.step + n
    while state.step < last:
        states = [state]
        stale: list[Tensor] = []

        def unchecked(system: System, stale: list[Tensor] = stale) -> Result:
            result, may_miss = force.without_check(system)
            stale.append(may_miss)
            return result

        n = min(last - state.step, CHUNK["cuda"])  # all states are kept until the lists are checked
        for _ in range(n):
            states.append(integrator.step(states[-1], unchecked))
        of_steps = torch.stack(stale).view(n, -1).any(1)
        n_valid = int((of_steps.cumsum(0) == 0).sum())
        state = states[n_valid]
        if n_valid < n:
            break
    return state


def _divergence(state: MDState, limit: Tensor, before: MDState) -> str:
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
        k = int(_not_finite(state).double().argmax())
        return f"energy, velocities or forces{_in_system(k, state)} are no longer finite"
    if beyond > 0:  # again without drift and rotation, which takes longer
        temperature = state.temperature
        if bool(((temperature - limit) > 0).any()):
            k = int((temperature - limit).argmax())
            where = _in_system(k, state)
            return f"the temperature{where} reached {float(temperature[k]):.0f} K"
    if largest > EXPLODING_FORCE:
        k = int(state.system.system_idx[int(state.forces.abs().amax(1).argmax())])
        return f"a force{_in_system(k, state)} reached {largest:.0f} eV/Å"
    if ratio > 1:
        k = int(leap.abs().argmax())
        where = _in_system(k, state)
        return f"energy{where} is not conserved, it changed by {float(leap[k]):+.1f} eV"
    return ""


def _not_finite(state: MDState) -> Tensor:
    """Return which systems have an energy, velocity or force that is not finite, [n_systems]."""
    of_atoms = (state.forces.isfinite() & state.momenta.isfinite()).all(1)
    wrong = state.per_system((~of_atoms).double()) > 0
    return wrong | ~state.energy.isfinite()


def _in_system(k: int, state: MDState) -> str:
    return f" of system {k}" if state.system.n_systems > 1 else ""


def _exploded(state: MDState, integrator: Integrator, what: str) -> str:
    time = state.step * integrator.timestep / units.fs
    where = f"stopped at {time:.1f} fs: {what}"
    return f"{where}; what was written ends with the last valid state. {ADVICE}"
