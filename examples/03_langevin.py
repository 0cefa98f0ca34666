"""Run 1 ps of Langevin dynamics of ethanol at 300 K; print mean temperature and C-O bond length.

Run: python examples/03_langevin.py; view the trajectory with: ase gui ethanol-300K.traj
"""

import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE

from attncalc import AttnCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = AttnCalculator("so3krates-ethanol")
FIRE(atoms, logfile=None).run(fmax=0.01, steps=300)

rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
dynamics = LangevinBAOAB(
    atoms,
    timestep=0.5 * units.fs,
    temperature_K=300,
    T_tau=50 * units.fs,
    rng=rng,
    trajectory="ethanol-300K.traj",
    loginterval=10,
)
dynamics.run(2000)

frames = read("ethanol-300K.traj", "50:")  # without the first quarter: equilibration
temperatures = [frame.get_temperature() for frame in frames]
bonds = [frame.get_distance(1, 2) for frame in frames]
print(f"mean temperature {np.mean(temperatures):.0f} K, fluctuation {np.std(temperatures):.0f} K")
print(f"C-O bond {np.mean(bonds):.3f} ± {np.std(bonds):.3f} Å")
print(f"{atoms.calc.n_rebuilds} neighbour lists in {atoms.calc.n_updates} steps")
