"""Distortions: what moves, how far, and what is too close."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from attncalc.sampling.clusters import MOST_ATOMS, SLIPPED, Part, packed, random_cluster, water
from attncalc.sampling.conformers import Conformer, embedded, force_field, langevin
from attncalc.sampling.geometry import (
    beyond,
    displaced,
    distances,
    overlaps,
    proton_transferred,
    random_rotation,
    refusal,
    stretched,
    torsions,
    turned,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def built(smiles: str) -> Conformer:
    return embedded(np.random.default_rng(0), smiles, 1)[0]


def bond_lengths(molecule: Conformer, positions: np.ndarray) -> np.ndarray:
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.mol.GetBonds()]
    return np.array([np.linalg.norm(positions[i] - positions[j]) for i, j in ends])


def test_a_turn_keeps_bonds_and_goes_round(rng: np.random.Generator) -> None:
    butane = built("CCCC")
    new = turned(butane.mol, butane.positions, (1, 2), 0.7)
    np.testing.assert_allclose(bond_lengths(butane, new), bond_lengths(butane, butane.positions))
    assert np.abs(new - butane.positions).max() > 0.5
    still = turned(butane.mol, butane.positions, (1, 2), 2 * np.pi)
    np.testing.assert_allclose(still, butane.positions, atol=1e-12)


def test_beyond_a_bond() -> None:
    ethanol = Chem.MolFromSmiles("CCO")
    assert beyond(ethanol, (0, 1)) == [1, 2]
    assert beyond(ethanol, (1, 0)) == [0]
    assert beyond(Chem.MolFromSmiles("C1CC1C"), (0, 1)) == [1]


@pytest.mark.parametrize(
    ("smiles", "n_hindered", "n_all"),
    [
        ("CNC(C)=O", 1, 3),
        ("c1ccccc1-c1ccccc1", 1, 1),
        ("CCCC", 0, 3),
        ("C1CCCCC1", 0, 0),
        ("C=C", 0, 0),
        ("OO", 1, 1),
    ],
)
def test_torsions(smiles: str, n_hindered: int, n_all: int) -> None:
    hindered, turning = torsions(Chem.AddHs(Chem.MolFromSmiles(smiles)))
    assert (len(hindered), len(turning)) == (n_hindered, n_all)
    assert set(hindered) <= set(turning)


def test_stretches_are_within_their_factors(rng: np.random.Generator) -> None:
    ethane = built("CC")
    rest = bond_lengths(ethane, ethane.positions)
    factors = [bond_lengths(ethane, stretched(rng, ethane.mol, ethane.positions)) / rest]
    for _ in range(100):
        factors.append(bond_lengths(ethane, stretched(rng, ethane.mol, ethane.positions)) / rest)
    # 0.02 Å of noise on either end beside
    assert 0.6 < np.min(factors) < 0.87
    assert 1.4 < np.max(factors) < 2.7


def test_displacements_are_small(rng: np.random.Generator) -> None:
    butane = built("CCCC")
    moved = [displaced(rng, butane.mol, butane.positions) - butane.positions for _ in range(50)]
    assert 0.02 < np.std(moved) < 0.2


@pytest.mark.parametrize(
    ("element", "length", "reason"),
    [
        (1, 0.59, "atoms too close"),
        (1, 0.61, ""),
        # covalent radii of 0.76 Å
        (6, 0.83, "atoms too close"),
        (6, 0.84, ""),
        (6, 8.9, ""),
        (6, 9.1, "atoms torn away"),
        (6, 1e7, "atoms torn away"),
        (6, np.nan, "positions not finite"),
    ],
)
def test_refusals(element: int, length: float, reason: str) -> None:
    assert refusal(np.array([element] * 2), np.array([[0, 0, 0], [0, 0, length]])) == reason


def test_an_atom_alone_is_not_refused() -> None:
    assert refusal(np.array([17]), np.zeros((1, 3))) == ""


def test_overlaps_count_far_bonds_only() -> None:
    pentane = built("CCCCC")
    assert not overlaps(pentane.mol, pentane.numbers, pentane.positions)
    folded = pentane.positions.copy()
    folded[4] = folded[0] + [0.0, 0.0, 1.2]
    assert overlaps(pentane.mol, pentane.numbers, folded)


def test_rotations_are_rotations(rng: np.random.Generator) -> None:
    for _ in range(5):
        rotation = random_rotation(rng)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_the_proton_of_malonaldehyde_moves(rng: np.random.Generator) -> None:
    enol = embedded(rng, "O=C/C=C\\O", 6, lowest=True)[0]
    oxygens = enol.positions[enol.numbers == 8]
    moved = 0
    for _ in range(20):
        new = proton_transferred(rng, enol.numbers, enol.positions)
        assert new is not None
        h = int(np.linalg.norm(new - enol.positions, axis=1).argmax())
        assert enol.numbers[h] == 1
        near = np.sort(distances(new[[h]], oxygens)[0])
        assert near[0] > 0.8
        moved += near[1] < 1.6
    assert moved > 5


def test_no_hydrogen_bond_no_proton(rng: np.random.Generator) -> None:
    for smiles in ("CCO", "N#N", "C"):
        molecule = built(smiles)
        assert proton_transferred(rng, molecule.numbers, molecule.positions) is None


def test_conformers_differ_and_are_the_same_for_a_seed() -> None:
    one, other = (embedded(np.random.default_rng(3), "CCCCO", 2) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert np.abs(one[0].positions - one[1].positions).max() > 0.1
    assert one[0].name == "CCCCO"
    assert one[0].charge == 0


def test_atoms_and_unknown_groups_are_embedded(rng: np.random.Generator) -> None:
    (ion,) = embedded(rng, "[Cl-]", 1)
    assert (ion.numbers.tolist(), ion.charge) == ([17], -1)
    assert force_field(ion.mol, -1) is None
    assert langevin(rng, ion, 300.0, 2, 10) == []


def test_dynamics_have_their_temperature(rng: np.random.Generator) -> None:
    """Configurational: stretches of the bonds of methane cost kT / 2 each, in the mean."""
    methane = built("C")
    field = force_field(methane.mol, -1)
    lowest = field.CalcEnergy(methane.positions.ravel().tolist())
    frames = langevin(rng, methane, 300.0, 400, 40)
    energies = [field.CalcEnergy(x.ravel().tolist()) - lowest for x in frames[50:]]
    # nine vibrations, kcal/mol; blocks of correlated frames make 10 % of error
    assert np.mean(energies) == pytest.approx(9 / 2 * 0.0019872 * 300.0, rel=0.3)


def test_gradients_of_the_force_field_are_those_of_the_positions(rng: np.random.Generator) -> None:
    """RDKit's trap: CalcGrad without CalcEnergy before gives others."""
    ethanol = built("CCO")
    field = force_field(ethanol.mol, -1)
    flat = (ethanol.positions + rng.normal(0, 0.1, ethanol.positions.shape)).ravel()
    field.CalcEnergy(flat.tolist())
    gradient = np.array(field.CalcGrad(flat.tolist()))
    for k in (0, 7, 14):
        step = np.zeros_like(flat)
        step[k] = 1e-5
        ends = [field.CalcEnergy((flat + sign * step).tolist()) for sign in (1, -1)]
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-3)


