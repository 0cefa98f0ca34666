"""So3krates for weights that no longer change, in PyTorch.

`folded` equals `attncalc.nn.so3krates.So3krates`. What does not change during a simulation is
folded: block-diagonal projections become one matrix, radial networks combinations of functions
that all layers share (`attncalc.kernels.low_rank`), both filters one product
(`attncalc.kernels.attend`). Before the first layer atoms of a kind are equal: its coefficients are
functions of the distance for every two kinds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attncalc.basis.so3 import parity
from attncalc.graph import AtomOutputs, Graph
from attncalc.kernels.attend import Weights, attend
from attncalc.kernels.low_rank import LowRankRadial
from attncalc.kernels.pair_geometry import PairGeometry
from attncalc.kernels.so3krates.tables import norms_of_attention
from attncalc.ops import segment_sum, with_modules

# kinds of atoms in a structure up to which the first layer goes by kinds
MOST_KINDS = 8


@dataclass(frozen=True)
class Geometry:
    """What the layers need of the geometry; P pairs.

    Attributes:
        pairs: [2, P]: receivers and senders of the pairs as listed.
        envelope: [P], C(d), exactly 0 for masked pairs.
        harmonics: [P, M]: Y(u) as listed.
        radial: [P, r]: functions of the distance.
    """

    pairs: Tensor
    envelope: Tensor
    harmonics: Tensor
    radial: Tensor


class FoldedAttention(nn.Module):
    """Takes the place of an `EuclideanAttention` whose weights no longer change.

    Args:
        attention: stays as it is.
        radial: [r, 2 F], the radial networks' weights.
        norms: [2 F], what divides the coefficients.
        degrees: of the Euclidean variables.
    """

    queries: Tensor
    sent: Tensor

    def __init__(
        self, attention: Any, radial: Tensor, norms: Tensor, degrees: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.activation = attention.qk_activation
        self.width = len(norms) // 2
        queries, keys, values = _dense_projections(attention)
        self.register_buffer("queries", queries)
        self.register_buffer("sent", torch.cat([keys, values], dim=1))
        spherical, repeat = attention.spherical_mlp, attention.repeat
        self.weights = Weights(
            first=spherical.first,
            first_bias=spherical.first_bias,
            last=torch.cat([torch.block_diag(*spherical.second), radial]) / norms,
            last_bias=spherical.second_bias.flatten() / norms,
            contract=attention.contract,
            repeat=torch.stack([repeat, repeat * parity(degrees).to(repeat)]),
            heads=attention.heads,
            degrees=np.array(degrees, dtype=np.int64),
        )

    def forward(
        self, features: Tensor, ev: Tensor | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        queries, sent = self.project(features)
        if ev is None:
            ev = features.new_zeros(len(features), geometry.harmonics.shape[1])
        return attend(
            queries,
            sent,
            ev,
            geometry.radial,
            geometry.envelope,
            geometry.harmonics,
            geometry.pairs,
            self.weights,
        )

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [n, 2 F]; keys and values [n, 3 F]."""
        queries, sent = features @ self.queries, features @ self.sent
        if self.activation is silu:
            keys, values = sent.split((2 * self.width, self.width), dim=1)
            queries, sent = silu(queries), torch.cat([silu(keys), values], dim=1)
        return queries, sent


@dataclass(frozen=True)
class Kinds:
    """Atoms whose features are equal before the first layer.

    Attributes:
        of_atoms: [n_atoms], the kind of every atom.
        coefficients: [r, n_kinds^2 (H + n_degrees)], of R(d), for receivers and senders of two
            kinds.
        constant: what is added to that, likewise without r.
        values: [n_kinds, F].
    """

    of_atoms: Tensor
    coefficients: Tensor
    constant: Tensor
    values: Tensor

    @classmethod
    def of(cls, features: Tensor, attention: FoldedAttention) -> Kinds | None:
        """Of bare atoms [n_atoms, F]; None where there are too many."""
        kinds, of_atoms = torch.unique(features, dim=0, return_inverse=True)
        if len(kinds) > MOST_KINDS:
            return None
        queries, sent = attention.project(kinds)
        w, width, n_hidden = attention.weights, attention.width, len(attention.weights.first_bias)
        resting = silu(w.first_bias) @ w.last[:n_hidden] + w.last_bias
        functions = torch.cat([w.last[n_hidden:], resting.unsqueeze(0)])
        coefficients = []
        for kind, count in enumerate((w.heads, len(w.degrees))):
            mine = slice(kind * width, (kind + 1) * width)
            by_head = (t[:, mine].unflatten(1, (count, -1)) for t in (queries, functions, sent))
            coefficients.append(torch.einsum("ahc,rhc,bhc->rabh", *by_head))
        both = torch.cat(coefficients, dim=3).flatten(1)
        return cls(of_atoms, both[:-1], both[-1], sent[:, 2 * width :])


