"""HDF5: layouts, names, label sets, units, splits, and what a bad file gives."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from ase import Atoms, units

from attncalc import data

WATER, AMMONIA = [8, 1, 1], [7, 1, 1, 1]


def molecules(numbers: list[int], n: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of n structures of one composition, in eV and Å."""
    rng = np.random.default_rng(seed)
    shape = (n, len(numbers), 3)
    return {
        "z": np.array(numbers),
        "R": rng.standard_normal(shape),
        "E": -1000 + rng.standard_normal(n),
        "F": rng.standard_normal(shape),
    }


def in_a_row(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The same structures, one after the other, with `offsets`."""
    sizes = [len(part["z"]) for part in parts for _ in part["E"]]
    return {
        "z": np.concatenate([np.tile(part["z"], len(part["E"])) for part in parts]),
        "R": np.concatenate([part["R"].reshape(-1, 3) for part in parts]),
        "E": np.concatenate([part["E"] for part in parts]),
        "F": np.concatenate([part["F"].reshape(-1, 3) for part in parts]),
        "offsets": np.cumsum([0, *sizes]),
    }


@pytest.fixture
def parts() -> list[dict[str, np.ndarray]]:
    """Three ammonias and two waters: the alphabetical order of their groups."""
    return [molecules(AMMONIA, 3, seed=0), molecules(WATER, 2, seed=1)]


@pytest.fixture
def written(tmp_path):
    """Write groups of arrays; names that begin with @ are attributes, of groups or of arrays."""

    def write(groups, name="molecules.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            for place, arrays in groups.items():
                group = file.require_group(place)
                for key, value in arrays.items():
                    owner, at, attribute = key.partition("@")
                    if at:
                        (group[owner] if owner else group).attrs[attribute] = value
                    else:
                        group[key] = value
        return tmp_path / name

    return write


def assert_holds(found: data.Dataset, parts: list[dict[str, np.ndarray]]) -> None:
    k = 0
    for part in parts:
        for positions, energy, forces in zip(part["R"], part["E"], part["F"], strict=True):
            assert found.structures[k].numbers.tolist() == part["z"].tolist()
            np.testing.assert_allclose(found.structures[k].positions, positions, rtol=1e-13)
            np.testing.assert_allclose(found.forces[k], forces, rtol=1e-13)
            assert found.energies[k] == pytest.approx(energy, rel=1e-13)
            k += 1
    assert len(found) == k


def test_one_group_per_molecule(parts, written):
    found = data.read(written({"NH3": parts[0], "sub/H2O": parts[1]}), energy_unit="eV")
    assert_holds(found, parts)
    assert (found.source, found.labels, found.level_of_theory) == ("molecules.h5", "default", "")
    assert found.stress is None
    assert found.splits == {}
    assert found.isolated_energies is None
    assert all(atoms.info == {} and not atoms.pbc.any() for atoms in found.structures)


def test_all_structures_in_a_row(parts, written):
    arrays = in_a_row(parts)
    assert_holds(data.read(written({"/": arrays}), energy_unit="eV"), parts)
    arrays["n_atoms"] = np.diff(arrays.pop("offsets"))
    assert_holds(data.read(written({"all": arrays}, "a.hdf5"), energy_unit="eV"), parts)


def test_padded(parts, written):
    ammonia, water = parts
    wider = [(0, 0), (0, 1), (0, 0)]
    arrays = {
        "z": [AMMONIA] * 3 + [[*WATER, 0]] * 2,
        "E": np.concatenate([ammonia["E"], water["E"]]),
        "R": np.concatenate([ammonia["R"], np.pad(water["R"], wider)]),
        "F": np.concatenate([ammonia["F"], np.pad(water["F"], wider, constant_values=np.nan)]),
    }
    assert_holds(data.read(written({"/": arrays}), energy_unit="eV"), parts)


def test_one_group_per_structure(parts, written):
    """As `mlip` and chemreporter write them: the energy is an attribute."""
    water = parts[1]
    groups = {
        str(k): {
            "elements": WATER,
            "positions": water["R"][k],
            "forces": water["F"][k],
            "stress": k * np.eye(3),
            "cell": 9 * np.eye(3),
            "@energy": water["E"][k],
            "@charge": 0,
            "@spin": 3,
        }
        for k in range(2)
    }
    found = data.read(written(groups), energy_unit="eV")
    assert_holds(found, [water])
    np.testing.assert_array_equal(found.stress, [0 * np.eye(3), np.eye(3)])
    assert all(atoms.info == {"charge": 0, "spin": 3} for atoms in found.structures)
    assert all(atoms.pbc.all() and atoms.cell[0, 0] == 9 for atoms in found.structures)


def test_spice_names_units_and_gradients(parts, written):
    groups = {
        f"molecule {k}": {
            "atomic_numbers": part["z"],
            "conformations": part["R"] / units.Bohr,
            "conformations@units": "bohr",
            "dft_total_energy": part["E"] / units.Hartree,
            "dft_total_energy@units": "hartree",
            "dft_total_gradient": -part["F"] / units.Hartree * units.Bohr,
            "dft_total_gradient@units": "hartree/bohr",
            "formation_energy": part["E"] / units.Hartree + 1,
            "formation_energy@units": "hartree",
            "mbis_charges": np.zeros((*part["R"].shape[:2], 1)),
            "smiles": [b"[N:1]"],
            "subset": [b"SPICE"],
        }
        for k, part in enumerate(parts)
    }
    path = written(groups)
    assert_holds(data.read(path, labels="dft_total"), parts)
    formation = data.read(path, labels="formation", energy_unit="Hartree", length_unit="Bohr")
    assert formation.forces is None  # gradients of one label set are not those of another
    np.testing.assert_allclose(formation.energies[0], parts[0]["E"][0] + units.Hartree)
    message = "^molecules.h5: /molecule 0: several label sets: labels must be one of dft_total, f"
    with pytest.raises(ValueError, match=message):
        data.read(path)
    with pytest.raises(ValueError, match="no label set 'mp2': labels must be one of dft_total, "):
        data.read(path, labels="mp2")
    with pytest.raises(ValueError, match=r"^molecules.h5: /molecule 0: energy_unit='eV' contradi"):
        data.read(path, labels="dft_total", energy_unit="eV")


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ([b"[H:3][N+:1]([H:2])([H:4])[C:5]"], 1),
        ([b"[O-]C(=O)CC(=O)[O-]"], -2),
        ([b"[NH3+]CC(=O)[O-]"], 0),
        ([b"[Ca+2]"], 2),
        ([b"[Fe+++:1]"], 3),
        ([b"C-C#N"], 0),
        ([b"[", b"N", b"H", b"4", b"+", b"]", b"."], 1),  # ANI-1: letter by letter
    ],
)
def test_total_charge_from_smiles(parts, written, smiles, charge):
    water = parts[1]
    assert len(smiles) != len(water["E"]) or len(smiles) == 1
    path = written({"ion": water | {"smiles": smiles}})
    found = data.read(path, energy_unit="eV", length_unit="angstrom")
    assert {atoms.info.get("charge", 0) for atoms in found.structures} == {charge}
    path = written({"ion": water | {"smiles": smiles, "charge": -1}})  # what is said counts
    found = data.read(path, energy_unit="eV", length_unit="angstrom")
    assert {atoms.info["charge"] for atoms in found.structures} == {-1}


def test_smiles_of_another_number_than_structures(parts, written):
    ammonia = parts[0]  # three structures
    read = lambda smiles: data.read(  # noqa: E731
        written({"ion": ammonia | {"smiles": smiles}}), energy_unit="eV"
    )
    alike = read([b"[NH2-]", b"[NH2-]"])
    assert [a.info["charge"] for a in alike.structures] == [-1, -1, -1]
    letters = read([b"[", b"+", b"]"])  # as many letters as structures
    assert [a.info["charge"] for a in letters.structures] == [1, 1, 1]
    message = r"smiles says 2 charges for 3 structures: store charge \[3\] instead"
    with pytest.raises(ValueError, match=message):
        read([b"N", b"[NH4+]"])


def test_one_smiles_per_structure(parts, written):
    water = parts[1]
    smiles = [b"[OH-]", *[b"O"] * (len(water["E"]) - 1)]
    found = data.read(written({"mixed": water | {"smiles": smiles}}), energy_unit="eV")
    assert [a.info.get("charge", 0) for a in found.structures] == [-1] + [0] * (len(smiles) - 1)


def test_ani_names_and_symbols(parts, written):
    water = parts[1]
    one = {"coordinates": water["R"], "ccsd(t)_cbs.energy": water["E"] + 1}
    one |= {"wb97x_dz.energy": water["E"], "wb97x_dz.forces": water["F"], "atomic_numbers": WATER}
    path = written({"H2O": one})
    assert_holds(data.read(path, energy_unit="eV", labels="wb97x_dz"), [water])
    assert data.read(path, energy_unit="eV", labels="ccsd(t)_cbs").forces is None
    older = {"coordinates": water["R"], "energies": water["E"], "forces": water["F"]}
    older |= {"species": [b"O", b"H", b"H"], "smiles": [b"O"]}
    assert_holds(data.read(written({"gdb/s01/1": older}), energy_unit="eV"), [water])
    for species, message in (
        ([8, 1, 1], "species must be chemical symbols: store atomic numbers as z"),
        ([b"O", b"H", b"Hx"], "atomic numbers: no such element: 'Hx'"),
    ):
        path = written({"H2O": older | {"species": species}})
        with pytest.raises(ValueError, match=f"^molecules.h5: /H2O: {message}"):
            data.read(path, energy_unit="eV")


def test_stored_units_of_file_group_and_array(parts, written):
    kcal = units.kcal / units.mol
    ammonia, water = parts
    ammonia_kcal = ammonia | {"E": ammonia["E"] / kcal, "F": ammonia["F"] / kcal}
    water_bohr = water | {"R": water["R"] / units.Bohr, "@units": "eV; R: Bohr; F: eV/angstrom"}
    both = {"NH3": ammonia_kcal | {"E@units": "kcal/mol", "F@unit": "kcal/mol/Å"}, "O": water_bohr}
    assert_holds(data.read(written(both)), parts)
    path = written({"/": {"@units": "E: kcal/mol"}, "NH3": ammonia_kcal})
    assert_holds(data.read(path), parts[:1])
    assert_holds(data.read(path, energy_unit="kcal/mol"), parts[:1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "the file does not state its energy unit: pass energy_unit, one of eV, meV"),
        ({"@units": "E: eV", "E@units": "meV"}, "energy is stored in two units, 'eV' and 'meV'"),
        ({"E@units": "eV", "E@unit": "kcal/mol"}, "energy is stored in two units"),
        (
            {"E@units": "eV", "cell": np.eye(3), "cell@units": "Å", "R@units": "Bohr"},
            "length is stored in two units, 'Bohr' and 'Å'",
        ),
        ({"@units": "E: eV; R: Bohr; cell: nm"}, "R is stored in Bohr but cell in nm: all length"),
        ({"E@units": "eV/atom"}, "unknown unit 'eV/atom'"),
        ({"E@units": 1.0}, "unknown unit '1.0'"),
        ({"E@units": "Bohr"}, "'Bohr' is not a unit of energy"),
    ],
)
def test_units_that_do_not_fit(parts, written, more, message):
    path = written({"H2O": parts[1] | more})
    with pytest.raises(ValueError, match=rf"^molecules.h5: /H2O: .*{message}") as error:
        data.read(path)
    assert "\n" not in str(error.value)


def test_label_sets_of_md17_style(parts, written):
    water = parts[1]
    more = {"E_md17": water["E"] + 1, "F_md17": -water["F"], "E_min": -1.0}
    path = written({"/": water | more})
    assert_holds(data.read(path, energy_unit="eV"), [water])
    old = data.read(path, energy_unit="eV", labels="md17")
    assert_holds(old, [water | {"E": water["E"] + 1, "F": -water["F"]}])
    assert (data.read(path, energy_unit="eV").labels, old.labels) == ("rmd17", "md17")


def test_one_label_set_in_the_whole_file(parts, written):
    ammonia, water = parts
    renamed = {"REF_energy" if key == "E" else key: array for key, array in ammonia.items()}
    path = written({"H2O": water, "NH3": renamed})
    message = "^molecules.h5: /NH3: no label set 'default': labels must be one of REF$"
    with pytest.raises(ValueError, match=message):
        data.read(path, energy_unit="eV")


def test_what_holds_for_all_groups(parts, written):
    root = {
        "@level_of_theory": "GFN2-xTB",
        "@units": "meV",
        "e0_z": [1, 7, 8],
        "e0": [-1000.0, -2000.0, -3000.0],
        "train_01": [4, 0],
        "test_01": [1],
        "train_loss": [0.5],
    }
    found = data.read(written({"/": root, "NH3": parts[0], "H2O": parts[1]}))
    assert found.level_of_theory == "GFN2-xTB"
    assert found.isolated_energies == pytest.approx({1: -1, 7: -2, 8: -3})
    assert {k: v.tolist() for k, v in found.splits.items()} == {"train_01": [4, 0], "test_01": [1]}
    assert found.structures[0].get_chemical_formula() == "H2O"  # groups in alphabetical order
    with pytest.raises(
        ValueError, match=r'^molecules.h5: split "test" lists structures beyond the 2 of'
    ):
        data.read(written({"/": parts[1] | {"test": [2]}}), energy_unit="eV")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": [8, 1]}, r"atomic numbers must have shape \[3\] or \[2, 3\], got \[2\]"),
        ({"z": [8, 1, 119]}, "structure 0"),
        ({"E": [b"a", b"b"]}, "E must be numbers, got an array of"),
        ({"F": np.full((2, 3, 3), np.nan)}, "the force of structure 0 is not finite"),
        ({"z": None}, "no atomic numbers: one of the keys z, .* is needed, the file has R, F, E"),
        ({"E": None}, "no energies: one of the keys E, .* is needed, the file has"),
    ],
)
@pytest.mark.parametrize("place", ["/", "H2O"])
def test_wrong_content_is_refused_in_one_line(parts, written, change, message, place):
    arrays = {key: array for key, array in (parts[1] | change).items() if array is not None}
    start = "molecules.h5: " if place == "/" else "molecules.h5: /H2O: "
    message = message.replace("the file has R, F, E", "the file has")
    with pytest.raises(ValueError, match=rf"^{start}.*{message}") as error:
        data.read(written({place: arrays}), energy_unit="eV")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": None}, r"positions of shape \[18, 3\] and 5 energies need offsets \[6\] or n"),
        ({"offsets": [0, 4, 8, 12, 15, 17]}, "offsets must rise from 0 to the number .*, 18"),
        ({"offsets": [1, 4, 8, 12, 15, 18]}, "offsets must rise from 0"),
        ({"offsets": [0, 8, 4, 12, 15, 18]}, "offsets must rise from 0"),
        ({"offsets": [0, 4, 4, 12, 15, 18]}, "offsets must rise from 0"),
        ({"offsets": [0.5, 4, 8, 12, 15, 18]}, "offsets must hold integers, got 0.5"),
        ({"offsets": []}, "offsets must rise from 0"),
        ({"offsets": None, "n_atoms": [4, 4]}, "n_atoms must be positive and add up to the"),
        ({"offsets": [0, 4, 8, 12, 18]}, r"energies must have shape \[4\], one per structure"),
        ({"z": WATER}, r"atomic numbers must have shape \[18\], as the positions have, got \[3\]"),
        ({"F": np.zeros((5, 3))}, r"F must have the shape of the positions, \[18, 3\], got \[5, "),
    ],
)
def test_wrong_rows_are_refused(parts, written, change, message):
    arrays = {key: a for key, a in (in_a_row(parts) | change).items() if a is not None}
    with pytest.raises(ValueError, match=rf"^molecules.h5: .*{message}") as error:
        data.read(written({"/": arrays}), energy_unit="eV")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"F": None},
            "/NH3 has no forces but /H2O has: remove ",
        ),
        ({"stress": np.zeros((3, 3, 3))}, "/H2O has no stress but /NH3 has"),
        (
            {"@theory": "HF"},
            "structures of different levels of theory cannot be joined: HF, PBE",
        ),
        ({"e0_z": [1], "e0": [-9.0]}, "/NH3 gives another energy of the isolated atom 1"),
    ],
)
def test_groups_must_agree(parts, written, change, message):
    ammonia = {key: a for key, a in (parts[0] | change).items() if a is not None}
    water = parts[1] | {"@theory": "PBE", "e0_z": [1], "e0": [-13.0]}
    with pytest.raises(ValueError, match=rf"^molecules.h5: .*{message}"):
        data.read(written({"H2O": water, "NH3": ammonia}), energy_unit="eV")


def test_files_without_structures(written):
    message = "^molecules.h5: no positions: a group with one of the arrays R, .*the file has "
    for groups, has in (({}, "none"), ({"md": {"steps": [1, 2]}}, "md"), ({"R/z": {}}, "R")):
        with pytest.raises(ValueError, match=f"{message}{has}$"):
            data.read(written(groups), energy_unit="eV")


def test_checksums_that_are_stored_are_checked(parts, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, array in parts[1].items():
            file.create_dataset(key, data=array, fletcher32=True, chunks=True)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[content.find(parts[1]["R"].tobytes()) + 9] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"^a.h5: the file is truncated, damaged or not HDF5"):
        data.read(tmp_path / "a.h5", energy_unit="eV")


def test_an_array_that_claims_more_than_there_is(parts, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, array in parts[1].items():
            file[key] = array
        del file["R"]
        file.create_dataset("R", shape=(1 << 30, 3, 3), dtype="f8", chunks=(1 << 10, 3, 3))
    with pytest.raises(ValueError, match=r"^a.h5: its arrays would take 72.0 GiB"):
        data.read(tmp_path / "a.h5", energy_unit="eV")


def test_links_within_the_file(parts, written):
    path = written({"H2O": parts[1]})
    with h5py.File(path, "a") as file:
        file["kept"] = file["H2O"]["F"]
        del file["H2O"]["F"]
        file["H2O"]["F"] = h5py.SoftLink("/kept")
        file["H2O"]["nothing"] = h5py.SoftLink("/nowhere")
        file["H2O"]["empty"] = h5py.Empty("f8")
        file["H2O"].attrs["remark"] = h5py.Empty("f8")
        file["again"] = h5py.SoftLink("/H2O")
        file["H2O"]["round"] = file["H2O"]
    assert_holds(data.read(path, energy_unit="eV"), parts[1:])


def test_the_level_of_theory_that_only_some_parts_state(tmp_path):
    one = data.Dataset(structures=(Atoms("H"),), energies=np.zeros(1), level_of_theory="HF")
    silent = dataclasses.replace(one, level_of_theory="")
    assert data.write_hdf5([silent, one], tmp_path / "a.h5") == 2
    assert data.read(tmp_path / "a.h5").level_of_theory == "HF"


def test_files_with_other_energies_of_isolated_atoms_are_not_joined(tmp_path):
    """As in `concatenate`: they count energies from different zeros."""
    parts = [
        data.Dataset([Atoms("H")], np.zeros(1), source=name, isolated_energies={1: energy})
        for name, energy in (("a.npz", -13.0), ("b.npz", -10.0))
    ]
    with pytest.raises(ValueError, match=r"b\.npz gives another energy of the isolated atom 1"):
        data.write_hdf5(parts, tmp_path / "ab.h5")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match=r"b\.npz gives another energy of the isolated atom 1"):
        data.concatenate(parts)
