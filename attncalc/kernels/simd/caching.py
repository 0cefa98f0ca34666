"""Cache of a whole step's machine code in a file."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from numba.extending import register_jitable

from attncalc.compiled import Loop, compiled_loop
from attncalc.kernels.simd.loops import FASTMATH

ENTRY = """
def make(step):
    def entry({names}):
        return step({names})
    return entry
"""


def cached_step(step: Loop, folder: Path) -> Loop:
    """`step`, compiled, and kept for as long as the sources of all loops stay as they are.

    Numba looks only at the file that it compiles, and reads the types of all that it has kept under
    one name, also of classes that are gone: the name has a hash of all sources.

    Args:
        step: a function of a module, not compiled.
        folder: its sources, beside those of this folder.
    """
    register_jitable(fastmath=FASTMATH, error_model="numpy")(step)
    # named parameters: of a tuple of all arguments Numba would find out the type at every call
    names = ", ".join(inspect.signature(step).parameters)
    scope: dict[str, Any] = {}
    # Numba keeps machine code beside the file that a function comes from
    exec(compile(ENTRY.format(names=names), __file__, "exec"), scope)
    entry = scope["make"](step)
    sources = hash_of_sources(folder, Path(__file__).parent)
    entry.__module__ = __name__
    entry.__qualname__ = f"{folder.name}_{step.__name__.strip('_')}-{sources[:16]}"
    return compiled_loop(fastmath=FASTMATH)(entry)


def hash_of_sources(*folders: Path) -> str:
    """Return the SHA-256 of all Python files in these folders."""
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
