"""Keeps the machine code of a whole step in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from numba.extending import register_jitable

from attncalc.compiled import Loop, compiled_loop
from attncalc.kernels.simd.loops import FASTMATH


def kept_step(step: Loop, folder: Path) -> Loop:
    """`step`, compiled, and kept for as long as the sources of all loops stay as they are.

    Numba looks only at the file that it compiles; what a function has in its closure is part of the
    key under which it is kept.

    Args:
        step: a function of a module, not compiled; returns a whole number.
        folder: its sources, beside those of this folder.
    """
    sources = hash_of_sources(folder, Path(__file__).parent)
    register_jitable(fastmath=FASTMATH, error_model="numpy")(step)

    def entry(*arguments):
        return step(*arguments) if len(sources) > 0 else -1

    entry.__qualname__ = folder.name  # a part of the file's name: two steps do not share one
    return compiled_loop(fastmath=FASTMATH)(entry)


def hash_of_sources(*folders: Path) -> str:
    """Of all Python files in these folders."""
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
