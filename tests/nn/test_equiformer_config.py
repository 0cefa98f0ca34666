"""EquiformerConfig refuses what no network can be made of, and knows what it breaks."""

import dataclasses
import math

import pytest

from attncalc.nn.equiformer import Equiformer, EquiformerConfig

LEAST = {"cutoff": 5.0, "avg_num_neighbors": 8.0}
SIZES = {
    "num_layers": 1,
    "num_heads": 1,
    "attention_features": 1,
    "feed_forward_factor": 1,
    "num_basis": 2,
    "radial_features": 2,
    "head_features": 2,
}


@pytest.mark.parametrize("attention", ["nonlinear", "linear", "dot"])
@pytest.mark.parametrize("paths", ["natural", "all"])
def test_the_least_network_can_be_made(attention: str, paths: str) -> None:
    config = EquiformerConfig(**LEAST, **SIZES, channels=[1, 1], attention=attention, paths=paths)
    parameters = list(Equiformer(config, 1).parameters())
    assert all(p.numel() and p.isfinite().all() for p in parameters)
    assert config.n_weights_at_least <= sum(p.numel() for p in parameters)


@pytest.mark.parametrize("attention", ["nonlinear", "linear", "dot"])
@pytest.mark.parametrize("paths", ["natural", "all"])
@pytest.mark.parametrize("channels", [(128, 64, 32), (16, 8, 8, 4), (4, 4)])
def test_the_bound_on_the_number_of_weights_holds(
    attention: str, paths: str, channels: tuple[int, ...]
) -> None:
    config = EquiformerConfig(**LEAST, channels=channels, attention=attention, paths=paths)
    assert config.n_weights_at_least <= sum(p.numel() for p in Equiformer(config, 1).parameters())


@pytest.mark.parametrize(("name", "least"), list(SIZES.items()))
def test_sizes(name: str, least: int) -> None:
    for value in (8.0, True, "8", math.nan):
        refused({name: value}, f"{name} must be a whole number, got {value!r}")
    refused({name: least - 1}, f"{name} must be at least {least}, got {least - 1}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be positive, got 0.0"),
        ({"cutoff": 1e-17}, "cutoff must be at least 0.01, got 1e-17"),
        ({"cutoff": math.inf}, "cutoff must be finite, got inf"),
        ({"avg_num_neighbors": None}, "avg_num_neighbors must be a number, got None"),
        ({"attention": "graph"}, "attention must be one of 'nonlinear', 'linear', 'dot', got"),
        ({"norm": "batch"}, "norm must be one of 'joint', 'degree', got 'batch'"),
        ({"cutoff_function": "cosine"}, "cutoff_function must be one of 'physnet', 'none', got"),
        ({"paths": "odd"}, "paths must be one of 'natural', 'all', got 'odd'"),
        ({"channels": "128"}, "channels must be a list, got '128'"),
        ({"channels": 128}, "channels must be a list, got 128"),
        ({"channels": [8]}, "channels must be given for degrees 0 to 1 at least and 6 at most"),
        ({"channels": [8] * 8}, "channels must be given for degrees 0 to 1 at least and 6 at most"),
        ({"channels": [8, 6]}, "channels must be divisible by num_heads = 4, got 6"),
        ({"channels": [8, 0]}, "channels must be at least 1, got 0"),
    ],
)
def test_impossible_values(changes: dict, message: str) -> None:
    refused(changes, message)


def refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        EquiformerConfig(**(LEAST | changes))
    assert str(caught.value).startswith(message)


def test_faults_are_named() -> None:
    ours = EquiformerConfig(**LEAST)
    assert ours.faults == []
    jumps = dataclasses.replace(ours, cutoff_function="none").faults
    assert jumps == ["energy and forces jump where an atom crosses the cutoff"]
    handed = dataclasses.replace(ours, paths="all").faults
    assert handed == ["a molecule and its mirror image have different energies"]
    singular = dataclasses.replace(ours, norm="degree").faults
    assert singular == [
        "energy and forces are wrong at atoms of high symmetry, as in CH4 or perfect crystals"
    ]


def test_the_norm_follows_the_cutoff_function() -> None:
    """The published cutoff function alone means the published network."""
    assert EquiformerConfig(**LEAST).norm == "joint"
    assert EquiformerConfig(**LEAST, cutoff_function="none").norm == "degree"
    assert EquiformerConfig(**LEAST, cutoff_function="none", norm="joint").norm == "joint"
