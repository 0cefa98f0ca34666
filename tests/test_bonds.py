"""Bonds that break: of molecules, across the boundaries of crystals, in the course of a run."""

import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from torch import float64, zeros

from attncalc import System, md
from attncalc.bonds import NONMETALS, Bonds, broken_text
from attncalc.md.watch import BondWatch
from attncalc.result import Result


def broken(before: Atoms, after: Atoms) -> list:
    return Bonds.of(System.from_ase(before)).broken(System.from_ase(after))


def test_a_molecule() -> None:
    before = molecule("CH3OH")
    after = before.copy()
    after.set_distance(0, 1, 2.3, fix=0)
    (bond,) = broken(before, after)
    assert str(bond) == "C-O of atoms 0 and 1 (1.42 -> 2.30 Å)"
    after.set_distance(0, 1, 2.1, fix=0)  # 1.6 times the sum of the radii is 2.27
    assert broken(before, after) == broken(before, before) == []


def test_a_crystal() -> None:
    """Across the boundary, with the cell that has changed; of many, the first are named."""
    before = bulk("C", cubic=True)
    after = before.copy()
    after.set_cell(after.cell * 1.2, scale_atoms=True)
    assert broken(before, after) == []
    after.positions[0] -= 0.7
    (bond,) = broken(before, after)
    assert 0 in (bond.i, bond.j)
    assert bond.before == pytest.approx(1.5459, abs=1e-3)
    assert bond.after > 1.6 * 1.52
    after.set_cell(after.cell * 2, scale_atoms=True)
    said = broken_text(broken(before, after))
    assert said.startswith("16 bonds broke: C-C of atoms 0 and ")
    assert said.endswith(", 13 more")


def test_images() -> None:
    """Each once: an atom with twelve neighbours, all images of its own, has six bonds."""
    before, after = bulk("Cu"), bulk("Cu")
    after.set_cell(after.cell * 2, scale_atoms=True)
    assert [(bond.i, bond.j) for bond in broken(before, after)] == [(0, 0)] * 6


def test_an_atom_alone() -> None:
    assert broken(Atoms("H"), Atoms("H")) == []


def no_force(system: System) -> Result:
    n, atoms = system.n_systems, system.n_atoms
    return Result(*(zeros(shape, dtype=float64) for shape in (n, atoms, (atoms, 3), (n, 3, 3))))


def flight(*structures: Atoms, temperature: float) -> list[str]:
    """Messages of 40 fs in which no force acts."""
    said: list[str] = []
    verlet = md.Verlet(timestep=units.fs)
    state = verlet.init(no_force, System.from_ase(list(structures)), temperature=temperature)
    md.run(verlet, no_force, state, 40, callbacks=[BondWatch(said.append, every=10)])
    return said


def test_a_run_tells_the_first_bonds_that_break() -> None:
    """Of the first system in which one does, with its own numbers of atoms."""
    water = molecule("H2O")
    assert flight(water, temperature=1.0) == []
    (said,) = flight(Atoms("H"), water, molecule("CH4"), temperature=3000.0)
    where = "system 2: step 10 (10.0 fs)"
    assert said == f"{where}: 1 bond broke: C-H of atoms 0 and 2 (1.09 -> 2.00 Å)"


def test_a_metal_has_no_bonds_that_a_run_tells() -> None:
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])
    assert broken(pair, Atoms("Cu2", [[0, 0, 0], [0, 0, 5]]))
    assert flight(pair, temperature=1e6) == []
    mixed = Atoms("CuCO", [[0, 0, 0], [0, 0, 1.9], [0, 0, 3.05]])
    found = Bonds.of(System.from_ase(mixed), NONMETALS)
    assert (found.edges.receivers.tolist(), found.edges.senders.tolist()) == ([1], [2])
