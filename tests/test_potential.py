"""`Potential` and `evaluate` on networks simple enough to know the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from contract import assert_close, assert_same_result, build_graph, ethanol, slab, triclinic
from torch import Tensor, nn

from attncalc import AttnCalculator
from attncalc.evaluator import Evaluator
from attncalc.graph import AtomOutputs, Graph
from attncalc.model_file import save
from attncalc.ops import safe_norm, segment_sum
from attncalc.potential import Committee, Potential, evaluate, forces_from_edges
from attncalc.result import Result
from attncalc.structures import check_system, evaluate_many, fresh_graphs
from attncalc.system import System

SPECIES = (1, 6, 7, 8, 29)


@dataclass(frozen=True)
class SpringsConfig:
    cutoff: float = 3.0
    graph_cutoff: float = 3.0


class Springs(nn.Module):
    """e_i = sum over neighbours of k[Z_i] (cutoff - d)^2 / 2: every derivative is known."""

    def __init__(self, *, charge: bool = False, spin: bool = False) -> None:
        super().__init__()
        self.config = SpringsConfig()
        self.reads_charge, self.reads_spin = charge, spin
        self.stiffness = nn.Parameter(torch.arange(1.0, len(SPECIES) + 1) / 10)

    def forward(self, graph: Graph) -> AtomOutputs:
        lengths = safe_norm(graph.vectors.to(self.stiffness.dtype))
        stretch = (self.config.cutoff - lengths) ** 2 / 2 * graph.edge_mask
        stiffness = self.stiffness[graph.species][graph.receivers]
        return AtomOutputs(segment_sum(stiffness * stretch, graph.receivers, graph.n_atoms))


class Constant(nn.Module):
    """A pair term that checks what it is handed."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        self.seen.append(outputs.energies.detach())
        return torch.full((graph.n_atoms,), self.value, dtype=torch.float64)


class SumOfSquares(nn.Module):
    """A second term with forces."""

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        del outputs
        squares = (graph.vectors**2).sum(1) * graph.edge_mask
        return segment_sum(squares, graph.receivers, graph.n_atoms)


def springs(**options) -> Potential:
    return Potential(Springs().double(), SPECIES, **options)


def graph_of(potential: Potential, atoms: Atoms | list[Atoms], **options) -> Graph:
    return build_graph(potential, System.from_ase(atoms), **options)


def test_dimer_by_hand() -> None:
    """O (k 0.4) and H (k 0.1), 1 Å apart: E = (0.4 + 0.1) (3 - 1)^2 / 2, F = 0.5 (3 - 1)."""
    potential = springs()
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]])
    result = evaluate(potential, graph_of(potential, atoms))
    k = potential.network.stiffness[[3, 0]].tolist()
    assert_close(result.energies, [2 * k[0], 2 * k[1]], 1e-15)
    assert_close(result.energy, [2 * sum(k)], 1e-15)
    assert_close(result.forces, [[0, 0, -2 * sum(k)], [0, 0, 2 * sum(k)]], 1e-15, "they repel")
    strain = np.zeros((1, 3, 3))
    strain[0, 2, 2] = -2 * sum(k)  # dE/dd times d
    assert_close(result.strain_gradient, strain, 1e-15)


def test_sign_and_size_of_the_stress() -> None:
    """Copper, 12 neighbours at d: sigma = n_edges E'(d) d / 3 / V on the diagonal, negative."""
    potential, crystal = springs(), bulk("Cu", a=3.6)
    system = System.from_ase(crystal)
    result = evaluate(potential, build_graph(potential, system))
    d, k = 3.6 / np.sqrt(2), potential.network.stiffness[4].item()
    assert 3.0 > d > 2.5
    diagonal = 12 * -k * (3.0 - d) * d / 3 / crystal.get_volume()
    assert_close(result.stress(system), [np.eye(3) * diagonal], 1e-14)
    assert diagonal < 0, "springs that push outwards: negative in ASE's sign"


