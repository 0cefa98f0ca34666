"""Closed-shell ions, from neutral molecules by adding or removing a proton."""

from __future__ import annotations

from functools import cache

import numpy as np
from rdkit import Chem

# atoms that lose a proton, first the acidic ones
_ACIDIC = (
    "[OX2H][CX3,SX4,PX4,NX3+]=,-[O,S]",
    "[SX2H]",
    "[OX2H]c",
    "[NX3;H1,H2]([CX3,SX4]=O)[CX3,SX4]=O",
    "[NX3;H1,H2]S(=O)=O",
    "[nH]",
    "[OX2H][#6]=[#6,#7]",
    "[OX2H]N=C",
    "[OX2H]",
    "[CX4;H1,H2,H3]([C,S,N+]=O)[C,S,N+]=O",
    "[CX4;H1,H2](C#N)C#N",
)
# atoms that accept a proton, first the basic ones
_BASIC = (
    "[NX3;!$(N[C,S,P]=[O,S,N]);!$(Nc);!$(N[N+]);!$(N[O,F,Cl])]",
    "[NX2]=C(N)",
    "[nX2]",
    "[NX2]=C",
    "[NX3]c",
    "[PX3]",
    "[SX2;!$(S[!#6])]",
    "[OX1]=[CX3]",
    "[OX2;!$(O[!#6])]",
)


@cache
def _patterns(charge: int) -> tuple[Chem.Mol, ...]:
    return tuple(map(Chem.MolFromSmarts, _BASIC if charge > 0 else _ACIDIC))


def ionised(rng: np.random.Generator, mol: Chem.Mol | None, charge: int) -> Chem.Mol | None:
    """Add a proton to a neutral molecule or remove one; None if no atom is suitable.

    Args:
        rng: chooses the atom, in three cases of four among the most acidic or basic ones.
        mol: the molecule, or None.
        charge: 1 or -1.
    """
    if mol is None or Chem.GetFormalCharge(mol):
        return None
    fit = [found for p in _patterns(charge) if (found := mol.GetSubstructMatches(p))]
    if not fit:
        return None
    matches = fit[0] if rng.random() < 0.75 else fit[rng.integers(len(fit))]
    atom_index = matches[rng.integers(len(matches))][0]
    ion = Chem.RWMol(mol)
    atom = ion.GetAtomWithIdx(atom_index)
    n_hydrogens = atom.GetTotalNumHs() + charge
    if atom.GetFormalCharge() or n_hydrogens < 0:
        return None
    atom.SetFormalCharge(charge)
    atom.SetNoImplicit(True)
    atom.SetNumExplicitHs(n_hydrogens)
    return ion if Chem.SanitizeMol(ion, catchErrors=True) == 0 else None
