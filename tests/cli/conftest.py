"""Every test of the command line works in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ethanol_file() -> str:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=0)
    write("ethanol.xyz", atoms)
    return "ethanol.xyz"


@pytest.fixture
def copper_file() -> str:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=0)
    write("copper.extxyz", atoms)
    return "copper.extxyz"
