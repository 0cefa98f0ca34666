"""What all launches of one evaluation share: the graph, the tables, and room for results."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attncalc.graph import Graph
from attncalc.kernels.equiformer.layout import NONLINEAR
from attncalc.kernels.equiformer_gpu import norms, products
from attncalc.kernels.equiformer_gpu.launching import launch
from attncalc.kernels.equiformer_gpu.tables import OfBlock, Product, Sizes, Tables

# float32 as it is: no TF32
PRECISION = "ieee"


class Tile(NamedTuple):
    """Of matrix products, for at least so many rows."""

    least: int
    rows: int
    columns: int
    warps: int


class Programs(NamedTuple):
    """How much a program works on.

    Attributes:
        edges: at once, where they are as they come.
        in_sums: edges of an atom at once.
        in_radial: edges, in radial networks.
        rows: where columns are many.
        tiles: of matrix products, by number of rows.
    """

    edges: int = 8
    in_sums: int = 16
    in_radial: int = 16
    rows: int = 32
    tiles: tuple[Tile, ...] = (Tile(0, 32, 32, 4), Tile(8192, 64, 64, 4))


PROGRAMS = Programs()


class Constants(NamedTuple):
    """What an engine knows before it sees a graph.

    Attributes:
        kind: of messages.
        programs: how much they work on.
        tables: of the network.
        scale, reference: [n_species] eV.
        limits: [2] Å, cutoff and shortest.
        centres, widths: [num_basis], of the radial basis.
        repulsion: numbers, exponents, weights, limits, see `geometry.edge_gradient`.
    """

    kind: int
    programs: Programs
    tables: Tables
    scale: Tensor
    reference: Tensor
    limits: Tensor
    centres: Tensor
    widths: Tensor
    repulsion: tuple[Tensor, Tensor, Tensor, Tensor] | None


class Edges(NamedTuple):
    """Edges that count, at the beginning of arrays as long as the graph's; see `geometry.collect`.

    Attributes:
        counts: [1], how many.
        of_receivers, of_senders, order: see `turns.sum_turned_out`.
    """

    counts: Tensor
    i: Tensor
    j: Tensor
    near: Tensor
    envelope: Tensor
    along: Tensor
    basis: Tensor
    slopes: Tensor
    frames: Tensor
    of_receivers: Tensor
    of_senders: Tensor
    order: Tensor


class Block(NamedTuple):
    """What the forward pass of a block leaves for the reverse.

    Attributes:
        number: of the block. last: 1 for the last, else 0.
        of: its products.
        features, values, d_features, d_values: [n_edges, ...], values of linear messages are part
            of the results.
        weights, d_weights, results, shares, raised: [n_edges, ...].
        normal, inverse: of the norm before the attention; normal_2, inverse_2, wide: of the
            feed-forward network; [n_atoms, ...].
    """

    number: int
    last: int
    of: OfBlock
    features: Tensor
    d_features: Tensor
    values: Tensor
    d_values: Tensor
    weights: Tensor
    d_weights: Tensor
    results: Tensor
    shares: Tensor
    raised: Tensor
    normal: Tensor
    inverse: Tensor
    normal_2: Tensor
    inverse_2: Tensor
    wide: Tensor


def up_to_power(n: int) -> int:
    """The next power of 2."""
    return 1 << (n - 1).bit_length()


class Room:
    """One evaluation.

    Args:
        config: of the network.
        sizes, constants: of the engine.
        graph: on the engine's device.
        dtype: that the network is computed in.
    """

    def __init__(
        self, config: Any, sizes: Sizes, constants: Constants, graph: Graph, dtype: torch.dtype
    ) -> None:
        self.config, self.sizes, self.constants, self.graph = config, sizes, constants, graph
        self.programs = constants.programs
        self.dtype, self.device, self.tables = dtype, graph.vectors.device, constants.tables
        self.n, self.n_edges = graph.n_atoms, graph.n_edges
        self.n_blocks, self.heads = config.num_layers, config.num_heads
        self.smooth = config.cutoff_function != "none"
        self.linear = constants.kind != NONLINEAR
        self.atoms = torch.full((1,), self.n, dtype=torch.int32, device=self.device)
        self.n_tiles = sizes.per_degree // sizes.step
        self.head_block = up_to_power(config.head_features)
        self.degree_block = up_to_power(max((2 * l + 1) * c for l, c in enumerate(config.channels)))
        self.hidden_width = (self.n_blocks + 1) * config.radial_features
        # parts that gradients by envelope and turns of the frame come in
        self.n_envelopes = self.n_blocks * self.heads + self.n_tiles
        self.n_turns = 2 * self.n_blocks - 1 + self.n_tiles

    def floats(self, *shape: int) -> Tensor:
        """Not filled."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def doubles(self, *shape: int) -> Tensor:
        """Not filled."""
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def multiply(
        self,
        product: Product,
        x: Tensor,
        out: Tensor,
        *,
        y: Tensor | None = None,
        mode: int = products.PLAIN,
        add: bool = False,
        count: Tensor | None = None,
    ) -> Tensor:
        """A group of matrix products of atoms, or of as many rows as are counted."""
        n_rows = x.shape[0]
        tile = [tile for tile in self.programs.tiles if n_rows >= tile.least][-1]
        jobs = product.jobs[tile.columns]
        y = x if y is None else y
        launch(
            products.grouped_product,
            (math.ceil(n_rows / tile.rows), jobs.shape[0]),
            x,
            y,
            self.tables.flat,
            jobs,
            product.blocks,
            self.atoms if count is None else count,
            out,
            x_row=x.stride(0),
            y_row=y.stride(0),
            out_row=out.stride(0),
            MODE=mode,
            ADD=add,
            BM=tile.rows,
            BN=tile.columns,
            BK=self.sizes.step,
            PRECISION=PRECISION,
            num_warps=tile.warps,
        )
        return out

    def per_edges(self, size: int | None = None) -> int:
        """Programs for all edges."""
        return math.ceil(self.n_edges / (size or self.programs.edges))

    def normalise(self, x: Tensor, normal: Tensor, inverse: Tensor, parts: Tensor) -> None:
        """As many degrees as `inverse` has room for."""
        launch(
            norms.normalise,
            (self.n, inverse.shape[1]),
            x,
            normal,
            inverse,
            parts,
            x_row=x.stride(0),
            normal_row=normal.stride(0),
            inverse_row=inverse.stride(0),
            BLOCK=self.head_block if parts is self.tables.head_part else self.degree_block,
            num_warps=4,
        )

    def normalise_gradient(
        self,
        given: Tensor,
        normal: Tensor,
        inverse: Tensor,
        d_x: Tensor,
        parts: Tensor,
        *,
        add: bool = True,
    ) -> None:
        """Reverse of `normalise`."""
        launch(
            norms.normalise_gradient,
            (self.n, inverse.shape[1]),
            given,
            normal,
            inverse,
            d_x,
            parts,
            given_row=given.stride(0),
            normal_row=normal.stride(0),
            inverse_row=inverse.stride(0),
            d_x_row=d_x.stride(0),
            ADD=add,
            BLOCK=self.head_block if parts is self.tables.head_part else self.degree_block,
            num_warps=4,
        )
