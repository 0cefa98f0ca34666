"""Equiformer as the paper writes it: lab frame, Clebsch-Gordan tensors, one formula at a time.

The definition that `attncalc.nn.equiformer` is tested against, with its options. Only e3nn's
harmonics and Wigner 3j tensors are used, and the names of the parameters. Features are lists over
the degree of [n, channels, 2l+1], as in the published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor
from torch.nn.functional import silu

from attncalc.nn.equiformer_config import EquiformerConfig

Features = list[Tensor]


def flat(features: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in features], dim=1)


class Paper:
    """The network of a configuration and a state dict, edge by edge in the laboratory's frame."""

    def __init__(self, config: EquiformerConfig, parameters: dict[str, Tensor]) -> None:
        self.config, self.p = config, parameters
        self.seen: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------ pieces

    def linear(self, x: Features, name: str) -> Features:
        result = []
        for degree, part in enumerate(x):
            weight = self.p.get(f"{name}.weights.{degree}")
            if weight is None:
                break
            result.append(torch.einsum("num,uw->nwm", part, weight))
        if f"{name}.bias" in self.p:
            result[0] = result[0] + self.p[f"{name}.bias"][:, None]
        return result

    def norm(self, x: Features, name: str) -> Features:
        scales = [self.p[f"{name}.scales.{degree}"] for degree in range(len(x))]
        scalars = x[0].squeeze(2)
        centred = scalars - scalars.mean(1, keepdim=True)
        spread = torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
        normed = [(centred / spread * scales[0] + self.p[f"{name}.bias"]).unsqueeze(2)]
        mean_squares = [(part**2).mean((1, 2), keepdim=True) for part in x[1:]]
        if self.config.norm == "joint":  # not of the paper
            all_degrees = [(centred**2).mean(1)[:, None, None], *mean_squares]
            mean_squares = len(mean_squares) * [torch.stack(all_degrees).mean(0)]
        for part, mean_square, scale in zip(x[1:], mean_squares, scales[1:], strict=True):
            normed.append(part / torch.sqrt(mean_square + 1e-5) * scale[:, None])
        return normed

    def radial(self, name: str) -> Tensor:
        x = self.rbf
        for layer in ("first", "second"):
            x = x @ self.p[f"{name}.{layer}"] + self.p[f"{name}.{layer}_bias"]
            x = x - x.mean(1, keepdim=True)
            x = x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-5)
            x = silu(x * self.p[f"{name}.{layer}_norm_scale"] + self.p[f"{name}.{layer}_norm_bias"])
        return x @ self.p[f"{name}.last"] + self.p[f"{name}.offset"]

    def product(self, x: Features, weights: Tensor, paths: Sequence[tuple]) -> Features:
        """Depthwise: t_p[u, k] = w_p[u] sqrt(2c+1) sum_ij C_ijk x_a[u, i] Y_b[j]."""
        blocks: list[list[Tensor]] = [[] for _ in range(1 + max(c for _, _, c in paths))]
        start = 0
        for a, b, c in paths:
            width = x[a].shape[1]
            w = weights[:, start : start + width]
            start += width
            coupled = torch.einsum(
                "ijk,nui,nj->nuk", o3.wigner_3j(a, b, c, dtype=torch.float64), x[a], self.sh[b]
            )
            blocks[c].append(math.sqrt(2 * c + 1) * w.unsqueeze(2) * coupled)
        assert start == weights.shape[1]
        return [torch.cat(block, dim=1) for block in blocks]

    @staticmethod
    def gate(x: Features, n_scalars: int) -> Features:
        scalars, gates = x[0][:, :n_scalars, 0], x[0][:, n_scalars:, 0]
        gated, start = [(1.6791767923989418 * silu(scalars)).unsqueeze(2)], 0
        for part in x[1:]:
            mine = gates[:, start : start + part.shape[1]]
            start += part.shape[1]
            gated.append(part * 1.8467055342154763 * torch.sigmoid(mine).unsqueeze(2))
        return gated

    @staticmethod
    def leaky(x: Tensor) -> Tensor:
        return 1.531320475574866 * (0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1))

    def by_head(self, x: Features) -> Tensor:
        """[n, heads, sum of (2l+1) channels / heads]."""
        heads = self.config.num_heads
        return torch.cat([self.heads_of(part, heads) for part in x], dim=2)

    @staticmethod
    def heads_of(part: Tensor, heads: int) -> Tensor:
        return part.reshape(len(part), heads, part.shape[1] * part.shape[2] // heads)

    # ----------------------------------------------------------------------------- attention

    def attention(self, h: Features, name: str, n_kept: int) -> Features:
        config = self.config
        n = len(config.channels)
        source = self.linear(h, f"{name}.merge_source")
        target = self.linear(h, f"{name}.merge_target")
        message = [s[self.j] + t[self.i] for s, t in zip(source, target, strict=True)]
        self.keep("message", flat(message))
        inner = f"{name}.messages"
        w = self.radial(f"{inner}.radial")
        self.keep("radial_weights", w)
        first = n_kept if config.attention == "linear" else n
        t = self.product(message, w, config.tensor_paths(n, first))
        self.keep("dtp", flat(t))
        make = {"nonlinear": self.nonlinear, "linear": self.linear_messages, "dot": self.dot}
        logits, values = make[config.attention](h, t, name, n_kept)
        self.keep("attention_logits", logits)
        weights = self.softmax(logits)
        self.keep("attention_weights", weights)
        heads = config.num_heads
        received = []
        for part in values:
            by_head = self.heads_of(part, heads) * weights.unsqueeze(2)
            summed = torch.zeros(self.n, *by_head.shape[1:], dtype=part.dtype)
            received.append(summed.index_add(0, self.i, by_head).view(self.n, *part.shape[1:]))
        return self.linear(received, f"{name}.projection")

    def nonlinear(self, h: Features, t: Features, name: str, n_kept: int) -> tuple:
        config, inner = self.config, f"{name}.messages"
        heads, n = config.num_heads, len(config.channels)
        alpha = self.linear(t[:1], f"{inner}.attention")[0]
        alpha = alpha.reshape(len(alpha), heads, config.attention_features)
        self.keep("alpha_heads", alpha)
        logits = (self.leaky(alpha) * self.p[f"{inner}.alpha"]).sum(2)
        gated = self.gate(self.linear(t, f"{inner}.linear"), config.channels[0])
        self.keep("gated_message", flat(gated))
        shared = self.p[f"{inner}.second_weights"].expand(len(gated[0]), -1)
        product = self.product(gated, shared, config.tensor_paths(n, n_kept))
        self.keep("value_dtp", flat(product))
        values = self.linear(product, f"{inner}.value")
        self.keep("value_heads", self.by_head(values))
        return logits, values

    def linear_messages(self, h: Features, t: Features, name: str, n_kept: int) -> tuple:
        inner, heads = f"{name}.messages", self.config.num_heads
        mapped = self.linear(t, f"{inner}.linear")
        scalars = self.heads_of(mapped[0], heads)
        n_attention = self.config.attention_features
        attention, value = scalars[:, :, :n_attention], scalars[:, :, n_attention:]
        others = [self.heads_of(part, heads) for part in mapped[1:]]
        self.keep("alpha_value_heads", torch.cat([scalars, *others], dim=2))
        logits = (self.leaky(attention) * self.p[f"{inner}.alpha"]).sum(2)
        return logits, [value.flatten(1).unsqueeze(2), *mapped[1:]]

    def dot(self, h: Features, t: Features, name: str, n_kept: int) -> tuple:
        config, heads = self.config, self.config.num_heads
        per_head = sum(config.channels) / heads
        query = [
            q / math.sqrt(per_head * (2 * degree + 1))
            for degree, q in enumerate(self.linear(h, f"{name}.query"))
        ]
        self.keep("query_heads_scaled", self.by_head(query))
        both = self.linear(t, f"{name}.messages.linear")
        keys = [part[:, :width] for part, width in zip(both, config.channels, strict=True)]
        values = [part[:, w:] for part, w in zip(both, config.channels, strict=True)][:n_kept]
        if len(values) == len(keys):
            self.keep("key_value_heads", torch.cat([self.by_head(keys), self.by_head(values)], 1))
        logits = torch.einsum("nhk,nhk->nh", self.by_head(query)[self.i], self.by_head(keys))
        assert heads == logits.shape[1]
        return logits, values

    def softmax(self, logits: Tensor) -> Tensor:
        c = self.envelope
        weights = torch.zeros_like(logits)
        for atom in range(self.n):
            mine = self.i == atom
            if mine.any():
                e = torch.exp(logits[mine] - logits[mine].max(0).values)
                total = (c[mine, None] * e).sum(0) + 1e-16
                weights = weights.index_put((mine.nonzero()[:, 0],), c[mine, None] ** 2 * e / total)
        return weights

    # ------------------------------------------------------------------------------- network

    def keep(self, name: str, value: Tensor) -> None:
        """Intermediates of the first block, under the references' names."""
        self.seen.setdefault(name, value)

    def energies(self, species: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        """[n_atoms]; edges from receiver i to sender j."""
        config, p = self.config, self.p
        n_degrees = len(config.channels)
        self.i, self.j, self.n = i, j, len(species)
        d = vectors.norm(dim=1)
        cut = config.cutoff
        self.rbf = ((1 + torch.cos(math.pi * d / cut)) / 2).unsqueeze(1) * torch.exp(
            -p["basis.widths"] * (torch.exp(-d).unsqueeze(1) - p["basis.centres"]) ** 2
        )
        x = d / cut
        smooth = (1 - x) ** 3 * (1 + 3 * x + 6 * x**2)
        self.envelope = smooth if config.cutoff_function == "physnet" else torch.ones_like(d)
        self.sh = [
            o3.spherical_harmonics(l, vectors, normalize=True, normalization="component")
            for l in range(n_degrees)
        ]
        self.seen |= {"rbf": self.rbf, "spherical_harmonics": torch.cat(self.sh, dim=1)}

        element = (p["element"][species] + p["element_bias"]).unsqueeze(2)
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        scalars = self.linear([one], "edge_degree.expand")[0].expand(len(d), -1, -1)
        constant = [scalars] + [
            torch.zeros(len(d), width, 2 * l + 1, dtype=torch.float64)
            for l, width in enumerate(config.channels[: config.degrees_kept])
            if l
        ]
        w = self.radial("edge_degree.radial")
        self.seen["edge_degree_radial_weights"] = w
        paths = config.tensor_paths(config.degrees_kept, n_degrees)
        mapped = self.linear(self.product(constant, w, paths), "edge_degree.projection")
        features = []
        for part in mapped:
            faded = part * self.envelope[:, None, None]
            summed = torch.zeros(self.n, *part.shape[1:], dtype=torch.float64)
            features.append(summed.index_add(0, i, faded) / math.sqrt(config.avg_num_neighbors))
        self.seen["edge_degree_embedding"] = flat(features)
        features[0] = features[0] + element
        self.seen["embedding"] = flat(features)

        for k in range(config.num_layers):
            last = k == config.num_layers - 1
            name = "last_block" if last else f"blocks.{k}"
            n_kept = config.degrees_kept if last else n_degrees
            normed = self.norm(features, f"{name}.norm_1")
            gain = self.attention(normed, f"{name}.attention", n_kept)
            features = [a + b for a, b in zip(features, gain, strict=False)]
            again = self.norm(features, f"{name}.norm_2")
            self.keep("norm_1", flat(normed))
            self.keep("attention", flat(gain))
            self.keep("norm_2", flat(again))
            n_hidden = config.feed_forward_factor * config.channels[0]
            hidden = self.gate(self.linear(again, f"{name}.feed_forward.first"), n_hidden)
            gain = self.linear(hidden, f"{name}.feed_forward.second")
            self.keep("ffn", flat(gain))
            if last:
                shortcut = self.linear(features[:1], "last_block.shortcut")
                features = [shortcut[0] + gain[0]]
            else:
                features = [a + b for a, b in zip(features, gain, strict=True)]
            self.seen[f"block{k}.output"] = flat(features)
        features = self.norm(features, "norm")
        self.seen["final_norm"] = flat(features)
        hidden = 1.6791767923989418 * silu(self.linear(features, "hidden")[0])
        energies = self.linear([hidden], "energy")[0].flatten()
        self.seen["energy"] = energies.unsqueeze(1)
        return energies
