"""Degrees of freedom of every kind of run, and velocities that have exactly a temperature."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixScaled,
    FixSubsetCom,
    Hookean,
)

from attncalc.md import ENSEMBLES, Thermometer


def turned(atoms: Atoms) -> Atoms:
    """Along no axis, away from the origin."""
    atoms.rotate(37, (1, 2, 3))
    atoms.translate([5, -3, 8])
    return atoms


STRUCTURES = {
    "molecule": turned(molecule("H2O")),
    "linear": turned(molecule("CO2")),
    "dimer": turned(molecule("N2")),
    "atom": Atoms("He"),
    "crystal": bulk("Cu", a=3.6, cubic=True),
    "slab": fcc111("Cu", (1, 1, 3), vacuum=8.0),
    "primitive": bulk("Cu"),
}


@pytest.mark.parametrize(
    ("name", "nve", "npt"),
    [
        ("molecule", 3, 6),
        ("linear", 3, 6),  # it bends, and then rotates about all axes
        ("dimer", 1, 3),
        ("atom", 3, 3),
        ("crystal", 9, 9),
        ("slab", 6, 6),
        ("primitive", 3, 3),
    ],
)
def test_degrees_of_freedom(name: str, nve: int, npt: int) -> None:
    atoms = STRUCTURES[name]
    n_dof = {e: Thermometer.for_run(atoms, e).n_dof for e in ENSEMBLES}
    assert n_dof == {"nve": nve, "nvt": 3 * len(atoms), "npt": npt}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_drawn_velocities_have_the_temperature(name: str, ensemble: str) -> None:
    atoms = STRUCTURES[name].copy()
    thermometer = Thermometer.for_run(atoms, ensemble)
    thermometer.draw(atoms, 300.0, np.random.default_rng(0))
    assert thermometer.temperature(atoms) == pytest.approx(300.0, rel=1e-10)
    kinetic = thermometer.n_dof * units.kB * 300 / 2
    assert atoms.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-10), "nothing not counted"
    drift = np.abs(atoms.get_momenta().sum(axis=0)).max()
    assert (drift < 1e-10) == thermometer.excludes_drift
    if thermometer.excludes_rotation:
        assert np.abs(atoms.get_angular_momentum()).max() < 1e-10


def test_drawn_velocities_are_maxwell_boltzmann_s() -> None:
    """Light atoms are faster: 3000 momenta of each element, whose variance is m k T."""
    atoms = Atoms("H1000Au1000", positions=100 * np.random.default_rng(1).random((2000, 3)))
    Thermometer.for_run(atoms, "nvt").draw(atoms, 300.0, np.random.default_rng(0))
    variances = atoms.get_momenta().reshape(2, -1).var(axis=1)
    expected = atoms.get_masses()[[0, -1]] * units.kB * 300
    # four standard deviations: 4 sqrt(2 / 3000)
    assert variances == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["molecule", "linear", "dimer"])
def test_drift_and_rotation_are_no_heat(name: str) -> None:
    """As in an "nve" run that goes on from a frame of Langevin dynamics."""
    atoms = STRUCTURES[name].copy()
    thermometer = Thermometer.for_run(atoms, "nve")
    thermometer.draw(atoms, 300.0, np.random.default_rng(0))
    arms = atoms.positions - atoms.get_center_of_mass()
    rigid = np.array([0.02, -0.01, 0.03]) + np.cross([0.01, 0.02, -0.015], arms)
    atoms.set_velocities(atoms.get_velocities() + rigid)
    assert thermometer.temperature(atoms) == pytest.approx(300.0, rel=1e-10)
    assert atoms.get_kinetic_energy() > 1.2 * thermometer.n_dof * units.kB * 300 / 2


def test_constraints_are_counted_as_ase_does() -> None:
    atoms = STRUCTURES["slab"].copy()
    atoms.set_constraint(FixAtoms([0]))
    for ensemble in ENSEMBLES:
        thermometer = Thermometer.for_run(atoms, ensemble)
        assert thermometer.n_dof == 6
        thermometer.draw(atoms, 300.0, np.random.default_rng(0))
        assert thermometer.temperature(atoms) == pytest.approx(300.0)
        assert atoms.get_temperature() == pytest.approx(300.0)
        assert not atoms.get_momenta()[0].any()
    atoms.set_constraint([FixAtoms([0]), FixAtoms([0, -2])])  # an atom held twice
    assert Thermometer.for_run(atoms, "nvt").n_dof == 3
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    with pytest.raises(ValueError, match="no atom can move: constraints fix all atoms"):
        Thermometer.for_run(atoms, "nvt")


Z = (False, False, True)
OVERLAPPING = {  # constraints of eight atoms, and the degrees of freedom that they leave
    "plane of a fixed atom": ([FixAtoms([0]), FixedPlane([0, 1], [0, 0, 1])], 20),
    "plane twice": ([FixedPlane([0, 1], [0, 0, 1]), FixCartesian([0], mask=Z)], 22),
    "layer in a plane": ([FixAtoms([0, -1]), FixCartesian(range(8), mask=Z)], 12),
    "line and its plane": ([FixedLine([0], [1, 1, 0]), FixedPlane([0], [1, 1, 0])], 21),
    "scaled": ([FixScaled([0, 1], mask=Z), FixCartesian([0], mask=Z)], 22),
    "bond to a fixed atom": ([FixBondLengths([(0, 1), (1, 2)]), FixAtoms([0])], 19),
    "bond of fixed atoms": ([FixBondLengths([(0, 1), (1, 2)]), FixAtoms([0, 1])], 17),
    "bond of the last atom": ([FixBondLengths([(0, -1)]), FixBondLengths([(7, 0), (0, 7)])], 23),
    "bond twice": ([FixBondLengths([(0, 1), (1, 2)]), FixBondLengths([(0, 1)])], 22),
    "centre in a plane": ([FixCom(), FixCartesian(range(8), mask=Z)], 14),
    "centre and bond": ([FixCom(), FixBondLengths([(0, 1)])], 20),
    "centre of a fixed atom": ([FixSubsetCom([0, 1, 2]), FixAtoms([0])], 18),
    "spring of a fixed atom": ([Hookean(0, 1, 5.0, 1.0), FixAtoms([0])], 21),
}


@pytest.mark.parametrize(("constraints", "n_dof"), OVERLAPPING.values(), ids=OVERLAPPING)
def test_constraints_that_hold_the_same_atoms(constraints: list, n_dof: int) -> None:
    """ASE's sum over constraints counts the motion twice that two of them forbid."""
    atoms = turned(molecule("C6H6"))[:8]
    atoms.cell = [9.0, 10.0, 11.0]
    atoms.set_constraint(constraints)
    assert Thermometer.for_run(atoms, "nvt").n_dof == n_dof


