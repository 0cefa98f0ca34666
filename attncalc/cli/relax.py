"""`attncalc relax`: structures in batches, or one after the other; of few or many structures."""

from __future__ import annotations

import time
from pathlib import Path

import click
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import OutsideTraining, one_line_errors
from attncalc.cli.files import (
    existing_file,
    from_anywhere,
    new_structure_file,
    read_structures,
    refuse_input,
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
)
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
from attncalc.cli.relaxation import (
    ATOMS_AT_ONCE,
    Relaxation,
    are_relaxed_together,
    relax_in_batch,
    relax_one,
    to_rest,
)
from attncalc.cli.relaxation_course import Course
from attncalc.cli.relaxation_shards import RelaxMany
from attncalc.cli.shards.processing import process_shards, shard_options
from attncalc.cli.shards.results import output_of_shards, refuse_unfinished
from attncalc.files import NoSpaceLeft
from attncalc.structures import batches
from attncalc.text import EXPECTED

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


def _saved(n_written: int, n_structures: int, path: Path, unfinished: Course | None = None) -> str:
    """Return a sentence on how much of the work is written to the file."""
    there = unfinished is not None and unfinished.frame is not None
    if n_structures == 1:
        return f"the structure after {unfinished} is written to {path}" if there else ""
    saved = f"{n_written} of {n_structures} structures are written"
    saved += f" to {path}" if n_written or there else ""
    return saved + (f", and structure {n_written} after {unfinished}" if there else "")
