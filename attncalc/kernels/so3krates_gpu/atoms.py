"""Per-atom steps of So3krates: norms, refinement, exchange, energy; and their reverse.

A program handles a tile of T atoms. Intermediate results stay in its registers from the messages of
one layer to those of the next. Inputs and results, where "state" means features and Euclidean
variables with messages:

| kernel            | from                            | to                                    |
|-------------------|---------------------------------|---------------------------------------|
| `project`         | features                        | queries, keys, values                 |
| `update`          | state                           | features of the next layer, projected |
| `turn`            | state of the last layer         | one output, its gradient by the state |
| `update_gradient` | gradients by next layer's state | gradients by the state                |
"""

import triton
import triton.language as tl

from attncalc.kernels.gpu.formulas import silu, silu_slope
from attncalc.kernels.so3krates_gpu.formulas import (
    add_product,
    layer_norm,
    layer_norm_gradient,
    load_matrix,
    load_rows,
    matvec,
    matvec_transposed,
    store_rows,
)

# numbers of a weight that `project` and `update` multiply at a time; more is not faster (H200)
UPDATE_SIZE = tl.constexpr(4096)


@triton.jit
def row_of(matrix, row: tl.constexpr, F: tl.constexpr):
    """[1, F]: one row of [.., F], for all atoms of a tile."""
    return tl.load(matrix + row * F + tl.arange(0, F))[None, :]


