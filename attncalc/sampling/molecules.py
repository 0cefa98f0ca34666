"""Molecules built at random from fragments, from all families in turn."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from rdkit import Chem, rdBase

from attncalc.sampling import fragments
from attncalc.sampling.ions import ionised

# most heavy atoms of a molecule
MOST_HEAVY = 20
# one molecule in this many is held out
HELD_OUT_OF = 20
# molecules with up to so many heavy atoms are never held out: a model must know water
TOO_SMALL_TO_HOLD_OUT = 3
# molecules drawn before a repeated one is taken
ATTEMPTS = 20
# valences of neutral atoms, for the enumeration of tiny molecules
_VALENCES = {"C": 4, "N": 3, "O": 2, "F": 1, "P": 3, "S": 2, "Cl": 1}
_HETEROATOMS = frozenset({7, 8, 9, 15, 16, 17})
# bonds between these heteroatoms are frequent in stable molecules, others are rare
_USUAL_BONDS = ({8, 15}, {7, 15}, {8, 16}, {7, 16}, {15, 16}, {9, 15}, {15, 17})
# ground states with two unpaired electrons
_TRIPLETS = ("O=O", "O=S", "S=S")
_BONDS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


@dataclass(frozen=True)
class Molecule:
    """Molecule that was drawn.

    Attributes:
        family: key of `attncalc.sampling.fragments.QUOTAS`, or "solvent".
        smiles: SMILES to build it from, with stereochemistry if specified.
    """

    family: str
    smiles: str

    @property
    def name(self) -> str:
        """Canonical SMILES without stereochemistry, by which molecules are compared."""
        return canonical(self.smiles)


def canonical(smiles: str) -> str:
    """Return the canonical SMILES of RDKit without stereochemistry."""
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)


def is_held_out(name: str) -> bool:
    """Return True for one molecule in 20, by a hash of its name, and for clusters with such a one.

    Molecules of up to three heavy atoms and listed ions are never held out, because a model cannot
    learn water or perchlorate from others.

    Args:
        name: canonical SMILES; for a cluster, those of its molecules with dots between.
    """
    return any(
        int(hashlib.md5(part.encode()).hexdigest(), 16) % HELD_OUT_OF == 0
        for part in set(name.split("."))
        if part not in _listed_ions()
        and Chem.MolFromSmiles(part).GetNumHeavyAtoms() > TOO_SMALL_TO_HOLD_OUT
    )


@cache
def _listed_ions() -> frozenset[str]:
    return frozenset(map(canonical, (*fragments.CATIONS, *fragments.ANIONS)))


def draw(rng: np.random.Generator, number: int, seen: set[str]) -> Molecule:
    """Draw a molecule that is not among those seen, and add it to them.

    If no attempt gives a new molecule, a tiny one is returned, which may be known: some families
    are small.

    Args:
        rng: source of all random choices.
        number: number of the molecule in the whole run, from 0; it decides the family.
        seen: names of the molecules so far.
    """
    deck = [family for family, n in fragments.QUOTAS.items() for _ in range(n)]
    # 7 and 25 have no common divisor: successive molecules are of different families
    family = deck[7 * number % len(deck)]
    for _ in range(ATTEMPTS):
        with rdBase.BlockLogs():  # many attempts give impossible molecules
            mol = acceptable(_MAKERS[family](rng))
        if mol is None:
            continue
        found = Molecule(family, Chem.MolToSmiles(mol))
        if family == "tiny" or found.name not in seen:
            break
    else:
        tiny = tiny_molecules()
        found = Molecule("tiny", tiny[rng.integers(len(tiny))])
    seen.add(found.name)
    return found


def acceptable(mol: Chem.Mol | str | None) -> Chem.Mol | None:
    """Return a molecule as RDKit reads it back; None if it is not acceptable.

    Acceptable are closed shells of the sampled elements, with a total charge of -1, 0 or 1, in one
    piece and with at most `MOST_HEAVY` heavy atoms.
    """
    if mol is None:
        return None
    mol = Chem.MolFromSmiles(mol if isinstance(mol, str) else Chem.MolToSmiles(mol))
    if mol is None or mol.GetNumAtoms() == 0 or mol.GetNumHeavyAtoms() > MOST_HEAVY:
        return None
    atoms = list(mol.GetAtoms())
    is_known = all(atom.GetSymbol() in fragments.ELEMENTS for atom in atoms)
    is_closed = not any(atom.GetNumRadicalElectrons() for atom in atoms)
    is_one = len(Chem.GetMolFrags(mol)) == 1
    fits = is_known and is_closed and is_one and abs(Chem.GetFormalCharge(mol)) <= 1
    return mol if fits else None


@cache
def tiny_molecules() -> tuple[str, ...]:
    """Return SMILES of the listed tiny molecules and of all graphs of at most three heavy atoms.

    Graphs have the usual valences. Those of three heavy atoms have a carbon atom, because hardly
    any of the many chains of heteroatoms exists.
    """
    found = dict.fromkeys(canonical(smiles) for smiles in fragments.TINY)
    shapes: list[tuple[int, list[tuple[int, int]]]] = [
        *((1, []), (2, [(0, 1)]), (3, [(0, 1), (1, 2)]), (3, [(0, 1), (1, 2), (0, 2)])),
    ]
    for n, bonds in shapes:
        for symbols in itertools.product(_VALENCES, repeat=n):
            if n == 3 and "C" not in symbols:
                continue
            for orders in itertools.product((1, 2, 3), repeat=len(bonds)):
                mol = _graph(symbols, bonds, orders)
                if mol is not None:
                    found.setdefault(Chem.MolToSmiles(mol, isomericSmiles=False))
    return tuple(name for name in found if name not in _TRIPLETS)


def _graph(
    symbols: Sequence[str], bonds: Sequence[tuple[int, int]], orders: Sequence[int]
) -> Chem.Mol | None:
    used = [0] * len(symbols)
    for (i, j), order in zip(bonds, orders, strict=True):
        used[i] += order
        used[j] += order
    if any(n > _VALENCES[symbol] for n, symbol in zip(used, symbols, strict=True)):
        return None
    if len(bonds) == 3 and (max(orders) == 3 or sum(orders) > 4):
        return None  # too strained to be stable
    mol = Chem.RWMol()
    for symbol in symbols:
        mol.AddAtom(Chem.Atom(symbol))
    for (i, j), order in zip(bonds, orders, strict=True):
        mol.AddBond(i, j, _BONDS[order])
    return acceptable(mol)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _open_atoms(mol: Chem.Mol) -> list[int]:
    """Return the atoms with a hydrogen atom that a bond may replace."""
    return [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetTotalNumHs() > 0]


def join(
    rng: np.random.Generator, mol: Chem.Mol, other: Chem.Mol, *, by_first: bool = False
) -> Chem.Mol | None:
    """Join two molecules by a single bond in place of two hydrogen atoms; None if that fails.

    Args:
        rng: chooses the atoms.
        mol: molecule to extend.
        other: molecule to add.
        by_first: join the other by its first atom if that has a hydrogen atom.
    """
    ours, theirs = _open_atoms(mol), _open_atoms(other)
    if not ours or not theirs:
        return None
    i = int(rng.choice(ours))
    j = 0 if by_first and 0 in theirs else int(rng.choice(theirs))
    pair = {mol.GetAtomWithIdx(i).GetAtomicNum(), other.GetAtomWithIdx(j).GetAtomicNum()}
    is_rare = pair <= _HETEROATOMS and pair not in _USUAL_BONDS
    if is_rare and rng.random() > 0.15:
        return None
    both = Chem.RWMol(Chem.CombineMols(mol, other))
    j += mol.GetNumAtoms()
    for k in (i, j):
        atom = both.GetAtomWithIdx(k)
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    both.AddBond(i, j, Chem.BondType.SINGLE)
    return acceptable(both) if Chem.SanitizeMol(both, catchErrors=True) == 0 else None


def _core(rng: np.random.Generator) -> Chem.Mol:
    cores = fragments.CORES if rng.random() < 0.55 else fragments.HETERO_CORES
    return Chem.MolFromSmiles(_one(rng, cores))


def _extended(
    rng: np.random.Generator, mol: Chem.Mol | None, chances: Sequence[float]
) -> Chem.Mol | None:
    """Add 0, 1, ... pieces of any family, with these probabilities."""
    for _ in range(rng.choice(len(chances), p=chances)):
        if mol is None:
            return None
        family = _one(rng, tuple(fragments.GROUPS))
        piece = _core(rng) if rng.random() < 0.3 else None
        piece = piece or Chem.MolFromSmiles(_one(rng, fragments.GROUPS[family]))
        mol = join(rng, mol, piece, by_first=rng.random() < 0.7) or mol
    return mol


def _with_group(groups: Sequence[str]) -> Callable[[np.random.Generator], Chem.Mol | None]:
    """Return a maker of molecules of a core, one of the groups, and pieces of any family."""

    def make(rng: np.random.Generator) -> Chem.Mol | None:
        group = Chem.MolFromSmiles(_one(rng, groups))
        mol = join(rng, _core(rng), group, by_first=rng.random() < 0.7)
        return _extended(rng, mol, (0.4, 0.35, 0.25))

    return make


def _tiny(rng: np.random.Generator) -> str:
    return _one(rng, tiny_molecules())


def _biaryl(rng: np.random.Generator) -> Chem.Mol | None:
    """Join two aryls directly or by a linker; these are often twisted, some are amides."""
    link = _one(rng, fragments.LINKS)
    mol: Chem.Mol | None = Chem.MolFromSmiles(_one(rng, fragments.ARYLS))
    for part in (link, _one(rng, fragments.ARYLS)):
        if part and mol is not None:
            mol = join(rng, mol, Chem.MolFromSmiles(part), by_first=part == link)
    return _extended(rng, mol, (0.6, 0.4))


def _enol(rng: np.random.Generator) -> Chem.Mol | None:
    substituents = {key: _one(rng, fragments.ENOL_SUBSTITUENTS) for key in "abc"}
    return Chem.MolFromSmiles(_one(rng, fragments.ENOLS).format(**substituents))


def _peptide(rng: np.random.Generator) -> str:
    """Make one or two residues between end groups such as acetyl and amine; some are charged."""
    if rng.random() < 0.05:
        return f"CC(=O)N1CCCC1C(=O)N{_one(rng, ('', 'C', 'C(C)C', 'CC(N)=O'))}"
    residues = ""
    for _ in range(1 if rng.random() < 0.6 else 2):
        side = _one(rng, fragments.SIDE_CHAINS)
        residues += "NCC(=O)" if side == "-" else f"NC({side})C(=O)"
    head = _one(rng, ("CC(=O)", "CC(=O)", "C(=O)", "", "C[NH2+]CC(=O)"))
    return head + residues + _one(rng, ("NC", "NC", "N", "O", "OC", "NCC"))


def _of(names: Sequence[str], substituents: Sequence[str]) -> Callable[..., Chem.Mol | None]:
    """Return a maker of one of the named molecules, with up to two substituents."""

    def make(rng: np.random.Generator) -> Chem.Mol | None:
        mol: Chem.Mol | None = Chem.MolFromSmiles(_one(rng, names))
        for _ in range(rng.integers(3)):
            if mol is not None:
                mol = join(rng, mol, Chem.MolFromSmiles(_one(rng, substituents)), by_first=True)
        return mol

    return make


def _ion(charge: int) -> Callable[[np.random.Generator], Chem.Mol | str | None]:
    """Return a maker of ions: listed ones, or molecules with a proton added or removed."""
    listed = fragments.CATIONS if charge > 0 else fragments.ANIONS
    groups = fragments.BASES if charge > 0 else fragments.ACIDS
    with_group = _with_group(groups)

    def make(rng: np.random.Generator) -> Chem.Mol | str | None:
        if rng.random() < 0.25:
            return _one(rng, listed)
        if rng.random() < 0.3:
            families = ("peptide", "nucleobase", "enol", "phosphorus", "nitrogen", "carbonyl")
            mol = acceptable(_MAKERS[_one(rng, families)](rng))
        else:
            mol = with_group(rng)
        return ionised(rng, mol, charge)

    return make


_MAKERS: dict[str, Callable[[np.random.Generator], Chem.Mol | str | None]] = {
    "tiny": _tiny,
    **{family: _with_group(groups) for family, groups in fragments.GROUPS.items()},
    "biaryl": _biaryl,
    "enol": _enol,
    "peptide": _peptide,
    "nucleobase": _of(fragments.NUCLEOBASES, fragments.NUCLEOBASE_SUBSTITUENTS),
    "sugar": _of(fragments.SUGARS, fragments.SUGAR_SUBSTITUENTS),
    "cation": _ion(1),
    "anion": _ion(-1),
}
