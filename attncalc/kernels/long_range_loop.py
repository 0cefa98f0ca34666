"""Compiled loops of `attncalc.kernels.frozen_long_range`.

Pairs are processed in chunks. A chunk is gathered into columns, every formula is one loop over the
numbers of columns, which the compiler vectorizes, and the results are added to the two atoms of
each pair. Nothing is stored per pair.
"""

import math

import numpy as np

from attncalc.compiled import compiled_loop
from attncalc.kernels.simd.loops import FASTMATH

CHUNK = 256
# columns of a chunk, each CHUNK numbers long
X, Y, Z, SQUARE = 0, 1 * CHUNK, 2 * CHUNK, 3 * CHUNK
PRODUCT, ALPHA, RATIOS, ROOT = 4 * CHUNK, 5 * CHUNK, 6 * CHUNK, 7 * CHUNK
LENGTH, SHARED, FADE, FADE_SLOPE = 8 * CHUNK, 9 * CHUNK, 10 * CHUNK, 11 * CHUNK
SLOPE, ENERGY, BY_RATIOS, BY_ALPHA = 12 * CHUNK, 13 * CHUNK, 14 * CHUNK, 15 * CHUNK
N_COLUMNS = 16
# input of an atom: position; charge, polarizability, ratio, seventh root of the polarizability
POSITION, CHARGE, OF_ALPHA, RATIO, OF_ROOT, N_GIVEN = 0, 3, 4, 5, 6, 8
# results of an atom: force, dE/d charge, dE/d polarizability, dE/d ratio without the part through
# the polarizability, energy
D_CHARGE, D_ALPHA, D_RATIO, OF_ENERGY, N_FOUND = 3, 4, 5, 6, 8

# indices of pairs are unsigned: for signed ones Numba checks whether they count from the end
NO_ATOM = np.uint32(2**32 - 1)


@compiled_loop(fastmath=FASTMATH)
def _describe(positions, charges, ratios, species, free, smallest, given):
    """Fill `given`, the input of each atom."""
    for i in range(species.shape[0]):
        if positions.shape[0]:
            for k in range(3):
                given[i, k] = positions[i, k]
        alpha = max(free[species[i]] * ratios[i], smallest)
        given[i, CHARGE] = charges[i]
        given[i, OF_ALPHA] = alpha
        given[i, RATIO] = ratios[i]
        given[i, OF_ROOT] = alpha ** (1 / 7)


@compiled_loop(fastmath=FASTMATH)
def _look_up(n, c, table, per_length, reach):
    """Fill the columns of lengths, charge interaction and dispersion switch, and their slopes."""
    last = table.shape[0] - 1
    for k in range(n):
        c[LENGTH + k] = math.sqrt(c[SQUARE + k])
    for k in range(n):
        d = c[LENGTH + k]
        t = d * per_length
        row = np.uint32(min(int(t), last))
        t -= row
        a = table[row]
        value = a[0] + t * (a[1] + t * (a[2] + t * a[3]))
        slope = (a[1] + t * (2 * a[2] + t * (3 * a[3]))) * per_length
        if d >= reach:  # charges are points there
            value = 1 / d
            slope = -value * value
        c[SHARED + k] = value
        c[SLOPE + k] = slope
        c[FADE + k] = a[4] + t * (a[5] + t * (a[6] + t * a[7]))
        c[FADE_SLOPE + k] = (a[5] + t * (2 * a[6] + t * (3 * a[7]))) * per_length


