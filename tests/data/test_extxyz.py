"""Extended XYZ and `from_ase`: labels, units, charge and spin, splits, and bad files."""

import logging
import re
from itertools import combinations
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from attncalc import data

SMALL_MOLECULES = Path(__file__).parent / "xtb_small_molecules_test.extxyz"


@pytest.fixture
def crystals() -> list[Atoms]:
    """Two strained copper crystals with EMT labels."""
    frames = []
    for k in range(2):
        atoms = bulk("Cu") * (2, 1, 1)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.tri(3)), scale_atoms=True)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, stress=atoms.get_stress(), **results)
        frames.append(atoms)
    return frames


@pytest.fixture
def written(tmp_path):
    """Write frames to an extended XYZ file and give its path."""

    def write(frames, name="frames.extxyz"):
        ase.io.write(tmp_path / name, frames, format="extxyz")
        return tmp_path / name

    return write


def _assert_labels_of(found: data.Dataset, frames: list[Atoms], atol: float = 1e-7) -> None:
    assert len(found) == len(frames)
    for k, atoms in enumerate(frames):
        results = atoms.calc.results
        assert found.energies[k] == pytest.approx(results["energy"], abs=atol)
        np.testing.assert_allclose(found.forces[k], results["forces"], atol=atol)
        np.testing.assert_allclose(found.structures[k].positions, atoms.positions, atol=atol)
        np.testing.assert_allclose(found.structures[k].cell.array, atoms.cell.array, atol=atol)
        assert found.structures[k].calc is None
        full = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(found.stress[k], full, atol=atol)


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.xyz", "FRAMES.XYZ"])
def test_round_trip(crystals, written, name):
    found = data.read(written(crystals, name))
    _assert_labels_of(found, crystals)
    assert (found.source, found.labels, found.level_of_theory) == (name, "default", "")


def test_from_ase_leaves_the_frames_alone(crystals):
    found = data.from_ase(crystals, source="emt")
    _assert_labels_of(found, crystals, atol=0)
    found.structures[0].positions += 1
    assert abs(crystals[0].positions - found.structures[0].positions).min() > 0.9
    assert crystals[0].calc is not None
    assert found.source == "emt"


def test_declared_and_stored_units(crystals, written):
    kcal, bohr = units.kcal / units.mol, units.Bohr
    converted = []
    for atoms in crystals:
        other = Atoms(atoms.numbers, atoms.positions / bohr, cell=atoms.cell / bohr, pbc=True)
        other.calc = SinglePointCalculator(
            other,
            energy=atoms.calc.results["energy"] / kcal,
            forces=atoms.calc.results["forces"] / kcal * bohr,
            stress=atoms.calc.results["stress"] / kcal * bohr**3,
        )
        converted.append(other)
    path = written(converted)
    arguments = {"energy_unit": "kcal/mol", "length_unit": "Bohr"}
    _assert_labels_of(data.read(path, **arguments), crystals)
    for atoms in converted:
        atoms.info["units"] = "E: kcal/mol; F: kcal/mol/Bohr; R: Bohr"
    path = written(converted)
    _assert_labels_of(data.read(path), crystals)
    _assert_labels_of(data.read(path, **arguments), crystals)
    with pytest.raises(ValueError, match=r"^frames.extxyz: length_unit='Angstrom' contradicts"):
        data.read(path, length_unit="Angstrom")


