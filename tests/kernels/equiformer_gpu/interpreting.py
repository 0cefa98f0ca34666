"""Triton's interpreter, made fast enough for tests; to be imported before any kernel.

It replaces parts of `triton.language` at every call of every function, by looking through all of
it, and puts them back behind every launch. In a process that only interprets, once is enough.
"""

import inspect
import os

assert os.environ.get("TRITON_INTERPRET") == "1", "must be set before triton is imported"

import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

_replaced: set[int] = set()
_replace = interpreter._patch_lang


def _replace_once(function):
    modules = {id(m) for m in function.__globals__.values() if inspect.ismodule(m)}
    new = modules & {id(tl), id(tl.core)} - _replaced
    if new:
        _replace(function)
        _replaced.update(new)
    return interpreter._LangPatchScope()


interpreter._patch_lang = _replace_once
