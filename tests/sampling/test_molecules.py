"""Molecules: quotas, closed shells, ions, tiny molecules, and who is held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rdkit import Chem

from attncalc.sampling import fragments
from attncalc.sampling.ions import ionised
from attncalc.sampling.molecules import (
    MOST_HEAVY,
    Molecule,
    acceptable,
    canonical,
    draw,
    is_held_out,
    join,
    tiny_molecules,
)

N = 500


@pytest.fixture(scope="module")
def drawn() -> list[Molecule]:
    rng, seen = np.random.default_rng(0), set[str]()
    return [draw(rng, k, seen) for k in range(N)]


def charge(smiles: str) -> int:
    return Chem.GetFormalCharge(Chem.MolFromSmiles(smiles))


def test_families_come_by_quota(drawn: list[Molecule]) -> None:
    found = Counter(molecule.family for molecule in drawn)
    # a family whose molecules are all known is replaced by a tiny one, but not so early
    assert found == {family: 20 * n for family, n in fragments.QUOTAS.items()}
    assert sum(fragments.QUOTAS.values()) == 25


def test_shells_are_closed(drawn: list[Molecule]) -> None:
    for molecule in drawn:
        mol = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
        protons = sum(atom.GetAtomicNum() for atom in mol.GetAtoms())
        assert (protons - Chem.GetFormalCharge(mol)) % 2 == 0, molecule
        assert sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()) == 0, molecule
        assert {atom.GetSymbol() for atom in mol.GetAtoms()} <= set(fragments.ELEMENTS)
        assert mol.GetNumHeavyAtoms() <= MOST_HEAVY


@pytest.mark.parametrize(("family", "expected"), [("cation", 1), ("anion", -1), ("oxygen", 0)])
def test_ions_have_their_charge(drawn: list[Molecule], family: str, expected: int) -> None:
    found = [charge(molecule.smiles) for molecule in drawn if molecule.family == family]
    assert found == [expected] * len(found)
    assert found


def test_all_elements_come_often(drawn: list[Molecule]) -> None:
    having = Counter[str]()
    for molecule in drawn:
        mol = Chem.MolFromSmiles(molecule.smiles)
        having.update({atom.GetSymbol() for atom in mol.GetAtoms()})
    for symbol in ("F", "P", "S", "Cl"):
        assert having[symbol] > 0.05 * N, having


def test_no_molecule_comes_twice_but_tiny_ones(drawn: list[Molecule]) -> None:
    names = [molecule.name for molecule in drawn if molecule.family != "tiny"]
    assert len(set(names)) == len(names)


def test_a_draw_is_a_function_of_seed_number_and_what_was_seen() -> None:
    one, other = (
        [draw(np.random.default_rng(7), k, seen) for k in range(12)] for seen in (set(), set())
    )
    assert one == other
    seen = {one[3].name}
    again = draw(np.random.default_rng(7), 3, seen)
    assert again.name not in {one[3].name} or again.family == "tiny"


@pytest.mark.parametrize("name", ["CORES", "HETERO_CORES", "ARYLS", "ACIDS", "BASES", "SUGARS"])
def test_fragments_can_be_joined(name: str) -> None:
    for smiles in getattr(fragments, name):
        mol = acceptable(smiles)
        assert mol is not None, smiles
        assert any(atom.GetTotalNumHs() for atom in mol.GetAtoms()), smiles


@pytest.mark.parametrize("family", fragments.GROUPS)
def test_groups_can_be_joined(family: str) -> None:
    for smiles in fragments.GROUPS[family]:
        mol = acceptable(smiles)
        assert mol is not None, smiles
        assert any(atom.GetTotalNumHs() for atom in mol.GetAtoms()), smiles


@pytest.mark.parametrize(
    ("name", "expected"), [("CATIONS", 1), ("ANIONS", -1), ("SOLVENTS", 0), ("NUCLEOBASES", 0)]
)
def test_lists_have_their_charge(name: str, expected: int) -> None:
    listed = getattr(fragments, name)
    assert all(acceptable(smiles) is not None for smiles in listed)
    assert {charge(smiles) for smiles in listed} == {expected}


def test_tiny_molecules_are_all_graphs_of_three_heavy_atoms() -> None:
    tiny = set(tiny_molecules())
    for smiles in (
        "O",
        "N#N",
        "C=C=O",
        "CCO",
        "COC",
        "OC=O",
        "N=C=O",
        "C1CO1",
        "SCS",
        "FCCl",
        "PC",
    ):
        assert canonical(smiles) in tiny, smiles
    # triplets, and chains of heteroatoms that are not listed
    assert not {"O=O", "S=S", "OOO", "NNN"} & tiny


def test_one_in_twenty_is_held_out_whatever_the_seed(drawn: list[Molecule]) -> None:
    names = [molecule.name for molecule in drawn if molecule.family != "tiny"]
    share = np.mean([is_held_out(name) for name in names])
    assert 0.02 < share < 0.09
    # by MD5 of the text, for ever
    assert is_held_out("CC(C)C") is False
    assert [name for name in ("CCCC", "c1ccccc1", "CCCCC", "CC(C)=O") if is_held_out(name)] == []


def test_listed_ions_are_never_held_out() -> None:
    names = [canonical(smiles) for smiles in (*fragments.CATIONS, *fragments.ANIONS)]
    assert len(names) > 80
    assert not any(map(is_held_out, names))
    assert not is_held_out(f"O.{canonical('O=[Cl](=O)(=O)[O-]')}")


def test_a_cluster_is_held_out_with_any_partner(drawn: list[Molecule]) -> None:
    held = next(m.name for m in drawn if is_held_out(m.name))
    assert is_held_out(f"O.{held}")
    assert is_held_out(f"{held}.O.O")
    assert not is_held_out("O.O.O")


def test_tautomers_and_isomers_of_stereochemistry() -> None:
    assert canonical("C/C=C/C") == canonical("C/C=C\\C")
    assert canonical("CC=O") != canonical("C=CO")


def test_joining_takes_a_hydrogen_from_each() -> None:
    rng = np.random.default_rng(0)
    pyrrole, water = Chem.MolFromSmiles("c1cc[nH]c1"), Chem.MolFromSmiles("C")
    names = {Chem.MolToSmiles(join(rng, pyrrole, water)) for _ in range(40)}
    assert names == {"Cc1cc[nH]c1", "Cc1ccc[nH]1", "Cn1cccc1"}


def test_what_cannot_be_joined() -> None:
    rng = np.random.default_rng(0)
    assert join(rng, Chem.MolFromSmiles("C"), Chem.MolFromSmiles("FC(F)(F)F")) is None


@pytest.mark.parametrize(
    ("smiles", "sign", "expected"),
    [
        ("CC(=O)O", -1, "CC(=O)[O-]"),
        ("CN", 1, "C[NH3+]"),
        ("c1cc[nH]c1", -1, "c1cc[n-]c1"),
        ("c1ccncc1", 1, "c1cc[nH+]cc1"),
        ("CC", 1, None),
        ("CC", -1, None),
        ("C[NH3+]", -1, None),
    ],
)
def test_a_proton_more_or_less(smiles: str, sign: int, expected: str | None) -> None:
    ion = ionised(np.random.default_rng(0), Chem.MolFromSmiles(smiles), sign)
    assert (None if ion is None else Chem.MolToSmiles(ion)) == expected


@pytest.mark.parametrize("smiles", ["C[CH2]", "O.O", "[Na]C", "C" * 21, "[NH3+]CC[NH3+]", "C(("])
def test_what_is_not_acceptable(smiles: str) -> None:
    assert acceptable(smiles) is None
