"""The pair loop, with numba and without: its formula, and the formula's gradient."""

import pytest
import torch
from torch.nn.functional import silu

from attncalc.basis.so3 import contract_orders, parity, repeat_over_orders
from attncalc.compiled import has_numba
from attncalc.kernels import attend as module
from attncalc.kernels.attend import Weights, attend, filters, filters_reverse

N_ATOMS = 5
# F, H, degrees
DIVISIONS = {
    "default": (16, 4, (1, 2, 3, 4)),
    "paper": (12, 4, (1, 2, 3)),
    "scalars": (6, 1, (0, 2)),
    "odd widths": (15, 5, (1, 2, 5)),
}
NAMES = ("queries", "sent", "ev", "radial", "envelope", "harmonics")


@pytest.fixture(params=["numba", "torch"])
def way(request, monkeypatch):
    """Each of both ways."""
    if request.param == "torch":
        monkeypatch.setattr(module, "has_numba", lambda: False)
    elif not has_numba():
        pytest.skip("numba is not installed")


@pytest.fixture(params=DIVISIONS)
def inputs(request):
    """Random tensors; pairs repeat atoms, and one joins an atom with its own image."""
    width, heads, degrees = DIVISIONS[request.param]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    orders, n_hidden, rank = sum(2 * l + 1 for l in degrees), 4, 3
    repeat = repeat_over_orders(degrees)
    weights = Weights(
        first=random(len(degrees), n_hidden),
        first_bias=random(n_hidden),
        last=random(n_hidden + rank, 2 * width),
        last_bias=random(2 * width),
        contract=contract_orders(degrees),
        repeat=torch.stack([repeat, repeat * parity(degrees)]),
        heads=heads,
        degrees=torch.tensor(degrees).numpy(),
    )
    pairs = torch.tensor([[0, 0, 1, 1, 2, 3, 3], [1, 2, 2, 4, 4, 3, 4]])
    of_atoms = random(N_ATOMS, 2 * width), random(N_ATOMS, 3 * width), random(N_ATOMS, orders)
    tensors = (*of_atoms, random(7, rank), random(7), random(7, orders))
    return [t.requires_grad_() for t in tensors], pairs, weights


def formula(queries, sent, ev, radial, envelope, harmonics, pairs, weights):
    """Written once more, pair by pair."""
    width, heads, degrees = queries.shape[1] // 2, weights.heads, weights.degrees.tolist()
    features = [torch.zeros(width, dtype=torch.float64) for _ in queries]
    geometry = [torch.zeros(ev.shape[1], dtype=torch.float64) for _ in queries]
    for p in range(len(envelope)):
        for i, j, sign in ((*pairs[:, p], 1), (*pairs[:, p].flip(0), -1)):
            invariants = (ev[j] - ev[i]) ** 2 @ weights.contract
            hidden = silu(invariants @ weights.first + weights.first_bias)
            w = torch.cat([hidden, radial[p]]) @ weights.last + weights.last_bias
            product = envelope[p] * queries[i] * w * sent[j, : 2 * width]
            alpha = product[:width].view(heads, -1).sum(1)
            beta = product[width:].view(len(degrees), -1).sum(1)
            values = sent[j, 2 * width :].view(heads, -1)
            features[i] = features[i] + (alpha[:, None] * values).flatten()
            signs = torch.tensor([float(sign) ** l for l in degrees], dtype=torch.float64)
            orders = torch.tensor([2 * l + 1 for l in degrees])
            turned = (beta * signs).repeat_interleave(orders) * harmonics[p]
            geometry[i] = geometry[i] + turned
    return torch.stack(features), torch.stack(geometry)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("block", [3, 7])
def test_values_and_gradients(inputs, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    tensors, pairs, weights = inputs
    ours, theirs = attend(*tensors, pairs, weights), formula(*tensors, pairs, weights)
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in theirs]
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
        assert plain.abs().max() > 0.1
    gradients = (
        torch.autograd.grad(
            sum((a * b).sum() for a, b in zip(found, factors, strict=True)), tensors
        )
        for found in (ours, theirs)
    )
    for name, mine, plain in zip(NAMES, *gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11, msg=name)
        assert plain.abs().max() > 0.1, name


def test_filters_reverse(inputs):
    (_, _, ev, radial, _, _), _, weights = inputs
    w, difference, before = filters(ev[[0, 1]], ev[[2, 3]], radial[:2], weights)
    d_filters = torch.randn(w.shape, generator=torch.Generator().manual_seed(2)).double()
    by_ev, by_radial = torch.autograd.grad((w * d_filters).sum(), (ev, radial))
    d_difference, d_radial = filters_reverse(d_filters, difference, before, weights)
    torch.testing.assert_close(d_difference, by_ev[[2, 3]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-d_difference, by_ev[[0, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(d_radial, by_radial[:2], rtol=1e-12, atol=1e-12)
    assert by_radial.abs().max() > 0.1


@pytest.mark.usefixtures("way")
def test_single_precision(inputs):
    tensors, pairs, weights = inputs
    single = Weights(*(t.float() if torch.is_tensor(t) else t for t in weights))
    ours = attend(*(t.float() for t in tensors), pairs, single)
    for mine, plain in zip(ours, formula(*tensors, pairs, weights), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_no_pairs(inputs):
    tensors, pairs, weights = inputs
    empty = [*tensors[:3], *(t[:0] for t in tensors[3:])]
    features, geometry = attend(*empty, pairs[:, :0], weights)
    assert not features.any()
    assert not geometry.any()
    (gradient,) = torch.autograd.grad(features.sum() + geometry.sum(), tensors[:1])
    assert not gradient.any()
