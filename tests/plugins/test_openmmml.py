"""A model inside OpenMM-ML: what `add_force` and `replace_molecules` give, by its own calls."""

from __future__ import annotations

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from crystals import silicon

from attncalc import AttnCalculator

openmm = pytest.importorskip("openmm", reason='needs openmm: pip install "attncalc[openmm]"')
openmmml = pytest.importorskip(
    "openmmml", reason='needs OpenMM-ML: pip install "attncalc[openmmml]"'
)
from openmm import app  # noqa: E402

from attncalc.plugins.openmm_mixed import replace_molecules  # noqa: E402
from attncalc.plugins.openmmml import Factory  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "so3krates-ethanol"
KJ_PER_MOL = units.kJ / units.mol  # eV
NM = 10.0  # Å
CPU = {"device": "cpu"}


@pytest.fixture(autouse=True)
def registered():
    """The entry point is that of an installed attncalc, which may be older than this checkout."""
    openmmml.MLPotential.registerImplFactory("attncalc", Factory())


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return atoms


def topology_of(atoms: Atoms, bonds: list[tuple[int, int]] = ()) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    listed = list(topology.atoms())
    for i, j in bonds:
        topology.addBond(listed[i], listed[j])
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array / NM * openmm.unit.nanometer)
    return topology


def context(system: openmm.System, positions: np.ndarray) -> openmm.Context:
    integrator = openmm.VerletIntegrator(0.0005)
    made = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    made.setPositions(positions / NM)
    return made


def results(made: openmm.Context, groups: int = -1) -> tuple[float, np.ndarray]:
    """Energy [eV] and forces [eV/Å]."""
    state = made.getState(energy=True, forces=True, groups=groups)
    energy = state.getPotentialEnergy()._value * KJ_PER_MOL
    return energy, state.getForces(asNumpy=True)._value * (KJ_PER_MOL / NM)


def solvated(n_argon: int = 8, side: float = 24.0) -> tuple[Atoms, openmm.System]:
    """Ethanol by bonds, charges and Lennard-Jones among charged spheres, in a periodic box."""
    inner = ethanol()
    inner.positions += side / 2 - inner.positions.mean(0)
    grid = [[x, y, z] for x in (4, 20) for y in (4, 20) for z in (4, 20)]
    atoms = inner + Atoms(["Ar"] * n_argon, grid[:n_argon])
    atoms.set_cell([side] * 3)
    atoms.pbc = True
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / NM))
    bonds, pairs = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    pairs.setNonbondedMethod(openmm.NonbondedForce.PME)
    for k, mass in enumerate(atoms.get_masses()):
        system.addParticle(mass)
        pairs.addParticle(0.2 * (-1) ** k if k < 16 else 0.0, 0.33, 0.4)  # e, nm, kJ/mol
    bonds.addBond(0, 1, 0.15, 2e5)
    pairs.addException(0, 1, 0.0, 1.0, 0.0)
    system.addConstraint(2, 3, 0.097)
    system.addForce(bonds)
    system.addForce(pairs)
    return atoms, system


@pytest.mark.parametrize("atoms", [ethanol(), silicon()], ids=["molecule", "triclinic"])
def test_the_calculators_numbers(atoms):
    model = MODEL if not atoms.pbc.any() else "so3krates-silicon"
    potential = openmmml.MLPotential("attncalc", model=model)
    system = potential.createSystem(topology_of(atoms), **CPU)
    assert system.usesPeriodicBoundaryConditions() == atoms.pbc.any()
    energy, forces = results(context(system, atoms.positions))
    calculator = AttnCalculator(model, device="cpu")
    assert energy == pytest.approx(calculator.get_potential_energy(atoms), abs=1e-9)
    np.testing.assert_allclose(forces, calculator.get_forces(atoms), atol=1e-9)


def test_the_general_model_where_none_is_named_and_an_ion():
    hydroxide = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info={"charge": -1, "spin": 1})
    system = openmmml.MLPotential("attncalc").createSystem(
        topology_of(hydroxide), charge=-1, multiplicity=1, **CPU
    )
    expected = AttnCalculator(device="cpu").get_potential_energy(hydroxide)
    energy, _ = results(context(system, hydroxide.positions))
    assert energy == pytest.approx(expected, abs=1e-9)


