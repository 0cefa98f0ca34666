"""The kernels of the GPU engine in Triton's interpreter, on the CPU: the plain network's numbers.

Collected by `test_interpreted.py`, which runs it in a process of its own: Triton reads
TRITON_INTERPRET when it is imported. This says nothing of races or speed.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from contract import ELEMENTS, build_graph, ethanol, on_the_axis, randomise, slab, triclinic
from in_triton import patch_once
from long_range_terms import CUTOFF, TERMS, assert_equal, by_autograd, many, outputs_for
from triton.runtime import interpreter

from attncalc import fast as lowering
from attncalc import potential as potentials
from attncalc.basis.cutoff import physnet
from attncalc.basis.so3 import SphericalHarmonics
from attncalc.fast import SHORTEST
from attncalc.graph import Graph, Graphs, SummedGradient
from attncalc.kernels.gpu.launching import launch
from attncalc.kernels.gpu.sums import sum_over_edges
from attncalc.kernels.so3krates.tables import Grid, harmonic_norms
from attncalc.kernels.so3krates_gpu import engine as module
from attncalc.kernels.so3krates_gpu import weights
from attncalc.kernels.so3krates_gpu.engine import Engine
from attncalc.kernels.so3krates_gpu.geometry import find_edges
from attncalc.neighbors import VerletList, fresh_graph
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import (
    EdgeGradients,
    Potential,
    assemble,
    evaluate,
    evaluate_without_waiting,
)
from attncalc.result import Result
from attncalc.system import System

assert os.environ.get("TRITON_INTERPRET") == "1"

# of float32, relative to the largest value; plain float32 itself is 1e-6..1e-5
TOLERANCE = 2e-5


patch_once()


def potential(seed: int = 0, *, repels: bool = False, **options) -> Potential:
    config = So3kratesConfig(
        **{
            "cutoff": 4.0,
            "avg_num_neighbors": 10.0,
            "num_features": 32,
            "num_heads": 2,
            "degrees": (1, 2),
            "num_layers": 2,
            "num_basis": 16,
            "head_features": 16,
            **options,
        }
    )
    torch.manual_seed(seed)
    network = So3krates(config, len(ELEMENTS))
    randomise(network, seed)
    return Potential(
        network,
        ELEMENTS,
        scale=[1.0, 2.0, 0.5, 3.0],
        reference_energies=[-1.0, -2.0, -3.0, -4.0],
        pair_terms=[ZBLRepulsion(ZBLConfig(cutoff=2.0), ELEMENTS)] if repels else [],
    ).requires_grad_(False)


def exact(plain: Potential) -> Potential:
    twin = copy.deepcopy(plain)
    twin.set_dtype(torch.float64)
    return twin


class Step:
    """A potential with the engine of a GPU."""

    def __init__(self, plain: Potential) -> None:
        fast = lowering._with_engine(plain, "cuda")
        assert fast is not None
        self.potential = lowering._with_lowered_terms(fast, "cuda")
        self.engine = fast.network.engine
        assert isinstance(self.engine, Engine)

    def submit(self, graph: Graph) -> Result:
        return evaluate_without_waiting(self.potential, graph)

    def __call__(self, graph: Graph) -> Result | None:
        """By the engine; None where it has no tables."""
        result = self.submit(graph)
        return None if result.energy.isnan().any() else result


def step(plain: Potential) -> Step:
    return Step(plain)


def assert_same(actual: Result | None, expected: Result, tolerance: float = TOLERANCE) -> None:
    assert actual is not None
    for name in ("energy", "energies", "forces", "strain_gradient"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float64
        # forces that vanish by symmetry are sums of pairs' forces of the order of one
        scale = theirs.abs().amax().clamp(min=1e-2) if theirs.numel() else 1.0
        assert ((ours - theirs).abs() / scale).amax() <= tolerance, name


def check(plain: Potential, graph: Graph, tolerance: float = TOLERANCE) -> Result:
    result = step(plain)(graph)
    assert_same(result, evaluate(exact(plain), graph), tolerance)
    assert torch.equal(result.strain_gradient, result.strain_gradient.transpose(1, 2))
    # the gradient of an edge acts on both of its atoms, and is added up in float64
    scale = max(result.forces.abs().amax(), result.strain_gradient.abs().amax())
    assert result.forces.sum(0).abs().amax() <= 1e-13 * scale
    return result


def small() -> Atoms:
    """Five atoms, one of them alone but for one neighbour."""
    positions = [[0, 0, 0], [1.1, 0.2, 0], [1.6, 1.5, 0.3], [0.2, -0.9, 0.5], [4.9, 1.9, 0.1]]
    return Atoms("COHHN", positions=positions)


OPTIONS = {
    "default": {},
    "three layers": {"num_layers": 3},
    "one layer": {"num_layers": 1},
    "eight heads, four degrees": {"num_heads": 8, "num_features": 64, "degrees": (1, 2, 3, 4)},
    "one degree": {"degrees": (2,), "num_heads": 1},
    "many orders": {"degrees": (1, 5)},
    "square root of width": {"attention_norm": "sqrt_head_width"},
    "physnet basis, cosine": {"radial_basis": "physnet", "cutoff_function": "cosine"},
    "started variables": {"ev_init_divisor": 2.0},
    "wide head": {"head_features": 64},
    "electrons": {"embed_charge": True, "embed_spin": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option(options: dict) -> None:
    plain = potential(**options)
    atoms = small()
    if "embed_charge" in options:
        atoms.info = {"charge": 1, "spin": 3}
    check(plain, build_graph(plain, System.from_ase(atoms)))


STRUCTURES = {
    "molecule": ethanol,
    "along the axis": on_the_axis,
    "crystal": triclinic,
    "slab": slab,
    "own images": lambda: bulk("C", a=3.2),
    "alone": lambda: Atoms("O"),
    "batch": lambda: [on_the_axis(), Atoms("O"), triclinic(), Atoms("NH", [[0, 0, 0], [1, 0, 0]])],
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_every_structure(structure) -> None:
    plain = potential(repels=True)
    check(plain, build_graph(plain, System.from_ase(structure())))


def test_padding_skin_and_masked_edges_count_nothing() -> None:
    plain = potential(repels=True)
    system = System.from_ase(small())
    near = build_graph(plain, system)
    padded = build_graph(plain, system, skin=1.0, capacity=64)
    assert not padded.edge_mask.all()
    expected = step(plain)(near)
    assert_same(step(plain)(padded), expected, 2e-6)
    vectors = torch.where(padded.edge_mask.unsqueeze(1), padded.vectors, torch.nan)
    assert_same(step(plain)(replace(padded, vectors=vectors)), expected, 2e-6)
    # beyond the cutoff, but not masked
    length = torch.linalg.vector_norm(padded.vectors, dim=1)
    beyond = (length < 5.0) & (length >= 4.0)
    assert beyond.any()
    unmasked = replace(padded, edge_mask=padded.edge_mask | beyond)
    assert_same(step(plain)(unmasked), expected, 2e-6)


def test_the_first_layer_by_elements_is_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase(small()))
    by_kind = step(plain)
    monkeypatch.setattr(module, "MOST_KINDS", 3)  # there are four
    general = step(plain)
    assert by_kind.engine.by_kind
    assert not general.engine.by_kind
    assert_same(by_kind(graph), general(graph), 5e-6)


def test_tiles_of_many_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase(small()))
    few = step(plain)(graph)
    monkeypatch.setattr(module, "FEW", 0)
    assert_same(step(plain)(graph), few, 2e-6)


def test_filters_of_large_graphs_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = potential(ev_init_divisor=2.0)
    graph = build_graph(plain, System.from_ase(small()))
    launched = []

    def noted(kernel, *given, **more) -> None:
        launched.append(kernel.fn.__name__)
        launch(kernel, *given, **more)

    monkeypatch.setattr(module, "launch", noted)
    kept = step(plain)(graph)
    assert launched.count("filters") == 2  # one per layer
    launched.clear()
    monkeypatch.setattr(module, "_most_kept", lambda device: 0)
    again = step(plain)(graph)
    assert launched.count("filters") == 4
    assert torch.equal(again.energies, kept.energies)
    assert torch.equal(again.forces, kept.forces)


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to 10 bits behind the first, as tensor cores read float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32)


def test_three_products_of_tensor_cores_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies exactly: here as the hardware does with "tf32x3"."""
    plain = potential()
    graph = build_graph(plain, System.from_ase(small()))
    reference = evaluate(exact(plain), graph)
    ours = step(plain)
    ours.engine.shape["PRECISION"] = "tf32x3"
    kinds = set()

    def error(n_products: int) -> float:
        def multiply(builder, a, b, total, precision, *_):
            kinds.add(str(precision))
            a_high, b_high = tf32(a.data), tf32(b.data)
            a_low, b_low = tf32(a.data - a_high), tf32(b.data - b_high)
            product = a_high @ b_high
            if n_products == 3:
                product = a_low @ b_high + a_high @ b_low + product
            return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply)
        difference = ours(graph).forces - reference.forces
        return float(difference.abs().amax() / reference.forces.abs().amax())

    assert error(3) <= TOLERANCE / 4
    assert error(1) > TOLERANCE  # one product is not, so the patched product is the one in use
    assert len(kinds) == 1
    assert "TF32x3" in kinds.pop()


