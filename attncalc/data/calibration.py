"""Calibration of a committee's spread against its errors: bins, measures, scaling factor."""

from __future__ import annotations

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

# spreads in a bin, and bins, for a calibration error: fewer in a bin say little
FEWEST_IN_BIN, MOST_BINS = 20, 10
# resampled data sets that the interval of a factor is made from
N_RESAMPLED = 500


@dataclass(frozen=True)
class SpreadBin:
    """Errors of one bin of spreads.

    Attributes:
        low, high: of the spread; `low` belongs to the bin, `high` to the next one.
        n: atoms or structures in the bin.
        spread: root mean square over the bin.
        rmse: of the mean of the members.
    """

    low: float
    high: float
    n: int
    spread: float
    rmse: float

    @property
    def ratio(self) -> float:
        """RMSE over spread: above 1 where the members agree more than they are right."""
        return ratio_of(self.rmse, self.spread)


@dataclass(frozen=True)
class Samples:
    """Spreads and errors of one quantity, number by number.

    Attributes:
        spread, error: [n], not negative, in the same unit.
        structure: [n]: which structure of the data set each belongs to.
        n_components: how many numbers each is the root mean square of.
    """

    spread: Floats
    error: Floats
    structure: NDArray[np.int64]
    n_components: int


def force_samples(prediction: Prediction, dataset: Dataset) -> Samples | None:
    """Return the root mean square over the components of the force on every atom, eV/Å.

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
        n: spreads that were compared with errors.
        bins: of equal numbers of them, by growing spread: the calibration curve.
        ence: expected normalised calibration error, the mean over the bins of |spread - RMSE| /
            spread (Levi, Gispan, Giladi, Fetaya, Sensors 22, 5540, 2022): 0 if every spread
            is the width of its errors. NaN where a bin has no spread.
        ence_by_chance: what independent normal errors of exactly these widths would give, a floor
            that grows with the number of bins (Pernot, arXiv:2305.11905, 2023). Errors of atoms of
            one structure are not independent: theirs is higher.
        factor: RMSE / spread, root mean squares over all: the spread times this is as large as the
            error on average. Not from the mean square of error / spread (Laves, Ihler, Fast, Kahrs,
            Ortmaier, MIDL 2020), whose expectation for three members is infinite.
        interval: of the factor, 95 %, from resampled structures; NaN for a single structure.
        ence_scaled: what is left of the ENCE if the spread is multiplied by the factor.
        correlation: Spearman's, of spread and size of the error: 1 if those sorted by spread are
            sorted by error, 0 if the spread knows nothing of it; NaN if nothing differs.
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
        return (
            f"errors are {self.factor:.2f} times as large{certain}, ENCE {100 * self.ence:.0f} % "
            f"(by chance {100 * self.ence_by_chance:.0f} %), "
            f"rank correlation {self.correlation:.2f}"
        )

    @classmethod
    def of(cls, samples: Samples) -> Calibration:
        """Return the calibration of at least one spread."""
        spread, error = samples.spread, samples.error
        n_bins = int(np.clip(len(spread) // FEWEST_IN_BIN, 1, MOST_BINS))
        bins = tuple(
            SpreadBin(low, high, int(mine.sum()), _rms(spread[mine]), _rms(error[mine]))
            for low, high, mine in between_quantiles(spread, np.linspace(0, 1, n_bins + 1))
        )
        factor = ratio_of(_rms(error), _rms(spread))
        differ = np.ptp(spread) > 0 and np.ptp(error) > 0
        # of m normal numbers the root mean square is off by 1 / sqrt(pi m) of itself on average
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
    """Standard deviation of a spread over the true one, for members with normal differences.

    Of a root mean square over n (n_members - 1) squares of normal numbers, to first order.
    """
    return float(1 / np.sqrt(2 * n_components * (n_members - 1)))


def calibrations(prediction: Prediction, dataset: Dataset) -> dict[str, Calibration]:
    """Return the calibrations "force" [eV/Å] and "energy per atom" [eV], as far as data allow."""
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
    """Bootstrap over structures, since errors within one go together."""
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