class FirstAttention(nn.Module):
    """A `FoldedAttention` before which features are those of bare atoms and chi is zero.

    Args:
        attention: of the first layer.
    """

    def __init__(self, attention: FoldedAttention) -> None:
        super().__init__()
        self.attention = attention
        self._last: tuple[Tensor, Kinds | None] | None = None

    def forward(self, features: Tensor, ev: None, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        last = self._last  # one read: another thread may replace it meanwhile
        if last is None or last[0] is not features:
            self._last = last = (features, Kinds.of(features, self.attention))
        kinds = last[1]
        if kinds is None:
            return self.attention(features, ev, geometry)
        weights, n_atoms = self.attention.weights, len(features)
        n_kinds, heads = len(kinds.values), weights.heads
        receivers, of_pairs = geometry.pairs.flatten(), kinds.of_atoms[geometry.pairs]
        of_receivers, of_senders = of_pairs.flatten(), of_pairs.flip(0).flatten()
        alpha, beta = self._coefficients(kinds, of_receivers * n_kinds + of_senders, geometry)
        # values depend on the sender's kind alone: coefficients are summed first
        sums = alpha.new_zeros(n_atoms * n_kinds, heads)
        sums = sums.index_add(0, receivers * n_kinds + of_senders, alpha.flatten(0, 1))
        by_head = sums.view(n_atoms, n_kinds, heads).permute(2, 0, 1)
        values = kinds.values.unflatten(1, (heads, -1)).transpose(0, 1)
        turned = torch.bmm(beta, weights.repeat) * geometry.harmonics
        return (
            torch.bmm(by_head, values).transpose(0, 1).flatten(1),
            segment_sum(turned.flatten(0, 1), receivers, n_atoms),
        )

    def _coefficients(self, kinds: Kinds, which: Tensor, geometry: Geometry) -> Sequence[Tensor]:
        """[2, P, H] and [2, P, n_degrees], for pairs of kinds `which` [2 P]."""
        n_heads = self.attention.weights.heads, len(self.attention.weights.degrees)
        n_pairs, n_which = geometry.pairs.shape[1], len(kinds.values) ** 2
        every = torch.addmm(kinds.constant, geometry.radial, kinds.coefficients)
        rows = torch.arange(0, n_pairs * n_which, n_which).repeat(2) + which
        bare = every.view(-1, sum(n_heads)).index_select(0, rows)
        both = bare.view(2, n_pairs, sum(n_heads)) * geometry.envelope.unsqueeze(1)
        return both.split(n_heads, dim=2)


class RememberedEmbedding(nn.Module):
    """Equals an `Embedding` whose weights no longer change; computed again only for other atoms.

    During a simulation elements, charge and spin stay, and with them the bare atoms' features.

    Args:
        embedding: stays as it is.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self._last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def forward(self, graph: Any) -> Tensor:
        """[n_atoms, F]."""
        inputs = (graph.species, graph.system_idx, graph.charge, graph.spin)
        last = self._last  # one read: another thread may replace it meanwhile
        if last is not None and all(map(torch.equal, inputs, last[0])):
            return last[1]
        features = self.embedding(graph)
        self._last = (tuple(tensor.clone() for tensor in inputs), features)
        return features


class FoldedSo3krates(nn.Module):
    """A `So3krates` whose weights no longer change; shares all but embedding and attention.

    Args:
        network: stays as it is.
        shortest: Å; no distance may be shorter.
    """

    def __init__(self, network: Any, shortest: float) -> None:
        super().__init__()
        self.config = config = network.config
        dtype = network.parity.dtype
        exact = copy.deepcopy(network).to(torch.float64)
        networks = [layer.attention.radial_mlp for layer in exact.layers]
        radial = LowRankRadial(exact.radial.basis, networks, shortest, config.cutoff, dtype)
        norms = norms_of_attention(config).flatten().repeat_interleave(config.num_features)
        every = [
            FoldedAttention(layer.attention, weights, norms.to(dtype), config.degrees)
            for layer, weights in zip(network.layers, radial.weights, strict=True)
        ]
        attentions: list[nn.Module] = [*every]
        if config.ev_init_divisor is None and "before_attention" not in config.layer_norms:
            attentions[0] = FirstAttention(every[0])
        self.geometry = PairGeometry(
            network.harmonics, radial, config.cutoff_function, config.cutoff
        )
        self.embedding = RememberedEmbedding(network.embedding)
        self.layers = nn.ModuleList(
            with_modules(layer, attention=attention)
            for layer, attention in zip(network.layers, attentions, strict=True)
        )
        self.head, self.parity = network.head, network.parity

    def forward(self, graph: Graph) -> AtomOutputs:
        """Energies per atom [n_atoms], before scale and reference energies."""
        ends = (end.index_select(0, graph.pairs) for end in (graph.receivers, graph.senders))
        geometry = Geometry(torch.stack(list(ends)), *self.geometry(graph))
        features = self.embedding(graph)
        ev = self.initial_ev(geometry, graph.n_atoms)
        for layer in self.layers:
            features, ev = layer(features, ev, geometry)
        return AtomOutputs(energies=self.head(features))

    def initial_ev(self, geometry: Geometry, n_atoms: int) -> Tensor | None:
        """[n_atoms, M], or None for zero."""
        if self.config.ev_init_divisor is None:
            return None
        messages = geometry.envelope.unsqueeze(1) * geometry.harmonics
        both = torch.cat([messages, messages * self.parity])
        return segment_sum(both, geometry.pairs.flatten(), n_atoms) / self.config.ev_init_divisor


@torch.no_grad()
def folded(network: Any, shortest: float) -> nn.Module:
    """A So3krates for inference, in the network's dtype.

    Args:
        network: its weights must not change any more; stays as it is.
        shortest: Å; no distance may be shorter.
    """
    return FoldedSo3krates(network, shortest)


def _dense_projections(attention: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [F, 2 F] (features, geometry), keys likewise, values [F, F]."""
    head = attention.feature_projection.shape[1]
    part = attention.geometry_projection.shape[1]
    feature = [torch.block_diag(*p) for p in attention.feature_projection.split(head, dim=2)]
    geometry = [torch.block_diag(*p) for p in attention.geometry_projection.split(part, dim=2)]
    return (
        torch.cat([feature[0], geometry[0]], dim=1),
        torch.cat([feature[1], geometry[1]], dim=1),
        feature[2],
    )
