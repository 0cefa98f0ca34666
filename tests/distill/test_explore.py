"""Dynamics that look for what a model does not know: seeds, ends, and frames that are chosen."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import ethanol
from toys import zeros_of

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[distill]")

from attncalc import System
from attncalc.distill.explore import HEATS, Pool, _Recorder, explore, most_uncertain
from attncalc.distill.shapes import Shape


@pytest.fixture
def shape() -> Shape:
    return Shape.of(ethanol())


def pool_of(positions: np.ndarray, **others: np.ndarray) -> Pool:
    n = len(positions)
    of_frames = {name: np.zeros(n) for name in ("times", "spread", "novelty")}
    others = {"replica": np.zeros(n, int), "temperatures": np.array([300.0]), **of_frames, **others}
    return Pool(positions=positions, ended=np.array([""]), picoseconds=1.0, **others)


def test_no_two_replicas_have_the_same_noise(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those of another round, whose seed is the next."""
    monkeypatch.setattr("attncalc.distill.explore.Evaluator", lambda potential: zeros_of)
    ends = []
    for seed in (3, 4):
        options = {"picoseconds": 0.04, "timestep": 2.0, "seed": seed}
        pool = explore("free atoms", shape, [shape.atoms], 5.0, **options)
        assert [*pool.ended] == [""] * len(HEATS)
        np.testing.assert_array_equal(pool.times, [0.0, 20.0, 40.0] * len(HEATS))
        np.testing.assert_array_equal(pool.replica, np.repeat(range(len(HEATS)), 3))
        assert (pool.positions[::3] == shape.atoms.positions).all()
        ends += [*pool.positions[2::3]]
    for one, other in itertools.combinations(ends, 2):
        assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize(
    ("novelty", "spread", "stretch", "ended"),
    [
        (2.9, 1.4, 1.0, ""),
        (3.1, 0.0, 1.0, "novelty 3.1"),
        (0.0, 1.6, 1.0, "members differ by 1.6 eV/Å"),
        (0.0, 0.0, 2.0, "bond "),
    ],
)
def test_what_ends_a_replica(shape: Shape, novelty, spread, stretch, ended: str) -> None:
    system = System.from_ase(ethanol())
    forces = torch.zeros_like(system.positions)
    forces[4, 1] = -spread
    result = SimpleNamespace(spread=SimpleNamespace(forces=forces), novelty=np.full(9, novelty))
    recorder = _Recorder(lambda system: result, shape, 10, 0.5)
    state = SimpleNamespace(system=system.with_positions(stretch * system.positions), step=10)
    for _ in range(2):  # `md.run` calls it twice for the last state
        recorder(state)
    ((_, time, *numbers),) = recorder.frames
    assert [time, *numbers] == pytest.approx([5.0, spread, novelty])
    assert recorder.ended.startswith(ended)
    assert bool(recorder.ended) == recorder.stops == bool(ended)


@pytest.mark.parametrize(("longest", "first"), [(1000.0, 300.0), (400.0, 200.0)])
def test_the_equilibration_and_hotter_replicas_are_not_at_the_target(longest, first) -> None:
    times = np.tile(np.linspace(0, longest, 21), 2)
    replica = np.repeat([0, 1], 21)
    temperatures = np.array([300.0, 375.0])
    pool = pool_of(np.zeros((42, 1, 3)), times=times, replica=replica, temperatures=temperatures)
    np.testing.assert_array_equal(pool.at_target, (times >= first) & (np.arange(42) < 21))


def test_the_most_uncertain_frames_are_learnt(shape: Shape) -> None:
    """By spread or novelty, each over its limit; none twice, none with atoms that touch."""

    def frame(angle: float) -> np.ndarray:
        atoms = ethanol()
        atoms.set_distance(0, 1, 1.5 + angle, fix=0)
        return atoms.positions

    positions = np.array([frame(0.03 * k) for k in range(40)])
    spread, novelty = np.zeros(40), np.zeros(40)
    spread[[3, 30]], novelty[[8, 20]] = 1.4, 2.8
    positions[20, 1] = positions[20, 0] + 0.1
    pool = pool_of(positions, spread=spread, novelty=novelty)
    chosen: list[Atoms] = most_uncertain(pool, shape, 1, [ethanol()])
    assert [np.abs(positions - one.positions).max((1, 2)).argmin() for one in chosen] == [30]
    many = most_uncertain(pool, shape, 8, [ethanol()])
    rows = [int(np.abs(positions - one.positions).max((1, 2)).argmin()) for one in many]
    assert len(set(rows)) == len(rows) > 3
    assert 30 in rows
    assert 20 not in rows
