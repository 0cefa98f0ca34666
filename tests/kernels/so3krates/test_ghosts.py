"""Domains of a structure: layers leave out what own atoms do not need, or exchange ghosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contract import ELEMENTS, assert_same_result, randomise
from engine_contract import potential_of
from networks import compiled_so3krates
from parts import added_up, added_up_with_messages, box_of, parts_of, rod

from attncalc.domain import exchanges_layers, reach_of
from attncalc.fast import lower
from attncalc.graph import GhostLayers
from attncalc.nn.network import CompiledNetwork, linearize
from attncalc.nn.so3krates import So3krates
from attncalc.ops import with_modules
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.potential import Committee, Potential, evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System

KINDS: dict[str, dict[str, Any]] = {
    "from tables": {},
    "from neighbours": {"ev_init_divisor": 2.0},
    "charges": {"predict_charges": True},
}


def potential(seed: int = 0, *, threads: int = 1, **options: Any) -> tuple[Potential, Potential]:
    """Four layers, plain and with an engine in so many threads."""
    config = compiled_so3krates(3.0, num_layers=4, num_basis=16, **options)
    torch.manual_seed(seed)
    network = So3krates(config, len(ELEMENTS))
    randomise(network, seed)
    plain = potential_of(network, repels=True)
    if config.predict_charges:
        term = DampedElectrostatics(ElectrostaticsConfig(cutoff=6.0), plain.species)
        terms = [*plain.pair_terms, term]
        plain = Potential(network, plain.species, pair_terms=terms).requires_grad_(False)
    fast = lower(plain)
    engine = fast.network.engine
    if threads > 1:
        shared = CompiledNetwork(fast.network.network, engine.shared_by(threads, fewest=1))
        fast = with_modules(fast, network=shared)
    return plain, fast


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["from tables", "from neighbours"])
def test_layers_leave_out_what_own_atoms_do_not_need(kind: str, threads: int) -> None:
    plain, fast = potential(threads=threads, **KINDS[kind])
    atoms = rod(20)
    whole = evaluate(plain, fresh_graphs(plain, System.from_ase(atoms)))
    parts = parts_of(fast, atoms, (3, 1, 1))
    assert_same_result(added_up(fast, atoms, parts), whole, 1e-4)
    for images, domain in parts:
        graphs = domain.graphs(images.positions, box_of(atoms))
        energies = fast.network.engine.linearize(graphs.short).outputs.energies
        assert domain.n_own < len(domain.rows) < len(atoms)
        assert energies[: domain.n_own].all()
        assert not energies[domain.n_own :].any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(3, 1, 1), (2, 2, 2)])
def test_ghosts_of_one_hop_are_exchanged(kind: str, threads: int, counts: tuple) -> None:
    plain, fast = potential(threads=threads, **KINDS[kind])
    assert exchanges_layers(fast)
    assert not exchanges_layers(plain)
    assert reach_of(fast, exchanges=True) < reach_of(fast)
    atoms = rod(8)
    whole = evaluate(plain, fresh_graphs(plain, System.from_ase(atoms)))
    parts = parts_of(fast, atoms, counts, exchanges=True)
    found = added_up_with_messages(fast, atoms, parts, exchanges=True)
    assert_same_result(found, whole, 1e-4)


def test_exchanged_ghosts_are_no_approximation() -> None:
    """To rounding the same as deep ghosts, step after step in one working space."""
    _, fast = potential(2)  # whose energies are large beside rounding
    atoms = rod(12)
    for seed in range(3):
        atoms.rattle(0.05, seed=seed)
        deep = added_up(fast, atoms, parts_of(fast, atoms, (3, 1, 1)))
        parts = parts_of(fast, atoms, (3, 1, 1), exchanges=True)
        found = added_up_with_messages(fast, atoms, parts, exchanges=True)
        assert_same_result(found, deep, 2e-6)


def test_committees_and_domains_without_atoms() -> None:
    committee = Committee([potential(seed, predict_charges=True)[1] for seed in (0, 1)])
    plain = Committee([potential(seed, predict_charges=True)[0] for seed in (0, 1)])
    atoms = rod(8)
    atoms = atoms[atoms.positions[:, 0] < 18]
    whole = evaluate(plain, fresh_graphs(plain, System.from_ase(atoms)))
    parts = parts_of(committee, atoms, (4, 1, 1), exchanges=True)
    assert any(domain is None for _, domain in parts)
    found = added_up_with_messages(committee, atoms, parts, exchanges=True)
    assert_same_result(found, whole, 1e-4)


class Broken:
    """An exchange whose partner has died."""

    def update(self, arrays: Any) -> None:
        raise OSError("the other process is gone")

    give_back = update


def test_errors_of_an_exchange_are_raised() -> None:
    _, fast = potential()
    graph = fresh_graphs(fast, System.from_ase(rod(2))).short
    graph = graph.with_ghosts(GhostLayers((8, graph.n_atoms), Broken()))
    with pytest.raises(OSError, match="the other process is gone"):
        fast.network.engine.linearize(graph)


def test_the_plain_network_does_not_take_exchanged_ghosts() -> None:
    """It would take their neighbours for all that they have."""
    plain, fast = potential()
    atoms = rod(2)
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]  # nearer than the loops' tables begin
    graph = fresh_graphs(plain, System.from_ase(atoms)).short
    graph = graph.with_ghosts(GhostLayers((8, graph.n_atoms), Broken()))
    for network in (plain.network, fast.network):
        with pytest.raises(ValueError, match=r"too close .* minimize the structure first"):
            linearize(network, graph)


def test_ghosts_survive_new_vectors() -> None:
    plain, _ = potential()
    graph = fresh_graphs(plain, System.from_ase(rod(2))).short
    ghosts = GhostLayers((8, 12))
    for one in (graph, replace(graph)):
        assert one.ghosts is None
        assert one.with_ghosts(ghosts).with_vectors(graph.vectors).ghosts is ghosts
    assert [ghosts.within(n) for n in range(4)] == [8, 12, 12, 12]
    assert np.array_equal(graph.with_ghosts(ghosts).arrays.vectors, graph.arrays.vectors)
