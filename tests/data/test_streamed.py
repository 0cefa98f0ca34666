"""Data sets that stay in their file: the same numbers, not all of them in memory."""

import dataclasses
import gc
import weakref

import h5py
import numpy as np
import pytest
from ase import Atoms

from attncalc import data
from attncalc.data import hdf5_rows, streamed
from attncalc.data.readers import read_parts

RNG = np.random.default_rng(0)


def labelled(n: int, **more) -> data.Dataset:
    """Structures of 1 to 5 atoms, some periodic, some charged."""
    structures, forces = [], []
    for k in range(n):
        numbers = RNG.integers(1, 9, 1 + k % 5)
        info = {"charge": 1, "spin": 1 + (int(numbers.sum()) - 1) % 2} if k % 7 == 3 else {}
        cell = 9 * np.eye(3) + 0.1 * RNG.standard_normal((3, 3)) if k % 2 else None
        atoms = Atoms(numbers, RNG.standard_normal((len(numbers), 3)), cell=cell, info=info)
        atoms.pbc = bool(k % 2)
        structures.append(atoms)
        forces.append(RNG.standard_normal((len(numbers), 3)))
    energies = RNG.standard_normal(n)
    return data.Dataset(structures=structures, energies=energies, forces=forces, **more)


@pytest.fixture(scope="module")
def whole() -> data.Dataset:
    return labelled(
        60,
        stress=RNG.standard_normal((60, 3, 3)),
        splits={"train": np.arange(50), "test_01": np.arange(50, 60)},
        level_of_theory="PBE",
        isolated_energies={1: -13.6},
    )


@pytest.fixture
def path(whole, tmp_path):
    assert data.write_hdf5([whole[:25], whole[25:]], tmp_path / "all.h5") == 60
    with h5py.File(tmp_path / "all.h5", "a") as file:
        file["train"], file["test_01"] = whole.splits["train"], whole.splits["test_01"]
    return tmp_path / "all.h5"


def assert_same(ours: data.Dataset, theirs: data.Dataset) -> None:
    """To the bit."""
    assert len(ours) == len(theirs)
    assert np.array_equal(ours.energies, theirs.energies)
    for k in range(len(theirs)):
        mine, other = ours.structures[k], theirs.structures[k]
        for name in ("numbers", "positions", "pbc"):
            assert np.array_equal(getattr(mine, name), getattr(other, name)), (k, name)
        assert np.array_equal(mine.cell.array, other.cell.array)
        for key in ("charge", "spin"):
            assert key not in other.info or mine.info[key] == other.info[key]
        for name in ("forces", "stress"):
            if getattr(theirs, name) is None:
                assert getattr(ours, name) is None
            else:
                assert np.array_equal(getattr(ours, name)[k], getattr(theirs, name)[k]), (k, name)


def test_what_is_written_is_read_and_streamed(whole, path):
    found, stream = data.read(path), data.stream(path)
    assert isinstance(stream, data.StreamedDataset)
    assert_same(found, whole)
    assert_same(stream, found)
    assert_same(stream.in_memory(), found)
    assert stream.source == found.source == "all.h5"
    assert stream.level_of_theory == found.level_of_theory == "PBE"
    assert stream.isolated_energies == found.isolated_energies == {1: -13.6}
    for one in (found, stream):
        assert {name: k.tolist() for name, k in one.splits.items()} == {
            "train": list(range(50)),
            "test_01": list(range(50, 60)),
        }


