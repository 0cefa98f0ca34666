"""Equiformer: attention over features of all degrees, with tensor products in the edges' frames.

Liao & Smidt, "Equiformer: Equivariant graph attention transformer for 3D atomistic graphs", ICLR
2023, in its form for MD17, with the three attentions of its ablation. Features are lists over the
degree l of [n, 2l+1, channels] tensors, real harmonics as in e3nn (see `basis.edge_frames`).

| paper                         | here                                                        |
|-------------------------------|-------------------------------------------------------------|
| DTP(x, Y; w)                  | `WeightedProduct`, `FixedProduct` with the map behind them  |
| Linear                        | `IrrepsLinear`, in an edge frame one matrix per (degree, m) |
| a_ij (attention weights)      | `attention_weights` [n_edges, n_heads]                      |
| v_ij (values)                 | values, [n_edges, 2l+1, channels] per degree                |
| non-linear message, MLP att.  | `NonlinearMessages`                                         |
| linear message, MLP attention | `LinearMessages`                                            |
| dot product attention         | `DotProductMessages`                                        |

Two things make the published function unfit to move atoms. It jumps where an atom crosses the
cutoff, since softmax and edge-degree sum do not fade with the distance; and it tells a molecule
from its mirror image, since harmonics and features of odd degree are declared even. The defaults
here mend both: every edge carries a smooth envelope, and only paths with l1 + l2 + l3 even exist.
The published network has `cutoff_function="none", paths="all"`.

In the frame of an edge its harmonics are constants, so a product with them is one multiplication
per number (Passaro & Zitnick, ICML 2023), and a product whose weights do not depend on the edge
becomes one matrix per |m| together with the linear map behind it. The formulas of the paper, in
the laboratory's frame, are in tests/equiformer_paper.py; both must give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from attncalc.basis.activations import LEAKY_NORM, SIGMOID_NORM, SILU_NORM
from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.edge_frames import EdgeFrames
from attncalc.basis.radial import ExpNormalBasis
from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.edge_products import Features, FixedProduct, PathIndex, TensorPath, WeightedProduct
from attncalc.nn.options import one_of, positive, whole_number
from attncalc.ops import safe_norm, segment_sum
from attncalc.recompute import Chunk, chunks_of, sum_in_chunks

LAYER_NORM_EPSILON = 1e-5
SMALLEST_SUM = 1e-16  # of exponentials, guards the softmax of an atom without neighbours

# bytes: where all blocks together would keep more for the gradient, edges are worked through in
# chunks and computed again; a chunk keeps so much in one block
LARGEST_KEPT = 1 << 30
LARGEST_CHUNK = 1 << 27
ON_GPU = 8  # times as much; memory is there for the networks alone, and small chunks are slow

SHORTEST_CUTOFF = 0.01  # Å
HIGHEST_DEGREE = 6  # far above what is used; coupling tensors of higher ones take minutes

AttentionName = Literal["nonlinear", "linear", "dot"]


@dataclass(frozen=True)
class EquiformerConfig:
    """Hyper-parameters. The defaults are our own smooth, mirror-symmetric network of lmax 2.

    Attributes:
        cutoff: Å.
        avg_num_neighbors: mean number of neighbours in the training data.
        attention: "nonlinear" (non-linear messages, MLP attention: the published Equiformer),
            "linear" (linear messages, MLP attention) or "dot" (dot-product attention).
        channels: of the features, per degree l = 0, 1, ...; divisible by num_heads.
        num_layers: blocks; each widens `receptive_field` by the cutoff.
        num_heads: attention heads.
        attention_features: per head, of the MLP attention.
        feed_forward_factor: hidden channels of the feed-forward networks / channels.
        num_basis: radial basis functions.
        radial_features: hidden width of the radial networks.
        head_features: scalars that the energy is made of.
        cutoff_function: the envelope of every edge: "physnet" (two continuous derivatives), or
            "none" (published: energy and forces jump at the cutoff).
        paths: "natural", those tensor products that know no handedness; or "all", which with the
            published network includes weights that cannot change its output.
    """

    cutoff: float
    avg_num_neighbors: float
    attention: AttentionName = "nonlinear"
    channels: tuple[int, ...] = (128, 64, 32)
    num_layers: int = 6
    num_heads: int = 4
    attention_features: int = 32
    feed_forward_factor: int = 3
    num_basis: int = 32
    radial_features: int = 64
    head_features: int = 512
    cutoff_function: Literal["physnet", "none"] = "physnet"
    paths: Literal["natural", "all"] = "natural"

    def __post_init__(self) -> None:
        if not isinstance(self.channels, list | tuple):  # JSON and YAML know lists
            raise ValueError(f"channels must be a list, got {self.channels!r}")
        object.__setattr__(self, "channels", tuple(self.channels))
        positive("cutoff", self.cutoff)
        positive("avg_num_neighbors", self.avg_num_neighbors)
        if self.cutoff < SHORTEST_CUTOFF:  # the radial basis cannot tell it from zero
            raise ValueError(f"cutoff must be at least {SHORTEST_CUTOFF}, got {self.cutoff}")
        for name, least in (
            *(("num_layers", 1), ("num_heads", 1), ("attention_features", 1)),
            *(("feed_forward_factor", 1), ("num_basis", 2)),
            *(("radial_features", 2), ("head_features", 2)),  # layer norm makes one number zero
        ):
            whole_number(name, getattr(self, name), least)
        if not 2 <= len(self.channels) <= HIGHEST_DEGREE + 1:
            raise ValueError(
                f"channels must be given for degrees 0 to 1 at least and {HIGHEST_DEGREE} at "
                f"most, got {len(self.channels)} numbers"
            )
        for width in self.channels:
            whole_number("channels", width, 1)
            if width % self.num_heads:
                raise ValueError(
                    f"channels must be divisible by num_heads = {self.num_heads}, got {width}"
                )
        one_of("attention", self.attention, get_args(AttentionName))
        one_of("cutoff_function", self.cutoff_function, ("physnet", "none"))
        one_of("paths", self.paths, ("natural", "all"))

    @property
    def highest_degree(self) -> int:
        """lmax."""
        return len(self.channels) - 1

    @property
    def n_weights_at_least(self) -> int:
        """What a network of this size cannot do without: more than a file holds is refused."""
        squares, scalars = sum(width * width for width in self.channels), self.channels[0]
        of_atoms = 2 * squares + (1 + self.feed_forward_factor) * scalars * scalars
        radial = self.radial_features * (self.num_basis + self.radial_features)
        attention = 0 if self.attention == "dot" else self.num_heads * self.attention_features
        per_layer = of_atoms + radial + scalars * attention
        return self.num_layers * per_layer + self.head_features * self.head_features

    @property
    def reach(self) -> float:
        """Å: how far one layer looks."""
        return self.cutoff

    @property
    def receptive_field(self) -> float:
        """Å: an atom's energy depends on atoms up to this far away, and on nothing beyond."""
        return (self.num_layers + 1) * self.cutoff  # the embedding looks at the neighbours too

    @property
    def faults(self) -> list[str]:
        """What is wrong with the network's physics, in words for the model's card."""
        found = []
        if self.cutoff_function == "none":
            found.append("energy and forces jump where an atom crosses the cutoff")
        if self.paths == "all":
            found.append("a molecule and its mirror image have different energies")
        return found

    def tensor_paths(self, n_in: int, n_out: int) -> list[TensorPath]:
        """Paths from degrees below `n_in` to degrees below `n_out`, in the published order."""
        degrees = range(len(self.channels))
        return [
            (a, b, c)
            for a in range(n_in)
            for b in degrees
            for c in range(abs(a - b), min(a + b, self.highest_degree) + 1)
            if c < n_out and (self.paths == "all" or (a + b + c) % 2 == 0)
        ]

    @property
    def degrees_kept(self) -> int:
        """Degrees that the embedding's product takes in and that the last attention puts out.

        Scalars would do. The published network has the others too, with weights that multiply
        zeros or are never read.
        """
        return len(self.channels) if self.paths == "all" else 1


