"""The loop over all pairs equals both terms in PyTorch: energies, forces, strain, gradients."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, ethanol, slab, triclinic
from long_range_terms import CUTOFF, TERMS, assert_equal, by_autograd, many, outputs_for
from torch import nn

from attncalc.fast import _lower_terms
from attncalc.graph import AtomOutputs, Graph
from attncalc.kernels import long_range_loop
from attncalc.kernels.frozen_long_range import FrozenLongRange
from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.neighbors import VerletList
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.system import System

STRUCTURES = {
    "molecule": ethanol,
    "own images": triclinic,
    "slab": slab,
    "many": many,
    "far": lambda: Atoms("CO", [[0, 0, 0], [0, 30.0, 40.0]]),
    "alone": lambda: Atoms("O"),
    "batch": lambda: [ethanol(), triclinic(), Atoms("O"), many()],
}


def by_loop(term: FrozenLongRange, graph: Graph, outputs: AtomOutputs) -> list[torch.Tensor]:
    energies, summed, by_outputs = term.linearize(graph, outputs)
    zero = np.zeros(graph.n_atoms)
    names = ("charges", "hirshfeld_ratios")
    found = [energies, *summed, *(by_outputs.get(name, zero) for name in names)]
    return [torch.as_tensor(one) for one in found]


def graphs_of(atoms: Atoms | list[Atoms], cutoff: float) -> tuple[Graph, Graph]:
    """By pairs, and by edges; the former with pairs in the skin."""
    system = System.from_ase(atoms)
    options = {"cutoff": cutoff, "skin": 0.5, "species": ELEMENTS}
    return tuple(
        VerletList.create(**options, by_pairs=by_pairs).update(system)[1]
        for by_pairs in (True, False)
    )


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_equals_the_terms(structure: Callable, kind: str) -> None:
    atoms = structure()
    periodic = isinstance(atoms, list) or atoms.pbc.any()
    for end in (CUTOFF, 13.0) if periodic else (CUTOFF, 1000.0, None):
        terms = TERMS[kind](end)
        (term,) = _lower_terms(list(terms), "cpu")
        assert isinstance(term, FrozenLongRange)
        assert term.long_range == terms[0].long_range
        by_pairs, by_edges = graphs_of(atoms, 1e4 if end is None else end)
        outputs = outputs_for(by_edges.n_atoms)
        expected = by_autograd(terms, by_edges, outputs)
        assert_equal(by_loop(term, by_pairs, outputs), expected)
        assert term.linearize(by_edges, outputs) is None
        assert torch.equal(term(by_edges, outputs), expected[0])
        assert_equal(by_autograd([term], by_pairs, outputs), expected)  # its edges are made then


def test_atoms_of_very_different_polarizability() -> None:
    """A hydrogen with a small ratio beside an alkali atom: 4 and 400 bohr^3."""
    elements = (1, 11, 55)
    terms = [Dispersion(DispersionConfig(12.0), elements)]
    (term,) = _lower_terms(list(terms), "cpu")
    for numbers in ([1, 11], [1, 55]):
        system = System.from_ase(Atoms(numbers, [[0, 0, 0], [0, 0, 3.0]]))
        options = {"cutoff": 12.0, "skin": 0.0, "species": elements}
        by_pairs, by_edges = (
            VerletList.create(**options, by_pairs=by_pairs).update(system)[1]
            for by_pairs in (True, False)
        )
        ratios = torch.tensor([0.3, 1.0], dtype=torch.float64)
        outputs = AtomOutputs(torch.zeros(2), torch.zeros(2, dtype=torch.float64), ratios)
        found = by_loop(term, by_pairs, outputs)
        expected = by_autograd(terms, by_edges, outputs)
        assert abs(float(found[0].sum() / expected[0].sum()) - 1) < 1e-8


def test_chunks_are_full_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    by_pairs, _ = graphs_of(many(), CUTOFF)
    n_pairs = len(by_pairs.half_list.receivers)
    assert n_pairs > 2 * long_range_loop.CHUNK
    assert n_pairs % long_range_loop.CHUNK


def test_atoms_without_volume() -> None:
    """As near zero as a network comes; roots of zero have no slope."""
    terms = TERMS["both"](CUTOFF)
    (term,) = _lower_terms(list(terms), "cpu")
    by_pairs, _ = graphs_of(ethanol(), CUTOFF)
    outputs = replace(outputs_for(9), hirshfeld_ratios=torch.zeros(9, dtype=torch.float64))
    assert all(found.isfinite().all() for found in by_loop(term, by_pairs, outputs))


def test_without_numba_terms_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncalc.fast.has_numba", lambda: False)
    terms = [*TERMS["both"](CUTOFF), ZBLRepulsion(ZBLConfig(4.0), ELEMENTS)]
    assert _lower_terms(terms, "cpu") == terms


def test_which_terms_share_a_loop() -> None:
    electric, dispersive = TERMS["both"](CUTOFF)
    other = Dispersion(DispersionConfig(9.0), ELEMENTS)
    repulsion = ZBLRepulsion(ZBLConfig(4.0), ELEMENTS).requires_grad_(False)
    foreign = nn.Identity()
    for order in itertools.permutations([electric, dispersive, repulsion, foreign]):
        kinds = [type(term) for term in _lower_terms(list(order), "cpu")]
        assert sorted(kinds, key=str) == sorted([FrozenLongRange, FrozenZBL, nn.Identity], key=str)
    apart = _lower_terms([electric, other], "cpu")
    assert [term.long_range for term in apart] == [CUTOFF, 9.0]
    by_kind = [
        DampedElectrostatics(ElectrostaticsConfig(CUTOFF, True), ELEMENTS),
        Dispersion(DispersionConfig(CUTOFF, True), ELEMENTS),
    ]
    (together,) = _lower_terms(by_kind, "cpu")
    assert together.of_all_pairs.long_range == 1e4
    assert together.of_all_pairs.of_all_pairs is None
    assert len(_lower_terms([electric, by_kind[1]], "cpu")) == 2
    assert copy.deepcopy(together).long_range == CUTOFF


def test_a_list_that_is_kept_and_one_that_is_new() -> None:
    """Atoms that move through the skin; what is not asked for edges does not make them."""
    terms = TERMS["both"](CUTOFF)
    (term,) = _lower_terms(terms, "cpu")
    system = System.from_ase(many())
    verlet = VerletList.create(cutoff=CUTOFF, skin=0.5, species=ELEMENTS, by_pairs=True)
    outputs = outputs_for(system.n_atoms)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        move = 0.08 * torch.randn(system.positions.shape, generator=generator, dtype=torch.float64)
        system = system.with_positions(system.positions + move)
        verlet, graph = verlet.update(system)
        assert graph.half_list is not None
        fresh = VerletList.create(cutoff=CUTOFF, skin=0.0, species=ELEMENTS).update(system)[1]
        ours = by_loop(term, graph, outputs)
        assert "_arrays" not in vars(graph)
        assert_equal(ours, by_autograd(terms, fresh, outputs))
        assert torch.equal(graph.receivers, fresh.receivers)
        assert torch.equal(graph.with_vectors(fresh.vectors).vectors, fresh.vectors)
        assert graph.with_vectors(fresh.vectors).half_list is None
    assert 1 < verlet.n_rebuilds <= verlet.n_updates == 5
    twin = pickle.loads(pickle.dumps(graph))
    assert torch.equal(twin.senders, fresh.senders)
