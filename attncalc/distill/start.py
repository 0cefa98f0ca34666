"""First structures of a distillation: a relaxation by the oracle, displacements, turned bonds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from attncalc.distill.labels import LabelStore
from attncalc.distill.shapes import Floats, Shape
from attncalc.sampling.geometry import overlaps, torsions, turned
from attncalc.sampling.relaxation import relaxations, rounded

# steps of the relaxation, and number of its structures that are trained on
RELAX_STEPS, FROM_RELAXATION = 40, 8
# temperatures of the displacements, relative to the target temperature
COLDEST, HOTTEST = 0.2, 1.5
# structures that show how stiff the relaxed one is, and the smallest stiffness
N_PROBES, LEAST_STIFF = 3, 0.02
# most structures with turned bonds that displacements start from; trials per requested structure
MOST_TURNED, TRIALS = 20, 20


def relaxed(store: LabelStore, structure: Atoms) -> list[Atoms]:
    """Relax a structure by the oracle, and return structures of its path, the lowest one last.

    Raises:
        ValueError: the oracle refuses the structure; the message has its reason.
    """
    ((path, problem),) = relaxations(store, [structure], RELAX_STEPS)
    if not path:
        raise ValueError(f"the oracle refuses the structure: {problem}")
    path.sort(key=lambda step: -step[1].energy)
    kept = np.unique(np.linspace(0, len(path) - 1, FROM_RELAXATION).astype(int))
    return [path[k][0] for k in kept]


def probes(rng: np.random.Generator, shape: Shape, temperature: float, n: int) -> list[Atoms]:
    """Draw n structures around a relaxed one, see `stiffness_of`."""
    drawn = (shape.atoms.positions + shape.displacements(rng, temperature) for _ in range(n))
    return [rounded(shape.atoms, one) for one in drawn if not shape.fault(one)]


def stiffness_of(shape: Shape, structures: Sequence[Atoms], energies: Sequence[float]) -> float:
    """Return the stiffness of springs between metal atoms relative to covalent bonds, at most 1.

    Metals, whose atoms have many neighbours, are ten to twenty times as soft. It is 1 if there are
    no such springs, or if the energies do not show it.

    Args:
        shape: the relaxed structure.
        structures: from `probes`.
        energies: of the structures, eV, relative to the relaxed one.
    """
    moved = [atoms.positions - shape.atoms.positions for atoms in structures]
    of_metals, others = np.sum([(0.0, 0.0), *map(shape.spring_energies, moved)], axis=0)
    of_oracle = sum(energies) - others
    if of_metals == 0 or of_oracle <= 0:
        return 1.0
    return float(np.clip(of_oracle / of_metals, LEAST_STIFF, 1.0))


def displaced(
    rng: np.random.Generator, shape: Shape, temperature: float, n: int, stiffness: float
) -> list[Atoms]:
    """Draw structures around a relaxed one and around those with turned bonds.

    Args:
        rng: source of all random choices.
        shape: the relaxed structure.
        temperature: target temperature, K; that of a displacement is 0.2 to 1.5 times this.
        n: number of structures; fewer are returned if atoms come too close in many trials.
        stiffness: of springs between metal atoms, see `stiffness_of`.
    """
    starts = [shape.atoms.positions, *_turned(rng, shape)]
    found: list[Atoms] = []
    for trial in range(TRIALS * n):
        if len(found) == n:
            break
        # every other one around the minimum
        start = starts[0 if trial % 2 else int(rng.integers(len(starts)))]
        kelvin = temperature * rng.uniform(COLDEST, HOTTEST)
        atoms = rounded(shape.atoms, start + shape.displacements(rng, kelvin, stiffness))
        if not shape.fault(atoms.positions):
            found.append(atoms)
    return found


def _turned(rng: np.random.Generator, shape: Shape) -> Sequence[Floats]:
    """Return positions with single bonds turned at random; none if RDKit finds no bonds."""
    atoms = shape.atoms
    if atoms.pbc.any():
        return []
    with rdBase.BlockLogs():
        try:
            mol = _mol(atoms)
        except (ValueError, RuntimeError):  # metals, radicals, clusters
            return []
    bonds = torsions(mol)[1]
    found = []
    for _ in range(MOST_TURNED if bonds else 0):
        positions = atoms.positions
        for bond in bonds:
            positions = turned(mol, positions, bond, rng.uniform(-np.pi, np.pi))
        if not overlaps(mol, atoms.numbers, positions) and not shape.fault(positions):
            found.append(positions)
    return found


def _mol(atoms: Atoms) -> Chem.Mol:
    """Return RDKit's molecule of a structure, with bond orders."""
    lines = [
        f"{s} {x:.6f} {y:.6f} {z:.6f}"
        for s, (x, y, z) in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)
    ]
    mol = Chem.MolFromXYZBlock("\n".join([str(len(atoms)), "", *lines, ""]))
    rdDetermineBonds.DetermineBonds(mol, charge=int(atoms.info["charge"]))
    Chem.GetSymmSSSR(mol)
    return mol
