"""Locks on files and folders that one process at a time may write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attncalc.files import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
# locks a file, says so, and waits to be killed
LOCK_AND_WAIT = """
import sys, time
from attncalc.files import FileLock
lock = FileLock(sys.argv[1])
print("locked", flush=True)
time.sleep(100)
"""
# locks as often as it can, and is alone whenever it can
LOCK_AND_COUNT = """
import sys, time
from pathlib import Path
from attncalc.files import FileLock
file, alone, n = Path(sys.argv[1]), Path(sys.argv[1] + ".alone"), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        lock = FileLock(file)
    except BlockingIOError:
        continue
    alone.touch(exist_ok=False)
    alone.unlink()
    lock.release()
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


def test_a_lock_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "run.h5md"
    first = FileLock(path)
    for _ in range(2):
        with pytest.raises(BlockingIOError) as refusal:
            FileLock(path)
    assert str(refusal.value) == (
        f"{path}: another run is still writing it (process {os.getpid()}): wait for its end, or "
        "stop it"
    )
    with FileLock(tmp_path / "other.h5md"):  # of another file
        pass
    first.release()
    with FileLock(path):
        first.release()  # once more does not take it from the new one
        with pytest.raises(BlockingIOError):
            FileLock(path)
    assert list(tmp_path.iterdir()) == []


def test_through_a_link_it_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    path, link = tmp_path / "large" / "run.h5md", tmp_path / "run.h5md"
    link.symlink_to(path)
    with FileLock(path), pytest.raises(BlockingIOError):
        FileLock(link)


def test_a_folder_is_locked_apart_from_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    refused = pytest.raises(BlockingIOError, match=r"run: another run is still writing it")
    with FileLock(folder), FileLock(folder / "member-1"), refused:
        FileLock(tmp_path / "." / "run")
    FileLock(folder).release()
    assert [*tmp_path.iterdir(), *folder.iterdir()] == [folder]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        FileLock(tmp_path / "nowhere" / "run.h5md")


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.h5md"
    process = python(LOCK_AND_WAIT, path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=rf"\(process {process.pid}\)"):
            FileLock(path)
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / ".run.h5md.lock").exists()  # nobody could remove it
    FileLock(path).release()
    assert list(tmp_path.iterdir()) == []


def test_processes_that_lock_and_release_are_never_two(tmp_path: Path) -> None:
    processes = [python(LOCK_AND_COUNT, tmp_path / "run.h5md") for _ in range(3)]
    for process in processes:
        n, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert int(n) > 0
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_everybody_may(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with FileLock(tmp_path / "a"), FileLock(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