def test_result_is_float64_and_detached() -> None:
    for dtype in (torch.float32, torch.float64):
        potential = Potential(Springs().to(dtype), SPECIES)
        assert potential.dtype == dtype
        result = evaluate(potential, graph_of(potential, ethanol()))
        assert result.spread is None
        for value in (result.energy, result.energies, result.forces, result.strain_gradient):
            assert value.dtype == torch.float64
            assert not value.requires_grad


def test_atoms_add_up_to_systems() -> None:
    potential = springs()
    graph = graph_of(potential, [ethanol(), Atoms("O"), triclinic()])
    result = evaluate(potential, graph)
    parts = result.energies.split([9, 1, 3])
    assert_close(result.energy, [float(part.sum()) for part in parts], 1e-14)
    assert result.energy[1] == 0
    assert torch.equal(result.strain_gradient, result.strain_gradient.transpose(1, 2))
    assert result.strain_gradient.shape == (3, 3, 3)


class Wells(nn.Module):
    """x^2 / 2 of every atom, a term that reads positions."""

    reads_system = True

    def forward(self, graph: Graph, outputs: AtomOutputs, system: System) -> Tensor:
        del graph, outputs
        return 0.5 * (system.positions**2).sum(1)


@pytest.mark.parametrize("compiled", [True, False])
def test_sums_over_edges_and_what_terms_have_summed(compiled: bool, monkeypatch) -> None:
    monkeypatch.setattr("attncalc.potential.has_numba", lambda: compiled)
    system = System.from_ase([ethanol(), slab(), triclinic()])
    potential, only_springs = springs(pair_terms=[Wells()]), springs()
    result = evaluate(potential, fresh_graphs(potential, system))
    leaf, x = system.positions.clone().requires_grad_(), system.positions
    strain = torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True)
    scaled = torch.einsum("nk,nkc->nc", leaf, strain[system.system_idx])
    moved = replace(system, positions=leaf + scaled, cell=system.cell + system.cell @ strain)
    energies = only_springs.energies(fresh_graphs(only_springs, moved))
    by_positions, by_strain = torch.autograd.grad(energies.sum(), [leaf, strain])
    assert_close(result.energies, energies.detach() + 0.5 * (x**2).sum(1), 1e-13)
    assert_close(result.forces, -by_positions - x, 1e-12)
    wells = torch.zeros(3, 3, 3, dtype=torch.float64)
    wells.index_add_(0, system.system_idx, x.unsqueeze(2) * x.unsqueeze(1))
    assert_close(result.strain_gradient, by_strain + wells, 1e-12)


def test_no_edges_at_all() -> None:
    potential = springs(reference_energies=[1.0, 2.0, 3.0, 4.0, 5.0])
    result = evaluate(potential, graph_of(potential, [Atoms("O"), Atoms("C")]))
    assert result.energy.tolist() == [4.0, 2.0]
    assert not result.forces.any()
    assert not result.strain_gradient.any()


# ----------------------------------------------------------------- scale, references, pair terms


def test_scale_and_reference_energies() -> None:
    scale, references = [2.0, 3.0, 4.0, 5.0, 6.0], [-1.0, -2.0, -3.0, -4.0, -5.0]
    plain, full = springs(), springs(scale=scale, reference_energies=references)
    graph = graph_of(plain, ethanol())
    bare, result = evaluate(plain, graph), evaluate(full, graph)
    rows = graph.species
    expected = bare.energies * torch.tensor(scale)[rows] + torch.tensor(references)[rows]
    assert_close(result.energies, expected, 1e-14)
    doubled = evaluate(springs(scale=[2.0] * 5), graph)
    assert_close(doubled.forces, 2 * bare.forces, 1e-14)
    shifted = evaluate(springs(reference_energies=references), graph)
    assert_close(shifted.forces, bare.forces, 1e-14)


def test_references_keep_float64_beside_a_float32_network() -> None:
    """-1e5 eV and a meV in one number: float32 would have lost the meV."""
    potential = Potential(Springs(), SPECIES, reference_energies=[-1e5 - 0.001] * 5)
    result = evaluate(potential, graph_of(potential, Atoms("O")))
    assert result.energy.tolist() == [-1e5 - 0.001]


