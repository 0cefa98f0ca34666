"""Equiformer: attention over features of all degrees, with tensor products in the edges' frames.

Liao & Smidt, "Equiformer: Equivariant graph attention transformer for 3D atomistic graphs", ICLR
2023, in its form for MD17, with the three attentions of its ablation. Features are lists over the
degree l of [n, 2l+1, channels] tensors, real harmonics as in e3nn (see `basis.edge_frames`).

| paper                         | here                                                        |
|-------------------------------|-------------------------------------------------------------|
| DTP(x, Y; w)                  | `WeightedProduct`, `FixedProduct` with the map behind them  |
| Linear                        | `IrrepsLinear`, in an edge frame one matrix per (degree, m) |
| a_ij (attention weights)      | `attention_weights` [n_edges, n_heads]                      |
| v_ij (values)                 | values, [n_edges, 2l+1, channels] per degree                |
| non-linear message, MLP att.  | `NonlinearMessages`                                         |
| linear message, MLP attention | `LinearMessages`                                            |
| dot product attention         | `DotProductMessages`                                        |

Three properties make the published function unfit for molecular dynamics. It jumps where an atom
crosses the cutoff, because softmax and edge-degree sum do not decay with the distance. It
distinguishes a molecule from its mirror image, because harmonics and features of odd degree are
declared even. And it has no limit at environments of high symmetry, because each degree is divided
by its own size, which is zero there. The defaults here avoid all three: every edge has a smooth
envelope, only paths with l1 + l2 + l3 even exist, and degrees are normalised together. The
published network has `cutoff_function="none", paths="all", norm="degree"`.

In the frame of an edge its harmonics are constants, so a product with them is one multiplication
per number (Passaro & Zitnick, ICML 2023). If the weights of a product do not depend on the edge,
the product and the linear map after it become one matrix per |m|. The formulas of the paper, in the
laboratory frame, are in tests/equiformer_paper.py; both must give the same numbers.

This module holds the network and its blocks. Their parts are in other modules:

| file                   | what                                                                |
|------------------------|---------------------------------------------------------------------|
| `equiformer_config`    | hyper-parameters                                                    |
| `equiformer_layers`    | linear map, norm and feed-forward network of features               |
| `equiformer_edges`     | geometry of the edges, sums over them at once or in chunks          |
| `equiformer_radial`    | radial network                                                      |
| `equiformer_messages`  | the three kinds of messages: logits and values                      |
| `equiformer_attention` | attention weights, and the sum of messages                          |
| `edge_products`        | tensor products in the frame of an edge                             |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attncalc.basis.activations import SILU_NORM
from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.edge_frames import EdgeFrames
from attncalc.basis.radial import ExpNormalBasis
from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.edge_products import Features, PathIndex
from attncalc.nn.equiformer_attention import Attention
from attncalc.nn.equiformer_config import EquiformerConfig
from attncalc.nn.equiformer_edges import EdgeData, Geometry
from attncalc.nn.equiformer_layers import (
    EquivariantLayerNorm,
    FeedForward,
    IrrepsLinear,
    added,
    flat,
    unflat,
)
from attncalc.nn.equiformer_radial import RadialNetwork, radial_hidden
from attncalc.ops import safe_norm, segment_sum
from attncalc.recompute import Chunk, chunks_of

# bytes: where all blocks together would keep more than LARGEST_KEPT for the gradient, edges are
# processed in chunks, which are computed again; a chunk keeps LARGEST_CHUNK in one block
LARGEST_KEPT = 1 << 30
LARGEST_CHUNK = 1 << 27
ON_GPU = 8  # times as much: its memory is free for the network, and small chunks are slow


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + FeedForward(Norm(x)).

    Args:
        config: hyper-parameters.
        n_out: output channels per degree of the feed-forward network; None for `config.channels`.
    """

    def __init__(self, config: EquiformerConfig, n_out: Sequence[int] | None = None) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        joint = config.norm == "joint"
        self.norm_1 = EquivariantLayerNorm(channels, joint)
        self.attention = Attention(config, n, n)
        self.norm_2 = EquivariantLayerNorm(channels, joint)
        hidden = [config.feed_forward_factor * width for width in channels]
        self.feed_forward = FeedForward(channels, hidden, channels if n_out is None else n_out)

    def forward(self, features: Features, geometry: Geometry) -> Features:
        """Return features [n_atoms, 2l+1, channels] per degree."""
        features = added(features, self.attention(self.norm_1(features), geometry))
        return added(features, self.feed_forward(self.norm_2(features)))


