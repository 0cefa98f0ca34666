"""H5MD trajectories that no crash can damage, and their reader.

The format is H5MD 1.1 (https://nongnu.org/h5md). One system is `/particles/atoms`; a batch is
`/particles/system_0000` and so on, with observables under the same names. Every element is a group
of `value`, `step` and `time`; all share one `step` and one `time` (hard links) but the masses,
which have one frame for all. What each holds, and its attribute `unit`:

| element                                                  | value per frame | unit                |
|----------------------------------------------------------|-----------------|---------------------|
| position; box/edges                                      | [n, 3]; [3, 3]  | Angstrom            |
| velocity                                                 | [n, 3]          | Angstrom fs-1       |
| force                                                    | [n, 3]          | kJ mol-1 Angstrom-1 |
| species (atomic numbers)                                 | [n]             |                     |
| mass                                                     | [n]             | u                   |
| observables: potential_energy, kinetic_energy, conserved | one             | eV                  |
| observables: temperature                                 | one             | K                   |

These are units that MDAnalysis knows: it refuses forces in eV/Å.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray
from torch import Tensor

from attncalc.md.integrators import Integrator
from attncalc.md.state import MDState
from attncalc.one_line import one_line

# frames go to disk when so much has gathered, or after so long
BUFFER_BYTES = 64 << 20
BUFFER_SECONDS = 10.0
# of a run's time that writing may cost: with a thousand systems, or on a slow disk, it waits longer
LARGEST_SHARE = 0.05

# a chunk is what HDF5 reads and writes at once, and the least that a dataset takes
CHUNK_BYTES = 1 << 16
CHUNK_FRAMES = 512
# the reader's helping
BLOCK_BYTES = 1 << 23

# the units of the file, in ASE's
FORCE = units.kJ / units.mol
VELOCITY = 1 / units.fs

UNITS = {
    "position": "Angstrom",
    "edges": "Angstrom",
    "velocity": "Angstrom fs-1",
    "force": "kJ mol-1 Angstrom-1",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "conserved": "eV",
    "temperature": "K",
}
OBSERVABLES = ("potential_energy", "kinetic_energy", "conserved", "temperature")
VECTORS = ("position", "velocity", "force")
CREATOR = "attncalc"


class _Frame(NamedTuple):
    """One state, in the units of the file and still in one batch."""

    step: int
    time: float  # fs
    vectors: list[NDArray]  # [n_atoms, 3] each, as VECTORS
    edges: NDArray  # [n_systems, 3, 3]
    observables: list[NDArray]  # [n_systems] each, as OBSERVABLES

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.vectors, self.edges, *self.observables))


@dataclass(frozen=True)
class _Atoms:
    """What all frames of one system share.

    Attributes:
        particles, observables: its groups in the file.
        numbers: [n].
        masses: [n] amu.
        pbc: [3], bool.
        charge: e.
        spin: multiplicity.
    """

    particles: str
    observables: str
    numbers: NDArray
    masses: NDArray
    pbc: NDArray
    charge: float
    spin: int

    @property
    def paths(self) -> list[str]:
        """Of the elements that grow with every frame; the first has `step` and `time`."""
        return [
            *(f"{self.particles}/{name}" for name in (*VECTORS, "species", "box/edges")),
            *(f"{self.observables}/{name}" for name in OBSERVABLES),
        ]

    def difference(self, other: _Atoms) -> str:
        """In which respect the other one is something else, if any."""
        for what in ("numbers", "masses", "pbc", "charge", "spin"):
            if not np.array_equal(getattr(self, what), getattr(other, what)):
                return {"numbers": "elements", "pbc": "periodic directions"}.get(what, what)
        return ""


class H5MDWriter:
    """Writes an H5MD trajectory, whole at any moment: a callback of `md.run`.

    Also after kill -9, a full disk or a power cut, and while the run goes on, the file is a closed
    one that any reader opens; what may be missing are the frames of the last 10 seconds or 64 MB
    (longer only where writing them takes more than half a second).
    HDF5 cannot append so safely. So there are two files: a hidden twin beside the visible one gets
    the new frames, is closed, and then takes its place; the old one is the next twin. A running
    trajectory therefore takes twice its size on disk, until the run ends. The twin that a killed
    run leaves (.NAME.twin) is removed when the run is resumed.

    Time is step times timestep. Fixed atoms are stored like all others.

    Args:
        path: new file; its name should end in .h5md, by which MDAnalysis and ASE know it.
        every: steps between frames.
        author: name of who runs it, which the format asks for.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(self, path: str | Path, *, every: int = 100, author: str = "unknown") -> None:
        if every < 1:
            raise ValueError(f"every must be a positive integer, got {every!r}")
        # a link to another disk stays one when the file behind it is replaced
        self.path, self.every, self.author = Path(path).resolve(), every, author
        self._twin = self.path.with_name(f".{self.path.name}.twin")
        self._spare = self.path.with_name(f".{self.path.name}.spare")
        self._atoms: list[_Atoms] = []  # of a run that is going on
        self._timestep = 0.0  # fs
        self._frames: list[_Frame] = []  # all that the twin lacks: old ones on disk, new ones not
        self._step_on_disk = -1
        self._bytes_waiting = 0
        self._flush_after = 0.0  # on the clock of time.monotonic

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite; the file comes with its first frame.

        Raises:
            FileExistsError: the file exists.
            FileNotFoundError: its folder does not.
        """
        if self.path.exists():
            raise FileExistsError(
                f"{self.path} exists: choose another name, nothing is overwritten"
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no such folder: {self.path.parent}")
        self._start(state, integrator, step_on_disk=-1)

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Go on behind this state; frames beyond it are cut off.

        So is a last one that is no multiple of `every`: a run that was not stopped has none there.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is no trajectory of these atoms and this timestep, has them elsewhere,
                begins after this state or ends before it, or is damaged.
        """
        atoms, timestep = _atoms_of(state), integrator.timestep / units.fs
        with _opened(self.path) as file:
            _check_same(_described(file), atoms)
            steps, times = _clock(file, atoms)
            n_kept = int(np.searchsorted(steps, state.step, side="right"))
            if n_kept and steps[n_kept - 1] == state.step:
                there = np.concatenate(
                    [file[f"{one.particles}/position/value"][n_kept - 1] for one in atoms]
                )
                if not np.array_equal(there, state.system.positions.cpu().numpy()):
                    raise ValueError(
                        "its atoms are elsewhere: this is the trajectory of another run"
                    )
            # a frame that was written only because the run was stopped there
            if n_kept > 1 and steps[n_kept - 1] % self.every:
                n_kept -= 1
            if n_kept == 0:
                raise ValueError(
                    f"it begins with step {steps[0]}, the run goes on from step {state.step}: "
                    "this is the trajectory of another run"
                )
            expected = state.step - state.step % self.every
            if steps[n_kept - 1] < expected:
                raise ValueError(
                    f"it ends with step {steps[n_kept - 1]}, the run goes on from step {state.step}"
                )
            last, last_time = int(steps[n_kept - 1]), float(times[n_kept - 1])
            if not np.isclose(last_time, last * timestep, rtol=1e-9, atol=0):
                raise ValueError(
                    f"it was written with a timestep of {last_time / last:g} fs, the run goes on "
                    f"with {timestep:g} fs"
                )
        self._start(state, integrator, step_on_disk=last)
        if n_kept < len(steps):
            self._cut(n_kept)

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
        frame = _frame(state, self._timestep)
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
        """
        began = time.monotonic()
        if not self._frames or self._frames[-1].step <= self._step_on_disk:
            return
        with self._whole_twin():
            if self._step_on_disk < 0:
                _create(self._twin, self._atoms, self._frames[0], self.author)
            with self._open_twin() as file:
                _append(file, self._atoms, self._frames)
        if self._step_on_disk < 0:
            self._appear()
        else:
            self._take_place()
        self._frames = [frame for frame in self._frames if frame.step > self._step_on_disk]
        self._step_on_disk, self._bytes_waiting = self._frames[-1].step, 0
        now = time.monotonic()
        self._flush_after = now + max(BUFFER_SECONDS, (now - began) / LARGEST_SHARE)

    def end(self) -> None:
        """Write what waits, and leave nothing but the trajectory."""
        if not self._atoms:  # refused to begin: what is there is not ours
            return
        try:
            self.flush()
        finally:
            self._remove_hidden()
            self._atoms, self._frames = [], []

    def _start(self, state: MDState, integrator: Integrator, *, step_on_disk: int) -> None:
        self._atoms, self._timestep = _atoms_of(state), integrator.timestep / units.fs
        self._frames, self._step_on_disk, self._bytes_waiting = [], step_on_disk, 0
        self._flush_after = time.monotonic() + BUFFER_SECONDS
        self._remove_hidden()

    def _cut(self, n_frames: int) -> None:
        with self._whole_twin(), self._open_twin() as file:
            for dataset in _growing(file, self._atoms):
                dataset.resize(n_frames, axis=0)
        self._take_place()
        self._twin.unlink(missing_ok=True)  # it still has what was cut off

    @contextmanager
    def _whole_twin(self) -> Iterator[None]:
        """What is done to the twin is on disk afterwards, or there is no twin."""
        try:
            with _named(self.path):
                yield
            _to_disk(self._twin, os.O_RDWR)
        except BaseException:
            self._twin.unlink(missing_ok=True)
            raise

    def _open_twin(self) -> h5py.File:
        # opening fails where there is no twin yet, and where somebody still reads the file that
        # was the visible one: HDF5 has locked it, and to that reader it must not change
        try:
            return h5py.File(self._twin, "r+")
        except OSError:
            self._twin.unlink(missing_ok=True)
            shutil.copyfile(self.path, self._twin)
            return h5py.File(self._twin, "r+")

    def _appear(self) -> None:
        """The twin becomes the visible file, which there was not."""
        try:
            os.link(self._twin, self.path)  # refuses, other than a renaming, to replace a file
        except FileExistsError:
            raise FileExistsError(f"{self.path} exists: nothing is overwritten") from None
        except OSError:  # a file system without links
            os.rename(self._twin, self.path)
        self._twin.unlink(missing_ok=True)
        _folder_to_disk(self.path.parent)

    def _take_place(self) -> None:
        """The twin becomes the visible file, and what was visible the twin."""
        self._spare.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links: the next twin will be a copy
            os.link(self.path, self._spare)
        os.replace(self._twin, self.path)
        if self._spare.exists():
            os.replace(self._spare, self._twin)
        _folder_to_disk(self.path.parent)

    def _remove_hidden(self) -> None:
        self._twin.unlink(missing_ok=True)
        self._spare.unlink(missing_ok=True)


def read_h5md(
    path: str | Path | BinaryIO, index: int | slice = slice(None), system: int = 0
) -> list[Atoms]:
    """Frames of a trajectory that `H5MDWriter` wrote.

    They have positions, cell, periodic directions, masses, momenta, energy and forces, all in ASE's
    units, and in `info` what the run says of them: "step", "time_fs", "charge" and "spin".

    Args:
        path: file, by name or open for binary reading.
        index: of one frame or several, as of a list.
        system: which one of a batch.

    Returns:
        A list, also for a single frame.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: there is no such frame, or no such system.
        ValueError: it is no trajectory that attncalc wrote, or damaged; the message names the file.
    """
    return list(iread_h5md(path, index, system))


def iread_h5md(
    path: str | Path | BinaryIO, index: int | slice = slice(None), system: int = 0
) -> Iterator[Atoms]:
    """As `read_h5md`, one frame after the other, for trajectories larger than memory.

    Args:
        path: file, by name or open for binary reading.
        index: of one frame or several, as of a list.
        system: which one of a batch.

    Raises:
        FileNotFoundError, IndexError, ValueError: as `read_h5md`.
    """
    with _opened(path) as file:
        of_systems = _described(file)
        if not 0 <= system < len(of_systems):
            raise IndexError(f"{_name(path)} holds {len(of_systems)} systems, not number {system}")
        atoms = of_systems[system]
        steps, times = _clock(file, [atoms])
        try:
            chosen = range(len(steps))[index]
        except IndexError:
            raise IndexError(f"{_name(path)} holds {len(steps)} frames, not {index}") from None
        if isinstance(chosen, int):
            chosen = range(chosen, chosen + 1)
        at_once = max(1, min(CHUNK_FRAMES, BLOCK_BYTES // (72 * len(atoms.numbers))))
        for first in range(0, len(chosen), at_once):
            some = chosen[first : first + at_once]
            columns = [_rows(file[f"{path}/value"], some) for path in atoms.paths]
            for n, *values in zip(some, *columns, strict=True):
                yield _to_ase(atoms, int(steps[n]), float(times[n]), *values)


def _rows(dataset: h5py.Dataset, rows: range) -> NDArray:
    """In their order, which HDF5 knows only upwards."""
    upwards = rows if rows.step > 0 else rows[::-1]
    values = dataset[upwards.start : upwards.stop : upwards.step]
    return values if rows.step > 0 else values[::-1]


def _to_ase(
    atoms: _Atoms,
    step: int,
    time: float,
    position: NDArray,
    velocity: NDArray,
    force: NDArray,
    _: NDArray,
    edges: NDArray,
    potential_energy: float,
    *__: float,
) -> Atoms:
    """A frame; values in the order of `_Atoms.paths`."""
    structure = Atoms(
        numbers=atoms.numbers,
        positions=position,
        masses=atoms.masses,
        momenta=velocity * VELOCITY * atoms.masses[:, None],
        cell=edges,
        pbc=atoms.pbc,
        info={"step": step, "time_fs": time, "charge": int(atoms.charge), "spin": atoms.spin},
    )
    structure.calc = SinglePointCalculator(
        structure, energy=float(potential_energy), forces=force * FORCE
    )
    return structure


def _atoms_of(state: MDState) -> list[_Atoms]:
    system = state.system
    names = ["atoms"] if system.n_systems == 1 else _names(system.n_systems)
    return [
        _Atoms(
            particles=f"particles/{name}",
            # those of the only system stand where every reader looks for them
            observables="observables" if system.n_systems == 1 else f"observables/{name}",
            numbers=_numbers(numbers),
            masses=_numbers(masses),
            pbc=_numbers(system.pbc[k]),
            charge=float(system.charge[k]),
            spin=int(system.spin[k]),
        )
        for k, (name, numbers, masses) in enumerate(
            zip(
                names,
                system.split(system.atomic_numbers),
                system.split(state.masses),
                strict=True,
            )
        )
    ]


def _names(n_systems: int) -> list[str]:
    return [f"system_{k:04d}" for k in range(n_systems)]


def _frame(state: MDState, timestep: float) -> _Frame:
    """A state; `timestep` in fs."""
    vectors = [
        _numbers(state.system.positions),
        _numbers(state.velocities) / VELOCITY,
        _numbers(state.forces) / FORCE,
    ]
    observables = (state.energy, state.kinetic_energy, state.conserved, state.temperature)
    return _Frame(
        step=state.step,
        time=state.step * timestep,
        vectors=vectors,
        edges=_numbers(state.system.cell),
        observables=[_numbers(value) for value in observables],
    )


def _columns(of_systems: Sequence[_Atoms], frames: Sequence[_Frame]) -> Iterator[NDArray]:
    """What frames add to the datasets of `_growing`, [n_frames, ...] each."""
    yield np.array([frame.step for frame in frames])
    yield np.array([frame.time for frame in frames])
    vectors = [np.stack(arrays) for arrays in zip(*(f.vectors for f in frames), strict=True)]
    edges = np.stack([frame.edges for frame in frames])
    observables = [np.stack(a) for a in zip(*(f.observables for f in frames), strict=True)]
    first = 0
    for k, atoms in enumerate(of_systems):
        mine = slice(first, first := first + len(atoms.numbers))
        yield from (column[:, mine] for column in vectors)
        yield np.tile(atoms.numbers.astype(np.int8), (len(frames), 1))
        yield from (column[:, k] for column in (edges, *observables))


def _numbers(tensor: Tensor) -> NDArray:
    """A copy on the host, floating-point numbers as float64."""
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else array.dtype)


def _create(path: Path, of_systems: Sequence[_Atoms], like: _Frame, author: str) -> None:
    """A trajectory without frames."""
    with h5py.File(path, "w") as file:
        file.create_group("h5md").attrs["version"] = np.array([1, 1])
        file.create_group("h5md/author").attrs["name"] = author
        creator = file.create_group("h5md/creator")
        creator.attrs["name"], creator.attrs["version"] = CREATOR, _version()
        first = of_systems[0].paths[0]
        _grow(file.create_group(first), "step", np.int64(0))
        _grow(file[first], "time", np.float64(0)).attrs["unit"] = "fs"
        _, _, *columns = _columns(of_systems, [like])
        elements = [element for atoms in of_systems for element in atoms.paths]
        for element, column in zip(elements, columns, strict=True):
            group = file.require_group(element)
            if element != first:
                group["step"], group["time"] = file[first]["step"], file[first]["time"]
            dataset = _grow(group, "value", column[0])
            if unit := UNITS.get(element.rpartition("/")[2]):
                dataset.attrs["unit"] = unit
        for atoms in of_systems:
            _describe(file, atoms, like)


def _describe(file: h5py.File, atoms: _Atoms, like: _Frame) -> None:
    """Write what all frames share."""
    group = file[atoms.particles]
    group.attrs["total_charge"], group.attrs["spin_multiplicity"] = atoms.charge, atoms.spin
    group["box"].attrs["dimension"] = 3
    group["box"].attrs["boundary"] = ["periodic" if one else "none" for one in atoms.pbc]
    # masses are legal without step and time, but not all readers know that
    mass = group.create_group("mass")
    mass["step"], mass["time"], mass["value"] = [like.step], [like.time], atoms.masses[None]
    mass["time"].attrs["unit"], mass["value"].attrs["unit"] = "fs", "u"


def _grow(group: h5py.Group, name: str, like: NDArray | np.generic) -> h5py.Dataset:
    """A dataset for values like this one, without any so far."""
    rows = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // like.nbytes))
    return group.create_dataset(
        name,
        shape=(0, *like.shape),
        maxshape=(None, *like.shape),
        chunks=(rows, *like.shape),
        dtype=like.dtype,
    )


def _append(file: h5py.File, of_systems: Sequence[_Atoms], frames: Sequence[_Frame]) -> None:
    """Write those frames that the file lacks."""
    steps, *_ = _growing(file, of_systems)
    n = len(steps)
    last = steps[n - 1] if n else -1
    frames = [frame for frame in frames if frame.step > last]
    if not frames:  # Ctrl-C came between writing and renaming
        return
    columns = _columns(of_systems, frames)
    for dataset, column in zip(_growing(file, of_systems), columns, strict=True):
        dataset.resize(n + len(frames), axis=0)
        dataset[n:] = column


def _growing(file: h5py.File, of_systems: Sequence[_Atoms]) -> Iterator[h5py.Dataset]:
    """Steps, times, then all that has one value a frame."""
    first = file[of_systems[0].paths[0]]
    yield from (first["step"], first["time"])
    for atoms in of_systems:
        yield from (file[f"{element}/value"] for element in atoms.paths)


def _described(file: h5py.File) -> list[_Atoms]:
    """All systems of a trajectory."""
    creator = file["h5md/creator"].attrs["name"]
    if creator != CREATOR:
        raise ValueError(f"an H5MD file by {creator}; only those by {CREATOR} are read")
    names = sorted(file["particles"])
    if not names or (names != ["atoms"] and names != _names(len(names))):
        raise ValueError("the groups of particles are not those of a trajectory, it is damaged")
    return [
        _Atoms(
            particles=f"particles/{name}",
            observables="observables" if names == ["atoms"] else f"observables/{name}",
            numbers=group["species/value"][0].astype(np.int64),
            masses=group["mass/value"][0],
            pbc=np.array([one == "periodic" for one in group["box"].attrs["boundary"]]),
            charge=float(group.attrs["total_charge"]),
            spin=int(group.attrs["spin_multiplicity"]),
        )
        for name, group in ((name, file["particles"][name]) for name in names)
    ]


def _check_same(found: Sequence[_Atoms], expected: Sequence[_Atoms]) -> None:
    """Refuse to mix two runs."""
    if len(found) != len(expected):
        raise ValueError(f"it holds {len(found)} systems, the run has {len(expected)}")
    for ours, theirs in zip(expected, found, strict=True):
        if what := ours.difference(theirs):
            raise ValueError(f"{ours.particles} has other {what} than the run")


def _clock(file: h5py.File, of_systems: Sequence[_Atoms]) -> tuple[NDArray, NDArray]:
    """Steps and times [fs] of these systems, which all have as many frames."""
    steps, times, *values = _growing(file, of_systems)
    if {len(steps)} != {len(one) for one in (times, *values)} or not len(steps):
        raise ValueError("its elements have different numbers of frames, or none: it is damaged")
    return steps[:], times[:]


@contextmanager
def _opened(path: str | Path | BinaryIO) -> Iterator[h5py.File]:
    """A file to read."""
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with _named(path), h5py.File(path, "r") as file:
        yield file


@contextmanager
def _named(path: str | Path | BinaryIO) -> Iterator[None]:
    """Whatever is wrong with a file is said with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(one_line(f"{_name(path)}: {error}")) from None
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # locked, no permission or space: tells that
            raise
        raise ValueError(
            one_line(f"{_name(path)}: not a trajectory that {CREATOR} wrote, or damaged ({error})")
        ) from None


def _name(path: str | Path | BinaryIO) -> str:
    return str(path) if isinstance(path, str | Path) else str(getattr(path, "name", "H5MD file"))


def _version() -> str:
    try:
        return version(CREATOR)
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def _to_disk(path: Path, how: int) -> None:
    number = os.open(path, how)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _folder_to_disk(folder: Path) -> None:
    """So that a power cut cannot undo a renaming; Windows cannot, and needs not."""
    if os.name == "posix":
        _to_disk(folder, os.O_RDONLY)
