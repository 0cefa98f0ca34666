"""The physics self-check: silent on sound models, and each fault found by the check made for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from contract import ELEMENTS, ethanol, randomise, slab, triclinic
from networks import tiny_so3krates
from torch import nn

from attncalc import load
from attncalc.checks import Check, Report, _known_cluster, verify
from attncalc.convert import so3krates
from attncalc.graph import AtomOutputs, Graph, Linearized
from attncalc.nn.network import CompiledNetwork, linearize
from attncalc.nn.so3krates import So3krates
from attncalc.ops import safe_norm, segment_sum, with_modules
from attncalc.potential import Committee, Potential
from attncalc.structures import check_system
from attncalc.system import System

COPPER = Path(__file__).parent / "models" / "cu-emt.safetensors"


def random_potential(**options) -> Potential:
    config = tiny_so3krates(3.5, num_features=16, num_layers=2, **options)
    torch.manual_seed(0)
    network = So3krates(config, len(ELEMENTS)).double()
    randomise(network)
    return Potential(network, ELEMENTS)


class Faulty(nn.Module):
    """A sound network plus something that should not be there."""

    def __init__(self, fault: Callable[[Graph], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.fault = random_potential().network, fault
        self.config = self.network.config
        self.reads_charge = self.reads_spin = False

    def forward(self, graph: Graph) -> AtomOutputs:
        return AtomOutputs(self.network(graph).energies + self.fault(graph))


def failed(report: Report) -> set[str]:
    return {check.name.split(":")[0].split(" (")[0] for check in report.checks if not check.passed}


def verify_with(fault: Callable[[Graph], torch.Tensor], atoms: Atoms) -> set[str]:
    return failed(verify(Potential(Faulty(fault), ELEMENTS), atoms))


# --------------------------------------------------------------------------------- sound models


@pytest.mark.parametrize("atoms", [None, ethanol(), triclinic(), slab(), Atoms("O"), Atoms("H")])
def test_a_sound_model_passes(atoms: Atoms | None) -> None:
    report = verify(random_potential(), atoms)
    assert report.passed, str(report)
    report.require()


@pytest.mark.parametrize("atoms", [None, triclinic()])
def test_large_reference_energies_are_no_fault(atoms: Atoms | None) -> None:
    """All-electron energies, as of gold: -535,000 eV per atom."""
    potential = random_potential()
    potential.reference_energies.fill_(-5.35e5)
    report = verify(potential, atoms)
    assert report.passed, str(report)


@pytest.mark.parametrize("cutoff_function", ["cosine", "exponential", "physnet"])
def test_every_cutoff_function_is_smooth_enough(cutoff_function: str) -> None:
    """Forces of the cosine cutoff fall to zero only linearly, which is allowed, at any scale."""
    potential = random_potential(cutoff_function=cutoff_function)
    potential.scale.mul_(20.0)
    assert "pair vanishes at the cutoff" not in failed(verify(potential, ethanol()))


@pytest.mark.parametrize("weights", ["euclidean_default", "euclidean_options", "sparse_options"])
def test_published_architectures_pass(weights: str, shared: Path) -> None:
    base = shared / "reference" / "so3krates" / weights
    potential = so3krates(
        f"{base}_params.npz", f"{base}_hyperparameters.json", species=[1, 6, 7, 8]
    )
    report = verify(potential, ethanol())
    assert report.passed, str(report)


def test_charged_structures_of_a_model_that_reads_charge() -> None:
    ion = ethanol()
    ion.info = {"charge": 1, "spin": 4}
    assert verify(random_potential(embed_charge=True, embed_spin=True), ion).passed
    with pytest.raises(ValueError, match="total charge"):
        verify(random_potential(), ion)


@pytest.mark.parametrize(
    ("charges", "multiplicities"), [([1, 1], [1, 1]), ([-2, -1], [3, 4]), ([0, 2], [2, 2])]
)
def test_the_random_cluster_is_one_that_the_model_knows(charges, multiplicities) -> None:
    """A model of an ion refuses neutral structures."""
    potential = random_potential(embed_charge=True, embed_spin=True)
    potential.training_info = {"total_charges": charges, "multiplicities": multiplicities}
    assert verify(potential).passed


@pytest.mark.parametrize(
    ("charges", "multiplicities"), [([1, 1], None), ([-2, -1], [1, 2]), ([-1, 1], [1, 1])]
)
def test_the_random_cluster_of_even_elements(charges, multiplicities) -> None:
    """They have even numbers of protons, so not all charges go with all multiplicities."""
    config = tiny_so3krates(3.5, num_features=16, embed_charge=True, embed_spin=True)
    potential = Potential(So3krates(config, 2).double(), (6, 8))
    potential.training_info = {"total_charges": charges}
    if multiplicities:
        potential.training_info["multiplicities"] = multiplicities
    cluster = _known_cluster(potential)
    charge, spin = cluster.info["charge"], cluster.info["spin"]
    assert charges[0] <= charge <= charges[1]
    assert (int(cluster.numbers.sum()) - charge + spin) % 2 == 1
    check_system(potential, System.from_ase(cluster))


def test_members_that_know_no_common_multiplicity() -> None:
    members = [random_potential(embed_charge=True, embed_spin=True) for _ in range(2)]
    for member, spin in zip(members, (1, 3), strict=True):
        member.training_info = {"multiplicities": [spin, spin]}
        member.scale.mul_(spin)  # two of a committee differ
    with pytest.raises(ValueError, match="no multiplicity is known to all members of this"):
        verify(Committee(members), ethanol())


@pytest.mark.parametrize(
    ("charge", "spin", "is_known"),
    [
        *((-2, 1, False), (-1, 2, True), (0, 1, True), (0, 3, True)),
        *((0, 5, False), (1, 2, True), (2, 3, False)),
    ],
)
def test_charges_and_multiplicities_of_the_training(charge: int, spin: int, is_known: bool) -> None:
    """Those of molecules are compared, those of a cell in any number of directions are not."""
    potential = random_potential(embed_charge=True, embed_spin=True)
    potential.training_info = {"total_charges": [-1, 1], "multiplicities": [1, 3]}
    atoms = ethanol()
    atoms.info = {"charge": charge, "spin": spin}
    with nullcontext() if is_known else pytest.raises(ValueError, match="was trained on"):
        check_system(potential, System.from_ase([ethanol(), atoms]))
    atoms.set_cell([10.0] * 3)
    for pbc in ((True, False, False), (True, True, False), True):
        atoms.pbc = pbc
        check_system(potential, System.from_ase(atoms))


@pytest.mark.parametrize("spin", [None, 5])
def test_a_multiplicity_that_the_model_was_not_trained_on(spin: int | None) -> None:
    """The default is a closed shell, which a model of a triplet does not know."""
    potential = random_potential(embed_charge=True, embed_spin=True)
    potential.training_info = {"multiplicities": [3, 3]}
    atoms = ethanol()
    atoms.info = {} if spin is None else {"spin": spin}
    said = f"multiplicity {spin or 1}: this model was trained on multiplicity 3 only"
    with pytest.raises(ValueError, match=said):
        verify(potential, atoms)
    atoms.info = {"spin": 3}
    assert verify(potential, atoms).passed


def test_potential_and_structure_stay_as_they_are() -> None:
    potential, atoms = load(COPPER), Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    state, positions = copy.deepcopy(potential.state_dict()), atoms.positions.copy()
    report = verify(potential, atoms)
    assert report.passed, str(report)
    assert any(check.name.startswith("float32 = float64") for check in report.checks)
    assert potential.dtype == torch.float32
    assert all(torch.equal(v, state[k]) for k, v in potential.state_dict().items())
    assert (atoms.positions == positions).all()


# --------------------------------------------------------------------------------------- faults


def by_receiver(graph: Graph, values: torch.Tensor) -> torch.Tensor:
    return segment_sum(values * graph.edge_mask, graph.receivers, graph.n_atoms)


def smooth(graph: Graph) -> torch.Tensor:
    """[n_edges]: 1 - d/cutoff, squared: vanishes at the cutoff with its slope."""
    return (1 - safe_norm(graph.vectors) / 3.5).clamp(min=0) ** 2


def test_a_preferred_direction() -> None:
    found = verify_with(
        lambda g: by_receiver(g, 1e-4 * smooth(g) * g.vectors[:, 2] ** 2), ethanol()
    )
    assert found == {"rotation", "reflection"}  # the reflected structure is turned as well


def test_handedness() -> None:
    """A pseudoscalar of the geometry: rotations leave it alone, a reflection changes its sign."""

    def volume(graph: Graph) -> torch.Tensor:
        first, second, third = (
            segment_sum(
                graph.vectors * (smooth(graph) * w * graph.edge_mask)[:, None],
                graph.receivers,
                graph.n_atoms,
            )
            for w in (graph.species[graph.senders] ** k + 1.0 for k in (0, 1, 2))
        )
        length = safe_norm(graph.vectors)
        far = segment_sum(
            graph.vectors * (smooth(graph) * length * graph.edge_mask)[:, None],
            graph.receivers,
            graph.n_atoms,
        )
        return 1e-2 * (torch.linalg.cross(first, second) * (third + far)).sum(1)

    assert verify_with(volume, ethanol()) == {"reflection"}


def test_order_of_the_atoms() -> None:
    def fault(graph: Graph) -> torch.Tensor:
        order = torch.arange(graph.n_atoms, dtype=torch.float64)[graph.receivers]
        return by_receiver(graph, 1e-3 * smooth(graph) * order)

    assert "permutation" in verify_with(fault, ethanol())


def test_other_structures_of_the_batch() -> None:
    def fault(graph: Graph) -> torch.Tensor:
        return by_receiver(graph, 1e-4 * smooth(graph) * graph.n_systems)

    assert verify_with(fault, ethanol()) == {"batch = single"}


def test_energies_without_a_gradient() -> None:
    """Of the size of a batch, of edges that are masked, and of the order of the atoms."""

    def of_batch(graph: Graph) -> torch.Tensor:
        return torch.full((graph.n_atoms,), 0.1 * graph.n_atoms, dtype=torch.float64)

    def of_mask(graph: Graph) -> torch.Tensor:
        return torch.full((graph.n_atoms,), 0.1, dtype=torch.float64) * (~graph.edge_mask).sum()

    def of_order(graph: Graph) -> torch.Tensor:
        return 0.1 * torch.arange(graph.n_atoms, dtype=torch.float64)

    assert "batch = single" in verify_with(of_batch, ethanol())
    assert "reused, padded neighbour list = fresh list" in verify_with(of_mask, triclinic())
    assert "permutation" in verify_with(of_order, ethanol())


def test_masked_edges_that_are_not_ignored() -> None:
    def fault(graph: Graph) -> torch.Tensor:
        beyond = torch.exp(-safe_norm(graph.vectors))  # no mask, no envelope
        return 1e-3 * segment_sum(beyond, graph.receivers, graph.n_atoms)

    found = verify_with(fault, triclinic())
    assert found == {"reused, padded neighbour list = fresh list", "pair vanishes at the cutoff"}


def test_a_jump_at_the_cutoff() -> None:
    for power, is_fault in ((0, True), (1, True), (2, False)):
        found = verify_with(
            lambda g, power=power: by_receiver(
                g, 1e-2 * (1 - safe_norm(g.vectors) / 3.5).clamp(min=0) ** power
            ),
            triclinic(),
        )
        assert ("pair vanishes at the cutoff" in found) == is_fault, power


class Detached(torch.autograd.Function):
    """The identity with a gradient that is 0.1 % too large."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return 1.001 * gradient


