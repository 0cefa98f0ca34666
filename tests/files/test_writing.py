"""Files that a program writes: over nothing, and whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from attncalc.files import (
    Appended,
    NoSpaceLeft,
    refuse_existing,
    replacing,
    write_atomically,
)
from attncalc.files import writing as files
from attncalc.files.hdf5_writing import WritableFile, new_hdf5


def test_what_exists_is_refused(tmp_path: Path) -> None:
    free, taken = tmp_path / "free", tmp_path / "taken"
    taken.touch()
    refuse_existing(free)
    with pytest.raises(FileExistsError, match=r"taken exists: choose another name, nothing is"):
        refuse_existing(free, taken)


# ------------------------------------------------------------------------------- full disks


@contextmanager
def small_files() -> Iterator[None]:
    """Files may not grow beyond 5000 bytes, not even that of what pytest says: so no fixture."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    with small_files(), pytest.raises(NoSpaceLeft) as full:
        write_atomically(path, bytes(6000))
    assert str(full.value) == (
        f"no space left on the disk for {path} (the largest size of a file is reached, see ulimit "
        "-f): free some space and try again"
    )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_are_written_as_wholes(tmp_path: Path) -> None:
    file = Appended(tmp_path / "a")
    file.append(bytes(3000))
    with small_files():
        with pytest.raises(NoSpaceLeft, match="no space left on the disk for"):
            file.append(bytes(3000))
        assert (tmp_path / "a").stat().st_size == 3000  # no reader sees half a piece
        file.append(b"x" * 2000)
    file.close()
    assert (tmp_path / "a").read_bytes() == bytes(3000) + b"x" * 2000


def test_hdf5_survives_a_full_disk(tmp_path: Path) -> None:
    """It closes its file, and the refusal is told once."""
    values = np.arange(2000.0)

    def write() -> None:
        with new_hdf5(tmp_path / "a.h5") as (file, _):
            file["values"] = values
            assert (file["values"][:] == values).all(), "in memory"

    with small_files(), pytest.raises(OSError, match="File too large"):
        write()


def test_what_does_not_fit_is_read_from_memory_with_what_is_on_the_disk(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w+b") as file, small_files():
        raw = WritableFile(file.fileno())
        raw.write(b"a" * 3000)
        assert raw.problem is None
        for content, at in ((b"b" * 70_000, 3000), (b"c" * 20, 2990)):
            raw.seek(at)
            assert raw.write(content) == len(content)
            assert raw.problem is not None
        raw.seek(0)
        found = bytearray(80_000)
        assert raw.readinto(found) == 73_000
    assert found == b"a" * 2990 + b"c" * 20 + b"b" * 69_990 + bytes(7000)


def test_unfinished_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = files._HOST
    gone = [f".a.{here}.{ended.pid}.part", f".a.elsewhere.{ended.pid}.part", f".a.{ended.pid}.part"]
    kept = [f".b.{here}.{ended.pid}.part", f".a.{here}.{os.getppid()}.part", ".a.elsewhere.1.part"]
    for name in (*gone, *kept):
        (tmp_path / name).write_bytes(b"half")
    for name in gone[1:]:
        os.utime(tmp_path / name, (0, 0))
    write_atomically(tmp_path / "a", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *kept}


def test_a_file_that_another_user_writes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(process: int, number: int) -> None:
        assert number == 0  # only asked
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    theirs = tmp_path / f".a.{files._HOST}.1.part"
    theirs.write_bytes(b"half")
    write_atomically(tmp_path / "a", b"whole")
    assert theirs.read_bytes() == b"half"


def test_a_folder_that_is_written_elsewhere_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / ".a.xyz.elsewhere.1.part"
    folder.mkdir()
    (folder / "a.xyz").write_bytes(b"half")
    os.utime(folder, (0, 0))
    write_atomically(tmp_path / "a.xyz", b"whole")
    assert folder.exists()
    os.utime(folder / "a.xyz", (0, 0))
    write_atomically(tmp_path / "a.xyz", b"whole")
    assert not folder.exists()


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(3)]

    def write(content: bytes) -> None:
        for _ in range(20):
            write_atomically(tmp_path / "a", content)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, contents))
    assert (tmp_path / "a").read_bytes() in contents
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_an_unfinished_folder_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".a.xyz.{files._HOST}.{ended.pid}.part").mkdir()
    (tmp_path / f".a.xyz.{files._HOST}.{ended.pid}.part" / "a.xyz").write_bytes(b"half")
    with replacing(tmp_path / "a.xyz", in_folder=True) as new:
        assert new.name == "a.xyz"
        new.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.xyz"]