def test_permuted_atoms() -> None:
    plain = potential(repels=True)
    order = [3, 0, 4, 2, 1]
    atoms, ours = small(), step(plain)
    result = ours(build_graph(plain, System.from_ase(atoms)))
    permuted = ours(build_graph(plain, System.from_ase(atoms[order])))
    scale = result.forces.abs().amax()
    assert (permuted.forces - result.forces[order]).abs().amax() <= 2e-6 * scale


def test_equal_to_the_bit_from_call_to_call() -> None:
    plain = potential(repels=True)
    ours, graph = step(plain), build_graph(plain, System.from_ase(triclinic()))
    first, again = ours(graph), ours(graph)
    for name in ("energy", "energies", "forces", "strain_gradient"):
        assert torch.equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("length", [SHORTEST * (1 + 1e-9), 0.9, 2.0, 3.999])
def test_pairs_at_all_distances(length: float) -> None:
    plain = potential(repels=True, num_layers=1)
    atoms = Atoms("CO", positions=[[0, 0, 0], [0.6 * length, 0, 0.8 * length]])
    check(plain, build_graph(plain, System.from_ase(atoms)))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_close_atoms_take_the_plain_path_and_leave_other_systems_alone(n_layers: int) -> None:
    plain = potential(num_layers=n_layers)
    close = Atoms("CO", positions=[[0, 0, 0], [0, 0, 0.99 * SHORTEST]])
    graph = build_graph(plain, System.from_ase([close, on_the_axis()]))
    ours = step(plain)
    assert ours(graph) is None
    submitted = ours.submit(graph)
    assert submitted.energy.isnan().tolist() == [True, False]
    alone = ours(build_graph(plain, System.from_ase(on_the_axis())))
    assert (submitted.forces[2:] - alone.forces).abs().amax() <= 2e-6 * alone.forces.abs().amax()
    fast = ours.potential
    assert torch.equal(evaluate(fast, graph).forces, evaluate(plain, graph).forces)


