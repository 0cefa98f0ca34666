"""Molecular dynamics with ASE's integrators: trajectory, log, and a stop if a run explodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet

from attncalc.bonds import NONMETALS, Bonds, broken_text
from attncalc.files import Appended, NoSpaceLeft, naming_full_disk, refuse_existing
from attncalc.files.hdf5_writing import WritableFile
from attncalc.md.integrator import PRESSURE
from attncalc.md.log_file import COLUMNS, NOVELTY, SPREAD, LogSummary, line
from attncalc.md.noise import seed_of
from attncalc.md.settings import Settings
from attncalc.md.velocities import Thermometer, runaway, stop_fixed
from attncalc.md.watch import EVERY, sentence
from attncalc.novelty import outside_atom
from attncalc.signals import finished_before_ctrl_c
from attncalc.system import System

# bytes of a .traj file from and to which it has the number of frames and the place of their list
ULM_COUNT, ULM_POSITIONS = 32, 48
# those that projections of momenta maintain
LINEAR_CONSTRAINTS = (FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane)
# after an explosion
ADVICE = "Relax the structure first, use a shorter timestep, or a model trained on such structures"


def run_with_ase(
    atoms: Atoms,
    settings: Settings,
    trajectory: str | Path,
    *,
    progress: Callable[[int, str], None] | None = None,
    tell: Callable[[str], None] | None = None,
    stop: bool = False,
) -> LogSummary:
    """Run dynamics of atoms, in place, and write trajectory and log during the run.

    Velocities of the atoms are used if they have any; otherwise they are drawn at exactly the
    requested temperature. This temperature, and `temperature_K` of the log, count the degrees of
    freedom of the run: 3N in "nvt"; 3N - 3 in "npt" and, if periodic, in "nve"; for a molecule in
    "nve" 3N - 6, or 1 of two atoms; a single atom has 3. Motion that is not counted (drift,
    rotation) is not drawn.

    Frames with energy, forces and momenta, and step and time_fs in `info`, are written every
    `settings.every` steps and at the last; each is complete on disk before the next step. The log,
    NAME.csv, is beside the trajectory.

    Args:
        atoms: with a calculator.
        settings: of the run.
        trajectory: new file, extended XYZ (.xyz, .extxyz) or ASE (.traj).
        progress: called before the first step with 0 and after every step with 1, and with a status
            line of the last frame.
        tell: called with a message when an atom is outside the training data for the first time,
            and when a bond between two nonmetals is broken for the first time, checked as in
            `attncalc.md.watch`.
        stop: True: the run ends at the first step outside, which is written.

    Returns:
        Number of frames, the last line of the log, and those with the largest spread and novelty;
        `read_log` reads all lines.

    Raises:
        FileExistsError: the trajectory or its log exists.
        NoSpaceLeft: the disk is full. Trajectory and log have the same whole frames; if there are
            none, both are removed.
        FloatingPointError: the run exploded, which is checked after every step, and the trajectory
            ends with the last good frame; or the first state is unusable, and nothing is written.
        KeyboardInterrupt: Ctrl-C; the message says what is done. Trajectory and log have the same
            whole frames.
    """
    trajectory = Path(trajectory)
    log_file = trajectory.with_suffix(".csv")
    refuse_existing(trajectory, log_file)
    momenta, seed = atoms.get_momenta(), settings.seed
    if seed is None:
        seed = seed_of(momenta) if momenta.any() else 0
    rng = np.random.default_rng(seed)
    thermometer = Thermometer.for_run(atoms, settings.ensemble)
    stop_fixed(atoms)
    if not momenta.any():
        thermometer.draw(atoms, settings.temperature, rng)
    if settings.ensemble == "npt" and _remove_drift(atoms) and tell is not None:
        tell("ASE's npt would count the motion of the centre of mass as heat: removed")
    dynamics = _integrator(atoms, settings, rng)
    summary, told = LogSummary(), False
    bonds: Bonds | None = Bonds.of(System.from_ase(atoms), NONMETALS)
    look_every = 1 if stop else min(EVERY, settings.every)
    with (
        removed_if_empty(summary, (trajectory, log_file)),
        _advising(trajectory, summary),
        Frames(trajectory) as frames,
        closing(Appended(log_file)) as file,
    ):

        def observe() -> None:
            nonlocal told, bonds
            time = dynamics.get_time() / units.fs
            if what := _divergence(atoms, settings, thermometer.n_dof):
                raise _exploded(time, what, trajectory) if summary.n_rows else no_start(what)
            ends = dynamics.nsteps == settings.n_steps
            has_frame = ends or not dynamics.nsteps % settings.every
            if not told and (has_frame or not dynamics.nsteps % look_every):
                found = outside_atom(getattr(atoms.calc, "novelty", None), atoms.numbers)
                told, ends = found is not None, ends or (stop and found is not None)
                if found is not None and tell is not None:
                    tell(sentence(dynamics.nsteps, settings.timestep, found))
            if ends or has_frame:
                row = _observe(atoms, thermometer, time)
                if bonds and (broken := bonds.broken(System.from_ase(atoms))):
                    bonds = None
                    if tell is not None:
                        tell(sentence(dynamics.nsteps, settings.timestep, broken_text(broken)))
                with finished_before_ctrl_c():
                    atoms.info |= {"step": dynamics.nsteps, "time_fs": time}
                    before = frames.mark()
                    frames.write(atoms)
                    header = b"" if summary.n_rows else line(list(row))
                    try:
                        file.append(header + line(list(row.values())))
                    except NoSpaceLeft:
                        frames.cut(before)
                        raise
                    summary.add(row)
            if progress is not None and (last := summary.last) is not None:
                status = f"T {last['temperature_K']:.0f} K, E {last['total_eV']:.4f} eV"
                progress(1 if dynamics.nsteps else 0, status)

        dynamics.attach(observe, interval=1)
        try:
            for _ in dynamics.irun(settings.n_steps):
                if told and stop:
                    break
        except ValueError as error:  # from the calculator, which knows nothing of the run
            if not summary.n_rows:
                raise
            raise _exploded(dynamics.get_time() / units.fs, str(error), trajectory) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{dynamics.nsteps} of {settings.n_steps} steps are done; {trajectory.name} holds "
                + _frames_in(summary)
            ) from None
    return summary


def _frames_in(summary: LogSummary) -> str:
    end = "" if summary.last is None else f", to {summary.last['time_fs']:.1f} fs"
    return f"{summary.n_rows} whole frames{end}"


@contextmanager
def _advising(trajectory: Path, summary: LogSummary) -> Iterator[None]:
    """Add to the error of a full disk what was written and what to do."""
    try:
        yield
    except NoSpaceLeft as full:
        advice = "nothing of the run was kept: free some space and start it again"
        if summary.n_rows:
            advice = f"it holds {_frames_in(summary)}"
        raise NoSpaceLeft(trajectory, full.number, advice) from None


def _remove_drift(atoms: Atoms) -> bool:
    """Remove the momentum of the centre of mass, in place; return False if it was rounding."""
    momenta, masses = atoms.get_momenta(), atoms.get_masses()
    velocity = momenta.sum(0) / masses.sum()
    atoms.set_momenta(momenta - masses[:, None] * velocity)
    energy = 0.5 * masses.sum() * velocity @ velocity
    return bool(energy > 1e-6 * units.kB)  # of a millionth of a kelvin


def _integrator(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> MolecularDynamics:
    timestep = settings.timestep
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    kelvin = settings.temperature
    if settings.ensemble == "nvt":
        if all(isinstance(one, LINEAR_CONSTRAINTS) for one in atoms.constraints):
            return LangevinBAOAB(
                atoms, timestep, temperature_K=kelvin, T_tau=1 / settings.friction, rng=rng
            )
        # BAOAB does not ask constraints for positions: bonds of fixed length would grow
        friction = settings.friction
        return Langevin(
            atoms, timestep, temperature_K=kelvin, friction=friction, fixcm=False, rng=rng
        )
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        raise ValueError('ensemble "npt" needs a structure that is periodic in all directions')
    if atoms.constraints:
        raise ValueError(
            "ASE's npt knows no constraints: remove them, or use attncalc's integrator, which "
            "knows FixAtoms"
        )
    # ASE's thermostat heats 3N degrees of freedom, but the total momentum is conserved
    n_dof = Thermometer.for_run(atoms, "npt").n_dof
    return IsotropicMTKNPT(
        atoms,
        timestep,
        temperature_K=settings.temperature * n_dof / (3 * len(atoms)),
        pressure_au=settings.pressure * units.GPa,
        tdamp=100 * timestep,
        pdamp=1000 * timestep,
    )


def _observe(atoms: Atoms, thermometer: Thermometer, time: float) -> dict[str, float]:
    potential = atoms.get_potential_energy(apply_constraint=False)
    # the energy of springs is conserved together with that of the model
    total, kinetic = atoms.get_total_energy(), atoms.get_kinetic_energy()
    volume = atoms.get_volume() if atoms.cell.rank == 3 else float("nan")
    temperature = thermometer.temperature(atoms)
    numbers = (time, temperature, potential, kinetic, total, volume)
    row = dict(zip(COLUMNS, map(float, numbers), strict=True))
    if _has_pressure(atoms):
        row[PRESSURE.in_log] = _pressure(atoms, temperature) / units.GPa
    spread = getattr(atoms.calc, "spread", None)
    if spread is not None:
        row[SPREAD] = float(np.linalg.norm(spread["forces"], axis=1).max())
    novelty = getattr(atoms.calc, "novelty", None)
    if novelty is not None:
        row[NOVELTY] = float(novelty.max())
    return row


def _has_pressure(atoms: Atoms) -> bool:
    """Return True if the pressure of motion and forces is all there is, and can be calculated."""
    properties = getattr(atoms.calc, "implemented_properties", ())
    only_fixed = all(isinstance(one, FixAtoms) for one in atoms.constraints)
    return bool(atoms.pbc.all()) and only_fixed and "stress" in properties


def _pressure(atoms: Atoms, temperature: float) -> float:
    """Return the pressure [eV/Å³]: of all mobile atoms at this temperature, and of forces."""
    fixed = np.unique([i for one in atoms.constraints for i in one.index])
    ideal = (len(atoms) - len(fixed)) * units.kB * temperature / atoms.get_volume()
    return ideal - np.trace(atoms.get_stress(voigt=False, apply_constraint=False)) / 3


def _divergence(atoms: Atoms, settings: Settings, n_dof: int) -> str:
    """Describe what is wrong with the state of the run; cheap enough for every step."""
    kinetic = atoms.get_kinetic_energy()
    if not np.isfinite(kinetic + atoms.get_potential_energy()):
        return "energy or velocities are no longer finite"
    temperature = 2 * kinetic / (n_dof * units.kB)  # includes drift, which hardly matters
    if temperature > runaway(settings.temperature):
        return f"the temperature reached {temperature:.0f} K"
    return ""


def no_start(what: str) -> FloatingPointError:
    """Return the error for an unusable first state, before anything is written."""
    return FloatingPointError(
        f"the run cannot start from this state: {what}. Relax the structure first, and correct or "
        "remove its velocities (momenta)"
    )


def _exploded(time: float, what: str, trajectory: Path) -> FloatingPointError:
    return FloatingPointError(
        f"stopped at {time:.1f} fs: {what}; the last valid frame is in {trajectory.name}. {ADVICE}"
    )


@contextmanager
def removed_if_empty(summary: LogSummary, paths: Sequence[Path]) -> Iterator[None]:
    """Remove files of a run that stopped before its first frame, to free their names."""
    try:
        yield
    finally:
        if not summary.n_rows:
            for path in paths:
                path.unlink(missing_ok=True)


class Frames:
    """Writer of whole frames to a file, in the format of its suffix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Appended | None = None
        self._raw: WritableFile | None = None
        self._trajectory: Any = None
        if path.suffix not in (".xyz", ".extxyz", ".traj"):
            raise ValueError(f"{path.name}: a trajectory must end in .xyz, .extxyz or .traj")

    def __enter__(self) -> Frames:
        self._file = Appended(self.path)
        if self.path.suffix == ".traj":
            self._raw = WritableFile(self._file.number)
            self._trajectory = Trajectory(self._raw, "w")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, atoms: Atoms) -> None:
        """Write one more frame, all of it or nothing.

        Raises:
            NoSpaceLeft: the disk is full.
        """
        assert self._file is not None
        if self._raw is None:
            text = StringIO()
            write_extxyz(text, [atoms])
            self._file.append(text.getvalue().encode())
            return
        before = self.mark()
        self._trajectory.write(atoms)
        if self._raw.problem is not None:
            self.cut(before)
            with naming_full_disk(self.path):
                raise self._raw.problem

    def mark(self) -> tuple[int, bytes]:
        """Return the length of the file, and bytes near its start that change with every frame."""
        assert self._file is not None
        number = self._file.number
        os.lseek(number, ULM_COUNT, os.SEEK_SET)
        count = b"" if self._raw is None else os.read(number, ULM_POSITIONS - ULM_COUNT)
        return os.fstat(number).st_size, count

    def cut(self, mark: tuple[int, bytes]) -> None:
        """Remove everything after a mark; nothing can be written afterwards."""
        assert self._file is not None
        size, count = mark
        os.lseek(self._file.number, ULM_COUNT, os.SEEK_SET)
        os.write(self._file.number, count)
        os.ftruncate(self._file.number, size)