def test_pair_terms_are_added() -> None:
    constant = Constant(0.25)
    potential = springs(scale=[3.0] * 5, pair_terms=[SumOfSquares(), constant, SumOfSquares()])
    graph = graph_of(potential, ethanol())
    network = evaluate(springs(), graph)
    squares = (graph.vectors**2).sum(1)
    result = evaluate(potential, graph)
    expected = 3 * network.energies + 0.25 + 2 * segment_sum(squares, graph.receivers, 9)
    assert_close(result.energies, expected, 1e-14)
    assert_close(constant.seen[-1], network.energies, 1e-14, "outputs before the scale")
    pull = torch.zeros(9, 3, dtype=torch.float64).index_add(0, graph.receivers, 8 * graph.vectors)
    assert_close(result.forces, 3 * network.forces + pull, 1e-13)


@pytest.mark.parametrize("name", ["scale", "reference_energies"])
def test_one_number_per_species(name: str) -> None:
    with pytest.raises(ValueError, match=r"one value per species \(5\) needed, got \[4\]"):
        springs(**{name: [1.0] * 4})


def test_an_element_has_one_row() -> None:
    with pytest.raises(ValueError, match=r"species contains an element twice: \(1, 6, 6\)"):
        Potential(torch.nn.Identity(), (1, 6, 6))


# ---------------------------------------------------------------------------- gradients, modes


def test_works_under_no_grad() -> None:
    potential = springs()
    graph = graph_of(potential, ethanol())
    expected = evaluate(potential, graph)
    with torch.no_grad():
        assert_same_result(evaluate(potential, graph), expected, 0.0)
        assert not torch.is_grad_enabled()


def test_leaves_no_gradient_in_parameters_or_vectors() -> None:
    potential = springs()
    graph = graph_of(potential, ethanol())
    graph = graph.with_vectors(graph.vectors.requires_grad_(True))
    evaluate(potential, graph)
    assert potential.network.stiffness.requires_grad
    assert potential.network.stiffness.grad is None
    assert graph.vectors.grad is None


def test_frozen_parameters_make_no_difference() -> None:
    potential = springs()
    graph = graph_of(potential, ethanol())
    expected = evaluate(potential, graph)
    assert_same_result(evaluate(potential.requires_grad_(False), graph), expected, 0.0)


def test_energies_are_differentiable_by_parameters() -> None:
    """What training needs; `evaluate` detaches, `energies` does not."""
    potential = springs()
    graph = graph_of(potential, ethanol())
    (gradient,) = torch.autograd.grad(potential.energies(graph).sum(), potential.network.stiffness)
    lengths = graph.vectors.norm(dim=1)
    expected = segment_sum((3 - lengths) ** 2 / 2, graph.species[graph.receivers], 5)
    assert_close(gradient, expected, 1e-14)


def test_forces_from_edges() -> None:
    gradient = torch.tensor([[1.0, 0, 0], [0, 10.0, 0]])
    forces = forces_from_edges(gradient, torch.tensor([0, 2]), torch.tensor([1, 0]), 3)
    assert forces.tolist() == [[1, -10, 0], [-1, 0, 0], [0, 10, 0]]


# -------------------------------------------------------------------------------------- stress


def some_result(n_systems: int) -> Result:
    strain = torch.ones(n_systems, 3, 3, dtype=torch.float64)
    return Result(torch.zeros(n_systems), torch.zeros(1), torch.zeros(1, 3), strain)


def test_stress_divides_by_each_volume() -> None:
    left_handed = Atoms("H", cell=[[0, 2, 0], [2, 0, 0], [0, 0, 2]], pbc=True)
    system = System.from_ase([left_handed, slab()])
    expected = [np.full((3, 3), 1 / 8), np.full((3, 3), 1 / slab().get_volume())]
    assert_close(some_result(2).stress(system), expected, 1e-14)


@pytest.mark.parametrize("cell", [None, [3.0, 0, 0], [3.0, 3.0, 0]])
def test_stress_without_volume_is_refused(cell: list[float] | None) -> None:
    flat = Atoms("H", cell=cell)
    with pytest.raises(ValueError, match="structure 1 has no volume, so stress is not defined"):
        some_result(2).stress(System.from_ase([triclinic(), flat]))


