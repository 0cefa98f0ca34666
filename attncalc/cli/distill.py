"""`attncalc distill`: a fast potential of one structure, from the labels of an oracle."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from ase import Atoms

from attncalc.cli.errors import OUTSIDE_STATUS, one_line_errors
from attncalc.cli.files import read_structures
from attncalc.cli.options import Minutes, charge_options, set_charge, set_threads
from attncalc.cli.output import output_options, overwrites, report_json, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.files import FileLock
from attncalc.model_file import DEFAULT_MODEL, find_model, load
from attncalc.options import positive
from attncalc.structures import check_system
from attncalc.system import System, assumed_radical, charge_and_spin, stated, what_is_ignored

log = logging.getLogger(__name__)

# files in a folder, in addition to models and rounds
FILES = (
    *("state.json", "labels.h5", "train.h5", "validation.h5", "test.h5"),
    *("report.md", "errors.html"),
)

NEEDS = 'distilling needs {}: pip install "attncalc[distill]"'


@click.command()
@click.argument("structure")
@click.option(
    "--oracle",
    default="gfn2",
    show_default=True,
    help="Method that labels structures: gfn2 (tblite), name or file of a model or committee, or "
    "MODULE:CALLABLE, which returns an ASE calculator.",
)
@click.option("-o", "--output", help="Folder to write. Default: NAME-distilled.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Temperature of the intended dynamics, K. Structures are sampled up to 1.5 times it.",
)
@click.option(
    "--force-mae",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Goal: mean absolute error of the forces on new frames of its own dynamics, meV/Å.",
)
@click.option(
    "--picoseconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Goal: time for which the replicas at --temperature must run without a broken bond, with "
    "at most 1 % of their frames outside the training data.",
)
@click.option(
    "--labels",
    type=click.IntRange(min=60),
    default=1000,
    show_default=True,
    help="Budget: structures that the oracle labels, including those of the test set.",
)
@click.option(
    "--minutes",
    type=Minutes(),
    default=float("inf"),
    help="Budget: wall time. No round starts that would end later. Default: no limit.",
)
@click.option(
    "--members",
    type=click.IntRange(min=1, max=16),
    default=2,
    show_default=True,
    help="Networks of the committee. The best one is also written as a model of its own.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of each training. Default: from the number of structures.",
)
@click.option(
    "--start-from",
    help="Name or file of a model whose weights the trainings start from; none: random weights. "
    f"Default: {DEFAULT_MODEL} if it knows the elements and the charge, else none.",
)
@click.option(
    "--timestep",
    type=click.FloatRange(min=0, max=5, min_open=True),
    default=0.5,
    show_default=True,
    help="Timestep of the dynamics, fs.",
)
@charge_options
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=10**6),
    default=0,
    show_default=True,
    help="Seed of structures, trainings and dynamics.",
)
@output_options
@one_line_errors
def distill(structure, output, charge, multiplicity, **options) -> None:
    """Distill an oracle into a fast potential of the last structure of a file.

    Samples and labels structures and trains a committee. Then runs dynamics with it, labels frames
    of these and trains again, until the force error on new frames is below --force-mae and the
    dynamics is stable. The same command continues after any interruption, also with more --labels
    or another goal. Exit status: 0: the goal is reached; 1: an error; 2: the goal is not reached,
    or more than 1 % of the structures are outside the training data of an oracle that is a model.

    Example: attncalc distill molecule.xyz --temperature 500
    """
    try:
        from attncalc.distill import run
        from attncalc.distill.state import MOST_OUTSIDE, Goal, Settings
        from attncalc.sampling.oracles import load_oracle
    except ImportError as error:
        missing = next((name for name in ("rdkit", "lightning", "yaml") if name in str(error)), "")
        if not missing:
            raise
        raise ImportError(NEEDS.format(missing)) from None
    for name in ("temperature", "force_mae", "picoseconds", "timestep"):
        positive(f"--{name.replace('_', '-')}", options[name])
    atoms = _start(structure, charge, multiplicity)
    set_threads(None, [atoms])
    folder = Path(output or f"{Path(structure).stem}-distilled")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is no folder: choose another --output")
    if folder.is_dir() and not _is_ours(folder):
        raise FileExistsError(f"{folder} holds something else: choose another --output")
    start_from = _first_weights(options["start_from"], atoms)
    if overwrites():
        _refuse_inside(folder, structure, options["oracle"], start_from)
    oracle = load_oracle(options["oracle"])
    settings = Settings(
        options["temperature"],
        members=options["members"],
        seed=options["seed"],
        timestep=options["timestep"],
        steps=options["steps"],
        start_from=start_from,
    )
    goal = Goal(
        1e-3 * options["force_mae"],
        picoseconds=options["picoseconds"],
        labels=options["labels"],
        minutes=options["minutes"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder):
        if overwrites():
            _empty(folder, Path(structure).stem)
        try:
            done = run.distill(atoms, oracle, settings, goal, folder, bar=_bar)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command continues from there ({folder})") from None
        _report(done, goal, folder, Path(structure).stem, settings.temperature)
    if done.faults or done.store.n_outside > MOST_OUTSIDE * len(done.store):
        sys.exit(OUTSIDE_STATUS)


def _start(structure: str, charge: int | None, multiplicity: int | None) -> Atoms:
    """Return the last structure of a file, with a possible charge and multiplicity."""
    read = read_structures(structure, "-1")[-1]
    atoms = Atoms(read.numbers, read.positions, cell=read.cell, pbc=read.pbc)
    if len(atoms) < 2:
        advice = "; repeat the cell" if atoms.pbc.any() else ""
        raise ValueError(f"{structure}: two atoms or more are needed, got {len(atoms)}{advice}")
    set_charge([read], charge, multiplicity)
    for name in ("charge", "spin"):
        atoms.info |= stated(read.info, name)
    if ignored := what_is_ignored(read):
        warn(f"{ignored}, or use --charge and --multiplicity")
    if read.constraints:
        warn("constraints of the structure are not used: all atoms move in a distillation")
    if not np.array_equal(read.get_masses(), atoms.get_masses()):
        warn("masses of the structure are not used: the distillation moves common isotopes")
    System.from_ase(atoms)  # refuses impossible structures
    if radical := assumed_radical(atoms):
        warn(f"{radical}; --charge or --multiplicity says what is meant")
    atoms.info = dict(zip(("charge", "spin"), charge_and_spin(atoms), strict=True))
    return atoms


def _first_weights(name: str | None, atoms: Atoms) -> str | None:
    """Return the file of the model that trainings start from; None for random weights."""
    if name == "none":
        return None
    path = find_model(name or DEFAULT_MODEL).absolute()
    model = load(path, device="cpu")
    if len(model.members) > 1:
        raise ValueError(f"--start-from {name} is a committee: start from a member")
    if model.baseline:
        raise ValueError(f"--start-from {name} is a delta model: start from another one")
    try:  # before the oracle has labelled anything
        check_system(model, System.from_ase(atoms))
    except ValueError as error:  # an element, charge or spin that it does not know
        if name is None:
            return None
        raise ValueError(f"--start-from {name} cannot be used: {error}") from None
    if name is None:
        say(f"trainings start from {DEFAULT_MODEL} (--start-from none: from random weights)")
    return str(path)


def _is_ours(folder: Path) -> bool:
    """Return True if a folder is empty, or a distillation has begun in it."""
    names = {path.name for path in folder.iterdir()}
    # a run that was killed at its start leaves its lock, or an incomplete state
    left = {name for name in names if name != ".lock" and not name.startswith(".state.json.")}
    return not left or bool({"state.json", "labels.h5"} & names)


def _refuse_inside(folder: Path, *inputs: str | None) -> None:
    """Refuse inputs that --overwrite might remove.

    Raises:
        ValueError: an input is in the folder.
    """
    for name in inputs:
        path = Path(name or "").resolve()
        if name and path.is_file() and folder.resolve() in path.parents:
            raise ValueError(
                f"{name} lies in {folder}, which --overwrite empties: choose another --output"
            )


def _empty(folder: Path, name: str) -> None:
    """Remove the files of an earlier run, and nothing else."""
    for path in folder.iterdir():
        if re.fullmatch(r"round-\d+", path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name in (*FILES, f"{name}.safetensors", f"{name}-fast.safetensors"):
            path.unlink()


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with progress_bar(total, unit) as bar:
        yield lambda n: bar.update(n) and None


def _report(done, goal, folder: Path, name: str, temperature: float) -> None:
    from attncalc.data.errors import predict
    from attncalc.distill.report import summary, write_products, write_report
    from attncalc.files import write_atomically
    from attncalc.report.evaluation import Subject, evaluation

    command = shlex.join(["attncalc", *(Path(word).name for word in sys.argv[1:])])
    products = write_products(done, folder, name, command, temperature)
    text = write_report(done, products, goal, folder / "report.md")
    best = products[0]
    dataset = done.store.dataset(done.state.rounds[-1].test)
    subject = Subject(best.file.name, command=command)
    page = evaluation(best.potential, predict(best.potential, dataset), dataset, subject)
    write_atomically(folder / "errors.html", page.encode())
    say(text)
    for one in products:
        say(f"wrote {one.file}")
    report_json(summary(done, products))
