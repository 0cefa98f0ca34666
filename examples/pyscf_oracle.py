"""Density functional theory as an oracle: attncalc distill water.xyz --oracle pyscf_oracle:pbe

It needs PySCF: pip install pyscf. A function like `pbe`, which takes a total charge and a
multiplicity and returns an ASE calculator, can serve as an oracle.
"""

from __future__ import annotations

from typing import ClassVar

from ase import units
from ase.calculators.calculator import Calculator, all_changes
from pyscf import dft, gto


class PySCF(Calculator):
    """Kohn-Sham energy and forces of a molecule, with density fitting.

    Args:
        functional, basis: their names in PySCF.
        charge: total charge, e.
        multiplicity: 2S+1.
    """

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, functional: str, basis: str, charge: int, multiplicity: int) -> None:
        super().__init__()
        self._functional, self._basis = functional, basis
        self._electrons = {"charge": charge, "spin": multiplicity - 1}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """Compute energy [eV] and forces [eV/Å].

        Raises:
            RuntimeError: the density does not converge.
        """
        super().calculate(atoms, properties, system_changes)
        geometry = list(zip(self.atoms.symbols, self.atoms.positions, strict=True))
        molecule = gto.M(atom=geometry, basis=self._basis, verbose=0, **self._electrons)
        method = dft.KS(molecule, xc=self._functional).density_fit()
        method.grids.level = 3
        energy = method.kernel()
        if not method.converged:
            raise RuntimeError("the density did not converge")
        gradient = method.nuc_grad_method()
        gradient.grid_response = True  # then forces are the derivatives of this energy
        forces = -gradient.kernel() * (units.Hartree / units.Bohr)
        self.results = {"energy": energy * units.Hartree, "forces": forces}


def pbe(charge: int, multiplicity: int) -> PySCF:
    """PBE with the basis def2-SVP."""
    return PySCF("pbe", "def2-svp", charge, multiplicity)
