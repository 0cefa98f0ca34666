"""Kernels one by one in Triton's interpreter, against plain formulas and autograd in float64.

Run by test_interpreted.py, in a process of its own.
"""

from __future__ import annotations

import interpreting  # noqa: F401  (before any kernel)
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from attncalc.basis.edge_frames import EdgeFrames
from attncalc.basis.radial import ExpNormalBasis
from attncalc.graph import AtomOutputs, Graph
from attncalc.kernels.equiformer_gpu import (
    attention,
    formulas,
    geometry,
    norms,
    products,
    radial,
    turns,
)
from attncalc.kernels.equiformer_gpu.launching import launch
from attncalc.kernels.frozen_zbl import numbers_of
from attncalc.kernels.gpu import formulas as shared
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLConfig, ZBLRepulsion

EXACT = 1e-12
DOUBLE = {"dtype": torch.float64}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def table(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().amax()
    assert error <= EXACT * expected.abs().amax().clamp(min=1)


def gradients(value: Tensor, given: Tensor, *by: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, by, given)


@triton.jit
def _apply(x, out, WHICH: tl.constexpr):
    k = tl.arange(0, 16)
    v = tl.load(x + k)
    if WHICH == 0:
        tl.store(out + k, shared.sigmoid(v))
    elif WHICH == 1:
        tl.store(out + k, shared.silu_slope(v))
    elif WHICH == 2:
        tl.store(out + k, formulas.leaky(v))
    else:
        tl.store(out + k, formulas.leaky_slope(v))


def test_formulas() -> None:
    x = torch.linspace(-40, 40, 16, **DOUBLE).requires_grad_(True)
    leaky = x * (0.2 + 0.8 * torch.sigmoid(x))
    ones = torch.ones_like(x)
    expected = [torch.sigmoid(x), *gradients(silu(x), ones, x), leaky, *gradients(leaky, ones, x)]
    for which, values in enumerate(expected):
        out = torch.empty_like(x)
        launch(_apply, (1,), x.detach(), out, WHICH=which)
        assert_close(out, values.detach())


@pytest.mark.parametrize("mode", ["PLAIN", "TIMES", "GATED"])
@pytest.mark.parametrize("add", [False, True])
def test_grouped_product(mode: str, add: bool) -> None:
    """Two products at once, the second with a bias; rows beyond the count stay as they are."""
    x, y, flat, before = random(5, 64), random(5, 64, seed=1), random(3000), random(5, 96, seed=2)
    one, two = flat[16 : 16 + 32 * 48].view(32, 48), flat[1600 : 1600 + 16 * 32].view(16, 32)
    jobs = table(
        (16, 32, 16, 48, 0, 0, -(1 << 30), 32),
        (16, 32, 48, 48, 32, 0, -(1 << 30), 16),
        (48, 16, 1600, 32, 64, 2, 2900, 32),
    )
    blocks = table((16, 0, 1, 0), (32, 48, -1, 0), (48, 32, -1, 0))
    out = before.clone()
    launch(
        products.grouped_product,
        (1, 3),
        x,
        y,
        flat,
        jobs,
        blocks,
        torch.tensor([4], dtype=torch.int32),
        out,
        x_row=64,
        y_row=64,
        out_row=96,
        MODE=getattr(products, mode),
        ADD=add,
        BM=16,
        BN=32,
        BK=16,
        PRECISION="ieee",
    )
    if mode == "PLAIN":
        a, b = x[:, 16:48], x[:, 48:]
    elif mode == "TIMES":
        a = torch.cat([x[:, 16:32] * y[:, :16], -x[:, 32:48] * y[:, 48:]], dim=1)
        b = -x[:, 48:] * y[:, 32:48]
    else:
        a = x[:, 16:48] * torch.sigmoid(torch.cat([y[:, :16], y[:, 48:]], dim=1))
        b = x[:, 48:] * torch.sigmoid(y[:, 32:48])
    expected = torch.cat([a @ one, torch.zeros(5, 16), b @ two + flat[2900:2932]], dim=1)
    if add:
        expected = expected + before
    expected[:, 48:64], expected[4] = before[:, 48:64], before[4]
    assert_close(out, expected)


def test_times_gradient() -> None:
    x, y = random(4, 32).requires_grad_(True), random(4, 48, seed=1).requires_grad_(True)
    given = random(4, 64, seed=2)
    pieces = [(0, 0, 1), (16, 32, -1), (0, 16, 1), (16, 0, 1)]  # columns of x and y, sign
    product = torch.cat([s * x[:, a : a + 16] * y[:, b : b + 16] for a, b, s in pieces], dim=1)
    by_x = [[(k, b, s) for k, (a, b, s) in enumerate(pieces) if a == to] for to in (0, 16)]
    by_y = [[(k, a, s) for k, (a, b, s) in enumerate(pieces) if b == to] for to in (0, 16, 32)]
    sums, terms = [], []
    for which, found in enumerate((by_x, by_y)):
        for number, of_one in enumerate(found):
            sums.append((len(terms), len(terms) + len(of_one), 16 * number, which))
            terms += [(16 * k, other, sign, 0) for k, other, sign in of_one]
    d_x, d_y = torch.empty_like(x), torch.empty_like(y)
    launch(
        products.times_gradient,
        (1, len(sums)),
        given,
        x.detach(),
        y.detach(),
        d_x,
        d_y,
        table(*sums),
        table(*terms),
        torch.tensor([4], dtype=torch.int32),
        given_row=64,
        x_row=32,
        y_row=48,
        d_x_row=32,
        d_y_row=48,
        BM=16,
        BK=16,
    )
    for actual, expected in zip((d_x, d_y), gradients(product, given, x, y), strict=True):
        assert_close(actual, expected)


def test_gate_gradient() -> None:
    """Scalars that are their own gate, and two components that share one."""
    x, given = random(3, 64).requires_grad_(True), random(3, 48, seed=1)
    gate = torch.sigmoid(x[:, 16:32])
    gated = torch.cat([silu(x[:, :16]), x[:, 32:48] * gate, x[:, 48:] * gate], dim=1)
    out = torch.empty_like(x)
    launch(
        products.gate_gradient,
        (1, 2),
        x.detach(),
        given,
        out,
        table((1, 0, 0, 0, 0, 0, 0, 0), (2, 16, 32, 16, 48, 32, 0, 0)),
        torch.tensor([3], dtype=torch.int32),
        x_row=64,
        given_row=48,
        out_row=64,
        gate_row=8,
        BM=16,
        BK=16,
    )
    assert_close(out, gradients(gated, given, x)[0])


@pytest.mark.parametrize("add", [False, True])
def test_norms(add: bool) -> None:
    """A layer norm of 16 scalars, and 30 numbers divided by the root of their mean square."""
    x, given, before = random(3, 46).requires_grad_(True), random(3, 46, seed=1), random(3, 46)
    scalars, others = x.split([16, 30], dim=1)
    epsilon = norms.LAYER_NORM_EPSILON
    others = others * ((others * others).mean(1, keepdim=True) + epsilon).rsqrt()
    expected = torch.cat([layer_norm(scalars, (16,), eps=epsilon), others], dim=1)
    parts = table((0, 16), (16, 30))
    normal, inverse = torch.empty_like(x), torch.empty(3, 2, **DOUBLE)
    rows = {"x_row": 46, "normal_row": 46, "inverse_row": 2}
    launch(norms.normalise, (3, 2), x.detach(), normal, inverse, parts, **rows, BLOCK=32)
    assert_close(normal, expected.detach())
    d_x = before.clone()
    launch(
        norms.normalise_gradient,
        (3, 2),
        given,
        normal,
        inverse,
        d_x,
        parts,
        given_row=46,
        normal_row=46,
        inverse_row=2,
        d_x_row=46,
        ADD=add,
        BLOCK=32,
    )
    (gradient,) = gradients(expected, given, x)
    assert_close(d_x, gradient + before if add else gradient)


def test_energies() -> None:
    hidden, last, species = random(3, 16).requires_grad_(True), random(16), torch.tensor([1, 0, 1])
    scale, reference = random(2, seed=3), random(2, seed=4)
    expected = scale[species] * (silu(hidden) @ last) + reference[species]
    energies, d_hidden = torch.empty(3, **DOUBLE), torch.empty_like(hidden)
    arrays = (hidden.detach(), last, species, scale, reference, energies, d_hidden)
    launch(norms.energies_of, (3,), *arrays, HIDDEN=16, BLOCK=16)
    assert_close(energies, expected.detach())
    assert_close(d_hidden, gradients(expected, torch.ones(3, **DOUBLE), hidden)[0])


def test_radial_networks() -> None:
    """Two networks with a basis of 10 numbers, filled up to 16, and 24 hidden ones."""
    n, width, rows = 5, 24, 16
    shapes = [(rows, width), (width, rows), (width, width), (width, width)] + [(width,)] * 6
    flat, places, nets = [], [], []
    for net in range(2):
        weights = [random(*shape, seed=10 * net + k) for k, shape in enumerate(shapes)]
        weights[1], weights[3] = weights[0].T.contiguous(), weights[2].T.contiguous()
        places.append([])
        for w in weights:
            places[-1].append(sum(len(part) for part in flat))
            flat.append(w.flatten())
        nets.append(weights)
    basis, slopes = random(n, 16, seed=5), random(n, 16, seed=6)
    basis[:, 10:], slopes[:, 10:] = 0, 0
    basis.requires_grad_(True)
    expected = []
    for first, _, second, _, b_1, s_1, n_1, b_2, s_2, n_2 in nets:
        hidden = silu(layer_norm(basis @ first + b_1, (width,), s_1, n_1, 1e-5))
        expected.append(silu(layer_norm(hidden @ second + b_2, (width,), s_2, n_2, 1e-5)))
    counts = torch.tensor([n], dtype=torch.int32)
    weights = (torch.cat(flat), table(*places), counts)
    constants = {
        "BASIS": 16,
        "ROWS": rows,
        "WIDTH": width,
        "HIDDEN": 2 * width,
        "BE": 16,
        "W": 32,
        "PRECISION": "ieee",
    }
    hidden = torch.empty(n, 2 * width, **DOUBLE)
    launch(radial.radial_hidden, (1, 2), basis.detach(), *weights, hidden, **constants)
    assert_close(hidden, torch.cat(expected, dim=1).detach())
    given, d_lengths = random(n, 2 * width, seed=7), torch.empty(n, 2, **DOUBLE)
    arrays = (basis.detach(), slopes, *weights, given, d_lengths)
    launch(radial.radial_gradient, (1, 2), *arrays, NETS=2, **constants)
    by_net = [
        (gradients(y, g, basis)[0] * slopes).sum(1)
        for y, g in zip(expected, given.split(width, dim=1), strict=True)
    ]
    assert_close(d_lengths, torch.stack(by_net, dim=1))


def test_attention() -> None:
    """Three atoms, one of them without edges, two heads; some edges have almost no envelope."""
    first, n, heads, features, tiles = [0, 3, 3, 8], 8, 2, 8, 3
    results = random(n, 32).requires_grad_(True)
    envelope = torch.tensor([1, 0.5, 1e-25, 0.1, 1e-3, 0.9, 0.7, 1], **DOUBLE).requires_grad_(True)
    alpha = random(16, 16, seed=1)
    hidden = results[:, 16:]
    leaky = (hidden * (0.2 + 0.8 * torch.sigmoid(hidden))).view(n, heads, features)
    vectors = torch.stack([alpha[h * features : (h + 1) * features, h] for h in range(heads)])
    logits = (leaky * vectors).sum(2)
    powers = envelope.unsqueeze(1) * torch.exp(logits)
    share = torch.cat([part / part.sum(0) for part in powers.split([3, 5])])
    pointers = torch.tensor(first, dtype=torch.int32)
    shares, raised = torch.empty(n, heads, **DOUBLE), torch.empty(n, heads, **DOUBLE)
    constants = {
        "COLUMN": 16,
        "results_row": 32,
        "ALPHA": 16,
        "HEADS": heads,
        "FEATURES": features,
        "BE": 4,
        "BF": 8,
    }
    arrays = (results.detach(), alpha, envelope.detach(), pointers)
    launch(attention.attend, (3, heads), *arrays, shares, raised, **constants)
    assert_close(shares, share.detach())
    assert_close(raised * envelope.detach().unsqueeze(1), share.detach())
    parts = random(n, heads, tiles, seed=2)
    d_results, d_envelope = torch.zeros(n, 32, **DOUBLE), torch.zeros(n, 5, **DOUBLE)
    launch(
        attention.attend_gradient,
        (3, heads),
        parts,
        results.detach(),
        alpha,
        envelope.detach(),
        shares,
        raised,
        pointers,
        d_results,
        d_envelope,
        d_results_row=32,
        n_tiles=tiles,
        ENVELOPES=5,
        first_envelope=1,
        BT=4,
        **constants,
    )
    value = envelope.unsqueeze(1) * share
    by_results, by_envelope = gradients(value, parts.sum(2), results, envelope)
    assert_close(d_results, by_results)
    assert_close(d_envelope[:, 1:3].sum(1) * envelope.detach(), by_envelope * envelope.detach())


def test_turns() -> None:
    """Scalars and l = 1, 16 channels of each, from three atoms over four edges and back."""
    receivers, senders = torch.tensor([0, 0, 2, 2]), torch.tensor([1, 2, 0, 1])
    n, n_edges, c, heads = 3, 4, 16, 2
    rotation = torch.linalg.qr(random(n_edges, 3, 3)).Q
    frames = torch.cat([torch.ones(n_edges, 1, **DOUBLE), rotation.flatten(1)], dim=1)
    both, received = random(n, 128), random(n, 64, seed=1)
    columns = table((0, 0, 0, 0), (16, 32, 48, 0))
    tiles_of_both = table((0, 0, c, 0, 32, 16, 0, 0), (1, 0, c, 32, 32, 16, 16, 0))
    tiles = table((0, 0, c, 0, 16, 0, 0, 0), (1, 0, c, 16, 16, 0, 16, 0))
    counts = torch.tensor([n_edges], dtype=torch.int32)
    constants = {"FRAMES": 10, "BE": 8, "Q": 4, "BC": 16}

    def turned(x: Tensor) -> Tensor:
        scalars, vectors = x.view(n_edges, 4, c).split([1, 3], dim=1)
        return torch.cat([scalars, rotation @ vectors], dim=1).flatten(1)

    def turned_out(x: Tensor) -> Tensor:
        scalars, vectors = x.view(n_edges, 4, c).split([1, 3], dim=1)
        return torch.cat([scalars, rotation.mT @ vectors], dim=1).flatten(1)

    i, j = receivers.int(), senders.int()
    sources, targets = both.view(n, 4, 2, c).unbind(2)
    features = torch.empty(n_edges, 64, **DOUBLE)
    arrays = (both, frames, i, j, tiles_of_both, columns, counts, features)
    launch(turns.turn_in, (1, 2), *arrays, both_row=128, features_row=64, **constants)
    expected = turned(sources[senders] + targets[receivers])
    assert_close(features, expected)

    envelope, shares = random(n_edges), random(n_edges, heads, seed=3)
    order = torch.tensor([2, 0, 3, 1])
    first = torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    by_sender = torch.tensor([0, 1, 3, 4], dtype=torch.int32)
    of_atoms = (first, by_sender, order)
    out = torch.empty(n, 64, **DOUBLE)
    arrays = (features, frames, envelope, shares, *of_atoms, tiles, columns, out)
    rows = {"values_row": 64, "HEADS": heads}
    launch(turns.sum_turned_out, (n, 2, 1), *arrays, out_row=64, WEIGHTED=True, **rows, **constants)
    attention_ = (envelope.unsqueeze(1) * shares).repeat_interleave(c // heads, dim=1)
    weighted = (features.view(n_edges, 4, c) * attention_.unsqueeze(1)).flatten(1)
    assert_close(out, torch.zeros(n, 64, **DOUBLE).index_add(0, receivers, turned_out(weighted)))

    ends = torch.empty(n, 128, **DOUBLE)
    arrays = (features, frames, envelope, shares, *of_atoms, tiles_of_both, columns, ends)
    launch(
        turns.sum_turned_out, (n, 2, 2), *arrays, out_row=128, WEIGHTED=False, **rows, **constants
    )
    at_ends = [
        torch.zeros(n, 64, **DOUBLE).index_add(0, end, turned_out(features)).view(n, 4, c)
        for end in (senders, receivers)
    ]
    assert_close(ends, torch.stack(at_ends, dim=2).flatten(1))

    d_values, parts = torch.empty_like(features), torch.empty(n_edges, heads, 2, **DOUBLE)
    arrays = (received, features, frames, envelope, shares, i, tiles, columns, counts)
    launch(
        turns.send_gradient,
        (1, 2),
        *arrays,
        d_values,
        parts,
        received_row=64,
        values_row=64,
        HEADS=heads,
        n_tiles=2,
        **constants,
    )
    inside = turned(received[receivers]).view(n_edges, 4, c)
    assert_close(d_values, (inside * attention_.unsqueeze(1)).flatten(1))
    along = (inside * features.view(n_edges, 4, c)).sum(1).view(n_edges, heads, -1).sum(2)
    assert_close(parts.sum(2), along)


def test_edges_that_count() -> None:
    """Three of five, in their order: frames up to l = 3, radial basis, envelope."""
    vectors = random(5, 3)
    vectors[1] = torch.tensor([0, -1.3, 0])
    vectors[3] = torch.nan
    vectors[4] = torch.tensor([0, 0, 9.0])
    mask = torch.tensor([True, True, True, False, True])
    receivers, senders = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1, 0, 0, 0])
    cutoff = 4.0
    limits = torch.tensor([cutoff, 0.1], **DOUBLE)
    kept = torch.empty(5, dtype=torch.int32)
    launch(geometry.mark, (1,), vectors, mask, 5, limits, kept, SMOOTH=True, BE=8)
    assert kept.tolist() == [1, 1, 1, 0, 0]
    rank = torch.cumsum(kept, 0, dtype=torch.int32)
    basis_of = ExpNormalBasis(10, cutoff).double()
    i, j = torch.full((2, 5), 2, dtype=torch.int32).unbind(0)
    near, envelope = torch.empty(5, 3, **DOUBLE), torch.empty(5, **DOUBLE)
    along, basis = torch.empty(5, **DOUBLE), torch.empty(5, 16, **DOUBLE)
    slopes, frames = torch.empty(5, 16, **DOUBLE), torch.empty(5, 84, **DOUBLE)
    launch(
        geometry.collect,
        (1,),
        vectors,
        receivers,
        senders,
        kept,
        rank,
        5,
        limits,
        basis_of.centres,
        basis_of.widths,
        *(i, j, near, envelope, along, basis, slopes, frames),
        SMOOTH=True,
        BASIS=16,
        N_BASIS=10,
        FRAMES=84,
        BE=8,
    )
    edge_frames = EdgeFrames(3).double()
    for degree in (2, 3):
        raising = edge_frames.get_buffer(f"raise_{degree}")
        launch(
            geometry.raise_frames,
            (1,),
            raising,
            rank[-1:],
            frames,
            DEGREE=degree,
            ROW=raising.shape[1],
            FRAMES=84,
            BE=16,
            BN=64,
            BK=32,
            PRECISION="ieee",
        )
    assert (i.tolist(), j.tolist()) == ([0, 0, 1, 2, 2], [1, 1, 0, 2, 2])
    assert torch.equal(near[:3], vectors[:3])
    lengths = torch.linalg.vector_norm(vectors[:3], dim=1).requires_grad_(True)
    s = lengths / cutoff
    smooth, ones = 1 - 10 * s**3 + 15 * s**4 - 6 * s**5, torch.ones(3, **DOUBLE)
    assert_close(envelope[:3], smooth.detach())
    assert_close(along[:3], gradients(smooth, ones, lengths)[0])
    values = basis_of(lengths)
    assert_close(basis[:3, :10], values.detach())
    assert not basis[:3, 10:].any()
    for k in range(10):
        assert_close(slopes[:3, k], gradients(basis_of(lengths)[:, k], ones, lengths)[0])
    turned = edge_frames(vectors[:3] / lengths.detach().unsqueeze(1))
    assert_close(frames[:3], torch.cat([ones[:, None], *(f.flatten(1) for f in turned)], dim=1))


