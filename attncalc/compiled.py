"""Whether compiled loops (Numba, the optional extra "fast") can run, and be kept for next time."""

from __future__ import annotations

import functools


@functools.cache
def has_numba() -> bool:
    """Whether compiled loops can run."""
    try:
        import numba  # noqa: F401
    except Exception:  # a numba that does not suit numpy raises whatever it stumbles over
        return False
    return True


@functools.cache
def cacheable() -> bool:
    """False where neither the package's folder nor the user's cache folder can be written."""
    import numba

    try:
        numba.njit(cache=True)(cacheable.__wrapped__)
    except RuntimeError:
        return False
    return True
