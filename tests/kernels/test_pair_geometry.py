"""Radial functions of low rank are the networks; the written-out gradient is autograd's."""

from dataclasses import replace

import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, build_graph, on_the_axis, randomise, triclinic

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS, CUTOFF_SLOPES
from attncalc.basis.radial import RADIAL_BASES
from attncalc.basis.so3 import SphericalHarmonics
from attncalc.kernels.low_rank import LowRankRadial
from attncalc.kernels.pair_geometry import PairGeometry
from attncalc.nn.layers import TwinMLP
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential
from attncalc.system import System

CUTOFF, SHORTEST = 4.0, 0.5


def low_rank(basis: str, dtype: torch.dtype = torch.float64) -> tuple[list, LowRankRadial]:
    """Three networks, and what stands for them."""
    torch.manual_seed(0)
    functions = RADIAL_BASES[basis](32, CUTOFF).double()
    mlps = [TwinMLP(32, 16, 32).double().requires_grad_(False) for _ in range(3)]
    for k, mlp in enumerate(mlps):
        randomise(mlp, k)
    networks = [lambda d, mlp=mlp: torch.cat(list(mlp(functions(d))), dim=1) for mlp in mlps]
    return networks, LowRankRadial(functions, mlps, SHORTEST, CUTOFF, dtype)


# Gaussians that are narrow in exp(-d) need more than the 128 nodes for the last digit
@pytest.mark.parametrize(("basis", "tolerance"), [("bernstein", 1e-11), ("physnet", 1e-10)])
def test_radial_functions(basis: str, tolerance: float) -> None:
    networks, radial = low_rank(basis)
    lengths = torch.linspace(SHORTEST, CUTOFF, 300, dtype=torch.float64)
    values, slopes = radial.values_and_slopes(lengths)
    assert values.shape[1] < 90 < 192  # three networks of 64 functions
    for network, weights in zip(networks, radial.weights, strict=True):
        exact, exact_slopes = torch.func.jvp(network, (lengths,), (torch.ones_like(lengths),))
        assert (values @ weights - exact).abs().max() < tolerance * exact.abs().max()
        error = (slopes @ weights - exact_slopes).abs().max()
        assert error < 10 * tolerance * exact_slopes.abs().max()


def test_radial_functions_in_single_precision() -> None:
    networks, radial = low_rank("bernstein", torch.float32)
    lengths = torch.linspace(SHORTEST, CUTOFF, 300, dtype=torch.float64)
    values, slopes = radial.values_and_slopes(lengths)
    assert values.dtype == slopes.dtype == torch.float32
    assert values.shape[1] < 48
    for network, weights in zip(networks, radial.weights, strict=True):
        exact, exact_slopes = torch.func.jvp(network, (lengths,), (torch.ones_like(lengths),))
        assert (values @ weights - exact).abs().max() < 1e-6 * exact.abs().max()
        assert (slopes @ weights - exact_slopes).abs().max() < 1e-5 * exact_slopes.abs().max()


@pytest.mark.parametrize("name", CUTOFF_FUNCTIONS)
def test_cutoff_slopes(name: str) -> None:
    lengths = torch.tensor([0.0, 0.3, 1.7, 3.2, 3.9, 4.0, 4.7], dtype=torch.float64)
    exact = torch.func.jvp(
        lambda d: CUTOFF_FUNCTIONS[name](d, CUTOFF), (lengths,), (torch.ones_like(lengths),)
    )[1]
    found = CUTOFF_SLOPES[name](lengths, CUTOFF)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("degrees", [(1,), (0, 1), (1, 3), (1, 2, 3, 4), (0, 2, 5)])
@pytest.mark.parametrize("cutoff_function", CUTOFF_FUNCTIONS)
def test_gradient(degrees: tuple[int, ...], cutoff_function: str) -> None:
    """By vectors, masked ones included, against autograd through the plain functions."""
    networks, radial = low_rank("bernstein")
    harmonics = SphericalHarmonics(degrees).double()
    config = So3kratesConfig(CUTOFF, 10.0, num_features=24, degrees=(1,))
    potential = Potential(So3krates(config, len(ELEMENTS)), ELEMENTS)
    graph = build_graph(potential, System.from_ase([triclinic(), on_the_axis(), Atoms("H")]))
    vectors = graph.vectors.clone()
    mask = graph.edge_mask.clone()
    mask[graph.pairs[::5]] = False
    vectors[graph.pairs[5]] = 0.0
    leaf = vectors.requires_grad_()
    graph = replace(graph, vectors=leaf, edge_mask=mask)
    found = PairGeometry(harmonics, radial, cutoff_function, CUTOFF)(graph)

    chosen = mask[graph.pairs]
    near = leaf[graph.pairs][chosen]
    lengths = near.norm(dim=1)
    envelope = CUTOFF_FUNCTIONS[cutoff_function](lengths, CUTOFF)
    expected = envelope, harmonics(near / lengths[:, None]), networks[0](lengths)
    assert not found[0][~chosen].any()
    values = (found[0], found[1], found[2] @ radial.weights[0])
    generator = torch.Generator().manual_seed(0)
    energies = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours[chosen], theirs, rtol=1e-10, atol=1e-10)
        factors = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
        energies[0] = energies[0] + (ours[chosen] * factors).sum()
        energies[1] = energies[1] + (theirs * factors).sum()
    gradients = [torch.autograd.grad(energy, leaf)[0] for energy in energies]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert gradients[1].abs().max() > 0.1
    assert not gradients[0][~mask].any()
