"""Electrostatics and dispersion: a second formula, derivatives, ends, images, ghosts, ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.units import fs
from contract import ELEMENTS, assert_close, assert_derivatives, ethanol, slab, triclinic
from long_range_terms import CUTOFF, charged, potential, terms

from attncalc import AttnCalculator, System, evaluate, md
from attncalc.evaluator import Evaluator
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Graph, Graphs
from attncalc.neighbors import fresh_graph
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import ElectrostaticsConfig
from attncalc.physics.free_atoms import C6, POLARIZABILITIES, free_atoms
from attncalc.structures import batches, check_system, evaluate_many, fresh_graphs

# ---------------------------------------------------------------------------------- definition


def step(r: float, on: float, off: float) -> float:
    """g(r; on, off) of the published text."""
    t = (r - on) / (off - on)
    s = [math.exp(-1 / y) if y > 0 else 0.0 for y in (1 - t, t)]
    return s[0] / (s[0] + s[1])


def electrostatic(q: float, p: float, r: float, end: float | None) -> float:
    k, sigma = 14.399645351950548, 4.0
    if end is None:
        return k * q * p * math.erf(r / sigma) / r
    if r >= end:
        return 0.0
    v = math.erf(end / sigma) / end
    slope = 2 * math.exp(-((end / sigma) ** 2)) / (math.sqrt(math.pi) * sigma * end) - v / end
    f = step(r, 0.45 * end, end)
    shifted = math.erf(r / sigma) / r - v
    return k * q * p * (f * shifted + (1 - f) * (shifted - slope * (r - end)))


def dispersive(z: tuple[int, int], h: tuple[float, float], r: float, end: float | None) -> float:
    free = {1: (4.5, 6.5), 6: (12.0, 46.6), 7: (7.4, 24.2), 8: (5.4, 15.6)}
    (a, ca), (b, cb) = (
        (free[one][0] * ratio, free[one][1] * ratio**2) for one, ratio in zip(z, h, strict=True)
    )
    alpha = (a + b) / 2
    c6 = 2 * ca * cb * a * b / (a * a * cb + b * b * ca)
    radius = 0.007297352566206496 ** (-4 / 21) * alpha ** (1 / 7)
    s = -0.00433008 + 0.24428889 * radius + 0.04125273 * radius**2 - 0.00078893 * radius**3
    gamma, rho = 1 / (2 * s * s), 1.2 * 2 * 2.54 * alpha ** (1 / 7)
    x = r / 0.5291772105638411
    sum_of_powers = sum(
        c / (x**n + rho**n)
        for n, c in ((6, c6), (8, 5 * c6 / gamma), (10, 245 / 8 * c6 / gamma**2))
    )
    g = 1.0 if end is None else 0.0 if r >= end else step(r, end - 2.0, end)
    return -27.211386024367243 * sum_of_powers * g


@pytest.mark.parametrize("end", [CUTOFF, None])
def test_pairs_by_a_second_formula(end: float | None) -> None:
    generator = np.random.default_rng(0)
    for r in (0.7, 1.5, 3.0, 4.9, 5.1, 6.0, 6.99, 7.01, 30.0):
        z = tuple(int(one) for one in generator.choice(ELEMENTS, 2))
        q, h = generator.normal(size=2), generator.uniform(0.5, 1.2, 2)
        atoms = Atoms(z, [[0, 0, 0], [0, 0.6 * r, 0.8 * r]], info={"charge": sum(z) % 2})
        graph = fresh_graph(System.from_ase(atoms), cutoff=40.0, species=ELEMENTS)
        outputs = AtomOutputs(torch.zeros(2), torch.from_numpy(q), torch.from_numpy(h))
        ours = [term(graph, outputs).tolist() for term in terms(end)]
        electric, dispersion = electrostatic(*q, r, end), dispersive(z, tuple(h), r, end)
        np.testing.assert_allclose(ours[0], 2 * [electric / 2], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(ours[1], 2 * [dispersion / 2], rtol=1e-12, atol=1e-18)


def test_numbers_of_free_atoms(shared: Path) -> None:
    stored = np.load(shared / "reference" / "so3lr" / "free_atom_dispersion.npz")
    assert list(stored["symbols"]) == chemical_symbols[1 : len(C6) + 1]
    assert stored["alpha_bohr3"].tolist() == list(POLARIZABILITIES)
    assert stored["C6_hartree_bohr6"].tolist() == list(C6)


def test_elements_without_numbers_are_refused() -> None:
    assert [tensor.tolist() for tensor in free_atoms([6, 1])] == [[12.0, 4.5], [46.6, 6.5]]
    with pytest.raises(ValueError, match="no polarizability of a free Lr atom; known: H to No"):
        Dispersion(DispersionConfig(9.0), [1, 103])


# --------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("end", [CUTOFF, 2.0, None])
@pytest.mark.parametrize("structure", [charged, triclinic, slab])
def test_forces_and_stress_are_differences(structure: Callable, end: float | None) -> None:
    """Charges and ratios change with the positions, and atoms see their own images."""
    if end is None and structure().pbc.any():
        with pytest.raises(ValueError, match="infinitely many"):
            check_system(potential(terms(end)), System.from_ase(structure()))
    else:
        assert_derivatives(potential(terms(end)), structure())


def test_outputs_move_with_the_atoms() -> None:
    """With charges held fixed, forces would be others."""
    whole = potential(terms())
    graphs = fresh_graphs(whole, System.from_ase(ethanol()))
    result = evaluate(whole, graphs)
    outputs = AtomOutputs(torch.zeros(9), result.charges, result.hirshfeld_ratios)
    assert graphs.long is not None
    vectors = graphs.long.vectors.clone().requires_grad_()
    held = sum(term(graphs.long.with_vectors(vectors), outputs).sum() for term in terms())
    (gradient,) = torch.autograd.grad(held, vectors)
    forces = torch.zeros(9, 3).double().index_add(0, graphs.long.receivers, gradient)
    forces = forces.index_add(0, graphs.long.senders, -gradient)
    bare = evaluate(potential([]), fresh_graphs(potential([]), System.from_ase(ethanol())))
    assert (result.forces - bare.forces - forces).abs().amax() > 1e-3


def test_outputs_that_no_term_reads_move_no_atom() -> None:
    whole, system = potential([]), System.from_ase(ethanol())
    leaf = system.positions.clone().requires_grad_()
    energy = whole.energies(fresh_graphs(whole, system.with_positions(leaf))).sum()
    (expected,) = torch.autograd.grad(energy, leaf)
    for runs in (whole, lower(whole)):
        result = evaluate(runs, fresh_graphs(whole, system))
        assert result.charges is not None
        assert result.hirshfeld_ratios is not None
        assert_close(result.forces, -expected, 1e-10)


@pytest.mark.parametrize("end", [CUTOFF, 12.0])
def test_value_and_force_end_smoothly(end: float) -> None:
    outputs = AtomOutputs(
        torch.zeros(2), torch.tensor([0.5, -0.4]).double(), torch.tensor([0.9, 1.1]).double()
    )
    for term in terms(end):
        found = []
        for r in (end - 1e-2, end - 1e-3, end + 1e-3):
            atoms = Atoms("CO", [[0, 0, 0], [0, 0, r]])
            graph = fresh_graph(System.from_ase(atoms), cutoff=end + 1, species=ELEMENTS)
            vectors = graph.vectors.clone().requires_grad_()
            energy = term(graph.with_vectors(vectors), outputs).sum()
            (gradient,) = torch.autograd.grad(energy, vectors)
            found.append((abs(float(energy.detach())), float(gradient.abs().amax())))
        assert found[2] == (0.0, 0.0)
        assert found[1][0] <= 0.011 * found[0][0] < 1e-6
        assert found[1][1] <= 0.11 * found[0][1] < 1e-4


def test_dynamics_conserve_the_energy() -> None:
    """Half the timestep, a quarter of the fluctuation."""
    exact, fluctuations = potential(terms()), []
    for timestep in (0.2, 0.1):
        verlet = md.Verlet(timestep * fs)
        state = verlet.init(exact, System.from_ase(charged()), temperature=300.0, seed=0)
        energies = []
        for _ in range(round(4 / timestep)):
            state = md.run(verlet, exact, state, 1)
            energies.append(float(state.conserved))
        fluctuations.append(np.std(energies))
    assert fluctuations[0] / fluctuations[1] == pytest.approx(4, rel=0.25)


# ------------------------------------------------------------------------------- other graphs


def test_own_images_count_half_for_each() -> None:
    """A supercell has twice the energy of its two equal halves."""
    whole = potential(terms())
    once, twice = (
        evaluate(whole, fresh_graphs(whole, System.from_ase(atoms)))
        for atoms in (triclinic(), triclinic() * (2, 1, 1))
    )
    assert_close(twice.energies, torch.cat([once.energies, once.energies]), 1e-11)
    assert_close(twice.charges, torch.cat([once.charges, once.charges]), 1e-11)


def test_batch_is_single() -> None:
    whole = potential(terms())
    structures = [charged(), triclinic(), Atoms("O"), slab()]
    batch = evaluate(whole, fresh_graphs(whole, System.from_ase(structures)))
    single = [evaluate(whole, fresh_graphs(whole, System.from_ase(atoms))) for atoms in structures]
    for name in ("energies", "forces", "charges", "hirshfeld_ratios"):
        expected = torch.cat([getattr(result, name) for result in single])
        assert_close(getattr(batch, name), expected, 1e-11, name)


def test_energies_of_ghosts_do_not_count() -> None:
    whole = potential(terms())
    graphs = fresh_graphs(whole, System.from_ase(triclinic() * (2, 1, 1)))
    assert graphs.long is not None
    some = Graphs(graphs.short, graphs.long, n_counted=3)
    found, all_count = evaluate(whole, some), evaluate(whole, graphs)
    assert_close(found.energies[:3], all_count.energies[:3], 1e-12)
    assert not found.energies[3:].any()

    short, long = (graph.vectors.clone().requires_grad_() for graph in (graphs.short, graphs.long))
    moved = Graphs(graphs.short.with_vectors(short), graphs.long.with_vectors(long))
    gradients = torch.autograd.grad(whole.energies(moved)[:3].sum(), (short, long))
    expected = torch.zeros_like(found.forces)
    for graph, gradient in zip((graphs.short, graphs.long), gradients, strict=True):
        expected.index_add_(0, graph.receivers, gradient)
        expected.index_add_(0, graph.senders, -gradient)
    assert_close(found.forces, expected, 1e-11)
    assert (found.forces - all_count.forces).abs().amax() > 1e-3


def test_what_is_masked_or_too_far_counts_nothing() -> None:
    whole = potential(terms())
    system = System.from_ase(ethanol())
    graphs = fresh_graphs(whole, system)
    longer = fresh_graph(system, cutoff=CUTOFF + 3, species=ELEMENTS)
    expected = evaluate(whole, graphs)
    assert_close(evaluate(whole, Graphs(graphs.short, longer)).forces, expected.forces, 1e-12)
    beyond = torch.linalg.vector_norm(longer.vectors, dim=1) >= CUTOFF
    vectors = torch.where(beyond.unsqueeze(1), torch.nan, longer.vectors)
    fields = {**vars(longer), "vectors": vectors, "edge_mask": ~beyond}
    assert_close(
        evaluate(whole, Graphs(graphs.short, Graph(**fields))).forces, expected.forces, 1e-12
    )


# --------------------------------------------------------------------------------------- range


def test_molecules_and_crystals_have_their_own_range() -> None:
    by_kind, cut, uncut = (
        AttnCalculator(potential(pair_terms))
        for pair_terms in (terms(by_kind=True), terms(), terms(None))
    )
    assert by_kind.todict()["long_range_cutoff"] == "7 Å, all pairs of molecules"
    far = Atoms("COCO", [[0, 0, 0], [0, 0, 1.2], [0, 0, 9.0], [0, 0, 10.2]])
    for atoms, expected in ((far, uncut), (triclinic(), cut), (far, uncut)):
        assert_close(by_kind.get_forces(atoms), expected.get_forces(atoms), 1e-12)
    mixed = [far, triclinic(), slab(), far]
    found = by_kind.calculate_many(mixed)
    for atoms, entry in zip(mixed, found, strict=True):
        expected = cut if atoms.pbc.any() else uncut
        assert entry["energy"] == pytest.approx(expected.get_potential_energy(atoms), abs=1e-10)
    assert list(batches(mixed, 100, apart=True)) == [(0, 1), (1, 3), (3, 4)]
    with pytest.raises(
        ValueError, match="molecules and periodic structures in one batch: this mod"
    ):
        by_kind.evaluator(System.from_ase(mixed))
    with pytest.raises(ValueError, match=r"infinitely many: set atoms\.pbc = False or long_r"):
        uncut.get_forces(triclinic())


def test_a_list_of_longer_range_that_has_ended_is_noticed_without_waiting() -> None:
    """Of equal skins, as on a GPU, that of longer range ends first where a cell shrinks."""
    forces, system = Evaluator(potential(terms()), skin=0.3), System.from_ase(triclinic())
    forces.checks_list_every_step = False
    forces.renew(system)
    result, may_miss = forces.without_check(system)
    assert not may_miss
    assert_close(result.forces, forces(system).forces, 1e-12)
    smaller = replace(system, positions=0.97 * system.positions, cell=0.97 * system.cell)
    assert not forces.neighbors.needs_rebuild(smaller)
    assert forces.without_check(smaller)[1]


def test_virials_of_atoms_have_the_pairs_of_longer_range() -> None:
    """And stresses are divided by the volume of each structure's own cell."""
    larger = triclinic()
    larger.set_cell(1.1 * larger.cell.array, scale_atoms=True)
    forces, system = Evaluator(potential(terms())), System.from_ase([triclinic(), larger])
    result, stresses = forces(system), forces.stresses(system)
    for k, expected in enumerate(result.stress(system)):
        assert_close(stresses[system.system_idx == k].sum(0), expected, 1e-10)


