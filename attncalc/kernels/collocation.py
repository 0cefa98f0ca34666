"""Radial networks by Chebyshev collocation: equals `attncalc.nn.so3krates.DirectRadial`.

A radial network is a smooth function of t = exp(-d) alone. It is evaluated at n Chebyshev nodes
and interpolated: w(d) = T(d) M w(nodes), T_k = cos(k arccos t'). Its hidden layers are then
computed for n nodes instead of every pair, and second derivatives with respect to the distance
never pass through them.
Energies agree to 1e-7 eV and forces to 1e-6 eV/Å with PhysNet's basis, and a digit or two better
with the Bernstein basis (tests/kernels/test_collocation.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attncalc.ops import ModuleWithConstants, with_modules

RadialNetwork = Callable[[Tensor], Tensor]  # [n, num_basis] -> [2, n, F]

# smallest number of nodes, and nodes per basis function: Bernstein functions are polynomials in
# exp(-d), PhysNet's are narrow functions of it
FEWEST_NODES, NODES_PER_FUNCTION = 64, {"bernstein": 2, "physnet": 3}
# Å by which the interpolation reaches beyond the longest and below the shortest distance: the slope
# of arccos is infinite at the ends of its range
FAR_MARGIN, NEAR_MARGIN = 0.1, 0.02


class CollocatedRadial(ModuleWithConstants):
    """Evaluates radial networks of a basis by interpolation between Chebyshev nodes.

    Args:
        basis: maps lengths [n] Å to [n, num_basis].
        shortest: Å; shorter distances are outside the interpolation and give NaN.
        cutoff: Å, the longest distance.
        n_nodes: number of Chebyshev nodes.
    """

    order: Tensor
    to_coefficients: Tensor
    basis_at_nodes: Tensor

    def __init__(self, basis: nn.Module, shortest: float, cutoff: float, n_nodes: int) -> None:
        super().__init__()
        low, high = math.exp(-(cutoff + FAR_MARGIN)), math.exp(-(shortest - NEAR_MARGIN))
        self.middle, self.half_width = (low + high) / 2, (high - low) / 2
        order = torch.arange(n_nodes, dtype=torch.float64)
        angles = math.pi * (order + 0.5) / n_nodes
        nodes = -torch.log(self.middle + self.half_width * torch.cos(angles))
        to_coefficients = torch.cos(order[:, None] * angles) * (2 / n_nodes)
        to_coefficients[0] /= 2
        self.register_constant("order", order)
        self.register_constant("to_coefficients", to_coefficients)
        # constants are computed on the CPU, whatever device the basis is on
        exact = copy.deepcopy(basis).to("cpu", torch.float64)
        self.register_constant("basis_at_nodes", exact(nodes))

    def forward(self, lengths: Tensor) -> Collocation:
        """Return a `Collocation` for lengths [P] Å; called with a `TwinMLP`, it gives [2, P, F]."""
        position = (torch.exp(-lengths) - self.middle) / self.half_width
        polynomials = torch.cos(torch.acos(position).unsqueeze(1) * self.order)  # [P, n_nodes]
        return Collocation(polynomials, self)

    def coefficients(self, mlp: RadialNetwork) -> Tensor:
        """Return the Chebyshev coefficients [2, n_nodes, F] of a radial network."""
        return torch.matmul(self.to_coefficients, mlp(self.basis_at_nodes))


@dataclass(frozen=True)
class Collocation:
    """Chebyshev polynomials [P, n_nodes] of all pairs; a call evaluates a radial network."""

    polynomials: Tensor
    nodes: CollocatedRadial

    def __call__(self, mlp: RadialNetwork) -> Tensor:
        coefficients = self.nodes.coefficients(mlp)
        # matmul multiplies transposed matrices and copies the result back; compilers drop the
        # copy, and everything that reads the result then strides over the pairs
        polynomials = self.polynomials.expand(2, -1, -1)
        return torch.bmm(polynomials, coefficients)


def collocated(network: Any, shortest: float) -> nn.Module:
    """A So3krates that shares all parameters with `network` but interpolates its radial networks.

    Args:
        network: a So3krates; it is not changed.
        shortest: Å; no distance may be shorter.
    """
    config = network.config
    n_nodes = max(FEWEST_NODES, NODES_PER_FUNCTION[config.radial_basis] * config.num_basis)
    radial = CollocatedRadial(network.radial.basis, shortest, config.cutoff, n_nodes)
    return with_modules(network, radial=radial.to(network.parity))
