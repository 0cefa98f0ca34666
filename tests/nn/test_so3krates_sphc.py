"""So3krates with SPHCs: the published numbers, what the published form breaks, and ours."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from contract import (
    STRUCTURES,
    EmbedsElectrons,
    NetworkContract,
    assert_close,
    assert_same_result,
    build_graph,
    ethanol,
    graph_of_edges,
    on_the_axis,
    random_potential,
    result_of,
    transformed,
    triclinic,
)
from torch import Tensor

from attncalc.basis.so3 import couplings
from attncalc.convert import so3krates
from attncalc.graph import ALL_PAIRS, Graph
from attncalc.nn import sphc_attention
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.nn.so3krates_sphc_layers import Geometry
from attncalc.nn.sphc_attention import SmoothWindow
from attncalc.potential import Potential, evaluate
from attncalc.recompute import chunks_of
from attncalc.structures import check_system
from attncalc.system import System
from attncalc.train.step import Batch, Loss, eager_step, trainable

# smaller than shipped models in width only; short ranges keep the ghost clusters small
SMALL = {
    "cutoff": 2.6,
    "num_features": 24,
    "num_layers": 2,
    "num_basis": 8,
    "radial_features": 12,
    "spherical_features": 6,
}
WINDOW = {"nonlocal_attention": "window", "nonlocal_cutoff": 5.0, "sphc_cutoff": 0.8}
OURS = {
    "window": So3kratesSphcConfig(**SMALL, **WINDOW),
    "local": So3kratesSphcConfig(**SMALL, nonlocal_attention="none"),
    "other": So3kratesSphcConfig(
        **SMALL,
        **WINDOW | {"sphc_cutoff": 3.0},
        degrees=(1, 2),
        radial_basis="bernstein",
        cutoff_function="exponential",
        feature_norm="none",
        embed_charge=True,
        embed_spin=True,
    ),
}
PUBLISHED = {"form": "published", "cutoff_function": "cosine", "feature_norm": "none"}
THEIRS = {
    "local": So3kratesSphcConfig(**SMALL, **PUBLISHED, nonlocal_attention="none", paths="all"),
    "dynamic": So3kratesSphcConfig(**SMALL, **PUBLISHED, nonlocal_attention="dynamic", paths="all"),
    "fixed": So3kratesSphcConfig(
        **SMALL,
        **PUBLISHED | {"feature_norm": "layer"},
        nonlocal_attention="fixed",
        sphc_cutoff=0.3,
        sphc_norm="degree",
    ),
}


class TestContract(NetworkContract):
    @pytest.fixture(params=list(OURS))
    def potential(self, request: pytest.FixtureRequest) -> Potential:
        return random_potential(OURS[request.param])

    @pytest.mark.parametrize("last", [True, False], ids=["last neighbour", "one of two"])
    def test_smooth_at_the_local_cutoff(self, potential: Potential, last: bool) -> None:
        """Where a pair leaves the local attention and only the non-local one goes on."""
        local = potential.network.config.cutoff
        far, near = (self._two_sides(potential, h, last, local) for h in (1e-2, 1e-3))
        for order, name in enumerate(("energy", "force", "slope of the force")):
            assert near[order] <= 0.2 * far[order] + 1e-12, f"{name} jumps: {far}, {near}"


class TestElectrons(EmbedsElectrons):
    @pytest.fixture
    def potential(self) -> Potential:
        return random_potential(OURS["other"])


class TestPublished:
    """What the published network promises for molecules, and that it breaks what it is said to."""

    @pytest.fixture(params=list(THEIRS))
    def potential(self, request: pytest.FixtureRequest) -> Potential:
        return random_potential(THEIRS[request.param])

    @pytest.fixture
    def atoms(self) -> Atoms:
        return ethanol()

    test_rotation = NetworkContract.test_rotation
    test_permutation = NetworkContract.test_permutation
    test_forces = NetworkContract.test_forces_are_minus_the_slope_of_the_energy
    test_strain = NetworkContract.test_strain_gradient_is_the_slope_of_the_energy
    test_padding_and_skin = NetworkContract.test_padding_and_skin_change_nothing
    test_float32 = NetworkContract.test_float32_agrees_with_float64

    def test_batch_equals_single(self, potential: Potential) -> None:
        structures = [Atoms("O"), ethanol(), on_the_axis()]
        batch = result_of(potential, structures)
        single = [float(result_of(potential, atoms).energy) for atoms in structures]
        assert_close(batch.energy, single, 1e-11, "energy")

    def test_a_mirror_image(self, potential: Potential) -> None:
        """Products of odd l + p + q know left from right."""
        mirrored = transformed(ethanol(), -np.eye(3))
        difference = result_of(potential, ethanol()).energy - result_of(potential, mirrored).energy
        differs = potential.network.config.paths == "all"
        assert (abs(float(difference)) > 1e-6) == differs

    def test_energy_jumps_when_the_last_neighbour_leaves(self, potential: Potential) -> None:
        """chi starts from a mean over the neighbours, which one neighbour determines."""
        jumps = []
        for h in (1e-3, 1e-5):
            pairs = [
                Atoms("COH", positions=[[0, 0, 0], [0, 0, 2.6 + side], [0, 0.8, 3.3 + side]])
                for side in (-h, h)
            ]
            inside, outside = (float(result_of(potential, atoms).energy) for atoms in pairs)
            jumps.append(abs(outside - inside))
        assert jumps[1] > 0.9 * jumps[0] > 1e-6

    def test_forces_jump_where_coordinates_vanish(self, potential: Potential) -> None:
        """Those of odd degree of carbon in CO2: their length, unlike a square, has a kink."""
        jumps = []
        for network in (potential, random_potential(OURS["window"])):
            sides = []
            for sign in (-1, 1):
                atoms = molecule("CO2")
                atoms.positions[0] += sign * 1e-7 * np.array([0.3, -0.5, 0.8])
                sides.append(result_of(network, atoms).forces)
            jumps.append(float((sides[0] - sides[1]).abs().max()))
        assert jumps[0] > 1e-4
        assert jumps[1] < 1e-5

    def test_the_force_has_a_kink_at_the_cutoff(self, potential: Potential) -> None:
        """Of the cosine, as long as other neighbours stay."""
        sides = NetworkContract()._two_sides
        for h in (1e-3, 1e-5):
            energy, force, slope = sides(potential, h, False, potential.network.config.cutoff)
            assert slope > 1e-5
        assert energy < 1e-6
        assert force < 1e-3

    def test_molecules_far_apart(self, potential: Potential) -> None:
        """E(A + B) is E(A) + E(B) for the local network only."""
        one, other = ethanol(), ethanol()
        other.positions[:, 0] += 500.0
        excess = result_of(potential, one + other).energy - 2 * result_of(potential, one).energy
        if potential.network.config.nonlocal_attention == "none":
            assert abs(float(excess)) < 1e-11
        else:
            assert abs(float(excess)) > 1e-6

    def test_periodic_structures_are_refused_where_all_pairs_count(
        self, potential: Potential
    ) -> None:
        system = System.from_ase(triclinic())
        if potential.cutoff < ALL_PAIRS:
            check_system(potential, system)
        else:
            with pytest.raises(ValueError, match="sums over all pairs of atoms"):
                check_system(potential, system)


# ----------------------------------------------------------------------- published numbers

CASES = [
    ("sphc_local", "sphc_local", "ethanol"),
    ("sphc_local", "sphc_local", "aspirin"),
    ("sphc_nonlocal", "sphc_nonlocal_off", "ethanol"),
    ("sphc_nonlocal", "sphc_nonlocal_fixed0.12", "ethanol"),
    ("sphc_nonlocal", "sphc_nonlocal_dynamic", "ethanol"),
    ("sphc_nonlocal", "sphc_nonlocal_dynamic", "aspirin"),
    ("sphc_norms", "sphc_norms", "ethanol"),
]


def published(shared: Path, weights: str, options: str) -> Potential:
    base = shared / "reference" / "so3krates"
    return so3krates(base / f"{weights}_params.npz", base / f"{options}_hyperparameters.json")


def stored(shared: Path, options: str, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "reference" / "so3krates" / f"{options}_{name}.npz"))


@pytest.mark.parametrize(("weights", "options", "name"), CASES)
def test_published_numbers(shared: Path, weights: str, options: str, name: str) -> None:
    """Energy, forces, and what the first two layers pass on, from the stored edge list."""
    potential, reference = published(shared, weights, options), stored(shared, options, name)
    i, j = reference["edges_receiver_i"], reference["edges_sender_j"]
    order = np.lexsort((j, i))  # ours are sorted by receiver
    arguments = (reference["numbers"], reference["positions"], i[order], j[order])
    graph = graph_of_edges(*arguments, potential.species)
    result = evaluate(potential, graph)
    scale = max(abs(float(reference["energy"])), 1e-3)
    assert abs(float(result.energy) - float(reference["energy"])) <= 1e-10 * scale
    forces = reference["forces"]
    assert np.abs(result.forces.numpy() - forces).max() <= 1e-10 * np.abs(forces).max()

    seen = record(potential.network, graph)
    for key, ours in seen.items():
        theirs = reference[f"int_{key}"]
        error = np.abs(ours - theirs).max()
        assert error <= 1e-10 * np.abs(theirs).max(), f"{key}: {error:.1e}"


def record(network: So3kratesSphc, graph: Graph) -> dict[str, np.ndarray]:
    """What the reference stores per atom, under its names."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, values: Tensor) -> None:
        seen[name] = values.detach().numpy()

    with torch.no_grad():
        geometry = network.geometry(graph)
        features, ev = network.embedding(graph), network.initial_ev(geometry, graph.n_atoms)
        keep("geometry_chi", ev)
        keep("embedding_x", features)
        for k, layer in enumerate(network.layers[:1]):
            dx, dchi = layer.attention(features, ev, geometry, network.harmonics)
            keep(f"l{k}_x_after_feature_block", features + dx)
            keep(f"l{k}_chi_after_geometric_block", ev + dchi)
            normed = layer.norm_after_attention(features + dx, ev + dchi)
            keep(f"l{k}_selfmix", layer.interaction.products(normed[1], network.coupling))
            features, ev = layer(features, ev, geometry, network.harmonics, network.coupling)
            keep(f"l{k}_x_out", features)
            keep(f"l{k}_chi_out", ev)
    return seen


