"""Make cu-emt.safetensors, a tiny So3krates of copper after ASE's EMT, for tests of engines.

    python tests/models/make_cu_emt.py      (under four minutes on one core)

The data are made here: strained, rattled fcc cells of 4 to 32 atoms with volumes within 10 % of
the equilibrium and displacements as at 0 to 900 K. The model is trained on energies, forces and
stress, and its errors on structures that it has not seen are in its own training info.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from attncalc import data, train
from attncalc.calculator import AttnCalculator
from attncalc.data.errors import errors, predict
from attncalc.model_file import save

MODEL = Path(__file__).with_name("cu-emt.safetensors")
REPEATS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)]
SIZES = {"training": 320, "validation": 40, "test": 80}
LATTICE_CONSTANT = 3.59  # Å, about EMT's

RECIPE = train.Recipe(
    name="cu-emt",
    data="made by make_cu_emt.py",
    split={},
    config={
        "cutoff": 5.0,
        "num_features": 32,
        "num_heads": 2,
        "degrees": (1, 2),
        "num_layers": 2,
        "num_basis": 16,
        "mlp_after_attention": "none",
        "head_features": 32,
    },
    epochs=90,
    batch_size=4,
    optimizer="adam",
    learning_rate=3e-3,
    schedule="exponential",
    final_learning_rate=3e-5,
    warmup_steps=50,
    ema_decay=0.99,
    penalty="square",
    energy_weight=10.0,
    force_weight=1.0,
    stress_weight=300.0,
    compile="never",
    seed=1,
)


def structure(rng: np.random.Generator, repeat: tuple[int, int, int]) -> Atoms:
    """A copper crystal, strained and shaken, with EMT's labels."""
    atoms = bulk("Cu", "fcc", a=LATTICE_CONSTANT, cubic=True).repeat(repeat)
    shear = rng.normal(scale=0.015, size=(3, 3))
    strain = (shear + shear.T) / 2 + np.eye(3) * ((1 + rng.uniform(-0.1, 0.1)) ** (1 / 3) - 1)
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += rng.normal(scale=rng.uniform(0.0, 0.15), size=atoms.positions.shape)
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    return atoms


def relaxed_lattice_constant(calculator) -> float:
    """Å, of fcc copper by FrechetCellFilter, starting 3 % away from EMT's."""
    atoms = bulk("Cu", "fcc", a=1.03 * LATTICE_CONSTANT, cubic=True)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
    return float(atoms.get_volume() ** (1 / 3))


def main() -> None:
    torch.set_num_threads(1)
    started = time.monotonic()
    rng = np.random.default_rng(7)
    frames = [structure(rng, REPEATS[k % len(REPEATS)]) for k in range(sum(SIZES.values()))]
    dataset = data.from_ase(frames, source="ASE EMT, strained and rattled fcc Cu")
    training, validation, test = data.split(dataset, list(SIZES.values()), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        done = train.fit(RECIPE, training, validation, folder)
    potential = done.potential
    found = errors(predict(potential, test), test)
    lattice = {
        "model": relaxed_lattice_constant(AttnCalculator(potential)),
        "emt": relaxed_lattice_constant(EMT()),
    }
    potential.training_info.update(
        data=dataset.source,
        level_of_theory="ASE EMT",
        n_train=len(training),
        n_validation=len(validation),
        n_test=len(test),
        test_errors=dataclasses.asdict(found),
        lattice_constant=lattice,
        seed=RECIPE.seed,
        command="python tests/models/make_cu_emt.py",
    )
    save(potential, MODEL)
    print(found, lattice, sep="\n")
    print(f"{MODEL.stat().st_size / 1000:.0f} kB, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
