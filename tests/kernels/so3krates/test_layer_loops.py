"""Loops of one layer, forward and reverse, against the modules in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from contract import ELEMENTS, build_graph, randomise, triclinic
from numpy.typing import NDArray
from torch import Tensor

pytest.importorskip("numba")

from attncalc.kernels.so3krates import atom_loops, geometry_loops, pair_loops
from attncalc.kernels.so3krates import engine as engine_module
from attncalc.kernels.so3krates.engine import Engine
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential
from attncalc.system import System

pytestmark = pytest.mark.no_cover

TOLERANCE = 5e-6  # of float32 and of the tables, relative to the largest
LAYER = 1
CONFIG = So3kratesConfig(4.0, 8.0, num_features=64, num_heads=2, degrees=(1, 2), head_features=16)
# no filters are kept: the reverse pass makes them again
NO_FILTERS = pair_loops.Kept(*(np.zeros((0, n), np.float32) for n in (128, 32, 32)))


class Bench:
    """A network in float64, its engine, a crystal of 12 atoms, random inputs of a layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        network = So3krates(CONFIG, len(ELEMENTS))
        randomise(network)
        plain = Potential(network, ELEMENTS, scale=[1.0, 2.0, 3.0, 4.0])
        self.engine = Engine(network, 0.5)
        self.exact = copy.deepcopy(network).double().requires_grad_(False)
        self.layer = self.exact.layers[LAYER]
        self.graph = build_graph(plain, System.from_ase(triclinic() * (2, 2, 1)))
        self.n = self.graph.n_atoms
        with pytest.MonkeyPatch.context() as patch:  # as a tuple that Python can read
            patch.setattr(engine_module, "hold", lambda parts: parts)
            n_pairs = len(self.graph.pairs)
            ((*_, self.pairs, self.space),) = self.engine._workspaces(1, 0, self.n, self.n, n_pairs)
        self.n_pairs = geometry_loops.collect(
            None,
            *(
                tensor.numpy()
                for tensor in (
                    self.graph.vectors,
                    self.graph.receivers,
                    self.graph.senders,
                    self.graph.edge_mask,
                    self.graph.pairs,
                )
            ),
            4.0,
            0.5,
            self.engine.constants.envelope,
            self.engine.constants.degrees,
            self.engine.constants.norms,
            self.pairs,
            self.space.which,
            self.space.lengths,
            self.space.directions,
        )
        constants = self.engine.constants
        self.orders = pair_loops.Orders(constants.masks, constants.mirrored)
        w = self.engine.weights
        self.filters = pair_loops.Filters(
            w.table[LAYER],
            w.first[LAYER],
            w.first_bias[LAYER],
            w.second[LAYER],
            w.second_transposed[LAYER],
        )
        generator = torch.Generator().manual_seed(1)

        def random(width: int) -> Tensor:
            return torch.randn(self.n, width, generator=generator, dtype=torch.float64)

        self.x, self.ev = random(64), random(8)
        self.d_x, self.d_ev = random(64), random(8)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def single(tensor: Tensor) -> NDArray[np.float32]:
    """As the loops want it: float32, the Euclidean variables filled up to 16."""
    array = tensor.numpy().astype(np.float32)
    return np.pad(array, ((0, 0), (0, -array.shape[1] % 16)))


def assert_near(actual: NDArray[np.float32], expected: Tensor, what: str) -> None:
    width = expected.shape[-1]
    error = np.abs(actual[..., :width] - expected.numpy()).max()
    assert error <= TOLERANCE * expected.abs().amax(), what
    assert not actual[..., width:].any(), f"padding of {what}"


def test_messages(bench: Bench) -> None:
    x, ev = bench.x, bench.ev
    expected = bench.layer.attention(x, ev, bench.exact.geometry(bench.graph))
    projected = np.full((bench.n, 5 * 64), np.float32(9))
    weights = bench.engine.weights
    atom_loops.project(
        bench.n, single(x), weights.features[LAYER], weights.geometry[LAYER], projected
    )
    features, received = single(x), single(ev)
    pair_loops.messages(
        bench.engine.shape,
        bench.n_pairs,
        bench.pairs,
        bench.orders,
        bench.filters,
        single(ev),
        False,
        NO_FILTERS,
        projected,
        features,
        received,
    )
    assert_near(features, x + expected[0], "features")
    assert_near(received, ev + expected[1], "Euclidean variables")


def test_gradient_of_messages(bench: Bench) -> None:
    x, ev = bench.x.clone().requires_grad_(), bench.ev.clone().requires_grad_()
    vectors = bench.graph.vectors.clone().requires_grad_()
    geometry = bench.exact.geometry(bench.graph.with_vectors(vectors))
    sent = bench.layer.attention(x, ev, geometry)
    total = (sent[0] * bench.d_x).sum() + (sent[1] * bench.d_ev).sum()
    expected = torch.autograd.grad(total, [x, ev, vectors])

    weights, space = bench.engine.weights, bench.space
    projected = np.zeros((bench.n, 5 * 64), np.float32)
    atom_loops.project(
        bench.n, single(bench.x), weights.features[LAYER], weights.geometry[LAYER], projected
    )
    d_projected, d_ev = np.zeros_like(projected), single(torch.zeros_like(bench.ev))
    space.d_spherical[:], space.d_lengths[:] = 0, 0
    n_intervals = bench.engine.constants.envelope.shape[0]
    pair_loops.messages_gradient(
        bench.engine.shape,
        bench.n_pairs,
        bench.pairs,
        np.float32(n_intervals / 3.5),
        bench.orders,
        bench.filters,
        single(bench.ev),
        False,
        NO_FILTERS,
        projected,
        single(bench.d_x),
        single(bench.d_ev),
        d_projected,
        d_ev,
        space.d_spherical,
        space.d_lengths,
    )
    d_x = np.zeros((bench.n, 64), np.float32)
    atom_loops.project_gradient(
        bench.n,
        d_projected,
        weights.features_transposed[LAYER],
        weights.geometry_transposed[LAYER],
        d_x,
    )
    assert_near(d_x, expected[0], "features")
    assert_near(d_ev, expected[1], "Euclidean variables")
    d_vectors = np.zeros((bench.graph.n_edges, 3))
    constants = bench.engine.constants
    geometry_loops.gradient_by_vectors(
        bench.n_pairs,
        space.which,
        space.lengths,
        space.directions,
        constants.degrees,
        constants.norms,
        space.d_lengths,
        space.d_spherical,
        d_vectors,
    )
    assert_near(d_vectors, expected[2], "vectors")


