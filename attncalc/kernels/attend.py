"""The pair loop of So3krates' attention: filters, coefficients and the messages they weigh.

Head h of a receiver i and a sender j has the coefficient alpha = C(d) sum_a q_i,a w_ij,a k_j,a,
w = silu(I(chi_j - chi_i) W1 + b1) W2 + R(d) W3 + b2. The first H heads weigh the sender's values;
the following ones, one a degree, weigh the harmonics of that degree.

Pairs are visited in blocks that stay in the cache; the reverse pass, which is written out,
computes them again. Filters are matrix products. What follows them is compiled loops where numba is
installed, else PyTorch: there arrays [2, B, ...] hold both directions of B pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from attncalc.compiled import has_numba

# pairs in a block
BLOCK = 512


class Weights(NamedTuple):
    """Of one attention; norms of the coefficients are folded into `last` and `last_bias`.

    Attributes:
        first, first_bias: [n_degrees, F/2], [F/2]: hidden layer of the spherical filters.
        last, last_bias: [F/2 + r, 2 F], [2 F]: from it and R(d) to both filters.
        contract: [M, n_degrees]: squares of Euclidean variables to invariants.
        repeat: [2, n_degrees, M]: copies to all orders; times (-1)^l for the second direction.
        heads: H.
        degrees: l of the geometric heads, [n_degrees].
    """

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor
    contract: Tensor
    repeat: Tensor
    heads: int
    degrees: NDArray[np.int64]


def attend(
    queries: Tensor,
    sent: Tensor,
    ev: Tensor,
    radial: Tensor,
    envelope: Tensor,
    harmonics: Tensor,
    pairs: Tensor,
    weights: Weights,
) -> tuple[Tensor, Tensor]:
    """Messages of all pairs, both directions, summed at their receivers; differentiable once.

    Args:
        queries: [n_atoms, 2 F]: for features, for geometry.
        sent: [n_atoms, 3 F]: keys likewise, values.
        ev: [n_atoms, M].
        radial: [P, r]: R(d).
        envelope: [P].
        harmonics: [P, M]: Y(u) from i to j.
        pairs: [2, P]: i, j.
        weights: of the attention.

    Returns:
        Updates of features [n_atoms, F] and Euclidean variables [n_atoms, M].
    """
    return _Attend.apply(queries, sent, ev, radial, envelope, harmonics, pairs, weights)


def filters(ev_i: Tensor, ev_j: Tensor, radial: Tensor, weights: Weights) -> tuple[Tensor, ...]:
    """w [B, 2 F]; and chi_j - chi_i and what SiLU is taken of, for the reverse pass."""
    difference = ev_j - ev_i
    invariants = (difference * difference) @ weights.contract
    before = torch.addmm(weights.first_bias, invariants, weights.first)
    inputs = torch.cat([silu(before), radial], dim=1)
    return torch.addmm(weights.last_bias, inputs, weights.last), difference, before


def filters_reverse(
    d_filters: Tensor, difference: Tensor, before: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Gradients by chi_j - chi_i [B, M] and R(d) [B, r]."""
    d_inputs = d_filters @ weights.last.T
    d_hidden, d_radial = d_inputs[:, : before.shape[1]], d_inputs[:, before.shape[1] :]
    d_before = torch.ops.aten.silu_backward(d_hidden, before)
    d_squares = d_before @ weights.first.T @ weights.contract.T
    return 2 * d_squares * difference, d_radial


def over_heads(products: Tensor, heads: int) -> Tensor:
    """[2, B, F] -> [2, B, heads]: sums over each head's features."""
    return products.unflatten(2, (heads, -1)).sum(3)


def times_heads(features: Tensor, factors: Tensor) -> Tensor:
    """[2, B, F] times one number a head [2, B, heads]."""
    return (features.unflatten(2, (factors.shape[2], -1)) * factors.unsqueeze(3)).flatten(2)


