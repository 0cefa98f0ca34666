"""Packing of an Equiformer for the loops: columns, products, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncalc.basis.activations import SIGMOID_NORM, SILU_NORM
from attncalc.basis.edge_frames import order_by_m
from attncalc.kernels.equiformer.layout import DOT, LINEAR, NONLINEAR, Layout, ProductPlan, Weights
from attncalc.kernels.simd.lanes import LANES, filled_up, in_blocks

KINDS = {"nonlinear": NONLINEAR, "linear": LINEAR, "dot": DOT}
NOT_THERE = (0, 0, 0, 0)
# number of tensors of a radial network's hidden layers, the first ones of the weights of messages
N_HIDDEN = 8

Place = tuple[int, int, int, int]


def layout_of(network: Any) -> Layout:
    """Return the layout of an Equiformer in float64."""
    channels = network.config.channels
    n, factor = len(channels), network.config.feed_forward_factor
    atom = _running([(2 * l + 1) * c for l, c in enumerate(channels)])
    frame = _running([0] + [filled_up((2 * l + 1) ** 2) for l in range(1, n)])
    edge = np.zeros((n, 2 * n - 1), np.int64)
    column = 0
    for m in range(n):
        for q in (2 * m - 1, 2 * m) if m else (0,):
            for l in range(m, n):
                edge[l, q] = column
                column += channels[l]
    hidden = [factor * c for c in channels]
    wide = _running([sum(hidden)] + [(2 * l + 1) * hidden[l] for l in range(1, n)])
    couplings, values, ends = _couplings(network, edge)
    return Layout(
        channels=np.array(channels),
        atom=atom,
        edge=edge,
        frame=frame,
        by_degree=_running(channels),
        wide=wide,
        gated=_running([(2 * l + 1) * width for l, width in enumerate(hidden)]),
        gates=_running(hidden),
        couplings=couplings,
        coupling_values=values,
        coupling_ends=ends,
        joint_norm=network.config.norm == "joint",
    )


def _running(sizes: Sequence[int]) -> np.ndarray:
    """Return the start of each part if parts of these sizes follow one another."""
    return np.cumsum([0, *sizes[:-1]])


def _couplings(network: Any, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the couplings of all degrees, see `Layout`."""
    channels = network.config.channels

    def frames(across: Tensor) -> list[Tensor]:
        x, z = across
        return [f[0] for f in network.frames(torch.stack([x, 1 + 0 * x, z]).unsqueeze(0))]

    at_pole = torch.zeros(2, dtype=torch.float64)
    turns = torch.autograd.functional.jacobian(lambda across: tuple(frames(across)), at_pole)
    rows: list[tuple[int, int, int]] = []
    values, ends = [], [0, 0]
    for l, turn in enumerate(turns, start=1):
        turn = turn[:, order_by_m(l)]
        for q in range(2 * l + 1):
            for other in range(q + 1, 2 * l + 1):
                if turn[q, other].abs().max() > 1e-9:
                    rows.append((edge[l, q], edge[l, other], channels[l]))
                    values.append(turn[q, other].tolist())
        ends.append(len(rows))
    return np.array(rows, np.int64), np.array(values, np.float32), np.array(ends, np.int64)


def plan_of(network: Any, layout: Layout) -> ProductPlan:
    """Return the plan of the weighted products of all blocks but the last, and of the last."""
    kind, config = KINDS[network.config.attention], network.config
    width = sum((2 * l + 1) * c for l, c in enumerate(config.channels))
    attentions = [block.attention for block in (*network.blocks[:1], network.last_block)]
    if len(attentions) == 1:  # then nothing reads the first plan
        attentions *= 2
    units: list[list[tuple[int, ...]]] = []
    segments: list[list[tuple[int, ...]]] = []
    for attention in attentions:
        product = attention.messages.product
        of_weights = _running([count * channels for count, channels in product.shapes])
        units.append([])
        segments.append([])
        for (c, m), terms in zip(product.outputs, product.terms, strict=True):
            for minus in range(2 if m else 1):
                first, to = len(segments[-1]), 0
                for number, a, odd in terms:
                    count, channels = product.shapes[number]
                    q = max(0, 2 * m - 1) + (minus ^ odd)
                    for path in range(count):
                        weight = of_weights[number] + path * channels
                        segment = (to, weight, layout.edge[a, q], channels, int(odd and minus))
                        segments[-1].append(segment)
                        to += channels
                at = layout.edge[c, max(0, 2 * m - 1) + minus]
                other = width + (at if kind == DOT else 0)
                units[-1].append((first, len(segments[-1]), to, at, other))
    return ProductPlan(
        n_units=np.array([len(of_one) for of_one in units]),
        units=_stacked(units),
        segments=_stacked(segments),
        n_used=np.array([len(attention.values) for attention in attentions]),
    )