def test_labels_in_info_and_arrays_with_a_prefix(crystals, written, caplog):
    for atoms in crystals:
        results = atoms.calc.results
        atoms.calc = None
        atoms.info["REF_energy"] = results["energy"]
        atoms.info["REF_stress"] = results["stress"]
        atoms.arrays["REF_forces"] = results["forces"]
    found = data.read(written(crystals))  # the only set needs no name
    assert found.labels == "REF"
    assert found.stress.shape == (2, 3, 3)
    assert found.forces[1].shape == (2, 3)
    np.testing.assert_allclose(found.energies, [atoms.info["REF_energy"] for atoms in crystals])
    for atoms in crystals:
        atoms.info["CC_energy"] = atoms.info["REF_energy"] - 1
        atoms.info |= {"zero_point_energy": 0.5, "kinetic_energy": 0.1}  # are no labels
    path = written(crystals)
    cc = data.read(path, labels="CC")
    np.testing.assert_allclose(cc.energies, found.energies - 1)
    assert cc.forces is None
    with pytest.raises(ValueError, match="several label sets: labels must be one of REF, CC"):
        data.read(path)
    for atoms in crystals:
        atoms.info["energy"] = 3.0
    path = written(crystals)
    with caplog.at_level(logging.INFO):
        assert data.read(path, labels="default").labels == "default"
        said = "frames.extxyz: its default labels are read; it has others: REF, CC"
        assert said not in caplog.messages
        assert data.read(path).energies.tolist() == [3.0, 3.0]
    assert caplog.messages.count(said) == 1
    message = "^frames.extxyz: no label set 'HF': labels must be one of default, REF, CC$"
    with pytest.raises(ValueError, match=message):
        data.read(path, labels="HF")


def test_charge_spin_and_level_of_theory(written):
    frames = []
    for charge, key, spin in ((0, "spin", 3), (1, "multiplicity", 2), (-1, None, None)):
        atoms = molecule("O2")
        atoms.info |= {"charge": charge, "energy": -1.0, "level_of_theory": "HF", "time_fs": 3.0}
        if key:
            atoms.info[key] = spin
        frames.append(atoms)
    found = data.read(written(frames))
    assert [atoms.info for atoms in found.structures] == [
        {"charge": 0, "spin": 3},
        {"charge": 1, "spin": 2},
        {"charge": -1},
    ]
    assert found.level_of_theory == "HF"
    assert found.forces is None
    assert found.stress is None
    frames[1].info["multiplicity"] = 1
    with pytest.raises(ValueError, match=r"^frames.extxyz: structure 1: .* is impossible"):
        data.read(written(frames))


def test_levels_of_theory_of_one_file_must_agree(written):
    frames = [molecule("O2") for _ in range(3)]
    for atoms, level in zip(frames, ("HF", None, "PBE"), strict=True):
        atoms.info |= {"energy": -1.0} | ({"level_of_theory": level} if level else {})
    assert data.read(written(frames[:2])).level_of_theory == "HF"
    expected = "^frames.extxyz: structures of different levels of theory cannot be joined: HF, PBE$"
    with pytest.raises(ValueError, match=expected):
        data.read(written(frames))


def test_molecules_among_crystals_have_no_stress(crystals, written, caplog):
    """As `attncalc label` writes them."""
    alone = Atoms("Cu")
    alone.calc = SinglePointCalculator(alone, energy=0.0, forces=np.zeros((1, 3)))
    assert data.read(written(crystals)).stress is not None
    assert not caplog.messages
    found = data.read(written([*crystals, alone]))
    assert len(found) == len(crystals) + 1
    assert found.stress is None
    n = len(crystals) + 1
    assert caplog.messages == [
        f"frames.extxyz: stress is left out: 1 of {n} structures are not periodic and have none"
    ]


def test_splits_and_groups(written):
    frames = []
    for part, group in (("train", "bulk"), ("test", "slab"), ("train", "slab"), (None, "test")):
        atoms = Atoms("H", info={"energy": 0.0, "group": group})
        if part:
            atoms.info["split"] = part
        frames.append(atoms)
    splits = data.read(written(frames)).splits
    assert {name: indices.tolist() for name, indices in splits.items()} == {
        "train": [0, 2],
        "test": [1],
        "bulk": [0],
        "slab": [1, 2],
        "group=test": [3],
    }


def lone(symbol: str, energy: float | None, **info) -> Atoms:
    atoms = Atoms(symbol, cell=[9, 9, 9], info={"config_type": "IsolatedAtom", **info})
    if energy is not None:
        atoms.info["REF_energy"] = energy
    return atoms


