"""ASE trajectories: labels as a run of ASE writes them, charge and spin, and bad files."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.io.trajectory import Trajectory
from ase.md.verlet import VelocityVerlet

from attncalc import data


def test_frames_of_a_run(tmp_path):
    path = tmp_path / "run.traj"
    atoms = bulk("Cu") * (2, 2, 2)
    atoms.rattle(0.1, seed=0)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = EMT()
    labels = []
    with Trajectory(path, "w", atoms) as file:
        dynamics = VelocityVerlet(atoms, 5 * units.fs)
        dynamics.attach(file.write)
        dynamics.attach(
            lambda: labels.append(
                (
                    atoms.get_potential_energy(),
                    atoms.get_forces(apply_constraint=False),
                    atoms.get_stress(voigt=False, apply_constraint=False),
                    atoms.get_positions(),
                )
            )
        )
        atoms.get_stress()
        dynamics.run(3)
    before = path.read_bytes()
    found = data.read(path)
    assert len(found) == len(labels) == 4
    assert found.source == "run.traj"
    for k, (energy, forces, _, positions) in enumerate(labels):
        assert found.energies[k] == pytest.approx(energy, rel=1e-13)
        np.testing.assert_allclose(found.forces[k], forces, rtol=1e-12)  # of the held atom, too
        np.testing.assert_array_equal(found.structures[k].positions, positions)
        assert found.structures[k].pbc.all()
        assert found.structures[k].constraints == []
    np.testing.assert_allclose(found.stress, [stress for _, _, stress, _ in labels], rtol=1e-12)
    assert path.read_bytes() == before


def test_structures_of_different_size_charge_and_label_set(tmp_path):
    frames = [molecule("H2O"), molecule("OH")]
    for k, atoms in enumerate(frames):
        atoms.info |= {"charge": -k, "spin": 1, "DFT_energy": 1.0 + k, "split": "train"}
        atoms.set_array("DFT_forces", np.full((len(atoms), 3), 0.5))
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    write(tmp_path / "a.traj", frames)
    found = data.read(tmp_path / "a.traj")
    assert found.energies.tolist() == [-1.0, -1.0]
    assert found.forces is None
    assert [atoms.info for atoms in found.structures] == [atoms.info for atoms in charged(frames)]
    assert found.splits["train"].tolist() == [0, 1]
    other = data.read(tmp_path / "a.traj", labels="DFT", energy_unit="kcal/mol")
    np.testing.assert_allclose(other.energies, np.array([1.0, 2.0]) * units.kcal / units.mol)


def charged(frames: list[Atoms]) -> list[Atoms]:
    return [Atoms(info={key: a.info[key] for key in ("charge", "spin")}) for a in frames]


def test_bad_files(tmp_path):
    path = tmp_path / "a.traj"
    path.write_text("text")
    with pytest.raises(ValueError, match=r"^a\.traj: the file is truncated, damaged or no ASE"):
        data.read(path)
    write(path, molecule("H2O"))
    with pytest.raises(ValueError, match=r"^a\.traj: structure 0 has no energy"):
        data.read(path)
    with Trajectory(path, "w"):
        pass
    with pytest.raises(ValueError, match=r"^a\.traj: it contains no structures"):
        data.read(path)