# ----------------------------------------------------------------------------------- features


class IrrepsLinear(nn.Module):
    """y_l = x_l W_l for every degree, without mixing degrees; a bias on the scalars only.

    Args:
        n_in, n_out: channels per degree.
        bias: on the scalars.
    """

    def __init__(self, n_in: Sequence[int], n_out: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(i, o) / math.sqrt(i) for i, o in zip(n_in, n_out, strict=False)
        )
        self.bias = nn.Parameter(torch.zeros(n_out[0])) if bias else None

    @property
    def scalar_bias(self) -> Tensor:
        """[channels of degree 0]."""
        assert self.bias is not None
        return self.bias

    def forward(self, features: Features) -> Features:
        """As many degrees as both the features and the map have."""
        return [
            linear(x, w.T, self.bias if degree == 0 else None)
            for degree, (x, w) in enumerate(zip(features, self.weights, strict=False))
        ]


class EquivariantLayerNorm(nn.Module):
    """Scalars: layer norm. Higher degrees: divided by the root of their mean square.

    Args:
        channels: per degree.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(width) for width in channels)
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, features: Features) -> Features:
        """The same shapes, as many degrees as are given."""
        x = features[0]
        normed = [layer_norm(x, x.shape[-1:], self.scales[0], self.bias, LAYER_NORM_EPSILON)]
        for x, scale in zip(features[1:], list(self.scales)[1:], strict=False):
            mean_square = (x * x).mean((1, 2), keepdim=True)
            normed.append(x * (mean_square + LAYER_NORM_EPSILON).rsqrt() * scale)
        return normed


def flat(features: Features) -> Tensor:
    """[n, sum of (2l+1) channels]."""
    return torch.cat([x.flatten(1) for x in features], dim=1)


def unflat(values: Tensor, channels: Sequence[int]) -> Features:
    """The inverse of `flat`."""
    sizes = [(2 * degree + 1) * width for degree, width in enumerate(channels)]
    parts = values.split(sizes, dim=1)
    return [part.unflatten(1, (-1, width)) for part, width in zip(parts, channels, strict=True)]


def added(one: Features, other: Features) -> Features:
    """Sums; degrees that `other` has not stay as they are."""
    return [x + y for x, y in zip(one, other, strict=False)] + one[len(other) :]


# -------------------------------------------------------------------------------------- edges


@dataclass(frozen=True)
class EdgeData:
    """Some edges, with all that blocks need of the geometry.

    Attributes:
        receivers: [n_edges].
        mask: [n_edges], bool.
        envelope: [n_edges], exactly 0 for masked edges.
        radial: [n_edges, num_basis].
        frames: for l = 1, 2, ... [n_edges, 2l+1, 2l+1], as from `EdgeFrames`.
    """

    receivers: Tensor
    mask: Tensor
    envelope: Tensor
    radial: Tensor
    frames: Sequence[Tensor]

    def turned_in(self, features: Features) -> Features:
        """From the laboratory's frame into the edges'."""
        return [features[0], *map(torch.bmm, self.frames, features[1:])]

    def turned_out(self, features: Features) -> Features:
        """From the edges' frames into the laboratory's, as many degrees as are given."""
        back = zip(self.frames, features[1:], strict=False)
        return [features[0], *(torch.bmm(frame.mT, x) for frame, x in back)]


# what some edges send to their receivers: [n_edges, ...] of the senders, [n_receivers, ...],
# the edges, weights -> [n_receivers, ...]
OnEdges = Callable[[Tensor, Tensor, EdgeData, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Geometry:
    """All edges, and how a sum over them is done: at once, or in chunks of bounded memory.

    Attributes:
        edges: all of them.
        senders: [n_edges].
        chunks: of receivers with all their edges; none for all at once.
    """

    edges: EdgeData
    senders: Tensor
    chunks: Sequence[Chunk]

    def sum_over_edges(
        self, on_edges: OnEdges, sources: Tensor, targets: Tensor, weights: Sequence[Tensor]
    ) -> Tensor:
        """What arrives at each atom.

        Args:
            on_edges: the computation.
            sources: [n_atoms, ...]; an edge is given the row of its sender.
            targets: [n_atoms, ...].
            weights: handed through.
        """
        edges = self.edges
        if not self.chunks:
            return on_edges(sources.index_select(0, self.senders), targets, edges, weights)

        def on_some(
            sent: Tensor,
            targets: Tensor,
            data: Sequence[Tensor],
            weights: Sequence[Tensor],
            receivers: Tensor,
            mask: Tensor,
        ) -> Tensor:
            envelope, radial, *frames = data
            return on_edges(
                sent, targets, EdgeData(receivers, mask, envelope, radial, frames), weights
            )

        return sum_in_chunks(
            on_some,
            self.chunks,
            (edges.receivers, self.senders, edges.mask),
            sources,
            targets,
            (edges.envelope, edges.radial, *edges.frames),
            weights,
        )


class RadialNetwork(nn.Module):
    """Weights of a tensor product from the radial basis: two hidden layers, no bias but an offset.

    Args:
        config: hyper-parameters.
        n_out: numbers that go out.
    """

    def __init__(self, config: EquiformerConfig, n_out: int) -> None:
        super().__init__()
        num_basis, width = config.num_basis, config.radial_features

        def uniform(*shape: int) -> nn.Parameter:  # torch's own for linear layers
            bound = 1 / math.sqrt(shape[0])
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.first, self.second = uniform(num_basis, width), uniform(width, width)
        self.last = uniform(width, n_out)
        for name in ("first", "second"):
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
            self.register_parameter(f"{name}_norm_scale", nn.Parameter(torch.ones(width)))
            self.register_parameter(f"{name}_norm_bias", nn.Parameter(torch.zeros(width)))
        bound = 1 / math.sqrt(width)
        self.offset = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    @property
    def hidden_weights(self) -> tuple[Tensor, ...]:
        """All but the last layer's, as `radial_hidden` takes them."""
        return tuple(
            getattr(self, f"{name}{part}")
            for name in ("first", "second")
            for part in ("", "_bias", "_norm_scale", "_norm_bias")
        )


