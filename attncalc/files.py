"""Files that a program writes: never half of one, over nothing, and nobody else meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl


def refuse_existing(*paths: Path) -> None:
    """What is there stays as it is.

    Raises:
        FileExistsError: one of them exists; the message names it.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name, nothing is overwritten")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the complete new one, never half."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Claim:
    """The right to write a file or into a folder, which one at a time has: until it is released.

    It is a lock on a hidden file, .NAME.lock beside a file and .lock in a folder, that the
    operating system gives up with the process, kill -9 included: what such a process leaves stands
    in nobody's way. Windows and file systems without locks keep nobody apart.

    Args:
        path: the file, which need not exist, or the folder, which must.

    Raises:
        BlockingIOError: somebody else has it, in this process or another.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        real = Path(path).resolve()  # through another link it is the same file
        if not real.parent.is_dir():
            raise FileNotFoundError(f"no such folder: {real.parent}")
        self._lock = real / ".lock" if real.is_dir() else real.with_name(f".{real.name}.lock")
        self._number = -1
        if sys.platform == "win32":
            return
        while self._number < 0:
            number = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock_or_refuse(number, path)
                if _is_still(number, self._lock):
                    self._number = number
            finally:
                if self._number < 0:
                    os.close(number)
        os.ftruncate(self._number, 0)
        os.write(self._number, str(os.getpid()).encode())

    def release(self) -> None:
        """Others may have it now; once is enough, more do no harm."""
        if self._number >= 0:
            self._lock.unlink(missing_ok=True)
            os.close(self._number)
            self._number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_still(number: int, path: Path) -> bool:
    """Whether an open file has its name yet: who had it may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _lock_or_refuse(number: int, path: str | Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = os.read(number, 20).decode() or "unknown"
        raise BlockingIOError(
            f"{path}: another run is still writing it (process {process}): wait for its end, or "
            "stop it"
        ) from None
    except OSError:  # a file system without locks
        return
