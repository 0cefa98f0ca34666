"""The pair loop of So3krates' attention: filtered coefficients, and the messages they weigh.

`attend_plain` is the definition, in torch, differentiable as often as one likes. `attend_compiled`
does the same with Numba in one pass over the pairs that stores nothing per pair but its results,
with the reverse pass written out; it is differentiable once.

In both, head h of a receiver i and a sender j has the coefficient
alpha = C(d) / norm sum_a q_i,a w_ij,a k_j,a. The first H heads, of equal width, weigh the sender's
values; the following ones, one a degree, weigh the harmonics of that degree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Heads:
    """How features and harmonics are divided.

    Attributes:
        n_heads: H, of the features.
        degrees: l of the geometric heads.
        feature_norm, geometry_norm: what divides the coefficients of either kind.
    """

    n_heads: int
    degrees: tuple[int, ...]
    feature_norm: float
    geometry_norm: float


def attend_plain(
    projected: Tensor,
    filters: Tensor,
    envelope: Tensor,
    harmonics: Tensor,
    receivers: Tensor,
    heads: Heads,
) -> Tensor:
    """Messages of all pairs, both directions, summed at their receivers.

    Args:
        projected: [n_atoms, 5 F]: queries and keys (features, geometry each), values.
        filters: [P, 2 F]: of features, of geometry.
        envelope: [P].
        harmonics: [P, M]: Y(u) from receiver to sender of the pair as listed.
        receivers: [2 P]: of the pairs as listed, then reversed.
        heads: how features and harmonics are divided.

    Returns:
        [n_atoms, F + M]: updates of features and Euclidean variables.
    """
    width, n_degrees = projected.shape[1] // 5, len(heads.degrees)
    i, j = receivers.chunk(2)
    senders = torch.cat([j, i])
    orders = torch.tensor([2 * l + 1 for l in heads.degrees])
    sign = torch.tensor([(-1.0) ** l for l in heads.degrees]).repeat_interleave(orders)
    both = torch.cat([harmonics, harmonics * sign.to(harmonics)])
    queries = projected[:, : 2 * width].index_select(0, receivers)
    keys = projected[:, 2 * width : 4 * width].index_select(0, senders)
    values = projected[:, 4 * width :].index_select(0, senders)
    product = queries * keys * torch.cat([filters, filters])
    weight = torch.cat([envelope, envelope]).unsqueeze(1)
    features, geometry = product[:, :width], product[:, width:]
    alpha = features.unflatten(1, (heads.n_heads, -1)).sum(2) * weight / heads.feature_norm
    beta = geometry.unflatten(1, (n_degrees, -1)).sum(2) * weight / heads.geometry_norm
    sent = (values.unflatten(1, (heads.n_heads, -1)) * alpha.unsqueeze(2)).flatten(1)
    turned = beta.repeat_interleave(orders.to(beta.device), dim=1) * both
    messages = torch.cat([sent, turned], dim=1)
    return messages.new_zeros(len(projected), messages.shape[1]).index_add(0, receivers, messages)


def attend_compiled(
    projected: Tensor,
    filters: Tensor,
    envelope: Tensor,
    harmonics: Tensor,
    receivers: Tensor,
    heads: Heads,
) -> Tensor:
    """As `attend_plain`, on the CPU."""
    return _Attend.apply(projected, filters, envelope, harmonics, receivers, heads)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected, filters, envelope, harmonics, receivers, heads):
        tensors = [t.contiguous() for t in (projected, filters, envelope, harmonics, receivers)]
        n_atoms, width = projected.shape[0], projected.shape[1] // 5
        received = projected.new_zeros(n_atoms, width + harmonics.shape[1])
        _loops()[0](*_arrays(tensors), *_division(heads, projected), received.numpy())
        ctx.save_for_backward(*tensors)
        ctx.heads = heads
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx, d_received):
        tensors = ctx.saved_tensors
        gradients = [torch.zeros_like(t) for t in tensors[:4]]
        _loops()[1](
            *_arrays(tensors),
            *_division(ctx.heads, tensors[0]),
            d_received.contiguous().numpy(),
            *(g.numpy() for g in gradients),
        )
        return *gradients, None, None


def _arrays(tensors: list[Tensor]) -> list[np.ndarray]:
    return [t.detach().numpy() for t in tensors]


def _division(heads: Heads, like: Tensor) -> tuple[int, np.ndarray, Any, Any]:
    scalar = np.float32 if like.dtype == torch.float32 else np.float64
    return (
        heads.n_heads,
        np.array(heads.degrees, dtype=np.int64),
        scalar(1 / heads.feature_norm),
        scalar(1 / heads.geometry_norm),
    )


@functools.cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and reverse loop, compiled at their first call and kept in a file from then on."""
    from attncalc.kernels import attend_loops

    return attend_loops.forward, attend_loops.reverse
