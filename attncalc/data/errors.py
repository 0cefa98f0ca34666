"""Errors of a model: predictions for a data set, and errors in eV, eV/Å, eV/Å³."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset
from attncalc.data.statistics import per_element
from attncalc.novelty import OUTSIDE
from attncalc.potential import Potential
from attncalc.structures import evaluate_many

Floats = NDArray[np.float64]

# atoms per batch
BATCH_ATOMS = 512

# bounds of bins of |F_ref|: finer for large forces, where models tend to be wrong
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# bounds for quantities of which both small and large values are unusual
BOTH_ENDS = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Prediction:
    """Predictions of a model for a data set.

    Attributes:
        energies: [n] eV.
        forces: one [n_atoms, 3] eV/Å array per structure.
        stress: [n, 3, 3] eV/Å³ if the data set has stress, else None.
        forces_spread: standard deviation of `forces` over the members of a committee, or None.
        energies_spread: standard deviation of `energies` over the members, or None.
        novelty: [n], largest novelty of the atoms of each structure, see
            `attncalc.novelty.Environments`; None if the model has no record of its training data.
    """

    energies: Floats
    forces: tuple[Floats, ...]
    stress: Floats | None
    forces_spread: tuple[Floats, ...] | None = None
    energies_spread: Floats | None = None
    novelty: Floats | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per structure; JSON preserves its numbers exactly."""
        values = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        n = len(self.energies)
        return [{name: of_all[k].tolist() for name, of_all in values.items()} for k in range(n)]

    @classmethod
    def of_rows(cls, rows: Iterable[dict[str, Any]]) -> Prediction:
        """Rebuild a prediction from its `rows`; at least one."""
        columns: dict[str, Any] = {}
        for row in rows:
            for name, values in row.items():
                columns.setdefault(name, []).append(np.array(values))
        for name, column in columns.items():
            columns[name] = tuple(column) if name.startswith("forces") else np.array(column)
        return cls(**{"stress": None, **columns})


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors.

    Attributes:
        energy_mae, energy_rmse: eV per structure.
        energy_per_atom_mae: eV.
        force_mae, force_rmse: eV/Å over all components; None without reference forces.
        stress_mae, stress_rmse: eV/Å³ over all components; None without reference stress.
        n_structures: number of structures compared.
    """

    energy_mae: float
    energy_rmse: float
    energy_per_atom_mae: float
    force_mae: float | None
    force_rmse: float | None
    stress_mae: float | None
    stress_rmse: float | None
    n_structures: int


def predict(
    potential: Potential,
    dataset: Dataset,
    *,
    batch_atoms: int = BATCH_ATOMS,
    progress: Callable[[int], None] | None = None,
    first_number: int = 0,
) -> Prediction:
    """Predict energies, forces and, where the data have it, stress of every structure.

    Args:
        potential: the model.
        dataset: the structures; labels are not used.
        batch_atoms: largest number of atoms in a batch of several structures.
        progress: called after each batch with its number of structures.
        first_number: number of the first structure in messages.

    Raises:
        ValueError: the data set is empty, has an element, charge or spin that the model does not
            know, or has stress for a structure without volume.
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.source}: the data set is empty")
    energies, forces, stresses = [], [], []
    forces_spread, energies_spread, novelty = [], [], []
    found = evaluate_many(
        potential, dataset.structures, batch_atoms=batch_atoms, first_number=first_number
    )
    for system, result in found:
        energies.append(result.energy.cpu().numpy())
        forces += [part.numpy() for part in system.split(result.forces.cpu())]
        if result.spread is not None:
            forces_spread += [p.numpy() for p in system.split(result.spread.forces.cpu())]
            energies_spread.append(result.spread.energy.cpu().numpy())
        if result.novelty is not None:
            novelty += [float(of_atoms.max()) for of_atoms in system.split(result.novelty)]
        if dataset.stress is not None:
            stresses.append(result.stress(system).cpu().numpy())
        if progress is not None:
            progress(system.n_systems)
    return Prediction(
        energies=np.concatenate(energies),
        forces=tuple(forces),
        stress=np.concatenate(stresses) if stresses else None,
        forces_spread=tuple(forces_spread) if forces_spread else None,
        energies_spread=np.concatenate(energies_spread) if energies_spread else None,
        novelty=np.array(novelty) if novelty else None,
    )


@dataclass(frozen=True)
class InsideAndOutside:
    """Errors of structures inside and outside the training data of a model.

    Attributes:
        n_inside, n_outside: number of structures without and with an atom of novelty above 1.
        inside, outside: mean absolute errors of their force components [eV/Å] or, if the data have
            no forces, of their energies per atom [eV]; None without such a structure.
        of_forces: True if the errors are those of forces.
    """

    n_inside: int
    n_outside: int
    inside: float | None
    outside: float | None
    of_forces: bool

    def __str__(self) -> str:
        n, unit = self.n_inside + self.n_outside, "meV/Å" if self.of_forces else "meV/atom"
        said = f"{self.n_outside} of {n} structures are outside the training data"
        means = (("inside", self.inside), ("outside", self.outside))
        told = [f"{1e3 * mean:.3f} {unit} {where}" for where, mean in means if mean is not None]
        return f"{said}; {'force' if self.of_forces else 'energy'} MAE {', '.join(told)}"


