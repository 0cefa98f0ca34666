"""Heat flux: against the moving barycentre of the energy, images, supercells, engines."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from contract import ELEMENTS, assert_close, ethanol, random_potential, rotation, transformed
from torch import nn

from attncalc import AttnCalculator, Committee, Potential, System
from attncalc.heat_flux import HeatFlux
from attncalc.nn.equiformer import EquiformerConfig
from attncalc.nn.so3krates import So3kratesConfig
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion

SMALL = {"cutoff": 4.0, "num_layers": 2, "num_basis": 8}


def so3krates(seed: int = 0) -> Potential:
    config = So3kratesConfig(num_features=16, degrees=(1, 2), avg_num_neighbors=8.0, **SMALL)
    network = random_potential(config, seed).network
    zbl = ZBLRepulsion(ZBLConfig(cutoff=4.0), ELEMENTS)
    # numbers that differ by element and member are found out where they are mixed up
    references = [-13 - seed, -1000 - 7 * seed, -1500, -2000 + 5 * seed]
    return Potential(network, ELEMENTS, pair_terms=[zbl], reference_energies=references)


def equiformer() -> Potential:
    small = SMALL | {"cutoff": 3.0}  # it takes long
    config = EquiformerConfig(channels=(8, 4), head_features=8, avg_num_neighbors=8.0, **small)
    return random_potential(config)


POTENTIALS = {
    "so3krates": so3krates,
    "equiformer": equiformer,
    "committee": lambda: Committee([so3krates(0), so3krates(1)]),
}


@pytest.fixture(params=POTENTIALS)
def calc(request: pytest.FixtureRequest) -> AttnCalculator:
    return AttnCalculator(POTENTIALS[request.param](), device="cpu")


def moving(atoms: Atoms, seed: int = 0) -> Atoms:
    atoms.rattle(0.1, seed=seed)
    thermalize_momenta(atoms, temperature_K=2000, rng=np.random.default_rng(seed))
    return atoms


def crystal() -> Atoms:
    """A cell smaller than the cutoff, of several elements."""
    atoms = bulk("C", a=3.6, cubic=True)
    atoms.numbers[:4] = [1, 7, 8, 6]
    cell = np.array([[3.6, 0, 0], [0.4, 3.6, 0], [0.2, -0.3, 3.6]])
    atoms.set_cell(cell, scale_atoms=True)
    return moving(atoms)


def barycentre(calc: AttnCalculator, atoms: Atoms, potential: Potential) -> np.ndarray:
    """sum_i r_i (E_i + kinetic energy), energies counted from those of the elements."""
    mean = np.mean([one.reference_energies.tolist() for one in potential.members], axis=0)
    reference = dict(zip(potential.species, mean, strict=True))
    energies = calc.get_property("energies", atoms) - [reference[z] for z in atoms.numbers]
    kinetic = atoms.get_masses() / 2 * (atoms.get_velocities() ** 2).sum(1)
    return (energies + kinetic) @ atoms.positions


def test_it_moves_the_barycentre_of_the_energy(calc: AttnCalculator) -> None:
    """Of a molecule by the exact motion: there it is the definition."""
    atoms = moving(ethanol())
    acceleration = calc.get_forces(atoms) / atoms.get_masses()[:, None]
    h, found = 1e-4, []
    for dt in (h, -h):
        one = atoms.copy()
        one.positions += dt * atoms.get_velocities() + dt**2 / 2 * acceleration
        one.set_velocities(atoms.get_velocities() + dt * acceleration)
        found.append(barycentre(calc, one, calc.evaluator.plain))
    expected = (found[0] - found[1]) / (2 * h)
    flux = calc.get_heat_flux(atoms)
    assert np.abs(flux.potential).min() > 1e-3
    assert_close(flux.total, expected, 1e-5)


def test_a_molecule_that_is_cut_by_the_cell(calc: AttnCalculator) -> None:
    """With 14 Å between images, which no network here sees across."""
    atoms = moving(ethanol())
    expected = calc.get_heat_flux(atoms)
    periodic = atoms.copy()
    periodic.set_cell([[20.0, 0, 0], [3, 19, 0], [-2, 1, 21]])
    periodic.pbc = True
    periodic.positions += [-0.3, 0.2, 19.9]
    for wrapped in (False, True):
        if wrapped:
            periodic.wrap()
        found = calc.get_heat_flux(periodic)
        assert_close(found.potential, expected.potential, 1e-10)
        assert_close(found.convective, expected.convective, 1e-10)


def test_a_supercell_has_that_of_all_its_cells(calc: AttnCalculator) -> None:
    atoms = crystal()
    one, eight = calc.get_heat_flux(atoms), calc.get_heat_flux(atoms.repeat(2))
    assert np.abs(one.potential).min() > 1e-3
    assert_close(eight.potential, 8 * one.potential, 1e-10)
    assert_close(eight.convective, 8 * one.convective, 1e-10)


def test_it_turns_with_the_structure(calc: AttnCalculator) -> None:
    atoms, turn = crystal(), rotation(3)
    turned = transformed(atoms, turn)
    turned.set_velocities(atoms.get_velocities() @ turn)
    expected = calc.get_heat_flux(atoms)
    assert_close(calc.get_heat_flux(turned).potential, expected.potential @ turn, 1e-9)


def test_no_heat_flows_through_a_crystal_that_moves_as_a_whole(calc: AttnCalculator) -> None:
    """But the virial's work, V stress . v: it is an energy that the crystal carries."""
    atoms = crystal()
    velocity = np.array([0.01, -0.02, 0.03])
    atoms.set_velocities(np.tile(velocity, (len(atoms), 1)))
    virial = -atoms.get_volume() * calc.get_property("stress", atoms, allow_calculation=True)
    xx, yy, zz, yz, xz, xy = virial
    work = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ velocity
    assert_close(calc.get_heat_flux(atoms).potential, work, 1e-9)


