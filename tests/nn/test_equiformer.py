"""Equiformer: the paper's formulas, the published numbers, and what is ours and smooth."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import (
    ELEMENTS,
    STRUCTURES,
    SYMMETRIC,
    NetworkContract,
    assert_close,
    assert_same_result,
    build_graph,
    ethanol,
    graph_of_edges,
    moved_along,
    random_potential,
    result_of,
    transformed,
)
from equiformer_paper import Paper
from safetensors.torch import load_file
from torch import Tensor

from attncalc.basis.edge_frames import coupling
from attncalc.convert import equiformer
from attncalc.graph import Graph
from attncalc.kernels.frozen_equiformer import frozen
from attncalc.nn import equiformer as module
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.equiformer_attention import attention_weights
from attncalc.nn.equiformer_edges import EdgeData
from attncalc.ops import with_modules
from attncalc.potential import Potential, evaluate
from attncalc.system import System
from attncalc.train.step import Batch, Loss, eager_step, trainable

# smaller than shipped models in width only; 3.5 Å keeps the ghost clusters small
SMALL = {
    "cutoff": 3.5,
    "avg_num_neighbors": 8.0,
    "num_layers": 2,
    "num_heads": 2,
    "attention_features": 5,
    "num_basis": 8,
    "radial_features": 6,
    "head_features": 10,
}
PUBLISHED = {"cutoff_function": "none", "paths": "all"}
L2, L3 = {"channels": (8, 6, 4)}, {"channels": (8, 4, 6, 2)}
ATTENTIONS = ("nonlinear", "linear", "dot")
OURS = {
    "nonlinear": EquiformerConfig(**SMALL, **L2),
    "linear": EquiformerConfig(**SMALL, **L2, attention="linear"),
    "dot": EquiformerConfig(**SMALL, **L2, attention="dot"),
    "nonlinear L3": EquiformerConfig(**SMALL, **L3),
}
THEIRS = {
    f"{name} L{len(c['channels']) - 1}": EquiformerConfig(**SMALL, **c, **PUBLISHED, attention=name)
    for name in ATTENTIONS
    for c in (L2, L3)
}


class TestContract(NetworkContract):
    @pytest.fixture(params=list(OURS))
    def potential(self, request: pytest.FixtureRequest) -> Potential:
        return random_potential(OURS[request.param], seed=1)


class TestPublished:
    """What the published network promises, and that it breaks what it is said to break."""

    @pytest.fixture(params=list(THEIRS))
    def potential(self, request: pytest.FixtureRequest) -> Potential:
        return random_potential(THEIRS[request.param])

    @pytest.fixture(params=list(STRUCTURES))
    def atoms(self, request: pytest.FixtureRequest) -> Atoms:
        return STRUCTURES[request.param]()

    test_rotation = NetworkContract.test_rotation
    test_translation = NetworkContract.test_translation
    test_permutation = NetworkContract.test_permutation
    test_second_derivation = NetworkContract.test_second_derivation_by_positions_and_strain
    test_padding_and_skin = NetworkContract.test_padding_and_skin_change_nothing
    test_masked_edges = NetworkContract.test_masked_edges_may_hold_any_vector
    test_batch_equals_single = NetworkContract.test_batch_equals_single
    test_supercell_equals_cell = NetworkContract.test_supercell_equals_cell
    test_isolated_atom = NetworkContract.test_an_isolated_atom_has_one_energy
    test_file = NetworkContract.test_file_gives_back_the_same_bits

    def test_a_mirror_image_has_another_energy(self, potential: Potential) -> None:
        """Paths of odd l1 + l2 + l3 know left from right: chemistry does not."""
        atoms = ethanol()
        energies = [
            float(result_of(potential, transformed(atoms, sign * np.eye(3))).energy)
            for sign in (1, -1)
        ]
        assert abs(energies[0] - energies[1]) > 1e-4

    @pytest.mark.parametrize("name", list(SYMMETRIC))
    def test_symmetric_environments_are_singular_points(
        self, potential: Potential, name: str
    ) -> None:
        """Forces at a displacement of 1e-5 Å are not those at 0: see `EquivariantLayerNorm`."""
        atoms = SYMMETRIC[name]()
        forces = [
            result_of(potential, moved_along(atoms, 2, step)).forces for step in (0, 1e-5, 1e-3)
        ]
        changes = [(after - forces[0]).abs().max() for after in forces[1:]]
        assert changes[0] > 0.1 * changes[1]

    def test_energy_and_forces_jump_at_the_cutoff(self, potential: Potential) -> None:
        jumps = []
        for h in (1e-3, 1e-6):
            results = []
            for side in (-h, h):
                atoms = Atoms("COH", positions=[[0, 0, 0], [0.9, 0.5, 0.2], [0, 0, 0]])
                atoms.positions[2, 2] = potential.cutoff + side
                results.append(result_of(potential, atoms))
            inside, outside = results
            jumps.append(
                [
                    abs(float(outside.energy - inside.energy)),
                    float((outside.forces - inside.forces).abs().max()),
                ]
            )
        for far, near in zip(*jumps, strict=True):
            assert near > 0.9 * far > 1e-4


@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_of_an_edge_that_fades_out(gap: float, dtype: torch.dtype) -> None:
    """However large its logit, the others take over smoothly, and alone it fades as c."""
    logits = torch.tensor([[0.0], [gap], [gap]], dtype=dtype)
    receivers = torch.tensor([0, 0, 1])
    for fade in (1e-3, 1e-10, 1e-18, 0.0):
        envelope = torch.tensor([0.7, fade, fade], dtype=dtype, requires_grad=True)
        edges = EdgeData(receivers, torch.ones(3, dtype=torch.bool), envelope, envelope, [])
        weights = attention_weights(logits, edges, 2)[:, 0]
        ratio = math.exp(gap) * fade
        expected = [0.7 * 0.7 / (0.7 + ratio), fade * ratio / (0.7 + ratio), fade]
        assert weights.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-30)
        (slope,) = torch.autograd.grad(weights.sum(), envelope)
        assert slope.isfinite().all()


@pytest.mark.parametrize("name", list(OURS))
def test_in_chunks_and_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, and the gradients of a training step, in float64."""
    potential = copy.deepcopy(random_potential(OURS[name]))
    structures = [ethanol(), Atoms("C"), STRUCTURES["triclinic"]()]
    graph = build_graph(potential, System.from_ase(structures), skin=0.5, capacity=32)
    step = eager_step(potential.requires_grad_(True), Loss(1.0, 1.0, 0.5))
    labels = [torch.zeros(shape, dtype=torch.float64) for shape in ((3,), (graph.n_atoms, 3))]
    batch = Batch(graph, *labels, torch.zeros(3, 3, 3), torch.ones(3, dtype=torch.float64))
    expected, (value, gradients) = evaluate(potential, graph), step(batch)
    monkeypatch.setattr(module, "LARGEST_KEPT", 0)
    monkeypatch.setattr(module, "LARGEST_CHUNK", 40 * potential.network.bytes_per_edge)
    assert len(potential.network.chunks(graph)) > 4
    assert_same_result(evaluate(potential, graph), expected)
    chunked_value, chunked = step(batch)
    assert_close(chunked_value, value, 1e-13)
    for parameter, one, other in zip(trainable(potential), chunked, gradients, strict=True):
        assert_close(one, other, 1e-11, parameter)
    frozen_twin = with_modules(potential.requires_grad_(False), network=frozen(potential.network))
    assert_same_result(evaluate(frozen_twin, graph), expected)


