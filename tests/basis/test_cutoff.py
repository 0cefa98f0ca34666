"""Cutoff functions: values, derivatives at the cutoff, exactly nothing beyond."""

import math

import pytest
import torch
from contract import assert_close
from torch import Tensor

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS

CUTOFF = 4.3
FORMULAS = {
    "physnet": lambda s: 1 - 6 * s**5 + 15 * s**4 - 10 * s**3,
    "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    "exponential": lambda s: math.exp(-(s**2) / (1 - s**2)),
}
# derivatives that vanish at the cutoff; the next one does not (exponential: all vanish)
CONTINUOUS = {"physnet": 2, "cosine": 1, "exponential": 3}


def derivatives(name: str, d: float, order: int) -> list[float]:
    """The value and the first `order` derivatives at distance d."""
    x = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    values = [CUTOFF_FUNCTIONS[name](x, CUTOFF)]
    for _ in range(order):
        (next_one,) = torch.autograd.grad(values[-1], x, create_graph=True)
        values.append(next_one)
    return [value.item() for value in values]


def test_every_function_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(CUTOFF_FUNCTIONS) == set(CONTINUOUS)


@pytest.mark.parametrize("name", FORMULAS)
def test_values(name: str) -> None:
    places = [0.0, 1e-8, 0.1, 0.5, 0.77, 0.95, 0.999]
    lengths = torch.tensor(places, dtype=torch.float64) * CUTOFF
    expected = [FORMULAS[name](s) for s in places]
    assert_close(CUTOFF_FUNCTIONS[name](lengths, CUTOFF), expected, 1e-14)
    assert expected[0] == 1.0


@pytest.mark.parametrize("name", ["physnet", "cosine"])
@pytest.mark.parametrize("before", [1e-2, 1e-3, 1e-4])
def test_keeps_its_digits_close_to_the_cutoff(name: str, before: float) -> None:
    """Only the rounding of s itself, 6e-8, counts, and 1 - s is small."""
    length = torch.tensor(1 - before, dtype=torch.float32)
    s = length.double()
    # factored, as the formulas above cancel in float64 too
    exact = {
        "physnet": (1 - s) ** 3 * (1 + 3 * s + 6 * s**2),
        "cosine": torch.sin(0.5 * math.pi * (1 - s)) ** 2,
    }[name]
    value = CUTOFF_FUNCTIONS[name](length, 1.0)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_falls_from_one_to_zero(name: str, dtype: torch.dtype) -> None:
    lengths = torch.linspace(0, CUTOFF, 500, dtype=dtype)
    values = CUTOFF_FUNCTIONS[name](lengths, CUTOFF)
    assert values.dtype == dtype
    assert values[0] == 1
    assert values[-1] == 0
    # rounding of 1 - 10 s^3 + ... near 0 may lift a value by a few units of the last place
    assert (values.diff() <= 16 * torch.finfo(dtype).eps).all()
    assert values.min() >= -16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", FORMULAS)
def test_derivatives_end_at_the_cutoff(name: str) -> None:
    """A derivative that is continuous there is O(h) at h before the cutoff; the next is not."""
    near = derivatives(name, CUTOFF - 1e-6, 3)
    scale = max(abs(v) for v in derivatives(name, 0.5 * CUTOFF, 3))
    for order, value in enumerate(near):
        if order <= CONTINUOUS[name]:
            assert abs(value) < 1e-4 * scale, f"derivative {order}"
        elif order == CONTINUOUS[name] + 1:
            assert abs(value) > 0.1 * scale, f"derivative {order}"


@pytest.mark.parametrize("name", FORMULAS)
def test_exactly_zero_beyond_with_all_derivatives(name: str) -> None:
    for d in (CUTOFF, CUTOFF * (1 + 1e-15), 1.5 * CUTOFF, 2 * CUTOFF, 3 * CUTOFF, 1e8):
        assert derivatives(name, d, 2) == [0.0, 0.0, 0.0], d


@pytest.mark.parametrize("name", FORMULAS)
def test_gradient_is_finite_everywhere(name: str) -> None:
    lengths = torch.linspace(0, 2 * CUTOFF, 2001, dtype=torch.float64, requires_grad=True)

    def total(d: Tensor) -> Tensor:
        return CUTOFF_FUNCTIONS[name](d, CUTOFF).sum()

    (gradient,) = torch.autograd.grad(total(lengths), lengths)
    assert gradient.isfinite().all()
    assert (gradient <= 1e-12).all()
