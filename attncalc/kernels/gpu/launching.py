"""Launching of kernels: arguments by name, compiler settings, new tensors, edges that count."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from attncalc.graph import EdgeOrder, Graph

# of every kernel: number of warps (32 threads) of a program, and of slices of a weight that are
# loaded at a time. Numbers of warps of messages, filters and steps of atoms are the fastest on an
# H200 (benchmarks/gpu.py --stages settings); the others spill no registers on 8.0 and 9.0
SETTINGS = {
    "ev_gradient": (1, 1),
    "filters": (2, 1),
    "filters_gradient": (4, 1),
    "find_edges": (4, 1),
    "first_messages": (4, 1),
    "first_messages_gradient": (4, 1),
    "gradient_by_vectors": (4, 1),
    "interact": (4, 1),
    "messages": (2, 1),
    "messages_gradient": (4, 1),
    "project": (8, 3),
    "repel": (4, 1),
    "start_ev": (4, 1),
    "start_ev_gradient": (4, 1),
    "sum_edges": (1, 1),
    "sum_gradients": (1, 1),
    "turn": (8, 3),
    "update": (4, 3),
    "update_gradient": (8, 3),
}


def launch(kernel: Any, grid: tuple[int, ...], *known: dict[str, Any], **more: Any) -> None:
    """Launch a kernel.

    Args:
        kernel: a Triton function.
        grid: number of programs.
        known, more: its arguments by name, and others; `more` has precedence, then `known` in
            order.
    """
    kernel[grid](**arguments_of(kernel, more, *known), **options_of(kernel))


def options_of(kernel: Any) -> dict[str, Any]:
    """Return the compiler options of a kernel."""
    n_warps, n_stages = SETTINGS[kernel.fn.__name__]
    return {"num_warps": n_warps, "num_stages": n_stages, "enable_fp_fusion": True}


def arguments_of(kernel: Any, *sources: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a kernel by name, each from the first source that has it."""
    return {
        name: next(source[name] for source in sources if name in source)
        for name in _parameters(kernel)
    }


@functools.cache
def _parameters(kernel: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kernel.fn).parameters)


class Workspace:
    """Factory of uninitialized tensors on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def single(self, *shape: int) -> Tensor:
        """Return a new float32 tensor."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def double(self, *shape: int) -> Tensor:
        """Return a new float64 tensor."""
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def whole(self, *shape: int) -> Tensor:
        """Return a new int32 tensor."""
        return torch.empty(shape, dtype=torch.int32, device=self.device)


def counted_edges(graph: Graph) -> tuple[Tensor, Tensor]:
    """Return positions of the edges that count when moved together, and where each atom's begin.

    Returns:
        Positions [n_edges + 1] and beginnings [n_atoms + 1], int32.
    """
    mask = graph.edge_mask
    slots = torch.zeros(graph.n_edges + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(mask, 0, dtype=torch.int32, out=slots[1:])
    return slots, slots.index_select(0, order_of(graph).rows)


def order_of(graph: Graph) -> EdgeOrder:
    """Return the order of a graph's edges, without waiting for the device."""
    if graph.order is not None:
        return graph.order
    numbers = torch.arange(1, graph.n_edges + 1, device=graph.edge_mask.device)
    last = (graph.edge_mask * numbers).amax() if graph.n_edges else 0
    return EdgeOrder.of(graph.receivers, graph.senders, graph.n_atoms, last)
