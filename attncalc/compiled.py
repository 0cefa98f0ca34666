"""Availability of compiled loops: Numba's and Triton's."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Loop = Callable[..., Any]

# seconds of compiling after which a message is printed
SILENT = 4.0


@functools.cache
def has_numba() -> bool:
    """Return True if compiled loops can run."""
    try:
        import numba  # noqa: F401
    except Exception:  # a numba that does not suit numpy may raise anything
        return False
    return True


@functools.cache
def has_triton() -> bool:
    """Return True if Triton kernels can be compiled; PyTorch for CUDA comes with Triton."""
    try:
        import triton  # noqa: F401
    except Exception:
        return False
    return True


@functools.cache
def cpu_loops(module: str, trial: Callable[[Any], None] | None = None) -> Any:
    """Return a module of Numba's loops; None without Numba, or if it does not run.

    Args:
        module: its full name.
        trial: called with the module; calls loops once, on small arrays. Without a trial, they are
            compiled at their first call.
    """
    return _tried(module, trial) if has_numba() else None


def gpu_kernels(module: str, trial: Callable[[Any], None]) -> Any | None:
    """Return a module of Triton kernels; None without Triton, or if it fails to compile them.

    Args:
        module: its full name.
        trial: called with the module; launches its kernels once, on small arrays.
    """
    return _tried(module, trial) if has_triton() else None


def _tried(module: str, trial: Callable[[Any], None] | None) -> Any | None:
    try:
        loops = importlib.import_module(module)
        if trial is not None:
            trial(loops)
    except Exception as reason:  # a compiler that fails must not stop the simulation
        log.warning("%s does not run here (%s)", module, reason)
        return None
    return loops


def compiled_loop(
    *, fastmath: bool | set[str] = False, kept: bool = True
) -> Callable[[Loop], Loop]:
    """Decorate a loop that Numba compiles at its first call and caches on the disk.

    Args:
        fastmath: floating-point optimisations that the compiler may use, as in `numba.njit`.
        kept: False: not cached, for loops that are only called by loops of another file. Numba
            would not notice a change in them.
    """
    import numba

    announce_compilation()
    cache = kept and cacheable()
    return numba.njit(cache=cache, error_model="numpy", nogil=True, fastmath=fastmath)


@functools.cache
def cacheable() -> bool:
    """Return False if neither the package's folder nor the user's cache folder can be written."""
    import numba

    try:
        numba.njit(cache=True)(cacheable.__wrapped__)
    except RuntimeError:
        return False
    return True


@functools.cache
def announce_compilation() -> None:
    """Print a message once this process compiles loops for longer than `SILENT` seconds.

    Code in the cache on the disk is not compiled again.
    """
    from numba.core import event

    event.register("numba:compile", _listener(event.Listener))


@functools.cache
def announce_loops() -> None:
    """Print how long the compilation takes, at the first call only."""
    log.warning(
        "compiling loops for this machine: half a minute, on busy cores up to two; the next start "
        "of this kind finds them on the disk"
    )


def _listener(base: Any) -> Any:
    """Return a Numba listener for the start and end of compilations, which may be nested."""

    class Announcer(base):
        depth = 0
        timer: threading.Timer | None = None

        def on_start(self, compilation: Any) -> None:
            module = getattr(compilation.data["dispatcher"].py_func, "__module__", "")
            if self.depth == 0 and self.timer is None and module.startswith("attncalc."):
                self.timer = threading.Timer(SILENT, self.say)
                self.timer.daemon = True
                self.timer.start()
            self.depth += 1

        def on_end(self, compilation: Any) -> None:
            self.depth -= 1

        def say(self) -> None:
            if self.depth:
                announce_loops()
            else:  # it was short; the next one may not be
                self.timer = None

    return Announcer()
