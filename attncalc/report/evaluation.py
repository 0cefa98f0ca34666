"""Report of `attncalc eval`: all errors of a model on labelled structures, on one page."""

from __future__ import annotations

import datetime
import functools
import math
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

import numpy as np
from ase import units
from ase.data import chemical_symbols
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from attncalc.data import Dataset
from attncalc.data.calibration import calibrations, precision_of_spread
from attncalc.data.contacts import closest_contacts
from attncalc.data.errors import (
    BOTH_ENDS,
    ForceBin,
    Prediction,
    Statistics,
    energy_errors,
    energy_statistics,
    force_bins,
    force_statistics,
    force_statistics_by_element,
    stress_statistics,
)
from attncalc.data.fingerprints import LENGTH, count_known
from attncalc.data.outliers import features_of, outliers
from attncalc.data.statistics import elements_of
from attncalc.describe import describe_cutoffs, describe_networks
from attncalc.model_file import model_name
from attncalc.potential import Potential
from attncalc.report.pictures import calibration_pictures, gallery, pictures

# mark in the head of every report
GENERATOR = "attncalc eval"
# structures in a list of the worst, and in a remark
N_WORST, N_WORST_BY_STRESS = 10, 5
# most rows in the table of compositions; the rest is only counted
MOST_COMPOSITIONS = 25
# limit of RMSE over MAE, which is 1.25 for a normal distribution, 1.41 for an exponential one
HEAVY_TAIL = 1.8
GPA = 1 / units.GPa


@dataclass(frozen=True)
class Subject:
    """Subject of an evaluation: model, data and run.

    Attributes:
        model: name or path, as given by the user.
        split: split of the data file; None for the whole file.
        command: command line of the user.
        device: device that the model ran on.
        seconds: duration of the prediction.
    """

    model: str
    split: str | None = None
    command: str = ""
    device: str = "cpu"
    seconds: float | None = None


def evaluation(
    potential: Potential, prediction: Prediction, dataset: Dataset, subject: Subject
) -> str:
    """Return the report as an HTML page.

    Args:
        potential: the model, for its description.
        prediction: prediction of `potential` for `dataset`.
        dataset: structures with labels.
        subject: model, data and run, for the header.
    """
    indices = _numbers(dataset)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent}
    page = files("attncalc.report").joinpath("evaluation.html").read_text(encoding="utf-8")
    worst = functools.partial(outliers, n=N_WORST, features=features_of(dataset))
    by_force = [] if dataset.forces is None else worst(prediction, dataset)
    return environment.from_string(page).render(
        generator=GENERATOR,
        subject=subject,
        indices=indices,
        title=f"{model_name(subject.model)} on {dataset.source}",
        n_structures=len(dataset),
        n_atoms=sum(map(len, dataset.structures)),
        elements=" ".join(chemical_symbols[z] for z in elements_of(dataset)),
        dataset=dataset,
        remarks=list(remarks(potential, prediction, dataset, subject)),
        rows=list(property_rows(prediction, dataset)),
        by_element=[
            (chemical_symbols[z], statistics)
            for z, statistics in force_statistics_by_element(prediction, dataset).items()
        ],
        force_bins=binned(prediction, dataset),
        calibrations=calibrations(prediction, dataset),
        calibration_pictures=list(calibration_pictures(prediction, dataset)),
        n_members=len(potential.networks),
        precision_of_spread=precision_of_spread,
        by_composition=compositions(prediction, dataset),
        pictures=list(pictures(prediction, dataset, indices)),
        gallery=gallery(prediction, dataset, indices, by_force),
        worst_by_force=by_force,
        worst_by_energy=worst(prediction, dataset, by="energy"),
        is_shifted=energy_errors(prediction, dataset)[1],
        symbols=chemical_symbols,
        about_model=about_model(potential, subject),
        about_run=about_run(dataset, potential, subject),
    )


def number(
    value: float | None, scale: float = 1.0, *, signed: bool = False, beside: float = 0.0
) -> Markup:
    """Return a number as HTML, with all its digits in the markup; a dash if None or not finite.

    Args:
        value: number before scaling.
        scale: factor to the unit that is shown.
        signed: show a plus sign too.
        beside: number like `value`; a value that is negligible relative to it is shown as zero.
    """
    if value is None or not math.isfinite(value):
        return Markup("–")
    value = scale * value
    size = abs(value)
    if size < 1e-4 * abs(scale * beside):
        text = "0"
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.1f}"
    elif size >= 0.001 or size < 1e-9:  # below 1e-9 it is rounding
        text = f"{value:.3f}"
    else:
        text = f"{value:.1e}"
    if not text.strip("-0."):
        text = text.removeprefix("-")  # a number that is rounded to zero has no sign
    elif signed and value > 0:
        text = f"+{text}"
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), text.replace("-", "−"))


def percent(value: float) -> Markup:
    """Return a ratio in percent, as HTML."""
    return Markup("–") if not math.isfinite(value) else Markup(f"{three_digits(100 * value)} %")


