"""NPT dynamics of a crystal: 64 silicon atoms at 300 K and 5 GPa, in a cell of variable volume.

Run: python examples/04_npt_crystal.py; view the trajectory with: ase gui silicon-npt.traj
"""

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from attncalc import AttnCalculator

atoms = bulk("Si", a=5.40, cubic=True).repeat(2)
atoms.calc = AttnCalculator("so3krates-silicon")
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
Stationary(atoms)
pressure = {"pressure_au": 5 * units.GPa, "pdamp": 200 * units.fs}
heat = {"temperature_K": 300, "tdamp": 100 * units.fs}
dynamics = IsotropicMTKNPT(atoms, 2 * units.fs, **heat, **pressure, trajectory="silicon-npt.traj")
rows = []


def observe():
    pressure = -atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.GPa
    rows.append((atoms.get_temperature(), pressure, (atoms.get_volume() / 8) ** (1 / 3)))


dynamics.attach(observe)
dynamics.run(500)
temperature, pressure, a = np.mean(rows[200:], axis=0)
print(f"mean of the last 300 steps: {temperature:.0f} K, {pressure:.2f} GPa, a = {a:.3f} Å")
