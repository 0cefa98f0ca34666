"""The compiled step equals the plain network in float64: every option, every kind of structure."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from contract import ELEMENTS, build_graph, ethanol, on_the_axis, randomise, slab, triclinic

pytest.importorskip("numba")

from attncalc import AttnCalculator, load
from attncalc.fast import SHORTEST, lower
from attncalc.graph import Graph
from attncalc.kernels.so3krates import engine
from attncalc.kernels.so3krates.engine import Engine, can_run
from attncalc.neighbors import fresh_graph
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, Result, evaluate
from attncalc.system import System

# of float32, relative to the largest force and energy per atom; plain float32 itself is 1e-6..1e-5
TOLERANCE = 2e-5

OPTIONS = {
    "default": {},
    "eight heads": {"num_heads": 8, "num_features": 128},
    "one degree": {"degrees": (2,)},
    "three heads": {"num_heads": 3, "num_features": 192, "degrees": (1, 3)},
    "many orders": {"degrees": (1, 5)},
    "square root of width": {"attention_norm": "sqrt_head_width"},
    "physnet basis": {"radial_basis": "physnet"},
    "cosine cutoff": {"cutoff_function": "cosine"},
    "exponential cutoff": {"cutoff_function": "exponential"},
    "started variables": {"ev_init_divisor": 2.0},
    "one layer": {"num_layers": 1},
    "wide head": {"head_features": 48},
    "electrons": {"embed_charge": True, "embed_spin": True},
}


def potential(seed: int = 0, *, repels: bool = False, **options) -> Potential:
    config = So3kratesConfig(
        **{
            "cutoff": 4.0,
            "avg_num_neighbors": 10.0,
            "num_features": 64,
            "num_heads": 2,
            "degrees": (1, 2),
            "num_layers": 2,
            "num_basis": 16,
            "head_features": 16,
            **options,
        }
    )
    torch.manual_seed(seed)
    network = So3krates(config, len(ELEMENTS))
    randomise(network, seed)
    return Potential(
        network,
        ELEMENTS,
        scale=[1.0, 2.0, 0.5, 3.0],
        reference_energies=[-1.0, -2.0, -3.0, -4.0],
        pair_terms=[ZBLRepulsion(ZBLConfig(cutoff=2.0), ELEMENTS)] if repels else [],
    ).requires_grad_(False)


def exact(plain: Potential) -> Potential:
    twin = copy.deepcopy(plain)
    twin.compute_in(torch.float64)
    return twin


def by_engine(plain: Potential, graph: Graph) -> Result:
    """What the engine says, and an error where it says nothing."""
    fast = lower(plain)
    assert fast.engine is not None
    result = fast.engine(graph)
    assert result is not None
    return result


def assert_same(actual: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    for name in ("energy", "energies", "forces", "strain_gradient"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float64
        scale = theirs.abs().amax().clamp(min=1e-3) if theirs.numel() else 1.0
        assert ((ours - theirs).abs() / scale).amax() <= tolerance, name


def ion() -> Atoms:
    atoms = ethanol()
    atoms.info = {"charge": 1, "spin": 4}
    return atoms


STRUCTURES = {
    "molecule": ethanol,
    "along the axis": on_the_axis,
    "crystal": triclinic,
    "slab": slab,
    "own images": lambda: bulk("C", a=3.2),
    "batch": lambda: [ethanol(), triclinic(), Atoms("O"), slab()],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option(options: dict) -> None:
    plain = potential(**options)
    assert can_run(plain.network)
    atoms = [ion(), triclinic()] if "embed_charge" in options else [ethanol(), triclinic()]
    graph = build_graph(plain, System.from_ase(atoms))
    assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))


@pytest.mark.parametrize("repels", [False, True], ids=["bare", "with repulsion"])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_every_structure(structure, repels: bool) -> None:
    plain = potential(repels=repels)
    graph = build_graph(plain, System.from_ase(structure()))
    expected = evaluate(exact(plain), graph)
    result = by_engine(plain, graph)
    assert_same(result, expected)
    assert torch.equal(result.strain_gradient, result.strain_gradient.transpose(1, 2))
    assert result.forces.sum(0).abs().amax() <= 1e-13 * expected.forces.abs().amax().clamp(min=1)


@pytest.mark.parametrize(
    "options",
    [
        {"qk_activation": "silu"},
        {"layer_norms": ("after_attention",)},
        {"mlp_after_attention": "projected"},
        {"mlp_after_exchange": "residual"},
        {"head_features": None},
        {"head_activation": "identity"},
        {"head_features": 24},
        {"degrees": (0, 1)},
        {"num_features": 48},
    ],
    ids=str,
)
def test_what_the_loops_do_not_know_runs_another_way(options: dict) -> None:
    plain = potential(**options)
    assert not can_run(plain.network)
    assert lower(plain).engine is None


def test_float64_runs_another_way() -> None:
    plain = exact(potential())
    assert not can_run(plain.network)
    assert lower(plain).engine is None


@pytest.mark.parametrize("masked", ["masked", "not masked"])
def test_pairs_beyond_the_cutoff_count_nothing(masked: str) -> None:
    plain = potential()
    system = System.from_ase(triclinic())
    near = fresh_graph(system, cutoff=4.0, species=plain.species)
    far = fresh_graph(system, cutoff=5.5, species=plain.species)
    fast = lower(plain)
    beyond = torch.linalg.vector_norm(far.vectors, dim=1) >= 4.0
    assert beyond.any()
    if masked == "masked":  # then their vectors may be anything
        vectors = torch.where(beyond.unsqueeze(1), torch.nan, far.vectors)
        far = replace(far, vectors=vectors, edge_mask=~beyond)
    assert_same(fast.engine(far), fast.engine(near), 1e-6)


def test_the_first_layer_by_kinds_is_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase([ethanol(), triclinic(), Atoms("N")]))
    by_kinds = by_engine(plain, graph)
    monkeypatch.setattr(engine, "MOST_KINDS", 3)  # there are four
    assert_same(by_kinds, by_engine(plain, graph), 5e-6)
    # other elements after these, fewer and in another order
    fast = lower(plain)
    for atoms in (ethanol(), triclinic(), Atoms("OH", [[0, 0, 0], [0, 0, 1]]), ethanol()):
        graph = build_graph(plain, System.from_ase(atoms))
        assert_same(fast.engine(graph), evaluate(exact(plain), graph))


def test_charge_and_spin_reach_the_first_layer() -> None:
    plain = potential(embed_charge=True, embed_spin=True)
    fast = lower(plain)
    for charge, spin in ((0, 1), (1, 2), (0, 3), (0, 1)):
        atoms = ethanol()
        atoms.info = {"charge": charge, "spin": spin}
        graph = build_graph(plain, System.from_ase(atoms))
        assert_same(fast.engine(graph), evaluate(exact(plain), graph))


def test_energy_and_forces_end_smoothly_at_the_cutoff() -> None:
    """The tables' last interval meets zero with value and slope."""
    plain = potential(num_layers=1)
    fast = lower(plain)
    at_cutoff = []
    for length in (4.0 - 1e-4, 4.0 + 1e-4):
        graph = build_graph(plain, System.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, length]])))
        at_cutoff.append(evaluate(fast, graph))
    inside, outside = at_cutoff
    assert float((inside.energy - outside.energy).abs()) < 1e-7
    assert float(inside.forces.abs().amax()) < 1e-6
    assert not outside.forces.any()


