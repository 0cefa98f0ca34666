"""`attncalc relax`: structures in batches, or one after the other; of few or many structures."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from torch import Tensor
from tqdm import tqdm

from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import OutsideTraining, one_line_errors
from attncalc.cli.files import (
    existing_file,
    forget_results,
    from_anywhere,
    new_structure_file,
    read_structures,
    refuse_input,
    remove_other_velocities,
    require_angstrom,
    require_room,
    require_writable,
    save_picture,
    write_structures,
)
from attncalc.cli.model_checks import (
    require_known,
    require_limits,
    say_charges,
    say_model,
    strain_mask,
)
from attncalc.cli.model_job import ModelJob
from attncalc.cli.options import (
    calculator_options,
    charge_options,
    model_option,
    set_charge,
    set_threads,
    stop_option,
)
from attncalc.cli.output import output_file, output_options, report_json, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.cli.relaxation_course import Course
from attncalc.cli.shards.processing import parse_frames, process_shards, shard_options
from attncalc.cli.shards.results import Outcome, output_of_shards, refuse_unfinished
from attncalc.data.shards import Frame
from attncalc.files import NoSpaceLeft
from attncalc.md import relax_batch
from attncalc.structures import batches
from attncalc.system import System, what_is_ignored
from attncalc.text import EXPECTED, one_line

# atoms of one batch of relaxations: bounds its memory
ATOMS_AT_ONCE = 2000
# largest share of writing in the time of relaxations one after the other
LARGEST_SHARE = 0.05


@click.command()
@click.argument("structures")
@model_option
@charge_options
@calculator_options
@click.option(
    "--fmax",
    default=0.01,
    show_default=True,
    help="Force below which a relaxation has converged, eV/Å.",
)
@click.option(
    "--steps", default=1000, show_default=True, help="Maximum number of steps per structure."
)
@click.option(
    "--optimizer",
    type=click.Choice(["lbfgs", "fire"]),
    default="lbfgs",
    show_default=True,
    help="fire needs two to five times as many steps, and moves atoms less in each.",
)
@click.option(
    "--cell",
    is_flag=True,
    help="Relax the cell too, along periodic directions, until stress times volume per atom is "
    "below --fmax, too (eV).",
)
@stop_option
@click.option("-o", "--output", help="File to write. Default: NAME.relaxed.xyz beside the input.")
@shard_options
@output_options
@one_line_errors
def relax(
    structures,
    model,
    charge,
    multiplicity,
    device,
    dtype,
    threads,
    long_range_cutoff,
    fmax,
    steps,
    optimizer,
    cell,
    stop_when_unknown,
    output,
    **many,
) -> None:
    """Relax every structure of a file until no force exceeds --fmax.

    Structures are relaxed in batches. With --cell, or with other constraints than fixed atoms,
    ASE's optimizers relax one structure after the other. Ctrl-C writes the structures reached so
    far. A picture (.png) of the same name shows energy and largest force of every step.

    With --workers, --shard or --scheduler the file must be extended XYZ. It is processed in parts
    and never read as a whole, and no picture is drawn. A structure that cannot be relaxed goes to
    OUTPUT.failed (.xyz or .extxyz) with the reason. The same command continues after any
    interruption.

    Bonds that broke are named: those that were shorter than 1.3 times the sum of the covalent
    radii, and are longer than 1.6 times.

    Exit status: 0: all structures converged; 1: a structure did not converge, or an error; 2: a
    structure ends outside the training data of the model (novelty above 1), whether it converged or
    not, so its energy and forces may be wrong.

    Example: attncalc relax molecule.xyz -o relaxed.xyz
    """
    if not 0 < fmax < float("inf"):  # NaN too
        raise ValueError(f"--fmax must be above 0 eV/Å and finite, got {fmax:g}")
    if steps < 1:
        raise ValueError(f"--steps must be a positive integer, got {steps}")
    asked = Relaxation(fmax, steps, optimizer, cell, stop_when_unknown)
    source = existing_file(structures)
    target = Path(output or source.with_suffix(".relaxed.xyz"))
    in_shards = any(many.values())
    target = output_of_shards(source, target) if in_shards else output_file(target)
    new_structure_file(target)
    refuse_input(target, source)
    if in_shards:
        if charge is not None or multiplicity is not None:
            raise ValueError(
                "--charge and --multiplicity are not for --workers, --shard or --scheduler: write "
                "charge=-1 spin=1 into the second line of each structure"
            )
        require_angstrom(source)
        options = {"device": device, "dtype": dtype, "long_range_cutoff": long_range_cutoff}
        job = RelaxMany(from_anywhere(model), options, threads, asked)
        process_shards(job, source, target, **many)
        return
    refuse_unfinished(target)
    picture = output_file(target.with_suffix(".png"), role=f"the picture for {target.name}")
    frames = read_structures(structures)
    set_charge(frames, charge, multiplicity)
    for atoms in frames:
        to_rest(atoms)
    require_room(target, len(frames))
    set_threads(threads, frames)
    calculator = AttnCalculator(
        model, device=device, dtype=dtype, threads=threads, long_range_cutoff=long_range_cutoff
    )
    require_known(calculator.evaluator.plain, frames, volume=cell)
    require_limits(calculator.evaluator.plain, stop=stop_when_unknown)
    if cell and not all(atoms.pbc.all() for atoms in frames):
        say("cells relax along periodic directions only")
    constraints = [one for atoms in frames for one in atoms.constraints]
    if cell and any(isinstance(one, FixAtoms | FixCartesian | FixScaled) for one in constraints):
        say("fixed atoms move with the cell")
    if any(hasattr(one, "adjust_potential_energy") for one in constraints):
        say("energies are those of the model, without the energy of springs (Hookean)")
    if what := require_writable(target, frames):
        warn(what)
    relax_all = _relax_together if are_relaxed_together(frames, cell) else _relax_in_turn
    named = say_model(model, calculator.evaluator.plain)
    say_charges(frames)
    of_what = source.name if len(frames) > 1 else frames[0].get_chemical_formula()
    title = f"{of_what}, {named}"
    courses: list[Course] = []

    def draw() -> None:
        """Draw the relaxations that have been started."""
        from attncalc import plots

        if steps_of_all := [course.steps for course in courses if course.steps]:
            outside = [course.outside for course in courses if course.steps]
            figure = plots.relax_summary(steps_of_all, fmax=fmax, title=title, outside=outside)
            save_picture(figure, picture)

    try:
        relax_all(asked, calculator, frames, courses, target)
    except KeyboardInterrupt:
        draw()
        raise
    try:
        draw()
    except NoSpaceLeft as full:
        advice = f"{target} is complete without it"
        raise NoSpaceLeft(full.path, full.number, advice) from None
    say(f"wrote {target}, {picture}")
    report_json(
        {
            "model": model,
            "structures": [course.as_dict(fmax) for course in courses],
            "output": str(target),
            "picture": str(picture),
        }
    )
    left_over = sum(course.is_unfinished(fmax) for course in courses)
    unfinished = f"{left_over} of {len(frames)} structures did not converge: increase --steps"
    if n_outside := sum(course.outside for course in courses):
        raise OutsideTraining(
            f"{n_outside} of {len(frames)} structures end outside the training data of {model}: "
            "do not trust them" + (f"; {unfinished}" if left_over else "")
        )
    if left_over:
        raise click.ClickException(unfinished)


def to_rest(atoms: Atoms) -> None:
    """Remove velocities (momenta), in place: a relaxed structure has none."""
    atoms.arrays.pop("momenta", None)
    remove_other_velocities(atoms)


@dataclass(frozen=True)
class Relaxation:
    """Settings of `attncalc relax`.

    Attributes:
        fmax: eV/Å.
        steps: most steps per structure.
        optimizer: "fire" or "lbfgs".
        cell: relax cells too.
        stop: stop a structure when it is outside the training data of the model.
    """

    fmax: float
    steps: int
    optimizer: str
    cell: bool
    stop: bool


def are_relaxed_together(frames: list[Atoms], cell: bool) -> bool:
    """Return True if structures are relaxed in batches: with fixed cells and only `FixAtoms`."""
    constraints = [constraint for atoms in frames for constraint in atoms.constraints]
    return not cell and all(isinstance(constraint, FixAtoms) for constraint in constraints)


def _relax_together(
    asked: Relaxation,
    calculator: AttnCalculator,
    frames: list[Atoms],
    courses: list[Course],
    target: Path,
) -> None:
    """Relax frames in place, in batches, and fill the courses."""
    n_written, interrupted, alone = 0, False, len(frames) == 1
    total, unit = (asked.steps, "step") if alone else (len(frames), "structure")
    with progress_bar(total, unit) as bar:
        apart = calculator.evaluator.plain.counts_all_pairs
        for first, last in batches(frames, ATOMS_AT_ONCE, apart=apart):
            batch = frames[first:last]
            of_batch = [Course() for _ in batch]
            courses += of_batch
            interrupted = relax_in_batch(
                asked, calculator, batch, of_batch, bar, first, alone=alone
            )
            write_structures(target, frames[:last])
            for k, course in enumerate(of_batch, start=first):
                with bar.external_write_mode():
                    say(f"structure {k}: {course.report(asked.fmax)}")
            n_written = last
            if interrupted:
                break
    if interrupted and alone:
        courses[0].frame = frames[0]
        raise KeyboardInterrupt(_saved(0, 1, target, courses[0]))
    if interrupted:
        n_done = sum(course.has_converged(asked.fmax) for course in courses)
        raise KeyboardInterrupt(
            f"{n_done} of {len(frames)} structures are relaxed; {n_written} are written to "
            f"{target} as they are"
        )


def relax_in_batch(
    asked: Relaxation,
    calculator: AttnCalculator,
    batch: list[Atoms],
    courses: list[Course],
    bar: tqdm,
    first: int,
    tell: Callable[[str], None] = warn,
    *,
    alone: bool = False,
) -> bool:
    """Relax structures in place and attach results; return True if Ctrl-C ended this.

    The bar counts structures, or steps if `alone`.
    """
    force = calculator.evaluator
    before = [atoms.copy() for atoms in batch]

    def rests(course: Course) -> bool:
        return not course.is_unfinished(asked.fmax)

    def observe(numbers: Tensor, energy: Tensor, largest: Tensor) -> None:
        columns = numbers.tolist(), energy.tolist(), largest.tolist()
        for k, of_energy, of_force in zip(*columns, strict=True):
            steps = courses[k].steps
            if not steps or not rests(courses[k]):  # a finished structure does not move
                steps.append((of_energy, of_force))
        done = len(courses[0].steps) - 1 if alone else first + sum(map(rests, courses))
        reached = f"largest force {max(columns[2]):.4f} eV/Å"
        reached += f", energy {columns[1][0]:.4f} eV" if alone else ""
        bar.set_postfix_str(reached, refresh=False)
        bar.update(done - bar.n)

    def should_stop(numbers: Tensor, system: System) -> Tensor | None:
        if (novelty := force.novelty(system)) is None:
            return None
        of_systems = system.split(novelty), system.split(system.atomic_numbers.cpu().numpy())
        for k, *of_atoms in zip(numbers.tolist(), *of_systems, strict=True):
            warning = courses[k].check(first + k, *of_atoms, stop=asked.stop)
            if warning:
                with bar.external_write_mode():
                    tell(warning)
        return torch.tensor([courses[k].stopped for k in numbers.tolist()])

    ended = relax_batch(
        force,
        batch,
        fmax=asked.fmax,
        steps=asked.steps,
        optimizer=asked.optimizer,
        first=first,
        observe=observe,
        should_stop=should_stop,
    )
    positions = ended.system.split(ended.system.positions.cpu())
    for atoms, now in zip(batch, positions, strict=True):
        atoms.positions = now.numpy()
    results = calculator.calculate_many(batch)
    for atoms, course, found, start in zip(batch, courses, results, before, strict=True):
        course.compare(start, atoms)
        spread = found.get("forces_spread")
        course.spread = None if spread is None else _largest(spread)
        # without spreads and Hirshfeld ratios, which are not properties in ASE
        known = {name: value for name, value in found.items() if name in all_properties}
        atoms.calc = SinglePointCalculator(atoms, **known)
    return ended.interrupted


def _relax_in_turn(
    asked: Relaxation,
    calculator: AttnCalculator,
    frames: list[Atoms],
    courses: list[Course],
    target: Path,
) -> None:
    """Replace frames by relaxed ones, one after the other, and fill the courses."""
    several = len(frames) > 1
    n_written, write_after = 0, 0.0  # on the clock of time.monotonic
    total, unit = (len(frames), "structure") if several else (asked.steps, "step")

    def save(relaxed: list[Atoms]) -> None:
        nonlocal n_written, write_after
        began = time.monotonic()
        write_structures(target, relaxed)
        now = time.monotonic()
        n_written, write_after = len(relaxed), now + (now - began) / LARGEST_SHARE

    with progress_bar(total, unit) as bar:

        def tell(warning: str) -> None:
            with bar.external_write_mode():
                warn(warning)

        def progress(step: int, status: str) -> None:
            bar.set_postfix_str(f"step {step}, {status}" if several else status, refresh=False)
            bar.update(0 if several else step - bar.n)

        for k, atoms in enumerate(frames):
            atoms.calc = calculator
            courses.append(course := Course())
            try:
                frames[k] = relax_one(k, atoms, asked, course, progress, tell)
                if k == len(frames) - 1 or time.monotonic() >= write_after:
                    save(frames[: k + 1])
            except KeyboardInterrupt:
                if course.frame is not None:
                    save([*frames[:k], course.frame])
                elif n_written < k:
                    save(frames[:k])
                saved = _saved(k, len(frames), target, course)
                raise KeyboardInterrupt(saved) from None
            except EXPECTED as error:
                if several:
                    if n_written < k and not isinstance(error, NoSpaceLeft):
                        save(frames[:k])
                    saved = _saved(n_written, len(frames), target)
                    raise RuntimeError(f"structure {k}: {error}; {saved}") from None
                raise
            with bar.external_write_mode():
                say(f"structure {k}: {course.report(asked.fmax)}")
            bar.update(1 if several else 0)


def relax_one(
    number: int,
    atoms: Atoms,
    asked: Relaxation,
    course: Course,
    progress: Callable[[int, str], None],
    tell: Callable[[str], None],
) -> Atoms:
    """Relax one structure by its calculator, fill its course, and return it with results."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE, LBFGS

    method, before = {"fire": FIRE, "lbfgs": LBFGS}[asked.optimizer], atoms.copy()
    mask = strain_mask(atoms) if asked.cell else None
    moved = FrechetCellFilter(atoms, mask=mask) if asked.cell else atoms
    with _silent_libraries(), method(moved, logfile=None) as dynamics:
        for _ in dynamics.irun(fmax=asked.fmax, steps=asked.steps):
            energy = atoms.get_potential_energy(apply_constraint=False)
            largest = _largest(moved.get_forces())
            course.steps.append((energy, largest))
            course.frame = _with_results(atoms)
            if mask is not None:
                stress = atoms.get_stress(voigt=False)
                course.stress = float(np.abs(stress[mask]).max() / units.GPa)
            spread = atoms.calc.spread
            course.spread = None if spread is None else _largest(spread["forces"])
            novelty = atoms.calc.novelty
            if warning := course.check(number, novelty, atoms.numbers, stop=asked.stop):
                tell(warning)
            progress(dynamics.nsteps, f"largest force {largest:.4f} eV/Å, energy {energy:.4f} eV")
            if course.stopped:
                break
    course.compare(before, atoms)
    return _with_results(atoms)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Silence ASE's and SciPy's warnings about logarithms of matrices at every cell step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(ase|scipy)\b")
        yield