def test_lists_last_while_atoms_move(calc: AttnCalculator) -> None:
    """Images that are kept give what images that are made anew give, the cell's shape included."""
    atoms = crystal()
    atoms.calc = calc
    calc.get_heat_flux(atoms)
    images = calc._heat_flux._unfolded
    for step in range(2):
        VelocityVerlet(atoms, 0.05).run(3)
        atoms.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
        fresh = AttnCalculator(calc.evaluator.plain, device="cpu")
        assert_close(calc.get_heat_flux(atoms), fresh.get_heat_flux(atoms), 1e-10)
        assert calc._heat_flux._unfolded is images, step
    atoms.positions += np.random.default_rng(0).normal(size=(len(atoms), 3))
    fresh = AttnCalculator(calc.evaluator.plain, device="cpu")
    assert_close(calc.get_heat_flux(atoms), fresh.get_heat_flux(atoms), 1e-10)
    assert calc._heat_flux._unfolded is not images


def test_lists_are_not_those_of_other_elements_charges_or_multiplicities() -> None:
    """At the same places."""
    small: Any = SMALL | {"num_features": 16, "avg_num_neighbors": 8.0}
    config = So3kratesConfig(degrees=(1,), embed_charge=True, embed_spin=True, **small)
    potential = random_potential(config)
    atoms = moving(ethanol())
    others = [atoms.copy() for _ in range(3)]
    others[0].info["charge"], others[1].info["spin"] = 2, 3
    others[2].numbers = atoms.numbers[::-1]
    velocities, masses = atoms.get_velocities(), atoms.get_masses()
    flux = HeatFlux(potential)
    for other in others:
        first = flux(System.from_ase(atoms), velocities, masses)
        found = flux(System.from_ase(other), velocities, masses)
        expected = HeatFlux(potential)(System.from_ase(other), velocities, masses)
        assert_close(found, expected, 1e-10)
        assert np.abs(first.potential - expected.potential).max() > 1e-6


