"""Nuclear repulsion: SO3LR's numbers, a second formula, and smoothness where it ends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import assert_close, build_graph, ethanol, randomise, result_of, rotation, transformed
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.zbl import SWITCH_OFF, ZBLConfig, ZBLRepulsion, switch_off
from attncalc.potential import Potential
from attncalc.system import System

ELEMENTS = (1, 6, 7, 8, 17, 92)
CUTOFF = 4.5


def potential_with(term: ZBLRepulsion) -> Potential:
    """The term alone: a network whose energies are scaled to zero."""
    config = So3kratesConfig(
        cutoff=term.config.cutoff,
        avg_num_neighbors=1.0,
        num_features=4,
        num_heads=1,
        degrees=(1,),
        num_layers=1,
        num_basis=2,
        head_features=None,
    )
    n = len(term.atomic_numbers)
    species = [int(z) for z in term.atomic_numbers]
    return Potential(So3krates(config, n), species, scale=[0.0] * n, pair_terms=[term])


def zbl(config: ZBLConfig | None = None) -> ZBLRepulsion:
    return ZBLRepulsion(config or ZBLConfig(CUTOFF), ELEMENTS)


def textbook(z1: int, z2: int, d: float) -> float:
    """Ziegler, Biersack, Littmark (1985) in eV, times what SO3LR multiplies it by."""
    e2 = 14.399645351950548
    length = 0.8854 * 0.529177 / (z1**0.23 + z2**0.23)
    weights = (0.1818, 0.5099, 0.2802, 0.02817)
    exponents = (3.2, 0.9423, 0.4028, 0.2016)
    terms = zip(weights, exponents, strict=True)
    screening = sum(c * math.exp(-a * d / length) for c, a in terms) / sum(weights)
    s = d / CUTOFF
    cutoff = 1 - 6 * s**5 + 15 * s**4 - 10 * s**3 if s < 1 else 0.0
    t = d / 1.5
    if t >= 1:
        return 0.0
    up, down = math.exp(-1 / (1 - t)), math.exp(-1 / t)
    return e2 * z1 * z2 / d * screening * cutoff * up / (up + down)


@pytest.mark.parametrize(("z1", "z2"), [(1, 1), (1, 8), (6, 17), (92, 8)])
def test_textbook(z1: int, z2: int) -> None:
    potential = potential_with(zbl())
    for d in (0.05, 0.3, 0.74, 1.1, 1.4, 1.49):
        result = result_of(potential, Atoms([z1, z2], positions=[[0, 0, 0], [0, 0, d]]))
        expected = textbook(z1, z2, d)
        assert_close(float(result.energy) / expected, 1.0, 1e-13, f"energy at {d} Å")
        assert_close(result.energies / expected, [0.5, 0.5], 1e-13, "halves")


def test_pairs_add_up() -> None:
    atoms = ethanol()
    distances = atoms.get_all_distances()
    expected = sum(
        textbook(atoms.numbers[i], atoms.numbers[j], distances[i, j])
        for i in range(len(atoms))
        for j in range(i)
    )
    assert expected > 1.0
    assert_close(result_of(potential_with(zbl()), atoms).energy, [expected], 1e-12)


def test_periodic_images_repel() -> None:
    """A chain of one atom a cell: each has two neighbours, which are its own images."""
    atoms = Atoms("H", cell=[1.2, 0, 0], pbc=[True, False, False])
    result = result_of(potential_with(zbl()), atoms)
    assert_close(result.energy, [textbook(1, 1, 1.2)], 1e-13)
    assert not result.forces.any()


def test_forces_and_strain() -> None:
    potential, atoms, h = potential_with(zbl()), ethanol(), 1e-5
    result = result_of(potential, atoms)
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(forces.shape):
        both = [atoms.copy(), atoms.copy()]
        for sign, moved in zip((1, -1), both, strict=True):
            moved.positions[index] += sign * h
        plus, minus = result_of(potential, both).energy
        forces[index] = float(minus - plus) / (2 * h)
    # h^2 / 6 times a third derivative of up to 1e3 eV/Å³ at bonds of 1 Å
    assert_close(result.forces, forces, 1e-7)
    turn = rotation(1)
    rotated = result_of(potential, transformed(atoms, turn)).strain_gradient[0]
    assert_close(rotated, turn.T @ result.strain_gradient[0].numpy() @ turn, 1e-12)


@pytest.mark.parametrize("function", ["physnet", "cosine", "exponential"])
@pytest.mark.parametrize("end", [SWITCH_OFF, 1.0], ids=["switch-off", "cutoff before it"])
def test_smooth_where_it_ends(function: str, end: float) -> None:
    """Positive and falling before the end; value, force and its slope vanish there, then zero."""
    term = zbl(ZBLConfig(end if end < SWITCH_OFF else CUTOFF, function))

    def energy(d: float) -> list[float]:
        x = torch.tensor(d, dtype=torch.float64, requires_grad=True)
        vectors = torch.stack([x * 0, x * 0, x]).unsqueeze(0)
        values = [term(pair_graph(vectors), AtomOutputs(torch.zeros(2))).sum()]
        for _ in range(2):
            values.append(torch.autograd.grad(values[-1], x, create_graph=True)[0])
        return [value.item() for value in values]

    scan = np.array([energy(d) for d in np.linspace(0.2, 0.93 * end, 60)])
    assert (scan[:, 0] > 0).all()
    assert (scan[:, 1] < 0).all()
    scale = np.abs(energy(0.5)).max()
    promised = 2 if end < SWITCH_OFF and function == "cosine" else 3
    assert np.abs(energy(end - 1e-5)[:promised]).max() < 1e-4 * scale
    for d in (end, end + 1e-12, 1.6, 4.4, 4.6, 100.0):
        assert energy(d) == [0.0, 0.0, 0.0]


def pair_graph(vectors: Tensor, mask: bool = True) -> Graph:
    """Two oxygens, one pair."""
    return Graph(
        vectors=torch.cat([vectors, -vectors]),
        receivers=torch.tensor([0, 1]),
        senders=torch.tensor([1, 0]),
        edge_mask=torch.tensor([mask, mask]),
        pairs=torch.tensor([0]),
        species=torch.tensor([3, 3]),
        system_idx=torch.tensor([0, 0]),
        charge=torch.zeros(1, dtype=torch.float64),
        spin=torch.ones(1, dtype=torch.int64),
    )


@pytest.mark.parametrize("length", [0.0, 0.5, 50.0])
def test_masked_pairs_are_nothing(length: float) -> None:
    vectors = torch.tensor([[0.0, 0.0, length]], dtype=torch.float64, requires_grad=True)
    energies = zbl()(pair_graph(vectors, mask=False), AtomOutputs(torch.zeros(2)))
    (gradient,) = torch.autograd.grad(energies.sum(), vectors)
    assert not energies.any()
    assert not gradient.any()


def test_padded_graph_gives_the_same() -> None:
    potential, system = potential_with(zbl()), System.from_ase([ethanol(), Atoms("O")])
    padded = build_graph(potential, system, skin=2.0, capacity=64)
    energies = potential.energies(padded)
    assert_close(energies, potential.energies(build_graph(potential, system)), 1e-13)


def test_switch_off() -> None:
    lengths = torch.tensor([-1.0, 0.0, 0.375, 0.75, 1.125, 1.5, 2.0], dtype=torch.float64)
    values = switch_off(lengths, 0.0, 1.5)
    quarter = math.exp(-1 / 0.75) / (math.exp(-1 / 0.75) + math.exp(-1 / 0.25))
    assert_close(values, [1, 1, quarter, 0.5, 1 - quarter, 0, 0], 1e-15)
    lengths = torch.linspace(-0.1, 1.6, 500, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(switch_off(lengths, 0.0, 1.5).sum(), lengths)
    assert gradient.isfinite().all()


def test_starts_from_the_textbook_and_stays_positive() -> None:
    """Whatever training does to the stored numbers, the repulsion repels."""
    assert sum(p.numel() for p in zbl().parameters()) == 10
    for seed in range(5):
        term = zbl()
        randomise(term, seed, amount=5.0)
        result = result_of(potential_with(term), ethanol())
        assert result.energies.min() > 0


@pytest.mark.parametrize("name", ["ethanol", "aspirin", "ammonium", "acetate_water", "water_64"])
def test_so3lr(shared: Path, name: str) -> None:
    base = shared / "reference" / "so3lr"
    stored, reference = np.load(base / "so3lr_params.npz"), np.load(base / f"{name}.npz")
    term = ZBLRepulsion(ZBLConfig(CUTOFF, "physnet"), (1, 6, 7, 8))
    names = {
        "exponents": ("a1", "a2", "a3", "a4"),
        "coefficients": ("c1", "c2", "c3", "c4"),
        "charge_power": ("p",),
        "inverse_length": ("d",),
    }
    term.load_state_dict(
        {
            ours: torch.from_numpy(
                np.concatenate([stored[f"observables_0/zbl_repulsion/{k}"] for k in theirs])
            ).double()
            for ours, theirs in names.items()
        }
    )
    atoms = Atoms(reference["numbers"], positions=reference["positions"], pbc=reference["pbc"])
    if "cell" in reference:
        atoms.cell = reference["cell"]
    result = result_of(potential_with(term), atoms)
    # their float64 and ours, sums in another order
    assert_close(result.energy[0], reference["lr12_energy_zbl"], 1e-12)
    assert_close(result.energies, reference["lr12_atomic_zbl"], 1e-12)