def test_a_mixed_system_is_that_of_replace_molecules():
    atoms, system = solvated()
    inner, topology = list(range(9)), topology_of(atoms, bonds=[(0, 1), (1, 2)])
    ours = replace_molecules(system, MODEL, atoms.numbers[inner], inner, device="cpu")
    potential = openmmml.MLPotential("attncalc", model=MODEL)
    theirs = potential.createMixedSystem(topology, system, inner, forceGroup=3, **CPU)
    assert theirs.getNumConstraints() == 0
    made = context(theirs, atoms.positions)
    energy, forces = results(made)
    expected = results(context(ours, atoms.positions))
    assert energy == pytest.approx(expected[0], abs=1e-9)
    np.testing.assert_allclose(forces, expected[1], atol=1e-9)
    alone = Atoms(atoms.numbers[inner], atoms.positions[inner], cell=atoms.cell, pbc=True)
    of_model = AttnCalculator(MODEL, device="cpu").get_potential_energy(alone)
    assert results(made, groups={3})[0] == pytest.approx(of_model, abs=1e-9)


def test_a_parameter_leads_from_the_force_field_to_the_model():
    atoms, system = solvated()
    inner, topology = list(range(9)), topology_of(atoms)
    potential = openmmml.MLPotential("attncalc", model=MODEL)
    mixed = potential.createMixedSystem(topology, system, inner, **CPU)
    both = potential.createMixedSystem(topology, system, inner, interpolate=True, **CPU)
    made = context(both, atoms.positions)
    for of_model, alone in ((0.0, system), (1.0, mixed)):
        made.setParameter("lambda_interpolate", of_model)
        expected = results(context(alone, atoms.positions))
        found = results(made)
        assert found[0] == pytest.approx(expected[0], abs=1e-6)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_a_bond_across_the_border_gets_a_hydrogen():
    """OpenMM-ML puts link atoms there, which the model sees as atoms of its own."""
    atoms = molecule("CH3CH2OH")  # C 0, C 1, O 2, H 3 at O, H 4 and 5 at C 1, the rest at C 0
    inner = [0, 6, 7, 8]
    bonds = [(0, 1), (1, 2), (2, 3), (1, 4), (1, 5), (0, 6), (0, 7), (0, 8)]
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    info = openmmml.MLPotential("attncalc").createMixedSystem(
        topology_of(atoms, bonds), system, inner, forceGroup=3, returnInfo=True, **CPU
    )
    capped = [atom.element.atomic_number for atom in info["topology"].atoms()]
    assert len(capped) == len(atoms) + 1
    assert info["oldToNew"] == list(range(9))
    assert capped[-1] == 1
    made = context(info["system"], np.vstack([atoms.positions, np.zeros(3)]))
    made.computeVirtualSites()
    places = made.getState(positions=True).getPositions(asNumpy=True)._value * NM
    methane = Atoms([capped[k] for k in [*inner, 9]], places[[*inner, 9]])
    assert methane.get_distance(0, 4) == pytest.approx(1.1, abs=0.1)
    expected = AttnCalculator(device="cpu").get_potential_energy(methane)
    assert results(made, groups={3})[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chrage": 1}, TypeError, "charge, multiplicity and device, not chrage"),
        ({"charge": 1, "multiplicity": 2}, ValueError, "neutral structures only"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    potential = openmmml.MLPotential("attncalc", model=MODEL)
    with pytest.raises(error, match=message) as caught:
        potential.createSystem(topology_of(ethanol()), **CPU, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_and_atoms_it_does_not_know():
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        openmmml.MLPotential("attncalc", model="no-such-model")
    potential = openmmml.MLPotential("attncalc", model=MODEL)
    with pytest.raises(ValueError, match="Si"):
        potential.createSystem(topology_of(silicon()), **CPU)
    topology = topology_of(ethanol())
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(ValueError, match=r"atom 9 \(M\) of the topology has no element"):
        potential.createSystem(topology, **CPU)


def test_the_entry_point_of_setup_cfg_exists():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    (line,) = settings["options.entry_points"]["openmmml.potentials"].strip().splitlines()
    module, thing = line.removeprefix("attncalc = ").split(":")
    assert getattr(importlib.import_module(module), thing) is Factory


@pytest.mark.parametrize("first", ["openmmml", "attncalc.plugins.openmmml"])
def test_either_may_be_imported_first_and_neither_waits_for_torch(first):
    code = f"import {first}, attncalc.plugins.openmmml, sys; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=120,
    )
