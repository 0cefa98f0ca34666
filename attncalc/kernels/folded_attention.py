"""So3krates for weights that no longer change, in PyTorch.

`folded` equals `attncalc.nn.so3krates.So3krates`. What does not change during a simulation is
folded: block-diagonal projections become one matrix, radial networks functions of the distance that
all layers share (`attncalc.kernels.low_rank`), both filters one product (`attncalc.kernels.attend`).
Before the first layer atoms of a kind are equal, so that its coefficients are functions of the
distance for every two kinds.
"""

from __future__ import annotations

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
from attncalc.ops import with_modules

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

    def __init__(self, attention: Any, radial: Tensor, norms: Tensor, degrees: tuple[int, ...]) -> None:
        super().__init__()
        self.activation = attention.qk_activation
        self.width = len(norms) // 2
        queries, keys, values = _dense_projections(attention)
        self.register_buffer("queries", queries)
        self.register_buffer("sent", torch.cat([keys, values], dim=1))
        spherical = attention.spherical_mlp
        self.weights = Weights(
            first=spherical.first,
            first_bias=spherical.first_bias,
            last=torch.cat([torch.block_diag(*spherical.second), radial]) / norms,
            last_bias=spherical.second_bias.flatten() / norms,
            contract=attention.contract,
            repeat=torch.stack([attention.repeat, attention.repeat * parity(degrees).to(attention.repeat)]),
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


class FirstAttention(nn.Module):
    """As `FoldedAttention`, without Euclidean variables: coefficients for every two kinds of atoms.

    Args:
        attention: of the first layer.
    """

    def __init__(self, attention: FoldedAttention) -> None:
        super().__init__()
        self.attention = attention
        self._last: tuple[Tensor, Any] | None = None

    def forward(
        self, features: Tensor, ev: Tensor | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """As `FoldedAttention`; `features` do not depend on the geometry, ev is None."""
        last = self._last
        if last is None or last[0] is not features:
            self._last = last = (features, self._kinds(features))
        kinds = last[1]
        if kinds is None:
            return self.attention(features, ev, geometry)
        of_atoms, weights, bias, values = kinds
        w = self.attention.weights
        n_kinds, n_degrees = len(values), w.repeat.shape[1]
        n, n_pairs = len(features), geometry.pairs.shape[1]
        receivers, of_pairs = geometry.pairs.flatten(), of_atoms[geometry.pairs]
        of_senders = of_pairs.flip(0).flatten()
        every = torch.addmm(bias, geometry.radial, weights).view(-1, w.heads + n_degrees)
        rows = torch.arange(0, n_pairs * n_kinds**2, n_kinds**2).repeat(2) + (of_pairs.flatten() * n_kinds + of_senders)
        alpha = every.index_select(0, rows).view(2, n_pairs, w.heads + n_degrees) * geometry.envelope.unsqueeze(1)
        sums = alpha.new_zeros(n * n_kinds, w.heads).index_add(
            0, receivers * n_kinds + of_senders, alpha[:, :, : w.heads].flatten(0, 1)
        )
        received = torch.bmm(
            sums.view(n, n_kinds, w.heads).permute(2, 0, 1), values.unflatten(1, (w.heads, -1)).transpose(0, 1)
        )
        turned = torch.bmm(alpha[:, :, w.heads :], w.repeat) * geometry.harmonics
        d_ev = turned.new_zeros(n, turned.shape[2]).index_add(0, receivers, turned.flatten(0, 1))
        return received.transpose(0, 1).flatten(1), d_ev

    def _kinds(self, features: Tensor):
        kinds, of_atoms = torch.unique(features, dim=0, return_inverse=True)
        if len(kinds) > MOST_KINDS:
            return None
        queries, sent = self.attention.project(kinds)
        width, w = self.attention.width, self.attention.weights
        hidden = silu(w.first_bias) @ w.last[: len(w.first_bias)]
        functions = torch.cat([w.last[len(w.first_bias) :], (hidden + w.last_bias).unsqueeze(0)])
        parts = []
        for k, count in enumerate((w.heads, w.repeat.shape[1])):
            part = slice(k * width, (k + 1) * width)
            by_head = [t[:, part].unflatten(1, (count, -1)) for t in (queries, functions, sent)]
            parts.append(torch.einsum("ahc,rhc,bhc->rabh", *by_head))
        both = torch.cat(parts, dim=3).flatten(1)
        return of_atoms, both[:-1].contiguous(), both[-1].contiguous(), sent[:, 2 * width :]


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
    def __init__(self, network: Any, shortest: float) -> None:
        super().__init__()
        self.head, self.parity = network.head, network.parity
        config = network.config
        self.config = config
        self.embedding = RememberedEmbedding(network.embedding)
        dtype = network.parity.dtype
        import copy
        exact = copy.deepcopy(network).double()
        radial = LowRankRadial(
            exact.radial.basis,
            [layer.attention.radial_mlp for layer in exact.layers],
            shortest,
            config.cutoff,
            dtype,
        )
        self.geometry = PairGeometry(network.harmonics, radial, config.cutoff_function, config.cutoff)
        norms = norms_of_attention(config).to(dtype).flatten().repeat_interleave(config.num_features)
        attentions = [
            FoldedAttention(layer.attention, w, norms, config.degrees)
            for layer, w in zip(network.layers, radial.weights, strict=True)
        ]
        if config.ev_init_divisor is None and "before_attention" not in config.layer_norms:
            attentions[0] = FirstAttention(attentions[0])
        self.layers = nn.ModuleList(
            with_modules(layer, attention=a) for layer, a in zip(network.layers, attentions, strict=True)
        )

    def forward(self, graph: Graph) -> AtomOutputs:
        pairs = torch.stack([graph.receivers.index_select(0, graph.pairs), graph.senders.index_select(0, graph.pairs)])
        geometry = Geometry(pairs, *self.geometry(graph))
        features = self.embedding(graph)
        ev = self.initial_ev(geometry, graph.n_atoms)
        for layer in self.layers:
            features, ev = layer(features, ev, geometry)
        return AtomOutputs(energies=self.head(features))

    def initial_ev(self, geometry, n_atoms):
        if self.config.ev_init_divisor is None:
            return None
        i, j = geometry.pairs
        messages = geometry.envelope.unsqueeze(1) * geometry.harmonics / self.config.ev_init_divisor
        found = messages.new_zeros(n_atoms, messages.shape[1]).index_add(0, i, messages)
        return found.index_add(0, j, messages * self.parity)


@torch.no_grad()
def folded(network: Any, shortest: float) -> nn.Module:
    """A So3krates for inference that shares with `network` all but embedding and attention.

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
