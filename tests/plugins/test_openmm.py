"""A model inside OpenMM: the calculator's numbers in its units, alone and among a force field."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from contract import model_of_electrons, random_potential
from crystals import silicon
from networks import tiny_so3krates

from attncalc import AttnCalculator
from attncalc.model_file import save
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.potential import Potential

openmm = pytest.importorskip("openmm", reason='needs openmm: pip install "attncalc[openmm]"')
from attncalc.plugins.openmm import add_force  # noqa: E402
from attncalc.plugins.openmm_mixed import replace_molecules  # noqa: E402

MODEL = "so3krates-ethanol"
KJ_PER_MOL = units.kJ / units.mol  # eV
NM = 10.0  # Å


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def bare_system(atoms: Atoms) -> openmm.System:
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / NM))
    return system


def context(system: openmm.System, positions: np.ndarray, platform="Reference") -> openmm.Context:
    integrator = openmm.VerletIntegrator(0.0005)
    made = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    made.setPositions(positions / NM)
    return made


def results(made: openmm.Context, groups: int = -1) -> tuple[float, np.ndarray]:
    """Energy [eV] and forces [eV/Å]."""
    state = made.getState(energy=True, forces=True, groups=groups)
    energy = state.getPotentialEnergy()._value * KJ_PER_MOL
    return energy, state.getForces(asNumpy=True)._value * (KJ_PER_MOL / NM)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("atoms", [ethanol(), silicon()], ids=["molecule", "triclinic"])
def test_the_calculators_numbers(atoms, platform):
    model = MODEL if not atoms.pbc.any() else "so3krates-silicon"
    system = bare_system(atoms)
    add_force(system, model, atoms.numbers, periodic=bool(atoms.pbc.any()), device="cpu")
    made = context(system, atoms.positions, platform)
    calculator = AttnCalculator(model, device="cpu")
    # the CPU platform keeps positions in single precision, of up to 20 Å
    allowed = 1e-9 if platform == "Reference" else 1e-4
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        made.setPositions(atoms.positions / NM)
        energy, forces = results(made)
        assert energy == pytest.approx(calculator.get_potential_energy(atoms), abs=allowed)
        np.testing.assert_allclose(forces, calculator.get_forces(atoms), atol=allowed)


def test_charge_and_multiplicity(tmp_path):
    """Of all particles, and of molecules that a model takes from a force field."""
    save(model_of_electrons(), tmp_path / "model.safetensors")
    hydroxide = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info={"charge": -1, "spin": 3})
    calculator = AttnCalculator(model_of_electrons(), device="cpu")
    neutral = Atoms("OH", hydroxide.positions)
    energy, forces = calculator.get_potential_energy(hydroxide), calculator.get_forces(hydroxide)
    assert abs(energy - calculator.get_potential_energy(neutral)) > 1e-3
    electrons = {"charge": -1, "spin": 3, "device": "cpu"}
    system = bare_system(hydroxide)
    add_force(system, tmp_path / "model.safetensors", hydroxide.numbers, **electrons)
    both = hydroxide + Atoms("Ar", [[0, 0, 9.0]])
    mixed = replace_molecules(
        bare_system(both), tmp_path / "model.safetensors", hydroxide.numbers, [0, 1], **electrons
    )
    for made in (context(system, hydroxide.positions), context(mixed, both.positions)):
        found, on_atoms = results(made)
        assert found == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(on_atoms[:2], forces, atol=1e-8)
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert results(context(again, hydroxide.positions))[0] == pytest.approx(energy, abs=1e-9)


def test_a_box_that_changes_is_followed():
    """The virial that a barostat sees is the slope of the energy by the box."""
    atoms = silicon()
    system = bare_system(atoms)
    add_force(system, "so3krates-silicon", atoms.numbers, periodic=True, device="cpu")
    made = context(system, atoms.positions)
    calculator = AttnCalculator("so3krates-silicon", device="cpu")
    stress = calculator.get_stress(atoms)
    h, energies = 1e-4, []
    for strain in (-h, h):
        larger = atoms.copy()
        larger.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        made.setPeriodicBoxVectors(*(larger.cell.array / NM))
        made.setPositions(larger.positions / NM)
        energies.append(results(made)[0])
        assert energies[-1] == pytest.approx(calculator.get_potential_energy(larger), abs=1e-8)
    slope = (energies[1] - energies[0]) / (2 * h)
    assert slope == pytest.approx(stress[:3].sum() * atoms.get_volume(), rel=1e-3)


def test_xml_holds_the_name_of_the_model_only():
    atoms = ethanol()
    system = bare_system(atoms)
    add_force(system, MODEL, atoms.numbers, device="cpu")
    text = openmm.XmlSerializer.serialize(system)
    assert len(text) < 3000
    again = openmm.XmlSerializer.deserialize(text)
    assert results(context(again, atoms.positions))[0] == pytest.approx(
        results(context(system, atoms.positions))[0], abs=1e-12
    )


def test_dynamics_conserve_energy():
    atoms = ethanol()
    system = bare_system(atoms)
    add_force(system, MODEL, atoms.numbers, device="cpu")
    integrator = openmm.VerletIntegrator(0.0005)
    made = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    made.setPositions(atoms.positions / NM)
    made.setVelocitiesToTemperature(300.0, 1)
    totals = []
    for _ in range(20):
        integrator.step(10)
        state = made.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    assert np.ptp(totals) * KJ_PER_MOL / len(atoms) < 2e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": [6, 6, 8]}, "one of each of the 9 particles, got 3"),
        ({"numbers": [*"CCOHHHHHH"]}, r"numbers must be atomic numbers, got \['C', "),
        ({"numbers": [6.0, 6, 8, *[1.008] * 6]}, r"numbers must be atomic numbers, got \[6.0, "),
        ({"numbers": [14] * 9}, "Si"),
        ({"charge": 1, "spin": 2}, "neutral structures only"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"particles": [*range(8), 9]}, "from 0 to 8, got 9"),
        ({"particles": [*range(8), -1]}, "from 0 to 8, got -1"),
        ({"particles": [*range(8), 8.5]}, r"particles must be whole numbers, got \[0, .*8.5\]"),
        ({"particles": [*range(8), 0]}, "twice"),
    ],
)
def test_what_the_model_does_not_know_is_refused_before_the_run(change, message):
    atoms = ethanol()
    given = {"model": MODEL, "numbers": atoms.numbers, "device": "cpu", **change}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        add_force(bare_system(atoms), given.pop("model"), given.pop("numbers"), **given)


def test_atoms_on_top_of_each_other_end_the_run_with_our_words():
    atoms = ethanol()
    system = bare_system(atoms)
    add_force(system, MODEL, atoms.numbers, device="cpu")
    made = context(system, atoms.positions)
    atoms.positions[1] = atoms.positions[0]
    made.setPositions(atoms.positions / NM)
    with pytest.raises(openmm.OpenMMException, match=r"atom 0 \(C\) and atom 1"):
        made.getState(energy=True)


# ---------------------------------------------------------------- a force field for the rest

CHARGE, SIGMA, EPSILON = 0.3, 0.33, 0.4  # e, nm, kJ/mol


def solvated(*, n_argon: int = 20, side: float = 24.0) -> tuple[Atoms, openmm.System]:
    """Ethanol by a force field, with bonded terms of every listed kind, among charged spheres."""
    inner = ethanol()
    inner.positions += side / 2 - inner.positions.mean(0)
    points, rng = [], np.random.default_rng(0)
    while len(points) < n_argon:
        point = rng.uniform(0, side, 3)
        near = [*inner.positions, *points]
        apart = np.array(near) - point
        apart -= side * np.round(apart / side)
        if np.linalg.norm(apart, axis=1).min() > 3.0:
            points.append(point)
    atoms = inner + Atoms(["Ar"] * n_argon, points)
    atoms.set_cell([side] * 3)
    atoms.pbc = True
    system = bare_system(atoms)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    torsions, ryckaert = openmm.PeriodicTorsionForce(), openmm.RBTorsionForce()
    maps = openmm.CMAPTorsionForce()
    pairs = openmm.CustomNonbondedForce("1e-6/r^9")
    bonds.addBond(0, 1, 0.15, 2e5)
    bonds.addBond(1, 2, 0.14, 2e5)
    angles.addAngle(0, 1, 2, 1.9, 400)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.0, 2.0)
    ryckaert.addTorsion(0, 1, 2, 3, 1, 1, 1, 1, 1, 1)
    maps.addMap(2, [0.0, 1.0, 2.0, 3.0])
    maps.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    system.addConstraint(2, 3, 0.097)
    coulomb = openmm.NonbondedForce()
    for k in range(len(atoms)):
        charge = CHARGE * (-1) ** k if k < 8 or k > 8 else 0.0
        coulomb.addParticle(charge, SIGMA, EPSILON)
        pairs.addParticle([])
    coulomb.addException(0, 1, 0.0, 1.0, 0.0)
    pairs.addExclusion(0, 1)
    coulomb.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    coulomb.setCutoffDistance(1.0)
    pairs.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    pairs.setCutoffDistance(1.0)
    for force in (bonds, angles, torsions, ryckaert, maps, coulomb, pairs):
        system.addForce(force)
    return atoms, system


def test_a_model_replaces_the_force_field_inside_its_molecules():
    """E(mixed) = E(model, molecule) + E(force field) without what it has inside the molecule."""
    atoms, system = solvated()
    inner = list(range(9))
    before = openmm.XmlSerializer.serialize(system)
    mixed = replace_molecules(system, MODEL, atoms.numbers[inner], inner, device="cpu")
    assert openmm.XmlSerializer.serialize(system) == before
    assert mixed.getNumConstraints() == 0
    energy, forces = results(context(mixed, atoms.positions))
    alone = atoms[inner]
    calculator = AttnCalculator(MODEL, device="cpu")
    # pairs between molecule and spheres, and among spheres, by hand: no bonded term is left
    expected, of_pairs = calculator.get_potential_energy(alone), np.zeros_like(forces)
    of_pairs[inner] = calculator.get_forces(alone)
    charges = [CHARGE * (-1) ** k if k != 8 else 0.0 for k in range(len(atoms))]
    dielectric, cutoff = 78.3, 1.0
    k_rf = (dielectric - 1) / (2 * dielectric + 1) / cutoff**3
    c_rf = 3 * dielectric / (2 * dielectric + 1) / cutoff
    one_4pi_eps0 = 138.93545764438198  # kJ/mol nm e^-2
    for i in range(len(atoms)):
        for j in range(max(i + 1, 9), len(atoms)):
            vector = (atoms.positions[i] - atoms.positions[j]) / NM
            vector -= atoms.cell[0, 0] / NM * np.round(vector / (atoms.cell[0, 0] / NM))
            r = float(np.linalg.norm(vector))
            if r >= cutoff:
                continue
            x, q = (SIGMA / r) ** 6, one_4pi_eps0 * charges[i] * charges[j]
            pair = 4 * EPSILON * (x * x - x) + q * (1 / r + k_rf * r * r - c_rf) + 1e-6 / r**9
            slope = 4 * EPSILON * (-12 * x * x + 6 * x) / r + q * (-1 / r**2 + 2 * k_rf * r)
            slope -= 9e-6 / r**10
            expected += pair * KJ_PER_MOL
            push = -slope * KJ_PER_MOL / NM * vector / r
            of_pairs[i] += push
            of_pairs[j] -= push
    coulomb = next(f for f in mixed.getForces() if isinstance(f, openmm.NonbondedForce))
    correction = long_range_correction(coulomb, atoms) * KJ_PER_MOL
    assert energy == pytest.approx(expected + correction, abs=1e-6)
    np.testing.assert_allclose(forces, of_pairs, atol=1e-6)


def test_a_model_leaves_molecules_whole():
    """OpenMM wraps and scales molecules that it knows by bonds and constraints."""
    atoms, system = solvated()
    inner = list(range(9))
    for k in range(4, 9):
        system.addConstraint(k % 3, k, 0.1)
    model = (MODEL, atoms.numbers[inner], inner)
    mixed = replace_molecules(system, *model, device="cpu")
    known = context(mixed, atoms.positions).getMolecules()
    assert sorted(map(len, known)) == [1] * 20 + [9]
    assert [sorted(one) for one in known if len(one) > 1] == [inner]
    with pytest.raises(ValueError, match="a PythonForce acts on these particles already"):
        replace_molecules(mixed, *model, device="cpu")  # it would count twice
    (place,) = (k for k, force in enumerate(mixed.getForces()) if force.getName() == "attncalc")
    mixed.removeForce(place)
    again = replace_molecules(mixed, *model, device="cpu")
    assert context(again, atoms.positions).getMolecules() == known


def test_a_model_of_all_particles_is_none_of_some():
    atoms = ethanol() + ethanol(1)
    system = bare_system(atoms)
    add_force(system, "so3krates-organic", atoms.numbers, device="cpu")
    with pytest.raises(ValueError, match="a PythonForce acts on these particles already"):
        replace_molecules(system, MODEL, atoms.numbers[:9], list(range(9)), device="cpu")


def long_range_correction(coulomb: openmm.NonbondedForce, atoms: Atoms) -> float:
    """kJ/mol, of Lennard-Jones beyond the cutoff; all particles are alike."""
    if not coulomb.getUseDispersionCorrection():
        return 0.0
    n, volume = len(atoms), atoms.get_volume() / NM**3
    twelve, six = EPSILON * SIGMA**12 / 9, EPSILON * SIGMA**6 / 3
    return 8 * n * n * np.pi * (twelve - six) / volume


def test_two_molecules_by_two_models():
    atoms = ethanol() + ethanol(1)
    atoms.positions[9:] += [0, 0, 30]
    system = bare_system(atoms)
    coulomb = openmm.NonbondedForce()
    for _ in atoms:
        coulomb.addParticle(0.0, 0.3, 0.0)
    system.addForce(coulomb)
    calculator, expected = AttnCalculator(MODEL, device="cpu"), 0.0
    for part in (list(range(9)), list(range(9, 18))):
        system = replace_molecules(system, MODEL, atoms.numbers[part], part, device="cpu")
        expected += calculator.get_potential_energy(atoms[part])
    assert results(context(system, atoms.positions))[0] == pytest.approx(expected, abs=1e-8)


def charged_ethanols(method: int) -> tuple[Atoms, openmm.System]:
    """Two charged molecules, neighbours across the border of the box, and a third one."""
    atoms = ethanol() + ethanol(1) + ethanol(2)
    for k, place in enumerate(([1.0, 12, 12], [21.0, 12, 12], [12.0, 20, 12])):
        atoms.positions[9 * k : 9 * k + 9] += place - atoms.positions[9 * k : 9 * k + 9].mean(0)
    atoms.set_cell([24.0] * 3)
    atoms.pbc = True
    system = bare_system(atoms)
    coulomb = openmm.NonbondedForce()
    for k in range(len(atoms)):
        coulomb.addParticle((-1.0) ** k * (0.1 + 0.02 * (k % 9)), SIGMA, EPSILON)
    coulomb.setNonbondedMethod(method)
    system.addForce(coulomb)
    return atoms, system


@pytest.mark.parametrize("method", ["CutoffPeriodic", "PME"])
def test_the_models_molecules_may_be_in_different_images(method: str):
    """What a force field has between two of them is out, wherever OpenMM has wrapped them to."""
    atoms, system = charged_ethanols(getattr(openmm.NonbondedForce, method))
    inner = list(range(18))
    made = context(
        replace_molecules(system, MODEL, atoms.numbers[inner], inner, device="cpu"), atoms.positions
    )
    energy, forces = results(made)
    atoms.positions[9:18] -= atoms.cell[0]
    made.setPositions(atoms.positions / NM)
    shifted = results(made)
    assert shifted[0] == pytest.approx(energy, abs=1e-8)
    np.testing.assert_allclose(shifted[1], forces, atol=1e-6)


def test_images_are_not_counted_twice(tmp_path):
    network = random_potential(tiny_so3krates(3.0, predict_charges=True)).network
    model = tmp_path / "ewald.safetensors"
    save(Potential(network, (1, 6, 7, 8), pair_terms=[Ewald(EwaldConfig(), (1, 6, 7, 8))]), model)
    atoms, system = charged_ethanols(openmm.NonbondedForce.PME)
    inner = list(range(9))
    with pytest.raises(ValueError, match="images of the molecules would count twice"):
        replace_molecules(system, model, atoms.numbers[inner], inner, device="cpu")
    _, system = charged_ethanols(openmm.NonbondedForce.CutoffPeriodic)
    replace_molecules(system, model, atoms.numbers[inner], inner, device="cpu")


def test_a_bond_across_the_border_is_refused():
    atoms, system = solvated()
    part = list(range(2, 9))
    with pytest.raises(ValueError, match=r"particles 2 and 1 are bonded.*link atoms"):
        replace_molecules(system, MODEL, atoms.numbers[part], part, device="cpu")
    part = [0, 1, 2, *range(4, 9)]  # of a constraint
    with pytest.raises(ValueError, match=r"particles 2 and 3 are bonded"):
        replace_molecules(system, MODEL, atoms.numbers[part], part, device="cpu")


def test_what_cannot_be_taken_out_is_refused():
    atoms, system = solvated()
    inner = list(range(9))
    born = openmm.GBSAOBCForce()
    for _ in atoms:
        born.addParticle(0.0, 0.15, 0.8)
    system.addForce(born)
    with pytest.raises(ValueError, match="GBSAOBCForce"):
        replace_molecules(system, MODEL, atoms.numbers[inner], inner, device="cpu")
    atoms, system = solvated()
    system.setVirtualSite(10, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match="particle 10 is a virtual site"):
        replace_molecules(system, MODEL, atoms.numbers[inner], inner, device="cpu")
    with pytest.raises(ValueError, match="different numbers from 0 to 28"):
        replace_molecules(system, MODEL, [1, 1], [3, 3], device="cpu")


def test_as_many_particles_as_one_likes():
    """Placeholders of their positions are not far from the origin."""
    n = 100_010
    system = openmm.System()
    for _ in range(n):
        system.addParticle(28.0)
    add_force(system, "so3krates-silicon", [14] * n, periodic=True, device="cpu")
    assert system.getNumForces() == 1