def test_another_range_at_run_time() -> None:
    chosen = AttnCalculator(potential(terms(by_kind=True)), long_range_cutoff=5.0)
    expected = AttnCalculator(potential(terms(5.0)))
    for atoms in (charged(), triclinic()):
        assert_close(chosen.get_forces(atoms), expected.get_forces(atoms), 1e-12)
    (both,) = [
        result
        for _, result in evaluate_many(chosen.potential, [charged(), triclinic()], batch_atoms=99)
    ]
    assert len(both.energy) == 2
    everything = AttnCalculator(potential(terms(by_kind=True)), long_range_cutoff=math.inf)
    assert everything.todict()["long_range_cutoff"] == "all pairs"
    expected = AttnCalculator(potential(terms(None)))
    assert_close(everything.get_forces(charged()), expected.get_forces(charged()), 1e-12)
    for wrong in (0, -1.0, math.nan, True, "12"):
        with pytest.raises(ValueError, match="must be a positive number of Å, got"):
            AttnCalculator(potential(terms()), long_range_cutoff=wrong)
    with pytest.raises(ValueError, match="this model has no pair term of longer range"):
        AttnCalculator("so3krates-ethanol", long_range_cutoff=12.0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ElectrostaticsConfig, {"cutoff": 0.0}, "cutoff must be positive, got 0.0"),
        (ElectrostaticsConfig, {"cutoff": 2e4}, "cutoff must be at most 10000 Å, got 20000"),
        (ElectrostaticsConfig, {"cutoff": 9.0, "switch_start": 1.0}, "must be below 1, got 1.0"),
        (
            ElectrostaticsConfig,
            {"cutoff": 9.0, "damping_length": None},
            "damping_length must be a number, got None",
        ),
        (DispersionConfig, {"cutoff": 9.0, "switch_width": -1.0}, "switch_width must be positive"),
        (
            DispersionConfig,
            {"cutoff": 9.0, "switch_width": 0.01},
            r"must be at least 0\.05 Å, got 0",
        ),
        (DispersionConfig, {"cutoff": None, "damping": True}, "damping must be a number, got True"),
        (DispersionConfig, {"cutoff": 9, "all_pairs_in_molecules": 1}, "must be true or false"),
    ],
)
def test_impossible_settings_are_refused(kind: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_network_without_the_outputs_is_refused() -> None:
    for options, missing in (
        ({"predict_hirshfeld_ratios": True}, "charges: the network needs predict_charges=True"),
        ({"predict_charges": True}, "hirshfeld_ratios: the network needs predict_hirshfeld_ratios"),
    ):
        whole = potential(terms(), **options)
        with pytest.raises(ValueError, match=f"a pair term reads {missing}"):
            evaluate(lower(whole), fresh_graphs(whole, System.from_ase(ethanol())))