@pytest.fixture
def molecules() -> list[Atoms]:
    """Two water molecules with a label set "REF", as for MACE."""
    found = [Atoms("OHH", np.eye(3), info={"REF_energy": -2080.0 - k}) for k in range(2)]
    for atoms in found:
        atoms.set_array("REF_forces", np.zeros((3, 3)))
    return found


def test_isolated_atoms_are_reference_energies(molecules, written, caplog):
    """Wherever they are, and without forces; places in the file stay known."""
    caplog.set_level("INFO")
    frames = [lone("H", -13.5), molecules[0], lone("O", -2040.0), molecules[1]]
    found = data.read(written(frames))
    assert found.isolated_energies == {1: -13.5, 8: -2040.0}
    assert [len(atoms) for atoms in found.structures] == [3, 3]
    assert found.energies.tolist() == [-2080.0, -2081.0]
    assert len(found.forces) == 2
    assert found.indices.tolist() == [1, 3]
    assert found[[1]].indices.tolist() == [3]
    assert found.splits == {}
    assert caplog.messages == ["frames.extxyz: energies of isolated atoms are read: H O"]
    in_eV = data.from_ase(frames, energy_unit="Hartree").isolated_energies[1]
    assert in_eV == pytest.approx(-13.5 * units.Hartree)


@pytest.mark.parametrize("n", [1, 2, 3, None])
@pytest.mark.parametrize("order", ["first", "last"])
def test_isolated_atoms_in_parts(molecules, written, n, order):
    """A part of isolated atoms alone would have no structure."""
    atoms = [lone("H", -13.5), lone("O", -2040.0)]
    path = written([*atoms, *molecules] if order == "first" else [*molecules, *atoms])
    parts = list(data.read_parts(path, n) if n else [data.read(path)])
    assert sum(map(len, parts)) == 2
    found: dict[int, float] = {}
    for part in parts:
        found |= part.isolated_energies or {}
    assert found == {1: -13.5, 8: -2040.0}


def test_free_energies_of_isolated_atoms_alone(crystals, written):
    """They do not say what is read of structures in later parts."""
    alone = Atoms("Cu", info={"config_type": "IsolatedAtom"})
    results = {"energy": 1.0, "free_energy": 0.75, "forces": np.zeros((1, 3))}
    alone.calc = SinglePointCalculator(alone, **results)
    parts = list(data.read_parts(written([alone, *crystals]), 2))
    assert [len(part) for part in parts] == [1, 1]
    assert parts[0].isolated_energies == {29: 1.0}


def test_isolated_atoms_in_another_file_format(molecules, written, tmp_path):
    data.write_hdf5(data.read(written([lone("H", -13.5), *molecules])), tmp_path / "data.h5")
    found = data.read(tmp_path / "data.h5")
    assert found.isolated_energies == {1: -13.5}
    assert len(found) == 2


def test_free_energies_of_isolated_atoms(crystals):
    for k, atoms in enumerate(crystals):
        atoms.calc.results["free_energy"] = atoms.calc.results["energy"] - 0.01 * (k + 1)
    alone = Atoms("Cu", info={"config_type": "isolated_atom"})
    alone.calc = SinglePointCalculator(alone, energy=1.0, free_energy=0.75)
    assert data.from_ase([*crystals, alone]).isolated_energies == {29: 0.75}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([lone("H", -13.5), lone("H", -13.6)], "isolated H has two energies: remove one of them"),
        ([lone("H", None)], "isolated H has no REF_energy, or not as one number: give it, or rem"),
        ([lone("H", np.nan)], "the energy of the isolated atom 1 is not that of an element"),
    ],
    ids=["two", "none", "not a number"],
)
def test_wrong_isolated_atoms_are_refused(molecules, frames, message):
    with pytest.raises(ValueError, match=message):
        data.from_ase([*molecules, *frames])


