"""Every reader on damaged files: one line that names the file, or a data set that is valid."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from damage import claim_to_unpack_to, damaged, limits, not_root

from attncalc import data
from attncalc.data import readers

# `make drill` tries more
N_DAMAGED = 500


def frames() -> list[Atoms]:
    """Three strained crystals of two elements with every label; positions of few digits."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        atoms = Atoms("OH2", rng.random((3, 3)).round(2), cell=np.diag([3.0, 3.5, 4.0]), pbc=True)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=-20.5,
            forces=rng.standard_normal((3, 3)).round(2),
            stress=rng.random(6).round(2),
        )
        found.append(atoms)
    return found


def arrays() -> dict[str, np.ndarray]:
    structures = frames()
    return {
        "z": structures[0].numbers,
        "R": np.stack([atoms.positions for atoms in structures]),
        "E": np.array([atoms.get_potential_energy() for atoms in structures]),
        "F": np.stack([atoms.get_forces() for atoms in structures]),
        "cell": np.stack([atoms.cell.array for atoms in structures]),
        "stress": np.stack([atoms.get_stress(voigt=False) for atoms in structures]),
        "charge": np.array(0),
        "e0_z": np.array([1, 8]),
        "e0": np.array([-13.6, -2041.0]),
        "train_01": np.array([0, 2]),
        "units": np.array("R: angstrom; E: eV; F: eV/angstrom"),
    }


def write_npz(path: Path) -> None:
    np.savez(path, **arrays())


def write_npz_compressed(path: Path) -> None:
    np.savez_compressed(path, **arrays())


def write_extxyz(path: Path) -> None:
    ase.io.write(path, frames(), format="extxyz")


def write_ase_db(path: Path) -> None:
    ase.io.write(path, frames(), format="db")


def write_ase_traj(path: Path) -> None:
    ase.io.write(path, frames(), format="traj")


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays().items():
            if name == "units":
                file.attrs[name] = str(array)
            else:
                file[name] = array


WRITERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    ".npz": (write_npz, write_npz_compressed),
    ".extxyz": (write_extxyz,),
    ".xyz": (write_extxyz,),
    ".db": (write_ase_db,),
    ".traj": (write_ase_traj,),
    ".h5": (write_hdf5,),
    ".hdf5": (write_hdf5,),
}
# one example for each way of writing each format
EXAMPLES = {
    (reader.__name__, write.__name__): (suffix, write)
    for suffix, reader in readers._READERS.items()
    for write in WRITERS.get(suffix, ())
}


def test_every_reader_is_tested() -> None:
    assert set(readers._READERS) <= set(WRITERS), "write a small valid file of the new format"


