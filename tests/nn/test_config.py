"""So3kratesConfig refuses what no network can be made of: name, rule, value, in one line."""

import math

import numpy as np
import pytest

from attncalc.nn.so3krates import So3krates, So3kratesConfig

LEAST = {"cutoff": 5.0, "avg_num_neighbors": 8.0}


@pytest.mark.parametrize("name", ["num_features", "num_heads", "num_layers", "head_features"])
@pytest.mark.parametrize("value", [8.0, True, "8", math.nan, [8]])
def test_sizes_are_whole_numbers(name: str, value: object) -> None:
    refused({name: value}, f"{name} must be a whole number, got {value!r}")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        *(("num_features", 4), ("num_heads", 1), ("num_layers", 1), ("num_basis", 2)),
        ("head_features", 1),
    ],
)
def test_sizes_have_a_least_value(name: str, least: int) -> None:
    for value in (least - 1, 0, -1):
        refused({name: value}, f"{name} must be at least {least}, got {value}")


@pytest.mark.parametrize("basis", ["bernstein", "physnet"])
def test_the_least_network_can_be_made(basis: str) -> None:
    sizes = {"num_features": 4, "num_heads": 1, "num_layers": 1, "num_basis": 2}
    config = So3kratesConfig(**LEAST, **sizes, degrees=[0], head_features=1, radial_basis=basis)
    parameters = list(So3krates(config, 1).parameters())
    assert all(p.numel() and p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", ["cutoff", "avg_num_neighbors", "ev_init_divisor"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *((0, "positive"), (-1.0, "positive"), (math.nan, "positive"), (math.inf, "finite")),
        *(("5", "a number"), (True, "a number"), ([5.0], "a number")),
    ],
)
def test_lengths_and_divisors_are_positive_finite_numbers(
    name: str, value: object, rule: str
) -> None:
    refused({name: value}, f"{name} must be {rule}, got {value!r}")


@pytest.mark.parametrize("name", ["cutoff", "avg_num_neighbors"])
def test_a_number_that_is_needed(name: str) -> None:
    refused({name: None}, f"{name} must be a number, got None")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degrees": 3}, "degrees must be a list, got 3"),
        ({"degrees": "123"}, "degrees must be a list, got '123'"),
        ({"degrees": [1, 2.0]}, "degrees must be a whole number, got 2.0"),
        ({"degrees": [False, True]}, "degrees must be a whole number, got False"),
        ({"layer_norms": "after_attention"}, "layer_norms must be a list, got 'after_attention'"),
        ({"embed_charge": "no"}, "embed_charge must be true or false, got 'no'"),
        ({"embed_spin": 1}, "embed_spin must be true or false, got 1"),
        (
            {"radial_basis": ["physnet"]},
            "radial_basis must be one of 'physnet', 'bernstein', got ['physnet']",
        ),
    ],
)
def test_other_values_of_a_wrong_kind(changes: dict[str, object], message: str) -> None:
    refused(changes, message)


def test_numbers_of_numpy_are_numbers() -> None:
    config = So3kratesConfig(cutoff=np.float32(5), avg_num_neighbors=8, num_layers=np.int64(2))
    assert config.receptive_field == 10


def refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        So3kratesConfig(**(LEAST | changes))
    assert str(caught.value) == message
