"""From the gradient by the vector of an edge to forces and strain gradient."""

from attncalc.kernels.simd.loops import inner_loop


@inner_loop
def add_force(i, to, x, y, z, gx, gy, gz, system_idx, forces, strain_gradient):
    """Of one edge from i to j: vector x, y, z Å and the gradient of the energy by it.

    Args:
        to: the row of j.
    """
    forces[i, 0] += gx
    forces[i, 1] += gy
    forces[i, 2] += gz
    forces[to, 0] -= gx
    forces[to, 1] -= gy
    forces[to, 2] -= gz
    s = system_idx[i]
    # symmetric but for rounding, so one half is enough
    strain_gradient[s, 0, 0] += x * gx
    strain_gradient[s, 1, 1] += y * gy
    strain_gradient[s, 2, 2] += z * gz
    xy, xz, yz = (x * gy + y * gx) / 2, (x * gz + z * gx) / 2, (y * gz + z * gy) / 2
    strain_gradient[s, 0, 1] += xy
    strain_gradient[s, 1, 0] += xy
    strain_gradient[s, 0, 2] += xz
    strain_gradient[s, 2, 0] += xz
    strain_gradient[s, 1, 2] += yz
    strain_gradient[s, 2, 1] += yz
