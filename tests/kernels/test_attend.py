"""The compiled pair loop is the plain one, values and gradients, for any division into heads."""

import pytest
import torch

from attncalc.compiled import has_numba
from attncalc.kernels.attend import Heads, attend_compiled, attend_plain

pytestmark = pytest.mark.skipif(not has_numba(), reason="numba is not installed")

N_ATOMS = 5
DIVISIONS = {
    "default": (16, Heads(4, (1, 2, 3, 4), 8.0, 8.0)),
    "paper": (12, Heads(4, (1, 2, 3), 2.0, 3.0)),
    "scalars": (6, Heads(1, (0, 2), 1.0, 0.5)),
    "odd widths": (15, Heads(5, (1, 2, 5), 1.7, 1.3)),
}


@pytest.fixture(params=DIVISIONS)
def inputs(request):
    """Random tensors; pairs repeat atoms, and one joins an atom with its own image."""
    width, heads = DIVISIONS[request.param]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    i = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    j = torch.tensor([1, 2, 2, 4, 4, 3, 4])
    orders = sum(2 * l + 1 for l in heads.degrees)
    tensors = (random(N_ATOMS, 5 * width), random(7, 2 * width), random(7), random(7, orders))
    return [t.requires_grad_() for t in tensors], torch.cat([i, j]), heads


def test_values(inputs):
    tensors, receivers, heads = inputs
    plain = attend_plain(*tensors, receivers, heads)
    torch.testing.assert_close(
        attend_compiled(*tensors, receivers, heads), plain, rtol=1e-12, atol=1e-12
    )
    assert plain.abs().max() > 0.1


def test_plain_against_a_loop(inputs):
    """The formula of `attend_plain`, written once more, pair by pair."""
    (projected, filters, envelope, harmonics), receivers, heads = inputs
    width = projected.shape[1] // 5
    expected = torch.zeros(N_ATOMS, width + harmonics.shape[1], dtype=torch.float64)
    n = len(envelope)
    for p in range(n):
        for direction in (0, 1):
            i, j = receivers[p + direction * n], receivers[p + (1 - direction) * n]
            query, key = projected[i, : 2 * width], projected[j, 2 * width : 4 * width]
            value = projected[j, 4 * width :]
            product = query * filters[p] * key
            for h in range(heads.n_heads):
                mine = slice(h * width // heads.n_heads, (h + 1) * width // heads.n_heads)
                alpha = product[:width][mine].sum() * envelope[p] / heads.feature_norm
                expected[i, mine] += (alpha * value[mine]).detach()
            start = 0
            for d, degree in enumerate(heads.degrees):
                part = width // len(heads.degrees)
                alpha = product[width + d * part : width + (d + 1) * part].sum() * envelope[p]
                sign = (-1) ** (degree * direction)
                stop = start + 2 * degree + 1
                turned = sign * alpha / heads.geometry_norm * harmonics[p, start:stop]
                expected[i, width + start : width + stop] += turned.detach()
                start = stop
    found = attend_plain(projected, filters, envelope, harmonics, receivers, heads)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients(inputs):
    tensors, receivers, heads = inputs
    weights = torch.randn(
        attend_plain(*tensors, receivers, heads).shape,
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    ours, theirs = (
        torch.autograd.grad((attend(*tensors, receivers, heads) * weights).sum(), tensors)
        for attend in (attend_compiled, attend_plain)
    )
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11)
        assert plain.abs().max() > 0.1


def test_single_precision(inputs):
    tensors, receivers, heads = inputs
    single = attend_compiled(*(t.float() for t in tensors), receivers, heads)
    assert single.dtype == torch.float32
    plain = attend_plain(*tensors, receivers, heads)
    torch.testing.assert_close(single.double(), plain, rtol=1e-4, atol=1e-4)


def test_no_pairs():
    heads = DIVISIONS["paper"][1]
    empty = [torch.zeros(s) for s in ((2, 60), (0, 24), (0,), (0, 15))]
    found = attend_compiled(*empty, torch.zeros(0, dtype=torch.int64), heads)
    assert found.shape == (2, 12 + 15)
    assert not found.any()
