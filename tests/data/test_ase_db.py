"""ASE databases: labels, units, charge and spin, splits, and bad files."""

from __future__ import annotations

import sqlite3

import ase.db
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from attncalc import data


@pytest.fixture
def crystals() -> list[Atoms]:
    """Two copper crystals with EMT labels, the first with an atom that is held."""
    frames = []
    for k in range(2):
        atoms = bulk("Cu") * (2 + k, 1, 1)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, stress=atoms.get_stress(), **results)
        frames.append(atoms)
    frames[0].set_constraint(FixAtoms([0]))
    return frames


@pytest.fixture
def written(tmp_path):
    """Write rows, (structure, key-value pairs, data) each, and give the file's path."""

    def write(rows, metadata=None, name="rows.db"):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        with ase.db.connect(path) as database:
            for atoms, pairs, more in rows:
                database.write(atoms, key_value_pairs=pairs, data=more)
        if metadata is not None:
            ase.db.connect(path).metadata = metadata
        return path

    return write


def bare(frames: list[Atoms]) -> list[tuple[Atoms, dict, dict]]:
    return [(atoms, {}, {}) for atoms in frames]


def assert_labels_of(found: data.Dataset, frames: list[Atoms]) -> None:
    assert len(found) == len(frames)
    for k, atoms in enumerate(frames):
        results = atoms.calc.results
        assert found.energies[k] == pytest.approx(results["energy"], rel=1e-13)
        np.testing.assert_allclose(found.forces[k], results["forces"], rtol=1e-12)
        np.testing.assert_allclose(found.stress[k], atoms.get_stress(voigt=False), rtol=1e-12)
        np.testing.assert_allclose(found.structures[k].positions, atoms.positions, rtol=1e-12)
        np.testing.assert_allclose(found.structures[k].cell.array, atoms.cell.array, rtol=1e-12)
        assert found.structures[k].pbc.all()
        assert found.structures[k].constraints == []
        assert found.structures[k].info == {}


def test_calculated_results(crystals, written):
    path = written(bare(crystals))
    before = path.read_bytes()
    found = data.read(path)
    assert_labels_of(found, crystals)  # also the force on the atom that is held
    assert (found.source, found.labels, found.level_of_theory) == ("rows.db", "default", "")
    assert found.splits == {}
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["rows.db"]


def in_kcal_and_bohr(atoms: Atoms) -> Atoms:
    kcal, bohr = units.kcal / units.mol, units.Bohr
    other = Atoms(atoms.numbers, atoms.positions / bohr, cell=atoms.cell.array / bohr, pbc=True)
    results = atoms.calc.results
    other.calc = SinglePointCalculator(
        other,
        energy=results["energy"] / kcal,
        forces=results["forces"] / kcal * bohr,
        stress=results["stress"] / kcal * bohr**3,
    )
    return other


@pytest.mark.parametrize(
    "metadata",
    [
        {"units": "E: kcal/mol; R: Bohr"},
        {"units": {"energy": "kcal/mol", "length": "Bohr"}},
        {
            "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Bohr", "gap": "1"},
            "_distance_unit": "Bohr",
        },
    ],
)
def test_stored_units_win(crystals, written, metadata):
    path = written(bare([in_kcal_and_bohr(atoms) for atoms in crystals]), metadata)
    assert_labels_of(data.read(path), crystals)
    assert_labels_of(data.read(path, energy_unit="kcal/mol", length_unit="Bohr"), crystals)
    with pytest.raises(ValueError, match=r"^rows.db: energy_unit='eV' contradicts the units"):
        data.read(path, energy_unit="eV")


def test_declared_units_and_units_of_rows(crystals, written):
    other = [in_kcal_and_bohr(atoms) for atoms in crystals]
    path = written(bare(other))
    found = data.read(path, energy_unit="kcal/mol", length_unit="Bohr")
    assert_labels_of(found, crystals)
    path = written([(atoms, {"units": "kcal/mol, Bohr"}, {}) for atoms in other])
    assert_labels_of(data.read(path), crystals)
    path = written(
        [(other[0], {"units": "kcal/mol, Bohr"}, {}), (crystals[1], {"units": "eV"}, {})]
    )
    with pytest.raises(ValueError, match=r"^rows.db: structure 1 states other units than str"):
        data.read(path)


def test_labels_in_data_and_their_sets(crystals, written):
    rows = []
    for atoms in crystals:
        results = atoms.calc.results
        more = {"energy": np.array([results["energy"]]), "forces": results["forces"]}
        more |= {"stress": atoms.get_stress(voigt=False), "REF_forces": 2 * results["forces"]}
        rows.append((Atoms(atoms), {"REF_energy": 2 * results["energy"]}, more))
    path = written(rows)
    assert_labels_of(data.read(path), crystals)
    reference = data.read(path, labels="REF")
    assert reference.labels == "REF"
    assert reference.stress is None
    np.testing.assert_allclose(reference.energies, 2 * data.read(path).energies)
    np.testing.assert_allclose(reference.forces[1], 2 * crystals[1].calc.results["forces"])
    message = "^rows.db: no label set 'HF': labels must be one of default, REF$"
    with pytest.raises(ValueError, match=message.replace("default, REF", "(default, REF)")):
        data.read(path, labels="HF")


