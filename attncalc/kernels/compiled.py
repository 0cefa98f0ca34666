"""Whether compiled loops can be kept in a file from one process to the next."""

import numba


def _cacheable() -> bool:
    """False where neither the package's folder nor the user's cache folder can be written."""
    try:
        numba.njit(cache=True)(_cacheable)
    except RuntimeError:
        return False
    return True


CACHE = _cacheable()
