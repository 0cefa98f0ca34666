"""Run of one structure or a batch by `attncalc md`, with its files beside each other.

run.h5md    trajectory (or run.xyz, run.traj: these cannot be resumed)
run.csv     log
run.ckpt    checkpoint, beside an .h5md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from attncalc.files import FileLock, NoSpaceLeft, refuse_existing, remove_abandoned
from attncalc.md.callback import Callback
from attncalc.md.checkpoint import Checkpoint, Restart, load_checkpoint
from attncalc.md.extra_results import require_of_state, results_of
from attncalc.md.force import Force
from attncalc.md.h5md import described, opened
from attncalc.md.h5md_reader import read_h5md
from attncalc.md.h5md_writer import H5MDWriter, hidden_files
from attncalc.md.integrator import Column, Integrator
from attncalc.md.integrators import integrator_of
from attncalc.md.log import Log
from attncalc.md.log_file import NOVELTY, LogSummary
from attncalc.md.settings import Settings
from attncalc.md.simulation import run
from attncalc.md.state import MDState
from attncalc.md.velocities import runaway
from attncalc.md.watch import EVERY, AlsoEvery, BondWatch, Watch, novelty_columns
from attncalc.md.with_ase import Frames, no_start
from attncalc.model_header import DTYPES
from attncalc.options import whole_number
from attncalc.potential import MOST_THREADS
from attncalc.system import System
from attncalc.text import one_line

# not too often, because a checkpoint brings all files to disk
SECONDS_BETWEEN_CHECKPOINTS = 5.0

RESUMED_FROM = "a run is resumed from its .h5md and .ckpt"

Progress = Callable[[int, str], None]
Tell = Callable[[str], None]


def run_structures(
    structures: Sequence[Atoms],
    force: Force,
    settings: Settings,
    trajectory: Path,
    *,
    info: Mapping[str, Any],
    progress: Progress | None = None,
    tell: Tell | None = None,
    stop: bool = False,
) -> LogSummary:
    """Start a run of one structure, or of several in a batch.

    Velocities (momenta) of the structures are used if they have any; otherwise they are drawn.
    Atoms that `ase.constraints.FixAtoms` holds do not move.

    Args:
        structures: of the batch; each has random numbers of its own.
        force: of the model.
        settings: of the run.
        trajectory: new file, .h5md, or for one structure .xyz, .extxyz or .traj.
        info: stored in the checkpoint, with the settings.
        progress: called with the number of steps since the last call, and a status line.
        tell: called with a message when an atom is outside the training data for the first time,
            and when a bond between two nonmetals is broken for the first time.
        stop: True: the run ends at the first step outside, which is written.

    Returns:
        Number of frames, the last line of the log, and those with the largest spread and novelty.

    Raises:
        FileExistsError: a file exists.
        NoSpaceLeft: the disk is full; the message says how to continue. A run that could not begin
            leaves no files.
        ValueError: a constraint is not `FixAtoms`; only some of the structures have velocities;
            several structures need .h5md; or, in "npt", one is not periodic in all directions.
        FloatingPointError: the run exploded, and the trajectory ends with the last good frame; or
            the first state is unusable, and nothing is written.
        KeyboardInterrupt: Ctrl-C; the message says what is done.
    """
    endings = (trajectory.suffix, ".csv", ".ckpt")
    refuse_existing(*(trajectory.with_suffix(ending) for ending in endings))
    if len(structures) > 1 and trajectory.suffix != ".h5md":
        raise ValueError(f"{trajectory.name}: several structures need a trajectory in .h5md")
    integrator = integrator_of(settings)
    options: dict[str, Any] = {"seed": settings.seed}
    if integrator.ensemble == "nve":
        # settings always have a temperature; velocities of the file are preferred
        options |= {"temperature": settings.temperature, "new_velocities": False}
    writer: Callback = (
        H5MDWriter(
            trajectory, every=settings.every, write=settings.write, also=novelty_columns(force)
        )
        if trajectory.suffix == ".h5md"
        else FrameWriter(trajectory, structures[0], every=settings.every, write=settings.write)
    )
    state = integrator.init(force, structures, **options)
    hottest = float(state.temperature.max())
    if hottest > runaway(settings.temperature):  # `run` would accept the velocities of the file
        raise no_start(f"the temperature reached {hottest:.0f} K")
    watches = _watches(force, settings, tell, stop=stop)
    return _run(integrator, force, state, settings, writer, trajectory, info, progress, watches)


def read_restart(trajectory: Path) -> tuple[Restart, Settings]:
    """Return the checkpoint beside a trajectory, and the settings of its run.

    The trajectory may be missing if the run was stopped before its first frame.

    Raises:
        FileNotFoundError: one of the two files is missing.
        BlockingIOError: the run is still running.
        ValueError: the checkpoint is damaged, or not of a run by `attncalc md`.
    """
    if trajectory.suffix != ".h5md":
        raise ValueError(f"{trajectory.name}: only a run that writes .h5md can be resumed")
    file = trajectory.with_suffix(".ckpt")
    missing = [path for path in (trajectory, file) if not path.is_file()]
    if file in missing:
        raise FileNotFoundError(f"no such file: {missing[0]}; {RESUMED_FROM}")
    with FileLock(trajectory):  # refuse a running run before a model is loaded
        restart = load_checkpoint(file)
    if missing and restart.state.step > 0:
        raise FileNotFoundError(f"no such file: {trajectory}; {RESUMED_FROM}")
    if "settings" not in restart.info:
        raise ValueError(f"{file}: a checkpoint of a run that `attncalc md` did not start")
    try:
        return restart, _checked(restart)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(one_line(f"{file}: not as `attncalc md` writes it ({error})")) from None


def _checked(restart: Restart) -> Settings:
    """Return the settings of a checkpoint, after checks of all entries that a resumed run reads.

    Raises:
        TypeError, ValueError: an entry is missing, of another type or out of range.
    """
    settings, info = Settings.from_stored(restart.info["settings"]), restart.info
    threads, dtype, cutoff = map(info.get, ("threads", "dtype", "long_range_cutoff"))
    for name in ("model", "checksum", "title"):
        if not isinstance(info.get(name), str):
            raise ValueError(f"{name} must be a text, got {info.get(name)!r}")
    whole_number("n_dof", info.get("n_dof"), 1)
    if threads is not None:
        whole_number("threads", threads, 1, MOST_THREADS)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if cutoff is not None and (not isinstance(cutoff, float) or not cutoff > 0):  # inf: all pairs
        raise ValueError(f"long_range_cutoff must be a positive number of Å, got {cutoff!r}")
    if restart.integrator != integrator_of(settings):
        raise ValueError("its settings are not those of its integrator")
    return settings


def resume_structures(
    restart: Restart,
    force: Force,
    settings: Settings,
    trajectory: Path,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
    stop: bool = False,
) -> LogSummary:
    """Continue a run up to `settings.n_steps`, as if it had not been interrupted.

    Frames and lines beyond the checkpoint are replaced. Lines that the log has lost are restored
    from the trajectory.

    Args:
        restart: from `read_restart`.
        force: of the same model.
        settings: of the run; `n_steps` may be larger.
        trajectory: of the run.
        progress, tell, stop: see `run_structures`.

    Returns:
        As `run_structures`, from the beginning of the run.

    Raises:
        FileNotFoundError, ValueError: the files do not belong together.
        FloatingPointError, KeyboardInterrupt, NoSpaceLeft: see `run_structures`.
    """
    integrator, state, info = restart
    state = state.to(force.device)
    also = novelty_columns(force)
    writer = H5MDWriter(trajectory, every=settings.every, write=settings.write, also=also)
    # there are none if the run was stopped before its first frame
    frames = read_h5md(trajectory, slice(1), system=None) if trajectory.exists() else []
    first = System.from_ase(frames) if frames else None
    watches = _watches(force, settings, tell, stop=stop, first=first)
    return _run(integrator, force, state, settings, writer, trajectory, info, progress, watches)


def mend_files(restart: Restart, settings: Settings, trajectory: Path) -> LogSummary:
    """Restore lost lines of the log of a finished run, and remove files that a killed run has left.

    Returns:
        As `run_structures`.

    Raises:
        FileNotFoundError, ValueError: the files do not belong together.
        NoSpaceLeft: the disk is full.
    """
    path = trajectory.resolve()
    with FileLock(path):
        for left in hidden_files(path):
            left.unlink(missing_ok=True)
    remove_abandoned(trajectory.with_suffix(".ckpt"))
    remove_abandoned(trajectory.with_suffix(".png"))
    also = _columns_there(trajectory)
    log = _log(trajectory, settings, also)
    log.resume(restart.state, restart.integrator)
    try:
        log(restart.state)  # the last line, even if its step is not a multiple of `every`
    finally:
        log.end()
    return log.summary


def _run(
    integrator: Integrator,
    force: Force,
    state: MDState,
    settings: Settings,
    writer: Callback,
    trajectory: Path,
    info: Mapping[str, Any],
    progress: Progress | None,
    watches: Sequence[Callback],
) -> LogSummary:
    """Take the steps that are left, and write log and checkpoint beside the trajectory."""
    log = _log(trajectory, settings, novelty_columns(force))
    callbacks = [*watches, writer, log]
    if trajectory.suffix == ".h5md":
        checkpoint = Checkpoint(
            trajectory.with_suffix(".ckpt"),
            every=settings.every,
            seconds=SECONDS_BETWEEN_CHECKPOINTS,
            info={**info, "settings": settings.stored()},
        )
        callbacks.append(checkpoint)
    if progress is not None:
        callbacks.append(_Progress(progress, every=settings.every))
    try:
        n_steps = max(settings.n_steps - state.step, 0)
        run(integrator, force, state, n_steps, callbacks=callbacks)
    except FloatingPointError as error:
        what, valid, advice = str(error).partition(
            "; what was written ends with the last valid state"
        )
        if not valid:  # nothing has begun
            raise
        told = f"{what}; the last valid frame is in {trajectory.name}{advice}"
        raise FloatingPointError(told) from None
    except NoSpaceLeft as full:
        raise NoSpaceLeft(trajectory, full.number, _advice(trajectory, writer)) from None
    except KeyboardInterrupt:
        if (last := log.summary.last) is None:
            raise
        done = round(last["time_fs"] * units.fs / settings.timestep)
        raise KeyboardInterrupt(
            f"{done} of {settings.n_steps} steps are done; {trajectory.name} holds them to "
            f"{last['time_fs']:.1f} fs"
            + (f"; continue with --resume {trajectory}" if trajectory.suffix == ".h5md" else "")
        ) from None
    return log.summary


def _advice(trajectory: Path, writer: Callback) -> str:
    """Advise what to do after the disk was full."""
    if trajectory.suffix == ".h5md" and trajectory.with_suffix(".ckpt").exists():
        return f"free some space, then continue with --resume {trajectory}"
    if isinstance(writer, FrameWriter) and trajectory.exists():  # the log may have a line less
        return f"it holds {writer.n_frames} whole frames, to {writer.time:.1f} fs"
    return "nothing of the run was kept: free some space and start it again"


def _watches(
    force: Force,
    settings: Settings,
    tell: Tell | None,
    *,
    stop: bool,
    first: System | None = None,
) -> tuple[Callback, ...]:
    tell = tell or (lambda sentence: None)
    watch = Watch(force, tell, every=1 if stop else min(EVERY, settings.every), stop=stop)
    at_frames = AlsoEvery(watch, every=settings.every)
    return watch, at_frames, BondWatch(tell, every=settings.every, first=first)


def _columns_there(trajectory: Path) -> tuple[Column, ...]:
    """Return columns of a finished run with values of its last frame, without its model."""
    if not trajectory.exists():
        return ()
    with opened(trajectory) as file:
        places = [f"{one.observables}/{NOVELTY}/value" for one in described(file)]
        if places[0] not in file:
            return ()
        last = torch.tensor([float(file[place][-1]) for place in places])
    return (Column(NOVELTY, NOVELTY, "", lambda state: last.to(state.energy)),)


def _log(trajectory: Path, settings: Settings, also: Sequence[Column]) -> Log:
    return Log(
        trajectory.with_suffix(".csv"),
        every=settings.every,
        also=also,
        trajectory=trajectory if trajectory.suffix == ".h5md" else None,
    )


class FrameWriter(Callback):
    """Callback of `md.run` that writes frames of one structure by ASE, in extended XYZ or .traj.

    A run with such a file cannot be resumed.

    Args:
        path: new file.
        atoms: frames are copies of it with other positions, cell, momenta and results.
        every: steps.
        write: further results, see `attncalc.md.extra_results`.

    Attributes:
        n_frames: number of frames written.
        step: of the last one; -1 before the first.
    """

    def __init__(self, path: Path, atoms: Atoms, *, every: int, write: Sequence[str] = ()) -> None:
        self.every, self._frames, self._atoms = every, Frames(path), atoms.copy()
        self.path = self._frames.path
        self.write = tuple(write)
        self._timestep = 0.0
        self.n_frames, self.step = 0, -1

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Create the file; refuse to overwrite one.

        Raises:
            FileExistsError: the file exists.
            ValueError: the model does not give the results to be written.
        """
        require_of_state(self.write, state)
        self._timestep = integrator.timestep / units.fs
        refuse_existing(self._frames.path)
        self._is_new = True
        self._frames.__enter__()

    def __call__(self, state: MDState) -> None:
        """Write a frame, unless it was written last."""
        if state.step == self.step:
            return
        frame = self._atoms.copy()
        frame.info |= {"step": state.step, "time_fs": state.step * self._timestep}
        frame.cell = state.system.cell[0].cpu().numpy()
        frame.positions = state.system.positions.cpu().numpy()
        frame.set_momenta(state.momenta.cpu().numpy(), apply_constraint=False)
        energy, forces = float(state.energy), state.forces.cpu().numpy()
        others = results_of(state, self.write)
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces, **others)
        self._frames.write(frame)
        self.n_frames, self.step = self.n_frames + 1, state.step

    @property
    def time(self) -> float:
        """Time of the last frame, fs."""
        return self.step * self._timestep

    def end(self) -> None:
        """Close the file."""
        self._frames.__exit__()


class _Progress(Callback):
    """Callback that reports the progress of a run."""

    def __init__(self, tell: Progress, *, every: int) -> None:
        self.every, self._tell, self._told = every, tell, 0

    def begin(self, state: MDState, integrator: Integrator) -> None:
        del integrator
        self._told = state.step

    def __call__(self, state: MDState) -> None:
        kelvin = float(state.temperature.mean())
        total = float((state.energy + state.kinetic_energy).mean())
        spread = "" if state.spread is None else f", spread {float(state.spread.max()):.3f} eV/Å"
        self._tell(state.step - self._told, f"T {kelvin:.0f} K, E {total:.4f} eV{spread}")
        self._told = state.step
