"""Relax atoms and cell of a crystal at 0 and at 10 GPa, and print the stress that is reached.

Run: python examples/10_cell_relaxation.py
"""

import numpy as np
from ase import units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from attncalc import AttnCalculator

atoms = bulk("Si", a=5.6, cubic=True)
atoms.set_cell(atoms.cell @ [[1.03, 0.02, 0], [0, 0.98, 0], [0, 0, 1]], scale_atoms=True)
atoms.rattle(0.03, seed=0)
atoms.calc = AttnCalculator("so3krates-silicon")

for pressure in (0, 10):
    relaxed = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa)
    LBFGS(relaxed, logfile=None).run(fmax=1e-3, steps=300)
    fmax = np.linalg.norm(atoms.get_forces(), axis=1).max()
    stress = " ".join(f"{s:.2f}" for s in atoms.get_stress() / units.GPa)  # xx yy zz yz xz xy
    cell = "a b c {:.3f} {:.3f} {:.3f} Å, angles {:.1f} {:.1f} {:.1f}°".format(
        *atoms.cell.cellpar()
    )
    print(f"{pressure} GPa: stress {stress} GPa, largest force {fmax:.4f} eV/Å, {cell}")
    atoms.write(f"silicon-{pressure}GPa.extxyz")
