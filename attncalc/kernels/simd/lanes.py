"""Vector length and memory order of matrices, in a file that does not need numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16


def filled_up(n: int) -> int:
    """Return the smallest multiple of 16 that is not below n."""
    return -(-n // LANES) * LANES


def in_blocks(matrices: NDArray[Any]) -> NDArray[Any]:
    """Reorder matrices to the order in which `attncalc.kernels.simd.products` reads them.

    First come all rows of columns 0 to 15, then all rows of columns 16 to 31, and so on. Memory is
    then read from one end to the other, which the processor prefetches. In C order with 512 bytes a
    row, most products of a small molecule waited for the third-level cache.

    Args:
        matrices: [.., K, M], M a multiple of 16.
    """
    *many, rows, columns = matrices.shape
    blocks = matrices.reshape(*many, rows, columns // LANES, LANES)
    return np.ascontiguousarray(blocks.swapaxes(-3, -2)).reshape(matrices.shape)
