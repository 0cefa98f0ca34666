"""A pair term of predicted charges over a long graph, from outside the package, in this file alone.

Energy, forces and stress by the engine are those of the plain network, and derivatives are
differences: what charges do when atoms move included.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.units import fs
from contract import ELEMENTS, assert_derivatives, ethanol, randomise, triclinic
from long_range_terms import charged
from networks import compiled_so3krates
from torch import Tensor, nn

from attncalc import AttnCalculator, Potential, System, evaluate, md
from attncalc.fast import disagreement, lower
from attncalc.graph import AtomOutputs, Graph, Graphs
from attncalc.neighbors import fresh_graph
from attncalc.nn.network import CompiledNetwork
from attncalc.nn.so3krates import So3krates
from attncalc.ops import safe_norm
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.structures import fresh_graphs

COULOMB = 14.399645  # eV Å


class ScreenedCoulomb(nn.Module):
    """k q_i q_j exp(-d / 3 Å) / (d + 1 Å) (1 - (d / L)^2)^3 of every pair nearer than L."""

    def __init__(self, long_range: float) -> None:
        super().__init__()
        self.long_range = long_range

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        charges = outputs.charges
        assert charges is not None
        vectors = torch.where(graph.edge_mask.unsqueeze(1), graph.vectors, self.long_range)
        d = safe_norm(vectors)
        fade = (1 - (d / self.long_range) ** 2).clamp(min=0) ** 3 * graph.edge_mask
        product = charges[graph.receivers] * charges[graph.senders]
        half = COULOMB / 2 * product * torch.exp(-d / 3) / (d + 1) * fade
        return torch.zeros_like(charges).index_add(0, graph.receivers, half)


def potential(dtype: torch.dtype = torch.float32, *, repels: bool = False) -> Potential:
    torch.manual_seed(0)
    network = So3krates(compiled_so3krates(4.0, predict_charges=True), len(ELEMENTS))
    randomise(network)
    terms: list[nn.Module] = [ScreenedCoulomb(9.0)]
    if repels:
        terms.append(ZBLRepulsion(ZBLConfig(cutoff=4.0), ELEMENTS))
    made = Potential(network, ELEMENTS, scale=[1.0, 2.0, 0.5, 3.0], pair_terms=terms)
    made.set_dtype(dtype)
    return made.requires_grad_(False).eval()


STRUCTURES = {
    "molecule": ethanol,
    "ion": charged,
    "crystal": triclinic,
    "batch": lambda: [charged(), triclinic(), Atoms("O")],
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_by_the_engine_as_by_the_plain_network(structure, threads: int) -> None:
    plain = potential(repels=True)
    plain.set_num_threads(threads)
    fast, exact = lower(plain), copy.deepcopy(plain)
    exact.set_dtype(torch.float64)
    assert isinstance(fast.network, CompiledNetwork)
    assert disagreement(fast, plain) < 1e-4
    graphs = fresh_graphs(plain, System.from_ase(structure()))
    ours, theirs = evaluate(fast, graphs), evaluate(exact, graphs)
    for name in ("energies", "forces", "strain_gradient"):
        difference = getattr(ours, name) - getattr(theirs, name)
        assert difference.abs().amax() <= 2e-5 * getattr(theirs, name).abs().amax().clamp(min=1)


def test_charges_add_up_to_the_total_charge() -> None:
    system = System.from_ase([charged(), triclinic()])
    for one in (potential(), lower(potential())):
        graphs = fresh_graphs(one, system)
        network = one.network
        found = (
            network.engine.linearize(graphs.short).outputs
            if isinstance(network, CompiledNetwork)
            else network(graphs.short)
        )
        sums = torch.zeros(2).index_add(0, system.system_idx, found.charges.float())
        torch.testing.assert_close(sums, torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
        assert found.charges.std() > 0.01


@pytest.mark.parametrize("structure", [charged, triclinic])
def test_forces_and_stress_are_differences(structure) -> None:
    """In float64; with charges held fixed they would not be."""
    assert_derivatives(potential(torch.float64), structure())


def test_a_graph_that_is_too_short_is_refused() -> None:
    plain = potential()
    graph = fresh_graph(System.from_ase(ethanol()), cutoff=4.0, species=ELEMENTS)
    with pytest.raises(ValueError, match=r"a pair term reaches 9 Å: pass Graphs\(short, long\)"):
        evaluate(plain, graph)
    # with a longer list of the network's range, masked edges count nothing
    far = fresh_graph(System.from_ase(ethanol()), cutoff=11.0, species=ELEMENTS)
    masked = replace(far, edge_mask=safe_norm(far.vectors) < 9.0)
    ours, theirs = (
        evaluate(plain, Graphs(graph, long)).forces
        for long in (masked, fresh_graphs(plain, System.from_ase(ethanol())).long)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_a_calculator_keeps_both_lists() -> None:
    atoms = triclinic() * (2, 1, 1)
    atoms.calc = AttnCalculator(potential(repels=True), skin=0.8)
    fresh = AttnCalculator(potential(repels=True), skin=0.0)
    generator = np.random.default_rng(0)
    for _ in range(4):
        atoms.positions += generator.uniform(-0.05, 0.05, atoms.positions.shape)
        (expected,) = fresh.calculate_many([atoms])
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-6)
        np.testing.assert_allclose(atoms.get_stress(), expected["stress"], atol=1e-8)
    assert [one.n_rebuilds for one in atoms.calc.evaluator.lists] == [1, 1]


def test_dynamics_conserve_the_energy() -> None:
    """Half the timestep, a quarter of the fluctuation."""
    exact, fluctuations = potential(torch.float64), []
    for timestep in (0.2, 0.1):
        verlet = md.Verlet(timestep * fs)
        state = verlet.init(exact, System.from_ase(charged()), temperature=300.0, seed=0)
        energies = []
        for _ in range(round(4 / timestep)):
            state = md.run(verlet, exact, state, 1)
            energies.append(float(state.conserved))
        fluctuations.append(np.std(energies))
    assert fluctuations[0] / fluctuations[1] == pytest.approx(4, rel=0.25)
