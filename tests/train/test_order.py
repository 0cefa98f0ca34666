"""Steps of an epoch: every structure once, as many as fit, shared out evenly."""

import dataclasses

import numpy as np
import pytest
from trainings import stopped_at

from attncalc import train
from attncalc.train.loop import read_done
from attncalc.train.order import (
    VALIDATION_BATCH,
    Shares,
    Sizes,
    epoch_order,
    n_steps,
    parts,
    steps,
    validation_shares,
)

EDGES = np.random.default_rng(0).integers(0, 1000, 200)
SIZES = Sizes(n_atoms=1 + EDGES // 20, n_edges=EDGES)


@pytest.fixture
def by_edges(recipe) -> train.Recipe:
    return dataclasses.replace(recipe, batch_edges=2500, epochs=7)


def epoch(recipe: train.Recipe, k: int, rank: int = 0, n: int = 1) -> list:
    shares = Shares(SIZES, recipe, rank, n)
    shares.set_epoch(k)
    return list(shares)


def test_steps_by_edges(by_edges):
    """None has more than it may; none could have taken the first structure of the next."""
    found = [share.structures for share in epoch(by_edges, 3)]
    assert sorted(k for step in found for k in step) == list(range(200))
    for step, following in zip(found, [*found[1:], None], strict=True):
        assert EDGES[step].sum() <= 2500
        if following:
            assert EDGES[step].sum() + EDGES[following[0]] > 2500
    assert [k for step in found for k in step] == epoch_order(200, by_edges.seed, 3).tolist()


def test_a_step_may_have_just_as_many_edges_as_it_may(by_edges):
    four = dataclasses.replace(by_edges, batch_edges=4)
    found = steps(np.arange(5), np.array([2, 2, 3, 1, 4]), four)
    assert [step.tolist() for step in found] == [[0, 1], [2, 3], [4]]


def test_steps_are_left_out_of_one_epoch_only(by_edges):
    shares = Shares(SIZES, by_edges)
    shares.set_epoch(2)
    shares.leave_out(3)
    assert list(shares) == epoch(by_edges, 2)[3:]
    shares.set_epoch(3)
    assert list(shares) == epoch(by_edges, 3)


def test_steps_are_a_function_of_seed_and_epoch(by_edges):
    other = dataclasses.replace(by_edges, seed=1)
    assert epoch(by_edges, 2) == epoch(by_edges, 2)
    assert epoch(by_edges, 2) != epoch(by_edges, 1)
    assert epoch(by_edges, 2) != epoch(other, 2)


def test_the_schedule_knows_all_steps(recipe, by_edges):
    numbers = [len(epoch(by_edges, k)) for k in range(7)]
    assert len(set(numbers)) > 1  # else this would prove little
    assert n_steps(SIZES, by_edges) == sum(numbers)
    assert n_steps(SIZES, recipe) == 4 * 67
    assert [len(share.structures) for share in epoch(recipe, 0)] == [3] * 66 + [2]


def test_a_structure_that_never_fits(by_edges):
    small = dataclasses.replace(by_edges, batch_edges=900)
    with pytest.raises(ValueError, match=r"has 99\d edges within .* more than batch_edges, 900"):
        n_steps(SIZES, small)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_processes_share_each_step_by_edges(by_edges, n):
    whole = epoch(by_edges, 1)
    shares = [epoch(by_edges, 1, rank, n) for rank in range(n)]
    for step, *taken in zip(whole, *shares, strict=True):
        assert sorted(k for share in taken for k in share.structures) == sorted(step.structures)
        assert sum(share.of_structures for share in taken) == pytest.approx(1)
        for share in taken:
            n_atoms = (SIZES.n_atoms[one.structures].sum() for one in (share, step))
            assert share.of_atoms == pytest.approx(np.divide(*n_atoms), rel=1e-12)
        # the largest first: nobody has more than the least has and one structure
        loads = [EDGES[share.structures].sum() for share in taken]
        assert max(loads) - min(loads) <= EDGES[step.structures].max() + len(step.structures)
        for share in taken:  # in the order of the step
            places = [step.structures.index(k) for k in share.structures]
            assert places == sorted(places)


def test_structures_without_edges_are_shared_too():
    assert sorted(parts(np.zeros(6, int), 3)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_processes_validate_as_often(recipe, by_edges, n):
    for one in (recipe, by_edges):
        shares = [validation_shares(SIZES, one, rank, n) for rank in range(n)]
        assert len({len(mine) for mine in shares}) == 1
        checked = [share.structures for mine in shares for share in mine]
        assert sorted(k for batch in checked for k in batch) == list(range(200))
        if one.batch_edges:
            assert max(EDGES[batch].sum() for batch in checked) <= 2500
        else:
            assert max(map(len, checked)) <= VALIDATION_BATCH


def test_a_training_by_edges(recipe, parts, tmp_path):
    """Steps are counted and the learning rate ends where it should, also after a stop."""
    plan = dataclasses.replace(recipe, batch_edges=350)
    whole = train.fit(plan, *parts[:2], tmp_path / "whole")
    counts = np.diff([0, *(row["step"] for row in whole.history)])
    assert len(set(counts)) > 1
    last = whole.history[-1]["learning_rate"]
    assert last == pytest.approx(recipe.final_learning_rate, rel=1e-6)

    third = int(whole.history[1]["step"])  # begins the third epoch
    with stopped_at(third + 1), pytest.raises(KeyboardInterrupt):
        train.fit(plan, *parts[:2], tmp_path / "stopped")
    assert len(read_done(tmp_path / "stopped" / "last.ckpt").history) == 2
    train.fit(plan, *parts[:2], tmp_path / "stopped")
    models = [(tmp_path / name / "tiny.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert models[0] == models[1]


def test_batch_edges_must_be_a_number(recipe):
    for wrong, message in ((0, "must be positive, got 0"), (2.5, "must be a whole number")):
        with pytest.raises(ValueError, match=f"recipe: batch_edges {message}"):
            dataclasses.replace(recipe, batch_edges=wrong)


def test_steps_by_number_keep_the_order(recipe):
    order = np.array([4, 2, 0, 3, 1])
    assert [step.tolist() for step in steps(order, EDGES, recipe)] == [[4, 2, 0], [3, 1]]