def test_single_atoms_that_stay_structures(molecules):
    """A charged one, and one that does not say that it is isolated."""
    others = [lone("H", 0.0, charge=1), lone("H", -13.5, config_type="gas")]
    for atoms in others:
        atoms.set_array("REF_forces", np.zeros((1, 3)))
    found = data.from_ase([*molecules, *others])
    assert len(found) == 4
    assert found.isolated_energies is None
    assert found.indices is None


def test_only_isolated_atoms():
    with pytest.raises(ValueError, match="it contains no structures but isolated atoms"):
        data.from_ase([lone("H", -13.5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[1].calc.results.pop("energy"), "structure 1 has no energy"),
        (
            lambda frames: frames[0].calc.results.pop("forces"),
            "structure 0 has no forces but structure 1 has: remove structure 0, or this label fr",
        ),
        (lambda frames: frames[1].calc.results.pop("stress"), "structure 1 has no stress"),
        (
            lambda frames: frames[1].calc.results.update(energy=np.nan),
            "the energy of structure 1 is not finite",
        ),
        (lambda frames: frames[0].positions.fill(np.nan), "the position of structure 0 is not"),
        (
            lambda frames: frames[0].calc.results.update(stress=np.zeros(5)),
            "stress of structure 0 must have 6 or 9 numbers, got 5",
        ),
        (
            lambda frames: frames[1].calc.results.update(energy="low"),
            "energy of structure 1 is not a number: 'low'",
        ),
        (lambda frames: frames.clear(), "it contains no structures"),
        (
            lambda frames: [setattr(atoms, "calc", None) for atoms in frames],
            "structure 0 has no energy",
        ),
    ],
)
def test_wrong_labels_are_refused(crystals, change, message):
    change(crystals)
    with pytest.raises(ValueError, match=r"^emt: " + message):
        data.from_ase(crystals, source="emt")


def test_plain_xyz_has_no_energy(tmp_path):
    molecule("H2O").write(tmp_path / "a.xyz", format="xyz")
    with pytest.raises(ValueError, match=r"^a.xyz: structure 0 has no energy"):
        data.read(tmp_path / "a.xyz")


def test_committed_small_molecules():
    dataset = data.read(SMALL_MOLECULES)
    assert (len(dataset), dataset.level_of_theory) == (120, "GFN2-xTB")
    assert len(dataset.splits) == 12
    assert all(len(indices) == 10 for indices in dataset.splits.values())
    assert all(atoms.info == {"charge": 0, "spin": 1} for atoms in dataset.structures)
    assert all(abs(forces.sum(axis=0)).max() < 1e-4 for forces in dataset.forces)
    assert list(data.reference_energies(dataset)) == [1, 6, 7, 8]
    assert 0.8 < data.shortest_distance(dataset) < 1.1


def test_labels_of_small_molecules_are_those_of_the_stored_positions():
    tblite = pytest.importorskip("tblite.ase", reason="needs tblite: pip install attncalc[xtb]")
    dataset = data.read(SMALL_MOLECULES)
    for k in range(0, len(dataset), 10):  # one of each molecule
        atoms = dataset.structures[k].copy()
        atoms.calc = tblite.TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
        assert atoms.get_potential_energy() == pytest.approx(dataset.energies[k], abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), dataset.forces[k], atol=2e-5)


