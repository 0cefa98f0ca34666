"""Phonons of silicon with phonopy: frequencies at Γ, X and L, and the heat capacity.

Run: pip install ".[phonons]"; python examples/07_phonons.py
"""

from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from attncalc import AttnCalculator

crystal = bulk("Si")
crystal.calc = AttnCalculator("so3krates-silicon", dtype="float64")
LBFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-5, steps=200)
unit_cell = PhonopyAtoms(crystal.symbols, cell=crystal.cell, positions=crystal.positions)
phonons = Phonopy(unit_cell, supercell_matrix=[4, 4, 4], primitive_matrix="P")
phonons.generate_displacements(distance=0.01)
supercells = [
    Atoms(cell.symbols, cell=cell.cell, positions=cell.positions, pbc=True)
    for cell in phonons.supercells_with_displacements
]
phonons.forces = [results["forces"] for results in crystal.calc.calculate_many(supercells)]
phonons.produce_force_constants()

points = {"Γ": [0, 0, 0], "X": [0.5, 0, 0.5], "L": [0.5, 0.5, 0.5]}
phonons.run_qpoints(list(points.values()))
for name, frequencies in zip(points, phonons.qpoints.frequencies, strict=True):
    print(name, " ".join(f"{f:.3f}" for f in frequencies), "THz")  # negative means imaginary
phonons.run_mesh([20, 20, 20], is_gamma_center=True)
phonons.run_thermal_properties(temperatures=[300], cutoff_frequency=1e-3)
print(f"heat capacity at 300 K {phonons.thermal_properties.heat_capacity[0]:.2f} J/K/mol")
phonons.save("silicon-phonons.yaml")
