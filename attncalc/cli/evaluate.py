"""`attncalc eval`: errors on labelled structures, as a table and as a page; also in shards."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ase.data import chemical_symbols

from attncalc import data, model_file
from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import data_is_needed, one_line_errors
from attncalc.cli.files import from_anywhere, is_folder_of_run
from attncalc.cli.model_checks import is_delta, require_known
from attncalc.cli.model_job import ModelJob
from attncalc.cli.options import calculator_options, set_threads
from attncalc.cli.output import output_file, output_options, report_json, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.cli.shards import processing
from attncalc.cli.shards.processing import process_shards, shard_options
from attncalc.cli.shards.results import Outcome, Solver, Work, refuse_unfinished
from attncalc.data import Dataset, StreamedDataset
from attncalc.data.errors import (
    BATCH_ATOMS,
    Prediction,
    energy_statistics,
    errors,
    force_statistics,
    force_statistics_by_element,
    inside_and_outside,
    predict,
    stress_statistics,
)
from attncalc.data.shards import Frame, Rows
from attncalc.data.statistics import with_possible_stress
from attncalc.files import write_atomically
from attncalc.potential import Potential
from attncalc.structures import batches
from attncalc.text import counted

if TYPE_CHECKING:
    from attncalc.report import Subject


@click.command(name="eval")
@click.argument("model")
@click.argument("data_file", metavar="[DATA]", required=False)
@calculator_options
@click.option("--labels", help="Label set of the file to use.")
@click.option(
    "--split",
    help="Split of the file to use, e.g. test_01; for a training's folder: training, validation "
    "or test.",
)
@click.option("--energy-unit", help="Unit of energies, if the file does not state it.")
@click.option("--length-unit", help="Unit of lengths, if the file does not state it.")
@click.option(
    "-o",
    "--report",
    help="HTML page to write. Default: eval-MODEL-DATA.html in the current folder. An older report "
    "is replaced, any other file is not.",
)
@click.option("--no-report", is_flag=True, help="Print the table only.")
@shard_options
@output_options
@one_line_errors
def evaluate(
    model,
    data_file,
    device,
    dtype,
    threads,
    long_range_cutoff,
    labels,
    split,
    report,
    no_report,
    energy_unit,
    length_unit,
    **many,
) -> None:
    """Evaluate the errors of a model on labelled structures, per property and element.

    Prints a table and writes an HTML report with plots and the worst structures.
    MODEL may be the output folder of a training, whose data and split are then used (the test set,
    else the validation set). To evaluate all structures of a file, name the model file in it.

    With --workers, --shard or --scheduler the structures are divided among processes, and
    predictions are stored in REPORT.parts until all are done. Results are those of one process, and
    the same command continues after any interruption. Each process reads all of DATA.

    Example: attncalc eval so3krates-ethanol rmd17_ethanol.npz --labels md17 --split test_01

    Example: attncalc eval runs/mine --split test
    """
    from attncalc.report import Subject

    in_folder, in_shards = is_folder_of_run(model), any(many.values())
    units = {"energy_unit": energy_unit, "length_unit": length_unit}
    of_data = labels, split, units
    target = None
    if not in_folder:
        if data_file is None:
            raise data_is_needed("labelled structures", model)
        if in_shards or not no_report:
            target = _report_file(report, model, data_file, labels, split, written=not no_report)
    asked = os.path.abspath(model) if in_folder else model, data_file and from_anywhere(data_file)
    model, dataset, split = read_labelled(model, data_file, *of_data)
    if in_folder and (in_shards or not no_report):
        target = _report_file(report, model, dataset.source, labels, split, written=not no_report)
    if target is not None and not in_shards:
        refuse_unfinished(target)
    for mismatch in (data.unit_mismatch, data.label_mismatch, data.stress_mismatch):
        if what := mismatch(dataset):
            warn(what)
    set_threads(threads, dataset.structures)
    options = {"device": device, "dtype": dtype, "long_range_cutoff": long_range_cutoff}
    options["delta"] = is_delta(model)
    here = options | {"device": "cpu"} if in_shards else options
    calculator = AttnCalculator(model, threads=threads, **here)
    potential = calculator.evaluator.plain
    require_known(potential, dataset.structures)
    subject = Subject(model, split, shlex.join(["attncalc", *sys.argv[1:]]))
    if target is not None and in_shards:

        def join(work: Work) -> None:
            on = replace(subject, device=work.plan()["device"])
            _tell(potential, joined(work), dataset, on, None if no_report else target)

        rows = find_rows(dataset, potential)
        job = EvalMany(from_anywhere(model), options, threads, (*asked, *of_data), rows.sha256)
        process_shards(job, rows, target, join=join, **many)
        return
    fast = calculator.potential  # compiled before the clock starts
    start = time.perf_counter()
    with progress_bar(len(dataset), "structure") as bar:
        prediction = predict(fast, dataset, progress=bar.update)
    seconds = time.perf_counter() - start
    subject = replace(subject, device=str(potential.device), seconds=seconds)
    _tell(potential, prediction, dataset, subject, target)


def _tell(
    potential: Potential,
    prediction: Prediction,
    dataset: Dataset,
    subject: Subject,
    target: Path | None,
) -> None:
    """Print the table and write the report."""
    from attncalc.data.calibration import calibrations  # imports scipy.stats, which takes long
    from attncalc.report import evaluation, remarks

    chosen = f", split {subject.split}" if subject.split else ""
    n = counted(len(dataset), "structure")
    say(f"{n} of {dataset.source}, labels {dataset.labels}{chosen}")
    say(_table(_error_rows(prediction, dataset)))
    limits = inside_and_outside(prediction, dataset)
    say(str(limits or "this model does not know its training data: see attncalc calibrate"))
    for quantity, worth in calibrations(prediction, dataset).items():  # of a committee
        say(f"spread of the committee: {quantity} {worth}")
    notes = list(remarks(potential, prediction, dataset, subject))
    for note in notes:
        say(f"Note: {note}")
    if target is not None:
        page, is_new = evaluation(potential, prediction, dataset, subject), not target.exists()
        write_atomically(target, page.encode(errors="replace"))
        say(f"wrote {target}" if is_new else f"replaced the older report {target}")
    report_json(
        {
            "model": str(subject.model),
            "data": dataset.source,
            "labels": dataset.labels,
            "split": subject.split,
            "errors": asdict(errors(prediction, dataset)),
            "novelty": None if limits is None else asdict(limits),
            "notes": notes,
            "report": None if target is None else str(target),
            "seconds": subject.seconds,
        }
    )


def read_labelled(
    model: str,
    data_file: str | None,
    labels: str | None,
    split: str | None,
    units: dict[str, str | None],
) -> tuple[str, Dataset, str | None]:
    """Read the data to evaluate; `model` may be the folder of a training.

    Returns:
        Model, structures, and split.

    Raises:
        OSError, ValueError: model, data or split do not exist, or are invalid.
    """
    folder = Path(model)
    if data_file is not None and not is_folder_of_run(model):
        dataset = data.read(data_file, labels=labels, **units)
        if split is None:
            return model, with_possible_stress(dataset), None
        if split not in dataset.splits:
            known = ", ".join(dataset.splits) or "none"
            raise ValueError(f"{dataset.source}: no split {split!r}; stored splits: {known}")
        return model, with_possible_stress(dataset[dataset.splits[split]]), split
    from attncalc import train

    if labels is not None or any(units.values()):
        raise ValueError(
            f"{folder}: labels and units are those of the training: remove these options"
        )
    wanted = split in (None, "test")
    recipe, parts = train.read_run(folder, data=data_file, with_test_data=wanted)
    named = {name: part for name, part in parts.items() if part is not None}
    split = split or ("test" if "test" in named else "validation")
    if split not in named:
        raise ValueError(f"{folder}: no split {split!r}; this training has: {', '.join(named)}")
    weights = folder / f"{recipe.name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"no such file: {weights}; the training has not done an epoch yet")
    chosen = named[split]
    if isinstance(chosen, StreamedDataset):
        chosen = chosen.in_memory()
    return str(weights), with_possible_stress(chosen), split


def _error_rows(prediction: Prediction, dataset: Dataset) -> list[tuple[str, ...]]:
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


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format a table: labels to the left, numbers to the right, columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *numbers in rows:
        cells = [f"{label:{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _report_file(
    report: str | None,
    model: str,
    data_file: str,
    labels: str | None,
    split: str | None,
    *,
    written: bool = True,
) -> Path:
    """Return the path of the report, checked before the work. An older report may be replaced.

    Args:
        report .. split: arguments of the command.
        written: False if no report is written and only shards are stored beside its path.
    """
    from attncalc.report import GENERATOR

    names = ["eval", model_file.model_name(model), Path(data_file).stem, labels or "", split or ""]
    default = "-".join(re.sub(r"[^\w.+-]+", "_", name) for name in names if name) + ".html"
    path = Path(report or default)
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"{path.name}: a report must end in .html")
    if not written:
        return path
    if not (path.is_file() and f'content="{GENERATOR}"'.encode() in path.read_bytes()[:1000]):
        output_file(path)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"cannot write a report to {path.parent.resolve()}: choose another place with -o, "
            "or use --no-report"
        )
    return path


def find_rows(dataset: Dataset, potential: Potential) -> Rows:
    """Find the shards of a data set: each begins where a batch of `predict` begins.

    Therefore batches, and all results bit by bit, are the same as without shards.
    """
    from attncalc.train.run_folder import checksum

    starts = [0]
    apart = potential.counts_all_pairs
    for first, _ in batches(dataset.structures, BATCH_ATOMS, apart=apart):
        if first >= starts[-1] + processing.STRUCTURES:
            starts.append(first)
    n, of_all = len(dataset), checksum(dataset)
    return Rows(Path(dataset.source), processing.STRUCTURES, n, (*starts, n), of_all)


@dataclass(frozen=True)
class EvalMany(ModelJob):
    """Job of predictions for a data set, which every process reads.

    Attributes:
        asked: arguments of `read_labelled`, with absolute paths.
        sha256: checksum of structures and labels.
    """

    asked: tuple[Any, ...]
    sha256: str

    def start(self) -> Solver:
        """Load the model and the data.

        Raises:
            OSError, ValueError: the data cannot be read, or differ from those of the first process.
        """
        from attncalc.train.run_folder import checksum

        dataset = read_labelled(*self.asked)[1]
        if checksum(dataset) != self.sha256:
            raise ValueError(f"{dataset.source}: the file has changed, or is another one here")
        potential = self.load().potential

        def solve(frames: Sequence[Frame], first: int) -> list[Outcome]:
            mine = dataset[first : first + len(frames)]
            try:
                found = predict(potential, mine, first_number=first)
            except ValueError as error:  # an error in the data: do not try again
                return [(None, {"error": str(error)}) for _ in frames]
            return [(None, row) for row in found.rows()]

        return solve


def joined(work: Work) -> Prediction:
    """Return the prediction for the whole data set.

    Raises:
        RuntimeError: a structure is impossible, or processes died while processing a shard.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for row in work.reports():
            if error := row.get("error"):
                raise RuntimeError(f"{error} (remove {work.folder} to try again)")
            yield row

    return Prediction.of_rows(rows())
