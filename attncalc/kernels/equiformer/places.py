"""Access to matrices by their places, see `attncalc.kernels.equiformer.layout`."""

from attncalc.kernels.simd.loops import inner_loop, stays_whole


@inner_loop
def matrix(flat, place):
    """Return the matrix at a place."""
    stays_whole()
    start, rows, columns = place[0], place[2], place[3]
    return flat[start : start + rows * columns].reshape((rows, columns))


@inner_loop
def transposed(flat, place):
    """Return the transpose of the matrix at a place."""
    stays_whole()
    start, rows, columns = place[1], place[2], place[3]
    return flat[start : start + rows * columns].reshape((columns, rows))