def test_positions_that_are_not_numbers_give_such_results() -> None:
    plain = potential()
    graph = build_graph(plain, System.from_ase(on_the_axis()))
    broken = graph.with_vectors(torch.full_like(graph.vectors, torch.nan))
    assert step(plain)(broken) is None
    fast = step(plain).potential
    assert evaluate(fast, broken).forces.isnan().any()


@pytest.mark.parametrize("repels", [False, True])
def test_chosen_for_a_gpu(repels: bool) -> None:
    plain = potential(num_layers=1, repels=repels)
    graph = build_graph(plain, System.from_ase(on_the_axis()))
    made = lowering._with_engine(plain, "cuda")
    assert isinstance(made.network.engine, Engine)
    fast = lowering._with_lowered_terms(made, "cuda")
    assert_same(evaluate(fast, graph), evaluate(exact(plain), graph))
    cosine = ZBLRepulsion(ZBLConfig(cutoff=2.0, cutoff_function="cosine"), ELEMENTS)
    for terms in ([cosine], [cosine, *plain.pair_terms]):  # any terms, by autograd
        other = Potential(plain.network, ELEMENTS, pair_terms=terms)
        assert_same(step(other)(graph), evaluate(exact(other), graph))


@pytest.mark.parametrize("padding", [{}, {"skin": 1.0, "capacity": 1000}])
def test_sums_over_edges(padding: dict) -> None:
    """Forces and strain gradients of the loop on the CPU, for gradients of any signs."""
    for atoms in ([on_the_axis(), slab(), triclinic()], [bulk("C", a=3.2)], [Atoms("H")]):
        graph = build_graph(potential(), System.from_ase(atoms), **padding)
        random = torch.randn(graph.n_edges, 3, dtype=torch.float64)
        counts = graph.edge_mask.unsqueeze(1)
        gradient = torch.where(counts, random, 0.0)
        # vectors of other edges may be anything
        vectors = torch.where(counts, graph.vectors, torch.nan)
        forces, strain_gradient = sum_over_edges(replace(graph, vectors=vectors), gradient)
        energies = torch.zeros(graph.n_atoms, dtype=torch.float64)
        expected = assemble(Graphs(graph), EdgeGradients(energies, gradient))
        # every edge is rounded to a multiple of 2^-42
        most = 2 * int(torch.bincount(graph.receivers[graph.edge_mask], minlength=1).max())
        off = 1e-12 + most * 2**-43
        torch.testing.assert_close(forces, expected.forces, rtol=0, atol=off)
        off = 1e-12 + int(graph.edge_mask.sum()) * 2**-43
        torch.testing.assert_close(strain_gradient, expected.strain_gradient, rtol=0, atol=off)


