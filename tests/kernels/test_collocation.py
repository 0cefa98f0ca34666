"""Interpolated radial networks equal the plain ones: energies, forces, gradients of training."""

from __future__ import annotations

import copy

import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, assert_close, build_graph, ethanol, on_the_axis, randomise, triclinic
from torch import nn

from attncalc.basis.radial import RADIAL_BASES
from attncalc.kernels.collocation import CollocatedRadial, collocated
from attncalc.nn.layers import TwinMLP
from attncalc.nn.so3krates import DirectRadial, So3krates, So3kratesConfig
from attncalc.potential import Potential, evaluate
from attncalc.system import System

SHORTEST = 0.6
# Bernstein functions are polynomials in exp(-d) and leave only the networks to
# interpolate; PhysNet's Gaussians are narrow in exp(-d) and cost a digit
ENERGY = {"bernstein": 1e-9, "physnet": 1e-7}
FORCES = {"bernstein": 1e-7, "physnet": 1e-6}


def network(radial_basis: str, seed: int = 0) -> So3krates:
    """As wide as shipped ones where it matters: radial basis, cutoff."""
    config = So3kratesConfig(
        cutoff=5.0,
        avg_num_neighbors=12.0,
        num_features=24,
        degrees=(1, 2, 3),
        radial_basis=radial_basis,
        head_features=8,
    )
    torch.manual_seed(seed)
    made = So3krates(config, len(ELEMENTS)).double()
    randomise(made, seed)
    return made


@pytest.mark.parametrize("radial_basis", RADIAL_BASES)
def test_energies_and_forces_equal_the_plain_network(radial_basis: str) -> None:
    plain = network(radial_basis)
    fast = Potential(collocated(plain, SHORTEST), ELEMENTS)
    exact = Potential(plain, ELEMENTS)
    for atoms in ([ethanol()], [triclinic(), on_the_axis(), Atoms("O")]):
        graph = build_graph(exact, System.from_ase(atoms))
        actual, expected = evaluate(fast, graph), evaluate(exact, graph)
        assert_close(actual.energy, expected.energy, ENERGY[radial_basis], "energy")
        assert_close(actual.forces, expected.forces, FORCES[radial_basis], "forces")
        assert not torch.equal(actual.forces, expected.forces), "not interpolated at all"


@pytest.mark.parametrize("radial_basis", RADIAL_BASES)
def test_gradients_of_training_equal_the_plain_ones(radial_basis: str) -> None:
    """By all parameters, of a loss with energies and forces: second derivatives too."""
    plain = network(radial_basis)
    twin = collocated(plain, SHORTEST)
    graph = build_graph(Potential(plain, ELEMENTS), System.from_ase([ethanol(), triclinic()]))
    gradients = []
    for net in (plain, twin):
        vectors = graph.vectors.detach().requires_grad_(True)
        energies = net(graph.with_vectors(vectors)).energies
        (force,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        loss = energies.square().sum() + force.square().sum()
        parameters = dict(net.named_parameters())
        found = torch.autograd.grad(loss, list(parameters.values()))
        gradients.append(dict(zip(parameters, found, strict=True)))
    assert set(gradients[0]) == set(gradients[1])
    for name, expected in gradients[0].items():
        # in the first layer all Euclidean variables are zero, and so is this network's input
        assert expected.any() != (name == "layers.0.attention.spherical_mlp.first"), name
        # one more derivative than forces: another digit
        assert_close(gradients[1][name], expected, 10 * FORCES[radial_basis], name)


def test_parameters_are_shared_and_the_network_is_untouched() -> None:
    plain = network("bernstein")
    twin = collocated(plain, SHORTEST)
    assert isinstance(plain.radial, DirectRadial)
    assert isinstance(twin.radial, CollocatedRadial)
    ours, theirs = dict(plain.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)


def test_float32() -> None:
    plain = network("bernstein").float()
    twin = collocated(plain, SHORTEST)
    assert {buffer.dtype for buffer in twin.buffers()} == {torch.float32}
    graph = build_graph(Potential(plain, ELEMENTS), System.from_ase(ethanol()))
    actual = evaluate(Potential(twin, ELEMENTS), graph)
    expected = evaluate(Potential(copy.deepcopy(plain).double(), ELEMENTS), graph)
    # float32 rounding, amplified by the sum over 64 polynomials whose slopes reach 64^2
    assert_close(actual.energies, expected.energies, 1e-5, "energies")
    assert_close(actual.forces, expected.forces, 1e-3, "forces")


@pytest.mark.parametrize("radial_basis", RADIAL_BASES)
@pytest.mark.parametrize(("n_nodes", "tolerance"), [(16, 1e-1), (32, 1e-4), (64, 1e-8)])
def test_interpolation_converges(radial_basis: str, n_nodes: int, tolerance: float) -> None:
    basis = RADIAL_BASES[radial_basis](32, 5.0).double()
    torch.manual_seed(1)
    mlp = TwinMLP(32, 16, 16).double()
    lengths = torch.linspace(SHORTEST + 1e-9, 5.0, 400, dtype=torch.float64)
    interpolated = CollocatedRadial(basis, SHORTEST, 5.0, n_nodes).double()(lengths)(mlp)
    assert_close(interpolated, DirectRadial(basis)(lengths)(mlp), tolerance)


def test_exact_for_polynomials() -> None:
    """Independent of any network: powers of exp(-d) below the number of nodes, to rounding."""

    class Powers(nn.Module):
        def forward(self, lengths: torch.Tensor) -> torch.Tensor:
            return torch.exp(-lengths).unsqueeze(1) ** torch.arange(8)

    radial = CollocatedRadial(Powers(), SHORTEST, 5.0, n_nodes=8).double()
    lengths = torch.linspace(0.7, 5.0, 30, dtype=torch.float64)
    twice = radial(lengths)(lambda values: torch.stack([values, -values]))
    exact = Powers()(lengths)
    assert_close(twice, torch.stack([exact, -exact]), 1e-13)


def test_too_short_distances_are_not_silently_wrong() -> None:
    plain = network("bernstein")
    twin = Potential(collocated(plain, SHORTEST), ELEMENTS)
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.9 * SHORTEST]])
    assert evaluate(twin, build_graph(twin, System.from_ase(atoms))).energy.isnan().all()