def test_real_stress_of_silicon(shared_file):
    dataset = data.read(shared_file("mlearn_Si.extxyz"))
    assert len(dataset) == 239
    assert dataset.stress.shape == (239, 3, 3)
    np.testing.assert_allclose(dataset.stress, dataset.stress.transpose(0, 2, 1), atol=1e-9)
    parts = dataset.splits["training"], dataset.splits["test"]
    assert sorted(np.concatenate(parts)) == list(range(239))
    assert data.shortest_distance(dataset) > 1.5
    # Energy differences of strained cells against V σ:ε, in eV.
    strained = dataset[dataset.splits["Elastic"]]
    work, differences = [], []
    for i, j in combinations(range(len(strained)), 2):
        first, second = strained.structures[i], strained.structures[j]
        strain = np.linalg.solve(first.cell.array, second.cell.array) - np.eye(3)
        largest_force = max(abs(strained.forces[k]).max() for k in (i, j))
        if abs(strain).max() < 0.04 and largest_force < 0.02:
            first_virial, second_virial = (
                strained.structures[k].cell.volume * strained.stress[k] for k in (i, j)
            )
            work.append(np.vdot(0.5 * (first_virial + second_virial), strain))
            differences.append(strained.energies[j] - strained.energies[i])
    assert len(work) > 50
    assert np.corrcoef(work, differences)[0, 1] > 0.999
    assert np.vdot(work, differences) / np.vdot(work, work) == pytest.approx(1, abs=0.02)


def test_real_xtb_cation_and_single_frame(shared_file):
    cation = data.read(shared_file("xtb_c10h3_cation.extxyz"))
    assert (len(cation), len(cation.forces)) == (500, 500)
    assert all(atoms.info == {"charge": 1} for atoms in cation.structures)
    single = data.read(shared_file("md22_stachyose_frame0.extxyz"))
    assert (len(single), len(single.structures[0]), single.labels) == (1, 87, "default")
    assert single.energies[0] == pytest.approx(-68464.35, abs=0.1)


def test_real_spice_groups(shared_file):
    dataset = data.read(shared_file("spice_dev.extxyz"))
    assert {name: len(indices) for name, indices in dataset.splits.items()} == {
        "dipeptides": 119,
        "pubchem": 114,
        "water": 81,
    }


def test_the_total_charge_under_another_name(written):
    frames = [molecule("OH", info={"total_charge": -1, "energy": -1.0}) for _ in range(2)]
    found = data.read(written(frames))
    assert [atoms.info for atoms in found.structures] == [{"charge": -1}, {"charge": -1}]
    frames[1].info["charge"] = 1
    with pytest.raises(
        ValueError, match=r"^frames.extxyz: structure 1 has charge 1, but total_charge -1"
    ):
        data.read(written(frames))


def test_what_is_not_read_is_said(written, caplog):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"energy": -1.0})
    atoms.set_initial_charges([-1.0, 0.0])
    atoms.new_array("dft_forces", np.zeros((2, 3)))
    data.read(written([atoms]))
    assert "frames.extxyz: initial charges of the atoms are not read: set atoms.info" in caplog.text
    assert "frames.extxyz: there are no forces, but dft_forces" in caplog.text
    caplog.clear()
    atoms.info["total_charge"] = -1
    data.from_ase([atoms])
    assert "initial charges" not in caplog.text


def test_the_energy_is_that_of_which_forces_are_derivatives(tmp_path, caplog):
    """As of metals in VASP, where `energy` is extrapolated to zero smearing."""
    frames = [bulk("Cu", a=a) for a in (3.5, 3.6)]
    for k, atoms in enumerate(frames):
        labels = {"energy": -3.0 - k, "free_energy": -3.5 - k, "forces": np.zeros((1, 3))}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write(tmp_path / "cu.extxyz", frames)
    ase.io.write(tmp_path / "cu.traj", frames)
    ase.io.write(tmp_path / "cu.db", frames)
    for name in ("cu.extxyz", "cu.traj", "cu.db"):
        caplog.clear()
        assert data.read(tmp_path / name).energies.tolist() == [-3.5, -4.5]
        said = f"{name}: free_energy is read, not energy: forces derive from it"
        assert caplog.messages == [said]
    for atoms in frames:
        del atoms.calc.results["forces"]
    assert data.from_ase(frames).energies.tolist() == [-3.0, -4.0], "energies alone"
    for atoms in frames:
        atoms.calc.results |= {
            "free_energy": atoms.calc.results["energy"],
            "forces": np.zeros((1, 3)),
        }
    caplog.clear()
    assert data.from_ase(frames).energies.tolist() == [-3.0, -4.0]
    assert not caplog.messages


