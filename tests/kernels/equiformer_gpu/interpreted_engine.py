"""The GPU's engine in Triton's interpreter: it equals the plain network in float64.

Run by test_interpreted.py, in a process of its own.
"""

from __future__ import annotations

import copy

import interpreting  # noqa: F401  (before any kernel)
import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, build_graph, randomise

from attncalc.fast import DeviceStep, _with_engine_for
from attncalc.graph import Graph
from attncalc.kernels.equiformer_gpu.engine import Engine, can_run
from attncalc.kernels.equiformer_gpu.room import PROGRAMS, Programs, Tile
from attncalc.kernels.gpu.found import Found
from attncalc.neighbors import fresh_graph
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, Result, evaluate
from attncalc.system import System

EXACT, SINGLE = 1e-10, 2e-5  # relative to the largest value, float64 and float32
SHORTEST = 0.5  # Å
PUBLISHED = {"cutoff_function": "none", "paths": "all"}
# few programs: it is their number that takes the interpreter's time
FEW = Programs(64, 64, 64, 64, (Tile(0, 64, 64, 4),))

COH = Atoms("COH", [[0, 0, 0], [0.3, 1.1, 0.2], [-1, 0.2, 0.4]])
ON_THE_AXIS = Atoms("NCH", [[0, 0, 0], [0, -1.2, 0], [0, 1.1, 0]])
CELL = Atoms("CO", cell=[[2.9, 0.1, -0.2], [0.3, 3.2, 0.2], [-0.4, 0.5, 3.0]], pbc=True)
CELL.set_scaled_positions([[0.1, 0.05, 0.9], [0.5, 0.4, 0.3]])


