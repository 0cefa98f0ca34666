"""Radial network of Equiformer, from the length of an edge to the weights of a tensor product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from attncalc.nn.equiformer_config import EquiformerConfig
from attncalc.nn.equiformer_layers import LAYER_NORM_EPSILON

N_HIDDEN = 8  # tensors of `RadialNetwork.hidden_weights`


class RadialNetwork(nn.Module):
    """Network from the radial basis to the weights of a tensor product.

    It has two hidden layers; the bias of the last layer is called `offset`.

    Args:
        config: hyper-parameters.
        n_out: number of outputs.
    """

    def __init__(self, config: EquiformerConfig, n_out: int) -> None:
        super().__init__()
        num_basis, width = config.num_basis, config.radial_features

        def uniform(*shape: int) -> nn.Parameter:  # as in torch's linear layers
            bound = 1 / math.sqrt(shape[0])
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.first, self.second = uniform(num_basis, width), uniform(width, width)
        self.last = uniform(width, n_out)
        for name in ("first", "second"):
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
            self.register_parameter(f"{name}_norm_scale", nn.Parameter(torch.ones(width)))
            self.register_parameter(f"{name}_norm_bias", nn.Parameter(torch.zeros(width)))
        bound = 1 / math.sqrt(width)
        self.offset = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    @property
    def hidden_weights(self) -> tuple[Tensor, ...]:
        """All weights except those of the last layer, in the order of `radial_hidden`."""
        return tuple(
            getattr(self, f"{name}{part}")
            for name in ("first", "second")
            for part in ("", "_bias", "_norm_scale", "_norm_bias")
        )


def radial_hidden(radial: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the second hidden layer [n_edges, width] of a `RadialNetwork`.

    `radial` is [n_edges, num_basis], `weights` are `RadialNetwork.hidden_weights`.
    """
    hidden = radial
    for k in (0, 4):
        weight, bias, scale, norm_bias = weights[k : k + 4]
        hidden = torch.addmm(bias, hidden, weight)
        hidden = silu(layer_norm(hidden, scale.shape, scale, norm_bias, LAYER_NORM_EPSILON))
    return hidden
