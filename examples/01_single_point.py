"""Compute energy, energies per atom and forces of a molecule, and verify the physics of the model.

Run: python examples/01_single_point.py
"""

import numpy as np
from ase.build import molecule

from attncalc import AttnCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = AttnCalculator("so3krates-ethanol")  # a shipped model (see: attncalc models) or a path

energy = atoms.get_potential_energy()  # eV
forces = atoms.get_forces()  # [n_atoms, 3] eV/Å
energies = atoms.get_potential_energies()  # [n_atoms] eV, their sum is the energy
print(f"energy {energy:.4f} eV, sum over atoms {energies.sum():.4f} eV")
print(f"largest force {np.linalg.norm(forces, axis=1).max():.4f} eV/Å")
print(f"net force {np.linalg.norm(forces.sum(axis=0)):.1e} eV/Å")

atoms.calc.verify(atoms)  # F = -dE/dr, rotation, permutation ...: a table, or raises an error
atoms.write("ethanol.extxyz")  # with energy and forces