@triton.jit
def refine(
    x,
    norm,
    mlp,
    mlp_bias,
    T: tl.constexpr,
    F: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Norm and residual MLP of x [T, F].

    Returns:
        the result, and for the reverse pass: x normalised, 1 / deviation [T], the hidden layer.
    """
    normal, inverse = layer_norm(x, F)
    normed = normal * row_of(norm, 0, F) + row_of(norm, 1, F)
    hidden = tl.zeros([T, F], tl.float32) + row_of(mlp_bias, 0, F)
    hidden = add_product(hidden, silu(normed), mlp, T, F, F, SIZE, PRECISION)
    out = normed + row_of(mlp_bias, 1, F)
    out = add_product(out, silu(hidden), mlp + F * F, T, F, F, SIZE, PRECISION)
    return out, normal, inverse, hidden


@triton.jit
def refine_gradient(
    d_x,
    normal,
    inverse,
    hidden,
    norm,
    mlp_transposed,
    T: tl.constexpr,
    F: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `refine`: gradient of its input, from that of its result [T, F]."""
    zeros = tl.zeros([T, F], tl.float32)
    d_hidden = add_product(zeros, d_x, mlp_transposed + F * F, T, F, F, SIZE, PRECISION)
    d_hidden *= silu_slope(hidden)
    d_active = add_product(zeros, d_hidden, mlp_transposed, T, F, F, SIZE, PRECISION)
    normed = normal * row_of(norm, 0, F) + row_of(norm, 1, F)
    d_normed = d_x + d_active * silu_slope(normed)
    return layer_norm_gradient(d_normed * row_of(norm, 0, F), normal, inverse, F)


@triton.jit
def project_tile(
    x,
    projection,
    projected,
    atoms,
    valid,
    T: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the products of x [T, F] with PARTS of the five matrices of `projection` [5, F, F].

    The second index of the grid selects the matrices.
    """
    for k in range(tl.program_id(1) * PARTS, (tl.program_id(1) + 1) * PARTS):
        part = tl.zeros([T, F], tl.float32)
        part = add_product(part, x, projection + k * F * F, T, F, F, SIZE, PRECISION)
        store_rows(projected + k * F, atoms, valid, part, 5 * F, F)


@triton.jit(do_not_specialize=["n_atoms"])
def project(
    features,
    projection,
    projected,
    n_atoms,
    T: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store queries, keys and values, `projected` [n_atoms, 5 F], of features [n_atoms, F]."""
    atoms = tl.program_id(0) * T + tl.arange(0, T)
    valid = atoms < n_atoms
    x = load_rows(features, atoms, valid, F, F)
    project_tile(x, projection, projected, atoms, valid, T, F, PARTS, UPDATE_SIZE, PRECISION)


@triton.jit(do_not_specialize=["n_atoms"])
def update(
    features,
    ev,
    norm,
    mlp,
    mlp_bias,
    mix,
    mix_bias,
    of_squares,
    to_gain,
    gain_of_squares,
    gain_bias,
    of_degree,
    projection,
    features_after,
    ev_after,
    projected,
    normal_before,
    normal_after,
    inverses,
    hidden_layers,
    gains,
    n_atoms,
    T: tl.constexpr,
    F: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute everything between the messages of one layer and those of the next.

    If several programs have the same atoms, to share the projections, the first one stores.

    Args:
        features, ev: [n_atoms, F], [n_atoms, M], with messages.
        norm .. gain_bias: weights of this layer, see `LayerWeights`.
        projection: [5, F, F], of the next layer.
        features_after, ev_after, projected: inputs of the next messages, stored.
        normal_before .. gains: stored for `update_gradient`.
    """
    atoms = tl.program_id(0) * T + tl.arange(0, T)
    valid = atoms < n_atoms
    stored = atoms < tl.where(tl.program_id(1) == 0, n_atoms, 0)
    of_degree = load_matrix(of_degree, L, MP, MP)
    x = load_rows(features, atoms, valid, F, F)
    x, normal, inverse, hidden = refine(x, norm, mlp, mlp_bias, T, F, UPDATE_SIZE, PRECISION)
    store_rows(normal_before, atoms, stored, normal, F, F)
    store_rows(hidden_layers, atoms, stored, hidden, F, F)
    tl.store(inverses + 2 * atoms, inverse, mask=stored)
    chi = load_rows(ev, atoms, valid, MP, MP)
    squares = matvec_transposed(chi * chi, of_degree)
    gain = matvec_transposed(x, load_matrix(to_gain, L, F, F))
    gain += matvec(squares, load_matrix(gain_of_squares, L, L, L)) + 1 + row_of(gain_bias, 0, L)
    store_rows(gains, atoms, stored, gain, L, L)
    store_rows(ev_after, atoms, stored, chi * matvec(gain, of_degree), MP, MP)
    mixed = x + row_of(mix_bias, 0, F) + matvec(squares, load_matrix(of_squares, L, F, F))
    mixed = add_product(mixed, x, mix, T, F, F, UPDATE_SIZE, PRECISION)
    normal, inverse = layer_norm(mixed, F)
    store_rows(normal_after, atoms, stored, normal, F, F)
    tl.store(inverses + 2 * atoms + 1, inverse, mask=stored)
    x = normal * row_of(norm, 2, F) + row_of(norm, 3, F)
    store_rows(features_after, atoms, stored, x, F, F)
    project_tile(x, projection, projected, atoms, valid, T, F, PARTS, UPDATE_SIZE, PRECISION)


@triton.jit(do_not_specialize=["n_atoms"])
def update_gradient(
    d_next,
    d_projected,
    d_ev_after,
    ev,
    normal_before,
    normal_after,
    inverses,
    hidden_layers,
    gains,
    norm,
    mlp_transposed,
    mix_transposed,
    of_squares,
    to_gain,
    gain_of_squares,
    of_degree,
    projection_transposed,
    d_features,
    d_ev,
    n_atoms,
    T: tl.constexpr,
    F: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reverse of `update`.

    Args:
        d_next: [n_atoms, F], gradient with respect to the next layer's features with messages.
        d_projected, d_ev_after: gradients with respect to results of `update`.
        ev .. gains: input of `update`, and the values it stored for this kernel.
        norm .. projection_transposed: weights, matrices transposed.
        d_features, d_ev: stored.
    """
    atoms = tl.program_id(0) * T + tl.arange(0, T)
    valid = atoms < n_atoms
    of_degree = load_matrix(of_degree, L, MP, MP)
    d_x = load_rows(d_next, atoms, valid, F, F)
    for k in range(5):
        part = load_rows(d_projected + k * F, atoms, valid, 5 * F, F)
        d_x = add_product(d_x, part, projection_transposed + k * F * F, T, F, F, SIZE, PRECISION)
    normal = load_rows(normal_after, atoms, valid, F, F)
    inverse = tl.load(inverses + 2 * atoms + 1, mask=valid, other=0.0)
    d_x = layer_norm_gradient(d_x * row_of(norm, 2, F), normal, inverse, F)
    chi = load_rows(ev, atoms, valid, MP, MP)
    gain = load_rows(gains, atoms, valid, L, L)
    d_chi = load_rows(d_ev_after, atoms, valid, MP, MP)
    d_gain = matvec_transposed(d_chi * chi, of_degree)
    d_squares = matvec_transposed(d_x, load_matrix(of_squares, L, F, F))
    d_squares += matvec_transposed(d_gain, load_matrix(gain_of_squares, L, L, L))
    d_chi = d_chi * matvec(gain, of_degree) + 2 * matvec(d_squares, of_degree) * chi
    store_rows(d_ev, atoms, valid, d_chi, MP, MP)
    mixed = d_x + matvec(d_gain, load_matrix(to_gain, L, F, F))
    d_x = add_product(mixed, d_x, mix_transposed, T, F, F, SIZE, PRECISION)
    normal = load_rows(normal_before, atoms, valid, F, F)
    inverse = tl.load(inverses + 2 * atoms, mask=valid, other=0.0)
    hidden = load_rows(hidden_layers, atoms, valid, F, F)
    d_x = refine_gradient(d_x, normal, inverse, hidden, norm, mlp_transposed, T, F, SIZE, PRECISION)
    store_rows(d_features, atoms, valid, d_x, F, F)


@triton.jit(do_not_specialize=["n_atoms"])
def turn(
    features,
    ev,
    norm,
    mlp,
    mlp_bias,
    mlp_transposed,
    mix,
    mix_bias,
    mix_transposed,
    of_squares,
    of_degree,
    head,
    head_bias,
    head_transposed,
    last,
    of_species,
    species,
    features_after,
    output,
    d_features,
    d_ev,
    n_atoms,
    T: tl.constexpr,
    F: tl.constexpr,
    G: tl.constexpr,
    L: tl.constexpr,
    MP: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute one output from the last layer's messages, and the gradient of its sum.

    The last Euclidean variables enter only through their squares, so their gain is left out.

    Args:
        features, ev: with messages.
        norm .. of_squares: weights of the last layer.
        head .. of_species: [F, G], [G], [G, F], [n_species, G], [n_species], the latter float64:
            s(x W + b) . w[species] + c[species], see `attncalc.kernels.so3krates.heads`.
        features_after: [n_atoms, F], features that all heads read, stored.
        output: [n_atoms], float64, stored.
        d_features, d_ev: gradients with respect to `features` and `ev`, stored.
    """
    atoms = tl.program_id(0) * T + tl.arange(0, T)
    valid = atoms < n_atoms
    of_degree = load_matrix(of_degree, L, MP, MP)
    x = load_rows(features, atoms, valid, F, F)
    x, normal, inverse, hidden = refine(x, norm, mlp, mlp_bias, T, F, SIZE, PRECISION)
    chi = load_rows(ev, atoms, valid, MP, MP)
    squares = matvec_transposed(chi * chi, of_degree)
    mixed = x + row_of(mix_bias, 0, F) + matvec(squares, load_matrix(of_squares, L, F, F))
    mixed = add_product(mixed, x, mix, T, F, F, SIZE, PRECISION)
    normal_after, inverse_after = layer_norm(mixed, F)
    x = normal_after * row_of(norm, 2, F) + row_of(norm, 3, F)
    store_rows(features_after, atoms, valid, x, F, F)

    z = tl.zeros([T, G], tl.float32) + row_of(head_bias, 0, G)
    z = add_product(z, x, head, T, F, G, SIZE // 2, PRECISION)
    kinds = tl.load(species + atoms, mask=valid, other=0)
    last_row = load_rows(last, kinds, valid, G, G)
    value = tl.sum(silu(z) * last_row, 1).to(tl.float64) + tl.load(of_species + kinds)
    tl.store(output + atoms, value, mask=valid)

    d_z = silu_slope(z) * last_row
    d_x = add_product(
        tl.zeros([T, F], tl.float32), d_z, head_transposed, T, G, F, SIZE // 2, PRECISION
    )
    d_x = layer_norm_gradient(d_x * row_of(norm, 2, F), normal_after, inverse_after, F)
    d_squares = matvec_transposed(d_x, load_matrix(of_squares, L, F, F))
    store_rows(d_ev, atoms, valid, 2 * matvec(d_squares, of_degree) * chi, MP, MP)
    d_x = add_product(d_x, d_x, mix_transposed, T, F, F, SIZE, PRECISION)
    d_x = refine_gradient(d_x, normal, inverse, hidden, norm, mlp_transposed, T, F, SIZE, PRECISION)
    store_rows(d_features, atoms, valid, d_x, F, F)
