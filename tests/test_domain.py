"""Parts of a structure: which atoms they hold, how long they last, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from contract import assert_same_result, random_potential
from networks import tiny_so3krates
from numpy.typing import NDArray
from parts import added_up, added_up_with_messages, box_of, images_of, parts_of, rod, whole_of
from torch import nn

from attncalc.domain import Domain, Images, depth_of, exchanges_outputs, refuse_parts
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Graph, sum_over_system
from attncalc.model_file import load
from attncalc.nn.so3krates_sphc import So3kratesSphcConfig
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Committee, Potential, evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System


def two_layers(seed: int = 0) -> Potential:
    network = random_potential(tiny_so3krates(4.0, num_layers=2), seed).network
    terms = [ZBLRepulsion(ZBLConfig(cutoff=2.0), (1, 6, 7, 8))]
    return Potential(network, (1, 6, 7, 8), pair_terms=terms).requires_grad_(False)


def moved(parts: list[tuple[Images, Domain | None]], atoms: Atoms, steps: NDArray) -> list:
    return [
        (images._replace(positions=images.positions + steps[images.ids]), part)
        for images, part in parts
    ]


def test_a_part_has_what_it_needs_and_no_atom_twice():
    potential, atoms = two_layers(), rod(16)
    parts = parts_of(potential, atoms, (4, 1, 1))
    for images, domain in parts:
        assert len(domain.rows) < len(atoms) < len(images.ids)
        assert domain.n_own == images.n_own == domain.hop_counts[0]
        assert len(domain.hop_counts) == 1 + depth_of(potential) == 3
        assert list(domain.hop_counts) == sorted(set(domain.hop_counts))
        assert domain.hop_counts[-1] == len(domain.rows)
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
    assert_same_result(added_up(potential, atoms, parts), whole)


def test_one_part_has_no_ghosts():
    potential, atoms = two_layers(), rod(2)
    ((images, domain),) = parts_of(potential, atoms, (1, 1, 1))
    assert len(domain.rows) == domain.n_own == len(atoms) < len(images.ids)
    assert domain.is_inner.all()


def test_a_part_without_atoms():
    potential, atoms = two_layers(), rod(4)
    atoms = atoms[atoms.positions[:, 0] > 3]
    (_, empty), *others = parts_of(potential, atoms, (8, 1, 1))
    assert empty is None
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
    parts = parts_of(potential, atoms, (8, 1, 1))
    assert len(others) == 7
    assert_same_result(added_up(potential, atoms, parts), whole)


def test_open_boundaries():
    potential, atoms = two_layers(), rod(4)
    atoms.pbc = False
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
    parts = parts_of(potential, atoms, (2, 2, 1))
    assert_same_result(added_up(potential, atoms, parts), whole)


def test_atoms_of_others_are_left_out():
    potential, atoms = two_layers(), rod(4)
    images = images_of(atoms, np.arange(len(atoms)), 0.0)
    numbers = np.where(images.ids % 5 == 0, 0, images.numbers)
    ours = atoms[np.arange(len(atoms)) % 5 > 0]
    images, whole = images._replace(numbers=numbers), whole_of(potential, ours)
    domain = Domain.of(potential, images, box_of(atoms), whole, skin=0.5)
    assert np.array_equal(domain.system.atomic_numbers.numpy(), ours.numbers)
    result = evaluate(potential, domain.graphs(images.positions, box_of(atoms)))
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(ours)))
    assert_same_result(result, whole)


def test_a_list_lasts_as_long_as_no_atom_moves_too_far():
    """Atoms 0.2 Å from where they were; what is nearer by 0.5 Å in sum is in the list."""
    potential, atoms = two_layers(), rod(16)
    parts = parts_of(potential, atoms, (4, 1, 1), skin=0.5)
    steps = np.random.default_rng(0).normal(size=(len(atoms), 3))
    steps *= 0.2 / np.linalg.norm(steps, axis=1, keepdims=True)
    later = atoms.copy()
    later.positions += steps
    found = added_up(potential, later, moved(parts, atoms, steps))
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(later)))
    assert_same_result(found, whole)
    steps[0] *= 1.3
    lists = moved(parts, atoms, steps)
    ends = [images.ids[part.rows] for images, part in lists]
    graphs = [part.graphs(images.positions, box_of(atoms)) for images, part in lists]
    assert [one is None for one in graphs] == [0 in ids for ids in ends]
    assert any(one is None for one in graphs)


def test_a_box_may_change_its_shape():
    potential, atoms = two_layers(), rod(16)
    parts = parts_of(potential, atoms, (4, 1, 1), skin=1.0)
    later = atoms.copy()
    later.set_cell(atoms.cell.array @ (np.eye(3) + 0.01), scale_atoms=True)
    strain = later.cell.array, atoms.cell.array
    stretched = []
    for images, part in parts:
        places = np.linalg.solve(strain[1].T, images.positions.T).T @ strain[0]
        stretched.append((images._replace(positions=places), part))
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(later)))
    assert_same_result(added_up(potential, later, stretched), whole)


def test_atoms_that_have_not_all_neighbours_are_known():
    potential, atoms = two_layers(), rod(16)
    for reach, complete in ((8.0, True), (5.0, False)):
        images = images_of(atoms, np.arange(32), reach)
        whole = whole_of(potential, atoms)
        domain = Domain.of(potential, images, box_of(atoms), whole, skin=0.0)
        graph = fresh_graphs(potential, System.from_ase(atoms)).short.arrays
        n_neighbors = np.bincount(graph.receivers)[images.ids[domain.rows]]
        same = (domain.n_neighbors == n_neighbors)[domain.is_inner]
        assert same.all() == complete


def test_engines_and_committees():
    """In float32, and threads."""
    members = [load(f"so3krates-{name}", device="cpu") for name in ("silicon", "silicon")]
    with torch.no_grad():
        members[1].network.layers[0].attention.feature_projection *= 1.01
    committee = Committee(members)
    atoms = bulk("Si", cubic=True) * (10, 1, 1)
    atoms.rattle(0.1, seed=0)
    for potential in (lower(members[0]), lower(committee)):
        whole = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
        parts = parts_of(potential, atoms, (4, 1, 1))
        assert all(len(part.rows) < len(atoms) for _, part in parts)
        assert_same_result(added_up(potential, atoms, parts), whole, 1e-5)


def charged(seed: int = 0, **options: float) -> Potential:
    """Charges and ratios of one layer, and terms of 7 Å that read them."""
    config = tiny_so3krates(
        3.0, num_layers=1, predict_charges=True, predict_hirshfeld_ratios=True, embed_charge=True
    )
    species = (1, 6, 7, 8)
    terms = [
        ZBLRepulsion(ZBLConfig(cutoff=2.0), species),
        DampedElectrostatics(ElectrostaticsConfig(cutoff=7.0, **options), species),
        Dispersion(DispersionConfig(cutoff=7.0), species),
    ]
    network = random_potential(config, seed).network
    return Potential(network, species, pair_terms=terms).requires_grad_(False)


def gas(n: int, seed: int = 0) -> Atoms:
    """Molecules so far apart that they meet in terms of longer range only."""
    rng, atoms = np.random.default_rng(seed), Atoms(cell=[7.0 * n, 7.5, 8.0], pbc=True)
    for k in range(n):
        water = molecule("H2O")
        water.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
        water.translate([7.0 * k + 3.5, 3.7, 4.0])
        atoms += water
    return atoms


@pytest.mark.parametrize("make", [lambda: gas(5), lambda: rod(6)], ids=["gas", "rod"])
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2, 2), (3, 1, 1)])
def test_charges_and_pairs_of_longer_range_are_shared(make, counts: tuple[int, int, int]):
    """Twice: as the plain network and terms, and as compiled loops in float64."""
    potential, atoms = charged(), make()
    refuse_parts(potential)
    assert exchanges_outputs(potential)
    system = System.from_ase(atoms)
    whole = evaluate(potential, fresh_graphs(potential, system))
    for runs in (potential, lower(potential)):
        parts = parts_of(runs, atoms, counts)
        assert_same_result(added_up_with_messages(runs, atoms, parts), whole)


@pytest.mark.parametrize(("charge", "spin"), [(1, 2), (-2, 1), (0, 3)])
def test_total_charge_and_multiplicity_are_those_of_the_whole(charge: int, spin: int):
    config = tiny_so3krates(3.0, predict_charges=True, embed_charge=True, embed_spin=True)
    network = random_potential(config).network
    term = DampedElectrostatics(ElectrostaticsConfig(cutoff=7.0), (1, 6, 7, 8))
    potential = Potential(network, (1, 6, 7, 8), pair_terms=[term]).requires_grad_(False)
    refuse_parts(potential)
    atoms = gas(4)
    atoms.info = {"charge": charge, "spin": spin}
    whole = evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))
    neutral = evaluate(potential, fresh_graphs(potential, System.from_ase(gas(4))))
    assert (whole.energies - neutral.energies).abs().min() > 1e-6  # of every atom
    for runs in (potential, lower(potential)):
        found = added_up_with_messages(runs, atoms, parts_of(runs, atoms, (4, 1, 1)))
        assert_same_result(found, whole)


def test_every_pair_with_a_ghost_is_in_one_part():
    potential, atoms = charged(), rod(6)
    parts = parts_of(potential, atoms, (3, 1, 1))
    long = fresh_graphs(potential, System.from_ase(atoms)).long
    assert long is not None
    found = []
    for images, domain in parts:
        graph = domain.graphs(images.positions, box_of(atoms)).long
        found.append(len(graph.pairs))
    assert sum(found) == len(long.pairs)
    assert max(found) < 1.5 * min(found)


def test_a_list_of_longer_range_ends_first_where_the_box_shrinks():
    """By 5 %: pairs 3.5 Å apart come nearer by less than the skin, those 7.5 Å apart by more."""
    potential, atoms = charged(), gas(4)
    ((images, domain),) = parts_of(potential, atoms, (1, 1, 1))
    for shrinks, holds in ((0.99, True), (0.95, False)):
        later = atoms.copy()
        later.set_cell(shrinks * atoms.cell.array, scale_atoms=True)
        positions = shrinks * images.positions
        assert (domain.graphs(positions, box_of(later)) is not None) == holds
        assert domain.verlet.reuse(System.from_ase(later[images.ids[domain.rows]])) is not None


def test_messages_name_atoms_by_their_ids():
    potential, atoms = two_layers(), rod(8)
    own, (one, other) = np.arange(32, 48), (20, 27)  # two ghosts
    clash = atoms.copy()
    clash.positions[one] = clash.positions[other]
    words = rf"atom {one} \(\w+\) and atom {other} \(\w+\) are 0.0e\+00 Å apart"
    images = images_of(clash, own, 9.0)
    with pytest.raises(ValueError, match=words):
        Domain.of(potential, images, box_of(atoms), whole_of(potential, atoms), skin=0.5)


def test_committees_share_the_charges_of_every_member():
    committee, atoms = Committee([charged(0), charged(1)]), gas(4)
    atoms = atoms[:9]  # a part has no atoms
    whole = evaluate(committee, fresh_graphs(committee, System.from_ase(atoms)))
    parts = parts_of(committee, atoms, (4, 1, 1))
    assert any(domain is None for _, domain in parts)
    assert_same_result(added_up_with_messages(committee, atoms, parts), whole)


def test_pairs_of_molecules_without_a_cutoff_are_refused():
    potential = charged(all_pairs_in_molecules=True)
    refuse_parts(potential)
    with pytest.raises(ValueError, match=r"counts all pairs .* give a long-range cutoff"):
        refuse_parts(potential, periodic=False)
    potential.set_long_range_cutoff(np.inf)
    with pytest.raises(ValueError, match="looks at all pairs of atoms"):
        refuse_parts(potential)


class Averaged(nn.Module):
    """A network from outside, which subtracts a mean over the structure."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.reads_charge = self.reads_spin = False

    def forward(self, graph: Graph) -> AtomOutputs:
        energies = self.network(graph).energies
        mean = sum_over_system(energies, graph) / graph.n_atoms
        return AtomOutputs(energies * (1 - mean[graph.system_idx] ** 2))