class LastBlock(nn.Module):
    """Last block, which returns scalars only, `head_features` of them.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: EquiformerConfig) -> None:
        super().__init__()
        n_kept = config.degrees_kept
        channels = config.channels[:n_kept]
        self.norm_1 = EquivariantLayerNorm(config.channels, config.norm == "joint")
        self.attention = Attention(config, n_kept, 1)
        self.norm_2 = EquivariantLayerNorm(channels)
        hidden = [config.feed_forward_factor * width for width in channels]
        self.feed_forward = FeedForward(channels, hidden, [config.head_features])
        self.shortcut = IrrepsLinear(channels[:1], [config.head_features])

    def forward(self, features: Features, geometry: Geometry) -> Tensor:
        """[n_atoms, 2l+1, channels] per degree -> [n_atoms, 1, head_features]."""
        (gain,) = self.attention(self.norm_1(features), geometry)
        scalars = features[0] + gain
        (shortcut,), (normed,) = self.shortcut([scalars]), self.norm_2([scalars])
        return shortcut + self.feed_forward.scalars(normed)


class EdgeDegreeEmbedding(nn.Module):
    """Embedding of number, distances and directions of the neighbours, as features of all degrees.

    It is a tensor product of the harmonics with constant scalars, the same for every element.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: EquiformerConfig) -> None:
        super().__init__()
        channels = config.channels
        paths = config.tensor_paths(config.degrees_kept, len(channels))
        places = PathIndex(channels, paths)
        self.expand = IrrepsLinear([1], channels[:1])
        self.radial = RadialNetwork(config, places.n_weights)
        self.projection = IrrepsLinear(places.n_rows, channels)
        self.divisor = math.sqrt(config.avg_num_neighbors)
        self.channels = channels
        for degree in range(len(channels)):  # from scalars
            rows = places.weights([(0, degree, degree)])
            self.register_buffer(f"weights_to_{degree}", rows, persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        """Return radial network, and maps from its hidden layer to the channels of all degrees."""
        constant = self.expand.weights[0][0] + self.expand.scalar_bias
        lasts, offsets = [], []
        for degree, w in enumerate(self.projection.weights):
            # path (0, l -> l) has the first rows of degree l; its kappa is sqrt(2l+1)
            rows = self.get_buffer(f"weights_to_{degree}")
            matrix = w[: self.channels[0]] * constant.unsqueeze(1)
            matrix = matrix * (math.sqrt(2 * degree + 1) / self.divisor)
            lasts.append(self.radial.last.index_select(1, rows) @ matrix)
            offsets.append(self.radial.offset.index_select(0, rows) @ matrix)
        offsets[0] = offsets[0] + self.projection.scalar_bias / self.divisor
        return (*self.radial.hidden_weights, torch.cat(lasts, dim=1), torch.cat(offsets))

    def on_edges(
        self, sent: Tensor, targets: Tensor, edges: EdgeData, weights: Sequence[Tensor]
    ) -> Tensor:
        """Return [n_receivers, width], flat; no features of the atoms are read."""
        del sent
        *hidden, last, offset = weights
        amounts = torch.addmm(offset, radial_hidden(edges.radial, hidden), last)
        amounts = (amounts * edges.envelope.unsqueeze(1)).unsqueeze(1)
        scalars, *others = amounts.split(self.channels, dim=2)
        # only the component along the edge: the first row of its frame
        turned = zip(edges.frames, others, strict=True)
        features = [scalars, *(frame[:, 0].unsqueeze(2) * x for frame, x in turned)]
        return segment_sum(flat(features), edges.receivers, targets.shape[0])


class Equiformer(nn.Module):
    """Equiformer network, which maps a graph of edge vectors to one energy per atom.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    reads_charge = False
    reads_spin = False

    def __init__(self, config: EquiformerConfig, n_species: int) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.element = nn.Parameter(torch.randn(n_species, width))
        self.element_bias = nn.Parameter(torch.zeros(width))
        self.basis = ExpNormalBasis(config.num_basis, config.cutoff)
        self.frames = EdgeFrames(config.highest_degree)
        self.edge_degree = EdgeDegreeEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers - 1))
        self.last_block = LastBlock(config)
        self.norm = EquivariantLayerNorm([config.head_features])
        self.hidden = IrrepsLinear([config.head_features], [config.head_features])
        self.energy = IrrepsLinear([config.head_features], [1])
        self.to(torch.float32)

    def for_species(self, rows: Sequence[int]) -> Equiformer:
        """Return a copy whose species table consists of these rows of this one, in this order."""
        other = Equiformer(self.config, len(rows)).to(self.element.dtype)
        state = self.state_dict()
        other.load_state_dict(state | {"element": state["element"][list(rows)]})
        return other

    def forward(self, graph: Graph) -> AtomOutputs:
        """Return the energies per atom [n_atoms], before scale and reference energies."""
        geometry = self.geometry(graph)
        features = self.embedding(graph, geometry)
        for block in self.blocks:
            features = block(features, geometry)
        (scalars,) = self.norm([self.last_block(features, geometry)])
        return AtomOutputs(energies=self.head(scalars), features=scalars.squeeze(1))

    def head(self, scalars: Tensor) -> Tensor:
        """Return energies [n_atoms] for scalars [n_atoms, 1, head_features]."""
        (energies,) = self.energy([SILU_NORM * silu(self.hidden([scalars])[0])])
        return energies.flatten()

    def geometry(self, graph: Graph) -> Geometry:
        """Return all quantities that depend on the edge vectors alone; all blocks share them."""
        cutoff, mask = self.config.cutoff, graph.edge_mask
        vectors = graph.vectors.to(self.element.dtype)
        # vectors of masked edges are arbitrary; a zero or very long one would give NaN
        vectors = torch.where(mask.unsqueeze(1), vectors, 0.5 * cutoff)
        lengths = safe_norm(vectors)
        envelope = mask.to(vectors.dtype)
        if self.config.cutoff_function != "none":
            envelope = envelope * CUTOFF_FUNCTIONS[self.config.cutoff_function](lengths, cutoff)
        edges = EdgeData(
            receivers=graph.receivers,
            mask=mask,
            envelope=envelope,
            radial=self.basis(lengths),
            frames=self.frames(vectors / lengths.unsqueeze(1)),
        )
        return Geometry(edges, graph.senders, self.chunks(graph))

    def chunks(self, graph: Graph) -> list[Chunk]:
        """Return the chunks of edges, none if all edges fit into memory at once."""
        if not self.needs_chunks(graph.n_edges):
            return []
        most_edges = LARGEST_CHUNK * self._gpu_factor // self.bytes_per_edge
        return chunks_of(graph.receivers, graph.n_atoms, max(1, most_edges))

    def needs_chunks(self, n_edges: int) -> bool:
        """Return True if this number of edges must be processed in chunks."""
        kept = self.bytes_per_edge * self.config.num_layers * n_edges
        return kept > LARGEST_KEPT * self._gpu_factor

    @property
    def _gpu_factor(self) -> int:
        return 1 if self.element.device.type == "cpu" else ON_GPU

    @property
    def bytes_per_edge(self) -> int:
        """Approximate number of bytes that autograd keeps per edge in one block."""
        blocks: list[Any] = [*self.blocks, self.last_block]
        widest = max(block.attention.numbers_per_edge for block in blocks)
        return widest * self.element.element_size()

    def embedding(self, graph: Graph, geometry: Geometry) -> Features:
        """Return the initial features of each atom, from its element and the edges around it."""
        nothing = geometry.edges.radial.new_zeros(graph.n_atoms, 0)
        summed = geometry.sum_over_edges(
            self.edge_degree.on_edges, nothing, nothing, self.edge_degree()
        )
        scalars, *others = unflat(summed, self.config.channels)
        element = self.element.index_select(0, graph.species) + self.element_bias
        return [scalars + element.unsqueeze(1), *others]
