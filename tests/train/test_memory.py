"""The allocator is told, or left alone."""

import platform
import subprocess
import sys
from pathlib import Path

from attncalc.train import memory

REPOSITORY = Path(__file__).resolve().parents[2]


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(memory.ctypes, "CDLL")
    assert memory.keep_freed_memory() is False


def test_glibc_is_told():
    """In a process of its own: the setting lasts."""
    source = (REPOSITORY / "attncalc" / "train" / "memory.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\nprint(keep_freed_memory())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
