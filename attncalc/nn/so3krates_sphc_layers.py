"""Layers of So3krates with spherical harmonic coordinates: attention, interaction, norm.

Symbols are those of `so3krates_sphc`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attncalc.basis.so3 import SphericalHarmonics, contract_orders, parity, repeat_over_orders
from attncalc.nn.layers import Dense, LayerNorm, TwinMLP, lecun_normal
from attncalc.nn.so3krates_sphc_config import So3kratesSphcConfig
from attncalc.nn.sphc_attention import (
    FarEdges,
    Neighbourhood,
    PublishedSoftmax,
    SmoothWindow,
    total_weights,
)
from attncalc.ops import ModuleWithConstants, safe_norm, segment_sum


@dataclass(frozen=True)
class Geometry:
    """Geometry that the layers read; P pairs within the cutoff, each in two directions.

    Attributes:
        receivers, senders: [2 P], first all pairs as listed, then all reversed.
        envelope: [P], C(d), exactly 0 for masked pairs.
        lengths: [P] Å.
        harmonics: [2, P, M], harmonics of the vector from the sender to the receiver.
        radial: [P, K], phi(d) C(d).
        far: pairs beyond the cutoff, for the non-local attention; None without it.
        n_atoms: [n_atoms], number of atoms in the system of each atom, in the network's dtype.
    """

    receivers: Tensor
    senders: Tensor
    envelope: Tensor
    lengths: Tensor
    harmonics: Tensor
    radial: Tensor
    far: FarEdges | None
    n_atoms: Tensor


class Layer(nn.Module):
    """Attention, then interaction between features and coordinates of one atom."""

    def __init__(self, config: So3kratesSphcConfig) -> None:
        super().__init__()
        self.attention = SphcAttention(config)
        self.norm_after_attention = Norm(config)
        self.interaction = Interaction(config)
        self.norm_after_interaction = Norm(config)

    def forward(
        self,
        features: Tensor,
        ev: Tensor,
        geometry: Geometry,
        harmonics: SphericalHarmonics,
        coupling: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the updated features [n_atoms, F] and ev [n_atoms, M]."""
        d_features, d_ev = self.attention(features, ev, geometry, harmonics)
        features, ev = self.norm_after_attention(features + d_features, ev + d_ev)
        features, ev = self.interaction(features, ev, coupling)
        return self.norm_after_interaction(features, ev)


