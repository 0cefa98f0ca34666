"""Writer of H5MD trajectories that no crash can damage; `attncalc.md.h5md` has their layout."""

from __future__ import annotations

import logging
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ase import units
from numpy.typing import NDArray
from torch import Tensor

from attncalc.files import FileLock, folder_to_disk, lock, naming_full_disk, refuse_existing
from attncalc.files.hdf5_writing import writing_hdf5
from attncalc.md.callback import Callback
from attncalc.md.extra_results import checked_names, require_of_state
from attncalc.md.h5md import (
    DIPOLE,
    DIPOLE_UNIT,
    FORCE,
    INTERVAL,
    NOISE,
    STRESS,
    STRESS_UNIT,
    VELOCITY,
    Frame,
    StoredSystem,
    append,
    check_same,
    clock,
    create,
    described,
    growing,
    named,
    opened,
    system_names,
)
from attncalc.md.integrator import Column, Integrator, own_columns
from attncalc.md.state import MDState
from attncalc.options import whole_number

log = logging.getLogger(__name__)

# frames are written to disk when so many bytes are waiting, or after so many seconds
BUFFER_BYTES = 64 << 20
BUFFER_SECONDS = 10.0
# largest share of writing in a run's time: for many systems or slow disks frames wait longer
LARGEST_SHARE = 0.05
# not columns of the log, because they have several components
ON_REQUEST = (
    Column("", DIPOLE, DIPOLE_UNIT, lambda state: state.dipole),
    Column("", STRESS, STRESS_UNIT, lambda state: state.stress),
)


