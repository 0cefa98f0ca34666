"""File cache for the machine code of a whole step: one pass with all functions that it calls."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import int64
from numba.core import codegen
from numba.extending import register_jitable

from attncalc.compiled import Loop, announce_loops, cacheable, compiled_loop
from attncalc.files.file_lock import lock
from attncalc.kernels.simd.loops import FASTMATH

log = logging.getLogger(__name__)

# s between two checks of a process that waits for another one's compilation
POLL_INTERVAL = 0.2
# code of a process that compiles; it reads what its parent writes
# without the collector, which takes a sixth of the time and finds nothing to free
CHILD = """
import gc, pickle, sys
gc.disable()
sys.path[:] = pickle.load(sys.stdin.buffer)
from attncalc.kernels.simd.caching import compile_here
compile_here(*pickle.load(sys.stdin.buffer))
"""
ENTRY = """
def make(step):
    def entry({names}):
        return step({names})
    return entry
"""


def cached_step(step: Loop, folder: Path, *, computes: bool = True) -> Loop:
    """Return `step` compiled; its machine code is kept until the source of a loop changes.

    Numba only notices changes of the file that it compiles. It also reads the types of everything
    that is kept under one name, even if their classes no longer exist. So the name has a hash of
    all sources.

    Args:
        step: a function of a module, not compiled.
        folder: its sources, in addition to those of this folder.
        computes: False for a step without arithmetic; this process compiles it, which saves the
            start of another one.
    """
    register_jitable(fastmath=FASTMATH, error_model="numpy")(step)
    # named parameters: Numba would determine the type of a tuple of all arguments at every call
    names = ", ".join(inspect.signature(step).parameters)
    scope: dict[str, Any] = {}
    # Numba keeps machine code beside the file that a function comes from
    exec(compile(ENTRY.format(names=names), __file__, "exec"), scope)
    entry = scope["make"](step)
    sources = hash_of_sources(folder, Path(__file__).parent)
    entry.__module__ = __name__
    entry.__qualname__ = f"{folder.name}_{step.__name__.strip('_')}-{sources[:16]}"
    loop: Any = compiled_loop(fastmath=FASTMATH)(entry)
    if cacheable():
        compile_it = loop.compile
        if computes:
            module = f"{__name__.rpartition('.simd.')[0]}.{folder.name}.step_loop"
            compile_it = functools.partial(_compile_in_child, module, step.__name__.strip("_"))
        _compile_in_turn(loop, compile_it)
    return loop


def _compile_in_turn(loop: Any, compile_it: Callable[[Any], Any]) -> None:
    """Let one process at a time compile a step, and the others read the result.

    If several processes need a step at once, one compiles and the others wait. Numba has no lock of
    its own: two processes that store code at once could use the same file name.

    Steps that compute are compiled by another process and read in this one. In the process that
    compiles, a step calls its functions as they were compiled alone. Code from the disk calls those
    that were optimized together with the step. The two differ by rounding, and a resumed run must
    continue bit for bit.

    Args:
        loop: Numba's dispatcher of the step.
        compile_it: compiles the step for a signature and keeps it.
    """
    compile_or_load = loop.compile

    def keep(signature: Any) -> None:
        if not _is_kept(loop, signature):
            announce_loops()
            with _in_turn(Path(loop.stats.cache_path) / f"{loop.py_func.__qualname__}.lock"):
                if not _is_kept(loop, signature):
                    compile_it(signature)

    def compile_in_turn(signature: Any) -> Any:
        keep(signature)
        return compile_or_load(signature)

    loop.keep, loop.compile = keep, compile_in_turn


def compile_at_once(forward: Any, reverse: Any) -> None:
    """Compile two steps at the same time, each in a process of its own.

    The types of the second step's arguments are derived from the first: arguments of equal name
    have equal types, d_x has that of x, others are integers. If that were wrong, the second step
    would be compiled twice.

    Args:
        forward: result of `cached_step`, called first.
        reverse: result of `cached_step`.
    """
    if not cacheable():
        return
    compile_forward = forward.compile

    def compile_both(signature: Any) -> Any:
        if not _is_kept(forward, signature):
            types = types_of_second(forward, reverse, signature)
            threading.Thread(target=reverse.keep, args=(types,), daemon=True).start()
        return compile_forward(signature)

    forward.compile = compile_both


def types_of_second(first: Any, second: Any, signature: Any) -> tuple[Any, ...]:
    """Return the types that the arguments of `second` will have, see `compile_at_once`."""
    given, wanted = (inspect.signature(step.py_func).parameters for step in (first, second))
    types = dict(zip(given, signature, strict=True))
    return tuple(types.get(name, types.get(name.removeprefix("d_"), int64)) for name in wanted)


@contextmanager
def _in_turn(file: Path) -> Iterator[None]:
    """Run a block while no other process or thread runs one with this file."""
    try:
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # on a full disk nothing is kept, and every process compiles
        yield
        return
    try:
        while not lock(number):
            time.sleep(POLL_INTERVAL)
        yield
    finally:
        os.close(number)


def _compile_in_child(module: str, name: str, signature: Any) -> None:
    order = pickle.dumps(sys.path) + pickle.dumps((module, name, signature))
    command = [sys.executable, "-c", CHILD]
    ended = subprocess.run(command, input=order, capture_output=True, check=False)
    if ended.returncode != 0:
        log.debug("%s.%s: %s", module, name, ended.stderr.decode(errors="replace"))


def compile_here(module: str, name: str, signature: Any) -> None:
    """Compile a step for these argument types and keep it; this process does nothing else."""
    loop = getattr(importlib.import_module(module), name)
    _without_wrappers(loop)
    _optimize_as_a_whole(loop.py_func.__qualname__)
    type(loop).compile(loop, signature)


def _without_wrappers(loop: Any) -> None:
    """Omit the entry points from Python and C of functions that only `loop` calls.

    By default, Numba generates and compiles both for each of a step's many functions.
    """
    for module in list(sys.modules.values()):
        if module.__name__.startswith("attncalc."):
            for inner in vars(module).values():
                if isinstance(inner, type(loop)) and inner is not loop:
                    inner.targetoptions.update(no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _optimize_as_a_whole(outermost: str) -> None:
    """Optimize only the function that is kept, together with everything that it calls.

    By default, Numba optimizes every function together with everything that it calls and generates
    its machine code, so it compiles the same loops again at each level. This process runs none of
    them: the machine code of the outermost function is enough.

    Args:
        outermost: name of the function that is kept.
    """
    library: Any = codegen.JITCodeLibrary
    optimize, finalize = library._optimize_final_module, library._finalize_final_module

    def optimize_outermost(self: Any) -> None:
        if self.name == outermost:
            # twice: after one pass, loops are up to 18 % slower than if their functions had been
            # optimized before
            optimize(self)
            optimize(self)

    def finalize_outermost(self: Any) -> None:
        if self.name == outermost:
            finalize(self)
        else:
            self._finalize_dynamic_globals()
            self._finalized = True

    library._optimize_final_module = optimize_outermost
    library._finalize_final_module = finalize_outermost
    generator: Any = codegen.JITCPUCodegen
    generator.set_env = lambda *_: None  # inner functions have no machine code to set it in


def _is_kept(loop: Any, signature: Any) -> bool:
    """Return True if Numba has the code in memory or on the disk, or if that is unknown."""
    cache = loop._cache
    try:  # Numba has no public function for this
        key = cache._index_key(signature, loop.targetctx.codegen())
        return signature in loop.overloads or key in cache._cache_file._load_index()
    except AttributeError:
        return True


def hash_of_sources(*folders: Path) -> str:
    """Return the SHA-256 of all Python files in these folders."""
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