def test_rigid_molecules_of_a_liquid_without_a_drift() -> None:
    """Constraints of thousands of atoms, whose groups are small."""
    liquid, water = Atoms(), molecule("H2O")
    for k in range(400):
        water.rotate(37.0, (1, 2, 3))
        water.positions += [4.0 * (-1) ** k, 4.0, 0.0]
        liquid += water
    pairs = [(3 * k + i, 3 * k + j) for k in range(400) for i, j in ((0, 1), (0, 2), (1, 2))]
    for others, n_dof in (
        ([], 2400),
        ([FixCom()], 2397),
        ([FixAtoms([0])], 2397),
        ([FixAtoms([0, 1, 2]), FixCom()], 2391),
    ):
        liquid.set_constraint([FixBondLengths(pairs), *others])
        assert Thermometer.for_run(liquid, "nvt").n_dof == n_dof


def test_constraints_whose_degrees_of_freedom_are_not_known() -> None:
    atoms = bulk("Cu", cubic=True) * (7, 7, 6)
    atoms.set_constraint([FixAtoms([0]), FixSubsetCom(range(1100))])
    with pytest.raises(ValueError, match=r"FixSubsetCom\) hold the same atoms, and 1100 atoms are"):
        Thermometer.for_run(atoms, "nve")
    atoms.set_constraint(FixedMode(np.ones((len(atoms), 3))))
    with pytest.raises(ValueError, match="FixedMode of ASE does not regard the masses"):
        Thermometer.for_run(atoms, "nve")
