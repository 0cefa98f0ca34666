"""Barrier of the hydroxyl rotation of ethanol, trans to gauche: NEB with all images in one batch.

Run: python examples/05_neb.py; view the path with: ase gui ethanol-neb.extxyz
"""

from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.io import write
from ase.mep import NEB
from ase.optimize import FIRE

from attncalc import AttnCalculator


class SharedBatch(Calculator):
    """Calculator of one image. The first image that NEB asks evaluates all images in one batch."""

    implemented_properties = AttnCalculator.implemented_properties

    def calculate(self, atoms, properties, system_changes):
        for image, results in zip(images, model.calculate_many(images), strict=True):
            image.calc.atoms, image.calc.results = image.copy(), results


model = AttnCalculator("so3krates-ethanol")
trans, gauche = (molecule("CH3CH2OH") for _ in range(2))
gauche.set_dihedral(0, 1, 2, 3, 60, indices=[3])  # C-C-O-H
for atoms in (trans, gauche):
    atoms.calc = model
    FIRE(atoms, logfile=None).run(fmax=0.01, steps=300)
images = [trans, *(trans.copy() for _ in range(7)), gauche]
for image in images:
    image.calc = SharedBatch()
path = NEB(images, climb=True, method="improvedtangent", remove_rotation_and_translation=True)
path.interpolate("idpp")
FIRE(path, logfile=None).run(fmax=0.02, steps=300)
energies = [image.get_potential_energy() for image in images]
for name, end in (("trans -> gauche", 0), ("gauche -> trans", -1)):
    print(f"{name} {1e3 * (max(energies) - energies[end]):.1f} meV")
write("ethanol-neb.extxyz", images)