@pytest.fixture(autouse=True)
def new_arrays_are_full_of_nan():
    """So that nothing reads what nothing has written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def potential(*, repels: bool = False, **options) -> Potential:
    config = EquiformerConfig(
        **{
            "cutoff": 3.5,
            "avg_num_neighbors": 10.0,
            "channels": (32, 16),
            "num_layers": 2,
            "num_heads": 2,
            "attention_features": 8,
            "feed_forward_factor": 1,
            "num_basis": 8,
            "radial_features": 16,
            "head_features": 32,
            **options,
        }
    )
    torch.manual_seed(0)
    network = Equiformer(config, len(ELEMENTS)).double()
    randomise(network)
    return Potential(
        network,
        ELEMENTS,
        scale=[1.0, 2.0, 0.5, 3.0],
        reference_energies=[-1.0, -2.0, -3.0, -4.0],
        pair_terms=[ZBLRepulsion(ZBLConfig(cutoff=2.0), ELEMENTS)] if repels else [],
    ).requires_grad_(False)


def engine_of(
    plain: Potential, dtype: torch.dtype = torch.float64, programs: Programs = FEW
) -> Engine:
    repulsion = next(iter(plain.pair_terms), None)
    return Engine(
        plain.network,
        plain.scale,
        plain.reference_energies,
        SHORTEST,
        repulsion,
        (COULOMB_CONSTANT, SWITCH_OFF),
        dtype=dtype,
        programs=programs,
    )


def assert_same(found: Found | Result, plain: Potential, graph: Graph, tolerance: float) -> None:
    expected = evaluate(plain, graph)
    for name in Found._fields:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float64
        assert (ours - theirs).abs().amax() <= tolerance * theirs.abs().amax().clamp(min=0.1), name
    assert found.forces.sum(0).abs().amax() <= 1e-13 * expected.forces.abs().amax().clamp(min=1)


OPTIONS = {
    "ours, lmax 1": {},
    "published, lmax 2": {"channels": (16, 16, 16), **PUBLISHED},
    "lmax 3": {"channels": (32, 16, 16, 16), "num_layers": 1},
    "published, lmax 3": {"channels": (16, 16, 16, 16), **PUBLISHED},
    "linear": {"attention": "linear", "channels": (16, 16, 16)},
    "linear, published": {"attention": "linear", **PUBLISHED},
    "odd widths": {"channels": (48, 16), "num_heads": 1, "attention_features": 48,
                   "num_basis": 21, "radial_features": 48, "head_features": 96,
                   "feed_forward_factor": 2},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option(options: dict) -> None:
    plain = potential(**options)
    graph = build_graph(plain, System.from_ase([COH, Atoms("O")]))
    assert_same(engine_of(plain)(graph), plain, graph, EXACT)


def test_a_batch_in_a_padded_list_with_a_skin() -> None:
    plain = potential(repels=True)
    system = System.from_ase([COH, CELL, Atoms("O"), ON_THE_AXIS])
    graph = build_graph(plain, system, skin=0.5, capacity=64)
    assert not graph.edge_mask.all()
    assert_same(engine_of(plain)(graph), plain, graph, EXACT)


def test_float32_and_that_results_are_equal_to_the_bit() -> None:
    """With tiles and blocks as on a GPU; and what is masked may be anything."""
    plain = potential(repels=True, channels=(32, 32), **PUBLISHED)
    engine = engine_of(plain, torch.float32, PROGRAMS)
    graph = build_graph(plain, System.from_ase(ON_THE_AXIS), skin=1.0, capacity=64)
    first = engine(graph)
    assert_same(first, plain, graph, SINGLE)
    masked = ~graph.edge_mask.unsqueeze(1)
    again = engine(graph.with_vectors(torch.where(masked, torch.nan, graph.vectors)))
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours, theirs)


def test_pairs_beyond_the_cutoff_that_are_not_masked_count_nothing() -> None:
    plain = potential(num_layers=1)
    far = fresh_graph(System.from_ase(CELL), cutoff=4.5, species=plain.species)
    assert (torch.linalg.vector_norm(far.vectors, dim=1) > plain.cutoff).any()
    assert_same(engine_of(plain)(far), plain, far, EXACT)


@pytest.mark.parametrize("beyond", [1e-3, 1e-7, 1e-13])
def test_an_edge_that_fades_out(beyond: float) -> None:
    """Its envelope is as small as 1e-39, and nothing is divided by it."""
    plain = potential(num_layers=1)
    for symbols, positions in (
        ("COH", [[0, 0, 0], [0, 0, 1.3], [0, 3.5 - beyond, 0]]),
        ("CH", [[0, 0, 0], [0, 3.5 - beyond, 0]]),
    ):
        graph = build_graph(plain, System.from_ase(Atoms(symbols, positions)))
        assert_same(engine_of(plain)(graph), plain, graph, EXACT)


def test_an_atom_alone() -> None:
    plain = potential(repels=True)
    graph = build_graph(plain, System.from_ase(Atoms("O")))
    assert graph.n_edges == 0
    assert_same(engine_of(plain)(graph), plain, graph, EXACT)


def test_close_atoms_and_positions_that_are_not_numbers_give_nan() -> None:
    """Of their own system; nothing else is touched."""
    plain = potential(num_layers=1)
    engine = engine_of(plain)
    close = Atoms("CO", [[0, 0, 0], [0, 0, 0.99 * SHORTEST]])
    graph = build_graph(plain, System.from_ase([COH, close]))
    found = engine(graph)
    assert found.energy.isnan().tolist() == [False, True]
    vectors = torch.where((graph.receivers < 3).unsqueeze(1), torch.nan, graph.vectors)
    found = engine(graph.with_vectors(vectors))
    assert found.energy.isnan().all()


def test_a_graph_beyond_memory_is_left_to_the_plain_path(monkeypatch) -> None:
    plain = potential(num_layers=1)
    engine = engine_of(plain)
    graph = build_graph(plain, System.from_ase(COH))
    monkeypatch.setattr(engine, "_memory", lambda: graph.n_edges * engine.bytes_per_edge - 1)
    assert all(values.isnan().all() for values in engine(graph))


def test_the_engine_is_chosen_and_leaves_to_the_plain_path_what_it_cannot() -> None:
    plain = potential(num_layers=1, repels=True)
    single = copy.deepcopy(plain)
    single.compute_in(torch.float32)
    fast = _with_engine_for(single, "cuda")
    assert fast is not None
    assert isinstance(fast.engine, DeviceStep)
    graph = build_graph(plain, System.from_ase(COH))
    assert_same(fast.engine.submit(graph), plain, graph, SINGLE)
    close = Atoms("CO", [[0, 0, 0], [0, 0, 0.99 * SHORTEST]])
    graph = build_graph(plain, System.from_ase([COH, close]))
    assert torch.equal(evaluate(fast, graph).forces, evaluate(single, graph).forces)
    assert _with_engine_for(plain, "cuda") is None  # float64


def test_what_the_kernels_do_not_know() -> None:
    assert can_run(potential().network.float())
    for options in (
        {"attention": "dot"},
        {"channels": (32, 24)},
        {"radial_features": 24},
        {"head_features": 40},
        {"attention_features": 5},
        {"channels": (32, 32), "num_heads": 32},
        {"num_basis": 129},
        {"radial_features": 144},
    ):
        assert not can_run(potential(**options).network.float())
    assert not can_run(potential().network)  # float64