def test_splits_and_levels_are_written(whole, tmp_path):
    more = dataclasses.replace(whole[:5], splits={"train": [1, 3]})
    data.write_hdf5([whole, more], tmp_path / "a.h5")
    written = data.read(tmp_path / "a.h5")
    assert written.splits["train"].tolist() == [*range(50), 61, 63]
    assert written.level_of_theory == "PBE"
    other = dataclasses.replace(more, level_of_theory="MP2")
    with pytest.raises(ValueError, match="different levels of theory cannot be joined: MP2, PBE"):
        data.write_hdf5([whole, other], tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


def test_splits_of_any_name_are_written(whole, tmp_path, caplog):
    splits = {"bulk": np.arange(3), "val": np.array([4]), "split_a": np.array([5]), "a/b": [6]}
    named = dataclasses.replace(whole, splits=splits)
    data.write_hdf5([named], tmp_path / "a.h5")
    assert caplog.messages == ["1 split not written: a/b"]
    for found in (data.read(tmp_path / "a.h5"), data.stream(tmp_path / "a.h5")):
        assert {name: k.tolist() for name, k in found.splits.items()} == {
            "bulk": [0, 1, 2],
            "val": [4],
            "split_a": [5],
        }
    each = {f"mol{k}": np.array([k % 60]) for k in range(hdf5_rows.MOST_SPLITS + 1)}
    data.write_hdf5([dataclasses.replace(whole, splits=each)], tmp_path / "b.h5")
    assert caplog.messages[1:] == ["1001 splits not written: mol0, mol1, mol10 ..."]
    assert not data.read(tmp_path / "b.h5").splits


def test_splitting_a_stream_reads_nothing(whole, path, monkeypatch):
    stream = data.stream(path)
    monkeypatch.setattr(hdf5_rows.Rows, "_read", None)
    parts = data.split(stream, [30, 10, "rest"], seed=3)
    named = {"train": "train", "n_validation": 10}
    chosen = [part[[2, 5]] for part in (*parts, *data.official_split(stream, **named))]
    monkeypatch.undo()
    same = [*data.split(whole, [30, 10, "rest"], seed=3), *data.official_split(whole, **named)]
    for mine, theirs in zip(chosen, same, strict=True):
        assert_same(mine, theirs[[2, 5]])
    assert_same(parts[0], same[0])


def test_the_units_of_a_file_in_a_row(tmp_path):
    """Written by somebody else: other names and units, one cell for all, gradients."""
    z, R = RNG.integers(1, 9, 12), RNG.standard_normal((12, 3))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        group = file.create_group("all")
        group["atomic_numbers"], group["positions"], group["n_atoms"] = z, R, [3, 4, 5]
        group["energy"], group["gradient"] = RNG.standard_normal(3), RNG.standard_normal((12, 3))
        group["cell"], group["pbc"] = 9 * np.eye(3), [True, True, False]
        group.attrs["units"] = "energy: kcal/mol; positions: Bohr"
    assert_same(data.stream(tmp_path / "other.h5"), data.read(tmp_path / "other.h5"))


def test_structures_are_forgotten(path, monkeypatch):
    """One at a time is in memory, whatever is computed from them."""
    alive, most, read = weakref.WeakSet(), 0, hdf5_rows.Rows._read

    def counted(rows, k):
        nonlocal most
        one = read(rows, k)
        alive.add(one)
        if len(alive) > most:
            gc.collect()
            most = max(most, len(alive))
        return one

    monkeypatch.setattr(hdf5_rows.Rows, "_read", counted)
    stream = data.stream(path)
    data.reference_energies(stream)
    data.shortest_distance(stream)
    for forces in stream.forces:
        assert forces.shape[1] == 3
    assert most <= 3  # the first, the last, the next


def test_a_sample_for_checks(whole, tmp_path, monkeypatch):
    data.write_hdf5([whole] * 10, tmp_path / "many.h5")
    stream = data.stream(tmp_path / "many.h5")
    assert data.sample(whole) is whole
    assert len(data.sample(stream)) == 600
    monkeypatch.setattr(streamed, "SAMPLE", 40)
    monkeypatch.setattr(streamed, "RUN", 10)
    (mixed,) = data.split(stream, [600], seed=0)
    found = data.sample(mixed)
    assert type(found) is data.Dataset
    assert np.array_equal(found.energies[:10], stream.energies[:10])  # neighbours in the file
    assert np.array_equal(found.energies[-10:], stream.energies[-10:])
    assert len(found) == 40


def test_extended_xyz_in_parts(whole, tmp_path):
    """Units that the first frame states hold for all."""
    lines, columns = [], "Properties=species:S:1:pos:R:3:forces:R:3"
    for k in range(7):
        units = 'units="energy: kcal/mol"' if k == 0 else ""
        lines += ["1", f'{columns} energy={k} {units} split="t{k % 2}"', f"H 0 0 {k} 0 0 1"]
    (tmp_path / "a.xyz").write_text("\n".join(lines) + "\n")
    parts = list(read_parts(tmp_path / "a.xyz", 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert_same(data.concatenate(parts), data.read(tmp_path / "a.xyz"))
    (alone,) = read_parts(tmp_path / "a.xyz", 100)
    assert alone.splits.keys() == data.read(tmp_path / "a.xyz").splits.keys()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f["F"].__setitem__(25, np.nan), "the force of structure 9 is not finite"),
        (lambda f: f["E"].__setitem__(7, np.nan), "the energy of structure 7 is not finite"),
        (lambda f: f["z"].__setitem__(25, 120), "structure 9: atom 0 has no known element"),
        (lambda f: f["offsets"].write_direct(np.zeros(61, int)), "offsets must rise from 0 to"),
        (lambda f: f["offsets"].resize(60, axis=0), "offsets must rise"),
        (lambda f: f["F"].resize(3, axis=0), "F must have 180 rows, got 3"),
        (lambda f: f.__delitem__("offsets"), r"only structures in a row .* `attncalc convert data"),
        (lambda f: f.__delitem__("R"), "only structures in a row"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(path, spoil, message):
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(ValueError, match=rf"^all.h5: {message}") as caught:
        data.stream(path).structures[9]
    assert "\n" not in str(caught.value)


def test_parts_must_have_the_same_labels(whole, tmp_path):
    without = dataclasses.replace(whole, forces=None)
    for parts in ([whole, without], [without, whole]):
        with pytest.raises(ValueError, match="only some structures have forces: remove them"):
            data.write_hdf5(parts, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="no structure"):
        data.write_hdf5([], tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [True, False])
def test_stress_of_some_parts_is_left_out(whole, tmp_path, caplog, first: bool):
    parts = [whole, dataclasses.replace(whole, stress=None), whole]
    data.write_hdf5(parts if first else parts[1:], tmp_path / "a.h5")
    found = data.read(tmp_path / "a.h5")
    assert found.stress is None
    assert len(found) == (3 if first else 2) * len(whole)
    assert caplog.messages == ["stress is left out: not all structures have it"]
