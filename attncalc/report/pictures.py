"""Pictures of the report: predictions of a model compared with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase import units
from ase.data import chemical_symbols
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attncalc import plots
from attncalc.data import Dataset
from attncalc.data.calibration import Calibration, energy_samples, force_samples
from attncalc.data.contacts import closest_contacts
from attncalc.data.errors import (
    Prediction,
    energy_errors,
    explained_by_composition,
    force_errors,
)
from attncalc.data.outliers import Outlier
from attncalc.data.statistics import elements_of
from attncalc.report.inline_svg import inline_svg

# structures drawn, and most atoms of one, so that single atoms can be seen
N_DRAWN, MOST_DRAWN_ATOMS = 4, 500
GPA = 1 / units.GPa


@dataclass(frozen=True)
class Picture:
    """SVG and its caption; a wide picture has a row to itself."""

    svg: Markup
    caption: str
    wide: bool = False


def pictures(
    prediction: Prediction, dataset: Dataset, indices: NDArray[np.int64]
) -> Iterator[Picture]:
    """Yield the pictures: parity plots, distributions, and errors against other quantities."""
    n_atoms = np.array([len(structure) for structure in dataset.structures])
    error, is_shifted = energy_errors(prediction, dataset)
    error = 1e3 * error
    less = ", less a constant per element" if is_shifted else ""
    explained = explained_by_composition(dataset, dataset.energies)
    labels = 1e3 * (dataset.energies - explained) / n_atoms
    figure = plots.parity(labels + error, labels, quantity="energy per atom", unit="meV")
    yield _picture(
        figure,
        "energy-parity",
        "Energies per atom, less a constant per element that is fitted to the labels.",
    )
    if dataset.forces is not None:
        reference = np.concatenate(dataset.forces)
        figure = plots.parity(
            np.concatenate(prediction.forces),
            reference,
            quantity="force component",
            unit="eV/Å",
            error_unit=(1e3, "meV/Å"),
        )
        yield _picture(figure, "force-parity", "Components of all forces.")
    if dataset.stress is not None and prediction.stress is not None:
        figure = plots.parity(
            GPA * prediction.stress, GPA * dataset.stress, quantity="stress component", unit="GPa"
        )
        yield _picture(figure, "stress-parity", "Components of all stresses.")
    figure = plots.error_histogram(error, quantity="energy per atom", unit="meV")
    yield _picture(figure, "energy-histogram", f"Errors of the energy per atom{less}.")
    if dataset.forces is not None:
        force_error = force_errors(prediction, dataset)
        figure = plots.error_histogram(1e3 * force_error, quantity="force component", unit="meV/Å")
        yield _picture(figure, "force-histogram", "Errors of force components.")
        size = np.linalg.norm(force_error, axis=1)
        numbers = np.concatenate([structure.numbers for structure in dataset.structures])
        of_element = {chemical_symbols[z]: 1e3 * size[numbers == z] for z in elements_of(dataset)}
        figure = plots.share_below(of_element, quantity="the force on an atom", unit="meV/Å")
        yield _picture(
            figure, "force-share", "How many atoms of each element have a smaller error."
        )
        figure = plots.error_against_size(
            np.linalg.norm(reference, axis=1), size, quantity="force on an atom", unit="eV/Å"
        )
        yield _picture(figure, "force-size", "Errors of forces against the size of the force.")
        figure = plots.error_along(
            closest_contacts(dataset),
            size,
            label="distance of the nearest neighbour / covalent radii",
            quantity="force on an atom, eV/Å",
        )
        caption = (
            "Errors of forces against how close the nearest neighbour is: 1 for a bond at rest, "
            "whatever its elements."
        )
        yield _picture(figure, "force-contact", caption)
    figure = plots.along_the_file(indices, error, quantity="energy error per atom", unit="meV")
    caption = f"Energy errors{less} in the order of the file: steps show parts that differ."
    yield replace(_picture(figure, "along-file", caption), wide=True)


def calibration_pictures(prediction: Prediction, dataset: Dataset) -> Iterator[Picture]:
    """Yield pictures of errors against the spread of a committee, for forces and energies."""
    found = {
        "force": (force_samples(prediction, dataset), "meV/Å", "an atom"),
        "energy per atom": (energy_samples(prediction, dataset), "meV", "a structure"),
    }
    for quantity, (samples, unit, one) in found.items():
        if samples is None:
            continue
        calibration = Calibration.of(samples)
        curve = [
            (1e3 * b.spread, 1e3 * b.rmse, 1e3 * b.rmse / np.sqrt(2 * b.n * samples.n_components))
            for b in calibration.bins
        ]
        figure = plots.calibration(
            1e3 * samples.spread,
            1e3 * samples.error,
            curve,
            factor=calibration.factor,
            quantity=quantity,
            unit=unit,
        )
        caption = (
            f"Errors of the {quantity} against the spread of the committee, a point for {one}; "
            "orange: root mean square error of bins with as many points each."
        )
        yield _picture(figure, f"calibration-{quantity.split()[0]}", caption)


def gallery(
    prediction: Prediction, dataset: Dataset, indices: NDArray[np.int64], worst: Sequence[Outlier]
) -> Picture | None:
    """Draw the worst structures that are small enough; None if there are none, or no forces."""
    drawn = [o for o in worst if len(dataset.structures[o.index]) <= MOST_DRAWN_ATOMS][:N_DRAWN]
    if not drawn or dataset.forces is None:
        return None
    figure = plots.force_error_gallery(
        [dataset.structures[o.index] for o in drawn],
        [
            np.linalg.norm(prediction.forces[o.index] - dataset.forces[o.index], axis=1)
            for o in drawn
        ],
        [f"{indices[o.index]}: {o.formula}" for o in drawn],
    )
    return _picture(
        figure,
        "gallery",
        "The structures with the largest errors of a force, by index in the file.",
    )


def _picture(figure: Figure, name: str, caption: str) -> Picture:
    return Picture(inline_svg(figure, name=name, description=caption), caption)
