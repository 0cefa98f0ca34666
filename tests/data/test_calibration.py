"""Spreads that are right, too small, or know nothing, and what is said of them."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms

from attncalc import data
from attncalc.data.calibration import (
    Calibration,
    Samples,
    calibrations,
    energy_samples,
    force_samples,
    precision_of_spread,
)
from attncalc.data.errors import Prediction

N_ATOMS = 4


def drawn(n: int, *, too_small: float = 1.0, seed: int = 0) -> tuple[data.Dataset, Prediction]:
    """n structures with zeros as labels, and errors `too_small` times as wide as the spreads."""
    rng = np.random.default_rng(seed)
    dataset = data.Dataset(
        structures=tuple(Atoms("Cu4", positions=np.eye(4, 3)) for _ in range(n)),
        energies=np.zeros(n),
        forces=tuple(np.zeros((N_ATOMS, 3)) for _ in range(n)),
    )
    widths = np.exp(rng.uniform(-2, 0, size=(n, N_ATOMS, 1))) * np.ones(3)
    of_energy = np.exp(rng.uniform(-2, 0, size=n))
    prediction = Prediction(
        too_small * of_energy * rng.normal(size=n),
        tuple(too_small * widths * rng.normal(size=widths.shape)),
        None,
        forces_spread=tuple(widths),
        energies_spread=of_energy,
    )
    return dataset, prediction


def test_errors_as_wide_as_their_spreads() -> None:
    dataset, prediction = drawn(3000)
    found = calibrations(prediction, dataset)
    assert list(found) == ["force", "energy per atom"]
    for quantity, n in (("force", 12000), ("energy per atom", 3000)):
        worth = found[quantity]
        assert worth.n == n
        assert [b.n for b in worth.bins] == [n // 10] * 10
        spreads = [b.spread for b in worth.bins]
        assert spreads == sorted(spreads)
        assert [b.ratio for b in worth.bins] == pytest.approx([1] * 10, abs=0.15)
        assert worth.factor == pytest.approx(1, abs=0.05)
        low, high = worth.interval
        assert low < worth.factor < high < low + 0.1
        # what is left is chance: as large as is said of it
        assert worth.ence == pytest.approx(worth.ence_by_chance, rel=0.6)
        assert worth.ence < 0.04
        assert 0.2 < worth.correlation < 0.9


def test_chance_by_drawing() -> None:
    """The floor of the ENCE is its mean over many calibrated committees."""
    found = [calibrations(p, d)["force"] for d, p in (drawn(50, seed=seed) for seed in range(60))]
    assert np.mean([c.ence for c in found]) == pytest.approx(found[0].ence_by_chance, rel=0.1)


@pytest.mark.parametrize("too_small", [0.5, 3.0])
def test_a_factor_mends_spreads_that_are_all_off_alike(too_small: float) -> None:
    dataset, prediction = drawn(2000, too_small=too_small)
    worth = calibrations(prediction, dataset)["force"]
    assert worth.factor == pytest.approx(too_small, rel=0.03)
    assert worth.ence == pytest.approx(abs(too_small - 1), rel=0.05)
    assert worth.ence_scaled < 0.04
    scaled = dataclasses.replace(
        prediction, forces_spread=tuple(worth.factor * s for s in prediction.forces_spread)
    )
    again = calibrations(scaled, dataset)["force"]
    assert again.factor == pytest.approx(1)
    assert again.ence == pytest.approx(worth.ence_scaled)


def test_no_factor_mends_a_spread_that_knows_nothing() -> None:
    dataset, prediction = drawn(2000)
    blind = tuple(np.random.default_rng(1).permutation(prediction.forces_spread))
    worth = calibrations(dataclasses.replace(prediction, forces_spread=blind), dataset)["force"]
    assert abs(worth.correlation) < 0.05
    assert worth.factor == pytest.approx(1, abs=0.05)
    assert worth.ence_scaled > 0.3


def test_ence_by_hand() -> None:
    """Two bins: spreads 1 and 2 with errors 2 and 1: (|1 - 2| / 1 + |2 - 1| / 2) / 2."""
    samples = Samples(
        spread=np.repeat([1.0, 2.0], 20),
        error=np.repeat([2.0, 1.0], 20),
        structure=np.arange(40),
        n_components=1,
    )
    worth = Calibration.of(samples)
    assert worth.ence == pytest.approx(0.75)
    assert worth.factor == pytest.approx(1.0)
    assert worth.correlation == pytest.approx(-1.0)
    assert worth.ence_by_chance == pytest.approx(1 / np.sqrt(20 * np.pi))


def test_the_interval_is_that_of_structures_not_of_atoms() -> None:
    """Atoms that err together are one piece of evidence."""
    rng = np.random.default_rng(0)
    error = np.repeat(np.abs(rng.normal(size=100)), 50)
    samples = Samples(np.ones(5000), error, np.repeat(np.arange(100), 50), n_components=1)
    wide = np.ptp(Calibration.of(samples).interval)
    alone = dataclasses.replace(samples, structure=np.arange(5000))
    assert wide > 4 * np.ptp(Calibration.of(alone).interval)
    assert np.isnan(
        Calibration.of(dataclasses.replace(samples, structure=0 * samples.structure)).interval
    ).all()


def test_few_and_degenerate_spreads() -> None:
    dataset, prediction = drawn(1)
    worth = calibrations(prediction, dataset)
    assert len(worth["force"].bins) == len(worth["energy per atom"].bins) == 1
    assert np.isnan(worth["energy per atom"].correlation)
    assert "correlation" not in str(worth["energy per atom"])
    none = dataclasses.replace(
        prediction, forces_spread=tuple(0 * s for s in prediction.forces_spread)
    )
    worth = calibrations(none, dataset)["force"]
    assert np.isnan([worth.factor, worth.ence, worth.ence_scaled, worth.correlation]).all()


def test_nothing_without_forces_or_a_committee() -> None:
    dataset, prediction = drawn(2)
    alone = dataclasses.replace(prediction, forces_spread=None, energies_spread=None)
    assert calibrations(alone, dataset) == {}

    no_forces = dataclasses.replace(dataset, forces=None)
    assert list(calibrations(prediction, no_forces)) == ["energy per atom"]
    assert force_samples(prediction, no_forces) is None
    assert energy_samples(alone, dataset) is None


def test_precision_of_a_spread_by_drawing() -> None:
    """Three members and three components, and many members: the spread of spreads."""
    rng = np.random.default_rng(0)
    for n_members, n_components in ((3, 3), (20, 1)):
        drawn = rng.normal(size=(20000, n_members, n_components))
        spread = np.sqrt(drawn.var(axis=1, ddof=1).mean(axis=1))
        assert precision_of_spread(n_members, n_components) == pytest.approx(spread.std(), rel=0.06)
