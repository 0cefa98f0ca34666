"""Functions of the distance shared by the radial networks of all layers.

The networks of all layers, hundreds of functions of the distance, are to rounding combinations of
a few dozen: Chebyshev polynomials (`attncalc.kernels.collocation`) and a singular value
decomposition of their coefficients. So a filter costs a product with a small matrix, and its
gradient by the distance one with the transpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attncalc.kernels.collocation import CollocatedRadial

# Chebyshev nodes: in float32 rounding hides what 64 of them leave out
NODES = {torch.float32: 64, torch.float64: 128}
# singular values relative to the largest that are left out
NEGLIGIBLE = {torch.float32: 1e-8, torch.float64: 1e-14}


class LowRankRadial(nn.Module):
    """R(d): all radial networks f are R(d) W_f, with W_f in `weights`.

    Args:
        basis: maps lengths [n] Å to [n, num_basis].
        networks: from [n, num_basis] to [2, n, F]; theirs must not change any more.
        shortest: Å; shorter distances are outside the interpolation and give NaN.
        cutoff: Å, the longest distance.
        dtype: of the result; the polynomials are evaluated in float64.

    Attributes:
        weights: [r, 2 F] of every network.
    """

    combine: Tensor
    combine_slopes: Tensor

    def __init__(
        self,
        basis: nn.Module,
        networks: Sequence[nn.Module],
        shortest: float,
        cutoff: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        chebyshev = CollocatedRadial(basis, shortest, cutoff, NODES[dtype]).double()
        every = [torch.cat(list(chebyshev.coefficients(f)), dim=1) for f in networks]
        u, s, v = torch.linalg.svd(torch.cat(every, dim=1), full_matrices=False)
        rank = int((s > NEGLIGIBLE[dtype] * s[0]).sum())
        combine = u[:, :rank] * s[:rank]
        self.middle, self.half_width = chebyshev.middle, chebyshev.half_width
        self.weights = [w.to(dtype) for w in v[:rank].split(every[0].shape[1], dim=1)]
        self.order = chebyshev.order
        self.register_buffer("combine", combine.to(dtype))
        self.register_buffer("combine_slopes", (chebyshev.order.unsqueeze(1) * combine).to(dtype))

    def values_and_slopes(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/dd at lengths [P] Å, float64: [P, r] each.

        With x = (exp(-d) - m) / h = cos a: T_k = cos(k a), dT_k/dx = k sin(k a) / sin(a).
        """
        decay = torch.exp(-lengths)
        angle = torch.acos((decay - self.middle) / self.half_width)
        angles = angle.unsqueeze(1) * self.order
        values = torch.cos(angles).to(self.combine.dtype) @ self.combine
        slopes = torch.sin(angles).to(self.combine.dtype) @ self.combine_slopes
        chain = -decay / (self.half_width * torch.sin(angle))
        return values, slopes * chain.to(slopes.dtype).unsqueeze(1)
