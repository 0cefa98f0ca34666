"""Evaluate all structures of a file in batches, compare with its labels, write the results.

Run: python examples/08_batch_evaluation.py; the command `attncalc eval` also does the comparison
"""

from pathlib import Path

import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from attncalc import AttnCalculator

FILE = Path(__file__).parents[1] / "tests/data/xtb_small_molecules_test.extxyz"  # GFN2-xTB labels

structures = read(FILE, ":")  # sizes, elements and cells may differ
calculator = AttnCalculator("so3krates-xtb-small-molecules")
results = calculator.calculate_many(structures)

energy_errors, force_errors = [], []
for atoms, found in zip(structures, results, strict=True):
    energy_errors.append((found["energy"] - atoms.get_potential_energy()) / len(atoms))
    force_errors.append(np.linalg.norm(found["forces"] - atoms.get_forces(), axis=1).max())
    # results of the model replace the labels; ASE does not accept those that only we have
    known = {name: value for name, value in found.items() if name in all_properties}
    atoms.calc = SinglePointCalculator(atoms, **known)
write("evaluated.extxyz", structures)

worst = int(np.argmax(force_errors))
print(f"{len(structures)} structures, {sum(map(len, structures))} atoms")
print(f"energy MAE {1e3 * np.abs(energy_errors).mean():.2f} meV/atom")
print(f"largest force error {max(force_errors):.3f} eV/Å, of {structures[worst].symbols} ({worst})")
