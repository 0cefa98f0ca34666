"""The copper model that other tests borrow is what its file says."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from attncalc import load
from attncalc.calculator import AttnCalculator

MODEL = Path(__file__).with_name("cu-emt.safetensors")


def test_size_and_origin():
    assert MODEL.stat().st_size < 80_000
    info = load(MODEL).training_info
    assert info["command"] == "python tests/models/make_cu_emt.py"
    assert info["test_errors"]["force_mae"] < 0.05
    assert info["test_errors"]["energy_per_atom_mae"] < 0.003
    assert info["test_errors"]["stress_mae"] < 0.002


@pytest.mark.parametrize("start", [3.5, 3.7])
def test_the_lattice_constant_is_that_of_emt(start):
    constants = []
    for calculator in (AttnCalculator(str(MODEL), device="cpu"), EMT()):
        atoms = bulk("Cu", "fcc", a=start, cubic=True)
        atoms.calc = calculator
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
        constants.append(atoms.get_volume() ** (1 / 3))
    assert constants[0] == pytest.approx(constants[1], abs=0.02)


def test_forces_are_those_of_emt():
    rng = np.random.default_rng(123)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 2, 2))
    atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
    atoms.calc = EMT()
    reference = atoms.get_forces()
    atoms.calc = AttnCalculator(str(MODEL), device="cpu")
    assert np.abs(atoms.get_forces() - reference).mean() < 0.05
    assert reference.std() > 0.5