def _stacked(tables: Sequence[Sequence[tuple[int, ...]]]) -> np.ndarray:
    """[n, longest, columns], filled up with zeros."""
    longest = max(len(table) for table in tables)
    stacked = np.zeros((len(tables), longest, len(tables[0][0])), np.int64)
    for out, table in zip(stacked, tables, strict=True):
        out[: len(table)] = table
    return stacked


class _Memory:
    """Collection of matrices that assigns each its place."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.length = 0

    def place(self, matrix: Tensor) -> Place:
        """Add a matrix, or a bias as one row, and return its place.

        The matrix and its transpose have the order of `in_blocks` if their columns fill vectors.
        """
        array = matrix.reshape(-1, matrix.shape[-1]).numpy()
        start, size = self.length, array.size
        for one in (array, array.T):
            multiplies = one.shape[1] % LANES == 0
            self.parts.append((in_blocks(one) if multiplies else one).ravel())
        self.length += 2 * size
        return (start, start + size, *array.shape)

    def places(self, matrices: Sequence[Tensor], n: int) -> list[Place]:
        """Add several matrices and return n places; those of missing matrices are NOT_THERE."""
        return [self.place(m) for m in matrices] + [NOT_THERE] * (n - len(matrices))

    def flat(self) -> np.ndarray:
        """Return all matrices as one float32 array."""
        return np.concatenate(self.parts).astype(np.float32)


def weights_of(network: Any, plan: ProductPlan) -> Weights:
    """Return the weights of an Equiformer in float64."""
    config, memory = network.config, _Memory()
    n, blocks = len(config.channels), [*network.blocks, network.last_block]
    per_block = [_block(config, memory, block, plan, number) for number, block in enumerate(blocks)]
    radial = [_radial(memory, network.edge_degree())]
    radial += [_radial(memory, block.attention.messages()) for block in blocks]
    raises = [NOT_THERE] * 2
    for l in range(2, n):
        matrix = network.frames.get_buffer(f"raise_{l}")
        raises.append(memory.place(_wider(matrix, filled_up(matrix.shape[1]))))
    last, norm = network.last_block, network.norm
    hidden = network.hidden.weights[0]
    heads = torch.zeros(LANES, sum(config.channels), dtype=torch.float64)
    column = 0
    for width in config.channels:
        per_head = width // config.num_heads
        for head in range(config.num_heads):
            heads[head, column : column + per_head] = 1
            column += per_head
    stacked = {name: np.array([block[name] for block in per_block]) for name in per_block[0]}
    stacked |= {name: np.array([one[name] for one in radial]) for name in radial[0]}
    return Weights(
        **stacked,
        raise_frames=np.array(raises),
        shortcut=np.array([memory.place(last.shortcut.weights[0])]),
        hidden=np.array([memory.place(norm.scales[0].unsqueeze(1) * hidden)]),
        hidden_bias=np.array([memory.place(norm.bias @ hidden + network.hidden.scalar_bias)]),
        energy=np.array([memory.place(SILU_NORM * network.energy.weights[0].T)]),
        heads=np.array([memory.place(heads)]),
        elements=(network.element + network.element_bias).numpy().astype(np.float32),
        flat=memory.flat(),
    )


def _wider(matrix: Tensor, columns: int) -> Tensor:
    """Add zeros on the right."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[-1]))


def _radial(memory: _Memory, weights: Sequence[Tensor]) -> dict[str, Any]:
    """Pack a radial network and the map behind it; its basis is filled up to a multiple of 16."""
    first, second = weights[0], weights[4]
    more = filled_up(len(first)) - len(first)
    return {
        "radial_first": memory.place(torch.nn.functional.pad(first, (0, 0, 0, more))),
        "radial_second": memory.place(second),
        "radial_last": memory.place(weights[N_HIDDEN]),
        "radial_offset": memory.place(weights[N_HIDDEN + 1]),
        "radial_rows": [memory.place(weights[k]) for k in (1, 2, 3, 5, 6, 7)],
    }


