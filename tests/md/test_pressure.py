"""Pressure in the log of every ensemble, for structures that are periodic in all directions."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from toys import gas, zeros_of

from attncalc import AttnCalculator, System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md.checkpoint import save_checkpoint
from attncalc.md.job import run_structures

FS = units.fs
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
INTEGRATORS = {
    "nve": md.Verlet(2 * FS),
    "langevin": md.Langevin(2 * FS, 300.0, 0.01 / FS),
    "bussi": md.Bussi(2 * FS, 300.0, 20 * FS),
}


def logged(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.parametrize("name", INTEGRATORS)
def test_an_ideal_gas_has_its_pressure(name: str, tmp_path: Path) -> None:
    """N kB T / V at any instant, also if the drift of the whole is conserved."""
    integrator, path = INTEGRATORS[name], tmp_path / "run.csv"
    given = {"temperature": 300.0} if name == "nve" else {}
    first = integrator.init(zeros_of, gas(5, np.tile(9 * np.eye(3), (2, 1, 1))), **given)
    md.run(integrator, zeros_of, first, 20, callbacks=[md.Log(path, every=5)])
    rows = logged(path)
    assert len(rows) == 10
    for row in rows:
        ideal = 5 * units.kB * row["temperature_K"] / row["volume_A3"] / units.GPa
        assert row["pressure_GPa"] == pytest.approx(ideal, rel=1e-12)


def test_at_rest_it_is_the_slope_of_the_energy() -> None:
    force, atoms = Evaluator(load(str(COPPER)).to(torch.float64)), crystal()
    state = INTEGRATORS["nve"].init(force, atoms, temperature=0.0)
    energies = []
    for strain in (-1e-4, 1e-4):
        deformed = atoms.copy()
        deformed.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        energies.append((float(force(System.from_ase(deformed)).energy), deformed.get_volume()))
    (low, small), (high, large) = energies
    assert float(state.pressure) == pytest.approx(-(high - low) / (large - small), rel=1e-4)
    assert abs(float(state.pressure)) > 0.01


@pytest.mark.parametrize("fixed", [0, 3])
def test_ase_logs_the_same(fixed: int, tmp_path: Path) -> None:
    model, atoms = load(str(COPPER)), crystal()
    atoms.set_momenta(np.random.default_rng(2).normal(size=(len(atoms), 3)))
    atoms.set_constraint(FixAtoms(range(fixed)))
    settings: dict[str, Any] = {"n_steps": 2, "every": 1}
    for ensemble in ("nve", "nvt"):
        one = md.Settings(ensemble, **settings)
        run_structures(
            [atoms.copy()], Evaluator(model), one, tmp_path / f"{ensemble}.h5md", info={}
        )
        other = atoms.copy()
        other.calc = AttnCalculator(model)
        md.run_with_ase(other, one, tmp_path / f"{ensemble}-ase.xyz")
        ours, theirs = (logged(tmp_path / f"{ensemble}{end}.csv")[0] for end in ("", "-ase"))
        assert ours["pressure_GPa"] == pytest.approx(theirs["pressure_GPa"], rel=1e-4)
        assert theirs["pressure_GPa"] != 0


def test_molecules_have_none(tmp_path: Path) -> None:
    """In a batch with a gas, it is no number; alone, there is no column, nor for a slab."""
    nve = INTEGRATORS["nve"]
    water, box = molecule("H2O"), gas(5, 9 * np.eye(3)[None])[0]
    slab = box.copy()
    slab.pbc = [True, True, False]
    for name, structures in (("one", [water]), ("two", [water, box]), ("slab", [slab])):
        first = nve.init(zeros_of, structures, temperature=300.0)
        md.run(nve, zeros_of, first, 2, callbacks=[md.Log(tmp_path / f"{name}.csv")])
    assert "pressure_GPa" not in logged(tmp_path / "one.csv")[0]
    assert "pressure_GPa" not in logged(tmp_path / "slab.csv")[0]
    of_water, of_gas = logged(tmp_path / "two.csv")[:2]
    assert np.isnan(of_water["pressure_GPa"])
    assert of_gas["pressure_GPa"] > 0


def test_a_run_of_version_0_1_goes_on_without_the_column(tmp_path: Path) -> None:
    """Its checkpoint has no strain gradient."""
    nve, path = INTEGRATORS["nve"], tmp_path / "run.csv"
    old = replace(nve.init(zeros_of, gas(5, 9 * np.eye(3)[None])), strain_gradient=None)
    md.run(nve, zeros_of, old, 4, callbacks=[md.Log(path, every=2)])
    save_checkpoint(tmp_path / "run.ckpt", nve, old, {})
    for _ in range(2):
        state = md.load_checkpoint(tmp_path / "run.ckpt").state
        last = md.run(nve, zeros_of, state, 6, callbacks=[md.Log(path, every=2)])
        assert last.strain_gradient is None
        save_checkpoint(tmp_path / "run.ckpt", nve, last.replace(limit=state.limit), {})
    assert [row["time_fs"] for row in logged(path)] == list(range(0, 26, 4))
    assert "pressure_GPa" not in logged(path)[0]
