"""HDF5 files that would lead their reader to others, or be without end."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from damage import limits

from attncalc import data, md
from attncalc.files.hdf5_reading import DEEPEST, LocalFile

SECRET = "a secret of another file"


def outside(folder: Path) -> Path:
    """Another file, whose content is nobody's business."""
    path = folder / "other.h5"
    with h5py.File(path, "w") as file:
        file["text"] = SECRET
        file["R"] = np.ones((2, 3))
    (folder / "numbers.raw").write_bytes(np.ones(6).tobytes())
    return path


def external_link(file: h5py.File) -> None:
    file["level_of_theory"] = h5py.ExternalLink("other.h5", "/text")


def soft_link_over_an_external_one(file: h5py.File) -> None:
    file["level_of_theory"] = h5py.SoftLink("/away/text")
    file["away"] = h5py.ExternalLink("other.h5", "/")


def external_link_in_a_group_of_a_soft_link(file: h5py.File) -> None:
    file.create_group("a/b")["c"] = h5py.ExternalLink("other.h5", "/R")
    del file["R"]
    file["R"] = h5py.SoftLink("a/b/c")


def virtual_dataset(file: h5py.File) -> None:
    del file["R"]
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "R", (2, 3))
    file.create_virtual_dataset("R", layout)


def external_storage(file: h5py.File) -> None:
    del file["R"]
    file.create_dataset("R", (2, 3), "f8", external=[("numbers.raw", 0, 48)])


def text_in_external_storage(file: h5py.File) -> None:
    where = [("/etc/passwd", 0, 8)]
    file.create_dataset("level_of_theory", (1,), "S8", external=where)


def virtual_dataset_below(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource("pipe", "R", (2, 3))
    file.create_group("remarks/of").create_virtual_dataset("R", layout)


def a_filter_from_elsewhere(file: h5py.File) -> None:
    del file["R"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((2, 3))
    created.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((2, 3))
    h5py.h5d.create(file.id, b"R", h5py.h5t.NATIVE_DOUBLE, space, created)


LEADING_AWAY = [
    (external_link, "/level_of_theory links to another file: copy its content into this file"),
    (
        soft_link_over_an_external_one,
        "/away links to another file: copy its content into this file",
    ),
    (external_link_in_a_group_of_a_soft_link, "/a/b/c links to another file"),
    (virtual_dataset, "/R is stored in another file: copy its numbers into this file"),
    (virtual_dataset_below, "/remarks/of/R is stored in another file"),
    (external_storage, "/R is stored in another file"),
    (text_in_external_storage, "/level_of_theory is stored in another file"),
    (a_filter_from_elsewhere, "/R is compressed by filter 32999, code that is not part of HDF5"),
]


def molecules(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["units"] = "E: eV"
        file["z"], file["E"], file["R"] = [1, 1], -31.0, np.array([[0.0, 0, 0], [0, 0, 0.74]])
        file["offsets"] = [0, 2]
    return path


@pytest.mark.parametrize(
    ("change", "message"), LEADING_AWAY, ids=lambda x: getattr(x, "__name__", "")
)
def test_what_leads_to_another_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[h5py.File], None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outside(tmp_path)
    os.mkfifo("pipe")  # whoever opens it waits for ever
    path = molecules(tmp_path / "a.h5")
    assert len(data.read(path)) == len(data.stream(path)) == 1
    with h5py.File(path, "a") as file:
        change(file)
    for read in (data.read, data.stream):
        with limits(), pytest.raises(ValueError) as error:
            read(path)
        assert str(error.value).startswith(f"a.h5: {message}")
    path = path.rename("a.h5md")
    with open(path, "rb") as file:
        pass
    for source in (path, str(path)):
        with limits(), pytest.raises(ValueError, match=r"a\.h5md: /") as error:
            md.read_h5md(source)
        assert message in str(error.value)


def test_a_link_whose_name_is_a_path(tmp_path: Path) -> None:
    """Which no library writes: opening it by its name would follow the other link."""
    path = molecules(tmp_path / "a.h5")
    outside(tmp_path)
    with h5py.File(path, "a") as file:
        file["awayZtext"] = 1.0
    path.write_bytes(path.read_bytes().replace(b"awayZtext", b"away/text"))
    with pytest.raises(
        ValueError, match=r"^a.h5: the file is damaged \(a link is called /away/text"
    ):
        data.read(path)


def test_nested_without_end(tmp_path: Path) -> None:
    path = molecules(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        group = file["/"]
        for _ in range(3000):
            group = group.create_group("g")
    with (
        limits(seconds=5),
        pytest.raises(ValueError, match=f"^a.h5: groups are nested more than {DEEPEST} "),
    ):
        data.read(path)


def test_groups_that_contain_each_other(tmp_path: Path) -> None:
    path = molecules(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        one, other = file.create_group("one"), file.create_group("other")
        one["other"], other["one"], one["root"], other["itself"] = other, one, file["/"], other
    with limits():
        assert len(data.read(path)) == 1
    with LocalFile(path) as file:
        assert file.group_names == ["/", "/one", "/one/other"]


@pytest.mark.parametrize("kind", ["references", "lists", "records"])
def test_arrays_of_something_else(tmp_path: Path, kind: str) -> None:
    path = molecules(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["R"]
        if kind == "references":
            file.create_dataset("R", (2, 3), h5py.ref_dtype)[:] = file["z"].ref
        elif kind == "lists":
            file.create_dataset("R", (2, 3), h5py.vlen_dtype(float))
        else:
            file["R"] = np.zeros((2, 3), [("x", float), ("text", "S9")])
    with pytest.raises(ValueError, match=r"^a.h5: /R must be numbers or texts, got an array of "):
        data.read(path)


def test_one_long_text_a_million_times(tmp_path: Path) -> None:
    """A million texts that are all the same megabyte of the file."""
    path = molecules(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["smiles"] = ["x" * (1 << 20), *["y"] * 9999]
        offset = file["smiles"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset : offset + 160_000] = content[offset : offset + 16] * 10_000
    path.write_bytes(content)
    with (
        limits(megabytes=2500),
        pytest.raises(ValueError, match=r"^a.h5: /smiles would take 1.2 GiB"),
    ):
        data.read(path)


def test_a_chunk_larger_than_the_memory(tmp_path: Path) -> None:
    path = molecules(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["E"]
        file.create_dataset("E", (1,), "f8", maxshape=(None,), chunks=(1 << 28,))
    with limits(), pytest.raises(ValueError, match=r"^a.h5: its arrays would take 2.0 GiB"):
        data.read(path)


def test_a_sparse_file_is_not_searched_for_hours(tmp_path: Path) -> None:
    path = molecules(tmp_path / "a.h5")
    content = bytearray(path.read_bytes())
    content[40:48] = (1 << 43).to_bytes(8, "little")  # the end that it states itself
    path.write_bytes(content)
    os.truncate(path, 1 << 43)
    with limits():
        assert len(data.read(path)) == 1


def test_a_heap_behind_a_user_block(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["remark"] = ["x" * n for n in range(0, 3000, 7)]
    content = bytearray(path.read_bytes())
    at = content.find(b"GCOL\x01")
    content[at + 24 : at + 32] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a.h5: the file is damaged \(a heap of texts\)"):
        data.read(path)