@pytest.mark.parametrize("name", ["ethanol", "aspirin"])
def test_coefficients_are_the_published_ones(shared: Path, name: str) -> None:
    """Edge by edge: local and non-local part of the geometric attention, and the features'."""
    potential = published(shared, "sphc_nonlocal", "sphc_nonlocal_dynamic")
    network, reference = potential.network, stored(shared, "sphc_nonlocal_dynamic", name)
    atoms = Atoms(reference["numbers"], positions=reference["positions"])
    graph = build_graph(potential, System.from_ase(atoms))
    with torch.no_grad():
        geometry = network.geometry(graph)
        features, ev = network.embedding(graph), network.initial_ev(geometry, graph.n_atoms)
        attention = network.layers[0].attention
        queries, keys, _ = attention.project(features)
        filters = attention.filters(ev, geometry)
        alpha = attention.coefficients(queries, keys, filters, geometry)
        share, _ = attention.shares(ev, geometry)
    envelope = geometry.envelope.repeat(2).unsqueeze(1)
    rows = {
        (int(i), int(j)): k
        for k, (i, j) in enumerate(
            zip(reference["edges_receiver_i"], reference["edges_sender_j"], strict=True)
        )
    }
    ours = zip(geometry.receivers.tolist(), geometry.senders.tolist(), strict=True)
    order = [rows[pair] for pair in ours]
    for key, values in (
        ("alpha_feature", alpha[0] * envelope),
        ("alpha_r_geometric", alpha[1] * envelope),
        ("alpha_s_geometric", alpha[1] * share),
    ):
        theirs = reference[f"int_l0_{key}"]
        assert_close(values, theirs[order], 1e-10 * max(1.0, np.abs(theirs).max()), key)


