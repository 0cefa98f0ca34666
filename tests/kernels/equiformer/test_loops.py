"""Every kernel against the plain function in float64, and its reverse against autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract import randomise
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import layer_norm, silu

pytest.importorskip("numba")

from attncalc.basis.edge_frames import EdgeFrames
from attncalc.kernels.equiformer import atom_loops, degree_loops, edge_loops, message_loops
from attncalc.kernels.equiformer import geometry_loops as geometry
from attncalc.kernels.equiformer.packing import layout_of, plan_of, weights_of
from attncalc.kernels.simd import row_loops
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.equiformer_attention import attention_weights
from attncalc.nn.equiformer_edges import EdgeData
from attncalc.nn.equiformer_layers import LAYER_NORM_EPSILON, flat, unflat
from attncalc.nn.equiformer_messages import by_degree, mlp_logits
from attncalc.nn.equiformer_radial import N_HIDDEN, radial_hidden

N = 7  # rows
CHANNELS = (48, 32, 16)
WIDTH = sum((2 * l + 1) * width for l, width in enumerate(CHANNELS))
TOLERANCE = 4e-6  # of float32, relative to the largest number


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def exact(array: NDArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def assert_same(actual: NDArray, expected: Tensor) -> None:
    theirs = expected.detach().numpy()
    assert actual.shape == theirs.shape
    assert np.abs(actual - theirs).max() <= TOLERANCE * max(1.0, np.abs(theirs).max())


def gradients(
    f: Callable[..., Tensor], inputs: Sequence[NDArray], given: NDArray
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Result in float64, and the gradient of its product with `given` by all inputs."""
    leaves = [exact(x) for x in inputs]
    result = f(*leaves)
    return result, torch.autograd.grad((result * exact(given)).sum(), leaves)


@pytest.fixture(scope="module", params=["all", "natural"])
def packed(request) -> SimpleNamespace:
    """A network in float64 and what the loops read of it."""
    config = EquiformerConfig(
        4.0,
        10.0,
        channels=CHANNELS,
        num_layers=2,
        num_heads=2,
        attention_features=16,
        num_basis=10,
        radial_features=32,
        head_features=32,
        paths=request.param,
    )
    torch.manual_seed(0)
    network = Equiformer(config, 4).double()
    randomise(network)
    network.requires_grad_(False)
    layout = layout_of(network)
    plan = plan_of(network, layout)
    return SimpleNamespace(
        network=network, layout=layout, plan=plan, weights=weights_of(network, plan)
    )


def directions() -> Tensor:
    """Among them both poles."""
    vectors = torch.tensor(random(N, 3), dtype=torch.float64)
    vectors[0], vectors[1] = torch.eye(3)[1], -torch.eye(3)[1]
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)


def frames_of(unit: Tensor, packed: SimpleNamespace) -> NDArray[np.float32]:
    """By the loops; vectors are 1.5 Å long."""
    edges = SimpleNamespace(
        lengths=np.full(N, 1.5), vectors=1.5 * unit.numpy(), frames=zeros(N, 16 + 32)
    )
    edges = geometry.Edges(
        **{name: getattr(edges, name, np.zeros((0, 0))) for name in geometry.Edges._fields}
    )
    weights = packed.weights
    geometry.frames_of(0, N, packed.layout, weights, edges, zeros(N, 81), zeros(N, 32))
    return edges.frames


def as_edges(features: Sequence[Tensor]) -> Tensor:
    """Features in edge frames, per degree [n, 2l+1, channels] -> rows as the loops have them."""
    rows = [features[l][:, 0] for l in range(len(features))]
    for m in range(1, len(features)):
        for q in (2 * m - 1, 2 * m):
            rows += [features[l][:, q] for l in range(m, len(features))]
    return torch.cat(rows, dim=1)


def from_edges(rows: Tensor) -> list[Tensor]:
    """The inverse of `as_edges`."""
    columns = as_edges(unflat(torch.arange(WIDTH).unsqueeze(0), CHANNELS))[0]
    return unflat(torch.zeros_like(rows).index_copy(1, columns, rows), CHANNELS)


