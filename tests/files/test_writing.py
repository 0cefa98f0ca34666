"""Files that a program is about to write: who has the right to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attncalc.files import (
    Appended,
    Claim,
    NoSpaceLeft,
    refuse_existing,
    replacing,
    write_atomically,
)
from attncalc.files import writing as files
from attncalc.files.hdf5_writing import new_hdf5

REPOSITORY = Path(__file__).resolve().parents[2]
# claims a file, says so, and waits to be killed
CLAIM_AND_WAIT = """
import sys, time
from attncalc.files import Claim
claim = Claim(sys.argv[1])
print("claimed", flush=True)
time.sleep(100)
"""
# claims as often as it can, and is alone whenever it can
CLAIM_AND_COUNT = """
import sys, time
from pathlib import Path
from attncalc.files import Claim
file, alone, n = Path(sys.argv[1]), Path(sys.argv[1] + ".alone"), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        claim = Claim(file)
    except BlockingIOError:
        continue
    alone.touch(exist_ok=False)
    alone.unlink()
    claim.release()
    n += 1
print(n)
"""


def python(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_exists_is_refused(tmp_path: Path) -> None:
    free, taken = tmp_path / "free", tmp_path / "taken"
    taken.touch()
    refuse_existing(free)
    with pytest.raises(FileExistsError, match=r"taken exists: choose another name, nothing is"):
        refuse_existing(free, taken)


def test_a_claim_is_for_one_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "run.h5md"
    first = Claim(path)
    for _ in range(2):
        with pytest.raises(BlockingIOError) as refusal:
            Claim(path)
    assert str(refusal.value) == (
        f"{path}: another run is still writing it (process {os.getpid()}): wait for its end, or "
        "stop it"
    )
    with Claim(tmp_path / "other.h5md"):  # of another file
        pass
    first.release()
    with Claim(path):
        first.release()  # once more does not take it from the new one
        with pytest.raises(BlockingIOError):
            Claim(path)
    assert list(tmp_path.iterdir()) == []


def test_through_a_link_it_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    path, link = tmp_path / "large" / "run.h5md", tmp_path / "run.h5md"
    link.symlink_to(path)
    with Claim(path), pytest.raises(BlockingIOError):
        Claim(link)


def test_a_folder_is_claimed_apart_from_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    refused = pytest.raises(BlockingIOError, match=r"run: another run is still writing it")
    with Claim(folder), Claim(folder / "member-1"), refused:
        Claim(tmp_path / "." / "run")
    Claim(folder).release()
    assert [*tmp_path.iterdir(), *folder.iterdir()] == [folder]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        Claim(tmp_path / "nowhere" / "run.h5md")


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.h5md"
    process = python(CLAIM_AND_WAIT, path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(BlockingIOError, match=rf"\(process {process.pid}\)"):
            Claim(path)
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / ".run.h5md.lock").exists()  # nobody could remove it
    Claim(path).release()
    assert list(tmp_path.iterdir()) == []


def test_processes_that_claim_and_release_are_never_two(tmp_path: Path) -> None:
    processes = [python(CLAIM_AND_COUNT, tmp_path / "run.h5md") for _ in range(3)]
    for process in processes:
        n, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert int(n) > 0
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_everybody_may(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with Claim(tmp_path / "a"), Claim(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_files():
    """Files may not grow beyond 5000 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_what_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    with pytest.raises(NoSpaceLeft) as full:
        write_atomically(path, bytes(6000))
    assert str(full.value) == (
        f"no space left on the disk for {path} (the largest size of a file is reached, see ulimit "
        "-f): free some space and try again"
    )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_files")
def test_pieces_are_written_as_wholes(tmp_path: Path) -> None:
    file = Appended(tmp_path / "a")
    file.append(bytes(3000))
    with pytest.raises(NoSpaceLeft, match="no space left on the disk for"):
        file.append(bytes(3000))
    file.append(b"x" * 2000)
    file.close()
    assert (tmp_path / "a").read_bytes() == bytes(3000) + b"x" * 2000


@pytest.mark.usefixtures("small_files")
def test_hdf5_survives_a_full_disk(tmp_path: Path) -> None:
    """It closes its file, and the refusal is told once."""
    values = np.arange(2000.0)

    def write() -> None:
        with new_hdf5(tmp_path / "a.h5") as (file, _):
            file["values"] = values
            assert (file["values"][:] == values).all(), "in memory"

    with pytest.raises(OSError, match="File too large"):
        write()


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


def test_an_unfinished_folder_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".a.xyz.{files._HOST}.{ended.pid}.part").mkdir()
    (tmp_path / f".a.xyz.{files._HOST}.{ended.pid}.part" / "a.xyz").write_bytes(b"half")
    with replacing(tmp_path / "a.xyz", in_folder=True) as new:
        assert new.name == "a.xyz"
        new.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.xyz"]