@compiled_loop(fastmath=FASTMATH)
def _evaluate(n, c, numbers):
    """Compute energies of pairs and their derivatives; see `Dispersion` for the formulas.

    With y = (r / rho)^2, C6 / (r^6 + rho^6) = C6 / rho^6 / (1 + y^3) and so on, without `pow`.
    """
    per_square, per_root = numbers[0], numbers[1]
    w0, w1, w2, w3 = numbers[2], numbers[3], numbers[4], numbers[5]
    for k in range(n):
        alpha, u = c[ALPHA + k], c[ROOT + k]
        for _ in range(3):  # Halley steps to the seventh root: each triples the digits
            u3 = u * u * u
            u7 = u3 * u3 * u
            u *= (6 * u7 + 8 * alpha) / (8 * u7 + 6 * alpha)
        inverse = per_root / (u * u)  # 1 / rho^2
        y = c[SQUARE + k] * per_square * inverse
        y2 = y * y
        y4 = y2 * y2
        p6, p8, p10 = 1 + y2 * y, 1 + y4, 1 + y4 * y
        both = 1 / (p6 * p8 * p10)
        t6, t8, t10 = p8 * p10 * both, p6 * p10 * both, p6 * p8 * both
        s = w0 + u * (w1 + u * (w2 + u * w3))
        c8 = 10 * s * s * inverse
        c10 = 1.225 * c8 * c8
        i6 = inverse * inverse * inverse
        powers = i6 * (t6 + c8 * t8 + c10 * t10)
        by_y = -i6 * (3 * y2 * t6 * t6 + c8 * 4 * y2 * y * t8 * t8 + c10 * 5 * y4 * t10 * t10)
        width = u * (w1 + u * (2 * w2 + u * (3 * w3))) / s  # d ln s / d ln u
        by_root = i6 * (c8 * t8 + 2 * c10 * t10) * (2 * width - 2) - 6 * powers - 2 * y * by_y
        fade, ratios, length = c[FADE + k], c[RATIOS + k], c[LENGTH + k]
        pulled = -c[BY_RATIOS + k]  # minus C6 of the free atoms
        c[BY_RATIOS + k] = pulled * fade * powers
        c[BY_ALPHA + k] = pulled * ratios * fade * by_root / (14 * alpha)
        c[ENERGY + k] = c[PRODUCT + k] * c[SHARED + k] + pulled * ratios * fade * powers
        c[SLOPE + k] = (
            c[PRODUCT + k] * c[SLOPE + k] + pulled * ratios * powers * c[FADE_SLOPE + k]
        ) / length + pulled * ratios * fade * 2 * by_y * inverse * per_square


@compiled_loop(fastmath=FASTMATH)
def _sum_up(n, c, i_of, j_of, coulomb, system_idx, given, found, strain):
    """Add the results of a chunk's pairs to their atoms, and to the strain of their systems.

    Sums of atom i stay in registers while consecutive pairs have the same i.
    """
    begin = 0
    while begin < n:
        i = i_of[begin]
        charge, ratio = given[i, CHARGE], given[i, RATIO]
        gx = gy = gz = by_charge = by_alpha = by_ratio = energy = 0.0
        xx = yy = zz = xy = xz = yz = 0.0
        k = begin
        while k < n and i_of[k] == i:
            j = j_of[k]
            x, y, z, slope = c[X + k], c[Y + k], c[Z + k], c[SLOPE + k]
            fx, fy, fz = slope * x, slope * y, slope * z
            shared, of_alpha, of_ratios = coulomb * c[SHARED + k], c[BY_ALPHA + k], c[BY_RATIOS + k]
            half = 0.5 * c[ENERGY + k]
            gx += fx
            gy += fy
            gz += fz
            by_charge += shared * given[j, CHARGE]
            by_alpha += of_alpha
            by_ratio += of_ratios * given[j, RATIO]
            energy += half
            found[j, 0] -= fx
            found[j, 1] -= fy
            found[j, 2] -= fz
            found[j, D_CHARGE] += shared * charge
            found[j, D_ALPHA] += of_alpha
            found[j, D_RATIO] += of_ratios * ratio
            found[j, OF_ENERGY] += half
            xx += x * fx
            yy += y * fy
            zz += z * fz
            xy += x * fy
            xz += x * fz
            yz += y * fz
            k += 1
        found[i, 0] += gx
        found[i, 1] += gy
        found[i, 2] += gz
        found[i, D_CHARGE] += by_charge
        found[i, D_ALPHA] += by_alpha
        found[i, D_RATIO] += by_ratio
        found[i, OF_ENERGY] += energy
        e = strain[system_idx[i]]
        e[0, 0] += xx
        e[1, 1] += yy
        e[2, 2] += zz
        e[0, 1] += xy
        e[0, 2] += xz
        e[1, 2] += yz
        begin = k


@compiled_loop(fastmath=FASTMATH)
def _chunk(n, c, i_of, j_of, species, system_idx, c6, table, numbers, given, found, strain):
    """Evaluate and sum up the n pairs of a chunk, whose vectors and squared lengths are given."""
    coulomb = numbers[6]
    for k in range(n):
        i, j = i_of[k], j_of[k]
        a, b = given[i], given[j]
        c[PRODUCT + k] = coulomb * a[CHARGE] * b[CHARGE]
        c[ALPHA + k] = 0.5 * (a[OF_ALPHA] + b[OF_ALPHA])
        c[RATIOS + k] = a[RATIO] * b[RATIO]
        c[ROOT + k] = 0.5 * (a[OF_ROOT] + b[OF_ROOT])
        c[BY_RATIOS + k] = c6[np.uint32(species[i]), np.uint32(species[j])]
    _look_up(n, c, table, numbers[7], numbers[8])
    _evaluate(n, c, numbers)
    _sum_up(n, c, i_of, j_of, coulomb, system_idx, given, found, strain)