class _Block:
    """Some of the pairs, with their filters."""

    def __init__(self, tensors: Sequence[Tensor], chosen: slice, weights: Weights) -> None:
        self.queries, self.sent, ev, radial, envelope, harmonics, pairs = tensors
        self.weights, self.chosen = weights, chosen
        self.i, self.j = pairs[:, chosen]
        self.envelope, self.harmonics = envelope[chosen], harmonics[chosen]
        ends = ev.index_select(0, self.i), ev.index_select(0, self.j)
        self.filters, self.difference, self.before = filters(*ends, radial[chosen], weights)

    def add_messages(self, features: Tensor, geometry: Tensor) -> None:
        """Adds what atoms receive, [n_atoms, F] and [n_atoms, M]."""
        raise NotImplementedError

    def add_gradients(
        self, d_features: Tensor, d_geometry: Tensor, d_queries: Tensor, d_sent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reverse of `add_messages`: adds to d_queries and d_sent; returns gradients by the
        block's filters, envelope and harmonics.
        """
        raise NotImplementedError


class _CompiledBlock(_Block):
    """By `attncalc.kernels.attend_loops`."""

    def add_messages(self, features: Tensor, geometry: Tensor) -> None:
        _loops()[0](*self._arrays(), features.numpy(), geometry.numpy())

    def add_gradients(
        self, d_features: Tensor, d_geometry: Tensor, d_queries: Tensor, d_sent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = (
            torch.zeros_like(self.filters),
            torch.zeros_like(self.envelope),
            torch.zeros_like(self.harmonics),
        )
        arguments = (d_features.contiguous(), d_geometry.contiguous(), d_queries, d_sent, *found)
        _loops()[1](*self._arrays(), *(tensor.numpy() for tensor in arguments))
        return found

    def _arrays(self) -> tuple[Any, ...]:
        of_atoms = (self.queries, self.sent)
        of_pairs = (self.filters, self.envelope, self.harmonics, self.i, self.j)
        arrays = (tensor.numpy() for tensor in (*of_atoms, *of_pairs))
        return *arrays, self.weights.heads, self.weights.degrees


class _PlainBlock(_Block):
    """In PyTorch."""

    def __init__(self, tensors: Sequence[Tensor], chosen: slice, weights: Weights) -> None:
        super().__init__(tensors, chosen, weights)
        self.receivers, self.senders = torch.cat([self.i, self.j]), torch.cat([self.j, self.i])
        self.width = width = self.queries.shape[1] // 2
        self.q = _both(self.queries, self.receivers)
        sent = _both(self.sent, self.senders)
        self.k, self.v = sent[:, :, : 2 * width], sent[:, :, 2 * width :]
        self.product = self.q * self.k
        filtered = self.product * self.filters
        self.bare = (
            over_heads(filtered[:, :, :width], weights.heads),
            over_heads(filtered[:, :, width:], len(weights.degrees)),
        )
        self.alpha, self.beta = (bare * self.envelope.unsqueeze(1) for bare in self.bare)

    def add_messages(self, features: Tensor, geometry: Tensor) -> None:
        messages = times_heads(self.v, self.alpha).flatten(0, 1)
        turned = torch.bmm(self.beta, self.weights.repeat) * self.harmonics
        features.index_add_(0, self.receivers, messages)
        geometry.index_add_(0, self.receivers, turned.flatten(0, 1))

    def add_gradients(
        self, d_features: Tensor, d_geometry: Tensor, d_queries: Tensor, d_sent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, repeat, envelope = self.width, self.weights.repeat, self.envelope.unsqueeze(1)
        d_messages = _both(d_features, self.receivers)
        d_turned = _both(d_geometry, self.receivers)
        d_alpha = over_heads(d_messages * self.v, self.alpha.shape[2])
        d_beta = torch.bmm(d_turned * self.harmonics, repeat.transpose(1, 2))
        d_harmonics = (d_turned * torch.bmm(self.beta, repeat)).sum(0)
        d_envelope = (d_alpha * self.bare[0]).sum((0, 2)) + (d_beta * self.bare[1]).sum((0, 2))
        d_product = torch.empty_like(self.q)
        for part, d in ((d_product[:, :, :width], d_alpha), (d_product[:, :, width:], d_beta)):
            part.unflatten(2, (d.shape[2], -1)).copy_((d * envelope).unsqueeze(3))
        d_filters = (d_product[0] * self.product[0]).addcmul_(d_product[1], self.product[1])
        d_product *= self.filters
        d_keys_values = torch.cat([d_product * self.q, times_heads(d_messages, self.alpha)], dim=2)
        d_queries.index_add_(0, self.receivers, (d_product * self.k).flatten(0, 1))
        d_sent.index_add_(0, self.senders, d_keys_values.flatten(0, 1))
        return d_filters, d_envelope, d_harmonics


def _both(rows: Tensor, index: Tensor) -> Tensor:
    """[n_atoms, ...] -> [2, B, ...]."""
    return rows.index_select(0, index).unflatten(0, (2, -1))


def _blocks(tensors: Sequence[Tensor], weights: Weights) -> Iterator[_Block]:
    kind = _CompiledBlock if has_numba() else _PlainBlock
    for first in range(0, tensors[-1].shape[1], BLOCK):
        yield kind(tensors, slice(first, first + BLOCK), weights)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        *tensors, weights = arguments
        queries, ev = tensors[0], tensors[2]
        features = queries.new_zeros(len(queries), queries.shape[1] // 2)
        geometry = torch.zeros_like(ev)
        ctx.only = None
        for block in _blocks(tensors, weights):
            block.add_messages(features, geometry)
            # a small structure is one block, and that is kept
            ctx.only = [block] if tensors[-1].shape[1] <= BLOCK else None
        ctx.save_for_backward(*tensors)
        ctx.weights = weights
        return features, geometry

    @staticmethod
    @once_differentiable
    def backward(ctx, d_features, d_geometry):
        tensors = ctx.saved_tensors
        d_queries, d_sent, d_ev, *d_pairs = map(torch.zeros_like, tensors[:-1])
        for block in ctx.only or _blocks(tensors, ctx.weights):
            d_filters, *found = block.add_gradients(d_features, d_geometry, d_queries, d_sent)
            d_difference, d_radial = filters_reverse(
                d_filters, block.difference, block.before, block.weights
            )
            d_ev.index_add_(0, block.j, d_difference).index_add_(0, block.i, d_difference, alpha=-1)
            for whole, part in zip(d_pairs, (d_radial, *found), strict=True):
                whole[block.chosen] = part
        return d_queries, d_sent, d_ev, *d_pairs, None, None


@functools.cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and reverse loop, compiled at their first call and kept in a file from then on."""
    from attncalc.kernels import attend_loops

    return attend_loops.forward, attend_loops.reverse
