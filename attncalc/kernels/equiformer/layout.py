"""Layout of the rows that the loops work on, and places of matrices in memory.

A row of an atom holds features in the laboratory's frame, ordered by degree, component, channel. A
row of an edge holds them in the edge's frame, ordered by |m|, sign of m (+ first), degree, channel,
so that the numbers that a matrix per |m| acts on are contiguous. Components of a degree are
numbered q = 0, 1, 2, 3, ... for m = 0, 1, -1, 2, ... as in `attncalc.basis.edge_frames`.

All matrices are stored one after another in one array, each also transposed. Both have the order of
`attncalc.kernels.simd.lanes.in_blocks` if their columns fill vectors. They are for `add_product`;
only matrices of a single row are read column by column. A place is four numbers: start of the
matrix, start of its transpose, rows, columns. A place without columns stands for a missing matrix.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# kinds of messages
NONLINEAR, LINEAR, DOT = 0, 1, 2


class Layout(NamedTuple):
    """Columns of rows; of a group of columns, the first one.

    Attributes:
        channels: [n_degrees].
        atom: [n_degrees], of degree l in rows of atoms.
        edge: [n_degrees, 2 lmax + 1], of component q in rows of edges.
        frame: [n_degrees], of D_l in rows of frames; nothing for l = 0.
        by_degree: [n_degrees], in rows of one number per degree and channel.
        wide, gated: [n_degrees], like `atom`, in the hidden layer of feed-forward networks before
            and after the gate.
        gates: [n_degrees], of the gates in the hidden layer before the gate.
        couplings: [n_couplings, 3], column, other column, channels that a rotation of the frame
            mixes.
        coupling_values: [n_couplings, 2], their coefficients for rotations of the pole to +x and to
            +z; with the two columns exchanged, the sign is opposite.
        coupling_ends: [n_degrees + 1], number of couplings of the first degrees.
        joint_norm: whether norms divide all degrees above 0 by one number, see
            `EquivariantLayerNorm`.
    """

    channels: Integers
    atom: Integers
    edge: Integers
    frame: Integers
    by_degree: Integers
    wide: Integers
    gated: Integers
    gates: Integers
    couplings: Integers
    coupling_values: Floats
    coupling_ends: Integers
    joint_norm: bool


class ProductPlan(NamedTuple):
    """Plan of the weighted products: index 0 for all blocks but the last, 1 for the last.

    A unit is the input of one matrix: one output degree, with one sign and size of m. A segment is
    a run of channels that are multiplied by an edge's weights.

    Attributes:
        n_units: [2].
        units: [2, n_units, 5]: first segment, last + 1, width, columns of the two results.
        segments: [2, n_segments, 5]: column of the product, of the weights, of the features,
            channels, whether the sign changes.
        n_used: [2], number of degrees of the values.
    """

    n_units: Integers
    units: Integers
    segments: Integers
    n_used: Integers


class Weights(NamedTuple):
    """Weights of the network: one array, and places in it.

    Norms have no scale or bias: these are part of the linear maps that follow. A bias is a matrix
    with one row, filled up with zeros if degrees without bias follow. With B blocks and n degrees:

    Attributes:
        flat: all matrices.
        elements: [n_species, channels of degree 0].
        raise_frames: [n, 4], from the products of D_(l-1) and D_1 to D_l.
        radial_first, radial_second, radial_last, radial_offset: [B + 1, 4], of the radial
            networks: first that of the edge-degree embedding, then those of the blocks.
        radial_rows: [B + 1, 6, 4], bias, scale and bias of the norm, of both hidden layers.
        sources, targets, queries: [B, n, 4]. source_bias, query_bias: [B, 4].
        product: [B, n_units, 2, 4], of up to two results. product_bias: [B, 4].
        alpha: [B, 4], [heads * features, 16], from the hidden layer of the attention to logits.
        second: [B, n, 4], by |m|. value_bias: [B, 4].
        projection: [B, n, 4]. projection_bias: [B, 4].
        first, then: [B, n, 4], of the feed-forward networks. first_bias, then_bias: [B, 4].
        shortcut, hidden, hidden_bias, energy: [1, 4], of the last block and the head.
        heads: [1, 4], [16, channels of all degrees]: which channel belongs to which head.
    """

    flat: Floats
    elements: Floats
    raise_frames: Integers
    radial_first: Integers
    radial_second: Integers
    radial_last: Integers
    radial_offset: Integers
    radial_rows: Integers
    sources: Integers
    targets: Integers
    queries: Integers
    source_bias: Integers
    query_bias: Integers
    product: Integers
    product_bias: Integers
    alpha: Integers
    second: Integers
    value_bias: Integers
    projection: Integers
    projection_bias: Integers
    first: Integers
    first_bias: Integers
    then: Integers
    then_bias: Integers
    shortcut: Integers
    hidden: Integers
    hidden_bias: Integers
    energy: Integers
    heads: Integers
