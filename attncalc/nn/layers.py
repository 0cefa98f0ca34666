"""Small layers for networks with one feature vector per atom."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu, softplus

from attncalc.graph import Graph, sum_over_system, with_totals

LAYER_NORM_EPSILON = 1e-6
# mean of silu(x)² for a standard normal x
SILU_SQUARE = 0.3557

# parameters with one row per species
_SPECIES_TABLES = (
    "embedding.element",
    "embedding.charge.query",
    "embedding.spin.query",
    "charge_head.of_species",
    "hirshfeld_head.of_species",
    "hirshfeld_head.directions",
)


def with_species(state: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Return the state of a network with its species tables reduced to these rows."""
    tables = {name: state[name][list(rows)] for name in _SPECIES_TABLES if name in state}
    return dict(state) | tables


class Embedding(nn.Module):
    """Initial features of the atoms, from the element and optionally total charge and spin.

    Args:
        width: number of features F.
        n_species: number of elements.
        charge, spin: whether to embed the total charge, and the spin.
        std: standard deviation of the element features at initialization.
    """

    def __init__(
        self, width: int, n_species: int, *, charge: bool, spin: bool, std: float | None = None
    ) -> None:
        super().__init__()
        std = 1 / math.sqrt(width) if std is None else std
        self.element = nn.Parameter(std * torch.randn(n_species, width))
        self.charge = ElectronEmbedding(width, n_species) if charge else None
        self.spin = ElectronEmbedding(width, n_species) if spin else None

    def forward(self, graph: Graph) -> Tensor:
        """Return [n_atoms, F]: the sum of the embeddings over the square root of their number."""
        parts = [self.element[graph.species]]
        if self.charge is not None:
            parts.append(self.charge(graph.charge, graph))
        if self.spin is not None:
            parts.append(self.spin(graph.spin - 1, graph))
        return sum(parts[1:], parts[0]) / math.sqrt(len(parts))


class ElectronEmbedding(nn.Module):
    """Embedding of psi electrons, distributed over the atoms of a system (SpookyNet, 2021, eq. 9).

    y_i = softplus(q[Z_i] . k[s] / sqrt(F)), a_i = psi y_i / sum_k y_k, e = v + s(s(v) W0) W1 with
    v = a_i value[s]; s = 0 for psi >= 0, 1 for psi < 0. Zero electrons embed to exactly zero.
    """

    def __init__(self, width: int, n_species: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(n_species, width) / math.sqrt(width))
        self.key = nn.Parameter(torch.randn(2, width) / math.sqrt(width))
        self.value = nn.Parameter(torch.randn(2, width) / math.sqrt(width))
        self.refine = ResidualMLP(width, bias=False)

    def forward(self, electrons: Tensor, graph: Graph) -> Tensor:
        """Return [n_atoms, F] for `electrons` [n_systems]."""
        sign = (electrons < 0).long()[graph.system_idx]
        weight = self._weight(self.query[graph.species], sign)
        total = sum_over_system(weight, graph)
        if graph.ghosts is not None and graph.ghosts.composition is not None:
            of_species = self._weight(self.query, sign[:1])
            total = of_species @ of_species.new_tensor(graph.ghosts.composition).unsqueeze(1)
        share = electrons.to(weight.dtype) / total
        amount = weight * share[graph.system_idx]
        return self.refine(amount.unsqueeze(1) * self.value[sign])

    def _weight(self, query: Tensor, sign: Tensor) -> Tensor:
        return softplus((query * self.key[sign]).sum(1) / math.sqrt(query.shape[1]))