N_HIDDEN = 8  # tensors of `RadialNetwork.hidden_weights`


def radial_hidden(radial: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[n_edges, num_basis] -> the second hidden layer of a `RadialNetwork` [n_edges, width]."""
    hidden = radial
    for k in (0, 4):
        weight, bias, scale, norm_bias = weights[k : k + 4]
        hidden = torch.addmm(bias, hidden, weight)
        hidden = silu(layer_norm(hidden, scale.shape, scale, norm_bias, LAYER_NORM_EPSILON))
    return hidden


# ------------------------------------------------------------------------------------ messages


class Messages(nn.Module):
    """What an edge does to a message: its logits and its values.

    Called, it gives the weights that `on_edges` takes, folded as far as they do not depend on the
    edge; the gradient goes through to the parameters. Every kind begins with a product whose
    weights come from a radial network.
    """

    product: WeightedProduct
    radial: RadialNetwork

    def forward(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Logits [n_edges, n_heads] and values, from what is given in the edges' frames."""
        raise NotImplementedError

    def folded(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Weights of radial network, product and the maps [rows, n_out] behind it."""
        product = self.product.folded(self.radial.last, self.radial.offset, maps)
        return (*self.radial.hidden_weights, *product)

    def multiplied(
        self, weights: Sequence[Tensor], message: Features, radial: Tensor
    ) -> tuple[dict[tuple[int, int], Tensor], Sequence[Tensor]]:
        """The product, as from `WeightedProduct`, and the weights that `folded` did not give."""
        n_folded = N_HIDDEN + self.product.n_folded
        hidden = radial_hidden(radial, weights[:N_HIDDEN])
        return self.product(message, hidden, weights[N_HIDDEN:n_folded]), weights[n_folded:]


class NonlinearMessages(Messages):
    """Product, gate, second product; attention by an MLP of the first product's scalars.

    Args:
        config: hyper-parameters.
        n_kept: degrees of the values that have weights.
        n_used: degrees of the values that are read.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        heads, features = config.num_heads, config.attention_features
        # values of degree 0 read only what points along the edge
        outputs = [(c, m) for c in range(n) for m in range(min(c + 1, n_used))]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_rows = self.product.n_rows
        self.linear = IrrepsLinear(n_rows, [sum(channels), *channels[1:]])
        self.attention = IrrepsLinear(n_rows[:1], [heads * features])
        self.alpha = attention_vector(heads, features)
        scales = [SILU_NORM] + [SIGMOID_NORM] * (n - 1)
        self.second = FixedProduct(channels, config.tensor_paths(n, n_kept), n_used, scales)
        self.second_weights = nn.Parameter(torch.randn(self.second.n_weights))
        self.value = IrrepsLinear(self.second.n_rows, channels[:n_kept])
        self.channels, self.values = channels, channels[:n_used]
        self.parts = [sum(channels), heads * features]  # of the first product's scalars

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, first product, its bias, attention vector, second product, its bias."""
        maps = list(self.linear.weights)
        maps[0] = torch.cat([maps[0], self.attention.weights[0]], dim=1)
        second = self.second.folded(self.second_weights, list(self.value.weights))
        bias = torch.cat([self.linear.scalar_bias, self.attention.scalar_bias])
        alpha = LEAKY_NORM * self.alpha
        return (*self.folded(maps), bias, alpha, *second, self.value.scalar_bias)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Logits [n_edges, n_heads] and values, from what is given in the edges' frames."""
        del query
        y, (bias, alpha, *second, value_bias) = self.multiplied(weights, message, radial)
        scalars, attention = (y[0, 0] + bias).split(self.parts, dim=2)
        gates = torch.sigmoid(scalars).split(self.channels, dim=2)
        y[0, 0] = scalars[:, :, : self.channels[0]]
        degrees = range(len(self.channels))
        gated = [
            torch.cat([y[c, m] * gates[c] for c in degrees[m:]], dim=2)
            for m in range(len(self.values))
        ]
        values = by_degree(self.second(gated, second), self.values)
        values[0] = values[0] + value_bias
        return mlp_logits(attention, alpha), values


class LinearMessages(Messages):
    """One product, whose result is values and, through an MLP, attention.

    Args:
        config: hyper-parameters.
        n_kept, n_used: as of `NonlinearMessages`.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        self.heads, self.features = config.num_heads, config.attention_features
        outputs = [(c, m) for c in range(n_used) for m in range(c + 1)]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n_kept), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_out = [self.heads * self.features + channels[0], *channels[1:n_kept]]
        self.linear = IrrepsLinear(self.product.n_rows, n_out)
        self.alpha = attention_vector(self.heads, self.features)
        self.values = channels[:n_used]

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, product, its bias, attention vector."""
        product = self.folded(list(self.linear.weights))
        return (*product, self.linear.scalar_bias, LEAKY_NORM * self.alpha)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Logits [n_edges, n_heads] and values, from what is given in the edges' frames."""
        del query
        y, (bias, alpha) = self.multiplied(weights, message, radial)
        # scalars are interleaved by head: those of the attention, then those of the value
        by_head = (y[0, 0] + bias).unflatten(2, (self.heads, -1))
        attention, value = by_head.split([self.features, self.values[0] // self.heads], dim=3)
        y[0, 0] = value.flatten(2)
        by_m = [
            torch.cat([y[c, m] for c in range(m, len(self.values))], dim=2)
            for m in range(len(self.values))
        ]
        return mlp_logits(attention.flatten(2), alpha), by_degree(by_m, self.values)


class DotProductMessages(Messages):
    """One product, whose result is keys and values; attention by scalar products with queries.

    Args:
        config: hyper-parameters.
        n_kept, n_used: as of `NonlinearMessages`.
    """

    def __init__(self, config: EquiformerConfig, n_kept: int, n_used: int) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        self.heads, self.channels, self.values = config.num_heads, channels, channels[:n_used]
        outputs = [(c, m) for c in range(n) for m in range(c + 1)]
        self.product = WeightedProduct(channels, config.tensor_paths(n, n), outputs)
        self.radial = RadialNetwork(config, self.product.n_weights)
        n_out = [2 * width if c < n_kept else width for c, width in enumerate(channels)]
        self.linear = IrrepsLinear(self.product.n_rows, n_out)

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, product, its bias."""
        n_used = len(self.values)
        maps = [  # keys come first; values that nobody reads are left out
            w if c < n_used else w[:, :width]
            for c, (w, width) in enumerate(zip(self.linear.weights, self.channels, strict=True))
        ]
        return (*self.folded(maps), self.linear.scalar_bias)

    def on_edges(
        self, weights: Sequence[Tensor], message: Features, query: Features, radial: Tensor
    ) -> tuple[Tensor, Features]:
        """Logits [n_edges, n_heads] and values, from what is given in the edges' frames."""
        y, (bias,) = self.multiplied(weights, message, radial)
        y[0, 0] = y[0, 0] + bias
        logits, values = [], []
        for c, (q, width) in enumerate(zip(query, self.channels, strict=True)):
            y_c = torch.cat([y[c, m] for m in range(c + 1)], dim=1)
            if c < len(self.values):
                key, value = y_c.split(width, dim=2)
                values.append(value)
            else:
                key = y_c
            logits.append((q * key).unflatten(2, (self.heads, -1)).sum((1, 3)))
        return torch.stack(logits).sum(0), values


def attention_vector(heads: int, features: int) -> nn.Parameter:
    """[heads, features], uniform as published."""
    bound = math.sqrt(6 / (heads + features))
    return nn.Parameter(torch.empty(heads, features).uniform_(-bound, bound))


def mlp_logits(attention: Tensor, alpha: Tensor) -> Tensor:
    """[n_edges, 1, heads * features] -> [n_edges, heads], by a smooth leaky ReLU (slope 0.2)."""
    leaky = attention * (0.2 + 0.8 * torch.sigmoid(attention))
    return (leaky.view(-1, *alpha.shape) * alpha).sum(2)


def by_degree(by_m: Sequence[Tensor], channels: Sequence[int]) -> Features:
    """Per |m| [n_edges, 1 or 2, all channels of l >= m] -> features in the edges' frames."""
    parts = [x.split(list(channels[m:]), dim=2) for m, x in enumerate(by_m)]
    return [
        torch.cat([parts[m][degree - m] for m in range(degree + 1)], dim=1)
        for degree in range(len(channels))
    ]


MESSAGES: dict[AttentionName, type[Messages]] = {
    "nonlinear": NonlinearMessages,
    "linear": LinearMessages,
    "dot": DotProductMessages,
}


def attention_weights(logits: Tensor, edges: EdgeData, n_receivers: int) -> Tensor:
    """Softmax over the edges of a receiver that fades with the envelope c, [n_edges, heads].

    A_e = c_e^2 exp(l_e) / sum over e' of c_e' exp(l_e'). The factor in the sum lets a neighbour
    leave smoothly as long as others stay, the second one in the numerator also if it is the last.
    With c = 1 it is the plain softmax.
    """
    receivers, envelope = edges.receivers, edges.envelope.unsqueeze(1)
    valid = edges.mask.unsqueeze(1) & (envelope > 0)
    # the largest of l + log c cancels: it keeps exponentials in range, and the sum at 1 or more,
    # also where an edge that fades out has the largest logit by far
    levels = logits.detach() + torch.where(valid, envelope.detach(), 1.0).log()
    largest = logits.new_full((n_receivers, logits.shape[1]), -torch.inf).scatter_reduce(
        0,
        receivers.unsqueeze(1).expand_as(logits),
        torch.where(valid, levels, -torch.inf),
        "amax",
    )
    raised = torch.where(valid, logits - largest.index_select(0, receivers), 0.0)
    shares = envelope * torch.exp(raised)
    total = segment_sum(shares, receivers, n_receivers) + SMALLEST_SUM
    return envelope * shares / total.index_select(0, receivers)


# -------------------------------------------------------------------------------------- blocks


class Attention(nn.Module):
    """Messages from neighbours, weighted by attention and summed.

    Args:
        config: hyper-parameters.
        n_kept, n_used: as of `NonlinearMessages`.
        n_in: channels of the features; those of the blocks if not given.
    """

    messages: Any  # one of MESSAGES, or what folds them once

    def __init__(
        self,
        config: EquiformerConfig,
        n_kept: int,
        n_used: int,
        n_in: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        channels, degrees = config.channels, range(len(config.channels))
        n_in = channels if n_in is None else n_in
        self.merge_source = IrrepsLinear(n_in, channels)
        self.merge_target = IrrepsLinear(n_in, channels, bias=False)
        self.query = IrrepsLinear(n_in, channels) if config.attention == "dot" else None
        self.messages = MESSAGES[config.attention](config, n_kept, n_used)
        self.projection = IrrepsLinear(channels[:n_kept], channels[:n_kept])
        per_head = sum(channels) / config.num_heads
        self.query_scales = [1 / math.sqrt(per_head * (2 * degree + 1)) for degree in degrees]
        self.channels, self.heads, self.values = channels, config.num_heads, channels[:n_used]
        # weights, products and seven feature vectors, by the memory that a call is seen to take
        width = sum((2 * degree + 1) * c for degree, c in enumerate(channels))
        self.numbers_per_edge = self.messages.product.numbers_per_edge + 7 * width

    def forward(self, features: Features, geometry: Geometry) -> Features:
        """What the features of the used degrees gain."""
        sources, targets = flat(self.merge_source(features)), flat(self.merge_target(features))
        if self.query is not None:
            query = zip(self.query(features), self.query_scales, strict=True)
            targets = torch.cat([targets, flat([x * scale for x, scale in query])], dim=1)
        received = geometry.sum_over_edges(self.on_edges, sources, targets, self.messages())
        return self.projection(unflat(received, self.values))

    def on_edges(
        self, sent: Tensor, targets: Tensor, edges: EdgeData, weights: Sequence[Tensor]
    ) -> Tensor:
        """What arrives at each receiver, flat.

        Args:
            sent: [n_edges, width], flat.
            targets: [n_receivers, width or, with queries, twice that], flat.
            edges: their receivers count the rows of `targets`.
            weights: of the messages.
        """
        n_receivers, width = targets.shape[0], sent.shape[1]
        here = targets.index_select(0, edges.receivers).split(width, dim=1)
        turned = [edges.turned_in(unflat(x, self.channels)) for x in (sent + here[0], *here[1:])]
        logits, values = self.messages.on_edges(weights, turned[0], turned[-1], edges.radial)
        attention = attention_weights(logits, edges, n_receivers)[:, None, :, None]
        values = [(v.unflatten(2, (self.heads, -1)) * attention).flatten(2) for v in values]
        return segment_sum(flat(edges.turned_out(values)), edges.receivers, n_receivers)


class FeedForward(nn.Module):
    """Linear, gate, linear, for every atom.

    Args:
        n_in: channels per degree.
        n_hidden: the same in between.
        n_out: of the result.
    """

    def __init__(self, n_in: Sequence[int], n_hidden: Sequence[int], n_out: Sequence[int]) -> None:
        super().__init__()
        self.first = IrrepsLinear(n_in, [sum(n_hidden), *n_hidden[1:]])
        self.second = IrrepsLinear(n_hidden, n_out)
        self.n_hidden = list(n_hidden)

    def forward(self, features: Features) -> Features:
        """[n, 2l+1, channels] per degree."""
        scalars, *others = self.first(features)
        gates = torch.sigmoid(scalars).split(self.n_hidden, dim=2)
        gated = [SILU_NORM * scalars[:, :, : self.n_hidden[0]] * gates[0]]
        gated += [SIGMOID_NORM * x * gate for x, gate in zip(others, gates[1:], strict=True)]
        return self.second(gated)

    def scalars(self, scalars: Tensor) -> Tensor:
        """The same for scalars alone, which know nothing of higher degrees: [n, 1, channels]."""
        width = self.n_hidden[0]
        first, bias = self.first.weights[0][:, :width], self.first.scalar_bias[:width]
        hidden = SILU_NORM * silu(linear(scalars, first.T, bias))
        return linear(hidden, self.second.weights[0].T, self.second.scalar_bias)


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + FeedForward(Norm(x)).

    Args:
        config: hyper-parameters.
        n_out: channels that the feed-forward network puts out; those of the blocks if not given.
    """

    def __init__(self, config: EquiformerConfig, n_out: Sequence[int] | None = None) -> None:
        super().__init__()
        channels, n = config.channels, len(config.channels)
        self.norm_1 = EquivariantLayerNorm(channels)
        self.attention = Attention(config, n, n)
        self.norm_2 = EquivariantLayerNorm(channels)
        hidden = [config.feed_forward_factor * width for width in channels]
        self.feed_forward = FeedForward(channels, hidden, channels if n_out is None else n_out)

    def forward(self, features: Features, geometry: Geometry) -> Features:
        """[n_atoms, 2l+1, channels] per degree."""
        features = added(features, self.attention(self.norm_1(features), geometry))
        return added(features, self.feed_forward(self.norm_2(features)))


class LastBlock(nn.Module):
    """The same, but of its result only scalars are read; more of them than before.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: EquiformerConfig) -> None:
        super().__init__()
        n_kept = config.degrees_kept
        channels = config.channels[:n_kept]
        self.norm_1 = EquivariantLayerNorm(config.channels)
        self.attention = Attention(config, n_kept, 1)
        self.norm_2 = EquivariantLayerNorm(channels)
        hidden = [config.feed_forward_factor * width for width in channels]
        self.feed_forward = FeedForward(channels, hidden, [config.head_features])
        self.shortcut = IrrepsLinear(channels[:1], [config.head_features])

    def forward(self, features: Features, geometry: Geometry) -> Tensor:
        """[n_atoms, 2l+1, channels] per degree -> [n_atoms, 1, head_features]."""
        (gain,) = self.attention(self.norm_1(features), geometry)
        scalars = features[0] + gain
        (shortcut,), (normed,) = self.shortcut([scalars]), self.norm_2([scalars])
        return shortcut + self.feed_forward.scalars(normed)


class EdgeDegreeEmbedding(nn.Module):
    """How many neighbours, how far and in which directions: the first features of degree > 0.

    A product of the harmonics with constant scalars, the same for every element.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: EquiformerConfig) -> None:
        super().__init__()
        channels = config.channels
        paths = config.tensor_paths(config.degrees_kept, len(channels))
        places = PathIndex(channels, paths)
        self.expand = IrrepsLinear([1], channels[:1])
        self.radial = RadialNetwork(config, places.n_weights)
        self.projection = IrrepsLinear(places.n_rows, channels)
        self.divisor = math.sqrt(config.avg_num_neighbors)
        self.channels = channels
        for degree in range(len(channels)):  # from scalars
            rows = places.weights([(0, degree, degree)])
            self.register_buffer(f"weights_to_{degree}", rows, persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        """Radial network, and the maps from its hidden layer to the channels of all degrees."""
        constant = self.expand.weights[0][0] + self.expand.scalar_bias
        lasts, offsets = [], []
        for degree, w in enumerate(self.projection.weights):
            # the path (0, l -> l) has the first rows of its degree, and kappa = sqrt(2l+1)
            rows = self.get_buffer(f"weights_to_{degree}")
            matrix = w[: self.channels[0]] * constant.unsqueeze(1)
            matrix = matrix * (math.sqrt(2 * degree + 1) / self.divisor)
            lasts.append(self.radial.last.index_select(1, rows) @ matrix)
            offsets.append(self.radial.offset.index_select(0, rows) @ matrix)
        offsets[0] = offsets[0] + self.projection.scalar_bias / self.divisor
        return (*self.radial.hidden_weights, torch.cat(lasts, dim=1), torch.cat(offsets))

    def on_edges(
        self, sent: Tensor, targets: Tensor, edges: EdgeData, weights: Sequence[Tensor]
    ) -> Tensor:
        """[n_receivers, width], flat; nothing is read of the atoms."""
        del sent
        *hidden, last, offset = weights
        amounts = torch.addmm(offset, radial_hidden(edges.radial, hidden), last)
        amounts = (amounts * edges.envelope.unsqueeze(1)).unsqueeze(1)
        scalars, *others = amounts.split(self.channels, dim=2)
        # only the component along the edge: the first row of its frame
        turned = zip(edges.frames, others, strict=True)
        features = [scalars, *(frame[:, 0].unsqueeze(2) * x for frame, x in turned)]
        return segment_sum(flat(features), edges.receivers, targets.shape[0])


class Equiformer(nn.Module):
    """The network: a graph of edge vectors to one energy per atom.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    reads_charge = False
    reads_spin = False

    def __init__(self, config: EquiformerConfig, n_species: int) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.element = nn.Parameter(torch.randn(n_species, width))
        self.element_bias = nn.Parameter(torch.zeros(width))
        self.basis = ExpNormalBasis(config.num_basis, config.cutoff)
        self.frames = EdgeFrames(config.highest_degree)
        self.edge_degree = EdgeDegreeEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers - 1))
        self.last_block = LastBlock(config)
        self.norm = EquivariantLayerNorm([config.head_features])
        self.hidden = IrrepsLinear([config.head_features], [config.head_features])
        self.energy = IrrepsLinear([config.head_features], [1])
        self.to(torch.float32)

    def for_species(self, rows: Sequence[int]) -> Equiformer:
        """A copy whose species table has these rows of the present one, in this order."""
        other = Equiformer(self.config, len(rows)).to(self.element.dtype)
        state = self.state_dict()
        other.load_state_dict(state | {"element": state["element"][list(rows)]})
        return other

    def forward(self, graph: Graph) -> AtomOutputs:
        """Energies per atom [n_atoms], before scale and reference energies."""
        geometry = self.geometry(graph)
        features = self.embedding(graph, geometry)
        for block in self.blocks:
            features = block(features, geometry)
        (scalars,) = self.norm([self.last_block(features, geometry)])
        return AtomOutputs(energies=self.head(scalars))

    def head(self, scalars: Tensor) -> Tensor:
        """[n_atoms, 1, head_features] -> energies [n_atoms]."""
        (energies,) = self.energy([SILU_NORM * silu(self.hidden([scalars])[0])])
        return energies.flatten()

    def geometry(self, graph: Graph) -> Geometry:
        """Everything that depends on edge vectors alone, once for all blocks."""
        cutoff, mask = self.config.cutoff, graph.edge_mask
        vectors = graph.vectors.to(self.element.dtype)
        # a masked vector may be anything: one without direction or out of range would give NaN
        vectors = torch.where(mask.unsqueeze(1), vectors, 0.5 * cutoff)
        lengths = safe_norm(vectors)
        envelope = mask.to(vectors.dtype)
        if self.config.cutoff_function != "none":
            envelope = envelope * CUTOFF_FUNCTIONS[self.config.cutoff_function](lengths, cutoff)
        edges = EdgeData(
            receivers=graph.receivers,
            mask=mask,
            envelope=envelope,
            radial=self.basis(lengths),
            frames=self.frames(vectors / lengths.unsqueeze(1)),
        )
        return Geometry(edges, graph.senders, self.chunks(graph))

    def chunks(self, graph: Graph) -> list[Chunk]:
        """None where all edges fit into memory at once."""
        if not self.needs_chunks(graph.n_edges):
            return []
        most_edges = LARGEST_CHUNK * self._gpu_factor // self.bytes_per_edge
        return chunks_of(graph.receivers, graph.n_atoms, max(1, most_edges))

    def needs_chunks(self, n_edges: int) -> bool:
        """Whether so many edges are too many at once."""
        kept = self.bytes_per_edge * self.config.num_layers * n_edges
        return kept > LARGEST_KEPT * self._gpu_factor

    @property
    def _gpu_factor(self) -> int:
        return 1 if self.element.device.type == "cpu" else ON_GPU

    @property
    def bytes_per_edge(self) -> int:
        """About what autograd keeps of an edge in one block."""
        blocks: list[Any] = [*self.blocks, self.last_block]
        widest = max(block.attention.numbers_per_edge for block in blocks)
        return widest * self.element.element_size()

    def embedding(self, graph: Graph, geometry: Geometry) -> Features:
        """Features of the elements and of the edges around each atom."""
        nothing = geometry.edges.radial.new_zeros(graph.n_atoms, 0)
        summed = geometry.sum_over_edges(
            self.edge_degree.on_edges, nothing, nothing, self.edge_degree()
        )
        scalars, *others = unflat(summed, self.config.channels)
        element = self.element.index_select(0, graph.species) + self.element_bias
        return [scalars + element.unsqueeze(1), *others]