def test_free_energies_of_some_structures_are_not_mixed_with_energies(tmp_path):
    frames = [bulk("Cu") for _ in range(4)]
    for k, atoms in enumerate(frames):
        free = {} if k == 3 else {"free_energy": -3.5}
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.zeros((1, 3)), **free)
    ase.io.write(tmp_path / "cu.extxyz", frames)
    lacks = "has no free_energy but structure 0 has"
    with pytest.raises(ValueError, match=f"structure 3 {lacks}"):
        data.read(tmp_path / "cu.extxyz")
    parts = data.read_parts(tmp_path / "cu.extxyz", 2)
    assert next(parts).energies.tolist() == [-3.5, -3.5]
    with pytest.raises(
        ValueError, match="counted from structure 2: structure 1 has no free_energy"
    ):
        next(parts)
    ase.io.write(tmp_path / "cu.extxyz", frames[::-1])
    with pytest.raises(ValueError, match="structure 0 has no free_energy but structure 1 has"):
        data.read(tmp_path / "cu.extxyz")
    parts = data.read_parts(tmp_path / "cu.extxyz", 1)
    assert next(parts).energies.tolist() == [-3.0]
    differs = "structure 0 has a free_energy other than its energy, but earlier structures have non"
    with pytest.raises(ValueError, match=f"counted from structure 1: {differs}"):
        next(parts)
    ase.io.write(tmp_path / "cu.extxyz", frames)
    with pytest.raises(ValueError, match="counted from structure 3: no free_energy, which is read"):
        list(data.read_parts(tmp_path / "cu.extxyz", 3))
    for atoms in frames[:3]:
        atoms.calc.results["free_energy"] = -3.0
    for some in (frames, frames[::-1]):
        assert data.from_ase(some).energies.tolist() == [-3.0] * 4, "there is no difference"
    frames[2].calc.results["free_energy"] = -3.5
    ase.io.write(tmp_path / "cu.extxyz", frames[:3])
    later = [part.energies.item() for part in data.read_parts(tmp_path / "cu.extxyz", 1)]
    assert later == [-3.0, -3.0, -3.5], "all have one, so all energies are free energies"
    for other in (np.nan, np.zeros(1)):  # no free energy of the structure
        for atoms in frames:
            atoms.calc.results["free_energy"] = other
        assert data.from_ase(frames).energies.tolist() == [-3.0] * 4


@pytest.mark.parametrize(("key", "energy"), [("virial", "energy"), ("REF_virials", "REF_energy")])
def test_a_virial_is_read_as_stress(tmp_path, caplog, key: str, energy: str):
    """As the strain derivative of EMT's energy, which ASE calls stress, is read."""
    frames = []
    for k in range(2):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.calc = EMT()
        expected = atoms.get_stress(voigt=False)
        copy = atoms.copy()
        copy.info |= {energy: atoms.get_potential_energy(), key: -expected * atoms.get_volume()}
        frames.append((copy, expected))
    path = tmp_path / "cu.extxyz"
    ase.io.write(path, [atoms for atoms, _ in frames])
    found = data.read(path).stress
    np.testing.assert_allclose(found, [stress for _, stress in frames], rtol=1e-6, atol=1e-7)
    assert not caplog.messages

    for atoms, _ in frames:  # virials have the unit of the energies, unless they have their own
        atoms.info["units"] = f"{energy}: Hartree"
    np.testing.assert_allclose(
        data.from_ase([atoms for atoms, _ in frames]).stress, units.Hartree * found
    )
    for atoms, _ in frames:
        atoms.info["units"] = f"{energy}: Hartree; {key}: eV"
    np.testing.assert_allclose(data.from_ase([atoms for atoms, _ in frames]).stress, found)


def test_units_of_what_is_not_read_do_not_matter():
    atoms = bulk("Cu")
    atoms.info |= {"REF_energy": 1.0, "stress": np.eye(3), "virial": np.eye(3)}
    atoms.info["units"] = "energy: eV; REF_stress: GPa; stress: eV/A^3; virial: none"
    np.testing.assert_allclose(data.from_ase([atoms]).stress, [np.eye(3)])


