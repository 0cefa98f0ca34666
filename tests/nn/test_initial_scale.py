"""What goes through a new So3krates is of the order of one, whatever basis, cutoff and density."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from contract import ELEMENTS, slab
from torch import Tensor

from attncalc.basis.radial import RADIAL_BASES, mean_square
from attncalc.neighbors import fresh_graph
from attncalc.nn.layers import SILU_SQUARE
from attncalc.nn.so3krates import EuclideanAttention, So3krates, So3kratesConfig
from attncalc.system import System

SEEDS = range(3)
# of every layer and seed; coefficients are within the envelope, and updates means of messages
BOUNDS = {"filters": (0.4, 1.5), "coefficients": (0.05, 1.5), "updates": (0.03, 1.0)}


def diamond() -> Atoms:
    atoms = bulk("C", "diamond", a=3.57, cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def seen(atoms: Atoms, basis: str, cutoff: float, monkeypatch) -> dict[str, list[float]]:
    """Standard deviations in each layer: filters and coefficients times their divisor, updates."""
    found: dict[str, list[float]] = {"filters": [], "coefficients": [], "updates": []}
    filters, coefficients = EuclideanAttention.filters, EuclideanAttention.coefficients
    forward = EuclideanAttention.forward

    def keep(name: str, values: Tensor) -> None:
        found[name].append(float(values.detach().std()))

    def with_filters(attention, ev, geometry):
        keep("filters", geometry.radial(attention.radial_mlp))
        return filters(attention, ev, geometry)

    def with_coefficients(attention, *arguments):
        both = coefficients(attention, *arguments)
        keep("coefficients", both[0] * attention.attention_norms[0])
        return both

    def with_updates(attention, *arguments):
        updates = forward(attention, *arguments)
        keep("updates", updates[0])
        return updates

    monkeypatch.setattr(EuclideanAttention, "filters", with_filters)
    monkeypatch.setattr(EuclideanAttention, "coefficients", with_coefficients)
    monkeypatch.setattr(EuclideanAttention, "forward", with_updates)
    graph = fresh_graph(System.from_ase(atoms), cutoff=cutoff, species=ELEMENTS)
    neighbours = float(graph.edge_mask.sum()) / graph.n_atoms
    config = So3kratesConfig(cutoff, neighbours, num_features=64, radial_basis=basis, num_basis=32)
    for seed in SEEDS:
        torch.manual_seed(seed)
        So3krates(config, len(ELEMENTS)).double()(graph)
    return found


@pytest.mark.parametrize("make", [lambda: molecule("CH3CH2OH"), slab, diamond])
@pytest.mark.parametrize("cutoff", [3.5, 6.0])
@pytest.mark.parametrize("basis", RADIAL_BASES)
def test_it_is_of_the_order_of_one(make, cutoff, basis, monkeypatch):
    """Before, filters had 0.05, coefficients of the first layer 0.001 and updates 0.0001."""
    found = seen(make(), basis, cutoff, monkeypatch)
    for name, (low, high) in BOUNDS.items():
        assert low < min(found[name]), f"{name}: {found[name]}"
        assert max(found[name]) < high, f"{name}: {found[name]}"


@pytest.mark.parametrize("num_basis", [8, 32])
@pytest.mark.parametrize("basis", RADIAL_BASES)
def test_the_mean_square_of_a_basis(basis, num_basis):
    """Over places that are drawn within a ball."""
    made = RADIAL_BASES[basis](num_basis, 5.0)
    places = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    lengths = 5 * places.norm(dim=1)
    values = made(lengths[lengths < 5])
    assert mean_square(made, 5.0) == pytest.approx(float(values.square().mean()), rel=0.01)


def test_the_mean_square_of_silu():
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(torch.nn.functional.silu(x).square().mean()) == pytest.approx(
        SILU_SQUARE, rel=0.01
    )


def test_without_layer_norms_it_does_not_grow_from_layer_to_layer(monkeypatch):
    graph = fresh_graph(System.from_ase(diamond()), cutoff=5.0, species=ELEMENTS)
    options = {"layer_norms": (), "mlp_after_attention": "none", "num_features": 64}
    for seed in SEEDS:
        torch.manual_seed(seed)
        network = So3krates(So3kratesConfig(5.0, 60.0, **options), len(ELEMENTS)).double()
        assert float(network(graph).energies.detach().abs().max()) < 10
