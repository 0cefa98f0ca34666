"""ASE knows the calculator by its name."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ase.build import molecule
from ase.calculators.calculator import get_calculator_class
from ase.cli.main import main
from ase.io import read, write

from attncalc import AttnCalculator
from attncalc.plugins import ase as _  # noqa: F401  # the installed package's entry point does this


def test_by_name():
    calculator = get_calculator_class("attncalc")("so3krates-ethanol", device="cpu")
    assert isinstance(calculator, AttnCalculator)


def test_ase_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("ethanol.xyz", molecule("CH3CH2OH"))
    parameters = ["-p", "model=so3krates-ethanol,device=cpu", "-o", "done.xyz"]
    main(args=["run", "attncalc", "ethanol.xyz", *parameters])
    expected = AttnCalculator("so3krates-ethanol", device="cpu")
    assert read("done.xyz").get_potential_energy() == pytest.approx(
        expected.get_potential_energy(molecule("CH3CH2OH")), abs=1e-6
    )


def test_the_start_of_ase_does_not_wait_for_torch():
    script = "import sys, ase.io; import attncalc.plugins.ase; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
