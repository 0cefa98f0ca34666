"""What every network promises, as tests it inherits; and the helpers those tests are made of.

A new network gets all of it with one subclass in its own test file:

    class TestContract(NetworkContract):
        @pytest.fixture(scope="module", params=[...])
        def potential(self, request) -> Potential: ...

The potential is float64, knows H, C, N, O and has parameters from `randomise`, so that attention,
biases and norms all matter.

Two tolerances recur. ROUNDING: the same sum in another order; float64 has 1e-16, a few hundred
operations deep network amplifies it to about 1e-13, and 1e-11 still catches everything that is not
rounding. All are relative to the largest value of the quantity compared, but at least 1.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from networks import tiny_so3krates
from parts import added_up, parts_of
from torch import Tensor, nn

from attncalc.graph import Edges, Graph, edge_vectors, one_per_pair, species_of
from attncalc.model_file import NETWORKS, load, save
from attncalc.neighbors import VerletList, neighbor_list
from attncalc.potential import Potential, evaluate
from attncalc.result import Result
from attncalc.structures import fresh_graphs
from attncalc.system import System

ELEMENTS = (1, 6, 7, 8)
ROUNDING = 1e-11


# ------------------------------------------------------------------------------------ helpers


def randomise(module: nn.Module, seed: int = 0, amount: float = 0.1) -> None:
    """Move every parameter away from its special initial value (zero biases, unit scales)."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.add_(amount * noise)


@functools.cache
def random_potential(config: Any, seed: int = 0) -> Potential:
    """Around the network that this kind of configuration belongs to; do not change it."""
    (kind,) = (network for network, its in NETWORKS.values() if its is type(config))
    torch.manual_seed(seed)
    network = kind(config, len(ELEMENTS)).double()
    randomise(network, seed)
    return Potential(network, ELEMENTS).requires_grad_(False)


def model_of_electrons() -> Potential:
    """Random weights; its energy depends on total charge and multiplicity."""
    return random_potential(tiny_so3krates(3.5, embed_charge=True, embed_spin=True))


def assert_close(actual: object, expected: object, tolerance: float, what: str = "values") -> None:
    """Largest difference <= tolerance x max(1, largest expected value); no NaN, equal shapes."""
    actual, expected = _array(actual), _array(expected)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    assert np.isfinite(actual).all(), f"{what}: not finite"
    if actual.size == 0:
        return
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(actual - expected).max())
    assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}"


def _array(values: object) -> np.ndarray:
    return (values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)) * 1.0


def assert_same_result(actual: Result, expected: Result, tolerance: float = ROUNDING) -> None:
    for name in ("energy", "energies", "forces", "strain_gradient"):
        assert_close(getattr(actual, name), getattr(expected, name), tolerance, name)


def build_graph(potential: Potential, system: System, *, skin: float = 0.0, **options) -> Graph:
    """The graph that an engine would hand to `evaluate`."""
    verlet = VerletList.create(
        cutoff=potential.cutoff, skin=skin, species=potential.species, **options
    )
    return verlet.update(system)[1]


def result_of(potential: Potential, atoms: Atoms | list[Atoms], **options) -> Result:
    system = System.from_ase(atoms)
    return evaluate(potential, build_graph(potential, system, **options))


def rotation(seed: int) -> np.ndarray:
    """A random rotation [3, 3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def transformed(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell as rows times `matrix`."""
    copied = atoms.copy()
    copied.set_cell(atoms.cell.array @ matrix, scale_atoms=False)
    copied.positions = atoms.positions @ matrix
    return copied


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    return transformed(atoms, np.eye(3) + strain)


# --------------------------------------------------------------------------------- structures


