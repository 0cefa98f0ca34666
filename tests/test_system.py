"""`System`: every refusal word by word, and the way from ASE and back."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from attncalc.system import System, charge_and_spin


def with_info(atoms: Atoms, **info) -> Atoms:
    atoms.info.update(info)
    return atoms


def test_values_of_atoms_are_split_by_structure():
    batch = System.from_ase([molecule("H2O"), Atoms("H"), molecule("CO")])
    parts = batch.split(batch.positions)
    assert [len(part) for part in parts] == [3, 1, 2]
    assert torch.equal(torch.cat(tuple(parts)), batch.positions)
    (alone,) = System.from_ase(molecule("CO")).split(torch.arange(2))
    assert alone.tolist() == [0, 1]


def test_fields_of_a_batch():
    slab = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[3, 4, 0], pbc=[True, True, False])
    system = System.from_ase([with_info(molecule("H2O"), charge=1, spin=4), Atoms("H"), slab])
    assert (system.n_atoms, system.n_systems) == (6, 3)
    assert system.device == torch.device("cpu")
    assert system.positions.dtype == system.cell.dtype == system.charge.dtype == torch.float64
    assert system.atomic_numbers.tolist() == [8, 1, 1, 1, 6, 8]
    assert system.system_idx.tolist() == [0, 0, 0, 1, 2, 2]
    assert system.pbc.tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    assert system.cell[2].tolist() == [[3, 0, 0], [0, 4, 0], [0, 0, 0]]
    assert system.charge.tolist() == [1.0, 0.0, 0.0]
    assert system.spin.tolist() == [4, 2, 1]
    for name in ("atomic_numbers", "system_idx", "spin"):
        assert getattr(system, name).dtype == torch.int64


def test_round_trip():
    members = [
        with_info(molecule("CH3CH2OH"), charge=-1, spin=2),
        bulk("Cu", cubic=True),
        Atoms("CO", [[9, 0, 0], [0, 0, 1.1]], cell=[3, 4, 0], pbc=[True, True, False]),
    ]
    back = System.from_ase(members).to_ase()
    assert len(back) == 3
    for atoms, expected in zip(back, members, strict=True):
        np.testing.assert_array_equal(atoms.numbers, expected.numbers)
        np.testing.assert_array_equal(atoms.positions, expected.positions)
        np.testing.assert_array_equal(atoms.cell.array, expected.cell.array)
        np.testing.assert_array_equal(atoms.pbc, expected.pbc)
    assert [atoms.info for atoms in back] == [
        {"charge": -1, "spin": 2},
        {"charge": 0, "spin": 1},
        {"charge": 0, "spin": 1},
    ]


def test_one_structure_is_a_batch_of_one():
    one, listed = System.from_ase(molecule("H2O")), System.from_ase([molecule("H2O")])
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(listed, name))


def test_tensors_are_copies():
    atoms = bulk("Cu")
    system = System.from_ase(atoms)
    atoms.positions += 1
    atoms.cell[0] *= 2
    atoms.numbers[:] = 1
    assert system.positions.tolist() == [[0, 0, 0]]
    torch.testing.assert_close(system.cell[0], torch.from_numpy(bulk("Cu").cell.array))
    assert system.atomic_numbers.tolist() == [29]
    back = system.to_ase()[0]
    back.positions += 1
    assert system.positions.tolist() == [[0, 0, 0]]


def test_integer_positions_become_float64():
    atoms = Atoms("H2", positions=np.array([[0, 0, 0], [0, 0, 1]]), cell=np.eye(3, dtype=int))
    system = System.from_ase(atoms)
    assert system.positions.dtype == system.cell.dtype == torch.float64


def test_to_moves_every_tensor():
    moved = System.from_ase(molecule("H2O")).to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values())


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (molecule("H2O"), (0, 1)),
        (molecule("CH3"), (0, 2)),
        (with_info(molecule("H2O"), charge=1), (1, 2)),
        (with_info(molecule("O2"), spin=3), (0, 3)),
        (with_info(molecule("H2O"), charge=np.int64(-1), spin=2.0), (-1, 2)),
        (with_info(molecule("H2O"), spin=None), (0, 1)),
        (with_info(Atoms("H"), charge=1), (1, 1)),
        # all electrons unpaired, or none is there
        (with_info(Atoms("H"), spin=2), (0, 2)),
        (with_info(Atoms("He"), spin=3), (0, 3)),
        (with_info(Atoms("H"), charge=1, spin=1), (1, 1)),
    ],
)
def test_charge_and_spin(atoms, expected):
    assert charge_and_spin(atoms) == expected


REFUSALS = {
    "nothing": ([], "no structure given: pass an ase.Atoms or a non-empty list of them"),
    "empty": (Atoms(), "the structure has no atoms"),
    "position": (
        Atoms("HC", [[0, 0, 0], [0, float("nan"), 1]]),
        "the position of atom 1 (C) is not finite: [0.0, nan, 1.0]",
    ),
    "cell": (
        Atoms("H", cell=[[float("inf"), 0, 0], [0, 1, 0], [0, 0, 1]]),
        "the cell is not finite: [[inf, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]",
    ),
    "element": (Atoms("HX"), "atom 1 has no known element (number 0)"),
    "beyond the table": (Atoms(numbers=[1, 119]), "atom 1 has no known element (number 119)"),
    "beyond the table and far away": (
        Atoms(numbers=[1, 119], positions=[[0, 0, 0], [0, 0, 1e9]]),
        "atom 1 has no known element (number 119)",
    ),
    "no cell": (
        Atoms("H", pbc=True),
        "pbc is [True, True, True] but the cell vectors of the periodic directions are "
        "zero, shorter than 1e-8 Å or linearly dependent: set atoms.cell in Å, or "
        "atoms.pbc = False",
    ),
    "flat cell": (
        Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=[True, True, False]),
        "pbc is [True, True, False] but the cell vectors of the periodic directions are "
        "zero, shorter than 1e-8 Å or linearly dependent: set atoms.cell in Å, or "
        "atoms.pbc = False",
    ),
    "images on top": (
        Atoms("H", cell=[[5, 0, 0], [0, 0.2, 0], [0, 0, 5]], pbc=[False, True, False]),
        "atoms are 0.2 Å from their own periodic images; are the cell vectors in Å?",
    ),
    "thin cell": (
        Atoms("H", cell=[[5, 0, 0], [4.9, 1e-3, 0], [0, 0, 1e5]], pbc=True),
        "atoms are 0.05 Å from their own periodic images; are the cell vectors in Å?",
    ),
    "fractional charge": (
        with_info(molecule("H2O"), charge=0.5),
        'atoms.info["charge"] must be an integer (total charge in e), got 0.5',
    ),
    "charge in words": (
        with_info(molecule("H2O"), charge="plus"),
        "atoms.info[\"charge\"] must be an integer (total charge in e), got 'plus'",
    ),
    "no charge": (
        with_info(molecule("H2O"), charge=None),
        'atoms.info["charge"] must be an integer (total charge in e), got None',
    ),
    "infinite charge": (
        with_info(molecule("H2O"), charge=float("inf")),
        'atoms.info["charge"] must be an integer (total charge in e), got inf',
    ),
    "too much charge": (
        with_info(Atoms("H"), charge=2),
        "charge +2 removes more electrons than the atoms have (1)",
    ),
    "fractional spin": (
        with_info(molecule("H2O"), spin=1.5),
        'atoms.info["spin"] must be an integer (multiplicity 2S+1), got 1.5',
    ),
    "even spin of even electrons": (
        with_info(molecule("H2O"), spin=2),
        'atoms.info["spin"] = 2 is impossible for 10 electrons (charge +0): the multiplicity 2S+1 '
        "must be odd, e.g. 1",
    ),
    "odd spin of odd electrons": (
        with_info(molecule("H2O"), charge=1, spin=1),
        'atoms.info["spin"] = 1 is impossible for 9 electrons (charge +1): the multiplicity 2S+1 '
        "must be even, e.g. 2",
    ),
    "spin zero": (
        with_info(molecule("CH3"), spin=0),
        'atoms.info["spin"] = 0 is impossible for 9 electrons (charge +0): the multiplicity 2S+1 '
        "must be even, e.g. 2",
    ),
    "more spins than electrons": (
        with_info(Atoms("H"), spin=4),
        'atoms.info["spin"] = 4 is impossible for 1 electrons (charge +0): the multiplicity 2S+1 '
        "must be even, e.g. 2",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_says_what_is_wrong(case):
    atoms, message = REFUSALS[case]
    with pytest.raises(ValueError) as error:
        System.from_ase(atoms)
    assert str(error.value) == message


@pytest.mark.parametrize("case", [case for case in REFUSALS if case != "nothing"])
def test_refusal_names_the_structure_of_a_batch(case):
    atoms, message = REFUSALS[case]
    with pytest.raises(ValueError) as error:
        System.from_ase([molecule("H2O"), atoms])
    assert str(error.value) == f"structure 1: {message}"


@pytest.mark.parametrize(
    ("before", "first", "where"),
    [([], 0, ""), ([], 280, "structure 280: "), ([molecule("H2O")], 279, "structure 280: ")],
)
def test_refusal_counts_from_the_first_of_a_longer_list(before, first, where):
    with pytest.raises(ValueError) as error:
        System.from_ase([*before, Atoms()], first=first)
    assert str(error.value) == f"{where}the structure has no atoms"
    assert System.from_ase(molecule("H2O"), first=first).system_idx.tolist() == [0, 0, 0]


def test_a_skewed_cell_is_not_a_thin_one():
    atoms = Atoms("H", cell=[[3, 0, 0], [300, 3, 0], [0, 0, 9]], pbc=[True, True, False])
    assert System.from_ase(atoms).n_atoms == 1


def test_something_else_than_atoms_is_refused():
    with pytest.raises(TypeError) as error:
        System.from_ase([molecule("H2O"), "H2O"])
    assert str(error.value) == "structure 1: expected ase.Atoms, got str"


def test_moved_takes_positions_and_nothing_else():
    atoms = molecule("CH3CH2OH")
    atoms.info["charge"] = 1
    system = System.from_ase(atoms)
    atoms.positions += 0.5
    atoms.info["charge"] = 0
    moved = system.with_positions_of(atoms)
    np.testing.assert_array_equal(moved.positions.numpy(), atoms.positions)
    assert moved.charge is system.charge
    atoms.positions += 1.0  # in place: neither of the two may follow
    assert moved.positions[0, 0] == system.positions[0, 0] + 0.5


@pytest.mark.parametrize("far", [1e10, -1e300])
def test_coordinates_beyond_reason(far):
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1, 2] = far
    with pytest.raises(ValueError, match=r"the position of atom 1 \(Cu\) is more than 1e\+06 Å"):
        System.from_ase(atoms)
    with pytest.raises(ValueError, match=r"component of 1e\+10 Å, more than 1e\+06 Å; are"):
        System.from_ase(Atoms("Cu", cell=[1e10] * 3, pbc=True))
