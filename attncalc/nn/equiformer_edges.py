"""Edge geometry of Equiformer's blocks, and sums over edges, at once or in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncalc.nn.edge_products import Features
from attncalc.recompute import Chunk, sum_in_chunks


@dataclass(frozen=True)
class EdgeData:
    """Geometry of some edges that the blocks read.

    Attributes:
        receivers: [n_edges].
        mask: [n_edges], bool.
        envelope: [n_edges], exactly 0 for masked edges.
        radial: [n_edges, num_basis].
        frames: from `EdgeFrames`, [n_edges, 2l+1, 2l+1] for l = 1, 2, ...
    """

    receivers: Tensor
    mask: Tensor
    envelope: Tensor
    radial: Tensor
    frames: Sequence[Tensor]

    def turned_in(self, features: Features) -> Features:
        """Rotate features from the laboratory frame into the frames of the edges."""
        return [features[0], *map(torch.bmm, self.frames, features[1:])]

    def turned_out(self, features: Features) -> Features:
        """Rotate features of the given degrees from the frames of the edges to the laboratory's."""
        back = zip(self.frames, features[1:], strict=False)
        return [features[0], *(torch.bmm(frame.mT, x) for frame, x in back)]


# sums of messages at the receivers of some edges: (sent [n_edges, ...], targets [n_receivers, ...],
# edges, weights) -> [n_receivers, ...]
OnEdges = Callable[[Tensor, Tensor, EdgeData, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Geometry:
    """All edges of a graph, and the chunks in which sums over them are done to bound memory.

    Attributes:
        edges: all edges.
        senders: [n_edges].
        chunks: chunks of receivers with all their edges; none to sum over all edges at once.
    """

    edges: EdgeData
    senders: Tensor
    chunks: Sequence[Chunk]

    def sum_over_edges(
        self, on_edges: OnEdges, sources: Tensor, targets: Tensor, weights: Sequence[Tensor]
    ) -> Tensor:
        """Return the sum over the edges of each atom.

        Args:
            on_edges: the computation, see `OnEdges`.
            sources: [n_atoms, ...]; each edge gets the row of its sender.
            targets: [n_atoms, ...].
            weights: passed to `on_edges`.
        """
        edges = self.edges

        def on_some(
            sent: Tensor,
            targets: Tensor,
            data: Sequence[Tensor],
            weights: Sequence[Tensor],
            receivers: Tensor,
            mask: Tensor,
        ) -> Tensor:
            envelope, radial, *frames = data
            return on_edges(
                sent, targets, EdgeData(receivers, mask, envelope, radial, frames), weights
            )

        return sum_in_chunks(
            on_some,
            self.chunks,
            (edges.receivers, self.senders, edges.mask),
            sources,
            targets,
            (edges.envelope, edges.radial, *edges.frames),
            weights,
        )