def inside_and_outside(prediction: Prediction, dataset: Dataset) -> InsideAndOutside | None:
    """Compare errors inside and outside the training data; None without novelty."""
    if prediction.novelty is None:
        return None
    outside = prediction.novelty > OUTSIDE
    if dataset.forces is not None:
        pairs = zip(prediction.forces, dataset.forces, strict=True)
        off = [np.abs(ours - theirs) for ours, theirs in pairs]
    else:
        off = [np.abs(one) for one in energy_errors(prediction, dataset)[0][:, None]]

    def mean(chosen: NDArray[np.bool_]) -> float | None:
        of_these = [off[k] for k in np.flatnonzero(chosen)]
        return float(np.concatenate(of_these).mean()) if of_these else None

    return InsideAndOutside(
        n_inside=int((~outside).sum()),
        n_outside=int(outside.sum()),
        inside=mean(~outside),
        outside=mean(outside),
        of_forces=dataset.forces is not None,
    )


def errors(prediction: Prediction, dataset: Dataset) -> Errors:
    """Compare a prediction with the labels of the same data set."""
    energy = prediction.energies - dataset.energies
    force = None if dataset.forces is None else force_statistics(prediction, dataset)
    stress = stress_statistics(prediction, dataset)
    return Errors(
        energy_mae=float(np.abs(energy).mean()),
        energy_rmse=float(np.sqrt((energy**2).mean())),
        energy_per_atom_mae=float(np.abs(energy / _n_atoms(dataset)).mean()),
        force_mae=None if force is None else force.mae,
        force_rmse=None if force is None else force.rmse,
        stress_mae=None if stress is None else stress.mae,
        stress_rmse=None if stress is None else stress.rmse,
        n_structures=len(dataset),
    )


@dataclass(frozen=True)
class Statistics:
    """Errors (prediction minus label) of one quantity, in its unit.

    Attributes:
        n: count of compared numbers: three for the force on an atom, nine for a stress.
        mean: mean error with sign, which shows a systematic shift.
        mae: mean absolute error.
        rmse: root mean square error.
        p95: 95 % of the absolute errors are smaller.
        largest: largest absolute error.
        scatter: standard deviation of the labels: the RMSE of a model that knows only their mean.
    """

    n: int
    mean: float
    mae: float
    rmse: float
    p95: float
    largest: float
    scatter: float

    @property
    def relative(self) -> float:
        """RMSE over the scatter: 1 for a model that knows only the mean; NaN without a scatter."""
        # a smaller scatter is rounding, of labels that the composition explains exactly
        return ratio_of(self.rmse, self.scatter) if self.scatter > 1e-9 else float("nan")

    @classmethod
    def of(cls, error: Floats, labels: Floats) -> Statistics:
        """Compute the statistics of errors and labels of one shape; at least one number."""
        size = np.abs(error)
        return cls(
            n=error.size,
            mean=float(error.mean()),
            mae=float(size.mean()),
            rmse=float(np.sqrt((error**2).mean())),
            p95=float(np.percentile(size, 95)),
            largest=float(size.max()),
            scatter=float(labels.std()),
        )


@dataclass(frozen=True)
class ForceBin:
    """Errors of the forces on atoms in one bin of some number.

    Attributes:
        low, high: bounds of the number; `low` belongs to the bin, `high` to the next one.
        n_atoms: number of atoms in the bin.
        mae, rmse: eV/Å, over components.
        relative: mean |F - F_ref| over mean |F_ref|; NaN where all forces are zero.
        angle: median angle between F and F_ref, degrees; NaN where all forces are zero.
    """

    low: float
    high: float
    n_atoms: int
    mae: float
    rmse: float
    relative: float
    angle: float


def energy_statistics(prediction: Prediction, dataset: Dataset) -> dict[str, Statistics]:
    """Return the errors of energies in three forms.

    Returns:
        "per structure" [eV], "per atom" [eV], and "shifted" [eV per atom]. In the last one,
        constants per element that are fitted to the errors are subtracted, because model and
        labels may have different energy zeros. Such a fit to the labels is subtracted from them
        for the scatter: no model is needed for the part that the composition alone explains.
    """
    n_atoms = _n_atoms(dataset)
    error = prediction.energies - dataset.energies
    labels = dataset.energies - explained_by_composition(dataset, dataset.energies)
    shifted = error - explained_by_composition(dataset, error)
    return {
        "per structure": Statistics.of(error, labels),
        "per atom": Statistics.of(error / n_atoms, labels / n_atoms),
        "shifted": Statistics.of(shifted / n_atoms, labels / n_atoms),
    }


