"""Conformers and hot frames of a molecule on a classical force field, by RDKit.

The force field is MMFF94 (Halgren, J. Comput. Chem. 17, 490, 1996) if it knows all atoms, else UFF
(Rappé et al., J. Am. Chem. Soc. 114, 10024, 1992). Both differ much from any label; what matters is
that the structures are diverse and need no call of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from attncalc.sampling.geometry import Floats, Integers

# kcal/mol/K
BOLTZMANN = 0.0019872
# acceleration of a force of 1 kcal/mol/Å on 1 u, in Å/fs²
ACCELERATION = 4.184e-4
# fs, and 1/fs: the dynamics only need to be stable and to decorrelate
TIMESTEP, FRICTION = 1.0, 0.02
# steps of a minimization
STEPS = 200


@dataclass(frozen=True)
class Conformer:
    """Molecule with hydrogen atoms and positions, near a minimum of a classical force field.

    Attributes:
        name: canonical SMILES without stereochemistry.
        mol: with hydrogen atoms.
        numbers: [n_atoms].
        positions: [n_atoms, 3] Å.
        charge: total charge, e.
    """

    name: str
    mol: Chem.Mol
    numbers: Integers
    positions: Floats
    charge: int


def embedded(
    rng: np.random.Generator, smiles: str, n: int, *, lowest: bool = False
) -> list[Conformer]:
    """Return conformers of a molecule, minimized if a force field knows it; none if RDKit fails.

    Conformers are made by distance geometry (Wang et al., J. Chem. Inf. Model. 60, 2044, 2020).

    Args:
        rng: gives the seed.
        smiles: the molecule.
        n: number of conformers.
        lowest: return only the one of lowest energy.
    """
    plain = Chem.MolFromSmiles(smiles)
    mol = Chem.AddHs(plain)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = int(rng.integers(1 << 30))
    parameters.maxIterations = 10  # some cages never succeed
    with rdBase.BlockLogs():  # warnings about guessed hybridization, which is good enough
        found = list(rdDistGeom.EmbedMultipleConfs(mol, n, parameters))
        if not found:
            parameters.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(mol, n, parameters))
    energies = []
    for conformer in found:
        field = force_field(mol, conformer)
        if field is not None:
            field.Minimize(maxIts=STEPS)
        energies.append(0.0 if field is None else field.CalcEnergy())
    if lowest and found:
        found = [found[int(np.argmin(energies))]]
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    name, charge = Chem.MolToSmiles(plain, isomericSmiles=False), Chem.GetFormalCharge(mol)
    return [
        Conformer(name, mol, numbers, np.array(mol.GetConformer(k).GetPositions()), charge)
        for k in found
    ]


def force_field(mol: Chem.Mol, conformer: int) -> Any:
    """Return RDKit's force field of a molecule, ready to use; None if it has none."""
    if mol.GetNumAtoms() < 2:
        return None
    with rdBase.BlockLogs():  # as above
        return _force_field(mol, conformer)


def _force_field(mol: Chem.Mol, conformer: int) -> Any:
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=conformer)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, confId=conformer)
    else:
        return None
    field.Initialize()
    return field


def langevin(
    rng: np.random.Generator, start: Conformer, temperature: float, n: int, stride: int
) -> list[Floats]:
    """Return frames of Langevin dynamics (BAOAB; Leimkuhler and Matthews, 2013) on the force field.

    Args:
        rng: source of the noise.
        start: molecule and initial positions.
        temperature: K.
        n: number of frames; none are returned if no force field knows the molecule.
        stride: steps between two frames.
    """
    field = force_field(start.mol, -1)
    if field is None:
        return []
    masses = np.array([atom.GetMass() for atom in start.mol.GetAtoms()])[:, None]
    thermal = np.sqrt(BOLTZMANN * temperature * ACCELERATION / masses)
    kept = np.exp(-FRICTION * TIMESTEP)
    noise = np.sqrt(1 - kept**2) * thermal

    def accelerations(positions: Floats) -> Floats:
        flat = positions.ravel().tolist()
        # CalcGrad uses distances from the last CalcEnergy: gradients are wrong without it
        field.CalcEnergy(flat)
        gradient: NDArray[Any] = np.array(field.CalcGrad(flat))
        return -ACCELERATION * gradient.reshape(-1, 3) / masses

    positions, frames = start.positions, []
    velocities = rng.normal(size=positions.shape) * thermal
    pull = accelerations(positions)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller drops unstable frames
        for step in range(1, n * stride + 1):
            velocities = velocities + 0.5 * TIMESTEP * pull
            positions = positions + 0.5 * TIMESTEP * velocities
            velocities = kept * velocities + noise * rng.normal(size=positions.shape)
            positions = positions + 0.5 * TIMESTEP * velocities
            pull = accelerations(positions)
            velocities = velocities + 0.5 * TIMESTEP * pull
            if step % stride == 0:
                frames.append(positions)
    return frames
