"""Vectors, matrix product and sigmoid against NumPy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from attncalc.kernels.simd import vectors as simd
from attncalc.kernels.simd.lanes import in_blocks
from attncalc.kernels.simd.loops import FASTMATH, sigmoid
from attncalc.kernels.simd.products import add_product

EPSILON = 2.0**-23


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@numba.njit(fastmath=FASTMATH)
def _apply_all(x, y, z, s, out):
    a, b, c = simd.load(x, 1, 3), simd.load(y, 2, 0), simd.load(z, 0, 5)
    simd.store(out, 0, 1, simd.plus(a, b))
    simd.store(out, 1, 1, simd.minus(a, b))
    simd.store(out, 2, 1, simd.times(a, b))
    simd.store(out, 3, 1, simd.over(a, b))
    simd.store(out, 4, 1, simd.fma(a, b, c))
    simd.store(out, 5, 1, simd.fill(s))
    simd.store(out, 6, 1, simd.clip(a, simd.fill(-s), simd.fill(s)))
    return simd.total(a)


def test_vectors_do_what_their_names_say() -> None:
    x, y, z, s = random(2, 20), random(3, 16, seed=1), random(1, 30, seed=2), np.float32(0.7)
    out = np.full((7, 18), np.float32(9))
    total = _apply_all(x, y, z, s, out)
    a, b, c = x[1, 3:19].astype(float), y[2].astype(float), z[0, 5:21].astype(float)
    expected = [a + b, a - b, a * b, a / b, a * b + c, np.full(16, s), np.clip(a, -s, s)]
    np.testing.assert_allclose(out[:, 1:17], expected, rtol=4 * EPSILON, atol=4 * EPSILON)
    assert (out[:, [0, 17]] == 9).all()  # nothing is written beside them
    assert total == pytest.approx(a.sum(), abs=16 * EPSILON)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 6, 9, 12, 16, 23])
@pytest.mark.parametrize("shape", [(1, 16), (7, 32), (32, 64), (130, 144), (5, 112)], ids=str)
def test_the_product_is_added(n: int, shape: tuple[int, int]) -> None:
    n_inner, n_columns = shape
    x, w = random(n + 1, n_inner + 5), random(*shape, seed=1)
    out = random(n + 1, n_columns + 7, seed=2)
    expected = out.astype(float)
    expected[:n, 4 : 4 + n_columns] += x[:n, 2 : 2 + n_inner].astype(float) @ w.astype(float)
    untouched = out.copy()
    add_product(n, x, 2, in_blocks(w), out, 4)
    np.testing.assert_allclose(out, expected, atol=4 * n_inner * EPSILON)
    outside = np.ones(out.shape, bool)
    outside[:n, 4 : 4 + n_columns] = False
    assert np.array_equal(out[outside], untouched[outside])


@numba.njit(fastmath=FASTMATH)
def _sigmoid_of(x, out):
    for k in range(0, x.shape[1], simd.LANES):
        simd.store(out, 0, k, sigmoid(simd.load(x, 0, k)))


def test_sigmoid() -> None:
    """Relative, so also where silu(x) is tiny; at the far end of float32 too."""
    x = np.concatenate([np.linspace(-80, 30, 4080), [0, -0.0, 1e-30, 1e30, -1e30, 85, -85, 5] * 2])
    x = x.astype(np.float32)[None]
    out = np.empty_like(x)
    _sigmoid_of(x, out)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(float)))
    np.testing.assert_allclose(out, expected, rtol=4 * EPSILON, atol=1e-37)
    far = np.linspace(-1e6, -90, 16).astype(np.float32)[None]
    out = np.empty_like(far)
    _sigmoid_of(far, out)
    assert (np.abs(far * out) < 1e-30).all(), "silu ends"


def test_not_a_number_stays_one() -> None:
    x = np.full((1, 16), np.float32(np.nan))
    out = np.zeros_like(x)
    _sigmoid_of(x, out)
    assert np.isnan(out).all()
    product = np.zeros((1, 16), np.float32)
    add_product(1, x, 0, np.ones((16, 16), np.float32), product, 0)
    assert np.isnan(product).all()