def energy_errors(prediction: Prediction, dataset: Dataset) -> tuple[Floats, bool]:
    """Return energy errors [n] eV per atom, and True if they are shifted.

    Fitted constants per element are subtracted if that at least halves the MAE. Then model and
    labels have different energy zeros, which would make all structures look equally wrong. The
    shift requires more than two structures per element, because fewer can be fitted by chance.
    """
    n_atoms = _n_atoms(dataset)
    error = prediction.energies - dataset.energies
    shifted = error - explained_by_composition(dataset, error)
    n_elements = len({z for s in dataset.structures for z in s.numbers.tolist()})
    is_shifted = bool(
        len(dataset) > 2 * n_elements
        and np.abs(shifted / n_atoms).mean() < 0.5 * np.abs(error / n_atoms).mean()
    )
    return (shifted if is_shifted else error) / n_atoms, is_shifted


def explained_by_composition(dataset: Dataset, values: Floats) -> Floats:
    """Return the fit [n] to `values` [n] by one constant per element, summed over the atoms."""
    constants = per_element(dataset, values)
    return np.array([sum(constants[z] for z in s.numbers.tolist()) for s in dataset.structures])


def force_errors(prediction: Prediction, dataset: Dataset) -> Floats:
    """Return prediction minus label of the forces, [n_atoms of all structures, 3] eV/Å.

    Raises:
        ValueError: the data set has no forces.
    """
    return np.concatenate(prediction.forces) - _labelled_forces(dataset)


def force_statistics(prediction: Prediction, dataset: Dataset) -> Statistics:
    """Compute the error statistics over all force components, eV/Å."""
    return Statistics.of(force_errors(prediction, dataset), _labelled_forces(dataset))


def force_statistics_by_element(prediction: Prediction, dataset: Dataset) -> dict[int, Statistics]:
    """Return atomic number -> errors of force components [eV/Å]; empty without reference forces."""
    if dataset.forces is None:
        return {}
    numbers = np.concatenate([structure.numbers for structure in dataset.structures])
    error, labels = force_errors(prediction, dataset), _labelled_forces(dataset)
    return {
        int(z): Statistics.of(error[numbers == z], labels[numbers == z]) for z in np.unique(numbers)
    }


def force_bins(
    prediction: Prediction,
    dataset: Dataset,
    quantiles: Sequence[float] = QUANTILES,
    *,
    by: Floats | None = None,
) -> list[ForceBin]:
    """Return force errors in bins between quantiles of the reference force |F_ref|.

    Bins with equal bounds are merged; many forces may vanish by symmetry. The list is empty without
    reference forces.

    Args:
        prediction: predictions for this data set.
        dataset: structures with labels.
        quantiles: bounds of the bins, from 0 to 1.
        by: [n_atoms of all structures], finite: numbers to bin by instead of |F_ref|.
    """
    if dataset.forces is None:
        return []
    labels, error = _labelled_forces(dataset), force_errors(prediction, dataset)
    size = np.linalg.norm(labels, axis=1)
    bins = []
    for low, high, mine in between_quantiles(size if by is None else by, quantiles):
        force = labels[mine]
        bins.append(
            ForceBin(
                low=low,
                high=high,
                n_atoms=int(mine.sum()),
                mae=float(np.abs(error[mine]).mean()),
                rmse=float(np.sqrt((error[mine] ** 2).mean())),
                relative=ratio_of(np.linalg.norm(error[mine], axis=1).mean(), size[mine].mean()),
                angle=_median_angle(force + error[mine], force),
            )
        )
    return bins


def between_quantiles(
    values: Floats, quantiles: Sequence[float] | Floats
) -> Iterator[tuple[float, float, NDArray[np.bool_]]]:
    """Yield the bounds of each bin and the mask [n] of its values; equal bounds make one bin."""
    bounds = np.unique(np.quantile(values, quantiles))
    # a single bound: all values are equal and form one bin
    which = np.digitize(values, bounds[1:-1]) if len(bounds) > 1 else np.zeros(len(values), int)
    for k in np.unique(which):
        yield float(bounds[k]), float(bounds[min(k + 1, len(bounds) - 1)]), which == k


def stress_statistics(prediction: Prediction, dataset: Dataset) -> Statistics | None:
    """Compute the error statistics over all stress components, eV/Å³; None without labels."""
    if dataset.stress is None or prediction.stress is None:
        return None
    return Statistics.of(prediction.stress - dataset.stress, dataset.stress)


def _labelled_forces(dataset: Dataset) -> Floats:
    if dataset.forces is None:
        raise ValueError(f"{dataset.source}: the data set has no forces")
    return np.concatenate(dataset.forces)


def _n_atoms(dataset: Dataset) -> NDArray[np.int64]:
    return np.array([len(structure) for structure in dataset.structures])


def _median_angle(a: Floats, b: Floats) -> float:
    """Return the median angle [degrees] between rows of [n, 3] arrays; zero rows are ignored."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    there = lengths > 0
    if not there.any():
        return float("nan")
    cosine = (a[there] * b[there]).sum(axis=1) / lengths[there]
    return float(np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def ratio_of(a: float, b: float) -> float:
    """Return a / b; NaN where b is not positive."""
    return float(a / b) if b > 0 else float("nan")