def test_norms() -> None:
    x, given = random(N, 96), random(N, 96, seed=1)
    out, inverse = zeros(N, 96), zeros(N, 2)
    degree_loops.layer_norm(N, x, 48, out, inverse, 0)
    degree_loops.degree_norm(N, x, 48, 96, out, inverse, 1)

    def plain(x: Tensor) -> Tensor:
        scalars, others = x.split(48, dim=1)
        mean_square = (others * others).mean(1, keepdim=True)
        scalars = layer_norm(scalars, (48,), eps=LAYER_NORM_EPSILON)
        return torch.cat([scalars, others / (mean_square + LAYER_NORM_EPSILON).sqrt()], dim=1)

    result, (expected,) = gradients(plain, [x], given)
    assert_same(out, result)
    degree_loops.layer_norm_gradient(N, given, 48, out, inverse, 0)
    degree_loops.degree_norm_gradient(N, given, 48, 96, out, inverse, 1)
    assert_same(given, expected)


def test_silu() -> None:
    x, scale, bias = random(N, 32), random(1, 32, seed=1), random(1, 32, seed=2)
    given, too = random(N, 32, seed=3), random(N, 32, seed=3)
    out, scaled = zeros(N, 32), zeros(N, 32)
    result, (expected,) = gradients(silu, [x], given)
    row_loops.silu(N, x, 32, out)
    assert_same(out, result)
    row_loops.times_silu_slope(N, x, 32, given)
    assert_same(given, expected)
    result, (expected, *_) = gradients(lambda x, s, b: silu(x * s + b), [x, scale, bias], too)
    degree_loops.scale_and_silu(N, x, scale, bias, scaled)
    assert_same(scaled, result)
    degree_loops.scale_and_silu_gradient(N, x, scale, bias, too)
    assert_same(too, expected)


def test_frames(packed: SimpleNamespace) -> None:
    unit = directions()
    frames = frames_of(unit, packed)
    for l, expected in enumerate(EdgeFrames(2).double()(unit), start=1):
        at = packed.layout.frame[l]
        assert_same(frames[:, at : at + (2 * l + 1) ** 2], expected.flatten(1))


def test_turning_features_and_frames(packed: SimpleNamespace) -> None:
    """In, out, and how both change with the direction of the edge."""
    layout, unit, module = packed.layout, directions(), EdgeFrames(2).double()
    frames = frames_of(unit, packed)
    x, given = random(N, WIDTH), random(N, WIDTH, seed=1)
    inside, outside = zeros(N, WIDTH), zeros(N, WIDTH)
    unit.requires_grad_()

    def turned(x: Tensor, back: bool) -> Tensor:
        edges = EdgeData(torch.arange(N), torch.ones(N) > 0, unit, unit, module(unit))
        if back:
            return flat(edges.turned_out(from_edges(x)))
        return as_edges(edges.turned_in(unflat(x, CHANNELS)))

    for e in range(N):
        edge_loops.turn_in(layout, 3, frames, e, x, e, inside, e)
        edge_loops.add_turned_out(layout, 3, frames, e, x, e, outside, e)
    into, out = turned(exact(x), False), turned(exact(x), True)
    assert_same(inside, into)
    assert_same(outside, out)
    # a turn about the edge itself is left to the frames: what comes out must not depend on it,
    # so the product of both is compared, in which it cancels
    mixed = random(N, WIDTH, seed=2)

    def both() -> Tensor:
        scaled = turned(exact(x), False) * _per_m(packed, exact(mixed))
        return turned(scaled, True)

    (by_unit,) = torch.autograd.grad((both() * exact(given)).sum(), unit)
    across = by_unit - (by_unit * unit).sum(1, keepdim=True) * unit
    d_out, values = zeros(N, WIDTH), inside * _per_m(packed, exact(mixed)).detach().numpy()
    values = values.astype(np.float32)
    d_in, actual = zeros(N, WIDTH), np.zeros((N, 3))
    for e in range(N):
        edge_loops.turn_in(layout, 3, frames, e, given, e, d_out, e)
    d_in[:] = d_out * _per_m(packed, exact(mixed)).detach().numpy()
    for e in range(N):
        x_in, z_in = edge_loops.turning(layout, 3, d_in, e, inside, e)
        x_out, z_out = edge_loops.turning(layout, 3, d_out, e, values, e)
        axes = frames[e, layout.frame[1] : layout.frame[1] + 9].reshape(3, 3)
        actual[e] = (x_in - x_out) * axes[2] + (z_in - z_out) * axes[1]
    assert_same(actual, across)


