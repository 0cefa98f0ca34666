"""Every test of the command line works in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.build import bulk, molecule
from ase.io import write
from contract import randomise
from networks import tiny_so3krates

from attncalc.model_file import save
from attncalc.nn.so3krates import So3krates
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.potential import Potential


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


@pytest.fixture
def charged_model() -> str:
    """Weak random forces between H, C and O, with electrostatics of predicted charges."""
    torch.manual_seed(0)
    species = (1, 6, 8)
    network = So3krates(tiny_so3krates(4.0, predict_charges=True), len(species))
    randomise(network)
    term = DampedElectrostatics(ElectrostaticsConfig(7.0, True), species)
    potential = Potential(network, species, scale=[1e-3] * len(species), pair_terms=[term])
    save(potential, "charged.safetensors")
    return "charged.safetensors"
