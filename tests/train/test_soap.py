"""SOAP: beside a plain version of the algorithm, in turned coordinates, and stopped on the way."""

import dataclasses

import pytest
import torch
from trainings import assert_same_bits

from attncalc import train
from attncalc.train import callbacks, soap
from attncalc.train.module import TrainingModule
from attncalc.train.soap import Soap

SHAPES = [(6, 5), (2, 5, 5), (6, 5), (5,), (3, 4), (), (1, 5), (12, 5), (4, 3)]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    monkeypatch.setattr(soap, "STEPS_BETWEEN_BASES", 4)
    monkeypatch.setattr(soap, "LONGEST_SIDE", 10)


def parameters(seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]
    return [one.requires_grad_(True) for one in made]


def plain_soap(start: torch.Tensor, gradients: list[torch.Tensor], lr: float) -> torch.Tensor:
    """One matrix by the steps of algorithm 3, one after the other.

    A side that is too short or too long keeps its coordinates: its basis is the identity.
    """
    turns = [4 <= n <= 10 for n in start.shape]
    w, b1, b2 = start.clone(), 0.95, 0.95
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    left, right = (torch.zeros(n, n, dtype=w.dtype) for n in w.shape)
    q_left = q_right = w
    for t, g in enumerate(gradients):
        if t > 0:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (q_left.T @ g @ q_right) ** 2
            turned = (q_left.T @ m @ q_right) / (1 - b1**t)
            change = turned / ((v / (1 - b2**t)).sqrt() + 1e-8)
            w = w - lr * q_left @ change @ q_right.T
        left = b2 * left + (1 - b2) * g @ g.T
        right = b2 * right + (1 - b2) * g.T @ g
        if t == 0:
            q_left, q_right = (
                torch.linalg.eigh(one)[1] if turn else torch.eye(len(one), dtype=w.dtype)
                for one, turn in zip((left, right), turns, strict=True)
            )
        elif t % 4 == 0:
            if turns[0]:
                by_left = torch.diag(q_left.T @ left @ q_left).argsort(descending=True)
                v = v[by_left]
                q_left = torch.linalg.qr(left @ q_left[:, by_left])[0]
            if turns[1]:
                by_right = torch.diag(q_right.T @ right @ q_right).argsort(descending=True)
                v = v[:, by_right]
                q_right = torch.linalg.qr(right @ q_right[:, by_right])[0]
    return w


def plain_adam(start: torch.Tensor, gradients: list[torch.Tensor], lr: float) -> torch.Tensor:
    w = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], lr=lr, betas=(0.95, 0.99))
    for w.grad in gradients:
        optimizer.step()
    return w.detach()


def test_it_is_the_published_algorithm_and_adam_for_what_is_no_matrix():
    ours, start = parameters(), parameters()
    optimizer, seen = Soap(ours, lr=0.01), [[] for _ in ours]
    random = torch.Generator().manual_seed(1)
    for _ in range(13):
        for parameter, gradients in zip(ours, seen, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            gradients.append(parameter.grad)
        optimizer.step()
    with torch.no_grad():
        for k, (found, before, gradients) in enumerate(zip(ours, start, seen, strict=True)):
            if k in (0, 2, 4, 7, 8):
                expected = plain_soap(before, gradients, 0.01)
            elif k == 1:
                both = range(2)
                parts = [plain_soap(before[n], [g[n] for g in gradients], 0.01) for n in both]
                expected = torch.stack(parts)
            else:
                expected = plain_adam(before, gradients, 0.01)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def path(turn: tuple[torch.Tensor, torch.Tensor], kind: type) -> torch.Tensor:
    """Ten steps by random gradients, in coordinates that are turned on both sides."""
    left, right = turn
    random = torch.Generator().manual_seed(2)
    w = torch.nn.Parameter(left @ parameters()[0].detach() @ right.T)
    optimizer = kind([w], lr=0.05)
    for _ in range(10):
        gradient = torch.randn(w.shape, generator=random, dtype=torch.float64)
        w.grad = left @ gradient @ right.T
        optimizer.step()
    return left.T @ w.detach() @ right


def test_turned_coordinates_are_as_good():
    """That is what distinguishes it from Adam."""
    random = torch.Generator().manual_seed(3)
    turned = [
        torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64))[0] for n in (6, 5)
    ]
    same = torch.eye(6, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(path(turned, Soap), path(same, Soap), rtol=0, atol=1e-6)
    assert (path(turned, torch.optim.Adam) - path(same, torch.optim.Adam)).abs().max() > 1e-2


def test_gradients_that_fade_to_nothing_leave_weights_finite(monkeypatch):
    """As those of radial functions do, of which no distance of the data reaches some.

    In float32, LAPACK finds eigenvectors that are NaN for 1 to 5 % of their moments, or none.
    """
    monkeypatch.setattr(soap, "LONGEST_SIDE", 512)
    fades, parameters = torch.exp(-(((torch.arange(32.0) - 9) / 2) ** 2)), []
    for seed in range(40):
        random = torch.Generator().manual_seed(seed)
        parameters.append(torch.zeros(32, 15, requires_grad=True))
        parameters[-1].grad = torch.randn(32, 15, generator=random) * fades[:, None]
    optimizer = Soap(parameters, lr=0.01)
    for _ in range(6):
        optimizer.step()
        assert all(torch.isfinite(one).all() for one in parameters)


@pytest.mark.parametrize("pair_terms", [(), ("zbl",)])  # whose parameters are in float64
def test_a_training_that_was_stopped_ends_with_the_same_bits(
    pair_terms, recipe, parts, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(recipe, optimizer="soap", pair_terms=pair_terms)
    whole = train.fit(recipe, *parts[:2], tmp_path / "whole")
    assert whole.history[-1]["validation_loss"] < whole.history[0]["validation_loss"]
    calls, step = [], TrainingModule.training_step

    def interrupted(module, batch, k):
        calls.append(k)
        if len(calls) == 9:
            raise KeyboardInterrupt
        step(module, batch, k)

    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.fit(recipe, *parts[:2], tmp_path / "stopped")
    assert train.fit(recipe, *parts[:2], tmp_path / "stopped").history[-1]["epoch"] == 4
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


def test_recipes_name_it(recipe):
    with pytest.raises(ValueError, match="optimizer must be one of adam, soap, got 'sgd'"):
        dataclasses.replace(recipe, optimizer="sgd")


def test_it_is_the_default_and_each_optimizer_has_a_learning_rate_of_its_own():
    bare = train.Recipe(name="bare", data="x", split={"sizes": [2, 1]}, config={"cutoff": 4.0})
    assert (bare.optimizer, bare.schedule, bare.highest_learning_rate) == ("soap", "cosine", 3e-3)
    assert dataclasses.replace(bare, optimizer="adam").highest_learning_rate == 1e-3
    assert dataclasses.replace(bare, learning_rate=2e-3).highest_learning_rate == 2e-3
    started = dataclasses.replace(bare, start_from="so3krates-ethanol")
    assert started.highest_learning_rate == 1e-3
    assert dataclasses.replace(started, learning_rate=2e-3).highest_learning_rate == 2e-3