def _largest(vectors: Any) -> float:
    """Return the length of the longest vector of [n, 3]."""
    return float(np.linalg.norm(vectors, axis=1).max())


def _with_results(atoms: Atoms) -> Atoms:
    """Return a copy with the results of its calculator, but without the calculator."""
    frozen = atoms.copy()
    frozen.calc = SinglePointCalculator(frozen, **atoms.calc.results)
    return frozen


def _saved(n_written: int, n_structures: int, path: Path, unfinished: Course | None = None) -> str:
    """Return a sentence on how much of the work is written to the file."""
    there = unfinished is not None and unfinished.frame is not None
    if n_structures == 1:
        return f"the structure after {unfinished} is written to {path}" if there else ""
    saved = f"{n_written} of {n_structures} structures are written"
    saved += f" to {path}" if n_written or there else ""
    return saved + (f", and structure {n_written} after {unfinished}" if there else "")


@dataclass(frozen=True)
class RelaxMany(ModelJob):
    """Job of relaxing many structures.

    Attributes:
        asked: the settings.
    """

    asked: Relaxation

    def identity(self) -> dict[str, Any]:
        """Return all that the results depend on, except for input and machine.

        Raises:
            FileNotFoundError, ValueError: there is no such model, or it is damaged.
        """
        settings = asdict(self.asked)
        stop = settings.pop("stop")  # named as the option in folders of shards
        return {**super().identity(), **settings, "stop-when-unknown": stop}

    def start(self) -> RelaxShard:
        """Load the model."""
        calculator = self.load()
        require_limits(calculator.evaluator.plain, stop=self.asked.stop)
        return RelaxShard(self.asked, calculator)


