"""Locks on files and folders that one process at a time may write."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from attncalc.files.writing import naming_full_disk

if sys.platform != "win32":
    import fcntl


class FileLock:
    """Exclusive right to write a file or into a folder, from construction until `release`.

    The lock is held on a hidden file, .NAME.lock beside a file or .lock in a folder, and the
    operating system drops it with the process, kill -9 included. `release` removes the hidden file.
    On Windows and on file systems without locks nothing is locked.

    Args:
        path: the file, which need not exist, or the folder, which must.

    Raises:
        BlockingIOError: the lock is held already, in this process or another; the message gives the
            number of that process.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        real = Path(path).resolve()  # the same file by any link
        if not real.parent.is_dir():
            raise FileNotFoundError(f"no such folder: {real.parent}")
        self._lock = real / ".lock" if real.is_dir() else real.with_name(f".{real.name}.lock")
        self._number = -1
        if sys.platform == "win32":
            return
        while self._number < 0:
            with naming_full_disk(path):
                number = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock_or_refuse(number, path)
                if _is_still(number, self._lock):
                    self._number = number
            finally:
                if self._number < 0:
                    os.close(number)
        with suppress(OSError):  # on a full disk, the message of another process has no id
            os.ftruncate(self._number, 0)
            os.write(self._number, str(os.getpid()).encode())

    def release(self) -> None:
        """Give the lock up; further calls do nothing."""
        if self._number >= 0:
            self._lock.unlink(missing_ok=True)
            os.close(self._number)
            self._number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_still(number: int, path: Path) -> bool:
    """Return True if an open file still has its name; its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _lock_or_refuse(number: int, path: str | Path) -> None:
    if not lock(number):
        process = os.read(number, 20).decode() or "unknown"
        raise BlockingIOError(
            f"{path}: another run is still writing it (process {process}): wait for its end, or "
            "stop it"
        )


def lock(number: int) -> bool:
    """Lock an open file until it is closed.

    Returns:
        False if the lock is already held; True otherwise, and always on Windows and on file systems
        without locks.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