def test_images_that_a_smaller_cell_brings_near(calc: AttnCalculator) -> None:
    """Around a molecule that does not move, and around a single atom."""
    for wide, narrow in ((moving(ethanol()), 6.0), (moving(Atoms("O")), 2.5)):
        wide.pbc = True
        wide.set_cell([20.0] * 3)
        close = wide.copy()
        close.set_cell([narrow] * 3)
        calc.get_heat_flux(wide)
        fresh = AttnCalculator(calc.evaluator.plain, device="cpu").get_heat_flux(close)
        assert_close(calc.get_heat_flux(close), fresh, 1e-10)
        assert np.abs(fresh.potential - calc.get_heat_flux(wide).potential).max() > 1e-8


@pytest.mark.parametrize(
    ("cells", "places"),
    [((5.8, 5.28), (2.1, 3.7)), ((5.71, 5.539), (2.06, 3.74))],
    ids=["more strain", "more motion"],
)
def test_images_that_cell_and_atoms_bring_near_together(cells, places) -> None:
    """Neither a cell shorter by 9 % nor atoms apart by 0.4 Å would: images were 4.5 Å away."""
    calc = AttnCalculator(so3krates(), device="cpu")
    before = Atoms("CO", [[2.3, 0, 0], [3.5, 0, 0]], cell=[cells[0], 20, 20], pbc=True)
    after = Atoms("CO", [[x, 0, 0] for x in places], cell=[cells[1], 20, 20], pbc=True)
    velocities = [[0.02, 0.01, -0.01], [0.01, -0.02, 0.03]]
    for atoms in (before, after):
        atoms.set_velocities(velocities)
    calc.get_heat_flux(before)
    found, after.pbc = calc.get_heat_flux(after), False
    assert np.abs(found.potential - calc.get_heat_flux(after).potential).max() > 1e-6
    after.pbc = True
    fresh = AttnCalculator(calc.evaluator.plain, device="cpu")
    assert_close(found, fresh.get_heat_flux(after), 1e-10)


def test_images_that_come_near_by_way_of_another_atom() -> None:
    """The farthest is 8.1 Å from the cell's face, and the two edges to it become 3.8 Å long."""
    calc = AttnCalculator(so3krates(), device="cpu")
    atoms = Atoms("COC", [[0, 0, 0], [16.0, 0.5, 0], [11.9, 0, 0.5]], cell=[20] * 3, pbc=True)
    thermalize_momenta(atoms, temperature_K=2000, rng=np.random.default_rng(0))
    calc.get_heat_flux(atoms)
    images = calc._heat_flux._unfolded
    atoms.positions[:, 0] += [-0.2, -0.02, 0.2]
    found = calc.get_heat_flux(atoms)
    assert calc._heat_flux._unfolded is images
    fresh = AttnCalculator(calc.evaluator.plain, device="cpu")
    assert_close(found, fresh.get_heat_flux(atoms), 1e-12)


def test_images_of_a_charged_molecule_bring_no_charge() -> None:
    """Its charge is shared by the atoms of one cell."""
    small: Any = SMALL | {"num_features": 16, "avg_num_neighbors": 8.0}
    calc = AttnCalculator(
        random_potential(So3kratesConfig(degrees=(1,), embed_charge=True, **small))
    )
    atoms = moving(ethanol())
    neutral = calc.get_heat_flux(atoms)
    atoms.info["charge"] = 2
    expected = calc.get_heat_flux(atoms)
    assert np.abs(neutral.potential - expected.potential).max() > 1e-6
    atoms.set_cell([20.0] * 3)
    atoms.pbc = True
    assert_close(calc.get_heat_flux(atoms), expected, 1e-10)


