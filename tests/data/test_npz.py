"""MD17-style `.npz`: names, shapes, label sets, units, splits, and what a bad file gives."""

import h5py
import numpy as np
import pytest
from ase import units

from attncalc import data

N, N_ATOMS = 5, 3


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Five waters in eV and Å."""
    rng = np.random.default_rng(0)
    return {
        "z": np.array([8, 1, 1]),
        "R": rng.standard_normal((N, N_ATOMS, 3)),
        "E": -2000 + rng.standard_normal(N),
        "F": rng.standard_normal((N, N_ATOMS, 3)),
    }


@pytest.fixture
def written(tmp_path):
    """Write arrays to an `.npz` and give its path."""

    def write(arrays, name="water.npz", **more):
        np.savez(tmp_path / name, **(arrays | more))
        return tmp_path / name

    return write


def _assert_same(found: data.Dataset, arrays: dict[str, np.ndarray], rtol: float = 1e-13) -> None:
    np.testing.assert_allclose(found.energies, arrays["E"], rtol=rtol)
    np.testing.assert_allclose(np.stack(found.forces), arrays["F"], rtol=rtol)
    positions = np.stack([atoms.positions for atoms in found.structures])
    np.testing.assert_allclose(positions, arrays["R"], rtol=rtol)
    assert all(atoms.numbers.tolist() == [8, 1, 1] for atoms in found.structures)


def test_md17_names(arrays, written):
    found = data.read(written(arrays), energy_unit="eV")
    _assert_same(found, arrays)
    assert (found.source, found.labels, found.level_of_theory) == ("water.npz", "default", "")
    assert found.stress is None
    assert found.splits == {}
    assert found.isolated_energies is None
    assert all(atoms.info == {} and not atoms.pbc.any() for atoms in found.structures)


def test_arrays_by_columns(arrays, written):
    """As Fortran and transposed arrays are stored."""
    by_column = {name: np.asfortranarray(array) for name, array in arrays.items()}
    assert not by_column["R"].flags.c_contiguous
    _assert_same(data.read(written(by_column), energy_unit="eV"), arrays)


def test_rmd17_names_and_their_old_labels(arrays, written):
    path = written(
        {
            "nuclear_charges": arrays["z"],
            "coords": arrays["R"],
            "energies": arrays["E"],
            "forces": arrays["F"],
            "old_energies": arrays["E"] + 7,
            "old_forces": -arrays["F"],
            "old_indices": np.arange(N),
        }
    )
    found = data.read(path, energy_unit="eV")
    _assert_same(found, arrays)
    assert found.labels == "rmd17"
    old = data.read(path, energy_unit="eV", labels="md17")
    np.testing.assert_allclose(old.energies, arrays["E"] + 7)
    np.testing.assert_allclose(np.stack(old.forces), -arrays["F"])


@pytest.mark.parametrize(
    ("energy_unit", "size"),
    [
        ("kcal/mol", units.kcal / units.mol),
        ("kJ/mol", units.kJ / units.mol),
        ("Hartree", units.Hartree),
        ("meV", 1e-3),
    ],
)
@pytest.mark.parametrize(("length_unit", "length"), [(None, 1.0), ("Bohr", units.Bohr)])
def test_other_units_give_the_same_dataset(arrays, written, energy_unit, size, length_unit, length):
    path = written(
        arrays,
        R=arrays["R"] / length,
        E=arrays["E"] / size,
        F=arrays["F"] / size * length,
        cell=4 * np.eye(3) / length,
        stress=np.ones((N, 3, 3)) / size * length**3,
    )
    found = data.read(path, energy_unit=energy_unit, length_unit=length_unit)
    _assert_same(found, arrays)
    np.testing.assert_allclose(found.stress, 1.0)
    np.testing.assert_allclose(found.structures[0].cell.array, 4 * np.eye(3))


def test_stored_units_win(arrays, written):
    kcal = units.kcal / units.mol
    path = written(
        arrays,
        E=arrays["E"] / kcal,
        F=arrays["F"] / kcal,
        units="R: angstrom; E: kcal/mol; F: kcal/mol/angstrom",
    )
    _assert_same(data.read(path), arrays)
    _assert_same(data.read(path, energy_unit="kcal/mol", length_unit="Angstrom"), arrays)
    with pytest.raises(ValueError, match=r"^water.npz: energy_unit='eV' contradicts"):
        data.read(path, energy_unit="eV")


def test_sgdml_units_and_theory(arrays, written):
    # sGDML also stores "E_min" and the like, which are no label sets.
    more = {"e_unit": "eV", "r_unit": "Ang", "theory": b"PBE+TS", "E_min": -1.0, "F_min": -2.0}
    found = data.read(written(arrays, **more))
    _assert_same(found, arrays)
    assert found.level_of_theory == "PBE+TS"
    with pytest.raises(ValueError, match=r"labels must be one of default$"):
        data.read(written(arrays, **more), labels="min")


def test_label_sets(arrays, written):
    path = written(arrays, E_md17=arrays["E"] + 1, F_md17=2 * arrays["F"], E_cc=arrays["E"] + 2)
    for labels in (None, "rmd17"):
        _assert_same(data.read(path, energy_unit="eV", labels=labels), arrays)
    old = data.read(path, energy_unit="eV", labels="md17")
    assert old.labels == "md17"
    _assert_same(old, arrays | {"E": arrays["E"] + 1, "F": 2 * arrays["F"]})
    # The forces of one label set never stand in for those of another.
    assert data.read(path, energy_unit="eV", labels="cc").forces is None
    message = "^water.npz: no label set 'mp2': labels must be one of rmd17, md17, cc$"
    with pytest.raises(ValueError, match=message):
        data.read(path, energy_unit="eV", labels="mp2")


def test_energies_as_a_column_and_without_forces(arrays, written):
    column = data.read(written(arrays, E=arrays["E"][:, None]), energy_unit="eV")
    _assert_same(column, arrays)
    del arrays["F"]
    assert data.read(written(arrays), energy_unit="eV").forces is None


def test_structures_of_different_size(arrays, written):
    numbers = np.array([[8, 1, 1], [8, 1, 0], [2, 0, 0], [8, 1, 1], [0, 8, 1]])
    forces = np.where(numbers[..., None] > 0, arrays["F"], np.nan)
    found = data.read(written(arrays, z=numbers, F=forces), energy_unit="eV")
    assert [atoms.get_chemical_formula() for atoms in found.structures] == [
        "H2O",
        "HO",
        "He",
        "H2O",
        "HO",
    ]
    np.testing.assert_array_equal(found.forces[4], arrays["F"][4, 1:])
    np.testing.assert_array_equal(found.structures[1].positions, arrays["R"][1, :2])


def test_cells_stress_charge_spin_and_isolated_energies(arrays, written):
    cells = np.stack([np.diag([4.0 + k, 5.0, 6.0]) for k in range(N)])
    stress = np.random.default_rng(1).standard_normal((N, 3, 3))
    path = written(
        arrays,
        cell=cells,
        pbc=np.array([True, True, False]),
        stress=stress,
        charge=np.array([0, 1, -1, 0, 0]),
        spin=np.array([1, 2, 2, 3, 1]),
        e0_z=np.array([1, 8]),
        e0=np.array([-13600.0, -2e6]),
        units="E: meV; F: eV/Angstrom; stress: eV/angstrom^3",
    )
    found = data.read(path)
    np.testing.assert_allclose(found.energies, arrays["E"] * 1e-3)
    np.testing.assert_array_equal(found.stress, stress)
    for k, atoms in enumerate(found.structures):
        np.testing.assert_array_equal(atoms.cell.array, cells[k])
        assert atoms.pbc.tolist() == [True, True, False]
    assert [atoms.info["charge"] for atoms in found.structures] == [0, 1, -1, 0, 0]
    assert [atoms.info["spin"] for atoms in found.structures] == [1, 2, 2, 3, 1]
    assert found.isolated_energies == pytest.approx({1: -13.6, 8: -2000.0})


def test_one_cell_for_all_is_periodic_along_its_vectors(arrays, written):
    found = data.read(written(arrays, cell=np.diag([4.0, 5.0, 0.0]), charge=1), energy_unit="eV")
    assert all(atoms.pbc.tolist() == [True, True, False] for atoms in found.structures)
    assert all(atoms.info == {"charge": 1} for atoms in found.structures)


def test_charges_of_atoms_are_not_total_charges(arrays, written):
    found = data.read(written(arrays, charges=np.ones((N, N_ATOMS))), energy_unit="eV")
    assert all(atoms.info == {} for atoms in found.structures)


def test_stored_splits_keep_their_names(arrays, written):
    path = written(
        arrays,
        train_01=np.array([4, 0]),
        test_01=np.array([1]),
        validation=np.array([2]),
        valence=np.array([2, 1, 1]),
        train_loss=np.array([0.5]),
    )
    splits = data.read(path, energy_unit="eV").splits
    assert {name: indices.tolist() for name, indices in splits.items()} == {
        "train_01": [4, 0],
        "test_01": [1],
        "validation": [2],
    }


def test_round_trip_of_a_dataset(arrays, written):
    found = data.read(written(arrays), energy_unit="eV")
    again = written(
        {
            "z": np.stack([atoms.numbers for atoms in found.structures]),
            "R": np.stack([atoms.positions for atoms in found.structures]),
            "E": found.energies,
            "F": np.stack(found.forces),
        },
        name="again.npz",
        units="eV",
    )
    _assert_same(data.read(again), arrays, rtol=0)


def test_the_energy_unit_is_asked_for(arrays, written):
    with pytest.raises(
        ValueError, match=r"^water.npz: the file does not state its energy unit: pass"
    ):
        data.read(written(arrays))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.array([8, 1])}, r"atomic numbers must have shape \[3\] or \[5, 3\], got \[2\]"),
        ({"R": np.zeros((5, 9))}, r"positions must have shape \[n, n_atoms, 3\], got \[5, 9\]"),
        ({"E": np.zeros(4)}, r"energies must have shape \[5\], one per structure, got \[4\]"),
        ({"F": np.zeros((5, 2, 3))}, r"F must have the shape of the positions, \[5, 3, 3\]"),
        ({"F": np.full((5, 3, 3), "a")}, "F must be numbers, got an array of <U1"),
        ({"E": np.full(5, np.nan)}, "the energy of structure 0 is not finite"),
        ({"R": np.full((5, 3, 3), np.inf)}, "the position of structure 0 is not finite"),
        ({"F": np.full((5, 3, 3), np.nan)}, "the force of structure 0 is not finite"),
        ({"cell": np.zeros(4)}, r"cell must have shape \[3, 3\] or \[5, 3, 3\], got \[4\]"),
        ({"cell": np.eye(3), "pbc": np.ones(2)}, r"pbc must have shape \[3\] or \[5, 3\]"),
        ({"lattice": np.eye(3)}, r"lattice is not read: store cell vectors as rows, as cell"),
        ({"Cell": np.ones((5, 3, 3))}, r"Cell is not read: store cell vectors as rows, as cell"),
        ({"box": np.ones((5, 3))}, r"box is not read: store cell vectors as rows, as cell"),
        ({"cellpar": np.ones(6)}, r"cellpar is not read: store cell vectors as rows, as cell"),
        ({"Box": np.ones((5, 9))}, r"Box is not read: store cell vectors as rows, as cell \[n, 3"),
        ({"pbc": np.ones(3)}, "pbc is true, but there is no cell: store its vectors as rows"),
        ({"stress": np.zeros((5, 6))}, r"stress must have shape \[5, 3, 3\], got \[5, 6\]"),
        ({"charge": np.array(0.5)}, "charge must hold integers, got 0.5"),
        ({"spin": np.array(2)}, r'structure 0: atoms.info\["spin"\] = 2 is impossible'),
        (
            {"train_01": np.array([5])},
            'split "train_01" lists structures beyond the 5 of the data set',
        ),
        ({"e0_z": np.array([1, 8]), "e0": np.zeros(3)}, "e0 must have one energy per entry"),
        ({"R": np.array(1.0)}, "positions must be an array, got 1.0"),
        ({"units": "E: eV/atom"}, "unknown unit 'eV/atom'"),
    ],
)
def test_wrong_content_is_refused_in_one_line(arrays, written, change, message):
    energy_unit = None if "units" in change else "eV"
    with pytest.raises(ValueError, match=r"^water.npz: .*" + message) as error:
        data.read(written(arrays | change), energy_unit=energy_unit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("z", "no atomic numbers: one of the keys z, Z, nuclear_charges, .*the file has R, E, F"),
        ("R", "no positions: one of the keys R, coords, positions, .* is needed"),
        ("E", "no energies: one of the keys E, energies, energy is needed"),
    ],
)
def test_missing_arrays_are_named(arrays, written, missing, message):
    del arrays[missing]
    with pytest.raises(ValueError, match=r"^water.npz: " + message):
        data.read(written(arrays), energy_unit="eV")


def test_pickled_arrays_are_never_loaded(arrays, written):
    remark = np.array([{"a": "dictionary"}], dtype=object)
    for name in ("name_of_set", "energy_unit", "E_source"):
        _assert_same(data.read(written(arrays, **{name: remark}), energy_unit="eV"), arrays)
    path = written(arrays, E=arrays["E"].astype(object))
    with pytest.raises(ValueError, match=r"^water.npz: array 'E' is pickled \(dtype obj"):
        data.read(path, energy_unit="eV")


def test_a_damaged_byte_is_recognised(arrays, written):
    path = written(arrays)
    content = bytearray(path.read_bytes())
    content[content.find(arrays["R"].tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^water.npz: the file is truncated or damaged"):
        data.read(path, energy_unit="eV")


def test_a_single_array_called_npz(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"^a.npz: this is a single array, not an .npz archive"):
        data.read(tmp_path / "a.npz", energy_unit="eV")


@pytest.mark.parametrize("labels", ["rmd17", "md17"])
def test_real_rmd17(shared_file, labels):
    path = shared_file("rmd17_ethanol.npz")
    dataset = data.read(path, labels=labels)
    assert (len(dataset), dataset.labels) == (5902, labels)
    assert sorted(dataset.splits) == [f"{a}_0{k}" for a in ("test", "train") for k in (1, 2, 3)]
    parts = data.official_split(dataset)
    assert [len(part) for part in parts] == [950, 50, 1000]
    # Ethanol by PBE is near -4,210 eV: any other unit of energy is far from that.
    assert dataset.energies.mean() == pytest.approx(-4210, abs=10)
    with np.load(path) as archive:
        np.testing.assert_array_equal(parts[2].energies, dataset.energies[archive["test_01"]])


def test_real_md17_in_kcal_per_mol(shared_file):
    dataset = data.read(shared_file("md17_ethanol_npzformat.npz"), energy_unit="kcal/mol")
    assert (len(dataset), dataset.labels) == (2000, "default")
    assert dataset.energies.mean() == pytest.approx(-4215, abs=10)


def test_real_periodic_set_with_stress(shared_file):
    dataset = data.read(shared_file("lips20_beta-Li3PS4.npz"))
    assert dataset.stress.shape == (1000, 3, 3)
    assert all(atoms.pbc.all() and atoms.cell.volume > 500 for atoms in dataset.structures)
    # Hot crystal: a few GPa, far from the factor of 160 between eV/Å³ and GPa.
    pressure = -np.trace(dataset.stress, axis1=1, axis2=2).mean() / 3 / units.GPa
    assert 0.1 < abs(pressure) < 20


def test_real_charged_and_isolated(shared_file):
    zundel = data.read(shared_file("zundel.npz"))
    assert all(atoms.info == {"charge": 1} for atoms in zundel.structures)
    assert sorted(data.read(shared_file("3bpa_train_300K.npz")).isolated_energies) == [1, 6, 7, 8]
    assert data.read(shared_file("qm22_hydronium.npz"))[:5].forces is None


def test_a_label_set_may_be_called_gradient(arrays, written):
    path = written(arrays, E_gradient=arrays["E"] + 1, F_gradient=arrays["F"])
    found = data.read(path, energy_unit="eV", labels="gradient")
    np.testing.assert_allclose(np.stack(found.forces), arrays["F"])


def test_a_label_set_may_be_called_f(arrays, written):
    path = written(
        {k: arrays[k] for k in ("z", "R")}, F_energy=arrays["E"], F_gradient=-arrays["F"]
    )
    found = data.read(path, energy_unit="eV", labels="F")
    np.testing.assert_allclose(np.stack(found.forces), arrays["F"])


def test_negative_atomic_numbers_are_no_padding(arrays, written):
    path = written(arrays, z=np.array([8, 1, -1]))
    message = r"^water.npz: atomic numbers must not be negative, got -1"
    with pytest.raises(ValueError, match=message):
        data.read(path, energy_unit="eV")


def test_stresses_of_other_names_are_not_read_silently(arrays, written, caplog):
    arrays |= {"cell": 9 * np.eye(3), "virial": np.zeros((5, 3, 3)), "lattice": np.eye(3)}
    assert data.read(written(arrays), energy_unit="eV").stress is None
    said = "water.npz: virial is not read; stress [n, 3, 3] is, which is -virial / volume"
    assert caplog.messages == [said]


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_another_label_set_takes_nothing_of_the_default_one(ending, tmp_path):
    """Stress, charges, dipoles and isolated atoms without a prefix are not its own."""
    n, path = 4, tmp_path / f"two.{ending}"
    arrays = {
        "z": np.array([1, 1]),
        "R": np.random.default_rng(0).normal(size=(n, 2, 3)),
        "E": np.arange(n) * 1.0,
        "F": np.zeros((n, 2, 3)),
        "E_lj": np.arange(n) * 2.0,
        "F_lj": np.ones((n, 2, 3)),
        "cell": np.eye(3)[None].repeat(n, 0) * 9,
        "stress": np.eye(3)[None].repeat(n, 0),
        "atomic_charges": np.zeros((n, 2)),
        "dipoles": np.zeros((n, 3)),
        "e0_z": np.array([1]),
        "e0": np.array([-13.0]),
    }
    names = ("stress", "charges", "dipoles", "isolated_energies")

    def read(labels: str | None, left_out: str = ""):
        kept = {name: array for name, array in arrays.items() if name not in left_out.split()}
        if ending == "npz":
            np.savez(path, **kept)
        else:
            with h5py.File(path, "w") as file:
                for name, array in kept.items():
                    file[name] = array
        return data.read(path, labels=labels, energy_unit="eV")

    own = read(None)
    assert all(getattr(own, name) is not None for name in names)
    other = read("lj")
    assert other.energies.tolist() == [0, 2, 4, 6]
    assert other.forces[0].tolist() == [[1, 1, 1]] * 2
    assert [getattr(other, name) for name in names] == [None] * 4
    alone = read(None, "E F")
    assert alone.labels == "lj"
    assert all(getattr(alone, name) is not None for name in names)
