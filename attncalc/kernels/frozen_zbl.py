"""Nuclear repulsion with fixed parameters, in one compiled loop.

`FrozenZBL` equals `attncalc.physics.zbl.ZBLRepulsion` with the physnet cutoff function. Value and
slope of a pair are written out, so autograd sees one operation instead of fifty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attncalc.graph import Graph, LinearizedTerm


def numbers_of(term: Any, coulomb_constant: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return charges and inverse lengths per species, exponents and weights of the screening.

    Charges are scaled: the product of two is their bare Coulomb repulsion at 1 Å in eV.
    """
    weights, numbers = softplus(term.coefficients), term.atomic_numbers
    return (
        numbers * coulomb_constant**0.5,
        numbers ** softplus(term.charge_power) * softplus(term.inverse_length),
        softplus(term.exponents),
        weights / weights.sum(),
    )


class FrozenZBL(nn.Module):
    """Replacement for a `ZBLRepulsion` with fixed parameters, on the CPU.

    Args:
        term: a `ZBLRepulsion` with the physnet cutoff function; it is not changed.
        coulomb_constant: eV Å.
        switch_off: Å, distance from which on the repulsion is zero.

    Attributes:
        term: the replaced term, for second derivatives.
    """

    # read at every step; PyTorch's modules are slow to find that an attribute is missing
    long_range = of_all_pairs = None
    reads_system = False

    def __init__(self, term: Any, coulomb_constant: float, switch_off: float) -> None:
        super().__init__()
        self.config, self.term = term.config, term
        numbers = numbers_of(term, coulomb_constant)
        self.arguments = (
            *(tensor.cpu().numpy() for tensor in numbers),
            float(term.config.cutoff),
            float(switch_off),
        )

    def linearize(self, graph: Graph, outputs: Any) -> LinearizedTerm:
        """Return energies [n_atoms] eV, and dE / d vectors [n_edges, 3] of their sum."""
        from attncalc.kernels import zbl_loop  # needs numba

        del outputs
        arrays = graph.arrays
        energies, gradient = np.zeros(len(arrays.species)), np.zeros((len(arrays.receivers), 3))
        zbl_loop.repel(*arrays[:6], *self.arguments, energies, gradient)
        return LinearizedTerm(energies, gradient, {})

    def forward(self, graph: Graph, outputs: Any) -> Tensor:
        """Return the energies [n_atoms] eV, float64."""
        del outputs
        return _Repel.apply(graph.vectors, graph, self)


class _Repel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors, graph, term):
        energies, gradient, _ = term.linearize(graph, None)
        ctx.graph, ctx.term = graph, term.term
        ctx.save_for_backward(vectors, graph.receivers, graph.senders, torch.as_tensor(gradient))
        return torch.as_tensor(energies)

    @staticmethod
    def backward(ctx, d_energies):
        vectors, i, j, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated
            energies = ctx.term(ctx.graph.with_vectors(vectors), None)
            (found,) = torch.autograd.grad(energies, vectors, d_energies, create_graph=True)
            return found, None, None
        # each atom has half of a pair's energy, whether one or both edges carry the gradient
        factor = (d_energies[i] + d_energies[j]) / 2
        return gradient * factor.unsqueeze(1), None, None