class H5MDWriter(Callback):
    """Callback of `md.run` that writes an H5MD trajectory, which is intact at any moment.

    During the run, and also after kill -9, a full disk or a power cut, the file is closed and any
    reader can open it. Only frames of the last 10 seconds or 64 MB may be missing (longer only if
    writing them takes more than half a second).
    HDF5 cannot append so safely, so there are two files: a hidden twin beside the visible file gets
    the new frames, is closed, and then takes its place; the old file becomes the next twin. During
    the run a trajectory therefore takes twice its size on disk. Files that a killed run leaves
    (.NAME.twin, .NAME.lock) are removed when the run is resumed. If the visible file is removed
    during the run, it is restored with all frames when the next ones are written.

    During a run no other run, in any process, can begin or resume with this file.

    Time is step times timestep. Fixed atoms are stored like all others, with a mask; for a
    committee, its spread is stored.

    Args:
        path: new file; MDAnalysis and ASE recognise it by the suffix .h5md.
        every: steps between frames.
        author: name of the user, which the format requires.
        write: further results: "charges" and "dipole", if the model predicts charges; "stress", if
            all systems are periodic in all directions.
        also: further observables.

    Raises:
        ValueError: `every` is not positive, or `write` has an unknown name.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int = 100,
        author: str = "unknown",
        write: Sequence[str] = (),
        also: Sequence[Column] = (),
    ) -> None:
        whole_number("every", every, 1)
        # resolved, so that a symbolic link is kept when its target is replaced
        self.path, self.every, self.author = Path(path).resolve(), every, author
        self.write = checked_names(write)
        self._also = tuple(also)
        self._twin, self._spare = hidden_files(self.path)
        self._atoms: list[StoredSystem] = []  # empty before and after a run
        self._others: list[Column] = []
        self._timestep = 0.0  # fs
        self._noise: dict[str, Any] = {}
        self._frames: list[Frame] = []  # not in the twin; the older ones are in the visible file
        self._step_on_disk = -1
        self._bytes_waiting = 0
        self._flush_after = 0.0  # on the clock of time.monotonic
        self._claim: FileLock | None = None

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite a file; the new one is created with its first frame.

        Raises:
            FileExistsError: the file exists.
            FileNotFoundError: its folder does not.
            BlockingIOError: another run is about to create it.
            ValueError: the model does not give the results to be written.
        """
        require_of_state(self.write, state)
        refuse_existing(self.path)
        self._claim = FileLock(self.path)
        self._start(state, integrator, step_on_disk=-1)
        self._is_new = True

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Continue after this state; frames beyond it are removed.

        A last frame whose step is not a multiple of `every` is removed, too: without a stop there
        would be none. A run that was stopped before its first frame, with a checkpoint of step 0,
        has no file yet.

        Raises:
            BlockingIOError: another run is writing it.
            NoSpaceLeft: the disk is full.
            FileNotFoundError: the file does not exist.
            ValueError: it is not a trajectory of these atoms with this timestep and `every`, has
                other positions, begins after this state or ends before it, or is damaged.
        """
        if state.step == 0 and not self.path.exists():
            self.begin(state, integrator)
            return
        claim = FileLock(self.path)
        try:
            last, n_kept, n_frames = self._last_frame(state, integrator)
        except BaseException:
            claim.release()
            raise
        self._claim = claim
        self._start(state, integrator, step_on_disk=last)
        self._keep_twin()
        if n_kept < n_frames:
            self._cut(n_kept)

    def _last_frame(self, state: MDState, integrator: Integrator) -> tuple[int, int, int]:
        """Return the step of the last frame to keep, and the numbers of frames kept and of all."""
        require_of_state(self.write, state)
        atoms, timestep = self._atoms_of(state, integrator), integrator.timestep / units.fs
        with opened(self.path) as file:
            check_same(described(file), atoms)
            ours = _noise_of(state)
            theirs = {k: file[f"{NOISE}/{k}"][()] for k in ours if f"{NOISE}/{k}" in file}
            if any(not np.array_equal(value, ours[k]) for k, value in theirs.items()):
                raise ValueError("its seed differs: this is the trajectory of another run")
            steps, times = clock(file, atoms)
            self._check_spacing(file, int(steps[-1]), float(times[-1]), timestep)
            n_kept = bisect_right(steps, state.step)
            if n_kept and steps[n_kept - 1] == state.step:
                there = np.concatenate(
                    [file[f"{one.particles}/position/value"][n_kept - 1] for one in atoms]
                )
                if not np.array_equal(there, state.system.positions.cpu().numpy()):
                    raise ValueError("its positions differ: this is the trajectory of another run")
            # a frame that was written only because the run was stopped there
            if n_kept > 1 and steps[n_kept - 1] % self.every:
                n_kept -= 1
            if n_kept == 0:
                raise ValueError(
                    f"it begins with step {steps[0]}, the run continues from step {state.step}: "
                    "this is the trajectory of another run"
                )
            expected = state.step - state.step % self.every
            if steps[n_kept - 1] < expected:
                raise ValueError(
                    f"it ends with step {steps[n_kept - 1]}, "
                    f"the run continues from step {state.step}"
                )
            return int(steps[n_kept - 1]), n_kept, len(steps)

    def _check_spacing(self, file: h5py.File, step: int, time: float, timestep: float) -> None:
        """Refuse another timestep [fs] or `every` than those of a file that ends at this step."""
        if not np.isclose(time, step * timestep, rtol=1e-9, atol=0):
            raise ValueError(
                f"it was written with a timestep of {time / step:g} fs, the run "
                f"continues with {timestep:g} fs"
            )
        if INTERVAL in file:
            every = round(1e3 * float(file[f"{INTERVAL}/value"][-1]) / timestep)
            if every != self.every:
                raise ValueError(
                    f"it was written every {every} steps, the run continues with every {self.every}"
                )

    def __call__(self, state: MDState) -> None:
        """Add a frame, unless it was added last.

        Raises:
            ValueError: no run has begun.
        """
        if not self._atoms:
            raise ValueError("an H5MDWriter belongs to a run: give it to md.run as a callback")
        newest = self._frames[-1].step if self._frames else self._step_on_disk
        if state.step == newest:
            return
        frame = _frame(state, self._others, self._timestep, self.every)
        if "charges" in self.write:
            assert state.charges is not None
            frame = frame._replace(charges=_numbers(state.charges))
        self._frames.append(frame)
        self._bytes_waiting += frame.nbytes
        if (
            self._step_on_disk < 0  # the first frame creates the file
            or self._bytes_waiting >= BUFFER_BYTES
            or time.monotonic() >= self._flush_after
        ):
            self.flush()

    def flush(self) -> None:
        """Write all frames so far to disk.

        Raises:
            FileExistsError: another program has created the file since the run began.
            FileNotFoundError: the file and its twin have been removed.
            NoSpaceLeft: the disk is full; the file is unchanged.
        """
        began = time.monotonic()
        self._restore()
        if not self._frames or self._frames[-1].step <= self._step_on_disk:
            return
        with self._changed_twin() as file:
            if self._step_on_disk < 0:
                create(file, self._atoms, self._frames[0], self.author, self._noise)
            append(file, self._atoms, self._frames)
        if self._step_on_disk < 0:
            self._appear()
        else:
            self._take_place()
        self._frames = [frame for frame in self._frames if frame.step > self._step_on_disk]
        self._step_on_disk, self._bytes_waiting = self._frames[-1].step, 0
        self._keep_twin()
        now = time.monotonic()
        self._flush_after = now + max(BUFFER_SECONDS, (now - began) / LARGEST_SHARE)

    def end(self) -> None:
        """Write waiting frames, and remove all files but the trajectory."""
        if not self._atoms:  # refused to begin: existing files are not ours
            return
        try:
            self.flush()
        finally:
            if self._step_on_disk < 0 or self.path.exists():  # else only the twin is left
                self._remove_hidden()
            self._atoms, self._frames = [], []
            if self._claim is not None:
                self._claim.release()

    def forget(self) -> None:
        """Remove the file of a run that could not begin; called after `end`."""
        if self._step_on_disk >= 0:
            super().forget()

    def _start(self, state: MDState, integrator: Integrator, *, step_on_disk: int) -> None:
        self._others = self._further(integrator, state)
        self._timestep = integrator.timestep / units.fs
        self._atoms, self._noise = self._atoms_of(state, integrator), _noise_of(state)
        self._frames, self._step_on_disk, self._bytes_waiting = [], step_on_disk, 0
        self._flush_after = time.monotonic() + BUFFER_SECONDS
        self._remove_hidden()

    def _further(self, integrator: Integrator, state: MDState) -> list[Column]:
        """Return the observables that not every run has, sorted by name."""
        asked = [one for one in ON_REQUEST if one.name in self.write]
        columns = [*own_columns(integrator, state), *asked, *self._also]
        return sorted(columns, key=lambda one: one.name)

    def _atoms_of(self, state: MDState, integrator: Integrator) -> list[StoredSystem]:
        others = self._further(integrator, state)
        return _atoms_of(state, others, has_charges="charges" in self.write)

    def _cut(self, n_frames: int) -> None:
        with self._changed_twin() as file:
            for dataset in growing(file, self._atoms):
                dataset.resize(n_frames, axis=0)
        self._take_place()
        self._twin.unlink(missing_ok=True)  # it still has the removed frames
        self._keep_twin()

    @contextmanager
    def _changed_twin(self) -> Iterator[h5py.File]:
        """Open the twin for changes; afterwards it is on disk, or removed after an error."""
        number = -1
        try:
            with naming_full_disk(self.path), named(self.path):
                number = self._open_twin()
                mode = "w" if self._step_on_disk < 0 else "r+"
                with writing_hdf5(number, mode) as (file, _):
                    yield file
        except BaseException:
            self._twin.unlink(missing_ok=True)
            raise
        finally:
            if number >= 0:
                os.close(number)

    def _open_twin(self) -> int:
        """Open the twin, a new one if there is none, and return its file descriptor."""
        if self._step_on_disk >= 0:
            self._keep_twin()
        number = os.open(self._twin, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if lock(number):
            if self._step_on_disk < 0:  # what an attempt left that failed after it was written
                os.ftruncate(number, 0)
            return number
        # a reader still has the former visible file open, locked by HDF5: it must not change
        os.close(number)
        self._twin.unlink()
        self._keep_twin()
        return os.open(self._twin, os.O_RDWR | getattr(os, "O_BINARY", 0))

    def _keep_twin(self) -> None:
        """Copy the visible file to the twin, if there is none."""
        if not self._twin.exists():
            self._copy(self.path)
            os.replace(self._spare, self._twin)

    def _copy(self, path: Path) -> None:
        """Copy a file to the spare one."""
        try:
            with naming_full_disk(self.path):
                shutil.copyfile(path, self._spare)
        except BaseException:
            self._spare.unlink(missing_ok=True)
            raise

    def _restore(self) -> None:
        """Make the twin the visible file, if that has been removed."""
        if self._step_on_disk < 0 or self.path.exists():
            return
        try:
            os.rename(self._twin, self.path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path} was removed during the run, and {self._twin.name} too: its "
                "frames are lost"
            ) from None
        log.warning("%s was removed during the run: it is written again", self.path)
        if self._frames:  # frames that the twin may not have are written again
            self._step_on_disk = max(0, self._frames[0].step - 1)

    def _appear(self) -> None:
        """Make the twin the visible file, which must not exist yet, and its copy the twin."""
        self._copy(self._twin)  # the visible file may be removed at any time
        try:
            os.link(self._twin, self.path)  # unlike renaming, this refuses to replace a file
        except FileExistsError:
            self._spare.unlink()
            raise FileExistsError(f"{self.path} exists: nothing is overwritten") from None
        except OSError:  # a file system without links
            os.rename(self._twin, self.path)
        os.replace(self._spare, self._twin)
        folder_to_disk(self.path.parent)

    def _take_place(self) -> None:
        """Make the twin the visible file, and the former visible file the twin."""
        self._spare.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links: the next twin will be a copy
            os.link(self.path, self._spare)
        os.replace(self._twin, self.path)
        if self._spare.exists():
            os.replace(self._spare, self._twin)
        folder_to_disk(self.path.parent)

    def _remove_hidden(self) -> None:
        for path in hidden_files(self.path):
            path.unlink(missing_ok=True)


def hidden_files(path: Path) -> tuple[Path, Path]:
    """Return the paths of the twin of a trajectory, and of a short-lived copy."""
    return path.with_name(f".{path.name}.twin"), path.with_name(f".{path.name}.spare")


def _noise_of(state: MDState) -> dict[str, Any]:
    return {"seed": state.seed, "replicas": _numbers(state.replicas)}


def _atoms_of(state: MDState, others: list[Column], *, has_charges: bool) -> list[StoredSystem]:
    system = state.system
    fixed = torch.zeros_like(state.masses, dtype=torch.bool) if state.fixed is None else state.fixed
    names = ["atoms"] if system.n_systems == 1 else system_names(system.n_systems)
    return [
        StoredSystem(
            particles=f"particles/{name}",
            # those of a single system are where every reader looks for them
            observables="observables" if system.n_systems == 1 else f"observables/{name}",
            numbers=_numbers(numbers),
            masses=_numbers(masses),
            pbc=_numbers(system.pbc[k]),
            charge=float(system.charge[k]),
            spin=int(system.spin[k]),
            fixed=_numbers(still),
            others=tuple((one.name, one.unit) for one in others),
            has_charges=has_charges,
        )
        for k, (name, numbers, masses, still) in enumerate(
            zip(
                names,
                system.split(system.atomic_numbers),
                system.split(state.masses),
                system.split(fixed),
                strict=True,
            )
        )
    ]


def _frame(state: MDState, others: list[Column], timestep: float, every: int) -> Frame:
    """Return the frame of a state; there is one every `every` steps of `timestep` fs."""
    vectors = [
        _numbers(state.system.positions),
        _numbers(state.velocities) / VELOCITY,
        _numbers(state.forces) / FORCE,
    ]
    observables = [state.energy, state.kinetic_energy, state.conserved, state.temperature]
    observables += [one.of(state) for one in others]
    return Frame(
        step=state.step,
        time=state.step * timestep,
        interval=1e-3 * every * timestep,
        vectors=vectors,
        edges=_numbers(state.system.cell),
        observables=[_numbers(value) for value in observables],
    )


def _numbers(tensor: Tensor) -> NDArray:
    """Return a copy on the host, floating-point numbers as float64."""
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else array.dtype)
