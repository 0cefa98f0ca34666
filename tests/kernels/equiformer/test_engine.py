"""The compiled step equals the plain network in float64: every option, every kind of structure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, build_graph, ethanol, on_the_axis, randomise, slab, triclinic
from engine_contract import (
    TOLERANCE,
    EngineContract,
    by_engine,
    check_structure,
    exact,
    potential_of,
)
from safetensors.torch import load_file

from attncalc.convert import equiformer
from attncalc.fast import SHORTEST, lower
from attncalc.kernels.equiformer import engine
from attncalc.kernels.equiformer.engine import can_run
from attncalc.neighbors import fresh_graph
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.potential import Potential, evaluate
from attncalc.result import Result
from attncalc.system import System

PUBLISHED = {"cutoff_function": "none", "paths": "all"}
ATTENTIONS = ("nonlinear", "linear", "dot")
FUNCTIONS = {"ours": {}, "published": PUBLISHED}
OPTIONS = {
    "one layer": {"num_layers": 1},
    "three layers": {"num_layers": 3},
    "lmax 1": {"channels": (32, 16)},
    "lmax 3": {"channels": (32, 16, 16, 16)},
    "lmax 4": {"channels": (16, 16, 16, 16, 16), "num_layers": 1},
    "odd widths": {"channels": (80, 48, 32), "num_heads": 16},
    "one head": {"num_heads": 1},
    "few basis functions": {"num_basis": 5},
    "wide head": {"head_features": 96},
    "wide hidden layers": {"radial_features": 48, "feed_forward_factor": 1},
    "all paths, smooth": {"paths": "all"},
    "natural paths, not smooth": {"cutoff_function": "none", "norm": "joint"},
    "norm of each degree": {"norm": "degree"},
}


def potential(seed: int = 0, *, repels: bool = False, **options) -> Potential:
    config = EquiformerConfig(
        **{
            "cutoff": 4.0,
            "avg_num_neighbors": 10.0,
            "channels": (48, 32, 16),
            "num_layers": 2,
            "num_heads": 2,
            "attention_features": 16,
            "feed_forward_factor": 2,
            "num_basis": 16,
            "radial_features": 32,
            "head_features": 32,
            **options,
        }
    )
    torch.manual_seed(seed)
    network = Equiformer(config, len(ELEMENTS))
    randomise(network, seed)
    return potential_of(network, repels=repels)


def assert_same(actual: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    """Relative to the largest energy, force and gradient by strain.

    Forces of edges cancel in many structures, but not in the gradient by strain: forces are
    compared with 1 % of that per Å, or of the energy, if they are smaller.
    """
    largest, strain = expected.energies.abs().amax(), expected.strain_gradient.abs().amax()
    force = torch.maximum(expected.forces.abs().amax(), 0.01 * torch.maximum(largest, strain))
    strain = torch.maximum(strain, force)
    scales = {"energy": largest, "energies": largest, "forces": force, "strain_gradient": strain}
    for name, scale in scales.items():
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float64
        assert ((ours - theirs).abs() / scale).amax() <= tolerance, name


class TestContract(EngineContract):
    module, model = engine, "equiformer-ethanol"
    make, assert_same = staticmethod(potential), staticmethod(assert_same)

    @pytest.fixture(params=ATTENTIONS)
    def every_kind(self, request) -> Potential:
        return potential(attention=request.param)


def tiny() -> Atoms:
    """A cell in which atoms see many images of themselves."""
    cell = [[2.3, 0.1, -0.2], [0.3, 2.6, 0.2], [-0.4, 0.5, 2.4]]
    atoms = Atoms("CO", cell=cell, pbc=True)
    atoms.set_scaled_positions([[0.1, 0.05, 0.9], [0.5, 0.4, 0.3]])
    return atoms


STRUCTURES = {
    "molecule": ethanol,
    "along the axis": on_the_axis,
    "down the axis": lambda: Atoms("NCH", positions=[[0, 0, 0], [0, -1.2, 0], [0, 1.1, 0]]),
    "crystal": triclinic,
    "slab": slab,
    "own images": tiny,
    "isolated atom": lambda: Atoms("O"),
    "batch": lambda: [ethanol(), triclinic(), Atoms("O"), slab()],
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option(options: dict, function: dict, attention: str) -> None:
    plain = potential(1, **(function | options), attention=attention)
    assert can_run(plain.network)
    graph = build_graph(plain, System.from_ase([ethanol(), triclinic()]))
    assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_every_structure(structure, function: str, attention: str) -> None:
    plain = potential(repels=function == "ours", **FUNCTIONS[function], attention=attention)
    check_structure(plain, structure(), assert_same)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("molecule", ["ethanol", "aspirin"])
def test_the_published_code(shared: Path, attention: str, molecule: str) -> None:
    """Its own energies and forces, float64, with its own weights."""
    base = shared / "reference" / "equiformer" / f"{attention}_l2"
    plain = equiformer(f"{base}.weights.safetensors", f"{base}.config.json")
    plain.set_dtype(torch.float32)
    reference = load_file(f"{base}.{molecule}.safetensors")
    atoms = Atoms(reference["atomic_numbers"], positions=reference["positions"])
    graph = build_graph(plain, System.from_ase(atoms))
    result = by_engine(plain.requires_grad_(False), graph)
    for name in ("energy", "forces"):
        actual, expected = getattr(result, name), reference[name]
        assert (actual - expected).abs().amax() <= TOLERANCE * expected.abs().amax(), name


@pytest.mark.parametrize(
    "options",
    [
        {"channels": (48, 32, 24)},
        {"radial_features": 24},
        {"head_features": 40},
        {"attention_features": 5},
        {"channels": (96, 96), "num_heads": 32},
    ],
    ids=str,
)
def test_what_the_loops_do_not_know_runs_another_way(options: dict) -> None:
    plain = potential(**options)
    assert not can_run(plain.network)
    assert not hasattr(lower(plain).network, "engine")


def test_the_proof_does_not_count_the_plain_rounding() -> None:
    """The published network of published size: plain float32 is off by 1e-4 on the samples."""
    torch.manual_seed(0)
    network = Equiformer(EquiformerConfig(5.0, 15.58, **PUBLISHED), 8)
    plain = Potential(network, (1, 6, 7, 8, 9, 15, 16, 17)).requires_grad_(False)
    assert hasattr(lower(plain).network, "engine")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_edges_computed_again_give_the_same(attention: str, monkeypatch) -> None:
    """Where all that the gradient needs does not fit into memory."""
    plain = potential(attention=attention)
    graph = build_graph(plain, System.from_ase([triclinic(), ethanol(), slab()]))
    expected = by_engine(plain, graph)
    monkeypatch.setattr(engine, "LARGEST_KEPT", 0)
    result = by_engine(plain, graph)
    for name in ("energies", "forces", "strain_gradient"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name


def test_without_a_smooth_cutoff_only_the_mask_counts() -> None:
    """As in the plain network: an edge that is beyond the cutoff and not masked takes part."""
    plain = potential(**PUBLISHED)
    far = fresh_graph(System.from_ase(triclinic()), cutoff=4.6, species=plain.species)
    assert_same(by_engine(plain, far), evaluate(exact(plain), far))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("beyond", [1e-1, 1e-2, 1e-3, 1e-5])
def test_an_edge_that_fades_out(beyond: float, attention: str) -> None:
    """Its envelope is as small as 1e-17, and nothing is divided by it."""
    plain = potential(attention=attention)
    positions = [[0, 0, 0], [0, 0, 1.3], [0, 4.0 - beyond, 0]]
    for atoms in (Atoms("COH", positions=positions), Atoms("CH", positions=positions[::2])):
        graph = build_graph(plain, System.from_ase(atoms))
        assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))


@pytest.mark.parametrize(
    ("function", "length"),
    [
        (function, length)
        for function in FUNCTIONS
        for length in (SHORTEST * (1 + 1e-9), SHORTEST + 0.01, 0.9, 2.0, 3.9)
    ]
    + [("ours", 3.999)],
)
def test_pairs_at_all_distances(function: str, length: float) -> None:
    plain = potential(1, repels=True, **FUNCTIONS[function])
    atoms = Atoms("CO", positions=[[0, 0, 0], [0.6 * length, 0, 0.8 * length]])
    graph = build_graph(plain, System.from_ase(atoms))
    assert_same(by_engine(plain, graph), evaluate(exact(plain), graph))
