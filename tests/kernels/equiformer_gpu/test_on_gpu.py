"""The GPU's engine of Equiformer on a GPU: right numbers, the same each time, in a CUDA graph."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, build_graph, ethanol, randomise, slab, triclinic

pytest.importorskip("triton")

from attncalc.fast import DeviceStep, lower
from attncalc.neighbors import VerletList
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, Result, evaluate
from attncalc.system import System

TOLERANCE = 2e-5  # relative to the largest value
PUBLISHED = {"cutoff_function": "none", "paths": "all"}
OPTIONS = {
    "ours": {},
    "published": PUBLISHED,
    "lmax 3": {"channels": (128, 64, 64, 32), "num_layers": 2, **PUBLISHED},
    "linear": {"attention": "linear", "num_layers": 2},
    "sixteens": {"channels": (48, 16), "num_layers": 2},
}
pytestmark = pytest.mark.gpu


def potential(**options) -> Potential:
    torch.manual_seed(0)
    config = EquiformerConfig(**{"cutoff": 5.0, "avg_num_neighbors": 15.58, **options})
    network = Equiformer(config, len(ELEMENTS))
    randomise(network, amount=0.02)
    term = ZBLRepulsion(ZBLConfig(cutoff=5.0), ELEMENTS)
    plain = Potential(network, ELEMENTS, pair_terms=[term])
    return plain.to("cuda").requires_grad_(False)


def step_of(plain: Potential) -> DeviceStep:
    engine = lower(plain).engine
    assert isinstance(engine, DeviceStep)
    return engine


def assert_equal(ours: Result, theirs: Result, tolerance: float = 0.0) -> None:
    for name in ("energy", "energies", "forces", "strain_gradient"):
        actual, expected = getattr(ours, name), getattr(theirs, name)
        error = (actual - expected).abs().amax()
        assert error <= tolerance * expected.abs().amax(), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_as_the_plain_network_in_float64(options: dict) -> None:
    plain = potential(**options)
    exact = copy.deepcopy(plain)
    exact.compute_in(torch.float64)
    step = step_of(plain)
    for atoms in (ethanol(), [ethanol(), triclinic(), Atoms("O"), slab()], triclinic() * (3, 3, 3)):
        graph = build_graph(plain, System.from_ase(atoms).to("cuda"), skin=1.0)
        result = step(graph)
        assert result is not None
        assert_equal(result, evaluate(exact, graph), TOLERANCE)
        again = step(graph)
        assert again is not None
        assert_equal(again, result)


def test_a_replayed_graph_gives_for_other_positions_what_a_call_gives() -> None:
    plain = potential()
    step = step_of(plain)
    atoms, moved = ethanol(), ethanol()
    moved.rattle(0.05, seed=1)
    verlet = VerletList.create(cutoff=plain.cutoff, skin=1.0, species=plain.species)
    verlet, graph = verlet.update(System.from_ase(atoms).to("cuda"))
    verlet, other = verlet.update(System.from_ase(moved).to("cuda"))
    assert verlet.n_rebuilds == 1
    expected = step(other)
    assert expected is not None
    static = replace(graph, vectors=graph.vectors.clone(), edge_mask=graph.edge_mask.clone())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step.submit(static)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = step.submit(static)
    static.vectors.copy_(other.vectors)
    static.edge_mask.copy_(other.edge_mask)
    captured.replay()
    torch.cuda.synchronize()
    assert_equal(result, expected)
