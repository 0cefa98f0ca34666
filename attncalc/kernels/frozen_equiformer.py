"""Equiformer with fixed weights: those that the forward pass folds are folded only once.

`frozen` gives the same bits as the network it is made from, `attncalc.nn.equiformer.Equiformer`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attncalc.ops import with_modules


class Frozen(nn.Module):
    """Replacement for a module that returns folded weights: it returns the same tensors each time.

    Args:
        module: called once and not changed; it still evaluates `on_edges`.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        tensors = module()
        self.n_tensors = len(tensors)
        for k, tensor in enumerate(tensors):
            self.register_buffer(f"weights_{k}", tensor, persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        """Return the folded weights."""
        return tuple(self.get_buffer(f"weights_{k}") for k in range(self.n_tensors))

    def on_edges(self, *arguments: Any) -> Any:
        """Return the result of the replaced module's `on_edges`."""
        return self.module.on_edges(*arguments)


@torch.no_grad()
def frozen(network: Any) -> nn.Module:
    """An Equiformer for inference that shares all parameters with `network`.

    Args:
        network: its weights must not change any more; it is not modified.
    """

    def without_folding(block: Any) -> nn.Module:
        attention = block.attention
        return with_modules(
            block, attention=with_modules(attention, messages=Frozen(attention.messages))
        )

    return with_modules(
        network,
        edge_degree=Frozen(network.edge_degree),
        blocks=nn.ModuleList(without_folding(block) for block in network.blocks),
        last_block=without_folding(network.last_block),
    )