def test_parameter_count(shared: Path) -> None:
    """715,435 numbers are published; the row of element 0 is dropped here."""
    assert published(shared, "sphc_local", "sphc_local").n_parameters == 715_435 - 132


def test_couplings_are_the_published_ones(shared: Path) -> None:
    theirs = np.load(shared / "reference" / "so3krates" / "clebsch_gordan_l3.npz")["cg"]
    ours = couplings((1, 2, 3), natural_only=False).numpy()
    blocks = {1: slice(0, 3), 2: slice(3, 8), 3: slice(8, 15)}
    for l, out in blocks.items():
        for p, first in blocks.items():
            for q, second in blocks.items():
                if p < q:
                    opposite = (l, p, q) in ((2, 1, 2), (2, 2, 3), (3, 1, 3))
                    expected = (-1 if opposite else 1) * theirs[out, first, second]
                    assert_close(ours[out, first, second], expected, 1e-14, f"{l} {p} {q}")


# ------------------------------------------------------------------------------------ ours


def test_far_pairs_in_chunks_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, and the gradients of a training step."""
    potential = copy.deepcopy(random_potential(OURS["window"]))
    structures = [ethanol(), Atoms("C"), STRUCTURES["triclinic"]()]
    graph = build_graph(potential, System.from_ase(structures), skin=0.5, capacity=32)
    step = eager_step(potential.requires_grad_(True), Loss(1.0, 1.0, 0.5))
    labels = [torch.zeros(shape, dtype=torch.float64) for shape in ((3,), (graph.n_atoms, 3))]
    batch = Batch(graph, *labels, torch.zeros(3, 3, 3), torch.ones(3, dtype=torch.float64))
    expected, (value, gradients) = evaluate(potential, graph), step(batch)
    monkeypatch.setattr(sphc_attention, "KEPT_AT_ONCE", 20_000)
    far = potential.network.geometry(graph).far
    assert len(chunks_of(far.receivers, far.n_receivers, 10)) > 4
    assert_same_result(evaluate(potential, graph), expected)
    chunked_value, chunked = step(batch)
    assert_close(chunked_value, value, 1e-13)
    for parameter, one, other in zip(trainable(potential), chunked, gradients, strict=True):
        assert_close(one, other, 1e-11, parameter)


def test_the_window_has_two_continuous_derivatives() -> None:
    """At the radius in SPHC space, at half of the range in space, and at its end."""
    window = SmoothWindow(0.8, 6.0)

    def derivatives(delta: float, length: float, along: int) -> list[float]:
        values = torch.tensor([delta, length], dtype=torch.float64, requires_grad=True)
        weight = window.weight(values[:1].unsqueeze(0), values[1:]).sum()
        first = torch.autograd.grad(weight, values, create_graph=True)[0][along]
        second = torch.autograd.grad(first, values)[0][along]
        return [weight.item(), first.item(), second.item()]

    for along, (delta, length) in ((0, (0.8, 2.0)), (1, (0.3, 3.0)), (1, (0.3, 6.0))):
        h, moved = 1e-7, np.eye(2)[along]
        below, above = (
            derivatives(delta + sign * h * moved[0], length + sign * h * moved[1], along)
            for sign in (-1, 1)
        )
        for one, other in zip(below, above, strict=True):
            assert abs(one - other) < 1e-4
    assert derivatives(0.0, 3.0, 1)[0] == 1.0
    assert derivatives(0.3, 4.0, 1)[2] != 0.0


def two_sides(config: So3kratesSphcConfig, moved: Callable[[Tensor], Tensor], h: float) -> list:
    """Differences of energy, force and slope of the force between -h and h along a path."""
    potential, sides = random_potential(config), []
    for sign in (-1, 1):
        x = torch.tensor(sign * h, dtype=torch.float64, requires_grad=True)
        system = replace(System.from_ase(CONH), positions=moved(x))
        energy = potential.energies(build_graph(potential, system)).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x)
        sides.append([energy.item(), slope.item(), curvature.item()])
    return [abs(a - b) for a, b in zip(*sides, strict=True)]


CONH = Atoms("COHN", positions=[[0, 0, 0], [0, 0.4, 1.2], [4.0, 0, 0], [4.0, 1.3, 0.3]])


def test_smooth_where_a_pair_enters_the_neighbourhood_in_sphc_space() -> None:
    """A far pair whose distance there crosses the radius while an atom moves."""
    places = torch.from_numpy(CONH.positions)

    def moved(x: Tensor) -> Tensor:
        along = torch.zeros_like(places)
        along[3, 1] = 1.0
        return places + x * along

    def distance(x: float) -> float:
        atoms = CONH.copy()
        atoms.positions = moved(torch.tensor(x)).numpy()
        _, ev = start(random_potential(OURS["window"]), atoms)
        return float((ev[0] - ev[2]).norm())

    config = dataclasses.replace(OURS["window"], sphc_cutoff=distance(0.0))
    assert abs(distance(0.1) - distance(-0.1)) > 0.01
    far, near = (two_sides(config, moved, h) for h in (1e-4, 1e-5))
    for order, name in enumerate(("energy", "force", "slope of the force")):
        assert near[order] <= 0.2 * far[order] + 1e-12, f"{name} jumps: {far}, {near}"


def test_smooth_where_the_weight_begins_to_fall() -> None:
    """At half of the range in space, beyond the local cutoff."""
    config = dataclasses.replace(OURS["window"], nonlocal_cutoff=8.0, sphc_cutoff=3.0)
    places = torch.from_numpy(CONH.positions)
    along = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64)

    def moved(x: Tensor) -> Tensor:  # carbon and hydrogen are 4 Å apart, the others nearly
        return places + x * along * torch.tensor([1.0, 0.0, 0.0])

    far, near = (two_sides(config, moved, h) for h in (1e-4, 1e-5))
    for order, name in enumerate(("energy", "force", "slope of the force")):
        assert near[order] <= 0.2 * far[order] + 1e-12, f"{name} jumps: {far}, {near}"


def start(potential: Potential, atoms: Atoms) -> tuple[Geometry, Tensor]:
    graph = build_graph(potential, System.from_ase(atoms))
    with torch.no_grad():
        geometry = potential.network.geometry(graph)
        return geometry, potential.network.initial_ev(geometry, graph.n_atoms)


def test_two_fragments_at_growing_distance() -> None:
    """The energy of two molecules goes smoothly to the sum, and is exactly that from 5 Å on."""
    potential = random_potential(OURS["window"])
    one, other = ethanol(), molecule("H2O")
    alone = sum(float(result_of(potential, atoms).energy) for atoms in (one, other))
    excess = []
    for gap in (3.0, 4.9, 5.0, 50.0):
        moved = other.copy()
        moved.positions[:, 0] += one.positions[:, 0].max() - other.positions[:, 0].min() + gap
        excess.append(float(result_of(potential, one + moved).energy) - alone)
    assert abs(excess[0]) > 1e-6
    assert abs(excess[1]) < 1e-3 * abs(excess[0])
    assert max(abs(excess[2]), abs(excess[3])) < 1e-11


def test_a_window_in_sphc_space_alone_would_not_add_up() -> None:
    """Copies of a molecule have Delta = 0: without an end in space they would always attend."""
    config = dataclasses.replace(OURS["window"], nonlocal_cutoff=1e3)
    potential = random_potential(config)
    one, other = ethanol(), ethanol()
    other.positions[:, 0] += 400.0
    excess = result_of(potential, one + other).energy - 2 * result_of(potential, one).energy
    assert abs(float(excess)) > 1e-5


def test_atoms_far_apart_know_of_each_other() -> None:
    """Two bonds 4 Å apart: turning one changes the forces on the other, unlike without it."""
    for name, knows in (("window", True), ("local", False)):
        potential = random_potential(OURS[name])
        forces = []
        for turn in (0.0, 1.0):
            atoms = Atoms("COCO", positions=[[0, 0, 0], [0, 1.2, 0], [4.0, 0, 0], [4.0, 0, 0]])
            atoms.positions[3] += 1.2 * np.array([0, np.cos(turn), np.sin(turn)])
            forces.append(result_of(potential, atoms).forces[:2])
        assert (float((forces[0] - forces[1]).abs().max()) > 1e-5) == knows


def cumulene(n_carbons: int, angle: float) -> Atoms:
    """A linear chain with a CH2 group at each end, the second one turned."""
    chain = [[0.0, 0.0, 1.28 * k] for k in range(n_carbons)]
    top = np.array([0, 0, chain[-1][2] + 0.55])
    across = 0.93 * np.array([np.cos(angle), np.sin(angle), 0.0])
    ends = [[0.93, 0, -0.55], [-0.93, 0, -0.55], top + across, top - across]
    return Atoms(f"C{n_carbons}H4", positions=np.array(chain + ends))


def effect_of_turning(potential: Potential, n_carbons: int) -> float:
    energies = [float(result_of(potential, cumulene(n_carbons, a)).energy) for a in (0.3, 1.2)]
    return abs(energies[1] - energies[0])


@pytest.mark.parametrize("num_layers", [2, 6])
def test_a_linear_chain_longer_than_three_cutoffs(num_layers: int) -> None:
    """What `benchmarks/studies/nonlocal.md` rests on.

    Messages along a straight line carry no direction across it, so local networks relate the
    directions of two ends only by a pair of atoms that see one each: three cutoffs, however many
    layers.
    """
    local = random_potential(dataclasses.replace(OURS["local"], num_layers=num_layers))
    assert effect_of_turning(local, 5) > 1e-9  # 6.2 Å between the hydrogens, three cutoffs are 7.8
    for n_carbons in (7, 9):  # 8.8 and 11.3 Å, all within the receptive field of six layers
        assert effect_of_turning(local, n_carbons) < 1e-12
    window = dataclasses.replace(OURS["window"], num_layers=num_layers, nonlocal_cutoff=24.0)
    for n_carbons in (5, 7, 9):
        assert effect_of_turning(random_potential(window), n_carbons) > 1e-8


# ------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be positive"),
        ({"nonlocal_cutoff": 2.0}, "nonlocal_cutoff must be more than cutoff = 2.6"),
        ({"sphc_cutoff": -1.0}, "sphc_cutoff must be positive"),
        ({"degrees": (0, 1)}, "degrees must be at least 1"),
        ({"degrees": (1, 7)}, "degrees must be at most 6"),
        ({"degrees": (2, 1)}, "degrees must be ascending"),
        ({"degrees": "12"}, "degrees must be a list"),
        ({"num_features": 25}, "num_features must be divisible by num_heads = 4"),
        ({"num_features": 20}, r"num_features must be divisible by len\(degrees\) = 3"),
        ({"form": "paper"}, "form must be one of 'smooth', 'published'"),
        ({"nonlocal_attention": "dynamic"}, "'dynamic' does not belong to the smooth form"),
        ({"form": "published"}, "'window' does not belong to the published form"),
        ({"sphc_norm": "degree"}, "sphc_norm 'degree' is singular"),
        ({"feature_norm": "batch"}, "feature_norm must be one of"),
        ({"paths": "odd"}, "paths must be one of"),
        ({"embed_charge": 1}, "embed_charge must be true or false"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_impossible_options(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OURS["window"], **change)


def test_what_is_wrong_is_said() -> None:
    assert [config.faults for config in OURS.values()] == [[], [], []]
    said = " ".join(THEIRS["dynamic"].faults)
    for word in ("kink", "last neighbour", "vanish", "mirror", "far apart"):
        assert word in said


def test_a_file_of_a_network_with_other_options(shared: Path, tmp_path: Path) -> None:
    base = shared / "reference" / "so3krates"
    options = json.loads((base / "sphc_nonlocal_dynamic_hyperparameters.json").read_text())
    for change, message in (
        ({"neighbours": "within the cutoff"}, "neighbours = 'within the cutoff' is not supported"),
        ({"parity": "odd"}, "parity = 'odd' is not supported"),
        ({"degrees": 3}, "degrees must be a list"),
        ({"chi_cut": 0.12}, "chi_cut = 0.12 is not supported"),
        ({"chi_cut": "x", "chi_cut_dynamic": False}, r"config\.json: chi_cut must be a number"),
        ({"radial_hidden": 65}, "has shape"),
        ({"surprise": 1}, "unknown hyper-parameters"),
    ):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(options | change))
        with pytest.raises(ValueError, match=message):
            so3krates(base / "sphc_nonlocal_params.npz", path)


def test_some_elements_only(shared: Path) -> None:
    base = shared / "reference" / "so3krates"
    files = (base / "sphc_local_params.npz", base / "sphc_local_hyperparameters.json")
    some = so3krates(*files, species=[1, 6, 8])
    assert some.species == (1, 6, 8)
    assert_same_result(result_of(some, ethanol()), result_of(so3krates(*files), ethanol()), 0.0)
    fewer = replace_network(some, [0, 2])
    water = molecule("H2O")
    assert_same_result(result_of(fewer, water), result_of(some, water), 0.0)


def replace_network(potential: Potential, rows: list[int]) -> Potential:
    network = potential.network.for_species(rows)
    return Potential(network, [potential.species[row] for row in rows])


def test_masked_edges_are_not_far_pairs() -> None:
    system = System.from_ase(ethanol())
    potential = random_potential(OURS["window"])
    padded = build_graph(potential, system, skin=3.0, capacity=64)
    geometry = potential.network.geometry(padded)
    assert geometry.far is not None
    lengths = geometry.far.vectors.norm(dim=1)
    assert lengths.min() >= potential.network.config.cutoff
    assert lengths.max() < potential.cutoff
    assert geometry.lengths.max() < potential.network.config.cutoff
    assert padded.n_edges > geometry.far.n_edges + 2 * len(geometry.lengths)
