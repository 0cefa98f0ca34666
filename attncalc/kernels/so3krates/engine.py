"""Engine of So3krates on a CPU: packs the network for the compiled loops, and calls them.

It equals `attncalc.nn.so3krates.So3krates` in float32, for weights that no longer change. Radial
filters and cutoff function become cubics on intervals of equal length between `shortest` and the
cutoff; everything else is the same arithmetic.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.so3 import parity
from attncalc.graph import (
    Graph,
    GraphArrays,
)
from attncalc.kernels.simd.barrier import Barrier
from attncalc.kernels.simd.engine import CompiledEngine, Workspaces
from attncalc.kernels.simd.held import Held
from attncalc.kernels.simd.lanes import LANES, filled_up, in_blocks
from attncalc.kernels.simd.layer_rows import LayerRows, Messenger
from attncalc.kernels.simd.partition import Part
from attncalc.kernels.so3krates.heads import Head, heads_of
from attncalc.kernels.so3krates.pair_loops import Pairs, Shape
from attncalc.kernels.so3krates.step_loop import (
    Common,
    Constants,
    Kinds,
    Numbers,
    Space,
    Weights,
    forward,
    hold,
    reverse,
)
from attncalc.kernels.so3krates.tables import (
    Grid,
    cubics,
    filters_of,
    harmonic_norms,
    has_usual_options,
    norms_of_attention,
)

# largest number of elements of a structure for which the first layer is tabulated: 13 MB
MOST_KINDS = 10
# largest size in bytes of filters that are kept for the reverse pass instead of computed again,
# which saves 6 to 11 % of the time (benchmarks/results/kept_filters.md); without a limit, large
# structures would need half as much memory again
MOST_KEPT = 256_000_000


class WrittenAtoms(NamedTuple):
    """Atoms of a graph as plain values, which can be compared and do not change.

    Charge, spin and composition are empty if the network does not read them.
    """

    species: bytes
    system_idx: bytes
    charge: bytes = b""
    spin: bytes = b""
    composition: tuple[int, ...] | None = None

    @classmethod
    def of(cls, graph: Graph, arrays: GraphArrays, *, reads_electrons: bool) -> WrittenAtoms:
        species, system_idx = arrays.species.tobytes(), arrays.system_idx.tobytes()
        if not reads_electrons:
            return cls(species, system_idx)
        charge, spin = (part.detach().numpy().tobytes() for part in (graph.charge, graph.spin))
        composition = None if graph.ghosts is None else graph.ghosts.composition
        return cls(species, system_idx, charge, spin, composition)


class Inputs(NamedTuple):
    """Inputs of a graph that all threads read.

    Attributes:
        features: [n_atoms, F] of the bare atoms.
        kinds: kinds of the first layer.
        gathered: [n_rows, 16 n_kinds], working space.
        rows: atoms of every layer.
        messenger: connects the loops to other processes; None if there are none.
    """

    features: NDArray[np.float32]
    kinds: Kinds
    gathered: NDArray[np.float32]
    rows: LayerRows
    messenger: Messenger | None


def can_run(network: Any) -> bool:
    """Return True if the loops support this network: its options, and widths that fill vectors."""
    return has_usual_options(network) and not any(w % LANES for w in widths(network).values())


def widths(network: Any) -> dict[str, int]:
    """Return the widths that must fill vectors."""
    c = network.config
    return {
        "num_features / num_heads": c.num_features // c.num_heads,
        "num_features / number of degrees": c.num_features // len(c.degrees),
        "num_features / 4": c.num_features // 4,
        "head_features": c.head_features or 0,
    }


class Engine(CompiledEngine[Held]):
    """A So3krates as compiled loops.

    Args:
        network: a So3krates for which `can_run` is true; it is not changed.
        shortest: Å; structures with closer atoms are not covered.
    """

    by_pairs: ClassVar = True
    exchanges: ClassVar = True
    fewest = 1000

    def __init__(
        self,
        network: Any,
        shortest: float,
    ) -> None:
        super().__init__()
        config = network.config
        self.embedding = copy.deepcopy(network.embedding)  # weights may change in place later
        self.embeds_electrons = config.embed_charge or config.embed_spin
        self._last: tuple[WrittenAtoms, NDArray[np.float32], Kinds, LayerRows] | None = None
        exact = copy.deepcopy(network).to(torch.float64)
        starts = config.ev_init_divisor
        self.numbers = Numbers(
            float(shortest),
            float(config.cutoff),
            0.0 if starts is None else 1 / starts,
        )
        with torch.no_grad():
            functions = [filters_of(exact, l) for l in range(config.num_layers)]
            grid = Grid.fine_enough(functions, float(shortest), float(config.cutoff))
            heads = heads_of(exact)
            self.names = tuple(heads)
            bias = torch.stack([head.bias for head in heads.values()])
            self.constants = _constants(config, grid, bias.numpy())
            self.weights = _weights(exact, list(heads.values()), grid)
            self._first_layer = FirstLayer.of(exact, grid)
        self.shape = _shape(config)
        self.width, self.n_layers = config.num_features, config.num_layers

    def _needs(self, parts: Sequence[Part]) -> tuple[int, ...]:
        n_atoms = len(parts[0].arrays.species)
        most_pairs = max([len(part.arrays.pairs) for part in parts])
        return n_atoms, -(-n_atoms // len(parts)), most_pairs

    def _inputs(
        self, graph: Graph, arrays: GraphArrays, n_rows: int, workspaces: Workspaces[Held]
    ) -> Inputs:
        atoms = WrittenAtoms.of(graph, arrays, reads_electrons=self.embeds_electrons)
        last = self._last  # read once: another thread may replace it meanwhile
        if last is None or last[0] != atoms:  # in a simulation atoms stay the same
            kinds = _ANY_KIND if self._first_layer is None else self._first_layer.kinds(graph)
            rows = LayerRows.of(None, graph.n_atoms, self.n_layers)
            self._last = last = (atoms, self.embedding(graph).detach().numpy(), kinds, rows)
        _, features, kinds, rows = last
        messenger = None
        if graph.ghosts is not None:
            rows, messenger = self._rows_of(graph, workspaces.common)
        gathered = np.empty((n_rows, LANES * len(kinds.values)), np.float32)
        return Inputs(features, kinds, gathered, rows, messenger)

    def _rows_of(self, graph: Graph, common: Common) -> tuple[LayerRows, Messenger | None]:
        """Return the rows of a graph with ghosts, and its messenger if it has an exchange."""
        ghosts, messenger = graph.ghosts, None
        if ghosts is not None and ghosts.exchange is not None:
            messenger = Messenger(
                ghosts.exchange,
                lambda l: (common.x, common.ev_before[l]),
                lambda l: (common.d_x, common.d_ev),
            )
        address = 0 if messenger is None else messenger.address
        rows = LayerRows.of(ghosts, graph.n_atoms, self.n_layers, address)
        if messenger is not None:
            messenger.rows = rows
        return rows, messenger

    def _forward(
        self,
        part: Part,
        inputs: Inputs,
        workspace: Held,
        outputs: NDArray[np.float64],
    ) -> int:
        n = forward(
            workspace,
            *part.arrays[:6],
            inputs.features,
            inputs.kinds,
            inputs.gathered,
            inputs.rows,
            outputs,
        )
        if inputs.messenger is not None:
            inputs.messenger.check()
        return n

    def _reverse(
        self,
        part: Part,
        n: int,
        inputs: Inputs,
        workspace: Held,
        d_outputs: NDArray[np.float64],
        d_vectors: NDArray[np.float64],
    ) -> None:
        n_atoms = len(part.arrays.species)
        kinds, gathered, rows = inputs.kinds, inputs.gathered, inputs.rows
        reverse(workspace, n_atoms, n, kinds, gathered, rows, d_outputs, d_vectors)
        if inputs.messenger is not None:
            inputs.messenger.check()

    def _workspaces(self, barriers: Sequence[Barrier], *sizes: int) -> Workspaces[Held]:
        n, n_own, p = sizes
        size, rows = len(barriers), barriers[0].n_rows
        width, n_layers = self.width, self.n_layers
        n_degrees, orders = len(self.shape.degrees), LANES * len(self.shape.orders)
        hidden = LANES * len(self.shape.hidden)
        of_pair = 4 * n_layers * (2 * width + 2 * hidden)  # bytes
        kept = p if size * p * of_pair <= MOST_KEPT else 0
        exchanged, (n_outputs, _, head) = self.weights.exchange.shape[1], self.weights.head.shape

        def floats(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)  # zeros: columns that fill up to 16 must stay zero

        def whole() -> NDArray[np.int64]:
            return np.zeros(p, np.int64)

        def own() -> tuple[Pairs, Space]:
            pairs = Pairs(
                i=whole(),
                j=whole(),
                to=whole(),
                knot=whole(),
                place=floats(p),
                envelope=floats(p),
                envelope_slope=floats(p),
                spherical=floats(p, orders),
            )
            space = Space(
                lengths=np.zeros(p),
                directions=np.zeros((p, 3)),
                which=whole(),
                d_spherical=floats(p, orders),
                d_lengths=floats(p),
                normed=floats(n_layers, n_own, width),
                hidden=floats(n_layers, n_own, width),
                normal=floats(n_layers, 2, n_own, width),
                inverse=floats(n_layers, 2, n_own),
                ev=floats(n_layers, n_own, orders),
                gain=floats(n_layers, n_own, n_degrees),
                wide=floats(n_own, exchanged),
                wide_too=floats(n_own, exchanged),
                of_head=floats(n_outputs, n_own, head),
                other=floats(n_own, width),
                third=floats(n_own, width),
                filters=floats(n_layers, kept, 2 * width),
                bare=floats(n_layers, kept, hidden),
                slope=floats(n_layers, kept, hidden),
            )
            return pairs, space

        common = Common(
            projected=floats(n_layers, n, 5 * width),
            ev_before=floats(n_layers + 1, rows, orders),
            d_x=floats(n, width),
            x=floats(rows, width),
            d_projected=floats(rows, 5 * width),
            d_ev=floats(rows, orders),
        )
        network = self.shape, self.numbers, self.constants, self.weights
        each = (hold((*network, common, *own(), barrier)) for barrier in barriers)
        return Workspaces(each, common.x, common)


# for a first layer whose features do not depend on a kind alone
_ANY_KIND = Kinds(
    np.zeros(0, np.int64), np.zeros((0, 4 * LANES), np.float32), np.zeros((0, LANES), np.float32)
)


class FirstLayer:
    """Tables of the first layer for the elements of a structure, made when they first occur.

    Args:
        cubics: [n_intervals, 4, 2 F], cubics of the filters without Euclidean variables, float64.
        features: [n_species, F], features of bare atoms.
        attention: attention of the first layer, float64.
        reads_electrons: whether charge or spin change the features.
    """

    def __init__(
        self, cubics: Tensor, features: Tensor, attention: Any, *, reads_electrons: bool
    ) -> None:
        queries, keys, self._values = attention.project(features)  # [2, n, F] twice, [n, F]
        self._cubics, self._queries, self._keys = cubics, queries, keys
        self._counts = (attention.heads, attention.n_degrees)
        self._reads_electrons = reads_electrons

    @classmethod
    def of(cls, network: Any, grid: Grid) -> FirstLayer | None:
        """Make it from a So3krates in float64; None if the first layer already sees neighbours."""
        config = network.config
        if (
            config.ev_init_divisor is not None
            or sum((config.num_heads, len(config.degrees))) > LANES
        ):
            return None
        parts = 1 + config.embed_charge + config.embed_spin
        return cls(
            cubics(filters_of(network, 0), grid),
            network.embedding.element / math.sqrt(parts),
            network.layers[0].attention,
            reads_electrons=parts > 1,
        )

    def kinds(self, graph: Graph) -> Kinds:
        """Return the kinds for the elements of a graph."""
        if self._reads_electrons and (graph.charge.any() or (graph.spin != 1).any()):
            return _ANY_KIND
        present, of_atoms = np.unique(graph.species.numpy(), return_inverse=True)
        if len(present) > MOST_KINDS:
            return _ANY_KIND
        table, values = self._tables(tuple(present.tolist()))
        return Kinds(of_atoms.astype(np.int64), table, values)

    @functools.lru_cache(maxsize=8)  # noqa: B019 (lives as long as the engine)
    @torch.no_grad()
    def _tables(self, present: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows = list(present)
        n, (n_intervals, _, width2) = len(rows), self._cubics.shape
        table = self._cubics.new_zeros(n, n, n_intervals, 4, LANES)
        begin = 0
        for kind, count in enumerate(self._counts):
            q = self._queries[kind][rows].unflatten(1, (count, -1))
            k = self._keys[kind][rows].unflatten(1, (count, -1))
            cubics = self._cubics[..., kind * width2 // 2 : (kind + 1) * width2 // 2]
            by_head = cubics.unflatten(2, (count, -1))
            end = begin + count
            table[..., begin:end] = torch.einsum("ahc,tohc,bhc->abtoh", q, by_head, k)
            begin = end
        flat = table.reshape(n * n * n_intervals, 4 * LANES).numpy().astype(np.float32)
        return flat, self._values[rows].numpy().astype(np.float32)


def _shape(config: Any) -> Shape:
    width, n_degrees = config.num_features, len(config.degrees)

    def vectors(n: int) -> tuple[int, ...]:
        return (0,) * (n // LANES)

    return Shape(
        heads=(0,) * config.num_heads,
        degrees=(0,) * n_degrees,
        head=vectors(width // config.num_heads),
        part=vectors(width // n_degrees),
        hidden=vectors(2 * (width // 4)),
        orders=vectors(filled_up(sum(2 * l + 1 for l in config.degrees))),
    )


def _constants(config: Any, grid: Grid, bias: NDArray[np.float64]) -> Constants:
    degrees = config.degrees
    n_orders = sum(2 * l + 1 for l in degrees)
    masks = np.zeros((len(degrees), filled_up(n_orders)), np.float32)
    begin = 0
    for d, l in enumerate(degrees):
        masks[d, begin : begin + 2 * l + 1] = 1
        begin += 2 * l + 1
    signs = np.array([(-1.0) ** l for l in degrees], np.float32)
    envelope = CUTOFF_FUNCTIONS[config.cutoff_function]
    return Constants(
        envelope=cubics(lambda d: envelope(d, config.cutoff), grid).numpy(),
        degrees=np.array(degrees, np.int64),
        norms=harmonic_norms(max(degrees)).numpy(),
        masks=masks,
        mirrored=masks * signs[:, None],
        parity=parity(degrees).numpy().astype(np.float32),
        bias=bias,
    )


def _weights(network: Any, heads: Sequence[Head], grid: Grid) -> Weights:
    """Return the weights of a So3krates in float64."""
    config = network.config
    attentions = [layer.attention for layer in network.layers]
    divide = norms_of_attention(config)
    tables, firsts, seconds = [], [], []
    for l, attention in enumerate(attentions):
        mlp = attention.spherical_mlp
        tables.append(cubics(filters_of(network, l), grid).flatten(1))
        # sums over orders have no factor 1 / sqrt(2l+1): it is part of the weights that follow
        orders = torch.tensor([2 * l + 1 for l in config.degrees], dtype=torch.float64)
        firsts.append(mlp.first / orders.sqrt().unsqueeze(1))
        seconds.append(mlp.second / divide)
    exchanges = [_exchange(layer.exchange, config) for layer in network.layers]
    features = [a.feature_projection for a in attentions]
    geometry = [a.geometry_projection for a in attentions]
    refinements = [layer.mlp_after_attention for layer in network.layers]
    mlps = [torch.stack([r.first.weight, r.second.weight]) for r in refinements]
    hidden = [head.weight for head in heads]
    return Weights(
        table=_packed(tables),
        first=_packed(firsts),
        first_bias=_packed([a.spherical_mlp.first_bias.unsqueeze(0) for a in attentions]),
        second=_multiplied(seconds),
        second_transposed=_multiplied(seconds, transposed=True),
        features=_multiplied(features),
        features_transposed=_multiplied(features, transposed=True),
        geometry=_multiplied(geometry),
        geometry_transposed=_multiplied(geometry, transposed=True),
        norm=_packed([_norms(layer) for layer in network.layers]),
        mlp=_multiplied(mlps),
        mlp_transposed=_multiplied(mlps, transposed=True),
        mlp_bias=_packed(
            [torch.stack([r.first.bias, r.second.bias])[:, None] for r in refinements]
        ),
        exchange=_multiplied([weight for weight, _ in exchanges]),
        exchange_transposed=_multiplied([weight for weight, _ in exchanges], transposed=True),
        exchange_bias=_packed([bias for _, bias in exchanges]),
        head=_multiplied(hidden),
        head_transposed=_multiplied(hidden, transposed=True),
        head_bias=_packed([head.hidden_bias.unsqueeze(0) for head in heads]),
        last=_packed([head.last for head in heads]),
    )


def _packed(tensors: Sequence[Tensor]) -> NDArray[np.float32]:
    """Stack tensors of equal shape to one float32 array, in C order."""
    return torch.stack(list(tensors)).numpy().astype(np.float32)


def _multiplied(tensors: Sequence[Tensor], *, transposed: bool = False) -> NDArray[np.float32]:
    """Stack matrices, or their transposes, to one float32 array, in the order of `in_blocks`."""
    array = _packed(tensors)
    return in_blocks(array.swapaxes(-1, -2) if transposed else array)


def _norms(layer: Any) -> Tensor:
    after_attention, after_exchange = layer.norm_after_attention, layer.norm_after_exchange
    rows = [after_attention.scale, after_attention.bias, after_exchange.scale, after_exchange.bias]
    return torch.stack(rows).unsqueeze(1)


def _exchange(exchange: Any, config: Any) -> tuple[Tensor, Tensor]:
    """Matrix and bias of an exchange, zero-padded, for invariants without 1 / sqrt(2l+1)."""
    weight, bias = exchange.linear.weight.clone(), exchange.linear.bias
    orders = torch.tensor([2 * l + 1 for l in config.degrees], dtype=torch.float64)
    weight[config.num_features :] /= orders.sqrt().unsqueeze(1)
    more = filled_up(len(weight)) - len(weight)
    return pad(weight, (0, more, 0, more)), pad(bias, (0, more)).unsqueeze(0)
