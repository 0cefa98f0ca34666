"""Equiformer for weights that no longer change: what its forward pass folds is folded once.

`frozen` equals the network it is made of, `attncalc.nn.equiformer.Equiformer`, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attncalc.ops import with_modules


class Frozen(nn.Module):
    """Takes the place of a module that gives folded weights; gives the same tensors each time.

    Args:
        module: called once; stays as it is, and does everything else.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        tensors = module()
        self.n_tensors = len(tensors)
        for k, tensor in enumerate(tensors):
            self.register_buffer(f"weights_{k}", tensor, persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        """The folded weights."""
        return tuple(self.get_buffer(f"weights_{k}") for k in range(self.n_tensors))

    def on_edges(self, *arguments: Any) -> Any:
        """Return the outputs of the network on these edges."""
        return self.module.on_edges(*arguments)


@torch.no_grad()
def frozen(network: Any) -> nn.Module:
    """An Equiformer for inference that shares all parameters with `network`.

    Args:
        network: its weights must not change any more; stays as it is.
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