class AveragedIfCharged(Averaged):
    """A network whose mean matters for ions only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.reads_charge = True

    def forward(self, graph: Graph) -> AtomOutputs:
        energies, of_ions = self.network(graph).energies, super().forward(graph).energies
        return AtomOutputs(torch.where(graph.charge[graph.system_idx] == 0, energies, of_ions))


def potentials_of_the_whole() -> dict[str, Potential]:
    charged = random_potential(tiny_so3krates(4.0, predict_charges=True)).network
    published = So3kratesSphcConfig(
        cutoff=2.6,
        num_features=24,
        num_layers=1,
        num_basis=8,
        radial_features=12,
        spherical_features=6,
        form="published",
        cutoff_function="cosine",
        feature_norm="none",
        nonlocal_attention="dynamic",
        paths="all",
    )
    species = (1, 6, 7, 8)
    coulomb = DampedElectrostatics(ElectrostaticsConfig(cutoff=9.0), species)
    coulomb.sums_over_pairs = False
    ewald = Ewald(EwaldConfig(), species)
    return {
        "pair terms of longer range that are no sums": Potential(
            charged, species, pair_terms=[coulomb]
        ),
        "all periodic images": Potential(charged, species, pair_terms=[ewald]),
        "all pairs": random_potential(published),
        "sums over the whole structure": Potential(Averaged(two_layers().network), species),
    }


@pytest.mark.parametrize("words", list(potentials_of_the_whole()))
def test_what_cannot_be_shared(words: str):
    with pytest.raises(ValueError, match=f"{words}.*use one process"):
        refuse_parts(potentials_of_the_whole()[words])


def test_what_cannot_be_shared_of_ions():
    ions = Potential(AveragedIfCharged(two_layers().network), two_layers().species)
    with pytest.raises(ValueError, match="sums over the whole structure"):
        refuse_parts(ions)


def test_what_can_be_shared():
    for potential in (two_layers(), random_potential(tiny_so3krates(4.0, predict_charges=True))):
        refuse_parts(potential)
