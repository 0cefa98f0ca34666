"""Envelope, harmonics and radial functions of all pairs, with the gradient written out.

Equals what `attncalc.nn.so3krates.So3krates.geometry` evaluates, differentiable once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS, CUTOFF_SLOPES
from attncalc.graph import Graph
from attncalc.kernels.low_rank import LowRankRadial

# pairs whose radial functions are computed together, so that polynomials stay in the cache
BLOCK = 1024


class PairGeometry(nn.Module):
    """Functions of the pairs' vectors.

    Args:
        harmonics: `attncalc.basis.so3.SphericalHarmonics`.
        radial: functions of the distance.
        cutoff_function, cutoff: of the envelope.
    """

    slopes: Tensor

    def __init__(
        self, harmonics: Any, radial: LowRankRadial, cutoff_function: str, cutoff: float
    ) -> None:
        super().__init__()
        self.radial, self.harmonics, self.cutoff = radial, harmonics, cutoff
        self.above = [l for l in harmonics.degrees if l > 0]
        # of all degrees [M, 3 sum of 2l-1]; a constant does not change
        parts = [harmonics.slopes(l) for l in self.above]
        constant = len(harmonics.degrees) - len(self.above)
        of_each = [torch.block_diag(*(part[c].T for part in parts)) for c in range(3)]
        self.register_buffer("slopes", pad(torch.cat(of_each, dim=1), (0, 0, constant, 0)))
        self.envelope = CUTOFF_FUNCTIONS[cutoff_function]
        self.envelope_slope = CUTOFF_SLOPES[cutoff_function]

    def harmonics_reverse(self, d_harmonics: Tensor, below: Tensor) -> Tensor:
        """[P, 3]: gradient by u but for its component along u, which is arbitrary.

        Args:
            d_harmonics: [P, M].
            below: [P, ...]: Y_(l-1) for every degree l > 0.
        """
        slopes = (d_harmonics @ self.slopes).unflatten(1, (3, -1))
        return (slopes * below.unsqueeze(1)).sum(2)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Envelope [P], exactly 0 for masked pairs; harmonics [P, M]; radial functions [P, r]."""
        return _Geometry.apply(graph.vectors, graph.pairs, graph.edge_mask, self)


class _Geometry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors, pairs, edge_mask, of):
        mask = edge_mask.index_select(0, pairs)
        # a masked vector may be anything: one without direction or out of range would give NaN
        near = torch.where(
            mask.unsqueeze(1), vectors.index_select(0, pairs).double(), 0.5 * of.cutoff
        )
        lengths = torch.linalg.vector_norm(near, dim=1)
        directions = near / lengths.unsqueeze(1)
        dtype = of.radial.combine.dtype
        every = of.harmonics.every_degree(directions.to(dtype))
        harmonics = torch.cat([every[l] for l in of.harmonics.degrees], dim=1)
        below = torch.cat([every[l - 1] for l in of.above], dim=1)
        envelope = of.envelope(lengths, of.cutoff) * mask
        blocks = [of.radial.values_and_slopes(block) for block in lengths.split(BLOCK)]
        radial, radial_slopes = map(torch.cat, zip(*blocks, strict=True))
        slope = of.envelope_slope(lengths, of.cutoff) * mask
        ctx.save_for_backward(lengths, directions, below, slope.to(dtype), radial_slopes, pairs)
        ctx.of, ctx.n_edges = of, len(vectors)
        return envelope.to(dtype), harmonics, radial

    @staticmethod
    @once_differentiable
    def backward(ctx, d_envelope, d_harmonics, d_radial):
        lengths, directions, below, slope, radial_slopes, pairs = ctx.saved_tensors
        d_lengths = d_envelope * slope + (d_radial * radial_slopes).sum(1)
        along = ctx.of.harmonics_reverse(d_harmonics, below).double()
        radially = (along * directions).sum(1)
        outward = d_lengths - radially / lengths
        gradient = along / lengths.unsqueeze(1) + directions * outward.unsqueeze(1)
        zeros = gradient.new_zeros(ctx.n_edges, 3)
        return zeros.index_copy_(0, pairs, gradient), None, None, None