def _per_m(packed: SimpleNamespace, factors: Tensor) -> Tensor:
    """Of `factors` as many as a map may have that knows no direction: the same for m and -m."""
    found = factors.clone()
    for l, width in enumerate(CHANNELS):
        for m in range(1, l + 1):
            plus, minus = packed.layout.edge[l, 2 * m - 1], packed.layout.edge[l, 2 * m]
            found[:, minus : minus + width] = factors[:, plus : plus + width]
    return found


@pytest.mark.parametrize("length", [0.6, 1.7, 3.99, 4.2])
def test_radial_basis(packed: SimpleNamespace, length: float) -> None:
    basis = packed.network.basis
    radial = geometry.Radial(4.0, 0.5, True, basis.centres.numpy(), basis.widths.numpy())
    values, slopes = zeros(1, 16), zeros(1, 16)
    geometry.radial_basis(length, radial, values, slopes, 0)
    d = torch.tensor([length], dtype=torch.float64)
    expected, slope = torch.func.jvp(basis, (d,), (torch.ones_like(d),))
    assert_same(values[:, :10], expected)
    assert_same(slopes[:, :10], slope)
    assert not values[:, 10:].any()


def test_radial_networks(packed: SimpleNamespace) -> None:
    workspace = SimpleNamespace(
        radial=zeros(2, N, 32),
        radial_normal=zeros(2, N, 32),
        radial_inverse=zeros(N, 2),
        d_radial=zeros(2, N, 32),
    )
    workspace = _workspace(workspace)
    weights = packed.network.blocks[0].attention.messages()
    last, offset = weights[N_HIDDEN : N_HIDDEN + 2]
    basis = zeros(N, 16)
    basis[:, :10] = random(N, 10)
    given, out, d_basis = random(N, len(offset), seed=1), zeros(N, len(offset)), zeros(N, 16)
    result, (expected,) = gradients(
        lambda basis: radial_hidden(basis, weights[:N_HIDDEN]) @ last + offset,
        [basis[:, :10]],
        given,
    )
    edge_loops.radial_weights(N, packed.weights, 1, basis, workspace, out)
    assert_same(out, result)
    edge_loops.radial_weights_gradient(N, packed.weights, 1, given, workspace, d_basis)
    assert_same(d_basis[:, :10], expected)


def _workspace(given: SimpleNamespace) -> message_loops.EdgeWorkspace:
    fields = message_loops.EdgeWorkspace._fields
    threes = ("radial", "radial_normal", "d_radial")
    absent = {name: zeros(0, 0, 0) if name in threes else zeros(0, 0) for name in fields}
    return message_loops.EdgeWorkspace(**{**absent, **vars(given)})


@pytest.mark.parametrize("last", [0, 1])
def test_weighted_product(packed: SimpleNamespace, last: int) -> None:
    """With the maps behind it; its results stand where the gate and the logits look for them."""
    network = packed.network
    messages = (network.last_block if last else network.blocks[0]).attention.messages
    product = messages.product
    weights = messages()[N_HIDDEN + 2 :]
    maps, bias = weights[: len(product.outputs)], weights[len(product.outputs)]
    n_results = packed.weights.product_bias[last, 3]
    x, w = random(N, WIDTH), random(N, len(product.alive), seed=1)
    given = random(N, n_results, seed=2)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        # the weights themselves instead of a radial network
        one = torch.eye(w.shape[1], dtype=torch.float64)
        y = product(from_edges(x), w, (one, torch.zeros_like(one[0]), *maps))
        scalars, others = (y[0, 0] + bias).split([CHANNELS[0], len(bias) - CHANNELS[0]], dim=2)
        rows = x.new_zeros(N, n_results)
        for (c, m), value in y.items():
            for sign in range(value.shape[1]):
                value_c = scalars[:, 0] if c == 0 else value[:, sign]
                at = packed.layout.edge[c, max(0, 2 * m - 1) + sign]
                rows = rows.index_copy(1, torch.arange(at, at + CHANNELS[c]), value_c)
        return rows.index_copy(1, torch.arange(WIDTH, n_results), others[:, 0])

    read = (plain(exact(x), exact(w)) != 0).any(0).numpy()  # the last block leaves some out
    given *= read
    result, expected = gradients(plain, [x, w], given)
    workspace, out = zeros(N, packed.plan.units[:, :, 2].max()), zeros(N, n_results)
    d_x, d_w = zeros(N, WIDTH), zeros(N, len(product.alive))
    edge_loops.multiply(N, packed.plan, last, packed.weights, last, x, w, workspace, out)
    assert_same(out, result)
    edge_loops.multiply_gradient(
        N, packed.plan, last, packed.weights, last, x, w, given, workspace, d_x, d_w
    )
    assert_same(d_x, expected[0])
    assert_same(d_w, expected[1])


