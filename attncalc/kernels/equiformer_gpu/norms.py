"""Norms of the features of atoms, and the energies at the end."""

import triton
import triton.language as tl

from attncalc.kernels.equiformer_gpu.formulas import rows_of
from attncalc.kernels.gpu.formulas import sigmoid, silu_slope

LAYER_NORM_EPSILON = 1e-5
_EPSILON = tl.constexpr(LAYER_NORM_EPSILON)


@triton.jit
def normalise(
    x,
    normal,
    inverse,
    parts,
    x_row,
    normal_row,
    inverse_row,
    BLOCK: tl.constexpr,
):
    """Mean square 1 of every degree, and mean 0 of the scalars; a program per atom and degree.

    Args:
        x, normal: [n, x_row], [n, normal_row].
        inverse: [n, inverse_row], filled: what numbers were multiplied with, per degree.
        parts: 2 integers per degree: first column, how many.
    """
    atom, degree = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, width = tl.load(parts + 2 * degree), tl.load(parts + 2 * degree + 1)
    k = tl.arange(0, BLOCK)
    mask = k < width
    v = tl.load(x + atom * x_row + first + k, mask, other=0)
    mean = tl.where(degree == 0, tl.sum(v, 0) / width, 0.0)
    v = tl.where(mask, v - mean, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(v * v, 0) / width + _EPSILON)
    tl.store(normal + atom * normal_row + first + k, v * factor, mask)
    tl.store(inverse + atom * inverse_row + degree, factor)


@triton.jit
def normalise_gradient(
    given,
    normal,
    inverse,
    d_x,
    parts,
    given_row,
    normal_row,
    inverse_row,
    d_x_row,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reverse of `normalise`: fills d_x, or adds to it."""
    atom, degree = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, width = tl.load(parts + 2 * degree), tl.load(parts + 2 * degree + 1)
    k = tl.arange(0, BLOCK)
    mask = k < width
    g = tl.load(given + atom * given_row + first + k, mask, other=0)
    v = tl.load(normal + atom * normal_row + first + k, mask, other=0)
    mean = tl.where(degree == 0, tl.sum(g, 0) / width, 0.0)
    along = tl.sum(g * v, 0) / width
    g = (g - mean - v * along) * tl.load(inverse + atom * inverse_row + degree)
    at = d_x + atom * d_x_row + first + k
    if ADD:
        g += tl.load(at, mask, other=0)
    tl.store(at, g, mask)


@triton.jit
def energies_of(
    hidden,
    last,
    species,
    scale,
    reference,
    energies,
    d_hidden,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Energy of every atom, and its gradient by the head's hidden layer; a program per atom.

    Args:
        hidden, d_hidden: [n, HIDDEN].
        last: [HIDDEN], weights behind the SiLU.
        species: [n].
        scale, reference: [n_species] float64, eV.
        energies: [n] float64 eV, filled.
    """
    atom = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    mask = k < HIDDEN
    at = rows_of(hidden, atom, HIDDEN) + k
    v, weight = tl.load(at, mask, other=0), tl.load(last + k, mask, other=0)
    kind = tl.load(species + atom)
    factor = tl.load(scale + kind)
    energy = tl.sum(v * sigmoid(v) * weight, 0).to(tl.float64)
    tl.store(energies + atom, factor * energy + tl.load(reference + kind))
    slope = silu_slope(v) * weight * factor.to(v.dtype)
    tl.store(rows_of(d_hidden, atom, HIDDEN) + k, slope, mask)
