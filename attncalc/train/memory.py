"""Settings of the C library's memory allocation during a training."""

from __future__ import annotations

import ctypes
import platform

# parameters of glibc's mallopt(3), and values that make it keep what it has once got
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _AT_ONCE = 2_000_000_000, 256 * 1024**2


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for its next step instead of returning it to the system.

    A training step allocates and frees the same large tensors again and again. By default glibc
    gets each from the system and gives it back, and every page is cleared anew.

    Returns:
        Whether there is a glibc to tell; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    told = [
        mallopt(_M_MMAP_MAX, 0),
        mallopt(_M_TRIM_THRESHOLD, _NEVER),
        mallopt(_M_TOP_PAD, _AT_ONCE),
    ]
    return all(told)