@pytest.mark.parametrize(("atoms", "name"), [(ethanol(), "virial"), (triclinic(), "stress")])
def test_forces_that_are_not_the_gradient(atoms: Atoms, name: str) -> None:
    found = verify_with(lambda g: by_receiver(g, Detached.apply(0.1 * smooth(g))), atoms)
    assert found == {"forces = -dE/dr", f"{name} = dE/dstrain"} or found == {
        "forces = -dE/dr",
        f"{name} = dE/dstrain / V",
    }


def test_not_a_number_fails_everything() -> None:
    """NaN is neither larger nor smaller than a tolerance: no check may take it for a zero."""
    report = verify(
        Potential(Faulty(lambda g: by_receiver(g, smooth(g) * float("nan"))), ELEMENTS), ethanol()
    )
    assert not any(check.passed for check in report.checks), str(report)


def test_a_fast_path_that_differs() -> None:
    plain = random_potential()
    wrong = copy.deepcopy(plain)
    wrong.scale.mul_(1.001)
    report = verify(plain, ethanol(), fast=wrong)
    assert failed(report) == {"fast path = plain path"}
    assert failed(verify(plain, ethanol(), fast=copy.deepcopy(plain))) == set()


class OffByTwoPercent:
    """An engine with the network's energies, whose gradient is too large."""

    defers = False

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def linearize(self, graph: Graph) -> Linearized:
        outputs, pull = linearize(self.network, graph)
        return Linearized(outputs, lambda gradient: 1.02 * pull(gradient))