def test_atoms_of_a_layer(bench: Bench) -> None:
    layer, engine, space, n = bench.layer, bench.engine, bench.space, bench.n
    x, ev = bench.x.clone().requires_grad_(), bench.ev.clone().requires_grad_()
    refined = layer.mlp_after_attention(layer.norm_after_attention(x))
    d_features, d_variables = layer.exchange(refined, ev)
    after, ev_after = layer.norm_after_exchange(refined + d_features), ev + d_variables
    total = (after * bench.d_x).sum() + (ev_after * bench.d_ev).sum()
    expected = torch.autograd.grad(total, [x, ev])

    ours, variables = single(bench.x), single(bench.ev)
    room = [np.zeros((n, 64), np.float32) for _ in range(2)]
    wide = [np.full((n, 80), np.float32(9)) for _ in range(2)]
    atom_loops.refine(n, LAYER, engine.weights, space, ours, room[0])
    assert_near(ours, refined.detach(), "refined features")
    degrees = engine.constants.degrees
    atom_loops.exchange(n, LAYER, engine.weights, space, degrees, ours, variables, *wide)
    assert_near(ours, after.detach(), "features")
    assert_near(variables, ev_after.detach(), "Euclidean variables")
    d_x, d_ev = single(bench.d_x), single(bench.d_ev)
    atom_loops.exchange_gradient(n, LAYER, engine.weights, space, degrees, d_x, d_ev, *wide)
    atom_loops.refine_gradient(n, LAYER, engine.weights, space, d_x, *room)
    assert_near(d_x, expected[0], "gradient by features")
    assert_near(d_ev, expected[1], "gradient by Euclidean variables")


def test_energy_head(bench: Bench) -> None:
    factor = bench.d_x[:, 0]
    x = bench.x.clone().requires_grad_()
    energies = bench.exact.head(x) - bench.exact.head.energy.bias  # the engine adds it elsewhere
    (expected,) = torch.autograd.grad((factor * energies).sum(), x)
    ours, d_x = np.ones((1, bench.n)), np.full((bench.n, 64), np.float32(9))
    w, hidden = bench.engine.weights, np.zeros((1, bench.n, 16), np.float32)
    species = bench.graph.species.numpy()
    atom_loops.read_out(bench.n, w, single(bench.x), species, hidden, ours)
    assert_near(ours[0], 1 + energies.detach(), "energies")
    atom_loops.read_out_gradient(bench.n, w, hidden, factor.numpy()[None], d_x)
    assert_near(d_x, expected, "gradient")


def test_variables_started_from_neighbours(bench: Bench) -> None:
    n, orders = bench.n, bench.engine.constants.masks.shape[1]
    vectors = bench.graph.vectors.clone().requires_grad_()
    geometry = bench.exact.geometry(bench.graph.with_vectors(vectors))
    expected = torch.zeros(n, 8, dtype=torch.float64)
    for pairs in geometry.directions:
        messages = geometry.envelope * pairs.harmonics
        expected = expected.index_add(0, pairs.receivers, messages / 3)
    (gradient,) = torch.autograd.grad((expected * bench.d_ev).sum(), vectors)

    parity, space = bench.engine.constants.parity, bench.space
    ours = np.zeros((n, orders), np.float32)
    third = np.float32(1 / 3)
    geometry_loops.start_ev(bench.n_pairs, bench.pairs, parity, third, ours)
    assert_near(ours, expected.detach(), "Euclidean variables")
    space.d_spherical[:], space.d_lengths[:] = 0, 0
    geometry_loops.start_ev_gradient(
        bench.n_pairs,
        bench.pairs,
        parity,
        third,
        single(bench.d_ev),
        space.d_spherical,
        space.d_lengths,
    )
    # along the pair: the slope of its length
    lengths = torch.linalg.vector_norm(bench.graph.vectors, dim=1)
    along = (gradient * bench.graph.vectors).sum(1) / lengths
    reversed_too = torch.zeros(len(along), dtype=torch.float64)
    index = {
        (i, j, tuple(v)): e
        for e, (i, j, v) in enumerate(
            zip(
                bench.graph.receivers.tolist(),
                bench.graph.senders.tolist(),
                bench.graph.vectors.numpy().round(6).tolist(),
                strict=True,
            )
        )
    }
    for (i, j, v), e in index.items():
        reversed_too[e] = along[e] + along[index[j, i, tuple(-c + 0.0 for c in v)]]
    pairs = torch.from_numpy(bench.space.which[: bench.n_pairs])
    assert_near(space.d_lengths[None, : bench.n_pairs], reversed_too[pairs][None], "slopes")
