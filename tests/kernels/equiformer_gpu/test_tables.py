"""Tables of the GPU's engine: what kernels are promised about them when they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attncalc.kernels.equiformer_gpu.making import Maker, step_of
from attncalc.kernels.equiformer_gpu.tables import Product, Tables
from attncalc.nn.equiformer import Equiformer, EquiformerConfig

PUBLISHED = {"cutoff_function": "none", "paths": "all"}
NETWORKS = {
    "published": PUBLISHED,
    "ours": {},
    "lmax 3": {"channels": (128, 64, 64, 32), **PUBLISHED},
    "linear": {"attention": "linear"},
    "sixteens": {"channels": (48, 16), "radial_features": 48, "num_layers": 1},
}
COLUMNS = (32, 64)  # of jobs


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def maker(request) -> Maker:
    config = EquiformerConfig(5.0, 15.58, **{"num_layers": 2, **request.param})
    with torch.no_grad():
        return Maker(Equiformer(config, 3).double(), COLUMNS)


@pytest.fixture(scope="module")
def tables(maker: Maker) -> Tables:
    with torch.no_grad():
        return maker.tables(torch.float32, torch.device("cpu"))


def products_of(thing: Any) -> Iterator[Product]:
    if isinstance(thing, Product):
        yield thing
    elif isinstance(thing, list):
        for one in thing:
            yield from products_of(one)
    elif hasattr(thing, "__dataclass_fields__"):
        for one in vars(thing).values():
            yield from products_of(one)


def test_every_column_begins_at_a_multiple_of_sixteen(maker: Maker, tables: Tables) -> None:
    """Kernels are compiled for that; the interpreter would not notice."""
    for product in products_of(tables):
        for jobs in product.jobs.values():
            assert not (jobs[:, [0, 2, 3, 4]] % 16).any()
        assert not (product.blocks[:, :2] % 16).any()
    for sums in tables.sums:
        assert not (sums.sums[:, 2] % 16).any()
        assert not (sums.terms[:, :2] % 16).any()
    for gates in (*tables.gates, *tables.wide_gates):
        assert not (gates[:, 1:] % 16).any()
    for columns in (tables.columns, tables.value_columns, tables.tiles[:, 3:7]):
        assert not (columns % 16).any()
    for couplings in (tables.couplings, tables.value_couplings):
        assert not (couplings[:, :3] % 16).any()
    assert maker.sizes().attention % 16 == 0


def test_jobs_stay_inside_their_matrices(tables: Tables, maker: Maker) -> None:
    for product in products_of(tables):
        for most, jobs in product.jobs.items():
            _, depth, weight, width, _, block, bias, left = jobs.long().unbind(1)
            assert (left <= most).all()
            assert not (depth % maker.step).any()
            assert (weight + (depth - 1) * width + left <= len(tables.flat)).all()
            assert (bias + left <= len(tables.flat)).all()
            assert (block * maker.step <= len(product.blocks) * maker.step - maker.step).all()


def test_tiles_of_both_sizes_do_the_same(tables: Tables) -> None:
    """Every column of every result is written once."""
    for product in products_of(tables):
        written = []
        for jobs in product.jobs.values():
            columns = [torch.arange(to, to + left) for *_, to, _, _, left in jobs.tolist()]
            written.append(torch.cat(columns).sort().values)
        assert torch.equal(*written)
        assert len(written[0].unique()) == len(written[0])


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 32),
        ({"channels": (48, 16)}, 16),
        ({"radial_features": 16}, 16),
        ({"channels": (128, 64, 24)}, 0),
        ({"head_features": 40}, 0),
        ({"attention_features": 5}, 0),
    ],
    ids=str,
)
def test_the_step_divides_all_widths(options: dict, step: int) -> None:
    assert step_of(EquiformerConfig(5.0, 15.58, **options)) == step
