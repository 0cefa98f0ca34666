"""H5MD trajectories that no crash can damage; `attncalc.md.h5md` says what stands in them."""

from __future__ import annotations

import logging
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import torch
from ase import units
from numpy.typing import NDArray
from torch import Tensor

from attncalc.files import FileLock, folder_to_disk, lock, naming_full_disk, refuse_existing
from attncalc.files.hdf5_writing import writing_hdf5
from attncalc.md.callback import Callback
from attncalc.md.h5md import (
    DIPOLE,
    DIPOLE_UNIT,
    FORCE,
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
from attncalc.md.written import checked_names, require_of_state

log = logging.getLogger(__name__)

# frames go to disk when so much has gathered, or after so long
BUFFER_BYTES = 64 << 20
BUFFER_SECONDS = 10.0
# of a run's time that writing may cost: with a thousand systems, or on a slow disk, it waits longer
LARGEST_SHARE = 0.05
# no column of the log: it has three components
DIPOLE_MOMENT = Column("", DIPOLE, DIPOLE_UNIT, lambda state: state.dipole)


class H5MDWriter(Callback):
    """Writes an H5MD trajectory, whole at any moment: a callback of `md.run`.

    Also after kill -9, a full disk or a power cut, and while the run goes on, the file is a closed
    one that any reader opens; what may be missing are the frames of the last 10 seconds or 64 MB
    (longer only where writing them takes more than half a second).
    HDF5 cannot append so safely. So there are two files: a hidden twin beside the visible one gets
    the new frames, is closed, and then takes its place; the old one is the next twin. A running
    trajectory therefore takes twice its size on disk, until the run ends. What a killed run leaves
    (.NAME.twin, .NAME.lock) is removed when the run is resumed. A visible file that somebody
    removes while the run goes on is there again, with all frames, when the next ones are written.

    As long as a run goes on no other one can begin or resume this file, in whatever process.

    Time is step times timestep. Fixed atoms are stored like all others, and which they are; of a
    committee, its spread.

    Args:
        path: new file; its name should end in .h5md, by which MDAnalysis and ASE know it.
        every: steps between frames.
        author: name of who runs it, which the format asks for.
        write: further results, "charges" and "dipole"; the model must predict charges.
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
        if every < 1:
            raise ValueError(f"every must be a positive integer, got {every!r}")
        # a link to another disk stays one when the file behind it is replaced
        self.path, self.every, self.author = Path(path).resolve(), every, author
        self.write = checked_names(write)
        self._also = tuple(also)
        self._twin, self._spare = hidden_files(self.path)
        self._atoms: list[StoredSystem] = []  # of a run that is going on
        self._others: list[Column] = []
        self._timestep = 0.0  # fs
        self._frames: list[Frame] = []  # all that the twin lacks: old ones on disk, new ones not
        self._step_on_disk = -1
        self._bytes_waiting = 0
        self._flush_after = 0.0  # on the clock of time.monotonic
        self._claim: FileLock | None = None
        self._is_new = False

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite; the file comes with its first frame.

        Raises:
            FileExistsError: the file exists.
            FileNotFoundError: its folder does not.
            BlockingIOError: another run is going to make it.
            ValueError: the model does not give what shall be written.
        """
        require_of_state(self.write, state)
        refuse_existing(self.path)
        self._claim = FileLock(self.path)
        self._start(state, integrator, step_on_disk=-1)
        self._is_new = True

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Go on behind this state; frames beyond it are cut off.

        So is a last one that is no multiple of `every`: a run that was not stopped has none there.
        A run that was stopped before its first frame, with a checkpoint of step 0, has no file yet.

        Raises:
            BlockingIOError: another run is writing it.
            NoSpaceLeft: the disk is full.
            FileNotFoundError: the file does not exist.
            ValueError: it is no trajectory of these atoms and this timestep, has them elsewhere,
                begins after this state or ends before it, or is damaged.
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
        """Step of the last frame that stays, how many stay, and how many there are."""
        require_of_state(self.write, state)
        atoms, timestep = self._atoms_of(state, integrator), integrator.timestep / units.fs
        with opened(self.path) as file:
            check_same(described(file), atoms)
            steps, times = clock(file, atoms)
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
            last, last_time = int(steps[n_kept - 1]), float(times[n_kept - 1])
            if not np.isclose(last_time, last * timestep, rtol=1e-9, atol=0):
                raise ValueError(
                    f"it was written with a timestep of {last_time / last:g} fs, the run "
                    f"continues with {timestep:g} fs"
                )
        return last, n_kept, len(steps)

    def __call__(self, state: MDState) -> None:
        """Take a frame, unless it is the last one taken.

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
            self._step_on_disk < 0  # from the first frame on there is a file
            or self._bytes_waiting >= BUFFER_BYTES
            or time.monotonic() >= self._flush_after
        ):
            self.flush()

    def flush(self) -> None:
        """Every frame so far is on disk afterwards.

        Raises:
            FileExistsError: another program has made the file since the run began.
            FileNotFoundError: somebody has removed the file and its twin.
            NoSpaceLeft: the disk is full; the file is as it was.
        """
        began = time.monotonic()
        self._restore()
        if not self._frames or self._frames[-1].step <= self._step_on_disk:
            return
        with self._changed_twin() as file:
            if self._step_on_disk < 0:
                create(file, self._atoms, self._frames[0], self.author)
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
        """Write what waits, and leave nothing but the trajectory."""
        if not self._atoms:  # refused to begin: what is there is not ours
            return
        try:
            self.flush()
        finally:
            if self._step_on_disk < 0 or self.path.exists():  # else the twin is all there is
                self._remove_hidden()
            self._atoms, self._frames = [], []
            if self._claim is not None:
                self._claim.release()

    def forget(self) -> None:
        """Remove the file of a run that could not begin, after its end."""
        if self._is_new and self._step_on_disk >= 0:
            self.path.unlink(missing_ok=True)

    def _start(self, state: MDState, integrator: Integrator, *, step_on_disk: int) -> None:
        self._others = self._further(integrator, state)
        self._timestep = integrator.timestep / units.fs
        self._atoms = self._atoms_of(state, integrator)
        self._frames, self._step_on_disk, self._bytes_waiting = [], step_on_disk, 0
        self._flush_after = time.monotonic() + BUFFER_SECONDS
        self._remove_hidden()

    def _further(self, integrator: Integrator, state: MDState) -> list[Column]:
        """Observables that not every run has, by name."""
        asked = [DIPOLE_MOMENT] if DIPOLE in self.write else []
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
        self._twin.unlink(missing_ok=True)  # it still has what was cut off
        self._keep_twin()

    @contextmanager
    def _changed_twin(self) -> Iterator[h5py.File]:
        """The twin, open to be changed; on disk afterwards, or there is no twin."""
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
        """A new one where there is none: its file descriptor."""
        if self._step_on_disk >= 0:
            self._keep_twin()
        number = os.open(self._twin, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if lock(number):
            return number
        # somebody still reads what was the visible file, and HDF5 has locked it: to that reader it
        # must not change
        os.close(number)
        self._twin.unlink()
        self._keep_twin()
        return os.open(self._twin, os.O_RDWR | getattr(os, "O_BINARY", 0))

    def _keep_twin(self) -> None:
        """Make the twin, where there is none, a copy of the visible file."""
        if self._twin.exists():
            return
        try:
            with naming_full_disk(self.path):
                shutil.copyfile(self.path, self._spare)
        except BaseException:
            self._spare.unlink(missing_ok=True)
            raise
        os.replace(self._spare, self._twin)

    def _restore(self) -> None:
        """The twin becomes the visible file, where somebody has removed that."""
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
        if self._frames:  # what the twin may lack is written once more
            self._step_on_disk = max(0, self._frames[0].step - 1)

    def _appear(self) -> None:
        """The twin becomes the visible file, which there was not."""
        try:
            os.link(self._twin, self.path)  # refuses, other than a renaming, to replace a file
        except FileExistsError:
            raise FileExistsError(f"{self.path} exists: nothing is overwritten") from None
        except OSError:  # a file system without links
            os.rename(self._twin, self.path)
        self._twin.unlink(missing_ok=True)
        folder_to_disk(self.path.parent)

    def _take_place(self) -> None:
        """The twin becomes the visible file, and what was visible the twin."""
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
    """The twin of a trajectory, and the file that is a twin for a moment."""
    return path.with_name(f".{path.name}.twin"), path.with_name(f".{path.name}.spare")


def _atoms_of(state: MDState, others: list[Column], *, has_charges: bool) -> list[StoredSystem]:
    system = state.system
    fixed = torch.zeros_like(state.masses, dtype=torch.bool) if state.fixed is None else state.fixed
    names = ["atoms"] if system.n_systems == 1 else system_names(system.n_systems)
    return [
        StoredSystem(
            particles=f"particles/{name}",
            # those of the only system stand where every reader looks for them
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
    """A state, one of `every` so many; `timestep` in fs."""
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
    """A copy on the host, floating-point numbers as float64."""
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else array.dtype)