# -------------------------------------------------------------- the paper's formulas, lab frame


def paper(potential: Potential) -> Paper:
    return Paper(potential.network.config, potential.network.state_dict())


def poles() -> Atoms:
    """Edges along both poles of the harmonics and in the plane where the charts of frames meet."""
    positions = [[0, 0, 0], [0, 1.1, 0], [0, -1.2, 0], [1.3, 0, 0], [0, 0, -1.4], [1.3, 1.1, 0]]
    return Atoms("CHHONH", positions=positions)


MOLECULES = {
    "ethanol": ethanol,
    "poles": poles,
    "dimer": lambda: Atoms("CO", positions=[[0, 0, 0], [0, -1.2, 0]]),
    "atom": lambda: Atoms("C"),
}


@pytest.mark.parametrize("molecule", list(MOLECULES))
@pytest.mark.parametrize("config", [*OURS.values(), *THEIRS.values()], ids=[*OURS, *THEIRS])
def test_equals_the_paper(config: EquiformerConfig, molecule: str) -> None:
    """Energies and forces of the edge-frame form and of the formulas as they are written."""
    potential = random_potential(config)
    graph = build_graph(potential, System.from_ase(MOLECULES[molecule]()))
    vectors = graph.vectors.clone().requires_grad_(True)
    energies = paper(potential).energies(graph.species, graph.receivers, graph.senders, vectors)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, allow_unused=True)
    result = evaluate(potential, graph)
    assert_close(result.energies, energies, 1e-12, "energies")
    if len(vectors):
        forces = torch.zeros(graph.n_atoms, 3, dtype=torch.float64)
        forces = forces.index_add(0, graph.receivers, gradient)
        forces = forces.index_add(0, graph.senders, -gradient)
        assert_close(result.forces, forces, 1e-11, "forces")


