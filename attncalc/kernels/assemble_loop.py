"""Compiled loop that turns dE / d edge vectors into forces and strain gradient."""

from attncalc.compiled import compiled_loop


@compiled_loop()
def assemble(vectors, receivers, senders, d_vectors, system_idx, forces, strain_gradient):
    """Add the contributions of edges; see `attncalc.potential.assemble` for shapes and formulas.

    Edges whose gradient is zero contribute nothing, whatever their vector is.
    """
    for e in range(receivers.shape[0]):
        gx, gy, gz = d_vectors[e, 0], d_vectors[e, 1], d_vectors[e, 2]
        if gx == 0 and gy == 0 and gz == 0:
            continue
        i, j = receivers[e], senders[e]
        forces[i, 0] += gx
        forces[i, 1] += gy
        forces[i, 2] += gz
        forces[j, 0] -= gx
        forces[j, 1] -= gy
        forces[j, 2] -= gz
        x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
        strain = strain_gradient[system_idx[i]]
        # the sum is symmetric up to rounding, so one triangle is enough
        strain[0, 0] += x * gx
        strain[1, 1] += y * gy
        strain[2, 2] += z * gz
        strain[0, 1] += (x * gy + y * gx) / 2
        strain[0, 2] += (x * gz + z * gx) / 2
        strain[1, 2] += (y * gz + z * gy) / 2
    for strain in strain_gradient:
        strain[1, 0], strain[2, 0], strain[2, 1] = strain[0, 1], strain[0, 2], strain[1, 2]