def test_gate_and_second_product(packed: SimpleNamespace) -> None:
    messages = packed.network.blocks[0].attention.messages
    second = messages()[-4:-1]
    n_gates = sum(CHANNELS[1:])
    x, given = random(N, WIDTH + n_gates), random(N, WIDTH, seed=1)

    def plain(x: Tensor) -> Tensor:
        features, gates = x.split([WIDTH, n_gates], dim=1)
        features = from_edges(features)
        sigmoids = [features[0].sigmoid(), *gates.unsqueeze(1).sigmoid().split(CHANNELS[1:], dim=2)]
        gated = [f * s for f, s in zip(features, sigmoids, strict=True)]
        by_m = [gated[0]]
        by_m = [
            torch.cat([g[:, max(0, 2 * m - 1) : 2 * m + 1] for g in gated[m:]], dim=2)
            for m in range(3)
        ]
        return as_edges(by_degree(messages.second(by_m, second), CHANNELS))

    result, (expected,) = gradients(plain, [x], given)
    layout, flat_weights = packed.layout, packed.weights.flat
    gated, out, d_gated, d_x = (zeros(N, k) for k in (WIDTH, WIDTH, WIDTH, WIDTH + n_gates))
    places = packed.weights.second[0]
    message_loops.gate(N, layout, 3, x, gated)
    message_loops.multiply_by_m(N, layout, 3, flat_weights, places, gated, out)
    assert_same(out, result)
    message_loops.multiply_by_m_gradient(N, layout, 3, flat_weights, places, given, d_gated)
    message_loops.gate_gradient(N, layout, 3, x, d_gated, d_x)
    assert_same(d_x, expected)


def test_logits_by_the_hidden_layer() -> None:
    x, vector = random(N, 16 + 64), random(4, 16, seed=1)
    alpha = zeros(64, 16)
    for head in range(4):
        alpha[16 * head : 16 * head + 16, head] = vector[head]
    given = zeros(N, 16)
    given[:, :4] = random(N, 4, seed=2)
    result, (expected,) = gradients(
        lambda x: mlp_logits(x[:, None, 16:], torch.tensor(vector).double()), [x], given[:, :4]
    )
    leaky, logits, d_x = zeros(N, 64), zeros(N, 16), zeros(N, 80)
    message_loops.leaky_logits(N, x, 16, alpha, leaky, logits)
    assert_same(logits[:, :4], result)
    assert not logits[:, 4:].any()
    alpha_transposed = np.ascontiguousarray(alpha.T)
    message_loops.leaky_logits_gradient(N, x, 16, alpha_transposed, given, leaky, d_x)
    assert_same(d_x, expected)


def test_logits_by_scalar_products(packed: SimpleNamespace) -> None:
    keys, queries = random(N, 16 + WIDTH), random(N, WIDTH, seed=1)
    given = zeros(N, 16)
    given[:, :2] = random(N, 2, seed=2)

    def plain(keys: Tensor, queries: Tensor) -> Tensor:
        pairs = zip(from_edges(keys[:, 16:]), from_edges(queries), strict=True)
        return sum((k * q).unflatten(2, (2, -1)).sum((1, 3)) for k, q in pairs)

    result, expected = gradients(plain, [keys, queries], given[:, :2])
    start, _, rows, columns = packed.weights.heads[0]
    heads = packed.weights.flat[start : start + rows * columns].reshape(rows, columns)
    across = np.ascontiguousarray(heads.T)
    logits, workspace = zeros(N, 16), zeros(N, columns)
    d_keys, d_queries = zeros(N, 16 + WIDTH), zeros(N, WIDTH)
    message_loops.dot_logits(N, packed.layout, keys, 16, queries, across, workspace, logits)
    assert_same(logits[:, :2], result)
    message_loops.dot_logits_gradient(
        N, packed.layout, keys, 16, queries, heads, given, workspace, d_keys, d_queries
    )
    assert_same(d_keys, expected[0])
    assert_same(d_queries, expected[1])