@pytest.fixture(params=EXAMPLES, ids=lambda names: names[1])
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A valid file, in memory where there is such a folder: it is written thousands of times."""
    suffix, write = EXAMPLES[request.param]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        path = Path(name) / f"a{suffix}"
        write(path)
        yield path


def test_the_example_is_valid(path: Path) -> None:
    dataset = data.read(path)
    assert_valid(dataset)
    expected = arrays()
    np.testing.assert_allclose(dataset.energies, expected["E"])
    np.testing.assert_allclose(np.stack(dataset.forces), expected["F"], atol=1e-7)
    np.testing.assert_allclose(dataset.stress, expected["stress"], atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files(path: Path) -> None:
    content = path.read_bytes()
    n_refused = 0
    with limits(megabytes=1024, seconds=300):
        for damage in damaged(content, N_DAMAGED, seed=0):
            path.unlink()
            path.write_bytes(damage)
            n_refused += is_refused(path)
    assert n_refused > 0.1 * N_DAMAGED


def is_refused(path: Path) -> bool:
    """With a good message; what is not refused must be valid."""
    try:
        dataset = data.read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.startswith(f"{path.name}: ")
        assert message.isprintable()
        assert len(message) < 600
        return True
    assert_valid(dataset)
    return False


def assert_valid(dataset: data.Dataset) -> None:
    assert len(dataset) > 0
    assert dataset.energies.shape == (len(dataset),)
    assert np.isfinite(dataset.energies).all()
    for k, atoms in enumerate(dataset.structures):
        assert len(atoms) > 0
        assert (atoms.numbers > 0).all()
        assert np.isfinite(atoms.positions).all()
        assert np.isfinite(atoms.cell.array).all()
        if dataset.forces is not None:
            assert dataset.forces[k].shape == (len(atoms), 3)
            assert np.isfinite(dataset.forces[k]).all()
    if dataset.stress is not None:
        assert dataset.stress.shape == (len(dataset), 3, 3)
        assert np.isfinite(dataset.stress).all()


def test_truncated_anywhere(path: Path) -> None:
    """A text may end after any of its structures; of the others nothing may be missing."""
    content, whole = path.read_bytes(), data.read(path)
    step = max(1, len(content) // 400)
    for length in range(0, len(content), step):
        path.write_bytes(content[:length])
        if not is_refused(path):
            found = data.read(path)
            assert len(found) == len(whole) or path.suffix.endswith("xyz"), length
            for k, forces in enumerate(found.forces):
                np.testing.assert_array_equal(forces, whole.forces[k])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x04K\x01.",
        b"\x89HDF\r\n\x1a\n",
        b"\n\n\n",
        bytes(5000),
        b"\xff" * 99,
    ],
)
def test_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert is_refused(path)
    assert path.read_bytes() == content


def test_what_is_no_regular_file(path: Path) -> None:
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=f"^{path.name}: "):
        data.read(path)
    path.rmdir()
    os.mkfifo(path)
    with limits(), pytest.raises(OSError, match=f"^{path.name}: "):
        data.read(path)


def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.chmod(0)
    path.parent.chmod(0o755)
    with not_root(), pytest.raises(PermissionError, match=f"Permission denied: .*{path.name}"):
        data.read(path)


def test_sparse_files_are_not_read_into_memory(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with limits():
        is_refused(path)


# ------------------------------------------------------------------------- npz: zip and headers


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    """Of a file of two kilobytes."""
    np.savez_compressed(tmp_path / "a.npz", R=np.zeros(1 << 18))
    claim_to_unpack_to(3 << 30, tmp_path / "a.npz")
    with (
        limits(),
        pytest.raises(ValueError, match=r"^a.npz: it would unpack to 3.0 GiB, \d+ times"),
    ):
        data.read(tmp_path / "a.npz", energy_unit="eV")


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            header("(1000000000000, 3)"),
            "holds 0 bytes, its header says <f8 of shape [1000000000000,",
        ),
        (header("(-1,)"), "holds 0 bytes, its header says <f8 of shape [-1]"),
        (header("(2,)") + bytes(15), "R.npy holds 15 bytes, its header says <f8 of shape [2]"),
        (header("(2,)") + bytes(17), "R.npy holds 17 bytes, its header says <f8 of shape [2]"),
        (header("()", "'<U500000000'"), "holds 0 bytes, its header says <U500000000 of shape []"),
        (header("(" * 30 + "1" + ")" * 30), "R.npy"),
        (header("__import__('os').mkdir('executed')"), "header of R.npy: malformed node or string"),
        (header("(1,)", "'no type'"), "header of R.npy: "),
        (b"\x93NUMPY\x01\x00\xff\xff", "header of R.npy: EOF"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header of R.npy: EOF"),
        (b"text", "header of R.npy: EOF"),
        (b"", "header of R.npy: EOF"),
    ],
)
def test_arrays_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("R.npy", content)
    with limits(), pytest.raises(ValueError) as error:
        data.read(tmp_path / "a.npz", energy_unit="eV")
    assert str(error.value).startswith("a.npz: ")
    assert message in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("E.npy", archive.read("E.npy"))
    with pytest.raises(ValueError, match=r"^a.npz: 'E.npy' is in the archive twice"):
        data.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.array(["O", "H", "H"])}, None),  # chemical symbols would be fine as "species"
        ({"z": np.array([8.0, 1.0, 1.5])}, "atomic numbers must hold integers, got 1.5"),
        ({"z": np.array([8, 1, np.nan])}, "atomic numbers must hold integers, got nan"),
        ({"z": np.array([8, 1, 300])}, "structure 0: atom 2 has no known element"),
        ({"z": np.array([8, 1, 2**40])}, "atomic numbers must hold integers"),
        ({"R": np.ones((3, 3, 3), complex)}, "positions must be numbers, got an array of complex"),
        ({"E": np.array([1, 2, 3], "m8[s]")}, "must be numbers, got an array of timedelta64"),
        ({"E": np.array([1e308, 1, 1])}, "the energy of structure 0 is not finite"),
        ({"charge": np.array(np.inf)}, "charge must hold integers, got inf"),
        ({"charge": np.array("one")}, "charge must be numbers, got an array of <U3"),
        ({"charge": np.array(99)}, "structure 0: charge +99 removes more electrons"),
        ({"charge": np.array(-99)}, "structure 0: charge -99 adds more electrons than the atoms"),
        ({"cell": np.full((3, 3), np.nan)}, "structure 0: the cell is not finite"),
        ({"cell": np.eye(3) * 1e-3}, "structure 0: cell volume is 3.3e-10 Å³ per atom"),
        ({"cell": np.diag([1, 1, 0]), "pbc": np.ones(3)}, "structure 0: pbc is [True, True, True"),
        ({"pbc": np.array(["yes", "no", "no"])}, "pbc must be true or false, got an array of <U3"),
        (
            {"e0": np.array([1.0, np.nan])},
            "the energy of the isolated atom 8 is not that of an ele",
        ),
        ({"e0_z": np.array([1, 0])}, "the energy of the isolated atom 0 is not that of an element"),
        ({"e0": np.array(["a", "b"])}, "e0 must be numbers, got an array of <U1"),
        ({"R": np.zeros((0, 3, 3)), "E": np.zeros(0), "F": np.zeros((0, 3, 3))}, "no structure"),
        ({"units": np.array("E: " + "e" * 10**5)}, "units entry has 100003 characters"),
        ({"units": np.array("E: eV; F: eV/A^99999999")}, "unknown unit 'eV/A^99999999'"),
        ({"units": np.array("E: eV/nm^-5")}, "unknown unit"),
        ({"theory": np.array(b"\xff")}, "'utf-8' codec can't decode"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, change: dict, message: str | None) -> None:
    np.savez(tmp_path / "a.npz", **(arrays() | change))
    unit = "kcal/mol" if "E" in change else None
    if unit:
        np.savez(tmp_path / "a.npz", **({**arrays(), **change, "units": "E: Hartree"}))
    if message is None:
        is_refused(tmp_path / "a.npz")
        return
    with limits(), pytest.raises(ValueError) as error:
        data.read(tmp_path / "a.npz")
    assert str(error.value).startswith("a.npz: ")
    assert message in str(error.value)


# ------------------------------------------------------------------------------- extended XYZ

ATOMS = "O 0 0 0\nH 0 0 1\nH 0 1 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99999999999999999999\n\n" + ATOMS, "the number of atoms should stand where structure 0"),
        ("9999999\n\n" + ATOMS, "structure 0 has 3 of its 9999999 atoms"),
        ("-1\n\n" + ATOMS, "the number of atoms should stand where structure 0 begins, got '-1'"),
        ("0\nenergy=1\n", "the number of atoms should stand where structure 0 begins, got '0'"),
        ("3\nenergy=1\n" + ATOMS + "\n3\nenergy=1\n" + ATOMS, "an empty line where structure 1 "),
        ("3\nenergy=1\n" + ATOMS + "H 0 0 2\n", "should stand where structure 1 begins, got 'H 0 "),
        (
            "3\nenergy=1 Properties=species:S:1:pos:R:3\n" + ATOMS.replace("O", "O 5"),
            "structure 0: atom 0 has 5 columns instead of 4",
        ),
        ("3\nenergy=1\n" + ATOMS.replace("H 0 0 1", "H 0 0"), "atom 1 has 3 columns instead of 4"),
        ("3\nenergy=1 Properties=species:S:1:pos:R:999999999\n" + ATOMS, "atom 0 has 4 columns"),
        ("3\nenergy=1 Properties=species\n" + ATOMS, "Properties='species' is not understood"),
        ("3\nenergy=1\n" + ATOMS.replace("O", "Q"), "structure 0: 'Q'"),
        ("3\nenergy=1e999\n" + ATOMS, "the energy of structure 0 is not finite"),
        ("3\nenergy=nan\n" + ATOMS, "the energy of structure 0 is not finite"),
        ("3\nenergy=_JSON" + "[" * 100_000 + "\n" + ATOMS, "a.xyz: "),
        (
            "3\nenergy=1 " + "x" * (1 << 20) + "\n" + ATOMS,
            "structure 0: the comment line has no end",
        ),
        ("3\nenergy=1 charge=1" + "0" * 400 + "\n" + ATOMS, "a.xyz: "),
        (
            '3\nenergy=1 pbc="T T T"\n' + ATOMS,
            "structure 0: pbc is [True, True, True] but the cell",
        ),
        ('3\nenergy=1 Lattice="1 2 3"\n' + ATOMS, "structure 0: "),
        ('3\nenergy=1 stress="1 2 3 4 5"\n' + ATOMS, "special 3x3 matrix"),
        ("\n", "it contains no structures"),
    ],
)
def test_texts_that_are_no_extended_xyz(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    with limits(), pytest.raises(ValueError) as error:
        data.read(tmp_path / "a.xyz")
    assert str(error.value).startswith("a.xyz: ")
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


# ---------------------------------------------------------------------------------------- HDF5


@pytest.mark.parametrize("version", ["earliest", "v108", "latest"])
def test_a_heap_in_which_the_library_would_get_lost(tmp_path: Path, version: str) -> None:
    """Objects of a heap that do not fill it: the library looks for the next one for ever."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=version) as file:
        for name, array in arrays().items():
            file[name] = array if name != "units" else str(array)
        file.attrs["units"] = "E: eV"
        file["remark"] = ["x" * n for n in range(0, 3000, 7)]
    assert len(data.read(path)) == 3
    content = bytearray(path.read_bytes())
    at = content.find(b"GCOL\x01")
    assert at > 0
    content[at + 24 : at + 32] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a.h5: the file is damaged \(a heap of texts\)"):
        data.read(path)


# --------------------------------------------------------------------------------- ASE databases


def test_a_view_that_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_ase_db(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE systems RENAME TO stored")
        connection.execute(
            "CREATE VIEW systems AS WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 "
            "FROM more) SELECT stored.* FROM stored, more"
        )
        connection.commit()
    with limits(), pytest.raises(ValueError, match=r"^a.db: .* \(no such table: systems\)"):
        data.read(path)