@compiled_loop(fastmath=FASTMATH)
def _finish(species, free, found, energies, d_ratios, strain):
    for i in range(species.shape[0]):
        energies[i] = found[i, OF_ENERGY]
        d_ratios[i] = found[i, D_RATIO] + free[species[i]] * found[i, D_ALPHA]
    for e in strain:
        e[1, 0], e[2, 0], e[2, 1] = e[0, 1], e[0, 2], e[1, 2]


@compiled_loop(fastmath=FASTMATH)
def sum_over_pairs(
    positions,
    cells,
    receivers,
    senders,
    codes,
    shifts,
    species,
    system_idx,
    charges,
    ratios,
    free,
    c6,
    table,
    numbers,
):
    """Energies and derivatives of the pairs of a half list.

    Args:
        positions: [n_atoms, 3] Å.
        cells: [n_systems, 3, 3] Å.
        receivers, senders: [P], int32, each pair once; fastest if sorted by receiver.
        codes: [P], int32, row of `shifts` [n_codes, 3] for each pair.
        species, system_idx: [n_atoms].
        charges, ratios: [n_atoms] e, [n_atoms] Hirshfeld volume ratios.
        free: [n_species] bohr^3, polarizabilities of free atoms.
        c6: [n_species, n_species] eV bohr^6, of two free atoms.
        table: [n_intervals, 8], cubics of the interaction of charges and of the switch.
        numbers: [11]: 1 / bohr^2 in 1/Å^2; square of u / rho, where u is the seventh root of a
            polarizability; coefficients of the oscillator's width in powers of u; k_e in eV Å; rows
            of the table per Å; length in Å beyond which charges are points; squared length in Å^2
            where the terms end; smallest polarizability of an atom in bohr^3.

    Returns:
        energies [n_atoms], found [n_atoms, 8] with forces and dE/d charges, dE/d ratios [n_atoms],
        strain gradient [n_systems, 3, 3].
    """
    n_atoms, furthest = species.shape[0], numbers[9]
    given, found = np.empty((n_atoms, N_GIVEN)), np.zeros((n_atoms, N_FOUND))
    energies, d_ratios = np.empty(n_atoms), np.empty(n_atoms)
    strain = np.zeros((cells.shape[0], 3, 3))
    c = np.empty(N_COLUMNS * CHUNK)
    i_of, j_of = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32)
    _describe(positions, charges, ratios, species, free, numbers[10], given)
    moves = np.zeros((cells.shape[0], shifts.shape[0], 3))
    for s in range(cells.shape[0]):
        for code in range(shifts.shape[0]):
            for a in range(3):
                for b in range(3):
                    moves[s, code, b] += shifts[code, a] * cells[s, a, b]
    receivers, senders = receivers.view(np.uint32), senders.view(np.uint32)
    codes = codes.view(np.uint32)
    n, last, system = 0, NO_ATOM, 0
    xi = yi = zi = 0.0
    for p in range(receivers.shape[0]):
        i, j = receivers[p], senders[p]
        if i != last:
            last, system = i, system_idx[i]
            xi, yi, zi = given[i, 0], given[i, 1], given[i, 2]
        move, b = moves[system, codes[p]], given[j]
        x = b[0] - xi + move[0]
        y = b[1] - yi + move[1]
        z = b[2] - zi + move[2]
        square = x * x + y * y + z * z
        # always written, but kept only if it counts: a branch would often be mispredicted
        c[X + n], c[Y + n], c[Z + n], c[SQUARE + n] = x, y, z, square
        i_of[n], j_of[n] = i, j
        n += square < furthest
        if n == CHUNK:
            _chunk(n, c, i_of, j_of, species, system_idx, c6, table, numbers, given, found, strain)
            n = 0
    _chunk(n, c, i_of, j_of, species, system_idx, c6, table, numbers, given, found, strain)
    _finish(species, free, found, energies, d_ratios, strain)
    return energies, found, d_ratios, strain
