"""Sum over the edges of each atom in bounded memory, by chunks that are recomputed for gradients.

Autograd stores the intermediate results of every edge, tens of kilobytes each, until the gradient
is taken. `sum_in_chunks` stores only its inputs. The backward pass recomputes, differentiates and
frees one chunk at a time, and so does the derivative of the backward pass, which training needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# (sent [n_edges, ...], targets [n_receivers, ...], edge data, weights, receivers, mask)
# -> [n_receivers, ...]; receivers are rows of targets
OnChunk = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Receivers from `first` up to, but not including `last`, with all their edges."""

    first: int
    last: int
    first_edge: int
    last_edge: int


def chunks_of(receivers: Tensor, n_atoms: int, most_edges: int) -> list[Chunk]:
    """Divide atoms into runs of at most `most_edges` edges; an atom with more is a run by itself.

    Args:
        receivers: [n_edges], ascending.
        n_atoms: number of receiving atoms.
        most_edges: largest number of edges of a chunk.
    """
    ends = [0, *torch.bincount(receivers, minlength=n_atoms).cumsum(0).tolist()]
    starts = [0]
    for atom in range(1, n_atoms):
        if ends[atom + 1] - ends[starts[-1]] > most_edges:
            starts.append(atom)
    return [Chunk(a, b, ends[a], ends[b]) for a, b in pairwise([*starts, n_atoms])]


def sum_in_chunks(
    on_edges: OnChunk,
    chunks: Sequence[Chunk],
    edges: tuple[Tensor, Tensor, Tensor],
    sources: Tensor,
    targets: Tensor,
    edge_data: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Tensor:
    """Return `on_edges` of all edges, [n_atoms, ...], chunk by chunk and twice differentiable.

    One backward pass computes the gradients of all inputs that require them, because autograd does
    not say which are needed. So a training step computes the gradient by the weights twice.

    Args:
        on_edges: computation of a chunk; a receiver must depend on no edges but its own.
        chunks: from `chunks_of`; none: all edges at once, differentiated by autograd.
        edges: receivers, senders [n_edges], mask [n_edges].
        sources: [n_atoms, ...]; each edge gets the row of its sender.
        targets: [n_atoms, ...]; each chunk gets the rows of its receivers.
        edge_data: tensors [n_edges, ...].
        weights: tensors that every chunk gets.
    """
    if not chunks:
        receivers, senders, mask = edges
        sent = sources.index_select(0, senders)
        return on_edges(sent, targets, edge_data, weights, receivers, mask)
    plan = _Plan(on_edges, chunks, *edges, len(edge_data))
    return _Sum.apply(plan, sources, targets, *edge_data, *weights)


@dataclass(frozen=True)
class _Plan:
    on_edges: OnChunk
    chunks: Sequence[Chunk]
    receivers: Tensor
    senders: Tensor
    mask: Tensor
    n_edge_data: int

    def part(self, k: int, chunk: Chunk, tensor: Tensor) -> Tensor:
        """Return the part of the k-th tensor (sources, targets, edge data, weights) in a chunk."""
        edges = slice(chunk.first_edge, chunk.last_edge)
        if k == 0:
            return tensor.index_select(0, self.senders[edges])
        if k == 1:
            return tensor[chunk.first : chunk.last]
        return tensor[edges] if k < 2 + self.n_edge_data else tensor

    def leaves(
        self, chunk: Chunk, tensors: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor]:
        """Return the inputs of a chunk as leaves; the wanted ones require gradients."""
        parts = (self.part(k, chunk, t).detach() for k, t in enumerate(tensors))
        return [part.requires_grad_(w) for part, w in zip(parts, wanted, strict=True)]

    def run(self, chunk: Chunk, inputs: Sequence[Tensor]) -> Tensor:
        """Return the rows of the result that belong to a chunk."""
        sent, targets, *others = inputs
        part = slice(chunk.first_edge, chunk.last_edge)
        of_edges, weights = others[: self.n_edge_data], others[self.n_edge_data :]
        receivers = self.receivers[part] - chunk.first
        return self.on_edges(sent, targets, of_edges, weights, receivers, self.mask[part])

    def add(
        self, chunk: Chunk, totals: Sequence[Tensor | None], parts: Sequence[Tensor | None]
    ) -> None:
        """Add the gradients of a chunk to those of the whole."""
        edges = slice(chunk.first_edge, chunk.last_edge)
        for k, (total, part) in enumerate(zip(totals, parts, strict=True)):
            if total is None or part is None:
                continue
            if k == 0:
                total.index_add_(0, self.senders[edges], part)
            elif k == 1:
                total[chunk.first : chunk.last] += part
            elif k < 2 + self.n_edge_data:
                total[edges] += part
            else:
                total += part


def _gradients(
    result: Tensor,
    leaves: Sequence[Tensor],
    wanted: Sequence[bool],
    outer: Tensor | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Return the gradients by the wanted leaves; None for the others."""
    by = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
    if not by or not result.requires_grad:
        return [None] * len(leaves)
    found = iter(
        torch.autograd.grad(result, by, outer, create_graph=create_graph, allow_unused=True)
    )
    return [next(found) if w else None for w in wanted]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        nothing = [False] * len(tensors)
        rows = [plan.run(chunk, plan.leaves(chunk, tensors, nothing)) for chunk in plan.chunks]
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        return None, *_Gradient.apply(ctx.plan, wanted, d_result, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, wanted: Sequence[bool], d_result: Tensor, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.plan, ctx.wanted = plan, wanted
        ctx.set_materialize_grads(False)  # None where no second derivative is needed
        ctx.save_for_backward(d_result, *tensors)
        totals = [torch.zeros_like(t) if w else None for t, w in zip(tensors, wanted, strict=True)]
        for chunk in plan.chunks:
            leaves = plan.leaves(chunk, tensors, wanted)
            with torch.enable_grad():
                result = plan.run(chunk, leaves)
            outer = d_result[chunk.first : chunk.last]
            plan.add(chunk, totals, _gradients(result, leaves, wanted, outer))
        return tuple(totals)

    @staticmethod
    @once_differentiable  # no third derivative is needed
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, (d_result, *tensors) = ctx.plan, ctx.saved_tensors
        outer_total = torch.zeros_like(d_result)
        totals = [
            torch.zeros_like(t) if w else None for t, w in zip(tensors, ctx.wanted, strict=True)
        ]
        asked = [second is not None for second in seconds]
        for chunk in plan.chunks:
            leaves = plan.leaves(chunk, tensors, ctx.wanted)
            outer = d_result[chunk.first : chunk.last].detach().requires_grad_()
            with torch.enable_grad():
                result = plan.run(chunk, leaves)
                gradients = _gradients(result, leaves, asked, outer, create_graph=True)
                products = [
                    (gradient * plan.part(k, chunk, second)).sum()
                    for k, (gradient, second) in enumerate(zip(gradients, seconds, strict=True))
                    if gradient is not None and second is not None
                ]
                total = sum(products, torch.zeros_like(outer).sum())
            if products:
                found = _gradients(total, [outer, *leaves], [True, *ctx.wanted])
                plan.add(chunk, totals, found[1:])
                if found[0] is not None:
                    outer_total[chunk.first : chunk.last] += found[0]
        return None, None, outer_total, *totals
