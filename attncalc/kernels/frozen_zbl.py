"""Nuclear repulsion with fixed parameters in one compiled loop.

`FrozenZBL` equals `attncalc.physics.zbl.ZBLRepulsion` with the physnet cutoff function: value and
slope of a pair are written out, so that autograd sees one operation instead of fifty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from attncalc.graph import Graph


class FrozenZBL(nn.Module):
    """Takes the place of a `ZBLRepulsion` whose parameters no longer change, on the CPU.

    Args:
        term: with the physnet cutoff function; stays as it is.
        coulomb_constant: eV Å.
        switch_off: Å, where the repulsion has ended.
    """

    def __init__(self, term: Any, coulomb_constant: float, switch_off: float) -> None:
        super().__init__()
        self.config = term.config
        weights = softplus(term.coefficients)
        numbers = term.atomic_numbers
        self.arguments = (
            (numbers * coulomb_constant**0.5).numpy(),
            (numbers ** softplus(term.charge_power) * softplus(term.inverse_length)).numpy(),
            softplus(term.exponents).numpy(),
            (weights / weights.sum()).numpy(),
            float(term.config.cutoff),
            float(switch_off),
        )

    def energies_and_slopes(self, graph: Graph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per atom [n_atoms] eV, and of half of every pair's energy dE/dd / d [n_pairs] eV/Å²."""
        energies, slopes = np.zeros(graph.n_atoms), np.zeros(graph.pairs.shape[0])
        edges = (graph.vectors, graph.receivers, graph.senders, graph.edge_mask, graph.pairs)
        arrays = [tensor.detach().numpy() for tensor in (*edges, graph.species)]
        _loop()(*arrays, *self.arguments, energies, slopes)
        return energies, slopes

    def forward(self, graph: Graph, outputs: Any) -> Tensor:
        """[n_atoms] eV, float64."""
        del outputs
        return _Repel.apply(graph.vectors, graph, self)


class _Repel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors, graph, term):
        energies, slopes = term.energies_and_slopes(graph)
        near = vectors.detach()[graph.pairs].double()
        i, j = graph.receivers[graph.pairs], graph.senders[graph.pairs]
        ctx.save_for_backward(near, i, j, graph.pairs, torch.from_numpy(slopes))
        ctx.n_edges = graph.n_edges
        return torch.from_numpy(energies)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_energies):
        near, i, j, pairs, slopes = ctx.saved_tensors
        factor = slopes * (d_energies[i] + d_energies[j])
        gradient = near.new_zeros(ctx.n_edges, 3)
        return gradient.index_add_(0, pairs, near * factor.unsqueeze(1)), None, None


@functools.cache
def _loop() -> Callable[..., None]:
    """Compiled at its first call and kept in a file from then on."""
    from attncalc.kernels import zbl_loop

    return zbl_loop.repel