def test_sums_are_the_same_bits_for_lists_with_other_pairs_beyond_the_cutoff() -> None:
    """As after a restart, whose list is a new one."""
    structures, found = [on_the_axis(), slab(), triclinic()], []
    for skin in (0.0, 0.4, 1.5):
        padding = {"skin": skin, "capacity": 1000} if skin else {}
        graph = build_graph(potential(), System.from_ase(structures), **padding)
        random = torch.zeros(graph.n_edges, 3, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        n = int(graph.edge_mask.sum())
        random[graph.edge_mask] = 10 * torch.randn(n, 3, dtype=random.dtype, generator=generator)
        found.append(sum_over_edges(graph, random))
    assert n > 100
    for forces, strain_gradient in found[1:]:
        assert torch.equal(forces, found[0].forces)
        assert torch.equal(strain_gradient, found[0].strain_gradient)


def test_sums_are_compared_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = potentials._sum_kernels.__wrapped__
    kernels = choose(torch.device("cpu"))
    assert kernels is not None
    right = kernels.sum_over_edges
    monkeypatch.setattr(
        kernels,
        "sum_over_edges",
        lambda *given: SummedGradient(*(2 * one for one in right(*given))),
    )
    assert choose(torch.device("cpu")) is None


def clash() -> Atoms:
    """Pairs of all elements at all lengths at which they repel, and at those where that ends."""
    lengths = np.linspace(0.3, 1.6, 40)
    z = np.resize(ELEMENTS, 80)
    positions = np.zeros((80, 3))
    positions[:, 0] = 10.0 * (np.arange(80) // 2)
    direction = np.random.default_rng(0).normal(size=(40, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    positions[1::2] += lengths[:, None] * direction
    return Atoms(numbers=z, positions=positions)


@pytest.mark.parametrize("cutoff", [1.2, 4.0])
@pytest.mark.parametrize("padding", [{}, {"skin": 1.0, "capacity": 1000}])
def test_repulsion_by_kernels(cutoff: float, padding: dict) -> None:
    """Energies and gradients of the plain term in float64."""
    plain = ZBLRepulsion(ZBLConfig(cutoff=cutoff), ELEMENTS).double().requires_grad_(False)
    (fast,) = lowering._lower_terms([plain], "cuda")
    assert type(fast) is not ZBLRepulsion
    for atoms in ([clash()], [on_the_axis(), slab(), triclinic()], [Atoms("H")]):
        graph = build_graph(potential(), System.from_ase(atoms), **padding)
        energies, gradient, _ = fast.linearize(graph, None)
        leaf = graph.vectors.detach().requires_grad_(True)
        expected = plain(graph.with_vectors(leaf), None)
        by_vectors = torch.zeros_like(leaf)
        if expected.requires_grad:
            (by_vectors,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(energies, expected.detach(), rtol=1e-12, atol=1e-12)
        forces = []
        for one in (gradient, by_vectors):  # of a pair, one or both edges carry the gradient
            on_atoms = torch.zeros(graph.n_atoms, 3, dtype=torch.float64)
            on_atoms.index_add_(0, graph.receivers, one)
            forces.append(on_atoms.index_add_(0, graph.senders, one, alpha=-1))
        torch.testing.assert_close(*forces, rtol=1e-12, atol=1e-10)
        assert not gradient[~graph.edge_mask].any()
    assert energies.tolist() == [0.0]  # nothing repels a single atom


def test_repulsion_of_positions_that_are_not_numbers() -> None:
    plain = ZBLRepulsion(ZBLConfig(cutoff=2.0), ELEMENTS).double().requires_grad_(False)
    (fast,) = lowering._lower_terms([plain], "cuda")
    graph = build_graph(potential(), System.from_ase(on_the_axis()))
    broken = graph.with_vectors(torch.full_like(graph.vectors, torch.nan))
    assert fast.linearize(broken, None).energies.isnan().all()


@pytest.mark.parametrize(
    ("kind", "padding"),
    [*((kind, {}) for kind in TERMS), ("both", {"skin": 1.0, "capacity": 4000})],
)
def test_pairs_of_longer_range_by_kernels(kind: str, padding: dict) -> None:
    """Energies, forces, strain and gradients by charges and ratios, by autograd in float64."""
    padding = {"skin": 0.0, **padding}
    for atoms, end in (
        ([ethanol(), triclinic(), Atoms("O"), many()], CUTOFF),
        ([ethanol()], 1000.0),
        ([ethanol(), Atoms("CO", [[0, 0, 0], [0, 30.0, 40.0]])], None),
        ([Atoms("O")], CUTOFF),
    ):
        terms = TERMS[kind](end)
        (fast,) = lowering._lower_terms(terms, "cuda")
        assert type(fast) not in map(type, terms)
        options = {"cutoff": 1e4 if end is None else end, "species": ELEMENTS, **padding}
        _, graph = VerletList.create(**options).update(System.from_ase(atoms))
        outputs = outputs_for(graph.n_atoms)
        energies, summed, by_outputs = fast.linearize(graph, outputs)
        zero = torch.zeros(graph.n_atoms)
        others = (by_outputs.get(name, zero) for name in ("charges", "hirshfeld_ratios"))
        assert_equal([energies, *summed, *others], by_autograd(terms, graph, outputs))
        assert torch.equal(fast(graph, outputs), sum(term(graph, outputs) for term in terms))


def test_longer_range_of_positions_that_are_not_numbers() -> None:
    (fast,) = lowering._lower_terms(TERMS["both"](CUTOFF), "cuda")
    graph = fresh_graph(System.from_ase(ethanol()), cutoff=CUTOFF, species=ELEMENTS)
    broken = graph.with_vectors(torch.full_like(graph.vectors, torch.nan))
    assert fast.linearize(broken, outputs_for(graph.n_atoms)).energies.isnan().all()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_charges_and_hirshfeld_ratios_and_terms_that_read_them(n_layers: int) -> None:
    heads = {"predict_charges": True, "predict_hirshfeld_ratios": True, "embed_charge": True}
    plain = potential(num_layers=n_layers, degrees=(1, 3), repels=True, **heads)
    elements = plain.species
    plain.pair_terms.append(DampedElectrostatics(ElectrostaticsConfig(cutoff=6.0), elements))
    plain.pair_terms.append(Dispersion(DispersionConfig(cutoff=6.0), elements))
    ion, neutral = on_the_axis(), small()
    ion.info["charge"] = 1
    system = System.from_ase([ion, neutral])
    graphs = Graphs(
        build_graph(plain, system), fresh_graph(system, cutoff=6.0, species=plain.species)
    )
    found = evaluate_without_waiting(step(plain).potential, graphs)
    expected = evaluate(exact(plain), graphs)
    assert_same(found, expected)
    for name in ("charges", "hirshfeld_ratios"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)
    assert found.charges[: len(ion)].sum() == pytest.approx(1.0, abs=1e-6)


def test_the_same_bits_from_lists_with_other_pairs_beyond_the_cutoff() -> None:
    """With all terms, as after a restart, whose lists are new ones."""
    heads = {"predict_charges": True, "predict_hirshfeld_ratios": True}
    plain = potential(num_layers=1, repels=True, **heads)
    plain.pair_terms.append(DampedElectrostatics(ElectrostaticsConfig(cutoff=6.0), plain.species))
    plain.pair_terms.append(Dispersion(DispersionConfig(cutoff=6.0), plain.species))
    ours, found = step(plain).potential, []
    system = System.from_ase([triclinic(), on_the_axis()])
    for skin in (0.3, 1.5):
        graphs = []
        for cutoff in (plain.cutoff, 6.0):
            options = {"cutoff": cutoff, "skin": skin, "species": plain.species, "capacity": 64}
            graphs.append(VerletList.create(**options).update(system)[1])
        found.append(evaluate_without_waiting(ours, Graphs(*graphs)))
    assert graphs[1].n_edges > int(graphs[1].edge_mask.sum()) + 200
    for name in ("energy", "forces", "strain_gradient", "charges", "hirshfeld_ratios"):
        assert torch.equal(*(getattr(result, name) for result in found)), name


@pytest.mark.parametrize("heads", [{}, {"predict_charges": True, "num_layers": 1}])
def test_features_are_those_that_the_heads_read(heads: dict) -> None:
    plain = potential(**heads)
    graph = build_graph(plain, System.from_ase([on_the_axis(), small()]))
    features = step(plain).engine.linearize(graph).outputs.features
    expected = exact(plain).network(graph).features
    torch.testing.assert_close(features.double(), expected, atol=1e-4, rtol=0)


def test_the_network_stays_as_it_is() -> None:
    plain = potential()
    before = copy.deepcopy(plain.state_dict())
    step(plain)
    assert plain.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("highest", [1, 3, 4, 7])
def test_harmonics_and_cutoff_function_of_edges(highest: int) -> None:
    """Every second edge counts; against the plain functions in float64."""
    random = np.random.default_rng(0)
    n, orders = 40, weights.padded_orders(highest)
    vectors = torch.from_numpy(random.normal(size=(n, 3)))
    mask = torch.arange(n) % 2 == 0
    slots = torch.cumsum(mask, 0, dtype=torch.int32) - mask.int()
    config = So3kratesConfig(cutoff=4.0, avg_num_neighbors=1.0)
    grid = Grid(0.2, 4.0, 512)
    found = {
        "found_vectors": torch.empty(n, 3, dtype=torch.float64),
        "found_receivers": torch.empty(n, dtype=torch.int32),
        "found_senders": torch.empty(n, dtype=torch.int32),
        "knots": torch.empty(n, dtype=torch.int32),
        **{name: torch.empty(n) for name in ("places", "envelopes", "envelope_slopes")},
        "spherical": torch.full((n, orders), torch.nan),
    }
    launch(
        find_edges,
        (2,),
        found,
        vectors=vectors,
        receivers=torch.arange(n).flip(0),
        senders=torch.arange(n),
        mask=mask,
        slots=slots,
        numbers=torch.tensor([0.2, 4.0, 512, 512 / 3.8], dtype=torch.float64),
        envelope_table=weights.envelope_table(config, grid),
        norms=weights.single(harmonic_norms(highest)),
        n_edges=n,
        zero_row=512,
        LMAX=highest,
        MP=orders,
        B=32,
    )
    count = n // 2
    near = vectors[mask]
    lengths = torch.linalg.vector_norm(near, dim=1)
    assert torch.equal(found["found_vectors"][:count], near)
    assert found["found_senders"][:count].tolist() == list(range(0, n, 2))
    assert found["found_receivers"][:count].tolist() == list(range(n - 1, 0, -2))
    harmonics = SphericalHarmonics(tuple(range(1, highest + 1)))
    expected = harmonics(near / lengths.unsqueeze(1))
    spherical = found["spherical"][:count]
    assert (spherical[:, : expected.shape[1]] - expected).abs().amax() < 2e-6
    assert not spherical[:, expected.shape[1] :].any()
    lengths.requires_grad_(True)
    envelope = physnet(lengths, 4.0)
    (slope,) = torch.autograd.grad(envelope.sum(), lengths)
    long = lengths >= 0.2
    assert (found["envelopes"][:count] - envelope)[long].abs().amax() < 1e-6
    assert (found["envelope_slopes"][:count] - slope)[long].abs().amax() < 1e-5
    places = found["knots"][:count] + found["places"][:count]
    assert (places * 3.8 / 512 + 0.2 - lengths)[long].abs().amax() < 1e-6
