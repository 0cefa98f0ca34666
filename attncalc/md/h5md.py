"""Layout of an H5MD trajectory, shared by its writer and its reader.

The format is H5MD 1.1 (https://nongnu.org/h5md). One system is `/particles/atoms`; a batch is
`/particles/system_0000` and so on, with observables under the same names. Every element is a group
of `value`, `step` and `time`; all share one `step` and one `time` (hard links) except masses and
fixed atoms, which have one frame for all. The elements, with their attribute `unit`:

| element                                                  | value per frame | unit                |
|----------------------------------------------------------|-----------------|---------------------|
| position; box/edges                                      | [n, 3]; [3, 3]  | Angstrom            |
| velocity                                                 | [n, 3]          | Angstrom fs-1       |
| force                                                    | [n, 3]          | kJ mol-1 Angstrom-1 |
| species (atomic numbers)                                 | [n]             |                     |
| mass                                                     | [n]             | u                   |
| observables: potential_energy, kinetic_energy, conserved | one             | eV                  |
| observables: temperature                                 | one             | K                   |
| fixed (bool; only where atoms are)                       | [n]             |                     |
| observables: force_spread (only of a committee)          | one             | eV Angstrom-1       |
| observables: pressure (only if periodic in 3 directions) | one             | GPa                 |
| charge (partial charges; only on request)                | [n]             | e                   |
| observables: dipole (only on request)                    | [3]             | e Angstrom          |
| observables: stress (of the potential; only on request)  | [3, 3]          | eV Angstrom-3       |
| observables: novelty (the largest; only where known)     | one             |                     |
| observables/dt: time between frames, of all systems      | one             | ps                  |

`parameters/noise` has `seed` and `replicas`, which a resumed run compares.

MDAnalysis knows these units; it refuses forces in eV/Å. It reads the time between frames from an
observable called dt, in ps, and otherwise assumes 1 ps. Files before version 0.2 have no dt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
from ase import units
from numpy.typing import NDArray

from attncalc.files.hdf5_reading import LocalFile
from attncalc.text import one_line

# HDF5 reads and writes whole chunks, and a dataset takes at least one
CHUNK_BYTES = 1 << 16
CHUNK_FRAMES = 512

# units of the file, in ASE's
FORCE = units.kJ / units.mol
VELOCITY = 1 / units.fs

UNITS = {
    "position": "Angstrom",
    "edges": "Angstrom",
    "velocity": "Angstrom fs-1",
    "force": "kJ mol-1 Angstrom-1",
    "charge": "e",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "conserved": "eV",
    "temperature": "K",
}
OBSERVABLES = ("potential_energy", "kinetic_energy", "conserved", "temperature")
INTERVAL = "observables/dt"
NOISE = "parameters/noise"
DIPOLE, DIPOLE_UNIT = "dipole", "e Angstrom"
STRESS, STRESS_UNIT = "stress", "eV Angstrom-3"
# of those that are not one number
SHAPES = {DIPOLE: (3,), STRESS: (3, 3)}
VECTORS = ("position", "velocity", "force")
CREATOR = "attncalc"
# names in messages, for the data that all frames of a system share
NAMES = {
    "numbers": "elements",
    "masses": "masses",
    "pbc": "periodic directions",
    "charge": "charge",
    "spin": "spin",
    "fixed": "fixed atoms",
    "others": "observables",
    "has_charges": "partial charges",
}


class Frame(NamedTuple):
    """State in the units of the file, with all systems of the batch together."""

    step: int
    time: float  # fs
    interval: float  # ps, to the next frame
    vectors: list[NDArray]  # [n_atoms, 3] each, as VECTORS
    edges: NDArray  # [n_systems, 3, 3]
    observables: list[NDArray]  # [n_systems, ...] each, as OBSERVABLES, then as `others`
    charges: NDArray | None = None  # [n_atoms] e

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        charges = [] if self.charges is None else [self.charges]
        arrays = (*self.vectors, self.edges, *self.observables, *charges)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class StoredSystem:
    """Description of a system that all its frames share.

    Attributes:
        particles, observables: paths of its groups in the file.
        numbers: [n], atomic numbers.
        masses: [n] amu.
        pbc: [3], bool.
        charge: total charge, e.
        spin: multiplicity.
        fixed: [n], bool: True for fixed atoms.
        others: names and units of further observables, sorted.
        has_charges: whether its frames have partial charges.
    """

    particles: str
    observables: str
    numbers: NDArray
    masses: NDArray
    pbc: NDArray
    charge: float
    spin: int
    fixed: NDArray
    others: tuple[tuple[str, str], ...]
    has_charges: bool = False

    @property
    def paths(self) -> list[str]:
        """Paths of the elements that grow with every frame; the first has `step` and `time`."""
        return [
            *(f"{self.particles}/{name}" for name in (*VECTORS, "species", "box/edges")),
            *(f"{self.observables}/{name}" for name in OBSERVABLES),
            *(f"{self.observables}/{name}" for name, _ in self.others),
            *([f"{self.particles}/charge"] if self.has_charges else []),
        ]

    def difference(self, other: StoredSystem) -> str:
        """Name the first property in which the other system differs; "" if none."""
        for what, name in NAMES.items():
            if not np.array_equal(getattr(self, what), getattr(other, what)):
                return name
        return ""


def system_names(n_systems: int) -> list[str]:
    """Return the names of the groups of a batch."""
    return [f"system_{k:04d}" for k in range(n_systems)]


def _columns(
    of_systems: Sequence[StoredSystem], frames: Sequence[Frame], *, has_interval: bool
) -> Iterator[NDArray]:
    """Yield the values that frames add to the datasets of `growing`, [n_frames, ...] each."""
    yield np.array([frame.step for frame in frames])
    yield np.array([frame.time for frame in frames])
    if has_interval:
        yield np.array([frame.interval for frame in frames])
    vectors = [np.stack(arrays) for arrays in zip(*(f.vectors for f in frames), strict=True)]
    edges = np.stack([frame.edges for frame in frames])
    observables = [np.stack(a) for a in zip(*(f.observables for f in frames), strict=True)]
    charges = [frame.charges for frame in frames if frame.charges is not None]
    first = 0
    for k, atoms in enumerate(of_systems):
        mine = slice(first, first := first + len(atoms.numbers))
        yield from (column[:, mine] for column in vectors)
        yield np.tile(atoms.numbers.astype(np.int8), (len(frames), 1))
        yield from (column[:, k] for column in (edges, *observables))
        if atoms.has_charges:
            yield np.stack([one[mine] for one in charges])


def create(
    file: h5py.File,
    of_systems: Sequence[StoredSystem],
    like: Frame,
    author: str,
    noise: Mapping[str, Any],
) -> None:
    """Create the groups and datasets of a trajectory without frames in an empty file.

    `noise` are seed and replicas: what distinguishes the run from others of the same atoms.
    """
    for name, values in noise.items():
        file[f"{NOISE}/{name}"] = values
    file.create_group("h5md").attrs["version"] = np.array([1, 1])
    file.create_group("h5md/author").attrs["name"] = author
    creator = file.create_group("h5md/creator")
    creator.attrs["name"], creator.attrs["version"] = CREATOR, _version()
    first = of_systems[0].paths[0]
    _grow(file.create_group(first), "step", np.int64(0))
    _grow(file[first], "time", np.float64(0)).attrs["unit"] = "fs"
    interval = file.create_group(INTERVAL)
    interval["step"], interval["time"] = file[first]["step"], file[first]["time"]
    _grow(interval, "value", np.float64(0)).attrs["unit"] = "ps"
    _, _, *columns = _columns(of_systems, [like], has_interval=False)
    elements = [element for atoms in of_systems for element in atoms.paths]
    all_units = UNITS | {name: unit for atoms in of_systems for name, unit in atoms.others}
    for element, column in zip(elements, columns, strict=True):
        group = file.require_group(element)
        if element != first:
            group["step"], group["time"] = file[first]["step"], file[first]["time"]
        dataset = _grow(group, "value", column[0])
        if unit := all_units.get(element.rpartition("/")[2]):
            dataset.attrs["unit"] = unit
    for atoms in of_systems:
        _describe(file, atoms, like)


def _describe(file: h5py.File, atoms: StoredSystem, like: Frame) -> None:
    """Write the data that all frames share."""
    group = file[atoms.particles]
    group.attrs["total_charge"], group.attrs["spin_multiplicity"] = atoms.charge, atoms.spin
    group["box"].attrs["dimension"] = 3
    group["box"].attrs["boundary"] = ["periodic" if one else "none" for one in atoms.pbc]
    _describe_once(group.create_group("mass"), atoms.masses, like).attrs["unit"] = "u"
    if atoms.fixed.any():
        _describe_once(group.create_group("fixed"), atoms.fixed, like)


def _describe_once(group: h5py.Group, values: NDArray, like: Frame) -> h5py.Dataset:
    """Write one frame for all; step and time are optional then, but some readers need them."""
    group["step"], group["time"], group["value"] = [like.step], [like.time], values[None]
    group["time"].attrs["unit"] = "fs"
    return group["value"]


def _grow(group: h5py.Group, name: str, like: NDArray | np.generic) -> h5py.Dataset:
    """Create an empty dataset for values like this one."""
    rows = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // like.nbytes))
    return group.create_dataset(
        name,
        shape=(0, *like.shape),
        maxshape=(None, *like.shape),
        chunks=(rows, *like.shape),
        dtype=like.dtype,
    )


def append(file: h5py.File, of_systems: Sequence[StoredSystem], frames: Sequence[Frame]) -> None:
    """Write those frames that are not in the file yet."""
    steps, *_ = growing(file, of_systems)
    n = len(steps)
    last = steps[n - 1] if n else -1
    frames = [frame for frame in frames if frame.step > last]
    if not frames:  # Ctrl-C came between writing and renaming
        return
    columns = _columns(of_systems, frames, has_interval=INTERVAL in file)
    for dataset, column in zip(growing(file, of_systems), columns, strict=True):
        dataset.resize(n + len(frames), axis=0)
        dataset[n:] = column


def growing(file: h5py.File, of_systems: Sequence[StoredSystem]) -> Iterator[h5py.Dataset]:
    """Yield the datasets with one value per frame: steps, times, then all others."""
    first = file[of_systems[0].paths[0]]
    yield from (first["step"], first["time"])
    if INTERVAL in file:
        yield file[INTERVAL]["value"]
    for atoms in of_systems:
        yield from (file[f"{element}/value"] for element in atoms.paths)


def described(file: h5py.File) -> list[StoredSystem]:
    """Read the description of all systems of a trajectory."""
    creator = file["h5md/creator"].attrs["name"]
    if creator != CREATOR:
        raise ValueError(f"an H5MD file by {creator}; only those by {CREATOR} are read")
    groups = set(file["particles"])
    names = ["atoms"] if groups == {"atoms"} else system_names(len(groups))
    if not groups or groups != set(names):
        raise ValueError("the groups of particles are not those of a trajectory, it is damaged")
    found = [_described(file, f"particles/{name}") for name in names]
    for atoms in found:
        if atoms.fixed.shape != atoms.numbers.shape:
            raise ValueError(f"{atoms.particles}/fixed has not one value an atom, it is damaged")
        if atoms.has_charges:
            _check_shape(file, f"{atoms.particles}/charge", atoms.numbers.shape)
        for name, _ in atoms.others:
            if shape := SHAPES.get(name):
                _check_shape(file, f"{atoms.observables}/{name}", shape)
    return found


def _check_shape(file: h5py.File, element: str, shape: tuple[int, ...]) -> None:
    if (found := file[f"{element}/value"].shape[1:]) != shape:
        raise ValueError(
            f"a frame of {element} has the shape {list(found)} and not {list(shape)}, it is damaged"
        )


def _described(file: h5py.File, particles: str) -> StoredSystem:
    group, name = file[particles], particles.rpartition("/")[2]
    numbers = group["species/value"][0].astype(np.int64)
    observables = "observables" if name == "atoms" else f"observables/{name}"
    return StoredSystem(
        particles=particles,
        observables=observables,
        numbers=numbers,
        masses=group["mass/value"][0],
        pbc=np.array([one == "periodic" for one in group["box"].attrs["boundary"]]),
        charge=float(group.attrs["total_charge"]),
        spin=int(group.attrs["spin_multiplicity"]),
        fixed=group["fixed/value"][0] if "fixed" in group else np.zeros(len(numbers), dtype=bool),
        others=_others(file[observables]),
        has_charges="charge" in group,
    )


def _others(observables: h5py.Group) -> tuple[tuple[str, str], ...]:
    """Return names and units of observables that not every run has, sorted."""
    known = {*OBSERVABLES, INTERVAL.rpartition("/")[2]}
    found = (name for name in sorted(observables) if name not in known)
    values = ((name, observables[name].get("value")) for name in found)
    # systems of a batch have groups here, without a value
    return tuple((name, str(one.attrs.get("unit", ""))) for name, one in values if one is not None)


def check_same(found: Sequence[StoredSystem], expected: Sequence[StoredSystem]) -> None:
    """Refuse a trajectory whose systems are not those of the run."""
    if len(found) != len(expected):
        raise ValueError(f"it holds {len(found)} systems, the run has {len(expected)}")
    for ours, theirs in zip(expected, found, strict=True):
        if what := ours.difference(theirs):
            raise ValueError(f"{ours.particles} has other {what} than the run")


def clock(file: h5py.File, of_systems: Sequence[StoredSystem]) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Return the datasets of steps and times [fs]; check that all others have as many frames."""
    steps, times, *values = growing(file, of_systems)
    if {len(steps)} != {len(one) for one in (times, *values)} or not len(steps):
        raise ValueError("its elements have different numbers of frames, or none: it is damaged")
    return steps, times


@contextmanager
def opened(path: str | Path | BinaryIO) -> Iterator[h5py.File]:
    """Open a trajectory to read it."""
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with named(path), LocalFile(path) as file:
        yield file


@contextmanager
def named(path: str | Path | BinaryIO) -> Iterator[None]:
    """Put the name of a file into errors about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(one_line(f"{name_of(path)}: {error}")) from None
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # locked, no permission or no space
            raise
        raise ValueError(
            one_line(
                f"{name_of(path)}: not a trajectory that {CREATOR} wrote, or damaged ({error})"
            )
        ) from None


def name_of(path: str | Path | BinaryIO) -> str:
    """Return the name of a file for messages."""
    return str(path) if isinstance(path, str | Path) else str(getattr(path, "name", "H5MD file"))


def _version() -> str:
    try:
        return version(CREATOR)
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
