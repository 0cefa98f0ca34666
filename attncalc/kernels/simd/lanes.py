"""Number of elements of a vector, and the order of matrices; in a file that needs no numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16


def filled_up(n: int) -> int:
    """The next multiple of 16."""
    return -(-n // LANES) * LANES


def in_blocks(matrices: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the order in which `attncalc.kernels.simd.products` reads them.

    First all rows of columns 0 to 15, then all rows of columns 16 to 31 ...: memory is read from
    one end to the other, which the processor foresees. In C order with 512 bytes a row, most
    products of a small molecule waited for the third cache.

    Args:
        matrices: [.., K, M], M a multiple of 16.
    """
    *many, rows, columns = matrices.shape
    blocks = matrices.reshape(*many, rows, columns // LANES, LANES)
    return np.ascontiguousarray(blocks.swapaxes(-3, -2)).reshape(matrices.shape)
