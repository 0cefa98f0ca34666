"""Cache of a whole step's machine code in a file."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from numba.extending import register_jitable

from attncalc.compiled import Loop, compiled_loop
from attncalc.kernels.simd.loops import FASTMATH

# `sources` is in the closure of the function, and so in the key under which Numba keeps it
ENTRY = """
def make(step, sources):
    def entry({names}):
        return step({names}) if len(sources) > 0 else -1
    return entry
"""


def cached_step(step: Loop, folder: Path) -> Loop:
    """Return `step` compiled, cached for as long as the sources of all loops stay as they are.

    Numba looks only at the file that it compiles; what a function has in its closure is part of the
    key under which it is cached.

    Args:
        step: a function of a module, not compiled; returns a whole number.
        folder: its sources, beside those of this folder.
    """
    sources = hash_of_sources(folder, Path(__file__).parent)
    register_jitable(fastmath=FASTMATH, error_model="numpy")(step)
    # named parameters: of a tuple of all arguments Numba would find out the type at every call
    names = ", ".join(inspect.signature(step).parameters)
    code = ENTRY.format(names=names)
    # Numba keeps machine code beside the file that a function comes from
    scope: dict[str, Any] = {}
    exec(compile(code, __file__, "exec"), scope)
    entry = scope["make"](step, sources)
    entry.__module__ = __name__
    # a part of the file's name: two steps do not share one
    entry.__qualname__ = f"{folder.name}{step.__name__}"
    return compiled_loop(fastmath=FASTMATH)(entry)


def hash_of_sources(*folders: Path) -> str:
    """Return the SHA-256 of all Python files in these folders."""
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
