"""Calibration of a committee's spread against its errors: bins, measures, scaling factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from attncalc.data.dataset import Dataset
from attncalc.data.errors import (
    Floats,
    Prediction,
    between_quantiles,
    energy_errors,
    force_errors,
    ratio_of,
)

# fewest spreads per bin, and most bins, of a calibration curve
FEWEST_IN_BIN, MOST_BINS = 20, 10
# bootstrap samples for the interval of the factor
N_RESAMPLED = 500


@dataclass(frozen=True)
class SpreadBin:
    """Errors of one bin of spreads.

    Attributes:
        low, high: bounds of the spread; `low` belongs to the bin, `high` to the next one.
        n: number of atoms or structures in the bin.
        spread: root mean square of the spreads in the bin.
        rmse: root mean square error of the committee's mean in the bin.
    """

    low: float
    high: float
    n: int
    spread: float
    rmse: float

    @property
    def ratio(self) -> float:
        """RMSE over spread: above 1 if the spread underestimates the error."""
        return ratio_of(self.rmse, self.spread)


@dataclass(frozen=True)
class Samples:
    """Spreads and errors of one quantity, sample by sample.

    Attributes:
        spread, error: [n], not negative, in the same unit.
        structure: [n]: index of the structure that each sample belongs to.
        n_components: number of components in the root mean square of each sample.
    """

    spread: Floats
    error: Floats
    structure: NDArray[np.int64]
    n_components: int


def force_samples(prediction: Prediction, dataset: Dataset) -> Samples | None:
    """Return spread and error of the force on every atom, root mean squares over components, eV/Å.

    None without reference forces, and for a single network.
    """
    if dataset.forces is None or prediction.forces_spread is None:
        return None
    sizes = [len(structure) for structure in dataset.structures]
    return Samples(
        spread=np.sqrt((np.concatenate(prediction.forces_spread) ** 2).mean(axis=1)),
        error=np.sqrt((force_errors(prediction, dataset) ** 2).mean(axis=1)),
        structure=np.repeat(np.arange(len(sizes)), sizes),
        n_components=3,
    )


def energy_samples(prediction: Prediction, dataset: Dataset) -> Samples | None:
    """Return spreads and errors per structure [eV per atom], or None for a single network."""
    if prediction.energies_spread is None:
        return None
    n_atoms = np.array([len(structure) for structure in dataset.structures])
    return Samples(
        spread=prediction.energies_spread / n_atoms,
        error=np.abs(energy_errors(prediction, dataset)[0]),
        structure=np.arange(len(n_atoms)),
        n_components=1,
    )


@dataclass(frozen=True)
class Calibration:
    """Quality of the spread of one quantity as an estimate of its error.

    Attributes:
        n: number of samples, each a spread and an error.
        bins: calibration curve: bins with equal numbers of samples, in order of the spread.
        ence: expected normalised calibration error, the mean over the bins of |spread - RMSE| /
            spread (Levi, Gispan, Giladi, Fetaya, Sensors 22, 5540, 2022): 0 if every spread
            is the width of its errors. NaN if a bin has zero spread.
        ence_by_chance: ENCE of independent normal errors of exactly these widths, a floor that
            grows with the number of bins (Pernot, arXiv:2305.11905, 2023). Errors of atoms in one
            structure are not independent, so their floor is higher.
        factor: RMSE / root mean square spread, over all samples: multiplied by it, the spread is as
            large as the error on average. It is not computed from the mean square of error / spread
            (Laves, Ihler, Fast, Kahrs, Ortmaier, MIDL 2020), whose expectation for three members is
            infinite.
        interval: 95 % interval of the factor by resampling structures; NaN for a single structure.
        ence_scaled: ENCE of the spread multiplied by the factor.
        correlation: Spearman's rank correlation of spread and absolute error: 1 if both have the
            same order, 0 if they are unrelated; NaN if all spreads or all errors are equal.
    """

    n: int
    bins: tuple[SpreadBin, ...]
    ence: float
    ence_by_chance: float
    factor: float
    interval: tuple[float, float]
    ence_scaled: float
    correlation: float

    def __str__(self) -> str:
        low, high = self.interval
        certain = f" ({low:.2f} to {high:.2f})" if low <= high else ""  # not NaN
        if self.n < FEWEST_IN_BIN:
            return f"errors are {self.factor:.2f} times as large in {self.n} cases: too few to tell"
        return (
            f"errors are {self.factor:.2f} times as large{certain}, ENCE {100 * self.ence:.0f} % "
            f"(by chance {100 * self.ence_by_chance:.0f} %)"
            + ("" if math.isnan(self.correlation) else f", rank correlation {self.correlation:.2f}")
        )

    @classmethod
    def of(cls, samples: Samples) -> Calibration:
        """Compute the calibration from at least one sample."""
        spread, error = samples.spread, samples.error
        n_bins = int(np.clip(len(spread) // FEWEST_IN_BIN, 1, MOST_BINS))
        bins = tuple(
            SpreadBin(low, high, int(mine.sum()), _rms(spread[mine]), _rms(error[mine]))
            for low, high, mine in between_quantiles(spread, np.linspace(0, 1, n_bins + 1))
        )
        factor = ratio_of(_rms(error), _rms(spread))
        differ = np.ptp(spread) > 0 and np.ptp(error) > 0
        # the root mean square of m normal numbers is off by 1 / sqrt(pi m) of itself on average
        numbers = np.array([b.n for b in bins]) * samples.n_components
        return cls(
            n=len(spread),
            bins=bins,
            ence=_ence(bins, 1.0),
            ence_by_chance=float((1 / np.sqrt(np.pi * numbers)).mean()),
            factor=factor,
            interval=_interval(samples),
            ence_scaled=_ence(bins, factor),
            correlation=float(spearmanr(spread, error).statistic) if differ else float("nan"),
        )


def precision_of_spread(n_members: int, n_components: int) -> float:
    """Return the relative standard deviation of a spread, for normally distributed members.

    To first order, it is that of the root mean square of n_components (n_members - 1) normal
    numbers.
    """
    return float(1 / np.sqrt(2 * n_components * (n_members - 1)))


def calibrations(prediction: Prediction, dataset: Dataset) -> dict[str, Calibration]:
    """Return the calibrations "force" [eV/Å] and "energy per atom" [eV] that the data allow."""
    found = {
        "force": force_samples(prediction, dataset),
        "energy per atom": energy_samples(prediction, dataset),
    }
    return {name: Calibration.of(samples) for name, samples in found.items() if samples is not None}


def _ence(bins: Sequence[SpreadBin], factor: float) -> float:
    spreads = factor * np.array([b.spread for b in bins])
    if not (spreads > 0).all():
        return float("nan")
    return float((np.abs(spreads - [b.rmse for b in bins]) / spreads).mean())


def _interval(samples: Samples) -> tuple[float, float]:
    """Bootstrap the interval of the factor over structures: errors within one are correlated."""
    error2 = np.bincount(samples.structure, samples.error**2)
    spread2 = np.bincount(samples.structure, samples.spread**2)
    n = len(error2)
    if n < 2 or not spread2.sum() > 0:
        return float("nan"), float("nan")
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(N_RESAMPLED):
        drawn = random.integers(n, size=n)
        ratios.append(ratio_of(error2[drawn].sum(), spread2[drawn].sum()) ** 0.5)
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