def test_repulsion() -> None:
    """Pairs from 0.3 Å to beyond its end; forces, energies and strain from the last kernels."""
    term = ZBLRepulsion(ZBLConfig(cutoff=2.0), (1, 8))
    n_pairs = 6
    lengths = torch.linspace(0.3, 1.6, n_pairs, **DOUBLE)
    direction = torch.tensor([0.48, 0.6, -0.64], **DOUBLE)
    half = (lengths[:, None] * direction).repeat_interleave(2, dim=0)
    half[1::2] *= -1
    vectors = half.clone().requires_grad_(True)
    n, ids = 2 * n_pairs, torch.arange(2 * n_pairs)
    i, j, species = ids, ids ^ 1, ids % 3 % 2
    graph = Graph(
        vectors=vectors,
        receivers=i,
        senders=j,
        edge_mask=torch.ones(n, dtype=torch.bool),
        pairs=ids[::2],
        species=species,
        system_idx=torch.zeros(n, dtype=torch.int64),
        charge=torch.zeros(1, **DOUBLE),
        spin=torch.ones(1, dtype=torch.int64),
    )
    energies = term(graph, AtomOutputs(torch.zeros(n)))
    (by_vectors,) = gradients(energies, torch.ones(n, **DOUBLE), vectors)
    charges, inverse_lengths, exponents, weights = numbers_of(term, COULOMB_CONSTANT)
    numbers = torch.stack([charges, inverse_lengths], dim=1).detach()
    limits = torch.tensor([2.0, SWITCH_OFF], **DOUBLE)
    zeros = {k: torch.zeros(n, k, **DOUBLE) for k in (1, 2, 10)}
    gradient, pair_energies = torch.empty(n, 3, **DOUBLE), torch.empty(n, **DOUBLE)
    launch(
        geometry.edge_gradient,
        (1,),
        half,
        zeros[10],
        *(zeros[1], zeros[1], zeros[1], zeros[2]),
        i.int(),
        j.int(),
        species,
        *(numbers, exponents.detach(), weights.detach(), limits),
        torch.tensor([n], dtype=torch.int32),
        gradient,
        pair_energies,
        FRAMES=10,
        ENVELOPES=1,
        LENGTHS=1,
        TURNS=1,
        REPELS=True,
        BE=16,
        BV=1,
        BL=1,
        BT=1,
    )
    first = torch.arange(n + 1, dtype=torch.int32)
    found = torch.ones(n, **DOUBLE)
    forces, strains = torch.empty(n, 3, **DOUBLE), torch.empty(n, 9, **DOUBLE)
    arrays = (half, gradient, pair_energies, first, first, j, found, forces, strains)
    launch(geometry.forces_of_atoms, (n,), *arrays, REPELS=True, BE=4)
    assert_close(found, energies.detach() + 1)
    expected = by_vectors - by_vectors[j]
    assert_close(forces, expected)
    energy, strain = torch.empty(2, **DOUBLE), torch.empty(2, 9, **DOUBLE)
    of_systems = torch.tensor([0, 4, n], dtype=torch.int32)
    launch(geometry.sums_of_systems, (2,), found, strains, of_systems, energy, strain, BA=4)
    assert_close(energy, torch.stack([found[:4].sum(), found[4:].sum()]))
    outer = half.unsqueeze(2) * by_vectors.unsqueeze(1)
    expected = torch.stack([outer[:4].sum(0), outer[4:].sum(0)])
    assert_close(strain.view(2, 3, 3), (expected + expected.mT) / 2)
