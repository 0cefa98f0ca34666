"""The learning rate over a run, by the closed form."""

import dataclasses
import math

import pytest
import torch

from attncalc.potential import Potential
from attncalc.train.module import TrainingModule


class OneNumber(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_learning_rates(recipe, schedule):
    n, warmup = 100, 10
    recipe = dataclasses.replace(
        recipe,
        schedule=schedule,
        learning_rate=1e-2,
        final_learning_rate=1e-4,
        warmup_steps=warmup,
    )
    made = TrainingModule(Potential(OneNumber(), [1]), recipe, n).configure_optimizers()
    rates = []
    for _ in range(n + 1):
        rates.append(made["lr_scheduler"].get_last_lr()[0])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    for step, rate in enumerate(rates):
        if schedule == "exponential":
            expected = 1e-2 * 0.01 ** (step / n)
        else:
            expected = 1e-4 + (1e-2 - 1e-4) * 0.5 * (1 + math.cos(math.pi * step / n))
        assert rate == pytest.approx(expected * min(1, (step + 1) / (warmup + 1)), rel=1e-12)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-12)
    assert rates[0] == pytest.approx(1e-2 / 11, rel=1e-12)
    assert max(rates) == rates[warmup]


@pytest.mark.parametrize("longer", [True, False])
def test_a_new_plan_does_not_start_the_warmup_again(recipe, longer: bool) -> None:
    """The number of epochs that fit into `minutes` is estimated anew after each of them."""
    constant = {"learning_rate": 1e-2, "final_learning_rate": 1e-2}
    recipe = dataclasses.replace(recipe, epochs=10, warmup_steps=200, **constant)
    module = TrainingModule(Potential(OneNumber(), [1]), recipe, 400)
    assert [module._factor(step) < 1 for step in (0, 39, 40)] == [True, True, False]
    module.plan(100 if longer else 5)
    assert module.n_steps == (4000 if longer else 200)
    assert module._factor(41) == 1
    assert module._factor(19) == (20 / 41 if longer else 20 / 21)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    resumed = TrainingModule(Potential(OneNumber(), [1]), recipe, module.n_steps)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed._factor(19) == module._factor(19)
