"""Tables that tell the kernels where numbers stand; made once from what `packing` has found.

Rows of results, behind the weighted product of a block, have other columns than in the CPU's
loops: scalars, gates and the hidden layer of the attention come first, so that one matrix gives
all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A group of matrix products, see `products.grouped_product`.

    Attributes:
        jobs: by number of columns of a job: [n_jobs, 8].
        blocks: [n_blocks, 4].
    """

    jobs: dict[int, Tensor]
    blocks: Tensor


@dataclass(frozen=True)
class Sums:
    """See `products.times_gradient`: [n, 4], [n_terms, 4]."""

    sums: Tensor
    terms: Tensor


@dataclass(frozen=True)
class OfBlock:
    """Products of a block and their reverse; what linear messages lack is None.

    Attributes:
        merge: features of atoms to sources and targets.
        multiply: the weighted product of edges. second: behind its gate.
        project: what is received. first, then: layers of the feed-forward network.
        alpha: where the attention vectors begin in `Tables.flat`.
    """

    merge: Product
    merge_back: Product
    multiply: Product
    multiply_back: Product
    second: Product | None
    second_back: Product | None
    project: Product
    project_back: Product
    first: Product
    first_back: Product
    then: Product
    then_back: Product
    alpha: int


@dataclass(frozen=True)
class Tables:
    """Everything that stays as long as the weights do.

    Attributes:
        flat: all weights.
        blocks: of every block.
        sums: of all blocks but the last, and of the last.
        gates, wide_gates: see `products.gate_gradient`; of edges and of atoms.
        tiles, both_tiles: see `turns`; of features of atoms, and of sources and targets.
        columns, value_columns: [n_degrees, Q], of features and values in rows of edges.
        couplings, value_couplings: [n, 4], see `turns.turning`. strengths: [n, 2].
        pole: [n_degrees, Q, 2], see `turns.embed_gradient`.
        parts, head_part: see `norms`.
        radial: [n_blocks + 1, 10], see `radial`.
        weights, weights_back: behind the hidden layers of all radial networks.
        shortcut, shortcut_back, hidden, hidden_back: of the head.
        raising: per degree from 2 on, see `geometry.raise_frames`.
        elements: [n_species, channels of degree 0]. energy: [1, head_features].
    """

    flat: Tensor
    blocks: list[OfBlock]
    sums: list[Sums]
    gates: list[Tensor]
    wide_gates: list[Tensor]
    tiles: Tensor
    both_tiles: Tensor
    columns: Tensor
    value_columns: Tensor
    couplings: Tensor
    value_couplings: Tensor
    strengths: Tensor
    pole: Tensor
    parts: Tensor
    head_part: Tensor
    radial: Tensor
    weights: Product
    weights_back: Product
    shortcut: Product
    shortcut_back: Product
    hidden: Product
    hidden_back: Product
    raising: list[Tensor]
    elements: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Sizes:
    """Numbers that kernels are compiled for.

    Attributes:
        step: numbers of a row that kernels take at once; divides all widths.
        q: components of the highest degree, up to a power of 2.
        width: of features. frames: of the matrices of an edge. results: see `tables`.
        products: of one edge. n_weights: of every radial network.
        per_degree: channels of all degrees. wide, gated: of feed-forward networks.
        attention: column of its hidden layer in the results.
        basis, basis_rows: numbers of the radial basis, up to a power of 2, and to a multiple of 16.
    """

    step: int
    q: int
    width: int
    frames: int
    results: int
    products: list[int]
    n_weights: list[int]
    per_degree: int
    wide: list[int]
    gated: list[int]
    attention: int
    basis: int
    basis_rows: int