def test_derivatives_of_the_path_that_users_run() -> None:
    plain = random_potential()
    plain.set_dtype(torch.float32)
    assert verify(plain, ethanol(), fast=copy.deepcopy(plain)).passed
    compiled = CompiledNetwork(plain.network, OffByTwoPercent(plain.network))
    report = verify(plain, ethanol(), fast=with_modules(plain, network=compiled))
    assert [check.name for check in report.checks if not check.passed] == [
        "forces = -dE/dr (central differences, as run)",
        "virial = dE/dstrain (finite strain, as run)",
        "fast path = plain path (E, F, strain)",
    ]


# --------------------------------------------------------------------------------------- report


def test_the_table() -> None:
    report = Report(
        "C2H6O, 9 atoms",
        (Check("a", 1e-9, 1e-8, "eV"), Check("longer name", float("nan"), 1e-6, "eV/Å")),
    )
    assert str(report).splitlines() == [
        "physics checks on C2H6O, 9 atoms",
        "  a              1.0e-09 <= 1e-08 eV      ok",
        "  longer name        nan <= 1e-06 eV/Å    FAILED",
    ]
    assert not report.passed
    with pytest.raises(RuntimeError, match="the model fails 1 checks: longer name"):
        report.require()


def test_the_tolerance_itself_passes() -> None:
    assert Check("a", 1e-6, 1e-6, "eV").passed
    assert not Check("a", 1.001e-6, 1e-6, "eV").passed


def test_images_at_the_cutoff_of_electrostatics() -> None:
    """Each atom is 2 x 6 Å from images of itself, where the sum over pairs ends."""
    atoms = molecule("H2O", cell=[6, 6, 6], pbc=True)
    assert verify(load("so3krates-organic"), atoms).passed
