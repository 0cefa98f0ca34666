"""A folded So3krates equals the plain one: every option, every kind of structure."""

from __future__ import annotations

import copy

import pytest
import torch
from ase import Atoms
from contract import (
    ELEMENTS,
    assert_close,
    build_graph,
    ethanol,
    on_the_axis,
    randomise,
    slab,
    triclinic,
)

from attncalc.compiled import has_numba
from attncalc.kernels import attend, folded_attention
from attncalc.kernels.folded_attention import folded
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential, evaluate
from attncalc.system import System

SHORTEST = 0.6
# all that is not exact is the interpolation of the radial networks by 128 nodes
TOLERANCE = 1e-10

OPTIONS = {
    "default": {},
    "one degree": {"degrees": (1,)},
    "degree 0": {"degrees": (0, 1)},
    "gap between degrees": {"degrees": (1, 3)},
    "more degrees than heads": {"degrees": (1, 2, 3), "num_heads": 2},
    "more heads than degrees": {"degrees": (1, 2), "num_heads": 6},
    "one head": {"num_heads": 1},
    "activated queries": {"qk_activation": "silu"},
    "square root of width": {"attention_norm": "sqrt_head_width"},
    "physnet basis": {"radial_basis": "physnet"},
    "cosine cutoff": {"cutoff_function": "cosine"},
    "exponential cutoff": {"cutoff_function": "exponential"},
    "started variables": {"ev_init_divisor": 2.0},
    "started variables, activated": {"ev_init_divisor": 2.0, "qk_activation": "silu"},
    "one layer": {"num_layers": 1},
    "electrons": {"embed_charge": True, "embed_spin": True},
    "norms before": {"layer_norms": ("before_attention", "before_exchange")},
    "projected": {"mlp_after_attention": "projected", "mlp_after_exchange": "projected"},
    "linear head": {"head_features": None},
}


def network(seed: int = 0, **options) -> So3krates:
    config = So3kratesConfig(
        **{
            "cutoff": 4.0,
            "avg_num_neighbors": 10.0,
            "num_features": 24,
            "num_heads": 4,
            "degrees": (1, 2),
            "num_layers": 2,
            "num_basis": 16,
            "head_features": 8,
            **options,
        }
    )
    torch.manual_seed(seed)
    made = So3krates(config, len(ELEMENTS)).double()
    randomise(made, seed)
    return made.requires_grad_(False)


def ion() -> Atoms:
    atoms = ethanol()
    atoms.info = {"charge": 1, "spin": 4}
    return atoms


def pair_of_potentials(**options) -> tuple[Potential, Potential]:
    plain = network(**options)
    return Potential(folded(plain, SHORTEST), ELEMENTS), Potential(plain, ELEMENTS)


def assert_same(fast: Potential, plain: Potential, atoms, tolerance: float) -> None:
    graph = build_graph(plain, System.from_ase(atoms))
    actual, expected = evaluate(fast, graph), evaluate(plain, graph)
    assert expected.forces.abs().max() > 1e-3 or graph.n_edges == 0
    assert_close(actual.energies, expected.energies, tolerance, "energies")
    assert_close(actual.forces, expected.forces, tolerance, "forces")
    assert_close(actual.strain_gradient, expected.strain_gradient, tolerance, "strain gradient")


@pytest.fixture(params=["numba", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numba and without."""
    if request.param == "torch":
        monkeypatch.setattr(attend, "has_numba", lambda: False)
    elif not has_numba():
        pytest.skip("numba is not installed")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    fast, plain = pair_of_potentials(**OPTIONS[name])
    assert_same(fast, plain, [ethanol(), triclinic(), ion()], TOLERANCE)


@pytest.mark.parametrize(
    "atoms",
    [
        [Atoms("O")],
        [Atoms("CO", positions=[[0, 0, 0], [0, 0, 9.0]])],
        [Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])],
        [on_the_axis(), Atoms("H"), slab()],
        [triclinic().repeat(4)],
    ],
    ids=["no edges", "out of reach", "one pair", "mixed batch", "6,000 pairs"],
)
def test_every_kind_of_structure(atoms: list[Atoms]) -> None:
    fast, plain = pair_of_potentials()
    assert_same(fast, plain, atoms, TOLERANCE)


def test_more_kinds_than_tables_are_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = pair_of_potentials()
    tabulated = evaluate(fast, build_graph(plain, System.from_ase(ethanol()))).energies
    monkeypatch.setattr(folded_attention, "MOST_KINDS", 2)
    fast = Potential(folded(plain.network, SHORTEST), ELEMENTS)
    assert_same(fast, plain, [ethanol()], TOLERANCE)
    found = evaluate(fast, build_graph(plain, System.from_ase(ethanol()))).energies
    assert not torch.equal(found, tabulated)  # another way


def test_other_atoms_and_electrons_one_after_the_other() -> None:
    """Nothing of the structure before may be left: elements, charge, spin, number of atoms."""
    fast, plain = pair_of_potentials(embed_charge=True, embed_spin=True)
    swapped = ethanol()
    swapped.symbols[2] = "N"
    swapped.info = {"charge": 1}
    for atoms in (ethanol(), ion(), ethanol(), swapped, triclinic(), ion()):
        assert_same(fast, plain, atoms, TOLERANCE)


def test_the_network_stays_as_it_is() -> None:
    plain = network()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    modules = [type(module) for module in plain.modules()]
    twin = folded(plain, SHORTEST)
    assert [type(module) for module in plain.modules()] == modules
    after = plain.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # the attention is what was exchanged; heads and refinements are shared, not copied
    assert twin.head is plain.head
    assert type(twin.layers[0].attention) is not type(plain.layers[0].attention)


def test_weights_that_change_afterwards_are_not_followed() -> None:
    """Why `folded` asks for weights that no longer change."""
    plain = network()
    fast = Potential(folded(plain, SHORTEST), ELEMENTS)
    graph = build_graph(fast, System.from_ase(ethanol()))
    before = evaluate(fast, graph)
    with torch.no_grad():
        for layer in plain.layers:
            layer.attention.feature_projection.mul_(2.0)
            layer.attention.radial_mlp.second.mul_(2.0)
    changed = evaluate(Potential(plain, ELEMENTS), graph)
    assert (changed.forces - before.forces).abs().max() > 1e-3
    assert torch.equal(evaluate(fast, graph).forces, before.forces)


@pytest.mark.parametrize("radial_basis", ["bernstein", "physnet"])
def test_float32(radial_basis: str) -> None:
    single = network(radial_basis=radial_basis).float()
    fast, exact = folded(single, SHORTEST), copy.deepcopy(single).double()
    assert {tensor.dtype for tensor in fast.state_dict().values()} == {torch.float32}
    graph = build_graph(Potential(exact, ELEMENTS), System.from_ase([ethanol(), triclinic()]))
    actual, expected = (evaluate(Potential(net, ELEMENTS), graph) for net in (fast, exact))
    assert_close(actual.energies, expected.energies, 1e-5, "energies")
    largest = expected.forces.abs().max()
    assert (actual.forces - expected.forces).abs().max() < 2e-5 * largest