@pytest.mark.parametrize("prefix", ["", "REF_"])
@pytest.mark.parametrize("name", ["", "REF_"])
def test_units_of_stress_and_dipole(prefix: str, name: str):
    """Also of a label set: its unit was ignored, and GPa were read as eV/Å³."""
    crystal, water = bulk("Cu"), molecule("H2O")
    for atoms, key, value, unit, factor in (
        (crystal, "stress", np.eye(3), "GPa", units.GPa),
        (water, "dipole", np.ones(3), "Debye", units.Debye),
    ):
        atoms.info = {f"{prefix}energy": 1.0, prefix + key: value}
        atoms.info["units"] = f"energy: eV; {name if prefix else ''}{key}: {unit}"
        dataset = data.from_ase([atoms])
        found = dataset.stress if key == "stress" else dataset.dipoles
        np.testing.assert_allclose(found, [factor * value])


def test_virials_of_some_structures_are_left_out(tmp_path, caplog):
    """As in data of GAP, where some structures have none; a stress would be an error."""
    frames = [bulk("Cu"), bulk("Cu")]
    frames[0].info["virial"] = np.eye(3)
    for atoms in frames:
        atoms.info["energy"] = 1.0
    path = tmp_path / "cu.extxyz"
    ase.io.write(path, frames)
    assert data.read(path).stress is None
    said = "cu.extxyz: virial is left out: 1 of 2 structures have none, or no volume"
    assert caplog.messages == [said]
    caplog.clear()
    alone = molecule("H2O")  # its virial is no stress
    alone.info |= {"energy": 1.0, "virial": np.eye(3)}
    assert data.from_ase([alone]).stress is None
    frames[0].info["virial"] = np.full((3, 3), np.nan)
    assert data.from_ase(frames[:1]).stress is None
    frames[0].info |= {"virial": np.zeros((3, 3)), "REF_virial": np.eye(3), "virials": np.eye(3)}
    frames[1].info["virials"] = 2 * np.eye(3)  # the name that all have
    assert data.from_ase(frames).stress[1, 0, 0] == pytest.approx(-2 / frames[1].get_volume())
    crystal = bulk("Cu", cubic=True)  # virials of atoms are none of the structure
    crystal.info["energy"] = 1.0
    crystal.set_array("virial", np.ones((4, 9)))
    assert data.from_ase([crystal]).stress is None
    frames[0].info |= {"stress": np.eye(3), "virial": np.zeros((3, 3))}
    np.testing.assert_allclose(
        data.from_ase(frames[:1]).stress, [np.eye(3)]
    )  # what is named so comes first


