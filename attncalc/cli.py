"""The command `attncalc`: what a user types instead of a script."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from ase.io import read, write
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat, string2index
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from attncalc import model_file, plots
from attncalc.calculator import AttnCalculator
from attncalc.files import refuse_existing
from attncalc.graph import species_of
from attncalc.in_words import names_in_words
from attncalc.md import (
    ENSEMBLES,
    SPREAD,
    Forces,
    Settings,
    Thermometer,
    relax_batch,
    run_with_ase,
)
from attncalc.md.h5md_reader import read_h5md
from attncalc.md.job import fixed_atoms, read_restart, resume_structure, run_structure
from attncalc.md.with_ase import finished_before_ctrl_c
from attncalc.one_line import one_line
from attncalc.potential import Potential, batches, check_system
from attncalc.system import System

if TYPE_CHECKING:
    from attncalc.data import Dataset
    from attncalc.data.errors import Prediction

# what a user can run into; anything else is a bug
EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, ImportError)
# atoms below which threads of a CPU wait for each other longer than they compute
SMALL = 1000
# atoms up to which the work around the network is worth sharing among structures
SMALL_MOLECULE = 64
# atoms of one batch of relaxations: bounds its memory
ATOMS_AT_ONCE = 2000
# frames of a trajectory that a picture is drawn from
MOST_FRAMES = 400

Command = TypeVar("Command", bound=Callable[..., Any])


def one_line_errors(command: Command) -> Command:
    """What goes wrong becomes one line and exit status 1; a bug keeps its traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # `attncalc models | head`: click knows how to end quietly
            raise
        except EXPECTED as error:
            raise click.ClickException(one_line(error, longest=1000)) from None
        except KeyboardInterrupt as interrupt:
            click.echo(f"stopped: {interrupt}" if str(interrupt) else "stopped", err=True)
            sys.exit(130)

    return wrapped  # type: ignore[return-value]


def calculator_options(command: Command) -> Command:
    """--device, --dtype, --threads."""
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="CPU threads, of PyTorch and of the compiled steps, which take them for large "
            "structures, and 1 by default. PyTorch's default: 1 for structures of less than "
            f"{SMALL} atoms, where more are slower; else, or if OMP_NUM_THREADS is set, its own.",
        ),
        click.option(
            "--dtype", type=click.Choice(["float32", "float64"]), help="Default: the model's."
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1"),
    ):
        command = option(command)
    return command


