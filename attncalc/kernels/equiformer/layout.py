"""Places of numbers in the rows that the loops work on, and of matrices in memory.

A row of an atom holds features in the laboratory's frame: degree, component, channel. A row of an
edge holds them in the edge's frame: |m|, sign of m (+ first), degree, channel, so that what a
matrix per |m| acts on stands side by side. Components of a degree are counted q = 0, 1, 2, 3, ...
for m = 0, 1, -1, 2, ... as in `attncalc.basis.edge_frames`.

All matrices lie one after another in one array, each also transposed.
Both have the order of `attncalc.kernels.simd.lanes.in_blocks` where their columns fill vectors:
they are for `add_product`, and only single rows are read by their columns. A place is four numbers:
where the matrix begins, where the transposed begins, rows, columns. A place of no columns stands
for a matrix that is not there.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Whole = NDArray[np.int64]

# kinds of messages
NONLINEAR, LINEAR, DOT = 0, 1, 2


class Layout(NamedTuple):
    """Columns; the first of several where they belong together.

    Attributes:
        channels: [n_degrees].
        atom: [n_degrees], of degree l in rows of atoms.
        edge: [n_degrees, 2 lmax + 1], of component q in rows of edges.
        frame: [n_degrees], of D_l in rows of frames; nothing for l = 0.
        by_degree: [n_degrees], in rows of one number per degree and channel.
        wide, gated: [n_degrees], as `atom`, in the hidden layer of feed-forward networks before
            and after the gate.
        gates: [n_degrees], of its gates before the gate.
        couplings: [n_couplings, 3], column, other column, channels: what a turn of the frame mixes.
        coupling_values: [n_couplings, 2], how much for a turn of the pole to +x, +z; the other way
            round with opposite sign.
        coupling_ends: [n_degrees + 1], couplings of the first degrees.
    """

    channels: Whole
    atom: Whole
    edge: Whole
    frame: Whole
    by_degree: Whole
    wide: Whole
    gated: Whole
    gates: Whole
    couplings: Whole
    coupling_values: Floats
    coupling_ends: Whole


class ProductPlan(NamedTuple):
    """The weighted products of all blocks but the last [0], and of the last [1].

    A unit is what goes through one matrix: an output degree and a sign and size of m. A segment is
    a run of channels that an edge's weights are multiplied with.

    Attributes:
        n_units: [2].
        units: [2, n_units, 5]: first segment, last + 1, numbers, columns of the two results.
        segments: [2, n_segments, 5]: column of the product, of the weights, of the features,
            channels, whether the sign changes.
        n_used: [2], degrees of the values.
    """

    n_units: Whole
    units: Whole
    segments: Whole
    n_used: Whole


class Weights(NamedTuple):
    """Weights of the network: one array, and places in it.

    Norms have no scale or bias: they are part of the linear maps that follow. Of biases the place
    is that of a matrix with one row, filled up with zeros where degrees without bias follow. With
    B blocks and n degrees:

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
    raise_frames: Whole
    radial_first: Whole
    radial_second: Whole
    radial_last: Whole
    radial_offset: Whole
    radial_rows: Whole
    sources: Whole
    targets: Whole
    queries: Whole
    source_bias: Whole
    query_bias: Whole
    product: Whole
    product_bias: Whole
    alpha: Whole
    second: Whole
    value_bias: Whole
    projection: Whole
    projection_bias: Whole
    first: Whole
    first_bias: Whole
    then: Whole
    then_bias: Whole
    shortcut: Whole
    hidden: Whole
    hidden_bias: Whole
    energy: Whole
    heads: Whole