def test_forces_and_stress_may_have_no_prefix_if_no_energy_is_without(tmp_path):
    atoms = bulk("Cu")
    atoms.info |= {"total_energy": 1.0, "stress": np.eye(3)}
    atoms.arrays["forces"] = np.ones((1, 3))
    ase.io.write(tmp_path / "cu.extxyz", atoms)
    read = data.read(tmp_path / "cu.extxyz")
    assert (read.labels, read.forces[0].tolist()) == ("total", [[1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(read.stress[0], np.eye(3))
    atoms.info["energy"] = 2.0  # then they belong to this energy
    other = data.from_ase([atoms], labels="total")
    assert other.forces is other.stress is None


def test_units_are_named_by_the_names_of_the_labels(tmp_path):
    atoms = bulk("Cu")
    atoms.info |= {"REF_energy": 1.0, "units": "REF_energy: Hartree; ref_forces: Hartree/Bohr"}
    atoms.arrays["REF_forces"] = np.ones((1, 3))
    ase.io.write(tmp_path / "cu.extxyz", atoms)
    read = data.read(tmp_path / "cu.extxyz")
    assert read.energies.item() == units.Hartree
    np.testing.assert_allclose(read.forces[0], units.Hartree / units.Bohr)


def test_an_entry_without_value_is_no_charge(tmp_path):
    atoms = molecule("CH3")
    atoms.info |= {"energy": 1.0, "charge": None}
    ase.io.write(tmp_path / "ch3.extxyz", atoms)
    with pytest.raises(ValueError, match=r'info\["charge"\] must be an integer .* got True'):
        data.read(tmp_path / "ch3.extxyz")


@pytest.mark.parametrize("n", [None, 2])
def test_ions_among_molecules_are_not_silently_neutral(tmp_path, caplog, n: int | None):
    """Initial charges are no total charge; it is said also if the first structure has none."""
    frames = [molecule("H2O") for _ in range(5)]
    for k, atoms in enumerate(frames):
        atoms.set_initial_charges([k // 3, 0, 0])
        atoms.info["energy"] = 1.0
    ase.io.write(tmp_path / "ions.extxyz", frames)
    list(
        data.read_parts(tmp_path / "ions.extxyz", n) if n else [data.read(tmp_path / "ions.extxyz")]
    )
    (said,) = caplog.messages
    where, share = ("", "2 of 5") if n is None else (", counted from structure 2", "1 of 2")
    assert said.startswith(f"ions.extxyz{where}: {share} structures: initial charges of the atoms")


def test_units_that_change_between_parts_are_refused(tmp_path):
    """As within a part: numbers would be converted only from there on."""
    frames = [molecule("H2O") for _ in range(4)]
    for atoms in frames:
        atoms.info["energy"] = 1.0
    frames[2].info["units"] = "energy: kcal/mol"
    ase.io.write(tmp_path / "mixed.extxyz", frames)
    for n in (1, 2):
        with pytest.raises(ValueError, match="structure 2: it has other units than structure 0"):
            list(data.read_parts(tmp_path / "mixed.extxyz", n))
    with pytest.raises(ValueError, match="structure 2 states other units than structure 0"):
        data.read(tmp_path / "mixed.extxyz")
    for atoms in frames:
        atoms.info["units"] = "energy: kcal/mol"
    ase.io.write(tmp_path / "mixed.extxyz", frames)
    parts = list(data.read_parts(tmp_path / "mixed.extxyz", 2))
    assert [len(part) for part in parts] == [2, 2]


def test_forces_without_prefix_belong_to_no_set_of_several(tmp_path):
    atoms = bulk("Cu")
    atoms.info |= {"mp2_energy": 1.0, "dft_energy": 2.0, "free_energy": 3.0}
    atoms.arrays["forces"] = np.ones((1, 3))
    ase.io.write(tmp_path / "cu.extxyz", atoms)
    assert data.read(tmp_path / "cu.extxyz", labels="mp2").forces is None


def test_units_of_other_labels_do_not_matter(tmp_path):
    atoms = bulk("Cu")
    atoms.info |= {"REF_energy": 1.0, "dft_energy": 2.0, "virial": np.eye(3)}
    atoms.info["units"] = "dft_energy: Hartree; virial: kcal/mol"
    ase.io.write(tmp_path / "cu.extxyz", atoms)
    assert data.read(tmp_path / "cu.extxyz", labels="REF").energies.item() == 1.0


def test_results_of_another_structure_are_refused():
    """As those of a calculator that frames share, or of a structure that has moved since."""
    frames = [molecule("CO") for _ in range(2)]
    calc = EMT()
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
        atoms.calc = calc
        atoms.get_forces()
    message = "frames: structure 0: the results of its calculator are of another structure (pos"
    with pytest.raises(ValueError, match=re.escape(message)):
        data.from_ase(frames)
    frames[1].set_cell([9, 9, 9])
    with pytest.raises(ValueError, match=re.escape("(cell differ)")):
        data.from_ase(frames[1:])
    frames[0].info["REF_energy"] = -1.0
    assert data.from_ase(frames[:1], labels="REF").energies == [-1.0]