class Norm(ModuleWithConstants):
    """Optional layer norm of the features, and optional learned length of each degree of chi."""

    repeat: Tensor

    def __init__(self, config: So3kratesSphcConfig) -> None:
        super().__init__()
        wanted = config.feature_norm == "layer"
        self.features = LayerNorm(config.num_features) if wanted else nn.Identity()
        self.lengths: nn.Parameter | None = None
        if config.sphc_norm == "degree":
            self.lengths = nn.Parameter(torch.ones(len(config.degrees)))
        self.register_constant("repeat", repeat_over_orders(config.degrees))

    def forward(self, features: Tensor, ev: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised features [n_atoms, F] and ev [n_atoms, M]."""
        features = self.features(features)
        if self.lengths is not None:
            lengths = degree_lengths(ev, self.repeat)
            factors = torch.where(
                lengths > 0, self.lengths / torch.where(lengths > 0, lengths, 1.0), 0.0
            )
            ev = ev * (factors @ self.repeat)
        return features, ev


def degree_lengths(ev: Tensor, repeat: Tensor) -> Tensor:
    """Return ||chi||_l [n, n_degrees] for `ev` [n, M]; the gradient of a zero length is 0."""
    squares = (ev * ev) @ repeat.T
    is_zero = squares == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt())


class Invariants(ModuleWithConstants):
    """One rotational invariant per degree: squares (smooth form) or lengths (published form)."""

    contract: Tensor
    repeat: Tensor

    def __init__(self, config: So3kratesSphcConfig) -> None:
        super().__init__()
        self.form = config.form
        self.register_constant("contract", contract_orders(config.degrees))
        self.register_constant("repeat", repeat_over_orders(config.degrees))

    def forward(self, ev: Tensor) -> Tensor:
        """Return [n, n_degrees] for `ev` [n, M]."""
        return (
            (ev * ev) @ self.contract if self.form == "smooth" else degree_lengths(ev, self.repeat)
        )


class SphcAttention(ModuleWithConstants):
    """Messages between atoms: H heads for features, one head per degree for coordinates.

    The coefficients of the features are alpha^f C(d), those of the coordinates alpha^g (C(d) + S).
    alpha is sum_a q_i,a w_ij,a k_j,a within a head, divided by the square root of its width.
    """

    to_heads: Tensor
    repeat: Tensor
    parity: Tensor

    def __init__(self, config: So3kratesSphcConfig) -> None:
        super().__init__()
        width, heads, n_degrees = config.num_features, config.num_heads, len(config.degrees)
        head, part = width // heads, width // n_degrees
        self.radial_mlp = TwinMLP(config.num_basis, config.radial_features, width)
        self.spherical_mlp = TwinMLP(n_degrees, config.spherical_features, width)
        # [head, in, (query, key, value)] and [degree, in, (query, key)], block-diagonal
        self.feature_projection = nn.Parameter(lecun_normal(heads, head, 3 * head))
        self.feature_bias = nn.Parameter(torch.zeros(heads, 1, 3 * head))
        self.geometry_projection = nn.Parameter(lecun_normal(n_degrees, part, 2 * part))
        self.geometry_bias = nn.Parameter(torch.zeros(n_degrees, 1, 2 * part))
        self.invariants = Invariants(config)
        self.neighbourhood = neighbourhood(config)
        sums = torch.zeros(2, width, max(heads, n_degrees), dtype=torch.float64)
        for kind, (count, size) in enumerate(((heads, head), (n_degrees, part))):
            for k in range(count):
                sums[kind, k * size : (k + 1) * size, k] = 1 / math.sqrt(size)
        self.register_constant("to_heads", sums)
        self.register_constant("repeat", repeat_over_orders(config.degrees))
        self.register_constant("parity", parity(config.degrees))
        self.heads, self.n_degrees = heads, n_degrees

    def forward(
        self, features: Tensor, ev: Tensor, geometry: Geometry, harmonics: SphericalHarmonics
    ) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the coordinates [n_atoms, M]."""
        n, width = features.shape
        queries, keys, values = self.project(features)
        filters = self.filters(ev, geometry)
        alpha_features, alpha_geometry = self.coefficients(queries, keys, filters, geometry)
        envelope = geometry.envelope.repeat(2).unsqueeze(1)
        share, totals = self.shares(ev, geometry)
        sent = values[geometry.senders].view(-1, self.heads, width // self.heads)
        feature_messages = ((alpha_features * envelope).unsqueeze(2) * sent).view(-1, width)
        coefficients = alpha_geometry * (envelope + share)
        ev_messages = (coefficients @ self.repeat) * geometry.harmonics.flatten(0, 1)
        messages = torch.cat([feature_messages, ev_messages], dim=1)
        received = segment_sum(messages, geometry.receivers, n)
        d_ev = received[:, width:]
        if self.neighbourhood is not None:
            d_ev = d_ev + self.from_far(queries[1], keys[1], ev, totals, geometry, harmonics)
        return received[:, :width], d_ev

    def project(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [2, n_atoms, F] (features, geometry), values [n_atoms, F]."""
        n, width = features.shape
        by_head = features.view(n, self.heads, -1).transpose(0, 1)
        by_degree = features.view(n, self.n_degrees, -1).transpose(0, 1)
        f = torch.baddbmm(self.feature_bias, by_head, self.feature_projection)
        g = torch.baddbmm(self.geometry_bias, by_degree, self.geometry_projection)
        f = f.view(self.heads, n, 3, -1).permute(2, 1, 0, 3).reshape(3, n, width)
        g = g.view(self.n_degrees, n, 2, -1).permute(2, 1, 0, 3).reshape(2, n, width)
        queries, keys = torch.stack([f[:2], g], dim=1).unbind(0)
        return queries, keys, f[2]

    def filters(self, ev: Tensor, geometry: Geometry) -> Tensor:
        """[2, P, F]: MLP(phi(d) C(d)) + MLP(invariants of chi_i - chi_j), features and geometry."""
        i, j = geometry.receivers.chunk(2)
        return self.radial_mlp(geometry.radial) + self.spherical_mlp(self.invariants(ev[j] - ev[i]))

    def coefficients(
        self, queries: Tensor, keys: Tensor, filters: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Return alpha^f [2 P, H] and alpha^g [2 P, n_degrees], without the cutoff function."""
        width = filters.shape[2]
        received = queries[:, geometry.receivers].view(2, 2, -1, width)  # [kind, direction, P, F]
        sent = keys[:, geometry.senders].view(2, 2, -1, width)
        product = (received * filters.unsqueeze(1) * sent).view(2, -1, width)
        alpha = torch.bmm(product, self.to_heads)
        return alpha[0, :, : self.heads], alpha[1, :, : self.n_degrees]

    def shares(self, ev: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Return S of the near pairs [2 P, 1] and the total weight of each receiver [n_atoms].

        Both are zero without non-local attention.
        """
        if self.neighbourhood is None:
            return ev.new_zeros(1, 1), ev.new_zeros(1)
        assert geometry.far is not None
        i, j = geometry.receivers, geometry.senders
        weights = self.neighbourhood.weight(ev[j] - ev[i], geometry.lengths.repeat(2))
        totals = total_weights(self.neighbourhood, ev, (i, weights), geometry.far)
        share = self.neighbourhood.share(weights, totals[i], geometry.n_atoms[i])
        return share.unsqueeze(1), totals

    def from_far(
        self,
        queries: Tensor,
        keys: Tensor,
        ev: Tensor,
        totals: Tensor,
        geometry: Geometry,
        harmonics: SphericalHarmonics,
    ) -> Tensor:
        """Return the updates of the coordinates [n_atoms, M] from pairs beyond the cutoff.

        For these pairs phi(d) C(d) = 0, so the radial part of the filter is a constant.
        """
        assert geometry.far is not None
        assert self.neighbourhood is not None
        chosen, mlp = self.neighbourhood, self.spherical_mlp
        width, n_ev = queries.shape[1], ev.shape[1]

        def on_edges(
            sent: Tensor,
            targets: Tensor,
            data: Sequence[Tensor],
            weights: Sequence[Tensor],
            receivers: Tensor,
            mask: Tensor,
        ) -> Tensor:
            del mask
            (vectors,) = data
            constant, *spherical = weights
            here = targets.index_select(0, receivers)
            difference = sent[:, :n_ev] - here[:, :n_ev]
            total, n_atoms = here[:, n_ev], here[:, n_ev + 1]
            lengths = safe_norm(vectors)
            share = chosen.share(chosen.weight(difference, lengths), total, n_atoms)
            hidden = silu(torch.addmm(spherical[1], self.invariants(difference), spherical[0]))
            filters = torch.addmm(constant, hidden, spherical[2])
            product = here[:, n_ev + 2 :] * filters * sent[:, n_ev:]
            alpha = product @ self.to_heads[1, :, : self.n_degrees]
            # from the sender to the receiver, against the edge
            along = harmonics(vectors / lengths.unsqueeze(1)) * self.parity
            messages = ((alpha * share.unsqueeze(1)) @ self.repeat) * along
            return segment_sum(messages, receivers, targets.shape[0])

        nothing = geometry.radial.new_zeros(1, geometry.radial.shape[1])
        n_hidden = mlp.second.shape[1]
        constant = self.radial_mlp(nothing)[1] + mlp.second_bias[1]
        weights = (
            constant,
            mlp.first[:, n_hidden:].contiguous(),
            mlp.first_bias[n_hidden:].contiguous(),
            mlp.second[1],
        )
        sources = torch.cat([ev, keys], dim=1)
        targets = torch.cat(
            [ev, totals.unsqueeze(1), geometry.n_atoms.unsqueeze(1), queries], dim=1
        )
        bytes_per_edge = (6 * width + 2 * n_hidden + 8 * n_ev) * ev.element_size()
        return geometry.far.sum_over(on_edges, sources, targets, weights, bytes_per_edge)


class Interaction(ModuleWithConstants):
    """Interaction between the features and the coordinates of one atom.

    With mu_l = sum over p < q of k_lpq [chi_p x chi_q]_l and I = the invariants,
    (a1, a2, b1, b2) = [x; I(chi)] W + c, a3 = I(mu) W3 + c3:
    x += a1 + a2 a3 (published form: then x is divided by sqrt(3)), chi += b1 chi + b2 mu.
    """

    repeat: Tensor

    def __init__(self, config: So3kratesSphcConfig) -> None:
        super().__init__()
        self.width, self.n_degrees = config.num_features, len(config.degrees)
        self.linear = Dense(self.width + self.n_degrees, 2 * (self.width + self.n_degrees))
        self.from_products = Dense(self.n_degrees, self.width)
        self.mixing = nn.Parameter(0.1 * torch.randn((self.n_degrees,) * 3))
        self.invariants = Invariants(config)
        self.register_constant("repeat", repeat_over_orders(config.degrees))
        self.shrink = 1.0 if config.form == "smooth" else 1 / math.sqrt(3)

    def forward(self, features: Tensor, ev: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated features [n_atoms, F] and ev [n_atoms, M], for `couplings`."""
        mixed = self.products(ev, coupling)
        outputs = self.linear(torch.cat([features, self.invariants(ev)], dim=1))
        a1, a2, b1, b2 = outputs.split([self.width] * 2 + [self.n_degrees] * 2, dim=1)
        a3 = self.from_products(self.invariants(mixed))
        features = (features + a1 + a2 * a3) * self.shrink
        return features, ev + (b1 @ self.repeat) * ev + (b2 @ self.repeat) * mixed

    def products(self, ev: Tensor, coupling: Tensor) -> Tensor:
        """Return mu [n_atoms, M]."""
        n_ev = ev.shape[1]
        repeat = self.repeat
        k = torch.einsum("lpq,la,pb,qc->abc", self.mixing, repeat, repeat, repeat)
        matrix = (k * coupling).permute(1, 2, 0).reshape(n_ev * n_ev, n_ev)
        return (ev.unsqueeze(2) * ev.unsqueeze(1)).flatten(1) @ matrix


def neighbourhood(config: So3kratesSphcConfig) -> Neighbourhood | None:
    """Return the weighting of the non-local attention; None without it."""
    if config.nonlocal_attention == "window":
        return SmoothWindow(config.sphc_cutoff, config.nonlocal_cutoff)
    if config.nonlocal_attention == "none":
        return None
    return PublishedSoftmax(config.sphc_cutoff if config.nonlocal_attention == "fixed" else None)
