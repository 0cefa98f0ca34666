"""Denoising beside energies and forces: what is displaced, what is learnt, what is saved."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ase.build import molecule
from contract import (
    ELEMENTS,
    assert_close,
    build_graph,
    moved_along,
    randomise,
    rotation,
    transformed,
)
from trainings import assert_same_bits, stopped_at

from attncalc.data import Dataset
from attncalc.model_file import load
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.equiformer_denoising import DenoisingEquiformer
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.nn.so3krates_denoising import DenoisingSo3krates, DenoisingSo3kratesSphc
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.potential import Potential, evaluate
from attncalc.system import System
from attncalc.train import Recipe, fit
from attncalc.train.batches import join, samples
from attncalc.train.denoising import (
    denoising_step,
    displaced,
    margin,
    with_denoising,
    without_denoising,
)
from attncalc.train.recipe import Denoising
from attncalc.train.step import Loss, eager_step, trainable

CONFIG = {
    "cutoff": 3.5,
    "avg_num_neighbors": 8.0,
    "channels": (8, 4, 4),
    "num_layers": 2,
    "num_heads": 2,
    "attention_features": 3,
    "num_basis": 6,
    "radial_features": 5,
    "head_features": 8,
}


SMALL = {
    "cutoff": 3.5,
    "num_features": 16,
    "num_heads": 2,
    "degrees": (1, 2),
    "num_layers": 2,
    "num_basis": 6,
}
EUCLIDEAN = {**SMALL, "avg_num_neighbors": 8.0, "head_features": 8}
SPHC = {**SMALL, "radial_features": 8, "spherical_features": 8}


def equiformer(attention: str = "nonlinear", paths: str = "natural") -> DenoisingEquiformer:
    config = EquiformerConfig(**CONFIG, attention=attention, paths=paths)
    return DenoisingEquiformer(config, len(ELEMENTS))


# two So3krates whose variables start at zero and at the neighbours, of degrees before 1 too; the
# other form without and with far pairs
NETWORKS = {
    "equiformer": equiformer,
    "equiformer, all paths": lambda: equiformer(paths="all"),
    "equiformer, linear": lambda: equiformer("linear"),
    "equiformer, dot": lambda: equiformer("dot"),
    "from zero": lambda: DenoisingSo3krates(So3kratesConfig(**EUCLIDEAN), len(ELEMENTS)),
    "from neighbours": lambda: DenoisingSo3krates(
        So3kratesConfig(**{**EUCLIDEAN, "degrees": (0, 1, 2, 3), "ev_init_divisor": 4.0}),
        len(ELEMENTS),
    ),
    "sphc": lambda: DenoisingSo3kratesSphc(
        So3kratesSphcConfig(**SPHC, nonlocal_attention="none"), len(ELEMENTS)
    ),
    "sphc, far pairs": lambda: DenoisingSo3kratesSphc(
        So3kratesSphcConfig(**{**SPHC, "cutoff": 2.0}, nonlocal_cutoff=3.5), len(ELEMENTS)
    ),
}


def network(name: str = "equiformer") -> torch.nn.Module:
    torch.manual_seed(0)
    made = NETWORKS[name]().double()
    randomise(made)
    return made


def rattled(n: int = 6, *, by: float = 0.1) -> Dataset:
    """Ethanol in a harmonic well around its geometry: energies and forces belong together.

    Args:
        n: structures.
        by: Å, standard deviation of each coordinate.
    """
    rng, rest = np.random.default_rng(0), molecule("CH3CH2OH")
    structures, energies, forces = [], [], []
    for _ in range(n):
        atoms = rest.copy()
        shift = rng.normal(scale=by, size=(9, 3))
        atoms.positions += shift
        structures.append(atoms)
        energies.append(2.0 * (shift**2).sum())
        forces.append(-4.0 * shift)
    return Dataset(structures=structures, energies=energies, forces=forces)


# ------------------------------------------------------------------------------------ network


@pytest.mark.parametrize("name", list(NETWORKS))
def test_displacements_are_continuous_at_atoms_of_high_symmetry(name: str) -> None:
    made, found = network(name), []
    for step in (0.0, 1e-5, 1e-3):
        graph = build_graph(
            Potential(made, ELEMENTS), System.from_ase(moved_along(molecule("CH4"), 2, step))
        )
        found.append(made.denoise(graph, torch.zeros(5, 3, dtype=torch.float64))[1])
    near, far = ((shifts - found[0]).abs().max() for shifts in found[1:])
    assert near <= 0.02 * far


@pytest.mark.parametrize(
    ("channels", "count"), [((128, 64, 32), 4_000_577), ((128, 64, 64, 32), 6_354_241)]
)
def test_numbers_of_parameters(channels: tuple[int, ...], count: int) -> None:
    config = EquiformerConfig(5.0, 15.6, channels=channels, cutoff_function="none", paths="all")
    assert sum(p.numel() for p in DenoisingEquiformer(config, 64).parameters()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_without_told_forces_it_is_the_plain_network(name: str) -> None:
    denoising = network(name)
    plain = denoising.plain()
    assert type(plain) in (Equiformer, So3krates, So3kratesSphc)
    names = [name for name, _ in denoising.named_parameters()]
    left = {n for n in names if "force_emb" not in n and "denois" not in n}
    if "equiformer" not in name:  # whose last block makes displacements, too
        assert set(dict(plain.named_parameters())) == left
    potentials = [Potential(n, ELEMENTS).requires_grad_(False) for n in (denoising, plain)]
    graph = build_graph(potentials[0], System.from_ase(rattled(2).structures))
    ours, theirs = (evaluate(p, graph) for p in potentials)
    assert_close(ours.energies, theirs.energies, 1e-13, "energies")
    assert_close(ours.forces, theirs.forces, 1e-12, "forces")
    # and so is what the training step computes where no force is told
    energies, _ = denoising.denoise(graph, torch.zeros(graph.n_atoms, 3, dtype=torch.float64))
    if "equiformer" not in name:  # whose embedding of forces has a bias
        assert_close(energies, plain(graph).energies, 1e-13, "energies")
    told, _ = denoising.denoise(graph, torch.ones(graph.n_atoms, 3, dtype=torch.float64))
    assert (told - energies).abs().max() > 1e-3, "deaf to what it is told"
    with torch.no_grad():
        for parameter in denoising.parameters():
            parameter += 1.0
    assert_close(evaluate(potentials[1], graph).energies, theirs.energies, 0.0, "own tensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_displacements_turn_along(name: str) -> None:
    """And, with natural paths only, follow a reflection; each told force matters."""
    denoising = network(name)
    potential = Potential(denoising, ELEMENTS).requires_grad_(False)
    atoms = rattled(1).structures[0]
    forces = np.random.default_rng(1).normal(size=(9, 3))
    forces[2] = 0.0

    def found(matrix: np.ndarray, forces: np.ndarray = forces) -> tuple[torch.Tensor, torch.Tensor]:
        graph = build_graph(potential, System.from_ase(transformed(atoms, matrix)))
        return denoising.denoise(graph, torch.from_numpy(forces @ matrix))

    energies, vectors = found(np.eye(3))
    assert vectors.abs().amax(1).min() > 1e-4
    for matrix in (rotation(1), *([-rotation(2)] if "all paths" not in name else [])):
        turned_energies, turned = found(matrix)
        assert_close(turned_energies, energies, 1e-12, "energies")
        assert_close(turned, vectors @ torch.from_numpy(matrix), 1e-12, "displacements")
    # each atom's own force turns its own vector: it is told as a vector, not as a size
    other = forces.copy()
    other[0] = -other[0]
    assert (found(np.eye(3), other)[1] - vectors)[0].abs().max() > 1e-3


def test_forces_are_told_by_harmonics() -> None:
    """Y_l(F / |F|) |F| / sqrt(3), zero for no force, against e3nn."""
    from e3nn import o3

    denoising = network()
    forces = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forces[1] = 0.0
    forces[2] = torch.tensor([0.0, -1.5, 0.0])
    graph = build_graph(Potential(denoising, ELEMENTS), System.from_ase(molecule("CH3CH2OH")[:4]))
    encoded = denoising._encoded(graph, forces)
    for degree, actual in enumerate(encoded):
        expected = o3.spherical_harmonics(degree, forces, True, "component")
        expected = expected * forces.norm(dim=1, keepdim=True) / 3**0.5
        assert_close(actual.squeeze(2), expected, 1e-14, f"degree {degree}")


def test_forces_are_told_to_so3krates_by_harmonics() -> None:
    """w_l Y_l(F / |F|) |F| / (|F| + 1), zero for no force; the vectors are x, y, z again."""
    denoising = network("from neighbours")
    embedding = denoising.force_embedding
    forces = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forces[1] = 0.0
    features, ev = embedding(forces, denoising.harmonics)
    bounded = forces / (forces.norm(dim=1, keepdim=True) + 1)
    size = bounded.norm(dim=1, keepdim=True)
    assert_close(features, size * embedding.size, 1e-14, "features")
    assert not ev[1].any()
    # degree 1 is sqrt(3 / 4 pi) (y, z, x)
    y_z_x = ev[:, 1:4] / embedding.by_degree[1] / (3 / (4 * np.pi)) ** 0.5
    assert_close(y_z_x[:, [2, 0, 1]], bounded, 1e-14, "degree 1")
    assert denoising.denoising_head.places == [3, 1, 2]


# ----------------------------------------------------------------------------------- training

OPTIONS = Denoising(weight=5.0, structures=0.6, atoms=0.5)
WEIGHTS = Loss(1.0, 1.0, 0.0)


def test_what_is_displaced() -> None:
    potential = Potential(network(), ELEMENTS)
    batch = join(samples(rattled(), 3.5, ELEMENTS, margin=margin(OPTIONS)) * 20)
    moved = displaced(batch, OPTIONS, 3.5, seed=3, step=7, left=0.5)
    again = displaced(batch, OPTIONS, 3.5, seed=3, step=7, left=0.5)
    other = displaced(batch, OPTIONS, 3.5, seed=3, step=8, left=0.5)
    assert torch.equal(moved.displacements, again.displacements)
    assert not torch.equal(moved.displacements, other.displacements)
    assert moved.weight == 2.5
    touched = moved.displacements.any(1).view(-1, 9)  # [structures, atoms]
    chosen = touched.any(1).double().mean()
    assert abs(chosen - 0.6) < 0.15  # 120 structures: three standard deviations
    assert abs(touched[touched.any(1)].double().mean() - 0.5) < 0.06
    assert abs(float(moved.displacements[moved.displacements != 0].std()) - 1) < 0.06

    # the graph is that of the moved atoms
    structures = [s.copy() for s in rattled().structures * 20]
    shifts = (OPTIONS.noise * moved.displacements).view(-1, 9, 3).numpy()
    for atoms, shift in zip(structures, shifts, strict=True):
        atoms.positions += shift
    fresh = build_graph(potential, System.from_ase(structures))
    assert int(moved.graph.edge_mask.sum()) == fresh.n_edges
    assert_close(moved.graph.vectors[moved.graph.edge_mask], fresh.vectors, 1e-14, "vectors")
    assert torch.equal(moved.energy, batch.energy)
    assert torch.equal(moved.forces, batch.forces)


def test_without_displacements_it_is_the_plain_step() -> None:
    potential = Potential(network(), ELEMENTS)
    batch = join(samples(rattled(), 3.5, ELEMENTS, margin=margin(OPTIONS)))
    never = displaced(batch, Denoising(structures=1e-9), 3.5, seed=0, step=0, left=1.0)
    assert not never.displacements.any()
    ours = denoising_step(potential, WEIGHTS)(never)
    theirs = eager_step(potential, WEIGHTS)(join(samples(rattled(), 3.5, ELEMENTS)))
    assert_close(ours[0], theirs[0], 1e-13, "loss")
    for name, one, two in zip(trainable(potential), ours[1], theirs[1], strict=True):
        assert_close(one, two, 1e-11, name)


def test_displaced_atoms_have_no_force_error() -> None:
    """Other labels for them change what the network is told, and nothing else of the loss."""
    potential = Potential(network(), ELEMENTS)
    with torch.no_grad():  # deaf to what it is told
        for weight in potential.network.force_embedding.weights:
            weight.zero_()
    batch = join(samples(rattled(), 3.5, ELEMENTS, margin=margin(OPTIONS)))
    moved = displaced(batch, OPTIONS, 3.5, seed=0, step=1, left=1.0)
    touched = moved.displacements.any(1)
    assert 0 < touched.sum() < len(touched)
    step = denoising_step(potential, WEIGHTS)
    before = float(step(moved)[0])
    moved.forces[touched] += 1.0
    assert float(step(moved)[0]) == pytest.approx(before, abs=1e-13)
    moved.forces[~touched] += 1.0
    assert abs(float(step(moved)[0]) - before) > 1e-3


@pytest.mark.parametrize("name", ["equiformer", *list(NETWORKS)[4:]])
def test_gradient_of_the_step_is_the_slope_of_its_loss(name: str) -> None:
    """Of parameters that only denoising has, and of one that stays."""
    potential = Potential(network(name), ELEMENTS)
    reach = potential.cutoff
    batch = join(samples(rattled(2), reach, ELEMENTS, margin=margin(OPTIONS)))
    moved = displaced(batch, OPTIONS, reach, seed=0, step=1, left=1.0)
    step = denoising_step(potential, WEIGHTS)
    gradients = dict(zip(trainable(potential), step(moved)[1], strict=True))
    tried = [n for n in gradients if "force_embedding" in n or "denoising_head" in n]
    tried.append("network.layers.0.attention.geometry_projection")
    if name == "equiformer":  # which has many, and biases that no result depends on
        tried = [
            "network.force_embedding.weights.1",
            "network.denoising_head.projection.weight",
            "network.last_block.shortcut.weights.2",
            "network.blocks.0.attention.messages.alpha",
        ]
    for k, which in enumerate(tried):
        parameter = trainable(potential)[which]
        direction = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(k)
        ).double()
        start, h, values = parameter.data.clone(), 1e-6, []
        for shift in (h, -h):
            parameter.data = start + shift * direction
            values.append(float(step(moved)[0]))
        parameter.data = start
        expected = (values[0] - values[1]) / (2 * h)
        slope = float((gradients[which] * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-7), which
        assert abs(slope) > 1e-7, f"{which} does not matter"


RECIPE = {
    "name": "small",
    "data": "unused",
    "split": {"sizes": [4, 2]},
    "config": CONFIG,
    "network": "equiformer",
    "batch_size": 2,
    "denoising": {"structures": 0.9, "atoms": 0.5},
    "compile": "never",
}


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("equiformer", CONFIG),
        ("so3krates", EUCLIDEAN),
        ("so3krates-sphc", {**SPHC, "cutoff": 2.0}),
    ],
)
def test_a_run_saves_the_plain_network_and_goes_on_exactly(network, config, tmp_path) -> None:
    data = rattled(6)
    recipe = Recipe(**RECIPE | {"network": network, "config": config}, epochs=3)
    whole = fit(recipe, data[:4], data[4:], tmp_path / "whole")
    plain = (Equiformer, So3krates, So3kratesSphc)
    assert type(whole.potential.network) in plain
    with stopped_at(3), pytest.raises(KeyboardInterrupt, match="1 of 3 epochs are done"):
        fit(recipe, data[:4], data[4:], tmp_path / "stopped")
    assert type(load(tmp_path / "stopped" / "small.safetensors").network) in plain
    fit(recipe, data[:4], data[4:], tmp_path / "stopped")
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


def test_a_so3krates_learns_displacements() -> None:
    """Other ones in each step, so that it cannot know them by heart; 1: it knows nothing."""
    torch.manual_seed(0)
    network = DenoisingSo3krates(So3kratesConfig(**EUCLIDEAN), len(ELEMENTS))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    batch = join(samples(rattled(30, by=0.02), 3.5, ELEMENTS, margin=margin(OPTIONS)))
    errors = []
    for step in range(120):
        moved = displaced(batch, OPTIONS, 3.5, seed=0, step=step, left=1.0)
        touched = moved.displacements.any(1)
        told = torch.where(touched.unsqueeze(1), batch.forces, 0.0)
        wrong = (network.denoise(moved.graph, told)[1] - moved.displacements)[touched]
        value = (wrong**2).mean() / (moved.displacements[touched] ** 2).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(value.item())
    assert np.mean(errors[-20:]) < 0.85


def test_refusals() -> None:
    for change, message in (
        ({"network": "so3krates"}, "denoising needs vectors: degrees must hold 1, got (2,)"),
        ({"start_from": "x"}, "denoising needs weights that no model has"),
        ({"denoising": {"noise": 0}}, "noise of denoising must be positive, got 0"),
        ({"denoising": {"noise": 0.6}}, "noise of denoising must be at most 0.5 Å, got 0.6"),
        ({"compile": "always"}, "denoising is not compiled: compile must be auto or never"),
        ({"stress_weight": 1.0}, "denoising knows no stress of displaced atoms"),
        ({"denoising": {"atoms": 1.5}}, "atoms of denoising is a probability, got 1.5"),
        ({"denoising": {"nois": 0.1}}, "unknown key 'nois' in denoising; did you mean 'noise'?"),
        ({"denoising": 5}, "denoising must hold keys and values"),
    ):
        config = {"cutoff": 3.5, "degrees": (2,)} if "network" in change else CONFIG
        with pytest.raises(ValueError, match=re.escape(message)):
            Recipe(**(RECIPE | {"config": config} | change))
    potential = Potential(network().plain(), ELEMENTS)
    assert without_denoising(potential) is potential
    assert isinstance(with_denoising(potential).network, DenoisingEquiformer)
