"""Reader of H5MD trajectories, which returns frames as `ase.Atoms`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from attncalc.md.h5md import (
    CHUNK_FRAMES,
    DIPOLE,
    FORCE,
    OBSERVABLES,
    STRESS,
    VELOCITY,
    StoredSystem,
    clock,
    described,
    name_of,
    opened,
)
from attncalc.md.integrator import FORCE_SPREAD
from attncalc.md.log_file import SPREAD

# read at once
BLOCK_BYTES = 1 << 23


def read_h5md(
    path: str | Path | BinaryIO, index: int | slice = slice(None), system: int | None = 0
) -> list[Atoms]:
    """Read frames of a trajectory that `H5MDWriter` wrote.

    They have positions, cell, periodic directions, masses, momenta, energy and forces, all in ASE's
    units, and the constraint `FixAtoms` if atoms are fixed; the model's forces on these are those
    of `get_forces(apply_constraint=False)`. `info` has "step", "time_fs", "charge", "spin" and, if
    the log has them, "force_spread_eV_A", "pressure_GPa" and "novelty". Charges (e), dipole (e Å)
    and stress (eV/Å³, of the potential) are results like energy and forces, if the run has written
    them.

    Args:
        path: file, by name or open for binary reading.
        index: index or slice of frames, as of a list.
        system: number of a system of a batch; None: all, one after the other.

    Returns:
        A list, also for a single frame.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: there is no such frame, or no such system.
        ValueError: it is not a trajectory that attncalc wrote, or damaged; the message names the
            file.
    """
    return list(iread_h5md(path, index, system))


def iread_h5md(
    path: str | Path | BinaryIO, index: int | slice = slice(None), system: int | None = 0
) -> Iterator[Atoms]:
    """Yield what `read_h5md` returns frame by frame, for trajectories larger than memory."""
    with opened(path) as file:
        wanted = described(file) if system is None else [_one_system(file, path, system)]
        steps, times = clock(file, wanted)
        try:
            chosen = range(len(steps))[index]
        except IndexError:
            raise IndexError(f"{name_of(path)} holds {len(steps)} frames, not {index}") from None
        if isinstance(chosen, int):
            chosen = range(chosen, chosen + 1)
        for atoms in wanted:
            at_once = max(1, min(CHUNK_FRAMES, BLOCK_BYTES // (72 * len(atoms.numbers))))
            for first in range(0, len(chosen), at_once):
                some = chosen[first : first + at_once]
                columns = [_rows(file[f"{path}/value"], some) for path in atoms.paths]
                of_time = (_rows(steps, some), _rows(times, some))
                for step, time, *values in zip(*of_time, *columns, strict=True):
                    yield _to_ase(atoms, int(step), float(time), *values)


def count_h5md(path: str | Path | BinaryIO, system: int = 0) -> int:
    """Return the number of frames of a trajectory; arguments and errors as in `read_h5md`."""
    with opened(path) as file:
        return len(clock(file, [_one_system(file, path, system)])[0])


def count_systems_h5md(path: str | Path | BinaryIO) -> int:
    """Return the number of systems of a trajectory; errors as in `count_h5md`."""
    with opened(path) as file:
        return len(described(file))


def _one_system(file: h5py.File, path: str | Path | BinaryIO, system: int) -> StoredSystem:
    of_systems = described(file)
    if not 0 <= system < len(of_systems):
        raise IndexError(f"{name_of(path)} holds {len(of_systems)} systems, not number {system}")
    return of_systems[system]


def _rows(dataset: h5py.Dataset, rows: range) -> NDArray:
    """Read rows in their order; HDF5 reads rows only in ascending order."""
    upwards = rows if rows.step > 0 else rows[::-1]
    values = dataset[upwards.start : upwards.stop : upwards.step]
    return values if rows.step > 0 else values[::-1]


def _to_ase(
    atoms: StoredSystem,
    step: int,
    time: float,
    position: NDArray,
    velocity: NDArray,
    force: NDArray,
    _: NDArray,
    edges: NDArray,
    potential_energy: float,
    *numbers: Any,
) -> Atoms:
    """Return a frame; values are in the order of `StoredSystem.paths`."""
    structure = Atoms(
        numbers=atoms.numbers,
        positions=position,
        masses=atoms.masses,
        momenta=velocity * VELOCITY * atoms.masses[:, None],
        cell=edges,
        pbc=atoms.pbc,
        info={"step": step, "time_fs": time, "charge": int(atoms.charge), "spin": atoms.spin},
    )
    if atoms.fixed.any():
        structure.set_constraint(FixAtoms(mask=atoms.fixed))
    others = list(numbers[len(OBSERVABLES) - 1 :])
    results = {"energy": float(potential_energy), "forces": force * FORCE}
    if atoms.has_charges:
        results["charges"] = others.pop()
    for (name, unit), value in zip(atoms.others, others, strict=True):
        if name == DIPOLE:
            results["dipole"] = value
            continue
        if name == STRESS:
            results["stress"] = full_3x3_to_voigt_6_stress(value)
            continue
        head = SPREAD if name == FORCE_SPREAD.name else f"{name}_{unit}".rstrip("_")
        structure.info[head] = float(value)
    structure.calc = SinglePointCalculator(structure, **results)
    return structure


def read_attnh5md(
    path: BinaryIO, index: int | slice = slice(None), **options: Any
) -> Iterator[Atoms]:
    """Yield what `iread_h5md` does; called by `ase.io`, see `attncalc.plugins.ase`."""
    if "system" not in options and (n := count_systems_h5md(path)) > 1:
        warnings.warn(
            f"{name_of(path)} holds {n} systems, and the first is read: system=1 reads the second, "
            "system=None all, one after the other",
            stacklevel=2,
        )
    return iread_h5md(path, index, **options)
