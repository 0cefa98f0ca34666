"""Whether compiled loops can run: Numba's (the optional extra "fast") and Triton's."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Loop = Callable[..., Any]


@functools.cache
def has_numba() -> bool:
    """Whether compiled loops can run."""
    try:
        import numba  # noqa: F401
    except Exception:  # a numba that does not suit numpy raises whatever it stumbles over
        return False
    return True


@functools.cache
def has_triton() -> bool:
    """Whether kernels for a GPU can be written; PyTorch for CUDA brings it along."""
    try:
        import triton  # noqa: F401
    except Exception:
        return False
    return True


def gpu_kernels(module: str, trial: Callable[[Any], None]) -> Any | None:
    """A module of Triton kernels; None where Triton is not there, or fails to compile them.

    Args:
        module: its full name.
        trial: is given the module, and launches its kernels once, on little.
    """
    if not has_triton():
        return None
    try:
        kernels = importlib.import_module(module)
        trial(kernels)
    except Exception as reason:  # a compiler that fails must not take the simulation away
        log.warning("%s does not run here (%s)", module, reason)
        return None
    return kernels


def compiled_loop(
    *, fastmath: bool | set[str] = False, kept: bool = True
) -> Callable[[Loop], Loop]:
    """Decorates a loop that Numba compiles at its first call and keeps in a file from then on.

    Args:
        fastmath: which liberties the compiler may take with floating-point numbers.
        kept: False for a loop that only others call, from another file: Numba would not notice
            that it has changed.
    """
    import numba

    cache = kept and cacheable()
    return numba.njit(cache=cache, error_model="numpy", nogil=True, fastmath=fastmath)


@functools.cache
def cacheable() -> bool:
    """False where neither the package's folder nor the user's cache folder can be written."""
    import numba

    try:
        numba.njit(cache=True)(cacheable.__wrapped__)
    except RuntimeError:
        return False
    return True
