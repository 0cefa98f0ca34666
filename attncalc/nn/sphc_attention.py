"""Non-local attention between atoms that are close in spherical harmonic coordinates.

Frank, Unke, Müller, NeurIPS 2022 (arXiv 2205.14276): atoms that are far apart but have similar
environments exchange the orientations of these. Similar means that their coordinates chi are close;
Delta_ij^2 = |chi_i - chi_j|^2 over all degrees.

| published ("fixed", "dynamic")                   | ours ("window")                            |
|--------------------------------------------------|--------------------------------------------|
| p_ij = exp(Delta_ij) / sum over k of exp(..)     | w_ij = (1 - Delta_ij^2 / rho^2)^3 L(d_ij)  |
| S_ij = poly6(p_ij / kappa), kappa fixed or 1 / N | S_ij = w_ij / (1 + sum over k of w_ik)     |
| all pairs of a molecule, at any distance         | L: 1 up to half of `nonlocal_cutoff`, 0 at |
|                                                  | its end                                    |
| Delta has no slope at 0; S depends on atoms that | smooth; a molecule far away changes        |
| are infinitely far away                          | nothing                                    |

A window in Delta alone is not enough: equivalent atoms of two copies of a molecule have Delta = 0
at any distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attncalc.basis.cutoff import physnet
from attncalc.ops import safe_norm, segment_sum
from attncalc.recompute import OnChunk, chunks_of, sum_in_chunks

# bytes: sums over far pairs for which autograd would keep more are done in chunks of this size,
# which the backward pass computes again; this is faster than using the memory
KEPT_AT_ONCE = 1 << 27


class Neighbourhood(Protocol):
    """Weighting of pairs of atoms in the non-local attention.

    The share of a pair is `share(weight, total weight of its receiver, atoms in its system)`.
    """

    first: float
    """Initial value of the total weight."""

    def weight(self, differences: Tensor, lengths: Tensor) -> Tensor:
        """Return weights [n] >= 0 for differences chi_j - chi_i [n, M] and distances [n] Å."""
        ...

    def share(self, weights: Tensor, totals: Tensor, n_atoms: Tensor) -> Tensor:
        """Return S [n]; the arguments are [n] each."""
        ...


class PublishedSoftmax:
    """Weighting of the paper: a softmax over all pairs, of which only small values count.

    Args:
        kappa: value from which on the share is 0; None for 1 / number of atoms.
    """

    first = 0.0

    def __init__(self, kappa: float | None) -> None:
        self.kappa = kappa

    def weight(self, differences: Tensor, lengths: Tensor) -> Tensor:
        """Return exp(Delta); coordinates are of the order of 1, so nothing overflows."""
        del lengths
        return torch.exp(safe_norm(differences))

    def share(self, weights: Tensor, totals: Tensor, n_atoms: Tensor) -> Tensor:
        """Return 1 - 28 s^6 + 48 s^7 - 21 s^8 for s = p / kappa < 1, else 0."""
        p = weights / totals
        if self.kappa is None:
            # the published code rounds 1 / N to float32
            s = p / n_atoms.to(torch.float32).reciprocal().to(p.dtype)
        else:
            s = p / self.kappa
        inside = torch.where(s < 1, s, 1.0)
        return 1 - inside**6 * (28 + inside * (-48 + 21 * inside))


class SmoothWindow:
    """Our weighting: smooth windows in SPHC space and in distance; shares sum to less than 1.

    Args:
        radius: radius rho of the window in SPHC space.
        cutoff: distance at which the window in space ends, Å.
    """

    first = 1.0

    def __init__(self, radius: float, cutoff: float) -> None:
        self.radius, self.cutoff = radius, cutoff

    def weight(self, differences: Tensor, lengths: Tensor) -> Tensor:
        """Return (1 - Delta^2 / rho^2)^3 L(d) inside the window, else 0."""
        inside = 1 - (differences * differences).sum(1) / self.radius**2
        # full weight up to half the cutoff: this attention is meant for distant pairs
        beyond_half = (2 * lengths - self.cutoff).clamp(min=0.0)
        return inside.clamp(min=0.0) ** 3 * physnet(beyond_half, self.cutoff)

    def share(self, weights: Tensor, totals: Tensor, n_atoms: Tensor) -> Tensor:
        """Return w / (1 + sum of w); `totals` contain the 1."""
        del n_atoms
        return weights / totals


@dataclass(frozen=True)
class FarEdges:
    """Pairs beyond the local cutoff, in both directions, sorted by receiver.

    Attributes:
        receivers, senders: [n_far].
        vectors: [n_far, 3] Å.
        n_receivers: number of atoms.
    """

    receivers: Tensor
    senders: Tensor
    vectors: Tensor
    n_receivers: int

    @property
    def n_edges(self) -> int:
        return self.receivers.shape[0]

    def sum_over(
        self,
        on_edges: OnChunk,
        sources: Tensor,
        targets: Tensor,
        weights: Sequence[Tensor],
        bytes_per_edge: int,
    ) -> Tensor:
        """Return the sum of `on_edges` at each receiver, at once or in chunks of bounded memory.

        Args:
            on_edges: the computation; edge data are the vectors.
            sources: [n_atoms, ...]; each edge gets the row of its sender.
            targets: [n_atoms, ...].
            weights: passed to `on_edges`.
            bytes_per_edge: memory that autograd would keep per edge.
        """
        most = max(1, KEPT_AT_ONCE // bytes_per_edge)
        fits = self.n_edges <= most
        # far edges are selected, none is padding
        everything = torch.ones_like(self.receivers, dtype=torch.bool)
        return sum_in_chunks(
            on_edges,
            () if fits else chunks_of(self.receivers, self.n_receivers, most),
            (self.receivers, self.senders, everything),
            sources,
            targets,
            [self.vectors],
            weights,
        )


def total_weights(
    neighbourhood: Neighbourhood,
    ev: Tensor,
    near: tuple[Tensor, Tensor],
    far: FarEdges,
) -> Tensor:
    """Return [n_atoms]: `neighbourhood.first` plus the weights of all pairs of each receiver.

    Args:
        neighbourhood: the weighting.
        ev: chi [n_atoms, M].
        near: receivers and weights of the pairs within the local cutoff, [n_near] each.
        far: all other pairs.
    """

    def on_edges(
        sent: Tensor,
        targets: Tensor,
        data: Sequence[Tensor],
        weights: Sequence[Tensor],
        receivers: Tensor,
        mask: Tensor,
    ) -> Tensor:
        del weights, mask
        (vectors,) = data
        differences = sent - targets.index_select(0, receivers)
        of_edges = neighbourhood.weight(differences, safe_norm(vectors))
        return segment_sum(of_edges, receivers, targets.shape[0])

    # two gathers, their difference, its square, and what belongs to the length
    bytes_per_edge = (4 * ev.shape[1] + 16) * ev.element_size()
    of_far = far.sum_over(on_edges, ev, ev, [], bytes_per_edge)
    of_near = segment_sum(near[1], near[0], far.n_receivers)
    return neighbourhood.first + of_near + of_far
