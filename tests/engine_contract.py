"""What every compiled engine promises, as tests it inherits; and the helpers those are made of.

A new engine gets all of it with one subclass in its own test file:

    class TestContract(EngineContract):
        module, model = ..., ...
        make, assert_same = staticmethod(...), staticmethod(...)
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from contract import ELEMENTS, SYMMETRIC, build_graph, ethanol, moved_along, slab, triclinic
from torch import nn

from attncalc import AttnCalculator, load
from attncalc.fast import SHORTEST, _with_engine, _with_lowered_terms, lower
from attncalc.graph import AtomOutputs, Graph, Graphs
from attncalc.kernels.simd import threads
from attncalc.neighbors import fresh_graph
from attncalc.nn.network import CompiledNetwork
from attncalc.ops import with_modules
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, evaluate
from attncalc.result import Result
from attncalc.system import System

# of float32, relative to the largest force and energy per atom; plain float32 itself is 1e-6..1e-5
TOLERANCE = 2e-5


def potential_of(network: nn.Module, *, repels: bool) -> Potential:
    """With scale and reference energies that are not 1 and 0."""
    return Potential(
        network,
        ELEMENTS,
        scale=[1.0, 2.0, 0.5, 3.0],
        reference_energies=[-1.0, -2.0, -3.0, -4.0],
        pair_terms=[ZBLRepulsion(ZBLConfig(cutoff=2.0), ELEMENTS)] if repels else [],
    ).requires_grad_(False)


def exact(plain: Potential) -> Potential:
    """A copy in float64."""
    twin = copy.deepcopy(plain)
    twin.set_dtype(torch.float64)
    return twin


def with_engine(plain: Potential) -> Potential:
    """As `lower` makes it, without its proof: the tests compare more, and in float64."""
    fast = _with_engine(plain)
    assert fast is not None
    return _with_lowered_terms(fast)


def by_engine(plain: Potential, graph: Graph) -> Result:
    """What the engine says, and an error where it says nothing."""
    result = WithEngine(with_engine(plain))(graph)
    assert result is not None
    return result


class WithEngine:
    """A potential with an engine, which is asked without the plain network behind it."""

    def __init__(self, fast: Potential) -> None:
        self.potential = fast
        self.engine = fast.network.engine

    def __call__(self, graph: Graph) -> Result | None:
        """By the engine; None where that has no tables."""
        if self.engine.linearize(graph) is None:
            return None
        return evaluate(self.potential, graph)


def in_threads(plain: Potential, threads: int) -> WithEngine:
    """The engine in so many threads, however little there is to do."""
    fast = with_engine(plain)
    engine = fast.network.engine.shared_by(threads, fewest=1)
    network = CompiledNetwork(fast.network.network, engine)
    return WithEngine(with_modules(fast, network=network))


def check_structure(
    plain: Potential, atoms: Atoms | list[Atoms], assert_same: Callable[..., None]
) -> None:
    """Equal to the plain network in float64, and exact where there is a symmetry."""
    graph = build_graph(plain, System.from_ase(atoms))
    expected = evaluate(exact(plain), graph)
    result = by_engine(plain, graph)
    assert_same(result, expected)
    assert torch.equal(result.strain_gradient, result.strain_gradient.transpose(1, 2))
    assert result.forces.sum(0).abs().amax() <= 1e-13 * expected.forces.abs().amax().clamp(min=1)


class EngineContract:
    """Tests of an engine for a cutoff of 4 Å.

    Attributes:
        module: has `Engine` and `can_run`.
        model: name of a shipped model of ethanol.
        make: a float32 potential for H, C, N, O; takes options of the network.
        assert_same: compares two results, with a tolerance.
    """

    module: ModuleType
    model: str
    make: Callable[..., Potential]
    assert_same: Callable[..., None]

    @pytest.fixture
    def plain(self) -> Potential:
        return self.make()

    @pytest.fixture
    def every_kind(self) -> Potential:
        """For kinds of networks that take different ways through the loops."""
        return self.make()

    def test_float64_runs_another_way(self, plain: Potential) -> None:
        double = exact(plain)
        assert not self.module.can_run(double.network)
        assert not hasattr(lower(double).network, "engine")

    @pytest.mark.parametrize("name", list(SYMMETRIC))
    def test_nearly_symmetric_environments(self, every_kind: Potential, name: str) -> None:
        """Forces that are zero by symmetry would have no scale to be compared on."""
        check_structure(every_kind, moved_along(SYMMETRIC[name](), 2, 0.1), self.assert_same)

    @pytest.mark.parametrize("masked", ["masked", "not masked"])
    def test_pairs_beyond_the_cutoff_count_nothing(self, plain: Potential, masked: str) -> None:
        system = System.from_ase(triclinic())
        near = fresh_graph(system, cutoff=4.0, species=plain.species)
        far = fresh_graph(system, cutoff=5.5, species=plain.species)
        fast = WithEngine(with_engine(plain))
        beyond = torch.linalg.vector_norm(far.vectors, dim=1) >= 4.0
        assert beyond.any()
        if masked == "masked":  # then their vectors may be anything
            vectors = torch.where(beyond.unsqueeze(1), torch.nan, far.vectors)
            far = replace(far, vectors=vectors, edge_mask=~beyond)
        self.assert_same(fast(far), fast(near), 1e-6)

    def test_energy_and_forces_end_smoothly_at_the_cutoff(self) -> None:
        plain = self.make(num_layers=1)
        fast = with_engine(plain)
        at_cutoff = []
        for length in (4.0 - 1e-4, 4.0 + 1e-4):
            graph = build_graph(plain, System.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, length]])))
            at_cutoff.append(evaluate(fast, graph))
        inside, outside = at_cutoff
        assert float((inside.energy - outside.energy).abs()) < 1e-7
        assert float(inside.forces.abs().amax()) < 1e-6
        assert not outside.forces.any()

    def test_close_atoms_take_the_plain_path(self, plain: Potential) -> None:
        fast = with_engine(plain)
        close = ethanol()
        close.positions[-1] = close.positions[0] + [0, 0, 0.99 * SHORTEST]
        graph = build_graph(plain, System.from_ase([ethanol(), close]))
        assert fast.network.engine.linearize(graph) is None
        assert torch.equal(evaluate(fast, graph).forces, evaluate(plain, graph).forces)

    def test_positions_that_are_not_numbers_give_such_results(self, every_kind: Potential) -> None:
        fast = with_engine(every_kind)
        graph = build_graph(every_kind, System.from_ase(ethanol()))
        expected = evaluate(fast, graph)
        broken = graph.with_vectors(torch.full_like(graph.vectors, torch.nan))
        assert evaluate(fast, broken).forces.isnan().any()
        # and nothing of it stays in the working space
        assert torch.equal(evaluate(fast, graph).forces, expected.forces)

    def test_results_do_not_depend_on_what_was_computed_before(self, every_kind: Potential) -> None:
        fast = with_engine(every_kind)
        graphs = [
            build_graph(every_kind, System.from_ase(atoms))
            for atoms in (ethanol(), triclinic() * (2, 2, 1), Atoms("O"), [ethanol(), slab()])
        ]
        first = [by_engine(every_kind, graph) for graph in graphs]
        for k in (0, 1, 0, 2, 3, 1, 2, 0):
            again = evaluate(fast, graphs[k])
            for name in ("energies", "forces", "strain_gradient"):
                assert torch.equal(getattr(again, name), getattr(first[k], name)), name

    def test_threads_do_not_share_working_space(self, plain: Potential) -> None:
        fast = with_engine(plain)
        graphs = [
            build_graph(plain, System.from_ase(atoms * (2, 2, 2)))
            for atoms in (triclinic(), bulk("C", a=3.6))
        ]
        expected = [evaluate(fast, graph).forces for graph in graphs]
        wrong = []

        def work(k: int) -> None:
            for _ in range(20):
                if not torch.equal(evaluate(fast, graphs[k]).forces, expected[k]):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_in_several_threads(self, every_kind: Potential) -> None:
        """More threads than atoms, atoms without neighbours, many ghosts, few after many."""
        engines = {n: in_threads(every_kind, n) for n in (2, 3, 16)}
        double = exact(every_kind)
        dense = bulk("C", a=3.2) * (3, 3, 3)
        dense.rattle(0.1, seed=0)  # forces that are nothing but rounding say nothing
        for atoms in (
            triclinic() * (2, 2, 1),
            [ethanol(), triclinic(), Atoms("O"), slab()],
            Atoms("CO", [[0, 0, 0], [0.6, 0, 0.8]]),
            Atoms("OH", [[0, 0, 0], [0, 0, 9.0]]),
            dense,
            ethanol(),
        ):
            graph = build_graph(every_kind, System.from_ase(atoms))
            expected = evaluate(double, graph)
            largest = expected.forces.abs().amax().clamp(min=1)
            for n, shared in engines.items():
                result = shared(graph)
                assert result is not None, n
                self.assert_same(result, expected)
                strain = result.strain_gradient
                assert torch.equal(strain, strain.transpose(1, 2)), n
                assert result.forces.sum(0).abs().amax() <= 1e-13 * largest, n

    def test_the_same_threads_give_the_same_bits(self, every_kind: Potential) -> None:
        graphs = [
            build_graph(every_kind, System.from_ase(atoms))
            for atoms in (triclinic() * (3, 2, 1), ethanol(), [slab(), ethanol()])
        ]
        first = [in_threads(every_kind, 3)(graph) for graph in graphs]
        again = in_threads(every_kind, 3)
        for k in (0, 1, 2, 0, 2, 1, 0):
            result = again(graphs[k])
            for name in ("energies", "forces", "strain_gradient"):
                assert torch.equal(getattr(result, name), getattr(first[k], name)), name

    def test_small_structures_stay_in_one_thread(self, plain: Potential) -> None:
        plain.set_num_threads(4)
        fast = lower(plain)
        engine = fast.network.engine
        assert engine.threads == 4
        engine._free.clear()
        graph = build_graph(plain, System.from_ase(Atoms("CO", [[0, 0, 0], [0.6, 0, 0.8]])))
        assert engine.linearize(graph) is not None
        assert list(engine._free) == [1]

    def test_in_several_threads_close_atoms_and_nonsense(self, plain: Potential) -> None:
        shared = in_threads(plain, 2)
        system = System.from_ase(triclinic() * (2, 1, 1))
        graph = build_graph(plain, system)
        expected = shared(graph)
        for wrong in (0.9 * SHORTEST, torch.nan):
            vectors = graph.vectors.clone()
            vectors[-1] = torch.tensor([0, 0, wrong])  # what the last thread sees
            vectors[graph.pairs[-1]] = vectors[-1]
            result = shared(graph.with_vectors(vectors))
            assert result is None or result.forces.isnan().any()
            assert torch.equal(shared(graph).forces, expected.forces)

    def test_several_threads_for_each_of_several_callers(self, plain: Potential) -> None:
        shared = [in_threads(plain, 2), in_threads(plain, 3)]
        graph = build_graph(plain, System.from_ase(triclinic() * (2, 2, 2)))
        expected = [one(graph).forces for one in shared]
        with ThreadPoolExecutor(4) as callers:
            found = list(callers.map(lambda k: shared[k % 2](graph).forces, range(24)))
        assert all(torch.equal(forces, expected[k % 2]) for k, forces in enumerate(found))

    def test_several_threads_after_a_fork(
        self, plain: Potential, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A new process has none of the old one's threads, and must not wait for them."""
        shared = in_threads(plain, 2)
        graph = build_graph(plain, System.from_ase(triclinic()))
        expected = shared(graph).forces
        *_, before = shared.engine._free[2]
        monkeypatch.setattr(threads.os, "getpid", lambda: -1)
        assert torch.equal(shared(graph).forces, expected)
        *_, after = shared.engine._free[2]
        assert after.threads is not before.threads

    def test_features_are_those_of_the_network(self, every_kind: Potential) -> None:
        """What energies are read from; the next evaluation leaves them as they are."""
        graph, other = (
            build_graph(every_kind, System.from_ase(atoms)) for atoms in (triclinic(), ethanol())
        )
        expected = exact(every_kind).network(graph).features
        size = expected.abs().amax()
        for n in (1, 2):
            engine = in_threads(every_kind, n).engine
            features = engine.linearize(graph).outputs.features
            engine.linearize(other)
            assert features.dtype == torch.float32
            assert (features - expected).abs().amax() <= TOLERANCE * size

    def test_workspaces_go_back(self, every_kind: Potential) -> None:
        """When the gradient has been pulled, and when nobody can pull it any more."""
        engine = with_engine(every_kind).network.engine
        system = System.from_ase(ethanol())
        graph = build_graph(every_kind, system)
        ones = AtomOutputs(energies=torch.ones(graph.n_atoms, dtype=torch.float64))
        alone = engine.linearize(graph).pull(ones)
        engine._free.clear()
        first, second = engine.linearize(graph), engine.linearize(graph)
        assert not engine._free.get(1)
        assert torch.equal(second.pull(ones), alone)  # two in flight do not disturb each other
        assert torch.equal(first.pull(ones), alone)
        with pytest.raises(RuntimeError, match="taken already"):
            first.pull(ones)
        assert len(engine._free[1]) == 2
        for _ in range(5):
            assert engine.linearize(graph).outputs.energies.isfinite().all()
        assert len(engine._free[1]) == 2

    def test_energies_that_do_not_count(self, every_kind: Potential) -> None:
        """Ghosts of a domain: no energy of their own, but forces; as the plain network."""
        graph = build_graph(every_kind, System.from_ase(triclinic() * (2, 1, 1)))
        graphs = Graphs(graph, n_counted=3)
        found, expected = (
            evaluate(one, graphs) for one in (with_engine(every_kind), exact(every_kind))
        )
        assert not found.energies[3:].any()
        assert found.energy == found.energies.sum()
        assert expected.forces[3:].any()
        self.assert_same(found, expected)

    def test_scale_of_other_structures_and_models(self, every_kind: Potential) -> None:
        """Scale and reference energies of atoms are kept between steps of one structure."""
        fast, plain = with_engine(every_kind), exact(every_kind)
        graphs = [build_graph(every_kind, System.from_ase(one)) for one in (ethanol(), triclinic())]
        for graph in (*graphs, *graphs):
            self.assert_same(evaluate(fast, graph), evaluate(plain, graph))
        for one in (fast, plain):
            one.scale, one.reference_energies = 2 * one.scale, one.reference_energies - 1
        self.assert_same(evaluate(fast, graphs[1]), evaluate(plain, graphs[1]))

    def test_a_copy_works_too(self, plain: Potential) -> None:
        graph = build_graph(plain, System.from_ase(ethanol()))
        fast = with_engine(plain)
        twin = copy.deepcopy(fast)
        assert torch.equal(evaluate(twin, graph).forces, evaluate(fast, graph).forces)

    @pytest.mark.parametrize("pickler", [pickle, ForkingPickler], ids=["pickle", "multiprocessing"])
    def test_pickling(self, pickler: Any) -> None:
        """Copy and original have the forces that they had, of structures that are not cached."""
        calculator, first, second = AttnCalculator(self.model), ethanol(), ethanol()
        second.rattle(0.01, seed=1)
        expected = [calculator.get_forces(one) for one in (first, second)]
        twin = pickle.loads(pickler.dumps(calculator))
        evaluator = calculator.evaluator
        parts = (evaluator, evaluator.potential, evaluator.neighbors)
        sent = [pickler.dumps(part) for part in parts]
        for one in (calculator, twin):
            assert hasattr(one.potential.network, "engine")
            for atoms, forces in zip((first, second), expected, strict=True):
                assert np.array_equal(one.get_forces(atoms), forces)
        del sent  # memory that parts shared with it is free now
        assert np.array_equal(calculator.get_forces(first), expected[0])

    def test_the_network_stays_as_it_is(self, plain: Potential) -> None:
        before = copy.deepcopy(plain.state_dict())
        self.module.Engine(plain.network, SHORTEST)
        assert plain.dtype == torch.float32
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())

    def test_along_a_trajectory_that_heats_up(self) -> None:
        """The shipped model from rest to 1,000 K: forces of every tenth step."""
        atoms = ethanol()
        calculator = AttnCalculator(self.model)
        definition = load(self.model, dtype="float64")
        atoms.calc = calculator
        assert hasattr(calculator.potential.network, "engine")
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
