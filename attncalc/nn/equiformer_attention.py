"""Attention of Equiformer: weighted sums of the messages of edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attncalc.nn.edge_products import Features
from attncalc.nn.equiformer_config import EquiformerConfig
from attncalc.nn.equiformer_edges import EdgeData, Geometry
from attncalc.nn.equiformer_layers import IrrepsLinear, flat, unflat
from attncalc.nn.equiformer_messages import MESSAGES
from attncalc.ops import segment_sum

SMALLEST_SUM = 1e-16  # of exponentials, guards the softmax of an atom without neighbours


class Attention(nn.Module):
    """Messages from neighbours, weighted by attention and summed.

    Args:
        config: hyper-parameters.
        n_kept, n_used: see `NonlinearMessages`.
        n_in: channels per degree of the input features; None for `config.channels`.
    """

    messages: Any  # one of MESSAGES, or a module that folds their weights only once

    def __init__(
        self,
        config: EquiformerConfig,
        n_kept: int,
        n_used: int,
        n_in: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        channels, degrees = config.channels, range(len(config.channels))
        n_in = channels if n_in is None else n_in
        self.merge_source = IrrepsLinear(n_in, channels)
        self.merge_target = IrrepsLinear(n_in, channels, bias=False)
        self.query = IrrepsLinear(n_in, channels) if config.attention == "dot" else None
        self.messages = MESSAGES[config.attention](config, n_kept, n_used)
        self.projection = IrrepsLinear(channels[:n_kept], channels[:n_kept])
        per_head = sum(channels) / config.num_heads
        self.query_scales = [1 / math.sqrt(per_head * (2 * degree + 1)) for degree in degrees]
        self.channels, self.heads, self.values = channels, config.num_heads, channels[:n_used]
        # weights, products and seven feature vectors, which fits the measured memory of a call
        width = sum((2 * degree + 1) * c for degree, c in enumerate(channels))
        self.numbers_per_edge = self.messages.product.numbers_per_edge + 7 * width

    def forward(self, features: Features, geometry: Geometry) -> Features:
        """Return the update of the features of the used degrees."""
        sources, targets = flat(self.merge_source(features)), flat(self.merge_target(features))
        if self.query is not None:
            query = zip(self.query(features), self.query_scales, strict=True)
            targets = torch.cat([targets, flat([x * scale for x, scale in query])], dim=1)
        received = geometry.sum_over_edges(self.on_edges, sources, targets, self.messages())
        return self.projection(unflat(received, self.values))

    def on_edges(
        self, sent: Tensor, targets: Tensor, edges: EdgeData, weights: Sequence[Tensor]
    ) -> Tensor:
        """Return the sum of the messages at each receiver, flat.

        Args:
            sent: [n_edges, width], flat.
            targets: [n_receivers, width or, with queries, twice that], flat.
            edges: edges whose receivers are row indices of `targets`.
            weights: weights of the messages.
        """
        n_receivers, width = targets.shape[0], sent.shape[1]
        here = targets.index_select(0, edges.receivers).split(width, dim=1)
        turned = [edges.turned_in(unflat(x, self.channels)) for x in (sent + here[0], *here[1:])]
        logits, values = self.messages.on_edges(weights, turned[0], turned[-1], edges.radial)
        attention = attention_weights(logits, edges, n_receivers)[:, None, :, None]
        values = [(v.unflatten(2, (self.heads, -1)) * attention).flatten(2) for v in values]
        return segment_sum(flat(edges.turned_out(values)), edges.receivers, n_receivers)


def attention_weights(logits: Tensor, edges: EdgeData, n_receivers: int) -> Tensor:
    """Return [n_edges, heads]: a softmax over the edges of a receiver, with the envelope c.

    A_e = c_e^2 exp(l_e) / sum over e' of c_e' exp(l_e'). The factor c in the sum makes the weights
    smooth when a neighbour crosses the cutoff and others remain. The second factor c in the
    numerator makes them smooth also when the last neighbour does. With c = 1 this is the plain
    softmax.
    """
    receivers, envelope = edges.receivers, edges.envelope.unsqueeze(1)
    valid = edges.mask.unsqueeze(1) & (envelope > 0)
    # subtracting the largest l + log c changes nothing, but keeps exponentials in range and the sum
    # at 1 or more, even where an edge close to the cutoff has by far the largest logit
    levels = logits.detach() + torch.where(valid, envelope.detach(), 1.0).log()
    largest = logits.new_full((n_receivers, logits.shape[1]), -torch.inf).scatter_reduce(
        0,
        receivers.unsqueeze(1).expand_as(logits),
        torch.where(valid, levels, -torch.inf),
        "amax",
    )
    raised = torch.where(valid, logits - largest.index_select(0, receivers), 0.0)
    shares = envelope * torch.exp(raised)
    total = segment_sum(shares, receivers, n_receivers) + SMALLEST_SUM
    return envelope * shares / total.index_select(0, receivers)