def _block(
    config: Any, memory: _Memory, block: Any, plan: ProductPlan, number: int
) -> dict[str, Any]:
    """Return the places of all weights of a block except its radial network."""
    attention, n = block.attention, len(config.channels)
    last = int(number == config.num_layers - 1)
    norm, places = block.norm_1, memory.places
    sources, source_bias = _behind_norm(norm, attention.merge_source)
    targets, target_bias = _behind_norm(norm, attention.merge_target)
    queries: list[Tensor] = []
    query_bias = torch.zeros(config.channels[0], dtype=torch.float64)
    if attention.query is not None:
        queries, query_bias = _behind_norm(norm, attention.query)
        queries = [w * s for w, s in zip(queries, attention.query_scales, strict=True)]
        query_bias = query_bias * attention.query_scales[0]
    n_used = int(plan.n_used[last])
    width = sum((2 * l + 1) * c for l, c in enumerate(config.channels))
    found = {
        "sources": places(sources, n),
        "targets": places(targets, n),
        "queries": places(queries, n),
        "source_bias": memory.place(_wider(source_bias + target_bias, width)),
        "query_bias": memory.place(_wider(query_bias, width)),
        "projection": places(list(attention.projection.weights)[:n_used], n),
        "projection_bias": memory.place(attention.projection.scalar_bias),
    }
    return (
        found
        | _messages(config, memory, attention.messages, plan, last)
        | _feed_forward(config, memory, block, last)
    )


def _behind_norm(norm: Any, linear: Any) -> tuple[list[Tensor], Tensor]:
    """Weights and scalar bias of a linear map that includes the norm's scales and bias."""
    weights = [
        scale.unsqueeze(1) * w for scale, w in zip(norm.scales, linear.weights, strict=False)
    ]
    bias = norm.bias @ linear.weights[0]
    return weights, bias if linear.bias is None else bias + linear.bias


def _feed_forward(config: Any, memory: _Memory, block: Any, last: int) -> dict[str, Any]:
    """Pack the feed-forward network of a block; that of the last block acts on scalars alone."""
    network, n = block.feed_forward, 1 if last else len(config.channels)
    first, bias = _behind_norm(block.norm_2, network.first)
    norms = [SILU_NORM] + [SIGMOID_NORM] * (n - 1)
    then = [norm * w for norm, w in zip(norms, network.second.weights, strict=False)]
    then_bias = network.second.scalar_bias
    first = first[:n]
    if last:
        width = network.n_hidden[0]
        first, bias = [first[0][:, :width]], bias[:width]
        then_bias = then_bias + block.shortcut.scalar_bias
    else:
        of_higher = sum((2 * l + 1) * w for l, w in enumerate(network.n_hidden) if l)
        bias = _wider(bias, len(bias) + of_higher)
    return {
        "first": memory.places(first, len(config.channels)),
        "first_bias": memory.place(bias),
        "then": memory.places(then[:n], len(config.channels)),
        "then_bias": memory.place(then_bias),
    }


def _messages(
    config: Any, memory: _Memory, messages: Any, plan: ProductPlan, last: int
) -> dict[str, Any]:
    kind, channels = KINDS[config.attention], config.channels
    product = messages.product
    weights = messages()[N_HIDDEN + 2 :]
    maps, (bias, *rest) = list(weights[: len(product.outputs)]), weights[len(product.outputs) :]
    width = sum((2 * l + 1) * c for l, c in enumerate(channels))
    n_used = int(plan.n_used[last])
    alpha: Place = NOT_THERE
    value_bias: Place = NOT_THERE
    second: list[Tensor] = []
    if kind != DOT:
        vector = rest[0]
        alpha = memory.place(_wider(torch.block_diag(*vector.unsqueeze(2)), LANES))
    if kind == LINEAR:  # by head: attention, then value; they are taken apart
        by_head = torch.arange(len(bias)).view(config.num_heads, -1)
        features = config.attention_features
        order = torch.cat([by_head[:, features:].flatten(), by_head[:, :features].flatten()])
        maps[0], bias = maps[0][:, order], bias[order]
    if kind == NONLINEAR:
        second, value = list(rest[1:-1]), rest[-1]
        n_values = width if n_used > 1 else channels[0]
        value_bias = memory.place(_wider(value, n_values))
    units: list[list[Place]] = []
    for (c, m), matrix in zip(product.outputs, maps, strict=True):
        parts = list(matrix.split([channels[c], matrix.shape[1] - channels[c]], dim=1))
        if kind == DOT:  # keys come first, values may be missing; here they change places
            parts = parts[::-1]
        both = [memory.place(part) if part.shape[1] else NOT_THERE for part in parts]
        units += [both] * (2 if m else 1)
    units += [[NOT_THERE] * 2] * (plan.units.shape[1] - len(units))
    zeros = bias.new_zeros(width - channels[0])
    row = torch.cat([bias[: channels[0]], zeros, bias[channels[0] :]])
    if kind == DOT:
        keys, values = bias[: channels[0]], bias[channels[0] :]
        row = torch.cat([values, zeros, keys, zeros])
    return {
        "product": units,
        "product_bias": memory.place(row),
        "alpha": alpha,
        "second": memory.places(second, len(channels)),
        "value_bias": value_bias,
    }
