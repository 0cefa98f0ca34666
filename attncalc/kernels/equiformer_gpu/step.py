"""One evaluation of an Equiformer potential, launch by launch.

Nothing is read back from the device and no shape depends on numbers there, so that a CUDA graph
can hold all of it; no sum depends on the order in which programs run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attncalc.graph import Graph
from attncalc.kernels.equiformer.layout import NONLINEAR
from attncalc.kernels.equiformer_gpu import attention, norms, products, radial, turns
from attncalc.kernels.equiformer_gpu import geometry as geo
from attncalc.kernels.equiformer_gpu.launching import launch
from attncalc.kernels.equiformer_gpu.tables import OfBlock, Product, Sizes, Tables

# float32 as it is: no TF32
PRECISION = "ieee"
# edges that a program works on: as they come, in sums over those of an atom, in radial networks
PER_PROGRAM, IN_SUMS, IN_RADIAL, IN_PRODUCTS = 8, 16, 32, 32
# columns of the matrix of attention vectors
ALPHA_WIDTH = 16


class Tile(NamedTuple):
    """Of matrix products, for at least so many rows."""

    least: int
    rows: int
    columns: int
    warps: int


TILES = (Tile(0, 32, 32, 4), Tile(8192, 64, 64, 4))


class Found(NamedTuple):
    """Energy [n_systems] eV, per atom, forces [n_atoms, 3], strain gradient [n_systems, 3, 3]."""

    energy: Tensor
    energies: Tensor
    forces: Tensor
    strain_gradient: Tensor


class Constants(NamedTuple):
    """What an engine knows before it sees a graph.

    Attributes:
        kind: of messages.
        tables: of the network.
        scale, reference: [n_species] eV. cutoff: [1] Å. centres, widths: [num_basis].
        repulsion: numbers, exponents, weights, limits, see `geometry.edge_gradient`.
    """

    kind: int
    tables: Tables
    scale: Tensor
    reference: Tensor
    cutoff: Tensor
    centres: Tensor
    widths: Tensor
    repulsion: tuple[Tensor, Tensor, Tensor, Tensor] | None


class Edges(NamedTuple):
    """Edges that count, at the beginning of arrays as long as the graph's; see `geometry.collect`.

    Attributes:
        count: [1], how many.
        of_receivers, of_senders, order: see `turns.sum_turned_out`.
    """

    count: Tensor
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
        weights, results, shares, raised: [n_edges, ...].
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


class Step:
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

    # --------------------------------------------------------------------------------- helpers

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
        tile = [tile for tile in TILES if n_rows >= tile.least][-1]
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
            X=x.stride(0),
            Y=y.stride(0),
            OUT=out.stride(0),
            MODE=mode,
            ADD=add,
            BM=tile.rows,
            BN=tile.columns,
            BK=self.sizes.step,
            PRECISION=PRECISION,
            num_warps=tile.warps,
        )
        return out

    def blocks_of_edges(self, size: int = PER_PROGRAM) -> int:
        """Programs for all edges."""
        return math.ceil(self.n_edges / size)

    # -------------------------------------------------------------------------- order of things

    def found(self) -> Found:
        """Everything."""
        edges = self.collected()
        hidden = self.radial_hidden(edges)
        amounts = self.multiply(
            self.tables.embed,
            hidden,
            self.floats(self.n_edges, self.sizes.per_degree),
            count=edges.count,
        )
        x = self.embedded(edges, amounts)
        blocks = self.blocks()
        for block in blocks:
            self.attention(block, edges, hidden, x)
            if not block.last:
                self.feed_forward(block, x)
        energies, d_x = self.energies(blocks[-1], x)
        d_hidden = torch.empty_like(hidden)
        d_envelope = self.floats(self.n_edges, self.n_envelopes)
        for block in reversed(blocks):
            if not block.last:
                self.feed_forward_gradient(block, d_x, d_x)
            self.attention_gradient(block, edges, d_x, d_hidden, d_envelope)
        d_turn = self.embedded_gradient(edges, amounts, d_x, d_hidden, d_envelope)
        self.turning(blocks, edges, d_turn)
        d_lengths = self.radial_gradient(edges, d_hidden)
        return self.forces(edges, energies, d_envelope, d_lengths, d_turn)

    def blocks(self) -> list[Block]:
        """Room for all blocks."""
        s, n_edges, n_blocks = self.sizes, self.n_edges, self.n_blocks
        features = self.floats(n_edges, n_blocks, s.width)
        d_features = torch.empty_like(features)
        of_values = s.results if self.linear else s.width
        values = self.floats(n_edges, n_blocks, of_values)
        d_values = torch.empty_like(values)
        found = []
        for b, of in enumerate(self.tables.blocks):
            last = int(b == n_blocks - 1)
            results = values[:, b] if self.linear else self.floats(n_edges, s.results)
            n_norms = 1 if last else len(self.config.channels)
            found.append(
                Block(
                    number=b,
                    last=last,
                    of=of,
                    features=features[:, b],
                    d_features=d_features[:, b],
                    values=values[:, b],
                    d_values=d_values[:, b],
                    weights=self.floats(n_edges, s.n_weights[last]),
                    results=results,
                    shares=self.floats(n_edges, self.heads),
                    raised=self.floats(n_edges, self.heads),
                    normal=self.floats(self.n, s.width),
                    inverse=self.floats(self.n, len(self.config.channels)),
                    normal_2=self.floats(self.n, s.width),
                    inverse_2=self.floats(self.n, n_norms),
                    wide=self.floats(self.n, s.wide[last]),
                )
            )
        return found

    # -------------------------------------------------------------------------------- geometry

    def collected(self) -> Edges:
        """Edges that count, and everything that depends on their vectors alone."""
        graph, s, c = self.graph, self.sizes, self.constants
        n_edges, n = self.n_edges, self.n
        kept = torch.empty(n_edges, dtype=torch.int32, device=self.device)
        vectors = graph.vectors.detach().contiguous()
        grid = (self.blocks_of_edges(64),)
        launch(
            geo.mark,
            grid,
            vectors,
            graph.edge_mask,
            n_edges,
            c.cutoff,
            kept,
            SMOOTH=self.smooth,
            BE=64,
            num_warps=2,
        )
        rank = torch.cumsum(kept, 0, dtype=torch.int32)
        ends = torch.full((2, n_edges), n, dtype=torch.int32, device=self.device)
        i, j = ends.unbind(0)
        edges = Edges(
            count=rank[-1:] if n_edges else torch.zeros_like(self.atoms),
            i=i,
            j=j,
            near=self.doubles(n_edges, 3),
            envelope=self.floats(n_edges),
            along=self.doubles(n_edges),
            basis=self.floats(n_edges, s.basis),
            slopes=self.floats(n_edges, s.basis),
            frames=self.floats(n_edges, s.frames),
            of_receivers=rank,
            of_senders=rank,
            order=rank,
        )
        launch(
            geo.collect,
            (self.blocks_of_edges(16),),
            vectors,
            graph.receivers,
            graph.senders,
            kept,
            rank,
            n_edges,
            c.cutoff,
            c.centres,
            c.widths,
            *edges[1:9],
            SMOOTH=self.smooth,
            BASIS=s.basis,
            N_BASIS=c.centres.shape[0],
            FRAMES=s.frames,
            BE=16,
            num_warps=4,
        )
        for degree, raising in enumerate(self.tables.raising, start=2):
            launch(
                geo.raise_frames,
                (self.blocks_of_edges(32),),
                raising,
                edges.count,
                edges.frames,
                DEGREE=degree,
                ROW=raising.shape[1],
                FRAMES=s.frames,
                BE=32,
                BN=up_to_power((2 * degree + 1) ** 2),
                BK=32,
                PRECISION=PRECISION,
                num_warps=4,
            )
        senders, order = torch.sort(j, stable=True)
        atoms = torch.arange(n + 1, dtype=torch.int32, device=self.device)
        return edges._replace(
            of_receivers=torch.searchsorted(i, atoms, out_int32=True),
            of_senders=torch.searchsorted(senders, atoms, out_int32=True),
            order=order,
        )

    def forces(
        self, edges: Edges, energies: Tensor, d_envelope: Tensor, d_lengths: Tensor, d_turn: Tensor
    ) -> Found:
        """From gradients by what edges are described with to forces and strain gradient."""
        repulsion, nothing = self.constants.repulsion, self.constants.cutoff
        repels, n_systems = repulsion is not None, self.graph.n_systems
        gradient = self.doubles(self.n_edges, 3)
        pair_energies = self.doubles(self.n_edges) if repels else nothing
        launch(
            geo.edge_gradient,
            (self.blocks_of_edges(),),
            edges.near,
            edges.frames,
            edges.along,
            d_envelope,
            d_lengths,
            d_turn,
            edges.i,
            edges.j,
            self.graph.species,
            *((nothing,) * 4 if repulsion is None else repulsion),
            edges.count,
            gradient,
            pair_energies,
            FRAMES=self.sizes.frames,
            ENVELOPES=self.n_envelopes,
            LENGTHS=d_lengths.shape[1],
            TURNS=self.n_turns,
            REPELS=repels,
            BE=PER_PROGRAM,
            BV=up_to_power(self.n_envelopes),
            BL=up_to_power(d_lengths.shape[1]),
            BT=up_to_power(self.n_turns),
            num_warps=2,
        )
        forces, strains = self.doubles(self.n, 3), self.doubles(self.n, 9)
        launch(
            geo.forces_of_atoms,
            (self.n,),
            edges.near,
            gradient,
            pair_energies,
            edges.of_receivers,
            edges.of_senders,
            edges.order,
            energies,
            forces,
            strains,
            REPELS=repels,
            BE=32,
            num_warps=1,
        )
        systems = torch.arange(n_systems + 1, device=self.device)
        of_systems = torch.searchsorted(self.graph.system_idx, systems, out_int32=True)
        energy, strain_gradient = self.doubles(n_systems), self.doubles(n_systems, 3, 3)
        launch(
            geo.sums_of_systems,
            (n_systems,),
            energies,
            strains,
            of_systems,
            energy,
            strain_gradient,
            BA=128,
            num_warps=4,
        )
        return Found(energy, energies, forces, strain_gradient)

    # ---------------------------------------------------------------------- radial, embedding

    def _radial_constants(self) -> dict[str, Any]:
        s, width = self.sizes, self.config.radial_features
        return {
            "BASIS": s.basis,
            "ROWS": s.basis_rows,
            "WIDTH": width,
            "HIDDEN": self.hidden_width,
            "BE": IN_RADIAL,
            "W": up_to_power(width),
            "PRECISION": PRECISION,
            "num_warps": 4,
        }

    def radial_hidden(self, edges: Edges) -> Tensor:
        """[n_edges, networks * width], of all radial networks."""
        hidden = self.floats(self.n_edges, self.hidden_width)
        launch(
            radial.radial_hidden,
            (self.blocks_of_edges(IN_RADIAL), self.n_blocks + 1),
            edges.basis,
            self.tables.flat,
            self.tables.radial,
            edges.count,
            hidden,
            **self._radial_constants(),
        )
        return hidden

    def radial_gradient(self, edges: Edges, d_hidden: Tensor) -> Tensor:
        """[n_edges, networks], by the length."""
        d_lengths = self.floats(self.n_edges, self.n_blocks + 1)
        launch(
            radial.radial_gradient,
            (self.blocks_of_edges(IN_RADIAL), self.n_blocks + 1),
            edges.basis,
            edges.slopes,
            self.tables.flat,
            self.tables.radial,
            edges.count,
            d_hidden,
            d_lengths,
            NETS=self.n_blocks + 1,
            **self._radial_constants(),
        )
        return d_lengths

    def embedded(self, edges: Edges, amounts: Tensor) -> Tensor:
        """Features of elements and of the edges around each atom."""
        x, elements = self.floats(self.n, self.sizes.width), self.tables.elements
        launch(
            turns.embed,
            (self.n, self.n_tiles),
            amounts,
            edges.envelope,
            edges.frames,
            edges.of_receivers,
            self.graph.species,
            elements,
            self.tables.tiles,
            x,
            AMOUNTS=self.sizes.per_degree,
            FRAMES=self.sizes.frames,
            ELEMENTS=elements.shape[1],
            X=self.sizes.width,
            BE=IN_SUMS,
            Q=self.sizes.q,
            BC=self.sizes.step,
            num_warps=4,
        )
        return x

    def embedded_gradient(
        self, edges: Edges, amounts: Tensor, d_x: Tensor, d_hidden: Tensor, d_envelope: Tensor
    ) -> Tensor:
        """Reverse of `embedded`; the gradient by turns of the frames, with room for the rest."""
        d_amounts, d_turn = torch.empty_like(amounts), self.floats(self.n_edges, self.n_turns, 2)
        launch(
            turns.embed_gradient,
            (self.blocks_of_edges(), self.n_tiles),
            d_x,
            amounts,
            edges.envelope,
            edges.frames,
            edges.i,
            self.tables.tiles,
            self.tables.pole,
            edges.count,
            d_amounts,
            d_envelope,
            d_turn,
            X=self.sizes.width,
            AMOUNTS=self.sizes.per_degree,
            FRAMES=self.sizes.frames,
            ENVELOPES=self.n_envelopes,
            TURNS=self.n_turns,
            FIRST_ENVELOPE=self.n_blocks * self.heads,
            FIRST_TURN=2 * self.n_blocks - 1,
            BE=PER_PROGRAM,
            Q=self.sizes.q,
            BC=self.sizes.step,
            num_warps=4,
        )
        self.multiply(self.tables.embed_back, d_amounts, d_hidden, count=edges.count)
        return d_turn

    def turning(self, blocks: list[Block], edges: Edges, d_turn: Tensor) -> None:
        """Gradient by turns of the frames, of all blocks."""
        first, t = blocks[0], self.tables
        launch(
            turns.turning,
            (self.blocks_of_edges(), 2 * self.n_blocks - 1),
            first.d_features,
            first.features,
            first.d_values,
            first.values,
            t.couplings,
            t.value_couplings,
            t.strengths,
            t.couplings.shape[0],
            edges.count,
            d_turn,
            FEATURES=first.features.stride(0),
            VALUES=first.values.stride(0),
            WIDTH=first.features.shape[1],
            VALUE_WIDTH=first.values.shape[1],
            BLOCKS=self.n_blocks,
            TURNS=self.n_turns,
            BE=PER_PROGRAM,
            BC=up_to_power(max(self.config.channels[1:])),
            num_warps=4,
        )

    # ------------------------------------------------------------------------------- attention

    def tiles_of_values(self, block: Block) -> int:
        """The last block's values are scalars."""
        return self.config.channels[0] // self.sizes.step if block.last else self.n_tiles

    def normalise(self, x: Tensor, normal: Tensor, inverse: Tensor, parts: Tensor) -> None:
        """As many degrees as `inverse` has room for."""
        launch(
            norms.normalise,
            (self.n, inverse.shape[1]),
            x,
            normal,
            inverse,
            parts,
            X=x.stride(0),
            NORMAL=normal.stride(0),
            INVERSE=inverse.stride(0),
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
            GIVEN=given.stride(0),
            NORMAL=normal.stride(0),
            INVERSE=inverse.stride(0),
            D_X=d_x.stride(0),
            ADD=add,
            BLOCK=self.head_block if parts is self.tables.head_part else self.degree_block,
            num_warps=4,
        )

    def attention(self, block: Block, edges: Edges, hidden: Tensor, x: Tensor) -> None:
        """Adds to x what neighbours send."""
        s, t, of, count = self.sizes, self.tables, block.of, edges.count
        self.normalise(x, block.normal, block.inverse, t.parts)
        both = self.multiply(of.merge, block.normal, self.floats(self.n, 2 * s.width))
        launch(
            turns.turn_in,
            (self.blocks_of_edges(), self.n_tiles),
            both,
            edges.frames,
            edges.i,
            edges.j,
            t.both_tiles,
            t.columns,
            count,
            block.features,
            BOTH=2 * s.width,
            FRAMES=s.frames,
            FEATURES=block.features.stride(0),
            BE=PER_PROGRAM,
            Q=s.q,
            BC=s.step,
            num_warps=4,
        )
        self.multiply(of.weights, hidden, block.weights, count=count)
        self.multiply(
            of.multiply,
            block.features,
            block.results,
            y=block.weights,
            mode=products.TIMES,
            count=count,
        )
        if of.second is not None:
            self.multiply(of.second, block.results, block.values, mode=products.GATED, count=count)
        launch(
            attention.attend,
            (self.n, self.heads),
            block.results,
            t.flat[of.alpha :],
            edges.envelope,
            edges.of_receivers,
            block.shares,
            block.raised,
            RESULTS=block.results.stride(0),
            **self._attention_constants(),
        )
        received = self.floats(self.n, s.width)
        self.sum_turned_out(
            block.values,
            edges,
            received,
            t.tiles,
            t.value_columns,
            self.tiles_of_values(block),
            block,
        )
        self.multiply(of.project, received, x, add=True)

    def _attention_constants(self) -> dict[str, Any]:
        features = self.config.attention_features
        return {
            "COLUMN": self.sizes.attention,
            "ALPHA": ALPHA_WIDTH,
            "HEADS": self.heads,
            "FEATURES": features,
            "BE": IN_SUMS,
            "BF": up_to_power(features),
            "num_warps": 2,
        }

    def sum_turned_out(
        self,
        values: Tensor,
        edges: Edges,
        out: Tensor,
        tiles: Tensor,
        columns: Tensor,
        n_tiles: int,
        weighted_by: Block | None = None,
    ) -> None:
        """At receivers, by attention; or at both ends of the edges, as they are."""
        shares = edges.envelope if weighted_by is None else weighted_by.shares
        launch(
            turns.sum_turned_out,
            (self.n, n_tiles, 2 if weighted_by is None else 1),
            values,
            edges.frames,
            edges.envelope,
            shares,
            edges.of_receivers,
            edges.of_senders,
            edges.order,
            tiles,
            columns,
            out,
            VALUES=values.stride(0),
            FRAMES=self.sizes.frames,
            OUT=out.stride(0),
            HEADS=self.heads,
            WEIGHTED=weighted_by is not None,
            BE=IN_SUMS,
            Q=self.sizes.q,
            BC=self.sizes.step,
            num_warps=4,
        )

    def attention_gradient(
        self, block: Block, edges: Edges, d_x: Tensor, d_hidden: Tensor, d_envelope: Tensor
    ) -> None:
        """Reverse of `attention`: adds to d_x."""
        s, t, of, count = self.sizes, self.tables, block.of, edges.count
        n_tiles = self.tiles_of_values(block)
        d_received = self.multiply(of.project_back, d_x, self.floats(self.n, s.width))
        d_attention = self.floats(self.n_edges, self.heads, n_tiles)
        d_results = block.d_values if self.linear else self.floats(self.n_edges, s.results)
        launch(
            turns.send_gradient,
            (self.blocks_of_edges(), n_tiles),
            d_received,
            block.values,
            edges.frames,
            edges.envelope,
            block.shares,
            edges.i,
            t.tiles,
            t.value_columns,
            count,
            block.d_values,
            d_attention,
            RECEIVED=s.width,
            VALUES=block.values.stride(0),
            FRAMES=s.frames,
            HEADS=self.heads,
            TILES=n_tiles,
            BE=PER_PROGRAM,
            Q=s.q,
            BC=s.step,
            num_warps=4,
        )
        launch(
            attention.attend_gradient,
            (self.n, self.heads),
            d_attention,
            block.results,
            t.flat[of.alpha :],
            edges.envelope,
            block.shares,
            block.raised,
            edges.of_receivers,
            d_results,
            d_envelope,
            RESULTS=block.results.stride(0),
            D_RESULTS=d_results.stride(0),
            TILES=n_tiles,
            ENVELOPES=self.n_envelopes,
            FIRST_ENVELOPE=block.number * self.heads,
            BT=up_to_power(n_tiles),
            **self._attention_constants(),
        )
        if of.second_back is not None:
            d_gated = self.floats(self.n_edges, s.width)
            self.multiply(of.second_back, block.d_values, d_gated, count=count)
            self.gate_gradient(block.results, d_gated, d_results, t.gates[block.last], count)
        given = self.floats(self.n_edges, s.products[block.last])
        self.multiply(of.multiply_back, d_results, given, count=count)
        d_weights = torch.empty_like(block.weights)
        sums = t.sums[block.last]
        launch(
            products.times_gradient,
            (self.blocks_of_edges(IN_PRODUCTS), sums.sums.shape[0]),
            given,
            block.features,
            block.weights,
            block.d_features,
            d_weights,
            sums.sums,
            sums.terms,
            count,
            GIVEN=given.stride(0),
            X=block.features.stride(0),
            Y=block.weights.stride(0),
            D_X=block.d_features.stride(0),
            D_Y=d_weights.stride(0),
            BM=IN_PRODUCTS,
            BK=s.step,
            num_warps=4,
        )
        self.multiply(of.weights_back, d_weights, d_hidden, count=count)
        d_both = self.floats(self.n, 2 * s.width)
        self.sum_turned_out(block.d_features, edges, d_both, t.both_tiles, t.columns, self.n_tiles)
        d_normal = self.multiply(of.merge_back, d_both, self.floats(self.n, s.width))
        self.normalise_gradient(d_normal, block.normal, block.inverse, d_x, t.parts)

    def gate_gradient(
        self, x: Tensor, given: Tensor, out: Tensor, gates: Tensor, count: Tensor
    ) -> None:
        """Of edges or atoms."""
        launch(
            products.gate_gradient,
            (math.ceil(x.shape[0] / IN_PRODUCTS), gates.shape[0]),
            x,
            given,
            out,
            gates,
            count,
            X=x.stride(0),
            GIVEN=given.stride(0),
            OUT=out.stride(0),
            GATE=gates.shape[1],
            BM=IN_PRODUCTS,
            BK=self.sizes.step,
            num_warps=4,
        )

    # ----------------------------------------------------------- feed-forward networks, energy

    def feed_forward(self, block: Block, x: Tensor) -> None:
        """Adds to x."""
        self.normalise(x, block.normal_2, block.inverse_2, self.tables.parts)
        self.multiply(block.of.first, block.normal_2, block.wide)
        self.multiply(block.of.then, block.wide, x, mode=products.GATED, add=True)

    def feed_forward_gradient(self, block: Block, given: Tensor, d_x: Tensor) -> None:
        """Reverse of a feed-forward network, norm included: adds to d_x."""
        last, of = block.last, block.of
        d_gated = self.multiply(of.then_back, given, self.floats(self.n, self.sizes.gated[last]))
        d_wide = torch.empty_like(block.wide)
        self.gate_gradient(block.wide, d_gated, d_wide, self.tables.wide_gates[last], self.atoms)
        d_normal = self.multiply(of.first_back, d_wide, self.floats(self.n, self.sizes.width))
        self.normalise_gradient(d_normal, block.normal_2, block.inverse_2, d_x, self.tables.parts)

    def energies(self, last: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n] eV, without repulsion, and the gradient of their sum by x."""
        t, c, n, width = self.tables, self.constants, self.n, self.config.head_features
        self.normalise(x, last.normal_2, last.inverse_2, t.parts)
        self.multiply(last.of.first, last.normal_2, last.wide)
        summed = self.multiply(t.shortcut, x, self.floats(n, width))
        self.multiply(last.of.then, last.wide, summed, mode=products.GATED, add=True)
        normal, inverse = self.floats(n, width), self.floats(n, 1)
        self.normalise(summed, normal, inverse, t.head_part)
        hidden = self.multiply(t.hidden, normal, self.floats(n, width))
        energies, d_hidden = self.doubles(n), torch.empty_like(hidden)
        launch(
            norms.energies_of,
            (n,),
            hidden,
            t.energy,
            self.graph.species,
            c.scale,
            c.reference,
            energies,
            d_hidden,
            HIDDEN=width,
            BLOCK=self.head_block,
            num_warps=4,
        )
        d_normal = self.multiply(t.hidden_back, d_hidden, self.floats(n, width))
        d_summed = torch.empty_like(summed)
        self.normalise_gradient(d_normal, normal, inverse, d_summed, t.head_part, add=False)
        d_x = torch.zeros_like(x)
        self.multiply(t.shortcut_back, d_summed, d_x)
        self.feed_forward_gradient(last, d_summed, d_x)
        return energies, d_x