def test_inference_mode_says_what_to_use_instead() -> None:
    graph = build_graph(springs(), System.from_ase(ethanol()))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\)"):
        evaluate(springs(), graph)


# ------------------------------------------------------------------------------------- batches


def test_batches_keep_the_order_and_the_limit() -> None:
    structures = [
        Atoms(f"H{n}", positions=np.outer(range(n), [2.0, 0, 0])) for n in (3, 3, 9, 1, 4, 5)
    ]
    found = list(evaluate_many(springs(), structures, batch_atoms=6))
    assert [torch.bincount(s.system_idx).tolist() for s, _ in found] == [[3, 3], [9], [1, 4], [5]]
    singly = [evaluate(springs(), build_graph(springs(), System.from_ase(a))) for a in structures]
    energies = torch.cat([result.energy for _, result in found])
    assert_close(energies, torch.cat([result.energy for result in singly]), 1e-14)


def test_an_impossible_structure_is_named() -> None:
    structures = [ethanol() for _ in range(4)]
    structures[3].info["charge"] = 1
    with pytest.raises(ValueError, match=r"^structure 3: total charge \+1 e"):
        list(evaluate_many(springs(), structures, batch_atoms=20))


def test_an_evaluator_has_a_copy_of_the_potential() -> None:
    potential, system = springs().train(), System.from_ase(ethanol())
    evaluator = Evaluator(potential)
    expected = evaluator(system).energy
    assert potential.training
    assert potential.network.stiffness.requires_grad
    with torch.no_grad():
        potential.network.stiffness *= 2
    assert torch.equal(evaluator(system.with_positions(system.positions + 0)).energy, expected)


def test_an_evaluator_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match=r"takes a System, not Atoms: System\.from_ase\(atoms\)"):
        Evaluator(springs())(ethanol())


@pytest.mark.parametrize(
    "take",
    [
        Evaluator,
        lambda given: list(evaluate_many(given, [ethanol()])),
        lambda given: Committee([given, given]),
        lambda given: save(given, "never.safetensors"),
    ],
    ids=["Evaluator", "evaluate_many", "Committee", "save"],
)
def test_a_name_is_no_potential(take) -> None:
    with pytest.raises(TypeError, match=r"expected a Potential, got str: load\(NAME\) returns one"):
        take("so3krates-ethanol")


def test_one_structure_is_no_list() -> None:
    with pytest.raises(TypeError, match=r"takes a list of structures, got one ase\.Atoms"):
        list(evaluate_many(springs(), ethanol()))
    with pytest.raises(TypeError, match="evaluate_many takes a list of structures, got NoneType"):
        list(evaluate_many(springs(), None))


def test_what_is_made_in_inference_mode_runs_outside() -> None:
    with torch.inference_mode():
        made = AttnCalculator("so3krates-ethanol", dtype="float64")
        evaluator = Evaluator(springs())
    atoms = ethanol()
    expected = AttnCalculator("so3krates-ethanol", dtype="float64").get_forces(atoms)
    np.testing.assert_array_equal(made.get_forces(atoms), expected)
    assert evaluator(System.from_ase(atoms)).forces.abs().max() > 0


# ------------------------------------------------------------------------------ charge and spin


def test_a_charge_that_the_network_ignores_is_refused() -> None:
    ion = System.from_ase(Atoms("OH", positions=np.eye(3)[:2], info={"charge": -1}))
    triplet = System.from_ase(Atoms("O", info={"spin": 3}))
    neutral = System.from_ase([Atoms("H"), ethanol()])
    cases = [(springs(), ion, "total charge -1 e"), (springs(), triplet, "multiplicity 3")]
    for potential, system, message in cases:
        with pytest.raises(ValueError, match=message):
            check_system(potential, system)
        check_system(potential, neutral)
    aware = Potential(Springs(charge=True, spin=True), SPECIES)
    for system in (ion, triplet, neutral):
        check_system(aware, system)
