"""So3krates, Euclidean form: attention over Euclidean variables instead of tensor products.

Frank, Unke, Müller, Chmiela, "A Euclidean transformer for fast and stable machine learned force
fields", Nat. Commun. 15, 6539 (2024), and the variant of it inside SO3LR (JACS 147, 33723, 2025).

| paper            | here                                                                   |
|------------------|------------------------------------------------------------------------|
| x_i              | features [n_atoms, F]                                                  |
| chi_i            | ev [n_atoms, M], M = sum of 2l+1: "Euclidean variables"                |
| phi(d), C(d)     | radial basis [n_pairs, K], envelope [n_pairs, 1]                       |
| Y(u_ij)          | harmonics [n_pairs, M] of each `Direction`                             |
| I(chi)           | invariants [.., n_degrees]: sum_m chi_lm^2 / sqrt(2l+1)                |
| w^f, w^g         | filters [2, n_pairs, F], first index: features, geometry               |
| alpha^f, alpha^g | coefficients [n_pairs, H], [n_pairs, n_degrees] of each `Direction`    |

Attention coefficients are plain scalar products times C(d), without a softmax, so that the message
of a neighbour goes smoothly to zero at the cutoff.

d, C, phi, I and therefore both filters are the same for the pairs (i, j) and (j, i), and
Y(-u) = (-1)^l Y(u). Every function of a pair is evaluated once for both directions. The two
directions are processed one after the other: first i receives from j, then j from i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.radial import RADIAL_BASES, mean_square
from attncalc.basis.so3 import SphericalHarmonics, contract_orders, parity, repeat_over_orders
from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.layers import (
    ACTIVATIONS,
    ChargeHead,
    Dense,
    Embedding,
    EnergyHead,
    HirshfeldHead,
    LayerNorm,
    ProjectedMLP,
    ResidualMLP,
    TwinMLP,
    lecun_normal,
    with_species,
)
from attncalc.ops import ModuleWithConstants, safe_norm, segment_sum
from attncalc.options import (
    cutoff_radius,
    degrees_of_width,
    one_of,
    positive,
    true_or_false,
    whole_number,
)

# far above any degree in use; coupling matrices of higher degrees take minutes and gigabytes
HIGHEST_DEGREE = 20

CutoffFunction = Literal["physnet", "cosine", "exponential"]
NormPosition = Literal["before_attention", "before_exchange", "after_attention", "after_exchange"]
Refinement = Literal["none", "residual", "projected"]


@dataclass(frozen=True)
class So3kratesConfig:
    """Hyper-parameters; the defaults define our smooth network, options the published ones.

    Attributes:
        cutoff: cutoff radius, Å.
        avg_num_neighbors: mean number of neighbours in the training data.
        num_features: F, at least 4, divisible by num_heads and by the number of degrees.
        num_heads: H, attention heads of the features.
        degrees: degrees l of the Euclidean variables, ascending.
        num_layers: number of message-passing layers; each extends `receptive_field` by the cutoff.
        radial_basis: "bernstein" or "physnet".
        num_basis: K, at least 2.
        cutoff_function: "physnet" (two continuous derivatives), "exponential", or "cosine"
            (the paper's; its second derivative jumps at the cutoff).
        attention_norm: divisor of the attention coefficients: "avg_num_neighbors" or
            "sqrt_head_width" (the square root of F / heads).
        qk_activation: activation of queries and keys, "identity" or "silu".
        layer_norms: where the features are normalised.
        mlp_after_attention, mlp_after_exchange: MLP that acts on the features of each atom:
            "none"; "residual", x + W2 s(W1 s(x) + b1) + b2; "projected" (the first release's),
            s(x + s(s(x) W1) W2) W3; s = SiLU.
        ev_init_divisor: None: the Euclidean variables start at zero. A number: they start at the
            sum of C(d) Y(u) over the neighbours, divided by this number.
        embed_charge, embed_spin: whether to embed the total charge, and the number of unpaired
            electrons.
        head_features: hidden width of the energy head; None for a linear head.
        head_activation: activation of the hidden layer of the head: "silu" or "identity".
        predict_charges: whether a second head predicts partial charges, for pair terms.
        predict_hirshfeld_ratios: whether a head predicts Hirshfeld volume ratios, for pair terms.
    """

    cutoff: float
    avg_num_neighbors: float
    num_features: int = 128
    num_heads: int = 4
    degrees: tuple[int, ...] = (1, 2, 3, 4)
    num_layers: int = 3
    radial_basis: Literal["bernstein", "physnet"] = "bernstein"
    num_basis: int = 32
    cutoff_function: CutoffFunction = "physnet"
    attention_norm: Literal["avg_num_neighbors", "sqrt_head_width"] = "avg_num_neighbors"
    qk_activation: Literal["identity", "silu"] = "identity"
    layer_norms: tuple[NormPosition, ...] = ("after_attention", "after_exchange")
    mlp_after_attention: Refinement = "residual"
    mlp_after_exchange: Refinement = "none"
    ev_init_divisor: float | None = None
    embed_charge: bool = False
    embed_spin: bool = False
    head_features: int | None = 128
    head_activation: Literal["silu", "identity"] = "silu"
    predict_charges: bool = False
    predict_hirshfeld_ratios: bool = False

    def __post_init__(self) -> None:
        for name in ("degrees", "layer_norms"):
            if not isinstance(getattr(self, name), Sequence) or isinstance(
                getattr(self, name), str
            ):
                raise ValueError(f"{name} must be a list, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        cutoff_radius(self.cutoff)
        positive("avg_num_neighbors", self.avg_num_neighbors)
        if self.ev_init_divisor is not None:
            positive("ev_init_divisor", self.ev_init_divisor)
        # F / 4: hidden width of the spherical filters; K - 1: degree of the Bernstein polynomials
        for name, least in (
            *(("num_features", 4), ("num_heads", 1), ("num_layers", 1), ("num_basis", 2)),
            *(() if self.head_features is None else (("head_features", 1),)),
        ):
            whole_number(name, getattr(self, name), least)
        flags = ("embed_charge", "embed_spin", "predict_charges", "predict_hirshfeld_ratios")
        for name in flags:
            true_or_false(name, getattr(self, name))
        widths = self.num_features, self.num_heads
        degrees_of_width(self.degrees, *widths, least=0, most=HIGHEST_DEGREE)
        one_of("radial_basis", self.radial_basis, RADIAL_BASES)
        one_of("cutoff_function", self.cutoff_function, CUTOFF_FUNCTIONS)
        one_of("attention_norm", self.attention_norm, ("avg_num_neighbors", "sqrt_head_width"))
        one_of("qk_activation", self.qk_activation, ACTIVATIONS)
        one_of("head_activation", self.head_activation, ACTIVATIONS)
        one_of("mlp_after_attention", self.mlp_after_attention, REFINEMENTS)
        one_of("mlp_after_exchange", self.mlp_after_exchange, REFINEMENTS)
        for position in self.layer_norms:
            one_of("layer_norms", position, get_args(NormPosition))

    @property
    def attention_norms(self) -> tuple[float, float]:
        """Divisors of the attention coefficients of features and of geometry."""
        if self.attention_norm == "avg_num_neighbors":
            return self.avg_num_neighbors, self.avg_num_neighbors
        width, heads, n_degrees = self.num_features, self.num_heads, len(self.degrees)
        return math.sqrt(width // heads), math.sqrt(width // n_degrees)

    @property
    def n_weights_at_least(self) -> int:
        """Least number of weights of a network of this size; a file with fewer is refused."""
        width, hidden = self.num_features, self.head_features or 1
        return self.num_layers * width * (3 * width + 2 * self.num_basis) + width * hidden

    @property
    def faults(self) -> list[str]:
        """Defects of the network's physics, in sentences for the model's card."""
        if self.cutoff_function == "cosine":
            return ["forces have a kink where an atom crosses the cutoff"]
        return []

    @property
    def graph_cutoff(self) -> float:
        """Cutoff of the graph that the network reads, Å: here `cutoff`."""
        return self.cutoff

    @property
    def receptive_field(self) -> float:
        """Distance beyond which other atoms do not change the energy of an atom, Å."""
        starts_from_neighbours = self.ev_init_divisor is not None
        return (self.num_layers + starts_from_neighbours) * self.cutoff


@dataclass(frozen=True)
class Direction:
    """All pairs in one of their two directions.

    Attributes:
        receivers, senders: [P].
        harmonics: [P, M], harmonics of the vector from receiver to sender.
    """

    receivers: Tensor
    senders: Tensor
    harmonics: Tensor


@dataclass(frozen=True)
class PairGeometry:
    """Geometry of P pairs that the layers read.

    Attributes:
        directions: the pairs as listed, and reversed.
        envelope: [P, 1], C(d), exactly 0 for masked pairs.
        radial: function that evaluates a `TwinMLP` of the radial basis for all pairs, [2, P, F].
    """

    directions: tuple[Direction, Direction]
    envelope: Tensor
    radial: Callable[[TwinMLP], Tensor]


class DirectRadial(nn.Module):
    """Direct evaluation of radial networks, pair by pair: their definition."""

    def __init__(self, basis: nn.Module) -> None:
        super().__init__()
        self.basis = basis

    def forward(self, lengths: Tensor) -> Callable[[TwinMLP], Tensor]:
        """Return a function that maps a `TwinMLP` to its values [2, P, F] at `lengths` [P] Å."""
        values = self.basis(lengths)
        return lambda mlp: mlp(values)


class So3krates(ModuleWithConstants):
    """So3krates network, which maps a graph of edge vectors to one energy per atom.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    parity: Tensor

    def __init__(self, config: So3kratesConfig, n_species: int) -> None:
        super().__init__()
        self.config = config
        electrons = {"charge": config.embed_charge, "spin": config.embed_spin}
        # without layer norms, updates grow as the cube of the features from layer to layer
        std = 1.0 if config.layer_norms else None
        self.embedding = Embedding(config.num_features, n_species, **electrons, std=std)
        self.radial = DirectRadial(
            RADIAL_BASES[config.radial_basis](config.num_basis, config.cutoff)
        )
        self.harmonics = SphericalHarmonics(config.degrees)
        self.register_constant("parity", parity(config.degrees))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = EnergyHead(config.num_features, config.head_features, config.head_activation)
        self.charge_head = (
            ChargeHead(config.num_features, config.head_features, config.head_activation, n_species)
            if config.predict_charges
            else None
        )
        self.hirshfeld_head = (
            HirshfeldHead(config.num_features, n_species)
            if config.predict_hirshfeld_ratios
            else None
        )
        self.to(torch.float32)

    @property
    def reads_charge(self) -> bool:
        """True if the energy depends on the total charge."""
        return self.config.embed_charge or self.config.predict_charges

    @property
    def reads_spin(self) -> bool:
        """True if the energy depends on the multiplicity."""
        return self.config.embed_spin

    def for_species(self, rows: Sequence[int]) -> So3krates:
        """Return a copy whose species table consists of these rows of this one, in this order."""
        other = So3krates(self.config, len(rows)).to(self.parity.dtype)
        other.load_state_dict(with_species(self.state_dict(), rows))
        return other

    def forward(self, graph: Graph) -> AtomOutputs:
        """Return energies [n_atoms] before scale and reference energies, and any other outputs."""
        geometry = self.geometry(graph)
        features = self.embedding(graph)
        ev = self.initial_ev(geometry, graph.n_atoms)
        for layer in self.layers:
            features, ev = layer(features, ev, geometry)
        heads = self.charge_head, self.hirshfeld_head
        charges, ratios = (None if head is None else head(features, graph) for head in heads)
        return AtomOutputs(self.head(features), charges, ratios, features)

    def geometry(self, graph: Graph) -> PairGeometry:
        """Return all quantities that depend on the edge vectors alone; all layers share them."""
        config = self.config
        mask = graph.edge_mask[graph.pairs]
        vectors = graph.vectors[graph.pairs].to(self.parity.dtype)
        # vectors of masked edges are arbitrary; a zero or very long one would give NaN
        vectors = torch.where(mask.unsqueeze(1), vectors, 0.5 * config.cutoff)
        i, j = graph.receivers[graph.pairs], graph.senders[graph.pairs]
        lengths = safe_norm(vectors)
        harmonics = self.harmonics(vectors / lengths.unsqueeze(1))
        envelope = CUTOFF_FUNCTIONS[config.cutoff_function](lengths, config.cutoff)
        return PairGeometry(
            directions=(Direction(i, j, harmonics), Direction(j, i, harmonics * self.parity)),
            envelope=(envelope * mask).unsqueeze(1),
            radial=self.radial(lengths),
        )

    def initial_ev(self, geometry: PairGeometry, n_atoms: int) -> Tensor | None:
        """Return [n_atoms, M]; None stands for zeros, which make the first layer cheaper."""
        if self.config.ev_init_divisor is None:
            return None
        one, other = (
            segment_sum(geometry.envelope * pairs.harmonics, pairs.receivers, n_atoms)
            for pairs in geometry.directions
        )
        return (one + other) / self.config.ev_init_divisor


class Layer(nn.Module):
    """Attention, then exchange between features and Euclidean variables of one atom."""

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__()
        width = config.num_features

        def norm(position: NormPosition) -> nn.Module:
            return LayerNorm(width) if position in config.layer_norms else nn.Identity()

        self.norm_before_attention = norm("before_attention")
        self.attention = EuclideanAttention(config)
        self.norm_after_attention = norm("after_attention")
        self.mlp_after_attention = REFINEMENTS[config.mlp_after_attention](width)
        self.norm_before_exchange = norm("before_exchange")
        self.exchange = Exchange(config)
        self.mlp_after_exchange = REFINEMENTS[config.mlp_after_exchange](width)
        self.norm_after_exchange = norm("after_exchange")

    def forward(
        self, features: Tensor, ev: Tensor | None, geometry: PairGeometry
    ) -> tuple[Tensor, Tensor]:
        """Return updated features [n_atoms, F] and ev [n_atoms, M]; `ev` None stands for zeros."""
        d_features, d_ev = self.attention(self.norm_before_attention(features), ev, geometry)
        return self.refine(features + d_features, d_ev if ev is None else ev + d_ev)

    def refine(self, features: Tensor, ev: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the rest of the layer, which acts on each atom alone, after adding messages."""
        features = self.mlp_after_attention(self.norm_after_attention(features))
        d_features, d_ev = self.exchange(self.norm_before_exchange(features), ev)
        features = self.mlp_after_exchange(features + d_features)
        return self.norm_after_exchange(features), ev + d_ev


class EuclideanAttention(ModuleWithConstants):
    """Messages between atoms: H heads for features, one head per degree for Euclidean variables.

    alpha_ij = C(d_ij) / norm * sum_a q_i,a w_ij,a k_j,a within each head; no self-attention.
    """

    contract: Tensor
    repeat: Tensor

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__()
        width, heads, n_degrees = config.num_features, config.num_heads, len(config.degrees)
        head, part = width // heads, width // n_degrees
        basis = RADIAL_BASES[config.radial_basis](config.num_basis, config.cutoff)
        square = mean_square(basis, config.cutoff)
        self.radial_mlp = TwinMLP(config.num_basis, width, width, square)
        self.spherical_mlp = TwinMLP(n_degrees, width // 4, width, 1.0)
        # [head, in, (query, key, value)] and [degree, in, (query, key)], block-diagonal, no bias
        self.feature_projection = nn.Parameter(lecun_normal(heads, head, 3 * head))
        self.geometry_projection = nn.Parameter(lecun_normal(n_degrees, part, 2 * part))
        if config.attention_norm == "avg_num_neighbors":
            # a coefficient is a sum over the features of a head: scale its variance to one too
            with torch.no_grad():
                self.feature_projection[:, :, : 2 * head].mul_(head**-0.25)
                self.geometry_projection.mul_(part**-0.25)
        self.qk_activation = ACTIVATIONS[config.qk_activation]
        self.attention_norms = config.attention_norms
        self.register_constant("contract", contract_orders(config.degrees))
        self.register_constant("repeat", repeat_over_orders(config.degrees))
        self.heads, self.n_degrees = heads, n_degrees

    def forward(
        self, features: Tensor, ev: Tensor | None, geometry: PairGeometry
    ) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        queries, keys, values = self.project(features)
        filters = self.filters(ev, geometry)
        # not concatenated into longer tensors: a compiled training step would then find a pair by
        # dividing by the number of pairs in its innermost loops
        (d_features, d_ev), (more_features, more_ev) = (
            self.collect(
                *self.coefficients(queries, keys, filters, geometry.envelope, pairs), values, pairs
            )
            for pairs in geometry.directions
        )
        return d_features + more_features, d_ev + more_ev

    def collect(
        self, for_features: Tensor, for_ev: Tensor, values: Tensor, pairs: Direction
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of messages, [n_atoms, F] and [n_atoms, M], for given coefficients."""
        n = values.shape[0]
        sent = values[pairs.senders].unflatten(1, (self.heads, -1))
        messages = (for_features.unsqueeze(2) * sent).flatten(1)
        ev_messages = (for_ev @ self.repeat) * pairs.harmonics
        return (
            segment_sum(messages, pairs.receivers, n),
            segment_sum(ev_messages, pairs.receivers, n),
        )

    def project(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [2, n_atoms, F] (features, geometry), values [n_atoms, F]."""
        n, width = features.shape
        by_head = features.view(n, self.heads, -1).transpose(0, 1)
        by_degree = features.view(n, self.n_degrees, -1).transpose(0, 1)
        f = torch.bmm(by_head, self.feature_projection)  # [H, n, 3 F/H]
        g = torch.bmm(by_degree, self.geometry_projection)  # [n_degrees, n, 2 F/n_degrees]
        f = f.view(self.heads, n, 3, -1).permute(2, 1, 0, 3).reshape(3, n, width)
        g = g.view(self.n_degrees, n, 2, -1).permute(2, 1, 0, 3).reshape(2, n, width)
        queries, keys = torch.stack([f[:2], g], dim=1).unbind(0)
        return self.qk_activation(queries), self.qk_activation(keys), f[2]

    def filters(self, ev: Tensor | None, geometry: PairGeometry) -> Tensor:
        """[2, P, F]: MLP(phi(d)) + MLP(I(chi_j - chi_i)) for features and geometry."""
        if ev is None:  # all chi are zero, so one row serves all pairs
            invariants = self.contract.new_zeros(1, self.n_degrees)
        else:
            pairs, _ = geometry.directions
            difference = ev[pairs.senders] - ev[pairs.receivers]
            invariants = (difference * difference) @ self.contract
        return geometry.radial(self.radial_mlp) + self.spherical_mlp(invariants)

    def coefficients(
        self, queries: Tensor, keys: Tensor, filters: Tensor, envelope: Tensor, pairs: Direction
    ) -> tuple[Tensor, Tensor]:
        """Attention coefficients [P, H] of the features and [P, n_degrees] of the geometry."""
        product = queries[:, pairs.receivers] * filters * keys[:, pairs.senders]  # [kind, P, F]
        by_head, by_degree = (
            of_kind.unflatten(1, (n, -1)).sum(2) * (envelope / norm)
            for of_kind, n, norm in zip(
                product, (self.heads, self.n_degrees), self.attention_norms, strict=True
            )
        )
        return by_head, by_degree


class Exchange(ModuleWithConstants):
    """One linear map between features and the invariants of the Euclidean variables.

    (a, b) = [x; I(chi)] W + c; then x += a and chi_l += b_l chi_l.
    """

    contract: Tensor
    repeat: Tensor

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__()
        self.width = config.num_features
        size = config.num_features + len(config.degrees)
        self.linear = Dense(size, size)
        self.register_constant("contract", contract_orders(config.degrees))
        self.register_constant("repeat", repeat_over_orders(config.degrees))

    def forward(self, features: Tensor, ev: Tensor) -> tuple[Tensor, Tensor]:
        """Updates of the features [n_atoms, F] and of the Euclidean variables [n_atoms, M]."""
        invariants = (ev * ev) @ self.contract
        exchanged = self.linear(torch.cat([features, invariants], dim=1))
        d_features, gates = exchanged.split([self.width, invariants.shape[1]], dim=1)
        return d_features, (gates @ self.repeat) * ev


def _no_refinement(width: int) -> nn.Module:
    del width
    return nn.Identity()


REFINEMENTS: dict[str, Callable[[int], nn.Module]] = {
    "none": _no_refinement,
    "residual": ResidualMLP,
    "projected": ProjectedMLP,
}
