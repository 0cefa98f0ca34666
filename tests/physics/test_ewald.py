"""The Ewald sum: known lattices, sums in real space, derivatives, and what it refuses."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.spacegroup import crystal
from networks import compiled_so3krates
from torch import Tensor

from attncalc import AttnCalculator, Potential, System, load, save
from attncalc.checks import verify
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Graphs
from attncalc.nn.network import CompiledNetwork
from attncalc.nn.so3krates import So3krates
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.pair_term import strained
from attncalc.physics.zbl import COULOMB_CONSTANT
from attncalc.potential import evaluate
from attncalc.structures import fresh_graphs

WATER = (1, 8)


def energy(atoms: Atoms, charges: np.ndarray, sigma: float) -> float:
    term = Ewald(EwaldConfig(sigma), (1,))
    q = torch.as_tensor(np.asarray(charges, dtype=float))
    return float(term(None, AtomOutputs(q, charges=q), System.from_ase(atoms)).sum())


def lattice(symbols, basis, group: int, a: float) -> tuple[Atoms, np.ndarray]:
    atoms = crystal(symbols, basis, spacegroup=group, cellpar=[a, a, a, 90, 90, 90])
    return atoms, np.where(atoms.numbers == atoms.numbers[0], 1.0, -1.0)


@pytest.mark.parametrize(
    ("symbols", "basis", "group", "a", "nearest", "madelung"),
    [
        (["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], 225, 5.64, 0.5, 1.747564594633182),
        (["Cs", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], 221, 4.12, math.sqrt(0.75), 1.762674773070988),
        (
            ["Zn", "S"],
            [(0, 0, 0), (0.25, 0.25, 0.25)],
            216,
            5.41,
            math.sqrt(3) / 4,
            1.638055053388789,
        ),
    ],
)
def test_madelung_constants(symbols, basis, group, a, nearest, madelung) -> None:
    """Of point charges: erf(r / 0.4 Å) is 1 in all digits at the shortest distance."""
    atoms, charges = lattice(symbols, basis, group, a)
    of_pair = energy(atoms, charges, 0.4) / (len(atoms) / 2)
    assert -of_pair * nearest * a / COULOMB_CONSTANT == pytest.approx(madelung, abs=1e-8)


def random_cell(seed: int, total: float) -> tuple[Atoms, np.ndarray]:
    random = np.random.default_rng(seed)
    cell = np.diag([5.0, 6.0, 7.0]) + random.normal(scale=0.6, size=(3, 3))
    atoms = Atoms("H6", scaled_positions=random.random((6, 3)), cell=cell, pbc=True)
    charges = random.normal(size=6)
    return atoms, charges + (total - charges.sum()) / 6


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_the_difference_of_two_dampings_is_a_short_sum(total: float) -> None:
    """Summed over images in real space: also of charged cells, and of atoms with their images."""
    atoms, q = random_cell(1, total)
    narrow, wide = 1.0, 1.6
    whole = 0.0
    for shift in itertools.product(range(-3, 4), repeat=3):
        d = atoms.positions[None] - atoms.positions[:, None] + np.array(shift) @ atoms.cell.array
        r = np.linalg.norm(d, axis=2)
        for (i, j), length in np.ndenumerate(r):
            if length > 1e-9:
                damped = math.erf(length / narrow) - math.erf(length / wide)
                whole += q[i] * q[j] * damped / length / 2
    found = energy(atoms, q, narrow) - energy(atoms, q, wide)
    assert found == pytest.approx(COULOMB_CONSTANT * whole, abs=1e-8)


def directly(q: Tensor, positions: Tensor, cell: Tensor, sigma: float) -> Tensor:
    """The sum as it is defined, over all vectors that count but zero; eV."""
    volume, reciprocal = torch.linalg.det(cell).abs(), 2 * math.pi * torch.linalg.inv(cell).T
    m = torch.cartesian_prod(*[torch.arange(-12.0, 13, dtype=torch.float64)] * 3)
    k = m[(m != 0).any(1)] @ reciprocal
    squares = (k**2).sum(1)
    counts = squares * sigma**2 / 4 < -math.log(1e-11)
    phases, squares = positions @ k[counts].T, squares[counts]
    waves = (q @ torch.cos(phases)) ** 2 + (q @ torch.sin(phases)) ** 2
    total = (4 * math.pi / volume * torch.exp(-squares * sigma**2 / 4) / squares * waves).sum()
    total = total - 2 / (math.sqrt(math.pi) * sigma) * (q**2).sum()
    return COULOMB_CONSTANT / 2 * (total - math.pi * sigma**2 / volume * q.sum() ** 2)


def triclinic_water() -> tuple[Atoms, np.ndarray]:
    atoms = molecule("H2O")
    atoms.set_cell([[3.2, 0, 0], [-1.1, 3.1, 0], [0.9, 1.2, 3.3]])
    atoms.pbc = True
    atoms *= (4, 3, 3)
    atoms.rattle(0.1, seed=0)
    return atoms, np.where(atoms.numbers == 8, -0.8, 0.41)  # charged


def rattled_salt() -> tuple[Atoms, np.ndarray]:
    atoms, _ = lattice(["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], 225, 5.64)
    atoms *= (2, 2, 1)
    atoms.rattle(0.1, seed=0)
    return atoms, np.where(atoms.numbers == 11, 1.0, -1.0)


@pytest.mark.parametrize("made", [triclinic_water, rattled_salt])
@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_energy_and_slopes_are_those_of_the_direct_sum(monkeypatch, made, sigma: float) -> None:
    monkeypatch.setattr("attncalc.physics.ewald.CHUNK", 1)  # several chunks
    atoms, charges = made()
    graphs = Graphs(None, system=System.from_ase(atoms))
    moved, positions, strain = strained(graphs)
    q = torch.tensor(charges, requires_grad=True)
    ours = Ewald(EwaldConfig(sigma), (1,))(None, AtomOutputs(q, charges=q), moved.system)
    theirs = directly(q, moved.system.positions, moved.system.cell[0], sigma)
    assert ours.sum().item() == pytest.approx(theirs.item(), rel=1e-11)
    inputs = [positions, strain, q]
    slopes = [torch.autograd.grad(e, inputs, retain_graph=True) for e in (ours.sum(), theirs)]
    for one, other in zip(*slopes, strict=True):
        assert float((one - other).abs().max()) < 1e-10 * float(other.abs().max())


def test_second_derivatives_of_energies_per_atom() -> None:
    atoms, charges = random_cell(3, 0.5)
    system = System.from_ase(atoms)
    term = Ewald(EwaldConfig(4.0), (1,))

    def energies(q: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        moved = replace(system, positions=positions, cell=cell)
        return term(None, AtomOutputs(q, charges=q), moved)

    values = (torch.tensor(charges), system.positions.clone(), system.cell.clone())
    inputs = tuple(value.requires_grad_(True) for value in values)
    assert torch.autograd.gradcheck(energies, inputs)
    assert torch.autograd.gradgradcheck(energies, inputs)


def test_a_supercell_has_many_times_the_energy() -> None:
    atoms, q = random_cell(2, 0.0)
    twice = energy(atoms * (2, 1, 3), np.tile(q, 6), 1.5)
    assert twice == pytest.approx(6 * energy(atoms, q, 1.5), abs=1e-9)
    other = atoms.copy()
    other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]]) @ atoms.cell.array)
    assert energy(other, q, 1.5) == pytest.approx(energy(atoms, q, 1.5), abs=1e-9)


def test_molecules_have_all_their_pairs() -> None:
    atoms = molecule("CH3CH2OH")
    q = np.random.default_rng(0).normal(size=len(atoms))
    r = atoms.get_all_distances()
    i, j = np.triu_indices(len(atoms), 1)
    pairs = sum(q[a] * q[b] * math.erf(r[a, b] / 4) / r[a, b] for a, b in zip(i, j, strict=True))
    assert energy(atoms, q, 4.0) == pytest.approx(COULOMB_CONSTANT * pairs, abs=1e-10)
    # a box grows, and the energy of the periodic molecule becomes that of the free one
    q -= q.mean()
    free = energy(atoms, q, 4.0)
    off = []
    for side in (30.0, 60.0):
        atoms.set_cell([side] * 3)
        atoms.pbc = True
        off.append(abs(energy(atoms, q, 4.0) - free))
    assert off[1] < off[0] / 7  # as the inverse volume
    assert off[1] < 1e-2


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    config = compiled_so3krates(
        3.5, avg_num_neighbors=12.0, num_layers=1, num_basis=8, predict_charges=True
    )
    network = So3krates(config, 2).double()
    terms = [Ewald(EwaldConfig(2.5), WATER)]
    return Potential(network, WATER, pair_terms=terms).requires_grad_(False)


def box(n: int = 2) -> Atoms:
    atoms = molecule("H2O", vacuum=0.0)
    atoms.set_cell([[3.2, 0, 0], [0.3, 3.1, 0], [0.1, 0.2, 3.3]])
    atoms.pbc = True
    atoms *= (n, 1, 1)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.parametrize("atoms", [box(), molecule("H2O")], ids=["crystal", "molecule"])
def test_forces_and_stress_are_differences(potential, atoms) -> None:
    atoms = atoms.copy()
    atoms.calc = AttnCalculator(potential, device="cpu")
    forces, step = atoms.get_forces(), 1e-4
    for i, a in ((0, 0), (1, 2), (2, 1)):
        values = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, a] += sign * step
            moved.calc = atoms.calc
            values.append(moved.get_potential_energy())
        assert forces[i, a] == pytest.approx((values[1] - values[0]) / (2 * step), abs=1e-6)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-9)
    if not atoms.pbc.all():
        return
    stress = atoms.get_stress(voigt=False)
    for a, b in ((0, 0), (1, 2), (0, 1)):
        values = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] = strain[b, a] = sign * step * (1 if a == b else 0.5)
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            moved.calc = atoms.calc
            values.append(moved.get_potential_energy())
        slope = (values[0] - values[1]) / (2 * step * atoms.get_volume())
        assert stress[a, b] == pytest.approx(slope, abs=1e-7)


def test_the_term_matters_and_a_batch_is_its_parts(potential) -> None:
    bare = Potential(potential.network, WATER)
    parts = [box(), molecule("H2O"), box(3)]
    each = []
    for atoms in parts:
        system = System.from_ase(atoms)
        each.append(evaluate(potential, fresh_graphs(potential, system)))
        without = evaluate(bare, fresh_graphs(bare, system))
        assert abs(float(each[-1].energy - without.energy)) > 1e-3
    system = System.from_ase(parts)
    whole = evaluate(potential, fresh_graphs(potential, system))
    assert torch.allclose(whole.energy, torch.cat([one.energy for one in each]), rtol=0, atol=1e-10)
    assert torch.allclose(whole.forces, torch.cat([one.forces for one in each]), rtol=0, atol=1e-10)
    strain = torch.cat([one.strain_gradient for one in each])
    assert torch.allclose(whole.strain_gradient, strain, rtol=0, atol=1e-10)


def test_the_engine_and_the_file(potential, tmp_path) -> None:
    save(potential, tmp_path / "ewald.safetensors")
    again = load(tmp_path / "ewald.safetensors", device="cpu")
    again.set_dtype(torch.float32)
    fast = lower(again)
    assert isinstance(fast.network, CompiledNetwork)
    atoms = box()
    ours, theirs = atoms.copy(), atoms.copy()
    ours.calc = AttnCalculator(fast, device="cpu")
    theirs.calc = AttnCalculator(potential, device="cpu")
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-5)
    hessian = theirs.calc.get_hessian(atoms)
    differences = theirs.calc.get_hessian(atoms, method="differences", displacement=1e-3)
    np.testing.assert_allclose(hessian, differences, rtol=0, atol=1e-4)


def test_a_slab_and_ghosts_are_refused(potential) -> None:
    slab = box()
    slab.pbc = (True, True, False)
    slab.calc = AttnCalculator(potential, device="cpu")
    with pytest.raises(ValueError, match="three periodic directions or none"):
        slab.get_potential_energy()
    with pytest.raises(ValueError, match="three periodic directions or none"):
        slab.calc.evaluator.check(System.from_ase([box(), slab, molecule("H2O")]))
    water = box()
    water.calc = AttnCalculator(potential, device="cpu")
    with pytest.raises(PropertyNotImplementedError, match="stress per atom: this model has an Ewa"):
        water.get_stresses()
    graphs = fresh_graphs(potential, System.from_ase(box()))
    with pytest.raises(ValueError, match="Ewald sums over the whole structure"):
        evaluate(potential, Graphs(graphs.short, n_counted=3, system=graphs.system))
    with pytest.raises(ValueError, match="reads positions and cells"):
        evaluate(potential, Graphs(graphs.short))


def test_it_is_the_damped_sum_of_so3lr_without_a_cutoff(potential) -> None:
    far = DampedElectrostatics(ElectrostaticsConfig(cutoff=None, damping_length=2.5), WATER)
    other = Potential(potential.network, WATER, pair_terms=[far])
    system = System.from_ase(molecule("H2O"))
    ours = evaluate(potential, fresh_graphs(potential, system))
    theirs = evaluate(other, fresh_graphs(other, system))
    assert torch.allclose(ours.forces, theirs.forces, rtol=0, atol=1e-10)


def test_bad_damping() -> None:
    with pytest.raises(ValueError, match="damping_length must be positive"):
        EwaldConfig(0.0)


def test_verify_passes_with_charges_that_matter(potential) -> None:
    """All checks, the reused neighbour list among them, whose structure has moved."""
    strong = Potential(potential.network, WATER, pair_terms=[Ewald(EwaldConfig(1.0), WATER)])
    assert verify(strong, box(3)).passed
