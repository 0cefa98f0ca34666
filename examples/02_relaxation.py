"""Relax a distorted molecule until its forces vanish, and write the path.

Run: python examples/02_relaxation.py; view the path with: ase gui ethanol-relaxation.traj
"""

import numpy as np
from ase.build import molecule
from ase.optimize import FIRE  # or LBFGS, BFGS ...: any optimizer of ASE

from attncalc import AttnCalculator

atoms = molecule("CH3CH2OH")
atoms.rattle(0.05, seed=1)
atoms.calc = AttnCalculator("so3krates-ethanol")
start = atoms.get_potential_energy()

optimizer = FIRE(atoms, trajectory="ethanol-relaxation.traj", logfile=None)
converged = optimizer.run(fmax=0.01, steps=300)

fmax = np.linalg.norm(atoms.get_forces(), axis=1).max()
print(f"{'converged' if converged else 'NOT converged'} in {optimizer.nsteps} steps")
print(f"energy {start:.4f} -> {atoms.get_potential_energy():.4f} eV, largest force {fmax:.4f} eV/Å")
print(f"C-C {atoms.get_distance(0, 1):.3f} Å, C-O {atoms.get_distance(1, 2):.3f} Å")
atoms.write("ethanol-relaxed.extxyz")