@pytest.mark.parametrize("faded", [1.0, 1e-3, 1e-18])
def test_attention(faded: float) -> None:
    """Three receivers, the second without neighbours; one edge fades out."""
    receivers = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    envelope = np.random.default_rng(3).uniform(0.1, 1, N)
    envelope[4] = faded
    logits, given = zeros(N, 16), zeros(N, 16)
    logits[:, :2], given[:, :2] = 3 * random(N, 2), random(N, 2, seed=1)

    def plain(logits: Tensor, envelope: Tensor) -> Tensor:
        edges = EdgeData(receivers, torch.ones(N) > 0, envelope, envelope, [])
        return attention_weights(logits, edges, 3)

    result, expected = gradients(plain, [logits[:, :2], envelope], given[:, :2])
    edges = geometry.Edges(
        **{name: np.zeros((0, 0)) for name in geometry.Edges._fields}
        | {"first": np.array([0, 3, 3, 7]), "envelope": envelope, "d_envelope": np.zeros(N)}
    )
    shares = message_loops.Shares(np.zeros((N, 2)), np.zeros((N, 2)))
    message_loops.attend(0, 3, 0, edges, logits, shares)
    assert_same(envelope[:, None] * shares.shares, result)
    message_loops.attend_gradient(0, 3, 0, edges, shares, given, given)
    assert_same(given[:, :2], expected[0])
    assert_same(edges.d_envelope, expected[1])


def test_feed_forward(packed: SimpleNamespace) -> None:
    """From what the norm, whose scales and bias are part of the weights, gives."""
    block, layout, weights = packed.network.blocks[0], packed.layout, packed.weights
    x, given = random(N, WIDTH), random(N, WIDTH, seed=1)
    normal, inverse = zeros(N, WIDTH), zeros(N, 3)
    n_wide = 3 * (WIDTH + sum(CHANNELS[1:]))
    wide, gated, out, d_wide, d_gated, d_normal, d_x = (
        zeros(N, k) for k in (n_wide, n_wide, WIDTH, n_wide, n_wide, WIDTH, WIDTH)
    )

    def plain(x: Tensor) -> Tensor:
        return flat(block.feed_forward(block.norm_2(unflat(x, CHANNELS))))

    result, (expected,) = gradients(plain, [x], given)
    atom_loops.normalise(N, layout, 3, x, normal, inverse)
    atom_loops.feed_forward(N, layout, weights, 0, normal, wide, gated, out)
    assert_same(out, result)
    atom_loops.feed_forward_gradient(N, layout, weights, 0, wide, given, d_gated, d_wide, d_normal)
    atom_loops.normalise_gradient(N, layout, 3, d_normal, normal, inverse, d_x)
    assert_same(d_x, expected)


def test_head(packed: SimpleNamespace) -> None:
    """Of the last block's scalars, and the energy."""
    network = packed.network
    x, species = random(N, WIDTH), np.arange(N) % 4
    scale = np.array([1.0, 2.0, 0.5, 3.0])
    rows = {"sum", "normal", "hidden"}
    workspace = atom_loops.AtomWorkspace(
        **{
            name: zeros(N, 32) if name in rows else zeros(N, 600)
            for name in atom_loops.AtomWorkspace._fields
        }
    )
    workspace = workspace._replace(x=x, d_x=zeros(N, WIDTH))

    def plain(x: Tensor) -> Tensor:
        scalars = x[:, None, : CHANNELS[0]]
        block = network.last_block
        (shortcut,), (normed,) = block.shortcut([scalars]), block.norm_2([scalars])
        (hidden,) = network.norm([shortcut + block.feed_forward.scalars(normed)])
        return network.head(hidden) - network.energy.scalar_bias

    d_energies = scale[species]
    result, (expected,) = gradients(plain, [x], d_energies)
    energies, normal, inverse = np.zeros(N), zeros(N, WIDTH), zeros(N, 3)
    given = N, packed.layout, packed.weights, 1, normal, inverse, workspace
    atom_loops.read_out(*given, energies)
    atom_loops.read_out_gradient(*given, d_energies)
    assert_same(energies, result)
    assert_same(workspace.d_x, expected)