@pytest.mark.parametrize("length", [SHORTEST * (1 + 1e-9), SHORTEST + 0.01, 0.9, 2.0, 3.9, 3.999])
def test_pairs_at_all_distances(length: float) -> None:
    plain = potential(repels=True)
    atoms = Atoms("CO", positions=[[0, 0, 0], [0.6 * length, 0, 0.8 * length]])
    graph = build_graph(plain, System.from_ase(atoms))
    assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))


def test_close_atoms_take_the_plain_path() -> None:
    plain = potential()
    fast = lower(plain)
    close = ethanol()
    close.positions[-1] = close.positions[0] + [0, 0, 0.99 * SHORTEST]
    graph = build_graph(plain, System.from_ase([ethanol(), close]))
    assert fast.engine(graph) is None
    assert torch.equal(evaluate(fast, graph).forces, evaluate(plain, graph).forces)


def test_positions_that_are_not_numbers_give_such_results() -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase(ethanol()))
    broken = graph.with_vectors(torch.full_like(graph.vectors, torch.nan))
    assert evaluate(lower(plain), broken).forces.isnan().any()


def test_results_do_not_depend_on_what_was_computed_before() -> None:
    plain = potential()
    fast = lower(plain)
    graphs = [
        build_graph(plain, System.from_ase(atoms))
        for atoms in (ethanol(), triclinic() * (2, 2, 1), Atoms("O"), [ethanol(), slab()])
    ]
    first = [lower(plain).engine(graph) for graph in graphs]
    for k in (0, 1, 0, 2, 3, 1, 2, 0):
        again = fast.engine(graphs[k])
        for name in ("energies", "forces", "strain_gradient"):
            assert torch.equal(getattr(again, name), getattr(first[k], name)), name


def test_threads_do_not_share_working_space() -> None:
    plain = potential()
    fast = lower(plain)
    graphs = [
        build_graph(plain, System.from_ase(atoms * (2, 2, 2)))
        for atoms in (triclinic(), bulk("C", a=3.6))
    ]
    expected = [fast.engine(graph).forces for graph in graphs]
    wrong = []

    def work(k: int) -> None:
        for _ in range(20):
            if not torch.equal(fast.engine(graphs[k]).forces, expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_works_too() -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase(ethanol()))
    fast = lower(plain)
    twin = copy.deepcopy(fast)
    assert torch.equal(evaluate(twin, graph).forces, evaluate(fast, graph).forces)


def test_pickling() -> None:
    """As multiprocessing does with a calculator."""
    calculator = AttnCalculator("so3krates-ethanol")
    atoms = ethanol()
    forces = calculator.get_forces(atoms)
    twin = pickle.loads(pickle.dumps(calculator))
    assert twin._fast.engine is not None
    assert np.array_equal(twin.get_forces(ethanol()), forces)


def test_the_network_stays_as_it_is() -> None:
    plain = potential()
    before = copy.deepcopy(plain.state_dict())
    Engine(plain.network, plain.scale, plain.reference_energies, SHORTEST)
    assert plain.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_along_a_trajectory_that_heats_up() -> None:
    """The shipped model from rest to 1,000 K: forces of every tenth step."""
    atoms = ethanol()
    calculator = AttnCalculator("so3krates-ethanol")
    assert calculator._fast.engine is not None
    definition = load("so3krates-ethanol", dtype="float64")
    atoms.calc = calculator
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=1000,
        friction=0.02 / units.fs,
        rng=np.random.default_rng(0),
    )
    for _ in range(20):
        dynamics.run(10)
        graph = build_graph(definition, System.from_ase(atoms))
        expected = evaluate(definition, graph).forces
        error = torch.from_numpy(atoms.get_forces()) - expected
        assert error.abs().amax() <= TOLERANCE * expected.abs().amax()
    assert atoms.get_temperature() > 400