class EnergyHead(nn.Module):
    """Map from the features to one energy per atom."""

    def __init__(self, width: int, hidden: int | None, activation: str = "silu") -> None:
        super().__init__()
        # a head without hidden layer is linear, as in the published code
        self.hidden = nn.Identity() if hidden is None else Dense(width, hidden)
        self.activation = ACTIVATIONS["identity" if hidden is None else activation]
        self.energy = Dense(width if hidden is None else hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[n_atoms, F] -> [n_atoms]."""
        return self.energy(self.activation(self.hidden(features))).squeeze(1)


class ChargeHead(nn.Module):
    """Map from features to partial charges that sum to the total charge.

    The charges are the output of a head like that of the energy plus one charge per species. The
    difference from the total charge of a system is distributed equally over its atoms (SO3LR, JACS
    147, 33723, 2025).
    """

    def __init__(self, width: int, hidden: int | None, activation: str, n_species: int) -> None:
        super().__init__()
        self.head = EnergyHead(width, hidden, activation)
        self.of_species = nn.Parameter(torch.zeros(n_species))

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """[n_atoms, F] -> [n_atoms] e."""
        charges = self.head(features) + self.of_species[graph.species]
        return with_totals(charges, graph.charge, graph)


class HirshfeldHead(nn.Module):
    """Map from features to Hirshfeld volume ratios (SO3LR, JACS 147, 33723, 2025).

    h_i = | v[Z] + p[Z] . (W1 s(W0 x + b0) + b1) / sqrt(n) |, s = SiLU, with n = F / 2 hidden
    features, a number v and a direction p per species.
    """

    def __init__(self, width: int, n_species: int) -> None:
        super().__init__()
        size = width // 2
        self.hidden, self.projected = Dense(width, size), Dense(size, size)
        self.of_species = nn.Parameter(torch.ones(n_species))
        self.directions = nn.Parameter(torch.randn(n_species, size) / math.sqrt(size))

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """[n_atoms, F] -> [n_atoms]."""
        projected = self.projected(silu(self.hidden(features)))
        along = (projected * self.directions[graph.species]).sum(1) / math.sqrt(projected.shape[1])
        ratios = self.of_species[graph.species] + along
        # |x|; differentiated twice, `abs` would fix the number of atoms in a traced training step
        return ratios * ratios.detach().sign()


class TwinMLP(nn.Module):
    """Two MLPs (Dense, SiLU, Dense) of the same input, for features and for geometry.

    Args:
        n_in, n_hidden, n_out: numbers of inputs, hidden units and outputs.
        mean_square: mean square of an input. If given, hidden values and outputs have variance one
            at initialization.
    """

    def __init__(
        self, n_in: int, n_hidden: int, n_out: int, mean_square: float | None = None
    ) -> None:
        super().__init__()
        first, second = lecun_normal(n_in, 2 * n_hidden), lecun_normal(2, n_hidden, n_out)
        if mean_square is not None:
            first, second = first / math.sqrt(mean_square), second / math.sqrt(SILU_SQUARE)
        self.first = nn.Parameter(first)
        self.first_bias = nn.Parameter(torch.zeros(2 * n_hidden))
        self.second = nn.Parameter(second)
        self.second_bias = nn.Parameter(torch.zeros(2, 1, n_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, n_in] -> [2, n, n_out]."""
        hidden = silu(torch.addmm(self.first_bias, inputs, self.first))
        hidden = hidden.unflatten(1, (2, self.second.shape[1])).transpose(0, 1)
        return torch.baddbmm(self.second_bias, hidden, self.second)


class Dense(nn.Module):
    """x W + b with W [in, out]."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(lecun_normal(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        if self.bias is None:
            return inputs @ self.weight
        return torch.addmm(self.bias, inputs, self.weight)


class LayerNorm(nn.Module):
    """Normalisation over the features of one atom, biased variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, F]."""
        return layer_norm(features, features.shape[1:], self.scale, self.bias, LAYER_NORM_EPSILON)


class ResidualMLP(nn.Module):
    """x + W2 silu(W1 silu(x) + b1) + b2."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.first = Dense(width, width, bias=bias)
        self.second = Dense(width, width, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, F]."""
        return features + self.second(silu(self.first(silu(features))))


class ProjectedMLP(nn.Module):
    """silu(x + silu(silu(x) W1) W2) W3, no bias and no skip around the last map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = ResidualMLP(width, bias=False)
        self.last = Dense(width, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, F]."""
        return self.last(silu(self.residual(features)))


def _identity(inputs: Tensor) -> Tensor:
    return inputs


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "identity": _identity}


def lecun_normal(*shape: int) -> Tensor:
    """Draw from a normal of variance 1 / fan-in (last but one dimension), truncated at +-2 std."""
    # truncation at +-2 shrinks the deviation to 0.8796: divide it out, as the published code does
    std = 1 / math.sqrt(shape[-2]) / 0.87962566103423978
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)