def assert_derivatives(potential: Potential, atoms: Atoms) -> None:
    """Some forces and strain gradients are central differences of the energy, in float64."""
    system, step = System.from_ase(atoms), 1e-4
    result = evaluate(potential, fresh_graphs(potential, system))
    positions, cell = system.positions, system.cell

    def energy(positions: Tensor, cell: Tensor) -> float:
        moved = replace(system, positions=positions, cell=cell)
        return float(evaluate(potential, fresh_graphs(potential, moved)).energy)

    for atom, axis in ((0, 0), (1, 2), (2, 1)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        rise = energy(positions + shift, cell) - energy(positions - shift, cell)
        expected = -float(result.forces[atom, axis])
        assert rise / (2 * step) == pytest.approx(expected, abs=2e-6)
    for a, b in ((0, 0), (0, 1), (2, 2)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        ends = [torch.eye(3, dtype=torch.float64) + sign * strain for sign in (1, -1)]
        above, below = (energy(positions @ end, cell @ end) for end in ends)
        expected = float(result.strain_gradient[0, a, b])
        assert (above - below) / (2 * step) == pytest.approx(expected, abs=2e-5)


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def on_the_axis() -> Atoms:
    """A linear molecule along z: every edge points to a pole of the spherical harmonics."""
    return Atoms("NCCH", positions=[[0, 0, 0], [0, 0, 1.2], [0, 0, 2.6], [0, 0, 3.7]])


def triclinic() -> Atoms:
    """A cell smaller than the cutoff: atoms see images of their neighbours and of themselves.

    Its number of electrons is even, so that a supercell has no other spin per atom.
    """
    cell = [[2.9, 0.1, -0.2], [0.7, 3.3, 0.3], [-0.4, 0.9, 3.6]]
    atoms = Atoms("NNO", cell=cell, pbc=True)
    atoms.set_scaled_positions([[0.1, 0.05, 0.9], [0.45, 0.4, 0.3], [0.8, 0.7, 0.65]])
    return atoms


def slab() -> Atoms:
    """Two periodic directions and a third cell vector, so that it has a volume."""
    cell = [[3.4, 0.2, 0.1], [-0.3, 3.7, 0.2], [0.4, 0.5, 9.0]]
    positions = [[0.2, 0.1, 4.0], [1.6, 1.7, 4.6], [0.4, 2.2, 5.4], [2.2, 0.3, 5.6]]
    return Atoms("CNOH", positions=positions, cell=cell, pbc=[True, True, False])


STRUCTURES = {
    "molecule": ethanol,
    "linear": on_the_axis,
    "triclinic": triclinic,
    "slab": slab,
}


# atom 0 is at a centre of inversion, or at a site of tetrahedral symmetry
SYMMETRIC = {
    "CO2": lambda: molecule("CO2"),
    "CH4": lambda: molecule("CH4"),
    "bcc": lambda: bulk("C", "bcc", 2.0, cubic=True),
    "diamond": lambda: bulk("C", "diamond", 3.57),
}


def moved_along(atoms: Atoms, axis: int, step: float) -> Atoms:
    """A copy with atom 0 displaced, Å."""
    moved = atoms.copy()
    moved.positions[0, axis] += step
    return moved


def chain(distances: list[float]) -> Atoms:
    """Carbons on a line along a skew direction, with an oxygen at the start."""
    direction = np.array([0.48, 0.6, 0.64])
    places = np.concatenate([[0.0], np.cumsum(distances)])
    return Atoms("O" + "C" * len(distances), positions=places[:, None] * direction)


# ----------------------------------------------------------------------------------- contract


def assert_turns_along(potential: Potential, atoms: Atoms, matrix: np.ndarray) -> None:
    """What a structure turned or mirrored gives is what it gave, turned or mirrored."""
    expected, turned = result_of(potential, atoms), torch.from_numpy(matrix)
    actual = result_of(potential, transformed(atoms, matrix))
    assert_close(actual.energies, expected.energies, ROUNDING, "energies")
    assert_close(actual.forces, expected.forces @ turned, ROUNDING, "forces")
    assert_close(
        actual.strain_gradient,
        turned.T @ expected.strain_gradient @ turned,
        ROUNDING,
        "strain gradient",
    )


def slope(values: Sequence[float], h: float) -> float:
    """At 0, from a function's values at -2h, -h, h, 2h: off by h^4 / 30 times the fifth derivative.

    A function that is rough on the scale of 1e-3 Å needs the fourth order.
    """
    far_below, below, above, far_above = values
    return (8 * (above - below) - (far_above - far_below)) / (12 * h)


STENCIL = (-2, -1, 1, 2)


class NetworkContract:
    """Inherit, give a fixture `potential`, and state what the cutoff function promises."""

    @pytest.fixture(params=list(STRUCTURES))
    def atoms(self, request: pytest.FixtureRequest) -> Atoms:
        return STRUCTURES[request.param]()

    # The tests below compare small numbers; this one makes sure that there is something to compare.
    def test_the_contract_tests_something(self, potential: Potential, atoms: Atoms) -> None:
        assert potential.dtype == torch.float64
        result = result_of(potential, atoms)
        assert result.forces.norm(dim=1).min() > 1e-4
        assert result.strain_gradient.abs().max() > 1e-3
        assert result.energies.std() > 1e-3

    # ---------------------------------------------------------------------------- symmetries

    @pytest.mark.parametrize("seed", [1, 2])
    def test_rotation(self, potential: Potential, atoms: Atoms, seed: int) -> None:
        assert_turns_along(potential, atoms, rotation(seed))

    def test_reflection(self, potential: Potential, atoms: Atoms) -> None:
        assert_turns_along(potential, atoms, -rotation(3))

    def test_translation(self, potential: Potential, atoms: Atoms) -> None:
        moved = atoms.copy()
        moved.positions += [1.3, -2.1, 0.7]  # past cell boundaries, not wrapped back
        assert_same_result(result_of(potential, moved), result_of(potential, atoms))
        assert_close(result_of(potential, atoms).forces.sum(0), np.zeros(3), ROUNDING, "sum")

    def test_atoms_may_be_wrapped_into_the_cell(self, potential: Potential) -> None:
        outside = triclinic()
        outside.positions[0] += 2 * outside.cell[0] - outside.cell[2]
        assert_same_result(result_of(potential, outside), result_of(potential, triclinic()))

    def test_permutation(self, potential: Potential, atoms: Atoms) -> None:
        order = np.random.default_rng(3).permutation(len(atoms))
        expected, actual = result_of(potential, atoms), result_of(potential, atoms[order])
        assert_close(actual.energies, expected.energies[order], ROUNDING, "energies")
        assert_close(actual.forces, expected.forces[order], ROUNDING, "forces")
        assert_close(actual.strain_gradient, expected.strain_gradient, ROUNDING, "strain gradient")

    # --------------------------------------------------------------------------- derivatives

    def test_forces_are_minus_the_slope_of_the_energy(
        self, potential: Potential, atoms: Atoms
    ) -> None:
        h = 3e-5  # 1e-15 / h of rounding
        forces = np.zeros((len(atoms), 3))
        for index in np.ndindex(forces.shape):
            moved = [atoms.copy() for _ in STENCIL]
            for step, copied in zip(STENCIL, moved, strict=True):
                copied.positions[index] += step * h
            # one batch: also several systems side by side
            forces[index] = -slope(result_of(potential, moved).energy.tolist(), h)
        actual = result_of(potential, atoms).forces.numpy()
        assert np.abs(actual - forces).max() <= 1e-6

    def test_strain_gradient_is_the_slope_of_the_energy(
        self, potential: Potential, atoms: Atoms
    ) -> None:
        h = 1e-5
        expected = np.zeros((3, 3))
        for a, b in itertools.combinations_with_replacement(range(3), 2):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            deformed = [strained(atoms, step * strain) for step in STENCIL]
            expected[a, b] = slope(result_of(potential, deformed).energy.tolist(), h)
            expected[b, a] = expected[a, b]
        result = result_of(potential, atoms)
        assert_close(result.strain_gradient[0], expected, 1e-6, "strain gradient")
        if atoms.cell.rank == 3:
            actual = result.stress(System.from_ase(atoms))[0].numpy()
            assert np.abs(actual - expected / atoms.get_volume()).max() <= 1e-7

    def test_second_derivation_by_positions_and_strain(self, potential: Potential) -> None:
        """Through positions and cell by autograd, without the edge-vector formula of `evaluate`."""
        for batch in ([ethanol()], [triclinic()], [slab(), ethanol(), triclinic()]):
            system = System.from_ase(batch)
            expected = evaluate(potential, build_graph(potential, system))
            strain = torch.zeros(system.n_systems, 3, 3, dtype=torch.float64, requires_grad=True)
            positions = system.positions.clone().requires_grad_(True)
            deform = torch.eye(3, dtype=torch.float64) + strain
            deformed = replace(
                system,
                positions=torch.einsum("nk,nkc->nc", positions, deform[system.system_idx]),
                cell=system.cell @ deform,
            )
            energies = potential.energies(build_graph(potential, deformed))
            by_positions, by_strain = torch.autograd.grad(energies.sum(), (positions, strain))
            assert_close(expected.forces, -by_positions, 1e-10, "forces")
            # not symmetrised here: a turn of the whole structure costs nothing
            assert_close(expected.strain_gradient, by_strain, 1e-10, "strain gradient")

    # ---------------------------------------------------------------------------- smoothness

    @pytest.mark.parametrize("name", list(SYMMETRIC))
    def test_symmetric_environments_are_no_singular_points(
        self, potential: Potential, name: str
    ) -> None:
        """Where a symmetry forbids features, nothing may be divided by their size.

        Forces are the slope there, and change in proportion to a small displacement.
        """
        atoms, h = SYMMETRIC[name](), 1e-4
        there = result_of(potential, atoms).forces
        for axis in range(3):
            moved = [moved_along(atoms, axis, sign * h) for sign in (-1, 1)]
            below, above = result_of(potential, moved).energy.tolist()
            assert abs((above - below) / (2 * h) + there[0, axis]) < 1e-5
        changes = [
            (result_of(potential, moved_along(atoms, 2, d)).forces - there).abs().max()
            for d in (1e-3, 1e-5)
        ]
        assert changes[0] > 1e-6
        assert changes[1] <= 0.02 * changes[0]

    @pytest.mark.parametrize("last", [True, False], ids=["last neighbour", "one of two"])
    def test_smooth_at_the_cutoff(self, potential: Potential, last: bool) -> None:
        """Energy, force and slope of the force on both sides of the cutoff, h away from it.

        What is continuous differs by something proportional to h at least, what jumps does not.
        """
        far, near = (self._two_sides(potential, h, last, potential.cutoff) for h in (1e-2, 1e-3))
        promised = 3 if self.smooth_slope(potential) else 2
        for order, name in enumerate(("energy", "force", "slope of the force")):
            seen = f"{name}: {far[order]:.1e} at 0.01 Å, {near[order]:.1e} at 0.001 Å"
            if order < promised:
                assert near[order] <= 0.2 * far[order] + 1e-12, f"a jump at the cutoff, {seen}"
            else:  # the published function: shows that this test can fail
                assert near[order] > 0.7 * far[order] > 1e-3, f"a jump was expected, {seen}"

    def smooth_slope(self, potential: Potential) -> bool:
        """Whether the network promises forces without a kink at the cutoff."""
        del potential
        return True

    def _two_sides(self, potential: Potential, h: float, last: bool, cutoff: float) -> list[float]:
        """Differences of E, F, dF/dx between cutoff - h and cutoff + h."""
        sides = []
        for sign in (-1, 1):
            x = torch.tensor(cutoff + sign * h, dtype=torch.float64, requires_grad=True)
            atoms = Atoms("CO" if last else "COHH", positions=np.zeros((2 if last else 4, 3)))
            if not last:  # both stay neighbours of oxygen, one of carbon too
                atoms.positions[2:] = [[0.6, 0.9, 0.3], [cutoff, 1.0, 0.2]]
            atoms.positions[1] = [cutoff, 0.0, 0.0]
            system = System.from_ase(atoms)
            along_x = torch.zeros_like(system.positions)
            along_x[1, 0] = 1.0
            fixed = system.positions * (1 - along_x)
            moved = replace(system, positions=fixed + along_x * x)
            energy = potential.energies(build_graph(potential, moved)).sum()
            slope = curvature = torch.zeros_like(x)
            if energy.requires_grad:  # not where no edge is left
                (slope,) = torch.autograd.grad(energy, x, create_graph=True)
                (curvature,) = torch.autograd.grad(slope, x)
            sides.append([value.item() for value in (energy, slope, curvature)])
        return [abs(a - b) for a, b in zip(*sides, strict=True)]

    # -------------------------------------------------------------------------------- cutoff

    def test_nothing_beyond_the_cutoff(self, potential: Potential) -> None:
        """Bit for bit: within the skin, a moving atom changes nothing at all."""
        results = []
        for d in (1e-9, 0.3, 0.9):
            atoms = Atoms("CO", positions=np.zeros((2, 3)))
            atoms.positions[1, 0] = potential.cutoff + d
            results.append(result_of(potential, atoms, skin=1.0, capacity=64))
        for result in results:
            assert torch.equal(result.energies, results[0].energies)
            assert not result.forces.any()
            assert not result.strain_gradient.any()
        alone = result_of(potential, [Atoms("C"), Atoms("O")])
        assert_close(results[0].energies, alone.energies, ROUNDING, "isolated atoms")

    def test_every_layer_reaches_one_cutoff_further(self, potential: Potential) -> None:
        hops = int(potential.network.config.receptive_field / potential.cutoff)
        atoms = chain([0.7 * potential.cutoff] * (hops + 2))
        system = System.from_ase(atoms)
        for options in ({}, {"skin": 0.6 * potential.cutoff}, {"skin": 2.0, "capacity": 64}):
            positions = system.positions.clone().requires_grad_(True)
            graph = build_graph(potential, replace(system, positions=positions), **options)
            first = potential.energies(graph)[0]
            (gradient,) = torch.autograd.grad(first, positions)
            reached = gradient.norm(dim=1)
            assert (reached[1 : hops + 1] > 0).all(), "less reach than promised"
            assert not reached[hops + 1 :].any(), "an influence from beyond the receptive field"

    @pytest.mark.parametrize("skin", [0.3, 4.0])
    def test_padding_and_skin_change_nothing(
        self, potential: Potential, atoms: Atoms, skin: float
    ) -> None:
        expected = result_of(potential, atoms)
        assert_same_result(result_of(potential, atoms, skin=skin), expected)
        padded = build_graph(potential, System.from_ase(atoms), skin=skin, capacity=1)
        assert not padded.edge_mask.all()
        assert_same_result(evaluate(potential, padded), expected)

    def test_masked_edges_may_hold_any_vector(self, potential: Potential) -> None:
        system = System.from_ase([ethanol(), Atoms("N")])
        padded = build_graph(potential, system, skin=3.0, capacity=64)
        masked = ~padded.edge_mask
        for filling in (0.0, 1e-300, 1.0, 1e5):
            vectors = torch.where(masked[:, None], filling, padded.vectors)
            result = evaluate(potential, padded.with_vectors(vectors))
            assert_same_result(result, evaluate(potential, padded))

    # ------------------------------------------------------------------------------ many systems

    def test_batch_equals_single(self, potential: Potential) -> None:
        structures = [triclinic(), Atoms("O"), ethanol(), slab(), on_the_axis()]
        for options in ({}, {"skin": 1.0, "capacity": 64}):
            batch = result_of(potential, structures, **options)
            ends = np.cumsum([len(s) for s in structures])
            for k, structure in enumerate(structures):
                single = result_of(potential, structure)
                mine = slice(ends[k] - len(structure), ends[k])
                part = Result(
                    batch.energy[[k]],
                    batch.energies[mine],
                    batch.forces[mine],
                    batch.strain_gradient[[k]],
                )
                assert_same_result(part, single)

    def test_supercell_equals_cell(self, potential: Potential) -> None:
        for atoms, repeat in ((triclinic(), (2, 1, 3)), (slab(), (2, 2, 1))):
            small, big = result_of(potential, atoms), result_of(potential, atoms.repeat(repeat))
            n = int(np.prod(repeat))
            assert_close(big.energies, small.energies.repeat(n), ROUNDING, "energies")
            assert_close(big.forces, small.forces.repeat(n, 1), ROUNDING, "forces")
            assert_close(big.strain_gradient, n * small.strain_gradient, ROUNDING, "strain")

    def test_periodic_equals_cluster_with_ghosts(self, potential: Potential) -> None:
        """Image atoms as deep as the receptive field: what LAMMPS makes of a periodic cell."""
        atoms = triclinic()
        depth = potential.network.config.receptive_field
        planes = np.linalg.norm(atoms.cell.reciprocal(), axis=1)  # 1/Å: one over their distance
        reach = np.ceil(depth * planes).astype(int) + 1
        positions, owners = [atoms.positions], [np.arange(len(atoms))]
        for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
            if any(shift):
                images = atoms.positions + shift @ atoms.cell.array
                gaps = np.linalg.norm(images[:, None] - atoms.positions, axis=2).min(1)
                positions.append(images[gaps < depth])
                owners.append(np.flatnonzero(gaps < depth))
        owner = torch.from_numpy(np.concatenate(owners))
        cluster = Atoms(atoms.numbers[owner], positions=np.concatenate(positions))
        system = System.from_ase(cluster)
        places = system.positions.clone().requires_grad_(True)
        energies = potential.energies(build_graph(potential, replace(system, positions=places)))
        owned = energies[: len(atoms)]
        (gradient,) = torch.autograd.grad(owned.sum(), places)
        forces = torch.zeros(len(atoms), 3, dtype=torch.float64).index_add(0, owner, -gradient)
        expected = result_of(potential, atoms)
        assert_close(owned, expected.energies, ROUNDING, "energies")
        assert_close(forces, expected.forces, ROUNDING, "forces")

    @pytest.mark.parametrize(
        ("repeat", "counts"), [((2, 2, 2), (2, 2, 2)), ((14, 1, 1), (4, 1, 1))]
    )
    def test_parts_with_ghosts_add_up(
        self, potential: Potential, repeat: tuple[int, ...], counts: tuple[int, int, int]
    ) -> None:
        """What several processes make of one structure, see `attncalc.domain`."""
        atoms = triclinic() * repeat
        atoms.rattle(0.05, seed=0)
        counts = (2, 2, 2) if repeat[1] > 1 else (4, 1, 1)
        parts = parts_of(potential, atoms, counts)
        assert_same_result(added_up(potential, atoms, parts), result_of(potential, atoms))

    def test_far_molecules_add_up(self, potential: Potential) -> None:
        one, other = ethanol(), on_the_axis()
        other.positions += [200.0, 0.0, 0.0]
        both = result_of(potential, one + other)
        single = result_of(potential, [one, other])
        assert_close(both.energy, single.energy.sum(0, keepdim=True), ROUNDING, "energy")
        assert_close(both.forces, single.forces, ROUNDING, "forces")

    # ------------------------------------------------------------------------ lonely atoms

    def test_an_isolated_atom_has_one_energy(self, potential: Potential) -> None:
        side = 2 * potential.cutoff
        boxes = [
            Atoms("C"),
            Atoms("C", positions=[[1e3, -5.0, 2.0]]),
            Atoms("C", cell=[side] * 3, pbc=True),
            Atoms("C", cell=[9 * side, side, 2 * side], pbc=True),
            Atoms("C", cell=[side, side, 1.0], pbc=[True, True, False]),
            Atoms("C", cell=[0, 0, side], pbc=[False, False, True]),
        ]
        results = [result_of(potential, atoms) for atoms in boxes]
        results.append(result_of(potential, boxes[0], capacity=64))
        results.append(result_of(potential, Atoms("COC", positions=np.eye(3) * 1e3)))
        for result in results:
            assert torch.isfinite(result.energies).all()
            assert_close(result.energies[0], results[0].energies[0], ROUNDING, "energy")
            assert not result.forces.any()
            assert not result.strain_gradient.any()

    # --------------------------------------------------------------------------- dtype, files

    def test_float32_agrees_with_float64(self, potential: Potential, atoms: Atoms) -> None:
        single = copy.deepcopy(potential)
        single.network.float()
        actual, expected = result_of(single, atoms), result_of(potential, atoms)
        assert actual.forces.dtype == actual.energy.dtype == torch.float64
        # float32 carries 6e-8; three layers of sums amplify it to a few 1e-6. Smaller would mean
        # that the network did not compute in float32, larger that something cancels.
        largest = float(expected.forces.abs().max())
        error = float((actual.forces - expected.forces).abs().max())
        assert 0 < error <= 5e-5 * largest
        assert_close(actual.energies, expected.energies, 1e-5, "energies")

    def test_file_gives_back_the_same_bits(self, potential: Potential, tmp_path) -> None:
        path = tmp_path / "model.safetensors"
        for dtype in (torch.float64, torch.float32):
            original = copy.deepcopy(potential)
            original.network.to(dtype)
            save(original, path)
            loaded = load(path)
            assert loaded.dtype == dtype
            for atoms in (ethanol(), triclinic()):
                expected, actual = result_of(original, atoms), result_of(loaded, atoms)
                for name in ("energy", "energies", "forces", "strain_gradient"):
                    assert torch.equal(getattr(actual, name), getattr(expected, name)), name

    def test_evaluating_leaves_no_trace(self, potential: Potential) -> None:
        """Results do not depend on what was evaluated before, and inputs are not written to."""
        system = System.from_ase(ethanol())
        graph = build_graph(potential, system)
        before = graph.vectors.clone()
        first = evaluate(potential, graph)
        result_of(potential, [triclinic(), ethanol()])
        assert torch.equal(evaluate(potential, graph).forces, first.forces)
        assert torch.equal(graph.vectors, before)
        assert all(parameter.grad is None for parameter in potential.parameters())


class EmbedsElectrons:
    """For networks that know total charge and spin: add to `NetworkContract`."""

    @pytest.mark.parametrize(("charge", "spin"), [(1, None), (-1, None), (0, 3), (-1, 4)])
    def test_charge_and_spin_matter(self, potential: Potential, charge: int, spin: int) -> None:
        neutral, charged = ethanol(), ethanol()
        charged.info = {"charge": charge} | ({} if spin is None else {"spin": spin})
        difference = result_of(potential, charged).energies - result_of(potential, neutral).energies
        assert difference.abs().min() > 1e-4

    def test_each_system_has_its_own_electrons(self, potential: Potential) -> None:
        structures: list[Atoms] = []
        for charge in (0, 1, -2):
            structures.append(ethanol())
            structures[-1].info["charge"] = charge
        batch = result_of(potential, structures)
        single = [float(result_of(potential, atoms).energy) for atoms in structures]
        assert_close(batch.energy, single, ROUNDING, "energy")


def without_electrons(potential: Potential, system: System) -> Iterator[Tensor]:
    """The embeddings of zero charge and of zero unpaired electrons, where there are any."""
    graph = build_graph(potential, system)
    nothing = torch.zeros(graph.n_systems, dtype=torch.float64)
    for name in ("charge", "spin"):
        embed = getattr(potential.network.embedding, name)
        if embed is not None:
            yield embed(nothing, graph)


def edges_of(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers, senders and vectors of all directed edges, as plain arrays."""
    system = System.from_ase(atoms)
    edges = neighbor_list(system, cutoff)
    vectors = edge_vectors(system, edges)
    return edges.receivers.numpy(), edges.senders.numpy(), vectors.numpy()


def graph_of_edges(
    numbers: np.ndarray,
    positions: np.ndarray,
    receivers: np.ndarray,
    senders: np.ndarray,
    species: tuple[int, ...],
    charge: float = 0.0,
) -> Graph:
    """A graph of one molecule from a stored edge list, without any neighbour search."""
    i, j = torch.from_numpy(receivers).long(), torch.from_numpy(senders).long()
    places = torch.from_numpy(positions)
    edges = Edges(i, j, torch.zeros(len(i), 3, dtype=torch.int64))
    return Graph(
        vectors=places[j] - places[i],
        receivers=i,
        senders=j,
        edge_mask=torch.ones(len(i), dtype=torch.bool),
        pairs=one_per_pair(edges).nonzero()[:, 0],
        species=species_of(torch.from_numpy(numbers).long(), species),
        system_idx=torch.zeros(len(numbers), dtype=torch.int64),
        charge=torch.tensor([charge], dtype=torch.float64),
        spin=torch.ones(1, dtype=torch.int64),
    )
