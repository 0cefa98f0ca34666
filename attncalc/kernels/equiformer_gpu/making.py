"""Makes the tables of an Equiformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.kernels.equiformer.layout import NONLINEAR, Layout, ProductPlan, Weights
from attncalc.kernels.equiformer.packing import KINDS, layout_of, plan_of, weights_of
from attncalc.kernels.equiformer_gpu.tables import OfBlock, Product, Sizes, Sums, Tables

Matrix = NDArray[Any]
Row = tuple[int, ...]
# so far before the first weight that it stays there, whichever column is added to it
NOWHERE = -(1 << 30)


def step_of(config: Any) -> int:
    """The largest of 32 and 16 that divides all widths, or 0."""
    hidden = [config.feed_forward_factor * c for c in config.channels]
    widths = [*config.channels, *hidden, config.radial_features, config.head_features]
    widths.append(config.num_heads * config.attention_features)
    common = math.gcd(*widths, 32)
    return common if common >= 16 else 0


class Maker:
    """Makes the tables of an Equiformer in float64.

    Args:
        network: the Equiformer.
        widths: numbers of columns that jobs may have.
    """

    def __init__(self, network: Any, widths: Sequence[int]) -> None:
        self.config, self.widths = network.config, widths
        self.kind = KINDS[network.config.attention]
        self.layout: Layout = layout_of(network, np.float64)
        self.plan: ProductPlan = plan_of(network, self.layout)
        self.w: Weights = weights_of(network, self.plan, np.float64)
        self.extra: list[NDArray[np.float64]] = []
        self.length = len(self.w.flat)
        self.channels = list(self.config.channels)
        self.n = len(self.channels)
        self.width = sum((2 * l + 1) * c for l, c in enumerate(self.channels))
        self.n_extra = int(self.w.product_bias[0, 3]) - self.width
        self.step = step_of(self.config)
        self.hidden = [self.config.feed_forward_factor * c for c in self.channels]
        self.q = 1 << (2 * self.n - 2).bit_length()

    # ------------------------------------------------------------------------------- weights

    def matrix(self, place: NDArray[np.int64]) -> Matrix:
        """What stands at a place."""
        start, _, rows, columns = place
        return self.w.flat[start : start + rows * columns].reshape(rows, columns)

    def kept(self, matrix: Matrix) -> int:
        """Where a new matrix begins."""
        start = self.length
        self.extra.append(matrix.ravel())
        self.length += matrix.size
        return start

    def column_of_result(self, column: int) -> int:
        """Of what stands at `column` in rows of features."""
        return column if column < self.channels[0] else column + self.n_extra

    # ------------------------------------------------------------------------------ products

    def product(self, jobs: Sequence[Row], blocks: Sequence[Row] = ()) -> Product:
        """From (column, depth, weight, width, to, block, bias) of whole matrices."""
        by_width = {}
        for most in self.widths:
            rows = [
                (column, depth, weight + n, width, to + n, block, n + bias, min(most, width - n))
                for column, depth, weight, width, to, block, bias in jobs
                for n in range(0, width, most)
            ]
            by_width[most] = _table(rows, 8)
        return Product(by_width, _table(blocks, 4))

    def by_degree(
        self,
        places: NDArray[np.int64],
        x_first: Sequence[int] | NDArray[np.int64],
        out_first: Sequence[int] | NDArray[np.int64],
        bias: NDArray[np.int64] | None = None,
    ) -> tuple[Product, Product]:
        """x_l W_l for every component of the degrees that have a matrix, and the reverse."""
        ahead: list[Row] = []
        back: list[Row] = []
        for l, (start, transposed, rows, columns) in enumerate(places.tolist()):
            for m in range(2 * l + 1 if columns else 0):
                of_x, of_out = int(x_first[l]) + m * rows, int(out_first[l]) + m * columns
                shift = int(bias[0]) if bias is not None and l == 0 else NOWHERE
                ahead.append((of_x, rows, start, columns, of_out, 0, shift))
                back.append((of_out, columns, transposed, rows, of_x, 0, NOWHERE))
        return self.product(ahead), self.product(back)

    def merge(self, b: int) -> tuple[Product, Product]:
        """Sources and targets at once, side by side for every component."""
        ahead: list[Row] = []
        back: list[Row] = []
        bias = self.matrix(self.w.source_bias[b])[0, : self.channels[0]]
        shift = self.kept(np.concatenate([bias, np.zeros(self.channels[0])]))
        for l, c in enumerate(self.channels):
            both = [self.matrix(places[b, l]) for places in (self.w.sources, self.w.targets)]
            merged = np.concatenate(both, axis=1)
            start, transposed = self.kept(merged), self.kept(merged.T.copy())
            for m in range(2 * l + 1):
                at = int(self.layout.atom[l]) + m * c
                ahead.append((at, c, start, 2 * c, 2 * at, 0, NOWHERE if l else shift))
                back.append((2 * at, 2 * c, transposed, c, at, 0, NOWHERE))
        return self.product(ahead), self.product(back)

    def radial(self) -> tuple[Product, Product]:
        """Behind the hidden layers of all radial networks: all weights of an edge in one row."""
        ahead: list[Row] = []
        back: list[Row] = []
        at = 0
        for net, place in enumerate(self.w.radial_last.tolist()):
            start, transposed, rows, columns = place
            bias = int(self.w.radial_offset[net, 0])
            ahead.append((net * rows, rows, start, columns, at, 0, bias))
            back.append((at, columns, transposed, rows, net * rows, 0, NOWHERE))
            at += columns
        return self.product(ahead), self.product(back)

    def multiply(self, b: int, last: int) -> tuple[Product, Product]:
        """The weighted product, and its reverse up to the products with weights."""
        row = self.matrix(self.w.product_bias[b])[0]
        c_0 = self.channels[0]
        shift = self.kept(np.concatenate([row[:c_0], row[self.width :]]))
        ahead: list[Row] = []
        back: list[Row] = []
        blocks: list[Row] = []
        at = 0
        for unit in range(self.plan.n_units[last]):
            _, _, depth, to, _ = self.plan.units[last, unit].tolist()
            parts = [self.matrix(place) for place in self.w.product[b, unit] if place[3]]
            whole = np.concatenate(parts, axis=1)
            start, transposed = self.kept(whole), self.kept(whole.T.copy())
            to = self.column_of_result(to)
            bias = NOWHERE if to else shift
            ahead.append((0, depth, start, whole.shape[1], to, len(blocks), bias))
            back.append((to, whole.shape[1], transposed, depth, at, 0, NOWHERE))
            blocks += [(of_x, of_w, sign, 0) for _, of_x, of_w, sign in self.pieces(last, unit)]
            at += depth
        return self.product(ahead, blocks), self.product(back)

    def pieces(self, last: int, unit: int) -> list[tuple[int, int, int, int]]:
        """Column of the product, of features, of weights, sign: `step` numbers each."""
        first, end = self.plan.units[last, unit, :2]
        return [
            (to + k, of_x + k, of_w + k, -1 if odd else 1)
            for to, of_w, of_x, width, odd in self.plan.segments[last, first:end].tolist()
            for k in range(0, width, self.step)
        ]

    def sums(self, last: int) -> Sums:
        """By which products each feature and weight is reached."""
        by_x: dict[int, list[Row]] = {k: [] for k in range(0, self.width, self.step)}
        by_w: dict[int, list[Row]] = {}
        at = 0
        for unit in range(self.plan.n_units[last]):
            for to, of_x, of_w, sign in self.pieces(last, unit):
                by_x[of_x].append((at + to, of_w, sign, 0))
                by_w.setdefault(of_w, []).append((at + to, of_x, sign, 0))
            at += int(self.plan.units[last, unit, 2])
        sums: list[Row] = []
        terms: list[Row] = []
        for which, found in enumerate((by_x, by_w)):
            for to, of_one in found.items():
                sums.append((len(terms), len(terms) + len(of_one), to, which))
                terms += of_one
        return Sums(_table(sums, 4), _table(terms, 4))

    def second(self, b: int, n_used: int) -> tuple[Product, Product]:
        """Behind the gate: one matrix per |m|, for both signs together or the same for each."""
        ahead: list[Row] = []
        back: list[Row] = []
        blocks: list[Row] = []
        for m in range(n_used):
            start, transposed, rows, columns = self.w.second[b, m].tolist()
            signs = [2 * m - 1, 2 * m] if m else [0]
            of_one = sum(self.channels[m:])
            together = [signs] if rows > of_one else [[q] for q in signs]
            for group in together:
                to, block = int(self.layout.edge[m, group[0]]), len(blocks)
                bias = NOWHERE if m else int(self.w.value_bias[b, 0])
                ahead.append((0, rows, start, columns, to, block, bias))
                back.append((to, columns, transposed, rows, to, 0, NOWHERE))
                for q in group:
                    for l in range(m, self.n):
                        for k in range(0, self.channels[l], self.step):
                            at = self.column_of_result(int(self.layout.edge[l, q])) + k
                            gate = int(self.layout.by_degree[l]) + k if l else at
                            blocks.append((at, gate, 1, 0))
        return self.product(ahead, blocks), self.product(back)

    def then(self, b: int) -> tuple[Product, Product]:
        """The second layer of a feed-forward network, behind its gate."""
        ahead: list[Row] = []
        back: list[Row] = []
        blocks: list[Row] = []
        for l, (start, transposed, rows, columns) in enumerate(self.w.then[b].tolist()):
            for m in range(2 * l + 1 if columns else 0):
                to, of_gated = (int(first[l]) for first in (self.layout.atom, self.layout.gated))
                to, of_gated = to + m * columns, of_gated + m * rows
                bias = NOWHERE if l else int(self.w.then_bias[b, 0])
                ahead.append((0, rows, start, columns, to, len(blocks), bias))
                back.append((to, columns, transposed, rows, of_gated, 0, NOWHERE))
                for k in range(0, rows, self.step):
                    at = int(self.layout.wide[l]) + m * rows + k
                    gate = int(self.layout.gates[l]) + k if l else k
                    blocks.append((at if l else k, gate, 1, 0))
        return self.product(ahead, blocks), self.product(back)

    def block(self, b: int) -> OfBlock:
        """Of block b."""
        w, atom, last = self.w, self.layout.atom, int(b == self.config.num_layers - 1)
        merge, merge_back = self.merge(b)
        multiply, multiply_back = self.multiply(b, last)
        second, second_back = None, None
        if self.kind == NONLINEAR:
            second, second_back = self.second(b, int(self.plan.n_used[last]))
        project, project_back = self.by_degree(w.projection[b], atom, atom, w.projection_bias[b])
        first, first_back = self.by_degree(w.first[b], atom, self.layout.wide, w.first_bias[b])
        then, then_back = self.then(b)
        return OfBlock(
            merge,
            merge_back,
            multiply,
            multiply_back,
            second,
            second_back,
            project,
            project_back,
            first,
            first_back,
            then,
            then_back,
            int(w.alpha[b, 0]),
        )

    # ------------------------------------------------------------------------- gates and tiles

    def gates(self, n_used: int) -> Tensor:
        """Of the messages of edges."""
        rows = []
        for l, channels in enumerate(self.channels):
            for k in range(0, channels, self.step):
                places = []
                for q in range(2 * min(l, n_used - 1) + 1):
                    at = int(self.layout.edge[l, q])
                    places += [self.column_of_result(at) + k, at + k]
                gate = int(self.layout.by_degree[l]) + k if l else k
                rows.append((len(places) // 2, gate, *places))
        return _table(rows, self.gate_width)

    def wide_gates(self, n_used: int) -> Tensor:
        """Of feed-forward networks."""
        rows = []
        for l, width in enumerate(self.hidden[:n_used]):
            for k in range(0, width, self.step):
                places = []
                for m in range(2 * l + 1):
                    at = k if l == 0 else int(self.layout.wide[l]) + m * width + k
                    places += [at, int(self.layout.gated[l]) + m * width + k]
                gate = int(self.layout.gates[l]) + k if l else k
                rows.append((len(places) // 2, gate, *places))
        return _table(rows, self.gate_width)

    @property
    def gate_width(self) -> int:
        """Integers per row of `gates`: a multiple of 4."""
        return 4 + 2 * self.q

    def tiles(self, ends: int) -> Tensor:
        """Of rows of atoms that hold so many features side by side."""
        rows = []
        for l, c in enumerate(self.channels):
            for k in range(0, c, self.step):
                at, by_degree = ends * int(self.layout.atom[l]) + k, int(self.layout.by_degree[l])
                rows.append((l, k, c, at, ends * c, (ends - 1) * c, by_degree + k, 0))
        return _table(rows, 8)

    def columns(self) -> NDArray[np.int64]:
        """[n_degrees, Q] of features."""
        found = np.zeros((self.n, self.q), np.int64)
        found[:, : self.layout.edge.shape[1]] = self.layout.edge
        return found

    def couplings(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of features, of values, how strong; and what is coupled to the pole."""
        rows = self.layout.couplings.tolist()
        pole = np.zeros((self.n, self.q, 2))
        for (a, b, _), strength in zip(rows, self.layout.coupling_values, strict=True):
            for l in range(1, self.n):
                if a == self.layout.edge[l, 0]:
                    (other,) = np.flatnonzero(self.layout.edge[l] == b)
                    pole[l, other] = strength
        of_values = [(self.value_column(a), self.value_column(b), c, 0) for a, b, c in rows]
        strengths = torch.from_numpy(self.layout.coupling_values)
        of_features = [(*row, 0) for row in rows]
        return _table(of_features, 4), _table(of_values, 4), strengths, torch.from_numpy(pole)

    def value_column(self, column: int) -> int:
        """Values of linear messages are part of the results."""
        return column if self.kind == NONLINEAR else self.column_of_result(column)

    # ------------------------------------------------------------------------------- together

    def sizes(self) -> Sizes:
        """See there."""
        rows = int(self.w.radial_first[0, 2])
        wide = [int(place[3]) for place in (self.w.first_bias[0], self.w.first_bias[-1])]
        units = self.plan.units
        gates = sum(self.channels) if self.kind == NONLINEAR else self.channels[0]
        return Sizes(
            step=self.step,
            q=self.q,
            width=self.width,
            frames=sum((2 * l + 1) ** 2 for l in range(self.n)),
            results=self.width + self.n_extra,
            products=[int(units[k, : self.plan.n_units[k], 2].sum()) for k in range(2)],
            n_weights=self.w.radial_last[:, 3].tolist(),
            per_degree=sum(self.channels),
            wide=wide,
            gated=[sum((2 * l + 1) * h for l, h in enumerate(self.hidden)), self.hidden[0]],
            attention=gates,
            basis=max(16, 1 << (rows - 1).bit_length()),
            basis_rows=rows,
        )

    def tables(self, dtype: torch.dtype, device: torch.device) -> Tables:
        """All of them on a device."""
        w, atom, n = self.w, self.layout.atom, self.n
        n_used = [int(k) for k in self.plan.n_used]
        couplings, value_couplings, strengths, pole = self.couplings()
        weights, weights_back = self.radial()
        shortcut, shortcut_back = self.by_degree(w.shortcut, [0], [0])
        hidden, hidden_back = self.by_degree(w.hidden, [0], [0], w.hidden_bias[0])
        rows = np.concatenate(
            [w.radial_first[:, :2], w.radial_second[:, :2], w.radial_rows[:, :, 0]], axis=1
        )
        columns = torch.from_numpy(self.columns())
        value_columns = columns.clone().apply_(self.value_column)
        parts = [(int(atom[l]), (2 * l + 1) * c) for l, c in enumerate(self.channels)]
        made = Tables(
            blocks=[self.block(b) for b in range(self.config.num_layers)],
            sums=[self.sums(k) for k in range(2)],
            gates=[self.gates(k) for k in n_used] if self.kind == NONLINEAR else [],
            wide_gates=[self.wide_gates(k) for k in (n, 1)],
            tiles=self.tiles(1),
            both_tiles=self.tiles(2),
            columns=columns,
            value_columns=value_columns,
            couplings=couplings,
            value_couplings=value_couplings,
            strengths=strengths,
            pole=pole,
            parts=_table(parts, 2),
            head_part=_table([(0, self.config.head_features)], 2),
            radial=torch.from_numpy(rows),
            weights=weights,
            weights_back=weights_back,
            shortcut=shortcut,
            shortcut_back=shortcut_back,
            hidden=hidden,
            hidden_back=hidden_back,
            raising=[torch.from_numpy(self.matrix(place)) for place in w.raise_frames[2:]],
            elements=torch.from_numpy(w.elements),
            energy=torch.from_numpy(self.matrix(w.energy[0])),
            flat=torch.from_numpy(np.concatenate([w.flat, *self.extra])),
        )
        return _moved(made, dtype, device)


def _table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    """Rows of integers, filled up with zeros; one row of zeros where there is none."""
    found = torch.zeros(max(1, len(rows)), columns, dtype=torch.int64)
    for k, row in enumerate(rows):
        found[k, : len(row)] = torch.tensor(row)
    return found


def _moved(thing: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The same with all tensors on the device: int32, and `dtype` for what is not whole."""
    if isinstance(thing, Tensor):
        return thing.to(device, dtype if thing.is_floating_point() else torch.int32)
    if isinstance(thing, list):
        return [_moved(one, dtype, device) for one in thing]
    if isinstance(thing, dict):
        return {key: _moved(one, dtype, device) for key, one in thing.items()}
    if hasattr(thing, "__dataclass_fields__"):
        return type(thing)(**{key: _moved(one, dtype, device) for key, one in vars(thing).items()})
    return thing
