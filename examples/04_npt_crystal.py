"""A crystal at 300 K and 5 GPa: 108 atoms of copper in a box that follows the pressure.

Run: python examples/04_npt_crystal.py; open the trajectory with: ase gui copper-npt.traj
"""

from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from attncalc import AttnCalculator

MODEL = Path(__file__).parents[1] / "tests/models/cu-emt.safetensors"  # copper like ASE's EMT

atoms = bulk("Cu", a=3.58, cubic=True).repeat(3)
atoms.calc = AttnCalculator(MODEL)
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
Stationary(atoms)
pressure = {"pressure_au": 5 * units.GPa, "pdamp": 200 * units.fs}
heat = {"temperature_K": 300, "tdamp": 100 * units.fs}
dynamics = IsotropicMTKNPT(atoms, 4 * units.fs, **heat, **pressure, trajectory="copper-npt.traj")
rows = []


def observe():
    pressure = -atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.GPa
    rows.append((atoms.get_temperature(), pressure, (4 * atoms.get_volume() / 108) ** (1 / 3)))


dynamics.attach(observe)
dynamics.run(500)
temperature, pressure, a = np.mean(rows[200:], axis=0)
print(f"mean of the last 300 steps: {temperature:.0f} K, {pressure:.2f} GPa, a = {a:.3f} Å")