def test_charge_spin_splits_and_level_of_theory(written):
    oxygen = molecule("O2")
    oxygen.set_initial_charges([1, 1])  # charges of atoms are no total charge
    rows = [
        (oxygen, {"multiplicity": 3, "split": "train"}, {"energy": -1.0}),
        (oxygen, {"total_charge": 1, "split": "test"}, {"energy": -2.0}),
        (oxygen, {"split": "train"}, {"energy": -3.0, "charge": -1, "spin": 2}),
        # which ASE reads as the sum of the charges of atoms
        (oxygen, {"charge": -3, "split": "train"}, {"energy": -4.0, "spin": 2}),
    ]
    found = data.read(written(rows, {"level_of_theory": "HF"}))
    assert [atoms.info for atoms in found.structures] == [
        {"spin": 3},
        {"charge": 1},
        {"charge": -1, "spin": 2},
        {"charge": -3, "spin": 2},
    ]
    assert found.level_of_theory == "HF"
    assert {k: v.tolist() for k, v in found.splits.items()} == {"train": [0, 2, 3], "test": [1]}
    rows[1] = (oxygen, {"total_charge": 1, "spin": 1}, {"energy": -2.0})
    with pytest.raises(ValueError, match=r"^rows.db: structure 1: .* is impossible"):
        data.read(written(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": None}, "structure 1 has no energy but structure 0 has"),
        ({"energy": "low"}, "energy of structure 1 is not a number: 'low'"),
        ({"energy": np.nan}, "the energy of structure 1 is not finite"),
        ({"energy": [1.0, 2.0]}, "energy of structure 1 must have 1 numbers, got 2"),
        ({"forces": None}, "structure 1 has no forces but structure 0 has: remove structure 1, or"),
        ({"forces": np.full((2, 3), np.nan)}, "the force of structure 1 is not finite"),
        ({"forces": np.zeros((3, 3))}, r"forces of structure 1 must have shape \[2, 3\], got"),
        ({"stress": np.zeros(6)}, "structure 0 has no stress but structure 1 has"),
        ({"charge": 0.5}, "structure 1: .*charge"),
        ({"units": "eV/atom"}, "unknown unit 'eV/atom'"),
    ],
)
def test_wrong_rows_are_refused_in_one_line(written, change, message):
    good = {"energy": -1.0, "forces": np.zeros((2, 3))}
    bad = {key: value for key, value in (good | change).items() if value is not None}
    periodic = molecule("H2", cell=[5, 5, 5], pbc=True)
    path = written([(periodic, {}, good), (periodic, {}, bad)])
    with pytest.raises(ValueError, match=rf"^rows.db: {message}") as error:
        data.read(path)
    assert "\n" not in str(error.value)


def test_rows_without_labels_and_no_rows(written):
    with pytest.raises(ValueError, match=r"^rows.db: structure 0 has no energy"):
        data.read(written(bare([molecule("H2")])))
    with pytest.raises(ValueError, match=r"^rows.db: it contains no structures$"):
        data.read(written([], {"units": "eV"}))


def test_an_sqlite_file_without_structures_stays_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE addresses (street TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    message = r"^other.db: the file is truncated, damaged or no ASE database \(no such table"
    with pytest.raises(ValueError, match=message):
        data.read(path)
    assert path.read_bytes() == before


def test_other_files_called_db(tmp_path):
    (tmp_path / "a.db").write_bytes(b"plain text\n")
    message = (
        r"^a.db: the file is truncated, damaged or no ASE database \(.*\): download or write it"
    )
    with pytest.raises(ValueError, match=message):
        data.read(tmp_path / "a.db")


def test_a_format_of_the_future(crystals, written):
    path = written(bare(crystals))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE information SET value = '99' WHERE name = 'version'")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match=r"^rows.db: .*version 99.*") as error:
        data.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("moment", "label", "says"),
    [
        (1.0, "stress", "magnetic moments"),
        (None, "pbe_virial", "rows.db: pbe_virial is not read, but virial is"),
    ],
)
def test_what_is_left_out_is_said(
    crystals: list[Atoms], written, caplog, moment: float | None, label: str, says: str
) -> None:
    """As of extended XYZ."""
    for atoms in crystals:
        results = {name: atoms.calc.results[name] for name in ("energy", "forces")}
        if moment is not None:
            atoms.set_initial_magnetic_moments([moment] * len(atoms))
        atoms.calc = SinglePointCalculator(atoms, **results)
    data.read(written([(atoms, {}, {label: np.eye(3)}) for atoms in crystals]))
    (message,) = caplog.messages
    assert message.startswith("rows.db: ")
    assert says in message