model_option = click.option("--model", required=True, help="Shipped name or path of a model file.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="attncalc", prog_name="attncalc")
def main() -> None:
    """Move atoms with an equivariant attention network."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("attncalc")
    log.handlers, log.level, log.propagate = [handler], logging.INFO, False


@main.command()
@click.argument("structures")
@model_option
@calculator_options
@click.option("--fmax", default=0.01, show_default=True, help="Largest force left, eV/Å.")
@click.option("--steps", default=1000, show_default=True, help="Most steps per structure.")
@click.option(
    "--optimizer",
    type=click.Choice(["fire", "lbfgs"]),
    help=f"Default: lbfgs, one structure after the other; for several of at most {SMALL_MOLECULE} "
    "atoms, or on a GPU, fire: all at once.",
)
@click.option("--cell", is_flag=True, help="Relax the cell too.")
@click.option("-o", "--output", help="Default: NAME.relaxed.xyz beside the input.")
@one_line_errors
def relax(structures, model, device, dtype, threads, fmax, steps, optimizer, cell, output) -> None:
    """Relax every structure of a file until no force exceeds --fmax.

    Ctrl-C writes structures as they are. A picture (.png) of the same name shows energy and largest
    force of every step.

    Example: attncalc relax ethanol.xyz --model so3krates-ethanol -o relaxed.xyz
    """
    if not fmax > 0:  # NaN too
        raise ValueError(f"--fmax must be above 0 eV/Å, got {fmax:g}")
    target = _new_structure_file(output or Path(structures).with_suffix(".relaxed.xyz"))
    picture = _new_file(target.with_suffix(".png"))
    frames = _read(structures)
    _require_room(target, len(frames))
    _set_threads(threads, frames)
    calculator = AttnCalculator(model, device=device, dtype=dtype, threads=threads)
    _require_known(calculator.potential, frames, volume=cell)
    together = _are_relaxed_together(frames, optimizer, cell, calculator.potential.device)
    relax_all = _relax_together if together else _relax_in_turn
    title = f"{Path(structures).name}, {model_file.model_name(model)}"
    if len(frames) == 1:
        title = f"{frames[0].get_chemical_formula()}, {model_file.model_name(model)}"
    courses: list[Course] = []

    def draw() -> None:
        """Of what there is."""
        if steps_of_all := [course.steps for course in courses if course.steps]:
            _save_picture(plots.relax_summary(steps_of_all, fmax=fmax, title=title), picture)

    asked = Relaxation(calculator, fmax, steps, optimizer or "lbfgs", cell, target)
    try:
        relax_all(asked, frames, courses)
    except KeyboardInterrupt:
        draw()
        raise
    draw()
    click.echo(f"wrote {target}, {picture}")
    left_over = sum(course.steps[-1][1] > fmax for course in courses)
    if left_over:
        raise click.ClickException(
            f"{left_over} of {len(frames)} structures did not converge: take more --steps"
        )


@dataclass(frozen=True)
class Relaxation:
    """What `attncalc relax` was asked for.

    Attributes:
        calculator: of the model.
        fmax: eV/Å.
        steps: most steps per structure.
        optimizer: "fire" or "lbfgs".
        cell: whether cells relax too.
        target: the output.
    """

    calculator: AttnCalculator
    fmax: float
    steps: int
    optimizer: str
    cell: bool
    target: Path


def _are_relaxed_together(
    frames: list[Atoms], optimizer: str | None, cell: bool, device: torch.device
) -> bool:
    """Whether structures are relaxed in one batch: several, cells kept, nothing held but atoms."""
    if len(frames) == 1 or cell or optimizer == "lbfgs":
        return False
    constraints = [constraint for atoms in frames for constraint in atoms.constraints]
    if not all(isinstance(constraint, FixAtoms) for constraint in constraints):
        return False
    small = max(map(len, frames)) <= SMALL_MOLECULE
    return optimizer == "fire" or small or device.type == "cuda"


def _relax_together(asked: Relaxation, frames: list[Atoms], courses: list[Course]) -> None:
    """Replaces frames by relaxed ones, in batches, and fills the courses."""
    force = Forces(asked.calculator.potential)
    n_written, interrupted = 0, False
    with _bar(len(frames), "structure") as bar:
        for first, last in batches(frames, ATOMS_AT_ONCE):
            batch = frames[first:last]
            of_batch = [Course() for _ in batch]
            courses += of_batch
            interrupted = _relax_batch(asked, force, batch, of_batch, bar, first)
            _write(asked.target, frames[:last])
            for k, course in enumerate(of_batch, start=first):
                with bar.external_write_mode():
                    click.echo(f"structure {k}: {course.report(asked.fmax)}")
            n_written = last
            if interrupted:
                break
    if interrupted:
        n_done = sum(course.steps[-1][1] <= asked.fmax for course in courses)
        raise KeyboardInterrupt(
            f"{n_done} of {len(frames)} structures are relaxed; {n_written} are written to "
            f"{asked.target} as they are"
        )


def _relax_batch(
    asked: Relaxation,
    force: Forces,
    batch: list[Atoms],
    courses: list[Course],
    bar: tqdm,
    n_before: int,
) -> bool:
    """Relax structures in place, with results; whether Ctrl-C ended it."""

    def observe(numbers: Tensor, energy: Tensor, largest: Tensor) -> None:
        columns = numbers.tolist(), energy.tolist(), largest.tolist()
        for k, of_energy, of_force in zip(*columns, strict=True):
            steps = courses[k].steps
            if not steps or steps[-1][1] > asked.fmax:  # one that rests does not go on
                steps.append((of_energy, of_force))
        done = sum(course.steps[-1][1] <= asked.fmax for course in courses)
        bar.set_postfix_str(f"largest force {max(columns[2]):.4f} eV/Å", refresh=False)
        bar.update(n_before + done - bar.n)

    held = [fixed_atoms(atoms) for atoms in batch]
    parts = [
        torch.zeros(len(atoms), dtype=torch.bool) if mask is None else mask
        for atoms, mask in zip(batch, held, strict=True)
    ]
    ended = relax_batch(
        force,
        System.from_ase(batch),
        fmax=asked.fmax,
        steps=asked.steps,
        fixed=torch.cat(parts),
        observe=observe,
    )
    positions = ended.system.split(ended.system.positions.cpu())
    for atoms, now in zip(batch, positions, strict=True):
        atoms.positions = now.numpy()
    for atoms, found in zip(batch, asked.calculator.calculate_many(batch), strict=True):
        found = {name: value for name, value in found.items() if not name.endswith("_spread")}
        atoms.calc = SinglePointCalculator(atoms, **found)
    return ended.interrupted


def _relax_in_turn(asked: Relaxation, frames: list[Atoms], courses: list[Course]) -> None:
    """Replaces frames by relaxed ones, one after the other, and fills the courses."""
    several = len(frames) > 1
    total, unit = (len(frames), "structure") if several else (asked.steps, "step")
    with _bar(total, unit) as bar:

        def progress(step: int, status: str) -> None:
            bar.set_postfix_str(f"step {step}, {status}" if several else status, refresh=False)
            bar.update(0 if several else step - bar.n)

        for k, atoms in enumerate(frames):
            atoms.calc = asked.calculator
            courses.append(course := Course())
            try:
                frames[k] = _relax_one(atoms, asked, course, progress)
                _write(asked.target, frames[: k + 1])
            except KeyboardInterrupt:
                if course.frame is not None:
                    _write(asked.target, [*frames[:k], course.frame])
                saved = _saved(k, len(frames), asked.target, course)
                raise KeyboardInterrupt(saved) from None
            except EXPECTED as error:
                if several:
                    saved = _saved(k, len(frames), asked.target)
                    raise RuntimeError(f"structure {k}: {error}; {saved}") from None
                raise
            with bar.external_write_mode():
                click.echo(f"structure {k}: {course.report(asked.fmax)}")
            bar.update(1 if several else 0)


@dataclass
class Course:
    """How one relaxation goes.

    Attributes:
        steps: energy [eV] and largest force [eV/Å], the start first.
        frame: the structure after the last of them, with results.
    """

    steps: list[tuple[float, float]] = field(default_factory=list)
    frame: Atoms | None = None

    def __str__(self) -> str:
        return f"{len(self.steps) - 1} steps, largest force {self.steps[-1][1]:.4f} eV/Å"

    def report(self, fmax: float) -> str:
        """How it ended."""
        (start, _), (energy, largest) = self.steps[0], self.steps[-1]
        end = "converged" if largest <= fmax else "NOT converged"
        return (
            f"{end} in {len(self.steps) - 1} steps, "
            f"largest force {largest:.4f} eV/Å, energy {start:.4f} -> {energy:.4f} eV"
        )


def _relax_one(
    atoms: Atoms, asked: Relaxation, course: Course, progress: Callable[[int, str], None]
) -> Atoms:
    """The structure with results; fills the course as the atoms move."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE, LBFGS

    method = {"fire": FIRE, "lbfgs": LBFGS}[asked.optimizer]
    moved = FrechetCellFilter(atoms) if asked.cell else atoms
    with method(moved, logfile=None) as dynamics:
        for _ in dynamics.irun(fmax=asked.fmax, steps=asked.steps):
            energy, largest = atoms.get_potential_energy(), _fmax(moved)
            course.steps.append((energy, largest))
            course.frame = _with_results(atoms)
            progress(dynamics.nsteps, f"largest force {largest:.4f} eV/Å, energy {energy:.4f} eV")
    return _with_results(atoms)


@main.command()
@click.argument("structure", required=False)
@click.option("--model", help="Shipped name or path of a model file.")
@calculator_options
@click.option("--ensemble", type=click.Choice(ENSEMBLES), default="nvt", show_default=True)
@click.option(
    "--temperature",
    default=300.0,
    show_default=True,
    help="K, of the thermostat (nvt, npt), and of the initial velocities unless the file has some.",
)
@click.option("--steps", default=10_000, show_default=True, help="Steps of the integrator.")
@click.option("--timestep", default=0.5, show_default=True, help="fs")
@click.option(
    "--friction", default=0.01, show_default=True, help="1/fs, of Langevin dynamics (nvt)."
)
@click.option("--pressure", default=0.0, show_default=True, help="GPa (npt).")
@click.option(
    "--every", default=10, show_default=True, help="Steps between frames; the last is always one."
)
@click.option(
    "--seed", default=0, show_default=True, help="Of initial velocities and random forces."
)
@click.option(
    "--engine",
    type=click.Choice(["attncalc", "ase"]),
    help="Whose integrators. Default: attncalc's; npt is ASE's.",
)
@click.option(
    "-o",
    "--output",
    help="Trajectory, .h5md, .xyz or .traj. Default: NAME.md.h5md; of ASE's, NAME.md.xyz",
)
@click.option(
    "--resume",
    metavar="RUN.h5md",
    help="Go on with a run that was stopped, up to its number of steps, or to --steps.",
)
@click.pass_context
@one_line_errors
def md(
    context, structure, model, device, dtype, threads, resume, engine, output, **options
) -> None:
    """Molecular dynamics of one structure, the last of a file.

    Writes the trajectory, a log (.csv), a picture (.png) and, beside an .h5md, a checkpoint (.ckpt)
    of the same name. Velocities (momenta) in the file are kept; otherwise they are drawn at
    --temperature. Temperatures count the degrees of freedom of the run: not the conserved drift
    (nve, npt) and rotation (nve of a molecule).

    Example: attncalc md relaxed.xyz --model so3krates-ethanol --temperature 300 -o run.h5md

    A run that was stopped, by whatever, goes on bit for bit: attncalc md --resume run.h5md
    """
    if resume is not None:
        given = [p for p, v in context.params.items() if _typed(context, p) and v is not None]
        _resume(Path(resume), given, device, dtype, threads, options["steps"])
        return
    if structure is None or model is None:
        raise click.UsageError("a STRUCTURE and a --model are needed (or --resume RUN.h5md)")
    settings = Settings(n_steps=options.pop("steps"), **options)
    by_ase = engine == "ase" or settings.ensemble == "npt"
    if engine == "attncalc" and by_ase:
        raise ValueError("npt runs with ASE's integrators only: leave --engine away")
    target = _new_file(output or Path(structure).with_suffix(".md.xyz" if by_ase else ".md.h5md"))
    endings = (".xyz", ".extxyz", ".traj") if by_ase else (".h5md", ".xyz", ".extxyz", ".traj")
    if target.suffix not in endings:
        listed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise ValueError(f"{target.name}: a trajectory must end in {listed}")
    _new_file(target.with_suffix(".png"))
    (atoms,) = _read(structure, index="-1")
    _set_threads(threads, [atoms])
    calculator = AttnCalculator(model, device=device, dtype=dtype, threads=threads)
    if atoms.get_momenta().any():
        temperature = Thermometer.for_run(atoms, settings.ensemble).temperature(atoms)
        click.echo(f"velocities of the file are kept (T = {temperature:.0f} K)")
    what = (atoms.get_chemical_formula(), model_file.model_name(model), settings.ensemble.upper())
    picture = _Picture(target, settings, ", ".join(what), _degrees_of_freedom(atoms, settings))
    with _running(settings, target, picture) as progress:
        if by_ase:
            atoms.calc = calculator
            rows = run_with_ase(atoms, settings, target, progress=progress)
            neighbors = calculator.neighbors
        else:
            force = Forces(calculator.potential)
            info = {
                "model": _absolute(model),
                "checksum": model_file.checksum(model),
                "dtype": dtype,
                "threads": threads,
                "title": picture.title,
                "n_dof": picture.n_dof,
            }
            rows = run_structure(atoms, force, settings, target, info=info, progress=progress).rows
            neighbors = force.neighbors
    _report(target, rows, f"{neighbors.n_rebuilds} neighbour lists in {neighbors.n_updates} steps")


def _resume(
    target: Path,
    given: list[str],
    device: str,
    dtype: str | None,
    threads: int | None,
    steps: int,
) -> None:
    """Go on with a run by its checkpoint."""
    if others := sorted(set(given) - {"resume", "device", "threads", "steps"}):
        listed = ", ".join(f"--{name}" if name != "structure" else "STRUCTURE" for name in others)
        raise ValueError(f"--resume takes everything from the run itself: leave {listed} away")
    restart, settings = read_restart(target)
    info, done = restart.info, restart.state.step
    if "steps" in given:
        settings = replace(settings, n_steps=steps)
    if done >= settings.n_steps:
        click.echo(f"{target}: {done} steps are done; --steps N goes on to N")
        if not target.with_suffix(".png").exists():  # killed between the last step and the picture
            _Picture(target, settings, info["title"], info["n_dof"]).draw()
        return
    (atoms,) = restart.state.system.to_ase()
    threads = info.get("threads") if threads is None else threads  # other numbers, other bits
    _set_threads(threads, [atoms])
    if model_file.checksum(info["model"]) != info["checksum"]:
        raise ValueError(
            f"{info['model']}: not the model that the run began with: a trajectory has one model"
        )
    calculator = AttnCalculator(info["model"], device=device, dtype=info["dtype"], threads=threads)
    click.echo(f"{target}: going on at step {done} of {settings.n_steps}")
    picture = _Picture(target, settings, info["title"], info["n_dof"])
    force = Forces(calculator.potential)
    with _running(settings, target, picture, done=done) as progress:
        rows = resume_structure(restart, force, settings, target, progress=progress).rows
    neighbors = force.neighbors
    _report(target, rows, f"{neighbors.n_rebuilds} neighbour lists in {neighbors.n_updates} steps")


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _degrees_of_freedom(atoms: Atoms, settings: Settings) -> int:
    return Thermometer.for_run(atoms, settings.ensemble).n_dof


def _absolute(model: str) -> str:
    """A shipped name as it is, a file so that it is found from elsewhere."""
    return model if model in model_file.shipped_models() else str(Path(model).resolve())


@dataclass(frozen=True)
class _Picture:
    """The summary of a run, drawn from its log and some of its frames.

    Attributes:
        target: the trajectory.
        settings: of the run.
        title: of the picture.
        n_dof: degrees of freedom that temperature counts.
    """

    target: Path
    settings: Settings
    title: str
    n_dof: int

    def draw(self) -> None:
        """Some of the frames, the last of them the very last."""
        with open(self.target.with_suffix(".csv"), newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        stride = -(-len(rows) // MOST_FRAMES)
        frames = _read(str(self.target), index=f"{(len(rows) - 1) % stride}::{stride}")
        figure = plots.md_summary(
            rows,
            frames,
            title=self.title,
            ensemble=self.settings.ensemble,
            target=None if self.settings.ensemble == "nve" else self.settings.temperature,
            n_dof=self.n_dof,
        )
        _save_picture(figure, self.target.with_suffix(".png"))


@contextmanager
def _running(
    settings: Settings, target: Path, picture: _Picture, *, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """A bar while a run goes on, and a picture of what there is, whatever ends it."""
    with _bar(settings.n_steps, "step") as bar:
        bar.update(done)
        bar.initial = done  # the rate counts what is done now

        def progress(steps: int, status: str) -> None:
            rate = bar.format_dict["rate"] or 0.0
            ns_per_day = rate * settings.timestep * 86400 * 1e-6
            bar.set_postfix_str(f"{ns_per_day:.2f} ns/day, {status}", refresh=False)
            bar.update(steps)

        try:
            with _sigterm_as_ctrl_c():
                yield progress
        except (FloatingPointError, KeyboardInterrupt):
            with finished_before_ctrl_c():
                if target.exists():  # a picture of what there is shows what went wrong
                    picture.draw()
            raise
    picture.draw()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """What a batch queue sends at the end of the time saves the run as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(target: Path, rows: list[dict[str, float]], lists: str) -> None:
    """What a finished run says."""
    wrote = ", ".join(str(target.with_suffix(ending)) for ending in (".csv", ".png"))
    click.echo(f"wrote {target} ({len(rows)} frames), {wrote}; {lists}")
    if spreads := [row for row in rows if SPREAD in row]:
        widest = max(spreads, key=lambda row: row[SPREAD])
        click.echo(
            f"largest spread of the committee on a force: {widest[SPREAD]:.3f} eV/Å, at "
            f"{widest['time_fs']:.1f} fs"
        )


@main.command()
@click.argument("recipe")
@click.option("--data", help="Data file, instead of the one that the recipe names.")
@click.option("-o", "--output", help="Folder. Default: runs/NAME of the recipe.")
@click.option(
    "--member",
    type=int,
    help="Train only this member of the recipe's committee, so that several train at once.",
)
@one_line_errors
def train(recipe, data, output, member) -> None:
    """Train a model by a recipe; a stopped run goes on where it was.

    Example: attncalc train models/so3krates-ethanol.yaml --data rmd17_ethanol.npz
    """
    try:
        from attncalc import train as training
    except ImportError as error:
        raise ImportError(f'{error}; training needs: pip install "attncalc[train]"') from None
    plan = training.Recipe.from_yaml(recipe)
    folder = Path(output or Path("runs") / plan.name)
    command = shlex.join(["attncalc", *sys.argv[1:]])
    speaks = training.connect().is_first  # of several processes, one
    if not speaks:
        logging.getLogger("attncalc").setLevel(logging.ERROR)
    done = training.run(plan, folder, data=data, command=command, member=member)
    if not speaks:
        return
    click.echo(done.model.with_suffix(".md").read_text())
    click.echo(f"wrote {done.model}")


@main.command(name="eval")
@click.argument("model")
@click.argument("data_file", metavar="DATA")
@calculator_options
@click.option("--labels", help="Which label set of the file.")
@click.option("--split", help="Only this split stored in the file, e.g. test_01.")
@click.option("--energy-unit", help="If the file does not state it.")
@click.option("--length-unit", help="If the file does not state it.")
@click.option(
    "-o",
    "--report",
    help="The page with tables and pictures, .html. Default: eval-MODEL-DATA.html here. An older "
    "report is replaced, no other file.",
)
@click.option("--no-report", is_flag=True, help="Only the table.")
@one_line_errors
def evaluate(
    model, data_file, device, dtype, threads, labels, split, report, no_report, **units
) -> None:
    """Errors of a model on labelled structures: per property, and forces per element.

    A table here, and a page for the browser with what errors depend on and the worst structures.

    Example: attncalc eval so3krates-ethanol rmd17_ethanol.npz --labels md17 --split test_01
    """
    from attncalc import data
    from attncalc.data.calibration import calibrations
    from attncalc.data.errors import predict
    from attncalc.report import Subject, evaluation, remarks

    target = None if no_report else _report_file(report, model, data_file, labels, split)
    dataset = data.read(data_file, labels=labels, **units)
    for what in filter(None, (data.unit_mismatch(dataset), data.stress_mismatch(dataset))):
        click.echo(f"Warning: {what}", err=True)
    indices = None
    if split is not None:
        if split not in dataset.splits:
            known = ", ".join(dataset.splits) or "none"
            raise ValueError(f"{dataset.source}: no split {split!r}; stored splits: {known}")
        indices = dataset.splits[split]
        dataset = dataset[indices]
    _set_threads(threads, dataset.structures)
    potential = AttnCalculator(model, device=device, dtype=dtype, threads=threads).potential
    start = time.perf_counter()
    with _bar(len(dataset), "structure") as bar:
        prediction = predict(potential, dataset, progress=bar.update)
    seconds = time.perf_counter() - start
    click.echo(f"{len(dataset)} structures of {dataset.source}, labels {dataset.labels}")
    click.echo(_table(_error_rows(prediction, dataset)))
    for quantity, worth in calibrations(prediction, dataset).items():  # of a committee
        click.echo(f"spread of the committee: {quantity} {worth}")
    command, device = shlex.join(["attncalc", *sys.argv[1:]]), str(potential.device)
    subject = Subject(model, split, indices, command, device, seconds)
    for remark in remarks(potential, prediction, dataset, subject):
        click.echo(f"Note: {remark}")
    if target is not None:
        page = evaluation(potential, prediction, dataset, subject)
        model_file.write_atomically(target, page.encode(errors="replace"))
        click.echo(f"wrote {target}")


def _error_rows(prediction: Prediction, dataset: Dataset) -> list[tuple[str, ...]]:
    from attncalc.data.errors import (
        energy_statistics,
        force_statistics,
        force_statistics_by_element,
        stress_statistics,
    )

    energy = energy_statistics(prediction, dataset)
    found = {"energy, meV": energy["per structure"], "energy, meV/atom": energy["per atom"]}
    if dataset.forces is not None:
        found["force, meV/Å"] = force_statistics(prediction, dataset)
    if (stress := stress_statistics(prediction, dataset)) is not None:
        found["stress, meV/Å³"] = stress
    for number, statistics in force_statistics_by_element(prediction, dataset).items():
        found[f"force on {chemical_symbols[number]}, meV/Å"] = statistics
    rows = [(name, f"{1e3 * s.mae:.3f}", f"{1e3 * s.rmse:.3f}") for name, s in found.items()]
    return [("", "MAE", "RMSE"), *rows]


def _report_file(
    report: str | None, model: str, data_file: str, labels: str | None, split: str | None
) -> Path:
    """Where the report goes: checked before the work. An older report may be replaced."""
    from attncalc.report import GENERATOR

    names = ["eval", model_file.model_name(model), Path(data_file).stem, labels or "", split or ""]
    default = "-".join(re.sub(r"[^\w.+-]+", "_", name) for name in names if name) + ".html"
    path = Path(report or default)
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"{path.name}: a report must end in .html")
    if not (path.is_file() and f'content="{GENERATOR}"'.encode() in path.read_bytes()[:1000]):
        _new_file(path)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"no report can be written to {path.parent.resolve()}: name another place with -o, or "
            "take --no-report"
        )
    return path


@main.command()
@click.argument("model")
@click.option("--structure", help="File with the structure to check on. Default: a random cluster.")
@calculator_options
@one_line_errors
def verify(model, structure, device, dtype, threads) -> None:
    """Check the physics of a model: forces, stress, symmetries, batching, neighbour lists.

    Example: attncalc verify so3krates-ethanol --structure ethanol.xyz
    """
    atoms = None if structure is None else _read(structure, index="-1")[0]
    _set_threads(threads, [] if atoms is None else [atoms])
    AttnCalculator(model, device=device, dtype=dtype, threads=threads).verify(atoms)


@main.command()
@one_line_errors
def models() -> None:
    """List the models that come with attncalc: elements, data, errors.

    Example: attncalc models
    """
    shipped = model_file.shipped_models()
    width = max(map(len, shipped), default=0) + 2
    click.echo(
        f"{'name':{width}}{'network':14} {'elements':12}{'force MAE':>12}  data, level of theory"
    )
    for name, path in shipped.items():
        header = model_file.header(path)
        info, described = header["training"], model_file.descriptions(header)
        elements = " ".join(chemical_symbols[z] for z in described[0]["species"])
        network = names_in_words(member["network"] for member in described)
        test = info.get("test_errors") or {}
        mae = f"{1e3 * test['force_mae']:.1f} meV/Å" if test.get("force_mae") else "-"
        origin = f"{info.get('data', '-')}, {info.get('level_of_theory') or '-'}"
        click.echo(f"{name:{width}}{network:14} {elements:12}{mae:>12}  {origin}")


@main.group()
def convert() -> None:
    """Convert published weights to a model file, or data to a file that trainings can stream."""


@convert.command(name="so3krates")
@click.argument("params")
@click.option("--config", required=True, help="Hyper-parameters, JSON.")
@click.option("--elements", help="Keep only these, e.g. H,C,N,O. Default: every row of the table.")
@click.option("-o", "--output", required=True, help="Model file to write, .safetensors.")
@one_line_errors
def convert_so3krates(params, config, elements, output) -> None:
    """Published So3krates parameters (mlff main or v1.0) to a model file.

    Example: attncalc convert so3krates params.npz --config hyper.json -o model.safetensors
    """
    from attncalc.convert import so3krates

    target = _new_file(output)
    _save_converted(so3krates(params, config, species=_atomic_numbers(elements)), target)


@convert.command(name="equiformer")
@click.argument("weights")
@click.option("--config", required=True, help="Hyper-parameters, JSON.")
@click.option("--std", default=1.0, show_default=True, help="eV per unit of its energies.")
@click.option("--mean", default=0.0, show_default=True, help="eV, total energy that was left out.")
@click.option("--n-atoms", type=int, help="Atoms of the molecule that MEAN belongs to.")
@click.option("--elements", help="Keep only these, e.g. H,C,N,O. Default: every row of the table.")
@click.option("-o", "--output", required=True, help="Model file to write, .safetensors.")
@one_line_errors
def convert_equiformer(weights, config, std, mean, n_atoms, elements, output) -> None:
    """Published Equiformer weights (MD17) to a model file.

    Example: attncalc convert equiformer weights.safetensors --config c.json -o m.safetensors
    """
    from attncalc.convert import equiformer

    target = _new_file(output)
    species = _atomic_numbers(elements)
    potential = equiformer(weights, config, species=species, std=std, mean=mean, n_atoms=n_atoms)
    _save_converted(potential, target)


@convert.command(name="data")
@click.argument("files", nargs=-1, required=True)
@click.option("--energy-unit", help="Of the labels, where the files do not say.")
@click.option("--length-unit", help="Likewise. Default: Angstrom.")
@click.option("--labels", help="Which label set of the files.")
@click.option("-o", "--output", required=True, help="HDF5 file to write, .h5.")
@one_line_errors
def convert_data(files, energy_unit, length_unit, labels, output) -> None:
    """Labelled structures to one HDF5 file, in eV and Å, that trainings can stream.

    Extended XYZ may be larger than the memory; files of other formats are read one at a time.

    Example: attncalc convert data a.extxyz b.extxyz -o all.h5
    """
    from attncalc import data

    target = _new_file(output)
    if target.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"--output must end in .h5 or .hdf5, got {output}")
    given = {"energy_unit": energy_unit, "length_unit": length_unit, "labels": labels}
    with _bar(None, "structure") as bar:

        def parts() -> Iterator[Dataset]:
            for file in files:
                for part in data.read_parts(file, **given):
                    yield part
                    bar.update(len(part))

        n = data.write_hdf5(parts(), target)
    click.echo(f"wrote {target}: {n} structures")


def _save_converted(potential: Potential, target: Path) -> None:
    model_file.save(potential, target)
    n_elements = len(potential.species)
    click.echo(f"wrote {target}: {potential.n_parameters:,} parameters, {n_elements} elements")
    for fault in potential.network.config.faults:
        click.echo(f"note: {fault}")


def _atomic_numbers(symbols: str | None) -> list[int] | None:
    if symbols is None:
        return None
    names = [name.strip() for name in symbols.split(",")]
    unknown = [name for name in names if name not in chemical_symbols[1:]]
    if unknown:
        raise ValueError(f"no such element: {', '.join(unknown)}")
    return [chemical_symbols.index(name) for name in names]


def _read(path: str, index: str = ":") -> list[Atoms]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if Path(path).suffix in (".xyz", ".extxyz"):  # ASE's reader may wait without end
            from attncalc.data.extxyz import read_frames

            frames = read_frames(Path(path), _slice(index))
        elif Path(path).suffix == ".h5md":
            frames = read_h5md(path, _slice(index))
        else:
            found = read(path, index)
            frames = found if isinstance(found, list) else [found]
    except Exception as error:  # ASE's readers raise whatever they stumble over
        remark = one_line(error)
        raise ValueError(f"{path}: not a structure file that ASE can read ({remark})") from None
    if not frames:
        raise ValueError(f"{path}: not a structure file that ASE can read (no structure in it)")
    return frames


def _slice(index: str) -> slice:
    wanted = slice(-1, None) if index == "-1" else string2index(index)
    assert isinstance(wanted, slice)
    return wanted


def _new_file(path: str | Path) -> Path:
    """A path that can be written and is not: asked before the work, not after it."""
    path = Path(path)
    refuse_existing(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"nothing can be written to {path.parent.resolve()}")
    return path


def _new_structure_file(path: str | Path) -> Path:
    path = _new_file(path)
    try:
        writable = get_ioformat(filetype(str(path), read=False)).can_write
    except UnknownFileTypeError:
        writable = False
    if not writable:
        raise ValueError(f"{path.name}: ASE writes no structure file with this ending; take .xyz")
    return path


def _require_room(path: Path, n_structures: int) -> None:
    if n_structures > 1 and get_ioformat(filetype(str(path), read=False)).single:
        raise ValueError(
            f"{path.name}: a file of this format holds one structure, and there are "
            f"{n_structures}; take .xyz"
        )


def _require_known(potential: Potential, frames: list[Atoms], *, volume: bool) -> None:
    """The model takes all structures: asked before the work, not after half of it."""
    for k, atoms in enumerate(frames):
        try:
            system = System.from_ase(atoms)
            species_of(system.atomic_numbers, potential.species)
            check_system(potential, system)
            if volume and atoms.cell.rank < 3:
                raise ValueError(
                    "stress needs a volume: this structure does not have three cell vectors"
                )
        except ValueError as error:
            where = f"structure {k}: " if len(frames) > 1 else ""
            raise ValueError(f"{where}{error}") from None


def _set_threads(threads: int | None, structures: Sequence[Atoms]) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and max(map(len, structures), default=0) < SMALL:
        torch.set_num_threads(1)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Labels, then numbers to the right, every column as wide as it must be, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *numbers in rows:
        cells = [f"{label:{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _write(path: Path, frames: list[Atoms]) -> None:
    """All at once or not at all."""
    with tempfile.TemporaryDirectory(prefix=".part.", dir=path.parent) as folder:
        # of the same name, by which ASE picks the format
        temporary = Path(folder) / path.name
        write(temporary, frames)
        temporary.replace(path)


def _saved(n_written: int, n_structures: int, path: Path, unfinished: Course | None = None) -> str:
    """How much of the work is in the file."""
    there = unfinished is not None and unfinished.frame is not None
    if n_structures == 1:
        return f"the structure after {unfinished} is written to {path}" if there else ""
    saved = f"{n_written} of {n_structures} structures are written"
    saved += f" to {path}" if n_written or there else ""
    return saved + (f", and structure {n_written} after {unfinished}" if there else "")


def _with_results(atoms: Atoms) -> Atoms:
    """A copy that remembers energy and forces without its calculator."""
    frozen = atoms.copy()
    frozen.calc = SinglePointCalculator(frozen, **atoms.calc.results)
    return frozen


def _save_picture(figure: Figure, path: Path) -> None:
    """Atomically, in the format of the file's ending."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."))
    model_file.write_atomically(path, content.getvalue())


def _fmax(optimizable: Any) -> float:
    return float((optimizable.get_forces() ** 2).sum(axis=1).max() ** 0.5)


@contextmanager
def _bar(total: int | None, unit: str) -> Iterator[tqdm]:
    """A progress bar with rate and time left on a terminal, none in a pipe."""
    with tqdm(
        total=total,
        unit=f" {unit}",
        disable=None,
        leave=False,
        dynamic_ncols=True,
        miniters=0,  # steps that take a second each are shown as they come
    ) as bar:
        yield bar


if __name__ == "__main__":
    main()
