"""Vibrations of ethanol: 21 real frequencies at a minimum, and the zero-point energy.

Run: python examples/06_vibrations.py; view a mode with: ase gui ethanol-vibrations.26.traj
"""

import numpy as np
from ase.build import molecule
from ase.optimize import LBFGS
from ase.vibrations import Vibrations

from attncalc import AttnCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = AttnCalculator("so3krates-ethanol", dtype="float64")  # for small displacements
LBFGS(atoms, logfile=None).run(fmax=1e-4, steps=500)

vibrations = Vibrations(atoms, name="ethanol-vibrations", delta=0.005)
vibrations.clean()  # removes forces of an earlier run
vibrations.run()
vibrations.summary()  # prints a table and the zero-point energy
frequencies = vibrations.get_frequencies()  # [27] 1/cm; the first six are rigid motions
print(f"largest of the six rigid motions {np.abs(frequencies[:6]).max():.1f} 1/cm")
print(f"vibrations {frequencies[6].real:.0f} to {frequencies[-1].real:.0f} 1/cm")
vibrations.write_mode(26, nimages=20)  # animation of the O-H stretch
