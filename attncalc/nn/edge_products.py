"""Tensor products with spherical harmonics, in the frames of the edges.

A depthwise product has a weight for every path (a, b -> c: degrees of input, harmonics, output)
and channel of a, and every path keeps its own output channels; a linear map W_c follows. In the
frame of the edge the harmonics are constants (see `attncalc.basis.edge_frames`), so that a path
multiplies every component of its input by one number, kappa, which is absorbed into W_c.

Features in edge frames are lists over the degree of [n_edges, 2l+1, channels], components in the
order m = 0, 1, -1, 2, -2, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attncalc.basis.edge_frames import kappa
from attncalc.ops import ModuleWithConstants, segment_sum

Features = list[Tensor]
TensorPath = tuple[int, int, int]


class PathIndex:
    """Positions of the channels of a path among the weights, and among the rows of its W_c.

    Args:
        channels: input channels per degree.
        paths: paths in the order of the weights; the rows of each W_c have the same order.
    """

    def __init__(self, channels: Sequence[int], paths: Sequence[TensorPath]) -> None:
        self.channels = channels
        self.n_weights, self.n_rows = 0, [0] * (1 + max(c for _, _, c in paths))
        self.first_weight: dict[TensorPath, int] = {}
        self.first_row: dict[TensorPath, int] = {}
        for path in paths:
            a, _, c = path
            self.first_weight[path], self.first_row[path] = self.n_weights, self.n_rows[c]
            self.n_weights += channels[a]
            self.n_rows[c] += channels[a]

    def weights(self, paths: Iterable[TensorPath]) -> Tensor:
        """Return the indices of the weights of these paths, one path after the other."""
        return self.ranges(self.first_weight, paths)

    def rows(self, paths: Iterable[TensorPath]) -> Tensor:
        """Return the indices of the rows of W_c of these paths."""
        return self.ranges(self.first_row, paths)

    def ranges(self, first: Mapping[TensorPath, int], paths: Iterable[TensorPath]) -> Tensor:
        """Return, for each path, consecutive indices from `first[path]`, one per channel."""
        ranges = [torch.arange(first[p], first[p] + self.channels[p[0]]) for p in paths]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *ranges])

    def per_channel(self, values: Iterable[tuple[TensorPath, float]]) -> list[float]:
        """Repeat the value of each path for its channels."""
        return [value for path, value in values for _ in range(self.channels[path[0]])]


class ScaledRows(ModuleWithConstants):
    """Selected rows of a matrix, each multiplied by a constant.

    Args:
        index: indices of the rows.
        factors: one factor for each of them.
    """

    index: Tensor
    factors: Tensor

    def __init__(self, index: Tensor, factors: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.register_constant("factors", torch.tensor(factors, dtype=torch.float64).unsqueeze(1))

    def forward(self, matrix: Tensor) -> Tensor:
        """[rows, n] -> [selected rows, n]."""
        return matrix.index_select(0, self.index) * self.factors


class CollectedRows(nn.Module):
    """`ScaledRows`, summed into the rows of a result.

    Args:
        rows: the rows and their factors.
        target: row of the result to which each of them is added.
        n_rows: number of rows of the result.
    """

    target: Tensor

    def __init__(self, rows: ScaledRows, target: Tensor, n_rows: int) -> None:
        super().__init__()
        self.rows, self.n_rows = rows, n_rows
        self.register_buffer("target", target, persistent=False)

    def forward(self, matrix: Tensor) -> Tensor:
        """[rows, n] -> [n_rows, n]."""
        return segment_sum(self.rows(matrix), self.target, self.n_rows)


class WeightedProduct(nn.Module):
    """Product whose weights differ from edge to edge, and the linear map that follows it.

    t_(p,u),m = w_p,u x_a,u,+-m for every path p and channel u, and y_c,m = sum t kappa_p,m W_c.
    The module has no parameters; `folded` prepares those that it is given.

    Args:
        channels: input channels per degree.
        paths: paths of the product, in the order of the weights w.
        outputs: requested outputs (c, m) with m >= 0; m stands for both signs.
    """

    alive: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        paths: Sequence[TensorPath],
        outputs: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__()
        places = PathIndex(channels, paths)
        self.n_weights, self.n_rows, self.outputs = places.n_weights, places.n_rows, list(outputs)
        # paths of equal a, c and parity are multiplied at once; paths to no output are left out
        groups: dict[tuple[int, int, int], list[TensorPath]] = {}
        for path in sorted(paths, key=_group):
            if any(_reaches(path, c, m) for c, m in outputs):
                groups.setdefault(_group(path), []).append(path)
        self.shapes = [(len(members), channels[key[0]]) for key, members in groups.items()]
        alive = places.weights(p for members in groups.values() for p in members)
        self.register_buffer("alive", alive, persistent=False)
        # per output: number, input degree and parity of its groups; and its rows of W_c
        self.terms: list[list[tuple[int, int, int]]] = []
        self.n_products = 0  # per edge
        self.rows = nn.ModuleList()
        for c, m in outputs:
            here = [
                (number, a, odd, members)
                for number, ((a, _, odd), members) in enumerate(groups.items())
                if _reaches(members[0], c, m)
            ]
            self.terms.append([term[:3] for term in here])
            reached = [path for *_, members in here for path in members]
            kappas = places.per_channel((p, kappa(*p, m)) for p in reached)
            self.rows.append(ScaledRows(places.rows(reached), kappas))
            self.n_products += len(kappas) * (2 if m else 1)
        pairs = zip(self.outputs, self.terms, strict=True)
        self.crossed = sorted({(a, m) for (_, m), terms in pairs for _, a, odd in terms if odd})

    @property
    def n_folded(self) -> int:
        """Number of tensors that `folded` returns."""
        return 2 + len(self.outputs)

    @property
    def numbers_per_edge(self) -> int:
        """Number of weights and products per edge."""
        return len(self.alive) + self.n_products

    def folded(self, last: Tensor, offset: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the weights in the form that `forward` takes.

        Args:
            last, offset: [hidden, n_weights], [n_weights]: w = hidden last + offset.
            maps: W_c [rows, n_out], per degree c.
        """
        matrices = [rows(maps[c]) for (c, _), rows in zip(self.outputs, self.rows, strict=True)]
        last, offset = last.index_select(1, self.alive), offset.index_select(0, self.alive)
        return (last, offset, *matrices)

    def forward(
        self, features: Features, hidden: Tensor, weights: Sequence[Tensor]
    ) -> dict[tuple[int, int], Tensor]:
        """Return {(c, m): [n_edges, 1, n_out] for m = 0, else [n_edges, 2, n_out] for m and -m}.

        Args:
            features: features in the edges' frames.
            hidden: [n_edges, hidden], from which the weights of the product are computed.
            weights: from `folded`.
        """
        last, offset, *matrices = weights
        w = torch.addmm(offset, hidden, last)
        parts = [
            part.unflatten(1, (1, *shape))  # [n_edges, 1, paths, channels]
            for part, shape in zip(
                w.split([n * width for n, width in self.shapes], dim=1), self.shapes, strict=True
            )
        ]
        # by parity of the path, degree and |m|: [n_edges, 1 or 2, 1, channels]
        even = [x.unsqueeze(2).split([1] + [2] * a, dim=1) for a, x in enumerate(features)]
        odd = {(a, m): _crossed(even[a][m]) for a, m in self.crossed}
        found = {}
        for (c, m), terms, matrix in zip(self.outputs, self.terms, matrices, strict=True):
            products = [
                (parts[k] * (odd[a, m] if is_odd else even[a][m])).flatten(2)
                for k, a, is_odd in terms
            ]
            found[c, m] = torch.cat(products, dim=2) @ matrix
        return found


