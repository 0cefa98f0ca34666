"""Bonds and their changes, displacements, and the choice of unlike structures."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[distill]")
from attncalc import AttnCalculator
from attncalc.distill.shapes import SOFTEST, Shape, farthest_first, fingerprint
from attncalc.distill.start import displaced, probes, stiffness_of


@pytest.fixture
def ethanol() -> Shape:
    return Shape.of(molecule("CH3CH2OH"))


def test_bonds(ethanol: Shape) -> None:
    assert ethanol.bonds.sum() == 2 * 8
    assert (ethanol.bonds == ethanol.bonds.T).all()
    copper = Shape.of(bulk("Cu", cubic=True))
    assert copper.bonds.sum() == 4 * 3  # of nearest images


def test_a_broken_bond_and_a_new_one_are_named(ethanol: Shape) -> None:
    positions = ethanol.atoms.positions
    assert ethanol.change(positions) == ""
    far = positions.copy()
    h = int(np.flatnonzero(ethanol.bonds[2])[-1])  # of the oxygen
    far[h] += 1.5 * (far[h] - far[2])
    assert ethanol.change(far) == f"bond O2-H{h} broke"
    near = positions.copy()
    near[h] = positions[0] + 0.7 * (positions[h] - positions[0]) / np.linalg.norm(
        positions[h] - positions[0]
    )
    assert "bond" in ethanol.change(near)
    assert ethanol.fault(positions) == ""
    on_top = positions.copy()
    on_top[h] = positions[2] + [0, 0, 0.3]
    assert ethanol.fault(on_top) == "atoms too close"
    assert ethanol.fault(np.full_like(positions, np.nan)) == "positions not finite"


def test_displacements_are_thermal_and_stiff_along_bonds(ethanol: Shape) -> None:
    rng = np.random.default_rng(0)
    moved = np.array([ethanol.displacements(rng, 300.0) for _ in range(500)])
    np.testing.assert_allclose(moved.sum(1), 0, atol=1e-6)  # no translation
    widths = np.sqrt((moved**2).sum((1, 2)).mean())
    assert widths < np.sqrt(3 * 9 * units.kB * 300 / SOFTEST)
    bonded = ethanol.atoms.get_all_distances()[ethanol.bonds]
    lengths = [
        np.linalg.norm(p[:, None] - p[None], axis=-1)[ethanol.bonds]
        for p in ethanol.atoms.positions + moved
    ]
    # sqrt(kT / k) of the spring of a bond, which others stiffen, is 0.03 Å
    assert 0.01 < np.std(np.array(lengths) - bonded) < 0.04


def test_displacements_of_a_metal_have_its_thermal_energy() -> None:
    """Springs of covalent bonds are twenty times too stiff for it."""
    copper, rng = bulk("Cu", cubic=True) * (2, 2, 2), np.random.default_rng(0)
    shape, calc = Shape.of(copper), EMT()
    lowest = calc.get_potential_energy(copper)

    def energies(structures) -> list[float]:
        return [calc.get_potential_energy(atoms) - lowest for atoms in structures]

    found = probes(rng, shape, 300.0, 3)
    factor = stiffness_of(shape, found, energies(found))
    assert 0.04 < factor < 0.07
    thermal = (3 * len(copper) - 3) * units.kB * 300 / 2
    assert np.mean(energies(found)) < 0.1 * thermal
    # the temperatures are 0.2 to 1.5 times the target, 0.85 in the mean
    moved = displaced(rng, shape, 300.0, 40, factor)
    assert np.mean(energies(moved)) / thermal == pytest.approx(0.85, rel=0.15)


def test_bonds_of_an_adsorbate_keep_their_stiffness() -> None:
    slab = fcc111("Cu", (2, 2, 3), vacuum=8)
    add_adsorbate(slab, molecule("CO"), 1.9, "ontop", mol_index=1)
    shape, rng = Shape.of(slab), np.random.default_rng(0)
    carbon, oxygen = (slab.get_chemical_symbols().index(one) for one in "CO")
    widths = []
    for factor in (1.0, 0.06):
        moved = np.array([shape.displacements(rng, 300.0, factor) for _ in range(100)])
        bonds = (slab.positions + moved)[:, carbon] - (slab.positions + moved)[:, oxygen]
        assert np.linalg.norm(bonds, axis=1).std() < 0.04  # sqrt(kT / k) is 0.03 Å
        widths.append(moved[:, :4].std())
    assert widths[1] > 2.5 * widths[0]
    # energies of the metal's springs are those that the others do not have
    (one,) = probes(rng, shape, 300.0, 1)
    of_metals, others = shape.spring_energies(one.positions - slab.positions)
    assert stiffness_of(shape, [one], [0.1 * of_metals + others]) == pytest.approx(0.1)
    assert stiffness_of(shape, [one], [0.5 * others]) == 1


def test_molecules_are_as_stiff_as_the_springs(ethanol: Shape) -> None:
    found = probes(np.random.default_rng(0), ethanol, 300.0, 3)
    lowest, *others = AttnCalculator("so3krates-ethanol").calculate_many([ethanol.atoms, *found])
    energies = [one["energy"] - lowest["energy"] for one in others]
    assert stiffness_of(ethanol, found, energies) == 1
    assert stiffness_of(ethanol, [], []) == 1


def test_fingerprints_do_not_know_the_order_or_place_of_atoms() -> None:
    atoms = molecule("CH3CH2OH")
    other = atoms[np.random.default_rng(0).permutation(len(atoms))]
    other.rotate(40, "xyz")
    other.positions += 3
    np.testing.assert_allclose(
        fingerprint(atoms, atoms.positions), fingerprint(other, other.positions), atol=1e-9
    )
    moved = atoms.positions.copy()
    moved[0, 0] += 0.1
    assert not np.allclose(fingerprint(atoms, moved), fingerprint(atoms, atoms.positions))


def test_farthest_first_takes_no_copy() -> None:
    known = np.array([[0.0]])
    candidates = np.array([[0.0], [1.0], [1.001], [5.0], [3.0], [0.01]])
    assert farthest_first(candidates, known, 10, 0.1) == [3, 4, 2]
    assert farthest_first(candidates, known, 2, 0.1) == [3, 4]
    assert farthest_first(candidates[:1], known, 2, 0.1) == []