def three_digits(value: float) -> str:
    """Return a number with three digits, for a sentence."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


@dataclass(frozen=True)
class Row:
    """Row of the table of properties; `scale` converts the statistics to `unit`."""

    quantity: str
    unit: str
    scale: float
    statistics: Statistics


def property_rows(prediction: Prediction, dataset: Dataset) -> Iterator[Row]:
    """Yield the errors per property; those of the energy in three forms."""
    energy = energy_statistics(prediction, dataset)
    yield Row("energy", "meV", 1e3, energy["per structure"])
    yield Row("energy per atom", "meV", 1e3, energy["per atom"])
    yield Row("energy per atom, less a constant per element", "meV", 1e3, energy["shifted"])
    if dataset.forces is not None:
        yield Row("force", "meV/Å", 1e3, force_statistics(prediction, dataset))
    stress = stress_statistics(prediction, dataset)
    if stress is not None:
        yield Row("stress", "meV/Å³", 1e3, stress)
        yield Row("stress", "GPa", GPA, stress)


def binned(prediction: Prediction, dataset: Dataset) -> list[tuple[str, str, str, list[ForceBin]]]:
    """Return (id of a table, caption, quantity of the bins, bins); empty without forces."""
    if dataset.forces is None:
        return []
    contacts = closest_contacts(dataset)
    return [
        (
            "force-bins",
            "By the size of the reference force, between its quantiles",
            "|F|, eV/Å",
            force_bins(prediction, dataset),
        ),
        (
            "contact-bins",
            "By the distance of the nearest neighbour over the sum of their covalent radii, "
            "between its quantiles: what is compressed comes first",
            "distance / radii",
            force_bins(prediction, dataset, BOTH_ENDS, by=contacts),
        ),
    ]


def compositions(prediction: Prediction, dataset: Dataset) -> list[tuple]:
    """Return (formula, number of structures, energy per atom, force or None) of each composition.

    The most frequent composition comes first. The list is empty if there is only one.
    """
    formulas = np.array([s.get_chemical_formula() for s in dataset.structures])
    count = Counter(formulas.tolist())
    if len(count) == 1:
        return []
    n_atoms = np.array([len(structure) for structure in dataset.structures])
    error, _ = energy_errors(prediction, dataset)
    rows: list[tuple] = []
    for formula, n in count.most_common(MOST_COMPOSITIONS):
        mine = np.flatnonzero(formulas == formula)
        force = None
        if dataset.forces is not None:
            labels = np.concatenate([dataset.forces[k] for k in mine])
            ours = np.concatenate([prediction.forces[k] for k in mine])
            force = Statistics.of(ours - labels, labels)
        labels = (dataset.energies / n_atoms)[mine]
        rows.append((formula, n, Statistics.of(error[mine], labels), force))
    if rest := count.most_common()[MOST_COMPOSITIONS:]:
        rows.append((f"{len(rest)} more", sum(n for _, n in rest), None, None))
    return rows


def remarks(
    potential: Potential, prediction: Prediction, dataset: Dataset, subject: Subject
) -> Iterator[str]:
    """Yield remarks that a reader should know before the numbers."""
    info = potential.training_info
    if potential.baseline:
        yield (
            f"This is a delta model for the baseline {potential.baseline}: these errors are "
            "meaningful only if the labels are differences from the baseline, not total energies "
            "and forces."
        )
    known_structures = str(info.get("structures") or "")
    if n_known := count_known(dataset, known_structures):
        few = int(info.get("n_train") or 0) * LENGTH > len(known_structures)
        kept = f" (its file remembers {len(known_structures) // LENGTH} of them)" if few else ""
        yield (
            f"{n_known} of these {len(dataset)} structures are among those that the model was "
            f"trained on{kept}: errors on them say little about others."
        )
    elif info.get("data") == dataset.source and not known_structures:
        if subject.split is None:
            stored = ", ".join(list(dataset.splits)[:6])
            hint = f" Splits stored in it: {stored}." if stored else ""
            yield (
                "The model was trained on a file of this name, and this is all of it: errors on "
                f"structures that it was trained on are among these. Take --split.{hint}"
            )
        elif subject.split.startswith("train"):
            yield (
                f"The model was trained on a file of this name, maybe on this very split "
                f"({subject.split}): these errors say little about structures that it has not seen."
            )
    found = info.get("start_from")
    start = found if isinstance(found, dict) else {}
    theirs = str(start.get("structures") or "")
    if n_seen := count_known(dataset, theirs):
        yield (
            f"The training started from {start.get('name')}, which was trained on {n_seen} of "
            f"these {len(dataset)} structures: errors on them say little about others."
        )
    elif not theirs and start.get("data") == dataset.source:
        yield (
            f"The training started from {start.get('name')}, which was trained on a file of this "
            "name: it may have seen these structures."
        )
    ours, of_data = str(info.get("level_of_theory") or ""), dataset.level_of_theory
    if ours and of_data and not (ours in of_data or of_data in ours):  # one may say more
        yield (
            f"The levels of theory differ: the model was trained on {ours}, these labels are "
            f"{of_data}. Part of the errors is the difference of the two."
        )
    if energy_errors(prediction, dataset)[1]:
        energy = energy_statistics(prediction, dataset)
        yield (
            f"Energies are off by a constant per element: without it their MAE is "
            f"{three_digits(1e3 * energy['shifted'].mae)} instead of "
            f"{three_digits(1e3 * energy['per atom'].mae)} "
            "meV/atom. Model and labels may count energies from different zeros. The pictures and "
            "lists of the report take it off."
        )
    if dataset.forces is None:
        yield "The data have no forces: only energies are compared."
        return
    force = force_statistics(prediction, dataset)
    if force.mae > 0 and force.rmse > HEAVY_TAIL * force.mae:
        yield (
            f"The RMSE of the forces is {force.rmse / force.mae:.1f} times their MAE (1.25 for a "
            "normal distribution): a few atoms are far off. Look at the worst structures."
        )
    stress = stress_statistics(prediction, dataset)
    if stress is not None and stress.mae > 0 and stress.rmse > HEAVY_TAIL * stress.mae:
        yield (
            f"The RMSE of the stress is {stress.rmse / stress.mae:.1f} times its MAE: a few "
            f"structures are far off. Worst are numbers {_worst_by_stress(prediction, dataset)}."
        )
    known = _own_force_mae(info)
    if known and force.mae > 2 * known:
        yield (
            f"The MAE of the forces is {force.mae / known:.1f} times that on the model's own test "
            f"set ({three_digits(1e3 * known)} meV/Å): these structures or labels are unlike those."
        )


def _numbers(dataset: Dataset) -> NDArray[np.int64]:
    """Return the number of every structure in the file that it was read from, [n_structures]."""
    return np.arange(len(dataset)) if dataset.indices is None else dataset.indices


def _worst_by_stress(prediction: Prediction, dataset: Dataset) -> str:
    """Return numbers of structures in the file, each with its largest error of a component."""
    assert prediction.stress is not None
    assert dataset.stress is not None
    largest = np.abs(prediction.stress - dataset.stress).max((1, 2)) * GPA
    worst = np.argsort(-largest, kind="stable")[:N_WORST_BY_STRESS]
    numbers = _numbers(dataset)[worst].tolist()
    errors = largest[worst].tolist()
    return ", ".join(f"{n} ({three_digits(e)} GPa)" for n, e in zip(numbers, errors, strict=True))


def about_model(potential: Potential, subject: Subject) -> list[tuple[str, str]]:
    """Return facts about the model file."""
    info = potential.training_info
    told = [
        ("model", subject.model),
        ("network", describe_networks(potential)),
        ("cutoff", describe_cutoffs(potential)),
        ("elements", " ".join(chemical_symbols[z] for z in potential.species)),
        ("trained on", _data_of(info)),
        ("level of theory", str(info.get("level_of_theory") or "not stated")),
    ]
    if potential.baseline:
        told.append(("baseline", f"{potential.baseline} (delta model: labels are differences)"))
    if known := _own_force_mae(info):
        told.append(("its own test set", f"force MAE {three_digits(1e3 * known)} meV/Å"))
    return told


def about_run(dataset: Dataset, potential: Potential, subject: Subject) -> list[tuple[str, str]]:
    """Return facts about the run: data, software, device."""
    told = [
        ("data", dataset.source),
        ("labels", dataset.labels),
        ("split", subject.split or "all structures"),
        ("level of theory", dataset.level_of_theory or "not stated by the file"),
        ("units", "eV, Å, and thousandths of them; 1 eV/Å³ = 160.2 GPa"),
        ("command", subject.command),
        ("date", datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")),
        (
            "versions",
            ", ".join(f"{name} {version(name)}" for name in ("attncalc", "torch", "numpy", "ase"))
            + f", Python {platform.python_version()}",
        ),
        ("computed", f"in {str(potential.dtype).removeprefix('torch.')} on {subject.device}"),
    ]
    if subject.seconds:
        rate = len(dataset) / subject.seconds
        told[-1] = (told[-1][0], f"{told[-1][1]}, {subject.seconds:.3g} s, {rate:.3g} structures/s")
    return [(name, text) for name, text in told if text]


def _own_force_mae(info: dict) -> float | None:
    """Return the force MAE [eV/Å] on the model's own test set; None if the header has none."""
    test = info.get("test_errors")
    value = test.get("force_mae") if isinstance(test, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _data_of(info: dict) -> str:
    if not info.get("data"):
        return "not stated"
    labels = f" (labels: {info['labels']})" if info.get("labels") else ""
    count = f", {info['n_train']} structures" if info.get("n_train") else ""
    return f"{info['data']}{labels}{count}"