def test_molecules_are_packed_without_overlap(rng: np.random.Generator) -> None:
    for _ in range(20):
        trimer = packed(rng, [water(rng) for _ in range(3)])
        assert trimer.name == "O.O.O"
        molecules = trimer.positions.reshape(3, 3, 3)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert 1.4 < distances(molecules[i], molecules[j]).min() < 25


def test_some_molecules_are_packed_face_to_face(rng: np.random.Generator) -> None:
    benzene, n = built("c1ccccc1"), 400
    part = Part("c1ccccc1", benzene.numbers, benzene.positions, 0)
    angles, slips = [], []
    for _ in range(n):
        one, other = packed(rng, [part, part]).positions.reshape(2, -1, 3)
        normal, its = (np.linalg.svd(p - p.mean(0))[2][2] for p in (one, other))
        angles.append(np.degrees(np.arccos(min(1.0, abs(normal @ its)))))
        between = other.mean(0) - one.mean(0)
        if angles[-1] < 0.1:
            along = abs(between @ normal)
            slips.append(np.sqrt(max(0.0, between @ between - along**2)) / along)
    # two thirds are in contact, of which STACKED
    assert 0.05 < np.mean(np.array(angles) < 0.1) < 0.16
    assert max(slips) < SLIPPED + 1e-6
    assert min(slips) < 0.1


def test_packing_turns_molecules_and_does_not_reflect_them(rng: np.random.Generator) -> None:
    chiral = built("C[C@H](N)O")
    part = Part("C[C@H](N)O", chiral.numbers, chiral.positions, 0)
    heavy = np.flatnonzero(chiral.numbers > 1)

    def volume(positions: np.ndarray) -> float:
        a, b, c, d = positions[heavy[:4]]
        return float(np.linalg.det([b - a, c - a, d - a]))

    for _ in range(60):
        both = packed(rng, [part, part]).positions.reshape(2, -1, 3)
        for positions in both:
            assert volume(positions) == pytest.approx(volume(chiral.positions), rel=1e-9)


def test_clusters_have_a_charge_and_a_size_that_is_allowed(rng: np.random.Generator) -> None:
    parts = [
        Part(c.name, c.numbers, c.positions, c.charge)
        for c in map(built, ("CCO", "C[NH3+]", "CC(=O)[O-]", "c1ccccc1"))
    ]
    found = [c for _ in range(200) if (c := random_cluster(rng, parts, parts)) is not None]
    assert {cluster.charge for cluster in found} == {-1, 0, 1}
    assert max(len(cluster.numbers) for cluster in found) <= MOST_ATOMS
    salts = [c for c in found if "[O-]" in c.name and "[NH3+]" in c.name]
    assert salts
    waters = [c for c in found if set(c.name.split(".")) == {"O"}]
    assert 0.1 < len(waters) / len(found) < 0.35
    # in contact and apart
    assert {c.name for c in found if "." not in c.name} == set()
