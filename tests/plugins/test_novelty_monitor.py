"""Every program is told of atoms outside the training, once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule

from attncalc import Evaluator, System, load
from attncalc.calculator import LOOK_EVERY
from attncalc.plugins.batch_evaluator import BatchEvaluator
from attncalc.plugins.ipi_driver import Driver
from attncalc.plugins.novelty_monitor import NoveltyMonitor

MODEL = "so3krates-ethanol"
OUTSIDE = r"outside the training data: atom 3 \(H\)"


def torn() -> Atoms:
    """Ethanol, the third atom of which is away."""
    atoms = molecule("CH3CH2OH")
    atoms.positions[3] += 1.0
    return atoms


def test_it_looks_at_the_first_and_every_twentieth_and_warns_once() -> None:
    evaluator, look = Evaluator(load(MODEL, device="cpu")), NoveltyMonitor()
    fine, outside = map(System.from_ase, (molecule("CH3CH2OH"), torn()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(fine, evaluator(fine))
        for _ in range(LOOK_EVERY - 1):
            look(outside, evaluator(outside))
    with pytest.warns(UserWarning, match=r"outside the training data: atom 13 \(H\)"):
        look(outside, evaluator(outside), np.arange(10, 19))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(LOOK_EVERY):
            look(outside, evaluator(outside))


def test_batches() -> None:
    system = System.from_ase([molecule("CH3CH2OH"), torn()])
    names = ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "charge", "spin")
    with pytest.warns(UserWarning, match=r"outside the training data: atom 12 \(H\)"):
        BatchEvaluator(MODEL, device="cpu")(**{name: getattr(system, name) for name in names})


def test_ipi(tmp_path) -> None:
    molecule("CH3CH2OH").write(tmp_path / "ethanol.xyz")
    driver = Driver(MODEL, str(tmp_path / "ethanol.xyz"), device="cpu")
    with pytest.warns(UserWarning, match=OUTSIDE):
        driver(np.eye(3), torn().positions / units.Bohr)


def test_openmm() -> None:
    openmm = pytest.importorskip("openmm", reason='needs openmm: pip install "attncalc[openmm]"')
    from attncalc.plugins.openmm import add_force

    atoms, system = torn(), openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    add_force(system, MODEL, atoms.numbers, device="cpu")
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10)
    with pytest.warns(UserWarning, match=OUTSIDE):
        context.getState(energy=True)