def test_slabs() -> None:
    """As with periods so long that nothing is seen across them; and after these were longer."""
    calc, slab = AttnCalculator(so3krates(), device="cpu"), crystal()
    slab.set_cell(slab.cell.array * [[1], [1], [6]])
    slab.positions -= slab.cell[2] / 20
    expected = calc.get_heat_flux(slab)
    slab.pbc = [True, True, False]
    assert_close(calc.get_heat_flux(slab), expected, 1e-10)
    wire = moving(ethanol())
    wire.pbc = [True, False, False]
    wire.set_cell([40.0, 0, 0])
    wire.positions += 20.0
    alone = calc.get_heat_flux(wire)
    wire.set_cell([6.0, 0, 0])
    fresh = AttnCalculator(calc.evaluator.plain, device="cpu").get_heat_flux(wire)
    assert np.abs(fresh.potential - alone.potential).max() > 1e-6
    assert_close(calc.get_heat_flux(wire), fresh, 1e-10)


def test_by_an_engine() -> None:
    atoms = moving(bulk("Si", cubic=True))
    engine = AttnCalculator("so3krates-silicon", device="cpu")
    plain = AttnCalculator("so3krates-silicon", device="cpu", dtype="float64")
    expected = plain.get_heat_flux(atoms).potential
    found = engine.get_heat_flux(atoms).potential
    assert 0 < np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


class OfCharges(nn.Module):
    """Energies that change with the charge of their own atom."""

    config = None

    def forward(self, graph, outputs):
        return outputs.charges**2


def charged(term: nn.Module) -> Potential:
    network = random_potential(
        So3kratesConfig(
            num_features=16, degrees=(1,), avg_num_neighbors=8.0, predict_charges=True, **SMALL
        )
    ).network
    return Potential(network, ELEMENTS, pair_terms=[term])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: charged(Ewald(EwaldConfig(), ELEMENTS)), "sums over all periodic images"),
        (lambda: charged(OfCharges()), "has charges that add up over the whole structure"),
        (lambda: "so3krates-organic", "has pair terms of longer range than its network"),
    ],
)
def test_models_of_the_whole_structure_have_none(model, words: str) -> None:
    calc = AttnCalculator(model(), device="cpu")
    with pytest.raises(ValueError, match=words):
        calc.get_heat_flux(moving(ethanol()))


def test_ions_of_a_model_without_charge_input_are_refused() -> None:
    atoms = moving(ethanol())
    atoms.info["charge"] = 1
    with pytest.raises(ValueError, match="neutral structures only"):
        AttnCalculator(so3krates(), device="cpu").get_heat_flux(atoms)


def test_it_is_of_one_structure_with_a_velocity_for_every_atom(calc: AttnCalculator) -> None:
    atoms = ethanol()
    flux, system = HeatFlux(calc.potential), System.from_ase(atoms)
    velocities, masses = np.ones((len(atoms), 3)), atoms.get_masses()
    expected = flux(system, velocities, masses)
    of_tensors = flux(system, torch.from_numpy(velocities), torch.from_numpy(masses))
    assert np.array_equal(of_tensors.total, expected.total)
    with pytest.raises(ValueError, match="heat flux is that of one structure, got 2"):
        flux(System.from_ase([atoms, atoms]), velocities, masses)
    with pytest.raises(ValueError, match=r"9 atoms need velocities \[9, 3\] and masses \[9\], got"):
        flux(system, velocities[:3], masses)


def test_a_copy_of_the_calculator_gives_the_same() -> None:
    calc = AttnCalculator("so3krates-silicon", device="cpu")
    atoms = moving(bulk("Si", cubic=True))
    flux = calc.get_heat_flux(atoms)
    assert_close(pickle.loads(pickle.dumps(calc)).get_heat_flux(atoms), flux, 0.0)


def test_the_documentation(tmp_path: Path, monkeypatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "dynamics.md"
    section = page.read_text().split("## Heat flux")[1]
    code = section.split("```python")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("20_000", "4").replace("repeat(4)", "repeat(1)"), page, "exec"), {})
    assert np.loadtxt("flux.txt").shape == (2, 3)