@dataclass(frozen=True)
class RelaxShard:
    """Relaxes the structures of a shard; one that cannot be relaxed does not stop the others.

    Attributes:
        asked: the settings.
        calculator: calculator of the model.
    """

    asked: Relaxation
    calculator: AttnCalculator

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Return each structure with results, and facts about it for the report.

        Args:
            frames: the structures, as text.
            first: number of the first structure.
        """
        outcomes, good = parse_frames(frames, self._known)
        if not good:
            return outcomes
        asked = self.asked
        structures, keys = [*good.values()], [*good]
        together = are_relaxed_together(structures, asked.cell)
        apart = self.calculator.evaluator.plain.counts_all_pairs
        sizes = batches(structures, ATOMS_AT_ONCE if together else 1, apart=apart)
        attempts = [keys[begin:end] for begin, end in sizes]
        while attempts:
            numbers = attempts.pop(0)
            batch = [good[k].copy() for k in numbers]
            try:
                found = self._relax(batch, together, first + numbers[0])
            except (*EXPECTED, MemoryError) as error:
                if len(numbers) > 1:  # due to one of them: try each alone
                    attempts += [[k] for k in numbers]
                else:
                    outcomes[numbers[0]] = None, {"error": one_line(error)}
                continue
            for k, (atoms, course) in zip(numbers, found, strict=True):
                reads_spin = self.calculator.evaluator.plain.reads_spin
                ignored = what_is_ignored(good[k], reads_spin=reads_spin)
                said = {**self._said(course), "ignored": ignored}
                atoms.info["structure"] = first + k
                if course.broken:
                    atoms.info["broken_bonds"] = len(course.broken)
                outcomes[k] = atoms, said
        return outcomes

    def _known(self, frame: Frame) -> Atoms:
        atoms = frame.atoms()
        forget_results(atoms)
        to_rest(atoms)
        self.calculator.evaluator.check(System.from_ase(atoms))
        if self.asked.cell:
            strain_mask(atoms)
        return atoms

    def _relax(self, batch: list[Atoms], together: bool, first: int) -> list[tuple[Atoms, Course]]:
        courses = [Course() for _ in batch]
        if together:
            bar = tqdm(disable=True)
            relax_in_batch(self.asked, self.calculator, batch, courses, bar, first, _quiet)
            return list(zip(batch, courses, strict=True))
        (atoms,), (course,) = batch, courses
        # do not reuse the neighbour list of an earlier structure, which depends on the workers
        system = System.from_ase(atoms, first=first)
        self.calculator.evaluator.renew(system.to(self.calculator.evaluator.device))
        atoms.calc = self.calculator
        ended = relax_one(first, atoms, self.asked, course, lambda *_: None, _quiet)
        return [(ended, course)]

    def _said(self, course: Course) -> dict[str, Any]:
        fmax = self.asked.fmax
        ended = {"unfinished": course.is_unfinished(fmax), "outside": course.outside}
        return course.as_dict(fmax) | ended


def _quiet(warning: str) -> None:
    """Print nothing for one among many structures."""
