"""The compiled step equals the plain network in float64: every option, every kind of structure."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from contract import ELEMENTS, build_graph, ethanol, on_the_axis, randomise, slab, triclinic
from engine_contract import (
    TOLERANCE,
    EngineContract,
    by_engine,
    check_structure,
    exact,
    potential_of,
    with_engine,
)

from attncalc.fast import SHORTEST, lower
from attncalc.graph import OUTPUTS, AtomOutputs
from attncalc.kernels.so3krates import engine
from attncalc.kernels.so3krates.engine import can_run
from attncalc.nn.network import by_autograd
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential, evaluate
from attncalc.result import Result
from attncalc.system import System

OPTIONS = {
    "default": {},
    # numbers of heads and degrees are compiled in: a minute for each pair of them
    "two heads, many orders": {"num_heads": 2, "degrees": (1, 2, 4, 5)},
    "square root of width": {"attention_norm": "sqrt_head_width"},
    "physnet basis": {"radial_basis": "physnet"},
    "cosine cutoff": {"cutoff_function": "cosine"},
    "exponential cutoff": {"cutoff_function": "exponential"},
    "started variables": {"ev_init_divisor": 2.0},
    "one layer": {"num_layers": 1},
    "wide head": {"head_features": 48},
    "electrons": {"embed_charge": True, "embed_spin": True},
    "charges": {"predict_charges": True},
    "ratios": {"predict_hirshfeld_ratios": True},
    "charges, ratios, wide head": {
        "predict_charges": True,
        "predict_hirshfeld_ratios": True,
        "head_features": 48,
    },
}


def potential(seed: int = 0, *, repels: bool = False, **options) -> Potential:
    config = So3kratesConfig(
        **{
            "cutoff": 4.0,
            "avg_num_neighbors": 10.0,
            "num_features": 64,
            "num_heads": 4,  # as of the shipped model of silicon: compiled once for both
            "degrees": (1, 2, 3, 4),
            "num_layers": 2,
            "num_basis": 16,
            "head_features": 16,
            **options,
        }
    )
    torch.manual_seed(seed)
    network = So3krates(config, len(ELEMENTS))
    randomise(network, seed)
    return potential_of(network, repels=repels)


def assert_same(actual: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    for name in ("energy", "energies", "forces", "strain_gradient"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float64
        # of less, eV and eV/Å, the rounding of parts that cancel is a large share: 2e-7
        scale = theirs.abs().amax().clamp(min=0.05) if theirs.numel() else 1.0
        assert ((ours - theirs).abs() / scale).amax() <= tolerance, name


class TestContract(EngineContract):
    module, model = engine, "so3krates-ethanol"
    make, assert_same = staticmethod(potential), staticmethod(assert_same)


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
    check_structure(plain, structure(), assert_same)


@pytest.mark.parametrize("options", [{}, {"ev_init_divisor": 2.0}], ids=str)
def test_filters_kept_and_made_again_are_the_same(options: dict, monkeypatch) -> None:
    plain = potential(**options)
    graph = build_graph(plain, System.from_ase([triclinic() * (2, 2, 2), ethanol()]))
    kept = by_engine(plain, graph)
    monkeypatch.setattr(engine, "MOST_KEPT", 0)
    again = by_engine(plain, graph)
    assert torch.equal(kept.energies, again.energies)
    assert torch.equal(kept.forces, again.forces)


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
    assert not hasattr(lower(plain).network, "engine")


def test_the_first_layer_by_kinds_is_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase([ethanol(), triclinic(), Atoms("N")]))
    by_kinds = by_engine(plain, graph)
    monkeypatch.setattr(engine, "MOST_KINDS", 3)  # there are four
    assert_same(by_kinds, by_engine(plain, graph), 5e-6)
    # other elements after these, fewer and in another order
    fast = with_engine(plain)
    for atoms in (ethanol(), triclinic(), Atoms("OH", [[0, 0, 0], [0, 0, 1]]), ethanol()):
        graph = build_graph(plain, System.from_ase(atoms))
        assert_same(evaluate(fast, graph), evaluate(exact(plain), graph))


def test_charge_and_spin_reach_the_first_layer() -> None:
    plain = potential(embed_charge=True, embed_spin=True)
    fast = with_engine(plain)
    for charge, spin in ((0, 1), (1, 2), (0, 3), (0, 1)):
        atoms = ethanol()
        atoms.info = {"charge": charge, "spin": spin}
        graph = build_graph(plain, System.from_ase(atoms))
        assert_same(evaluate(fast, graph), evaluate(exact(plain), graph))


def test_atoms_that_change_in_place_are_seen() -> None:
    plain = potential(embed_charge=True, embed_spin=True)
    fast = with_engine(plain)
    apart = [Atoms("OH", [[0, 0, 0], [0, 0, 1]]), Atoms("H"), Atoms("H")]
    apart[0].info["charge"] = -1
    graph = build_graph(plain, System.from_ase(apart))
    assert_same(evaluate(fast, graph), evaluate(exact(plain), graph))
    for name, value in (
        ("charge", 1.0),
        ("spin", 2),
        ("species", graph.species.flip(0)),
        ("system_idx", torch.tensor([0, 0, 0, 2])),  # charge is shared by those of a system
    ):
        before = evaluate(exact(plain), graph).energies
        getattr(graph, name)[:] = value
        now = evaluate(exact(plain), graph)
        assert (now.energies - before).abs().max() > 1e-3, name
        assert_same(evaluate(fast, graph), now)


@pytest.mark.parametrize("length", [SHORTEST * (1 + 1e-9), SHORTEST + 0.01, 0.9, 2.0, 3.9, 3.999])
def test_pairs_at_all_distances(length: float) -> None:
    plain = potential(repels=True)
    atoms = Atoms("CO", positions=[[0, 0, 0], [0.6 * length, 0, 0.8 * length]])
    graph = build_graph(plain, System.from_ase(atoms))
    assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))


def test_charges_and_ratios_are_those_of_the_plain_network() -> None:
    """And so is what a gradient by them pulls back."""
    plain = potential(predict_charges=True, predict_hirshfeld_ratios=True)
    graph = build_graph(plain, System.from_ase([ion(), triclinic(), Atoms("O")]))
    generator = torch.Generator().manual_seed(0)
    given = AtomOutputs(*torch.randn(3, graph.n_atoms, generator=generator, dtype=torch.float64))
    found = with_engine(plain).network.engine.linearize(graph)
    expected = by_autograd(exact(plain).network, graph)
    for name in OUTPUTS:
        ours, theirs = getattr(found.outputs, name), getattr(expected.outputs, name)
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    ours, theirs = found.pull(given), expected.pull(given)
    assert (ours - theirs).abs().amax() <= TOLERANCE * theirs.abs().amax()


def test_ratios_have_no_sign() -> None:
    """Where what is inside of the absolute value is negative, the gradient turns round with it."""
    plain = potential(predict_hirshfeld_ratios=True)
    with torch.no_grad():
        plain.network.hirshfeld_head.of_species -= 1.0
    graph = build_graph(plain, System.from_ase(ethanol()))
    given = AtomOutputs(
        energies=torch.zeros(graph.n_atoms, dtype=torch.float64),
        hirshfeld_ratios=torch.ones(graph.n_atoms, dtype=torch.float64),
    )
    found = with_engine(plain).network.engine.linearize(graph)
    expected = by_autograd(exact(plain).network, graph)
    assert found.outputs.hirshfeld_ratios.min() >= 0
    ours, theirs = found.pull(given), expected.pull(given)
    assert (ours - theirs).abs().amax() <= TOLERANCE * theirs.abs().amax()