def _group(path: TensorPath) -> tuple[int, int, int]:
    a, b, c = path
    return (a, c, (a + b + c) % 2)


def _reaches(path: TensorPath, c: int, m: int) -> bool:
    """Return True if a path contributes to component m of degree c."""
    odd = sum(path) % 2
    return path[2] == c and m <= path[0] and (m > 0 or not odd)


def _crossed(pair: Tensor) -> Tensor:
    """Return (x_-m, -x_m) for (x_m, x_-m): the input of paths with odd a + b + c."""
    plus, minus = pair.unbind(1)
    return torch.stack([minus, -plus], dim=1)


class FixedProduct(nn.Module):
    """Product whose weights are the same for all edges, and the linear map that follows it.

    Both together are one matrix per |m|. The module has no parameters.

    Args:
        channels: input channels per degree.
        paths: paths of the product, in the order of the weights.
        n_used: number of output degrees, from 0 on.
        scales: factors of the input, per degree.
    """

    def __init__(
        self,
        channels: Sequence[int],
        paths: Sequence[TensorPath],
        n_used: int,
        scales: Sequence[float],
    ) -> None:
        super().__init__()
        places = PathIndex(channels, paths)
        self.n_weights, self.n_rows, self.n_used = places.n_weights, places.n_rows, n_used
        for c in range(n_used):
            self.register_buffer(
                f"weights_to_{c}", places.weights(p for p in paths if p[2] == c), persistent=False
            )
        # per |m|: even and odd paths, and for each of them the output degrees
        self.blocks: Any = nn.ModuleList()
        for m in range(n_used):
            by_parity = nn.ModuleList()
            for odd in (0, 1):
                by_degree = nn.ModuleList()
                for c in range(m, n_used):
                    here = [p for p in paths if _reaches(p, c, m) and sum(p) % 2 == odd]
                    kappas = places.per_channel((p, kappa(*p, m) * scales[p[0]]) for p in here)
                    target = places.ranges({p: sum(channels[m : p[0]]) for p in here}, here)
                    rows = ScaledRows(places.rows(here), kappas)
                    by_degree.append(CollectedRows(rows, target, sum(channels[m:])))
                by_parity.append(by_degree)
            self.blocks.append(by_parity)
        self.has_odd = any(sum(path) % 2 for path in paths)

    def folded(self, weights: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one matrix per |m|, in the form that `forward` takes.

        Args:
            weights: [n_weights].
            maps: W_c [rows, n_out], per degree c.
        """
        scaled = [
            maps[c] * weights.index_select(0, self.get_buffer(f"weights_to_{c}")).unsqueeze(1)
            for c in range(self.n_used)
        ]
        matrices = []
        for m, by_parity in enumerate(self.blocks):
            even, odd = (
                torch.cat([rows(w) for rows, w in zip(by_degree, scaled[m:], strict=True)], dim=1)
                for by_degree in by_parity
            )
            if m and self.has_odd:  # acts on the components of m and -m side by side
                even = torch.cat([torch.cat([even, -odd], dim=1), torch.cat([odd, even], dim=1)])
            matrices.append(even)
        return tuple(matrices)

    def forward(self, by_m: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Per |m|: [n_edges, 1 or 2, input channels of l >= m] -> the same of output channels."""
        return [
            (x.flatten(1) @ matrix).unflatten(1, (x.shape[1], -1))
            if m and self.has_odd
            else x @ matrix
            for m, (x, matrix) in enumerate(zip(by_m, weights, strict=True))
        ]
