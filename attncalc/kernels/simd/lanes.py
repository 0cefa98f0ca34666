"""Number of elements of a vector; in a file of its own that needs no numba."""

LANES = 16


def filled_up(n: int) -> int:
    """The next multiple of 16."""
    return -(-n // LANES) * LANES
