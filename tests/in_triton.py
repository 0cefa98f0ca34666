"""Triton without a GPU: programs in its interpreter, and kernels compiled for one.

Triton decides when it is imported whether it interprets, so each program that it interprets has a
process of its own.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
FUSED = {"TRITON_DEFAULT_FP_FUSION": "1"}  # what it does anyway, and warns of


class _StayPatched:
    def restore(self) -> None:
        pass


def patch_once() -> None:
    """Make Triton's interpreter several times faster.

    It patches its own modules anew at every call, makes a table of types at every operation, and
    looks for integers that overflow, which tests of a few atoms do not have.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def once(function):
        if id(function.__globals__) not in done:
            done.add(id(function.__globals__))
            patch(function)
            # numpy >= 2.4 makes no number of an array of one, as Triton 3.6 asks it to
            tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        return _StayPatched()

    interpreter._patch_lang = once
    any_type = interpreter._get_np_dtype
    scalar_type = functools.cache(any_type)
    interpreter._get_np_dtype = lambda kind: (scalar_type if type(kind) is tl.dtype else any_type)(
        kind
    )
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.interpreter_builder.options = options


def interpreted(program: str, cache: Path) -> str:
    """What a program prints whose kernels run in the interpreter."""
    program = f"from in_triton import patch_once\npatch_once()\n{program}"
    return _output_of(program, cache, TRITON_INTERPRET="1")


def compiled_for_a_gpu(
    compile_all: Callable[[Callable[..., None]], None], cache: Path, patch: pytest.MonkeyPatch
) -> int:
    """How many kernels a function compiles; nothing may lose digits on the way.

    Args:
        compile_all: gets `compile(kernel, types, **constants)` for an H100, H200 ...
        cache: a folder for what is compiled.
        patch: sets what Triton reads.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets in this process")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for name, value in ({"TRITON_CACHE_DIR": str(cache)} | FUSED).items():
        patch.setenv(name, value)
    compiled = []

    def compile(kernel: Any, types: dict[str, str], **constants: Any) -> None:
        types = types | dict.fromkeys(constants, "constexpr")
        numbers = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=types, constexprs=numbers)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert "cubin" in made.asm
        assert ".f32" not in made.asm["ptx"]
        compiled.append(made)

    compile_all(compile)
    return len(compiled)


def _output_of(program: str, cache: Path, **variables: str) -> str:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)} | variables
    environment |= FUSED
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