@pytest.mark.parametrize("config", list(OURS.values()), ids=list(OURS))
def test_gradients_by_parameters_equal_the_papers(config: EquiformerConfig) -> None:
    """Training sees the same function: folding does not cut a parameter off."""
    potential = random_potential(config)
    graph = build_graph(potential, System.from_ase(ethanol()))
    network = Equiformer(config, len(ELEMENTS)).double()
    network.load_state_dict(potential.network.state_dict())
    named = dict(network.named_parameters())
    ours = torch.autograd.grad(network(graph).energies.square().sum(), list(named.values()))
    state = {k: v.detach().requires_grad_(k in named) for k, v in network.state_dict().items()}
    theirs = Paper(config, state)
    energies = theirs.energies(graph.species, graph.receivers, graph.senders, graph.vectors)
    expected = torch.autograd.grad(energies.square().sum(), [state[name] for name in named])
    for name, actual, wanted in zip(named, ours, expected, strict=True):
        assert wanted.abs().max() > 0, f"{name} does not matter"
        assert_close(actual, wanted, 1e-11, name)


# ------------------------------------------------------------- the published code's own numbers

COUNTS = {
    ("nonlinear", 2): 3_496_001,
    ("linear", 2): 2_972_801,
    ("dot", 2): 3_316_865,
    ("nonlinear", 3): 5_500_865,
    ("linear", 3): 4_398_977,
    ("dot", 3): 5_142_401,
}


@pytest.mark.parametrize(("attention", "highest"), list(COUNTS))
def test_numbers_of_parameters(attention: str, highest: int) -> None:
    channels = {2: (128, 64, 32), 3: (128, 64, 64, 32)}[highest]
    config = EquiformerConfig(5.0, 15.6, attention=attention, channels=channels, **PUBLISHED)
    network = Equiformer(config, 64)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[attention, highest]


def test_couplings_have_the_signs_of_current_e3nn(shared: Path) -> None:
    stored = load_file(shared / "reference" / "equiformer" / "w3j_lmax3.safetensors")
    assert len(stored) == 34
    for name, expected in stored.items():
        assert_close(coupling(*map(int, name.split("_"))), expected, 1e-15, name)


CASES = [(name, molecule) for name in ATTENTIONS for molecule in ("ethanol", "aspirin")]
PARITY = 1e-10  # of the largest reference value; both sides are float64


def assert_parity(actual: Tensor, expected: Tensor, what: str) -> None:
    scale = float(expected.abs().max())
    assert_close(actual / scale, expected / scale, PARITY, what)


def published(shared: Path, name: str, molecule: str) -> tuple[Potential, dict[str, Tensor], Graph]:
    base = shared / "reference" / "equiformer" / f"{name}_l2"
    potential = equiformer(f"{base}.weights.safetensors", f"{base}.config.json")
    reference = load_file(f"{base}.{molecule}.safetensors")
    names = ("atomic_numbers", "positions", "edge.receivers", "edge.senders")
    arrays = [reference[name].numpy() for name in names]
    return potential, reference, graph_of_edges(*arrays, potential.species)


@pytest.mark.parametrize(("name", "molecule"), CASES)
def test_energy_and_forces_of_the_published_code(shared: Path, name: str, molecule: str) -> None:
    potential, reference, stored = published(shared, name, molecule)
    atoms = Atoms(reference["atomic_numbers"], positions=reference["positions"])
    listed = build_graph(potential, System.from_ase(atoms))
    assert listed.n_edges == stored.n_edges
    padded = build_graph(potential, System.from_ase(atoms), skin=1.5, capacity=64)
    for graph in (stored, listed, padded):
        result = evaluate(potential, graph)
        assert_parity(result.energy[0], reference["energy"], "energy")
        assert_parity(result.forces, reference["forces"], "forces")


@pytest.mark.parametrize(("name", "molecule"), CASES)
def test_intermediates_of_the_published_code(shared: Path, name: str, molecule: str) -> None:
    """Of the paper's formulas, and of the features that the edge-frame form has as well."""
    potential, reference, graph = published(shared, name, molecule)
    written = paper(potential)
    written.energies(graph.species, graph.receivers, graph.senders, graph.vectors)
    network = potential.network
    features = network.embedding(graph, network.geometry(graph))
    ours = {"node.embedding": flat_as_published(features)}
    for k, block in enumerate(network.blocks):
        features = block(features, network.geometry(graph))
        ours[f"block{k}.output"] = flat_as_published(features)
    final = network.last_block(features, network.geometry(graph))
    ours[f"block{len(network.blocks)}.output"] = flat_as_published([final])
    compared = 0
    for key, expected in reference.items():
        name = key if key.endswith(".output") else key.split(".")[-1]
        if key.startswith("edge") or key.startswith("node") or key.startswith("block"):
            actual = written.seen.get(name)
            if actual is not None:
                rows = actual.flatten(1)[: len(expected)]
                assert_parity(rows, expected.flatten(1), key)
                compared += 1
        if key in ours:
            assert_parity(ours[key], expected, f"{key} in edge frames")
            compared += 1
    assert compared >= (20 if molecule == "ethanol" else 10)


def flat_as_published(features: list[Tensor]) -> Tensor:
    """Channels slow, components fast."""
    return torch.cat([x.transpose(1, 2).flatten(1) for x in features], dim=1)
