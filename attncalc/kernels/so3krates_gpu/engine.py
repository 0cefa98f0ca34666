"""Engine of So3krates on a GPU: launches the kernels for energies and their gradient.

It equals `attncalc.nn.so3krates.So3krates` in float32, for weights that no longer change. Radial
filters and cutoff function become cubics on intervals of equal length between `shortest` and the
cutoff; everything else is the same arithmetic.

All shapes follow from those of the graph, nothing waits for the device, and no kernel adds to what
another program writes. So a call can be captured into a CUDA graph, and results are equal to the
bit from call to call. The exception is a network that embeds charge or spin: PyTorch sums over a
system in any order.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph, Linearized, with_totals
from attncalc.kernels.gpu.launching import Workspace, counted_edges, launch
from attncalc.kernels.so3krates.tables import Grid, filters_of, has_usual_options
from attncalc.kernels.so3krates_gpu.atoms import project, turn, update, update_gradient
from attncalc.kernels.so3krates_gpu.filters import ev_gradient, filters, filters_gradient
from attncalc.kernels.so3krates_gpu.first_layer import first_messages, first_messages_gradient
from attncalc.kernels.so3krates_gpu.geometry import find_edges, gradient_by_vectors
from attncalc.kernels.so3krates_gpu.messages import (
    messages,
    messages_gradient,
    start_ev,
    start_ev_gradient,
)
from attncalc.kernels.so3krates_gpu.weights import (
    LayerWeights,
    first_layer,
    heads,
    padded_orders,
    shared_constants,
)

# largest number of elements of a model for which the first layer is tabulated: 13 MB
MOST_KINDS = 10
# part of a GPU's memory that filters kept for the reverse pass may take; those of larger graphs are
# computed again. Each layer has 8 F bytes for each listed edge, edges of skin and padding included
KEPT = 1 / 8
# edges of a block in the loops over an atom's edges, of programs of `filters`, of `find_edges`
BLOCK, FILTER_EDGES, GEOMETRY_EDGES = 8, 16, 128
# columns of filters that are worked on at a time
COLUMNS = 64
# atoms of a program; for up to FEW atoms several programs share the projections
ATOMS, FEW = 16, 2048
# bytes of shared memory that steps of atoms need, by the part of a weight that they work on
MEMORY = {4096: 48 * 1024, 8192: 96 * 1024, 16384: 160 * 1024}


def can_run(network: Any) -> bool:
    """Return True if the kernels support this network: its options, widths that are powers of 2."""
    c = network.config
    return (
        has_usual_options(network)
        and max(c.degrees) <= 7
        and all(map(_is_power_of_two, (c.num_features, c.num_heads, len(c.degrees))))
        and _is_power_of_two(c.head_features)
        and 32 <= c.num_features <= 256
        and 16 <= c.head_features <= 256
    )


def _is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def _largest_part(device: torch.device) -> int:
    """Return how many numbers of a weight fit into shared memory, with room for others."""
    if device.type != "cuda":
        return 4096
    known: Any = torch.cuda.get_device_properties(device)  # not all of them are annotated
    bytes_there = known.shared_memory_per_block_optin
    return max((size for size in MEMORY if MEMORY[size] <= bytes_there), default=4096)


def _most_kept(device: torch.device) -> float:
    """Return how many bytes of filters are kept for the reverse pass."""
    if device.type != "cuda":
        return 2**30
    known: Any = torch.cuda.get_device_properties(device)
    return KEPT * float(known.total_memory)


class Engine:
    """A So3krates as kernels of a GPU.

    Args:
        network: a So3krates for which `can_run` is true; it is not changed.
        shortest: Å; energies of a system with closer atoms are NaN, as they are if a position is
            not a number or there is not enough memory for all edges.
    """

    defers: ClassVar = True

    def __init__(
        self,
        network: Any,
        shortest: float,
    ) -> None:
        element = network.embedding.element
        config, device, n_species = network.config, element.device, len(element)
        exact = copy.deepcopy(network).cpu().to(torch.float64)
        reads_electrons = config.embed_charge or config.embed_spin
        self.starts = config.ev_init_divisor is not None
        self.by_kind = not (reads_electrons or self.starts or n_species > MOST_KINDS)
        with torch.no_grad():
            functions = [filters_of(exact, l) for l in range(config.num_layers)]
            grid = Grid.fine_enough(functions, float(shortest), float(config.cutoff))
            constants = shared_constants(exact, grid)
            if self.by_kind:
                names = ("coefficients", "elements", "values")
                constants |= dict(zip(names, first_layer(exact, grid), strict=True))
            layers = [LayerWeights.of(exact, l, grid) for l in range(config.num_layers)]
        self.embedding = network.embedding
        self.heads = {
            name: {key: value.to(device) for key, value in weights.items()}
            for name, weights in heads(exact).items()
        }
        self.layers = [layer.to(device) for layer in layers]
        self.constants = {name: value.to(device) for name, value in constants.items()}
        self.orders = padded_orders(max(config.degrees))
        self.most_kept = _most_kept(device)
        # three products of 10-bit numbers on tensor cores keep the digits of float32
        has_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        self.shape = {
            "F": config.num_features,
            "H": config.num_heads,
            "L": len(config.degrees),
            "MP": self.orders,
            "LMAX": max(config.degrees),
            "G": self.heads["energies"]["head"].shape[1],
            "B": BLOCK,
            "EDGES": FILTER_EDGES,
            "COLUMNS": min(COLUMNS, config.num_features),
            "SIZE": _largest_part(device),
            "PRECISION": "tf32x3" if has_cores else "ieee",
            "n_species": n_species,
            "zero_row": grid.n_intervals,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self  # its tensors do not change

    @torch.no_grad()
    def linearize(self, graph: Graph) -> Linearized:
        """Return outputs for a graph on the engine's device and their gradient, without waiting."""
        evaluation = _Evaluation(self, graph)
        with torch.cuda.device_of(graph.vectors):
            return Linearized(evaluation.forward(), evaluation.pull)


class _Evaluation:
    """One forward pass and its reverse, with the tensors that kernels pass to each other."""

    def __init__(self, engine: Engine, graph: Graph) -> None:
        self.engine, self.graph, self.workspace = engine, graph, Workspace(graph.vectors.device)
        self.layers, self.last = engine.layers, len(engine.layers) - 1
        self.n, self.width = graph.n_atoms, engine.shape["F"]
        # several programs that share the projections repeat the steps before
        self.parts = 1 if self.n <= FEW else 5
        self.by_atom, self.by_tile = (self.n,), (-(-self.n // ATOMS),)
        self.by_part = (*self.by_tile, 5 // self.parts)
        self.known = {
            **engine.constants,
            **engine.shape,
            "species": graph.species,
            "n_atoms": self.n,
            "T": ATOMS,
            "PARTS": self.parts,
        }
        # by layer: inputs of attention, Euclidean variables with messages, values for the reverse
        self.projected: list[Tensor] = []
        self.ev: list[Tensor] = []
        self.received: list[Tensor] = []
        self.kept: list[dict[str, Tensor]] = []
        bytes_of_layer = 8 * self.width * graph.n_edges
        self.keeps_filters = bytes_of_layer * len(engine.layers) <= engine.most_kept
        self.kept_filters: dict[int, Tensor] = {}

    def forward(self) -> AtomOutputs:
        """Return the outputs; values that the gradient of the last layer needs are kept."""
        self.known |= self.edges()
        features = self.bare_features()
        for l in range(self.last + 1):
            self.attend(l, features)
            if l < self.last:
                features = self.update(l, features)
        return self.read(features)

    def read(self, features: Tensor) -> AtomOutputs:
        """Return outputs of all heads from the last messages; gradients of their sums are kept."""
        n, workspace, raw = self.n, self.workspace, {}
        after = workspace.single(n, self.width)
        self.by_head: dict[str, tuple[Tensor, Tensor]] = {}
        for name, head in self.engine.heads.items():
            raw[name] = workspace.double(n)
            d_features = workspace.single(n, self.width)
            d_received = workspace.single(n, self.engine.orders)
            self.by_head[name] = d_features, d_received
            launch(
                turn,
                self.by_tile,
                vars(self.layers[self.last]),
                head,
                self.known,
                features=features,
                ev=self.received[self.last],
                features_after=after,
                output=raw[name],
                d_features=d_features,
                d_ev=d_received,
            )
        # kernels treat every atom alone: totals of charges and signs of ratios are set after them
        if "charges" in raw:
            raw["charges"] = with_totals(raw["charges"], self.graph.charge, self.graph)
        if "hirshfeld_ratios" in raw:
            self.signs = raw["hirshfeld_ratios"].sign()
            raw["hirshfeld_ratios"] = raw["hirshfeld_ratios"].abs()
        return AtomOutputs(**raw, features=after)

    def d_messages(self, d_outputs: AtomOutputs) -> tuple[Tensor, Tensor]:
        """dE / d outputs -> dE / d features and dE / d Euclidean variables of the last layer."""
        d_raw = {name: getattr(d_outputs, name) for name in self.by_head}
        if "charges" in d_raw:
            # the shift is its own transpose, except for the totals, which are constants
            none = torch.zeros_like(self.graph.charge)
            d_raw["charges"] = with_totals(d_raw["charges"], none, self.graph)
        if "hirshfeld_ratios" in d_raw:
            d_raw["hirshfeld_ratios"] = d_raw["hirshfeld_ratios"] * self.signs
        # a head treats every atom alone: its gradient is that of the sum, scaled row by row
        factors = [d_raw[name].to(torch.float32).unsqueeze(1) for name in self.by_head]
        first, *others = factors
        found = []
        for of_first, *of_others in zip(*self.by_head.values(), strict=True):
            total = of_first * first
            for factor, of_head in zip(others, of_others, strict=True):
                total.addcmul_(factor, of_head)
            found.append(total)
        return found[0], found[1]

    @torch.no_grad()
    def pull(self, d_outputs: AtomOutputs) -> Tensor:
        """dE / d outputs -> dE / d vectors [n_edges, 3]."""
        graph, workspace, n_edges = self.graph, self.workspace, self.graph.n_edges
        with torch.cuda.device_of(graph.vectors):
            d_features, d_received = self.d_messages(d_outputs)
            self.known["d_lengths"] = workspace.single(n_edges)
            self.known["d_spherical"] = workspace.single(n_edges, self.engine.orders)
            for l in range(self.last, -1, -1):
                d_features, d_received = self.attend_gradient(l, d_features, d_received)
            d_vectors = workspace.double(n_edges, 3)
            if n_edges:
                launch(
                    gradient_by_vectors,
                    (-(-n_edges // GEOMETRY_EDGES),),
                    self.known,
                    mask=graph.edge_mask,
                    d_vectors=d_vectors,
                    n_edges=n_edges,
                    B=GEOMETRY_EDGES,
                )
        return d_vectors

    def edges(self) -> dict[str, Tensor]:
        """Return the edges that count, moved together, and where those of each atom begin."""
        graph, workspace, n_edges = self.graph, self.workspace, self.graph.n_edges
        slots, rows = counted_edges(graph)
        found = {
            "found_vectors": workspace.double(n_edges, 3),
            "found_receivers": workspace.whole(n_edges),
            "found_senders": workspace.whole(n_edges),
            "knots": workspace.whole(n_edges),
            "places": workspace.single(n_edges),
            "envelopes": workspace.single(n_edges),
            "envelope_slopes": workspace.single(n_edges),
            "spherical": workspace.single(n_edges, self.engine.orders),
        }
        if n_edges:
            launch(
                find_edges,
                (-(-n_edges // GEOMETRY_EDGES),),
                found,
                self.known,
                vectors=graph.vectors.contiguous(),
                receivers=graph.receivers,
                senders=graph.senders,
                mask=graph.edge_mask,
                slots=slots,
                n_edges=n_edges,
                B=GEOMETRY_EDGES,
            )
        found["slots"], found["rows"] = slots, rows
        return found | {name: found[f"found_{name}"] for name in ("receivers", "senders")}

    def bare_features(self) -> Tensor:
        """Return features [n_atoms, F] of bare atoms; if tabulated, the first layer fills them."""
        features = self.workspace.single(self.n, self.width)
        if self.engine.by_kind:
            unused = features
            self.projected, self.ev = [unused], [unused]
            return features
        features.copy_(self.engine.embedding(self.graph))
        projected = self.workspace.single(self.n, 5 * self.width)
        projection = self.layers[0].projection
        launch(
            project,
            self.by_part,
            self.known,
            features=features,
            projected=projected,
            projection=projection,
        )
        ev = self.workspace.single(self.n, self.engine.orders)
        if self.engine.starts:
            launch(start_ev, self.by_atom, self.known, ev=ev)
        self.projected, self.ev = [projected], [ev]
        return features

    def attend(self, l: int, features: Tensor) -> None:
        """Add the messages of layer l to the features."""
        received = self.workspace.single(self.n, self.engine.orders)
        self.received.append(received)
        if l == 0 and self.engine.by_kind:
            launch(first_messages, self.by_atom, self.known, features=features, ev_after=received)
            return
        w = self.filters(l)
        if self.keeps_filters:
            self.kept_filters[l] = w
        launch(
            messages,
            (self.n, 2),
            self.known,
            RESTS=self.rests(l),
            w=w,
            projected=self.projected[l],
            ev=self.ev[l],
            features=features,
            ev_after=received,
        )

    def rests(self, l: int) -> bool:
        """Return True if the Euclidean variables of layer l are zero."""
        return l == 0 and not self.engine.starts

    def filters(self, l: int) -> Tensor:
        """Return the filters of layer l, [n_edges, 2 F]."""
        n_edges = self.graph.n_edges
        w = self.workspace.single(n_edges, 2 * self.width)
        if n_edges:
            launch(
                filters,
                (-(-n_edges // FILTER_EDGES),),
                vars(self.layers[l]),
                self.known,
                RESTS=self.rests(l),
                ev=self.ev[l],
                w=w,
            )
        return w

    def update(self, l: int, features: Tensor) -> Tensor:
        """Compute queries, keys and values of the next layer from the messages of layer l."""
        n, width, workspace = self.n, self.width, self.workspace
        after = workspace.single(n, width)
        self.ev.append(workspace.single(n, self.engine.orders))
        self.projected.append(workspace.single(n, 5 * width))
        self.kept.append(
            {
                "normal_before": workspace.single(n, width),
                "normal_after": workspace.single(n, width),
                "hidden_layers": workspace.single(n, width),
                "inverses": workspace.single(n, 2),
                "gains": workspace.single(n, self.engine.shape["L"]),
            }
        )
        launch(
            update,
            self.by_part,
            vars(self.layers[l]),
            self.known,
            self.kept[l],
            projection=self.layers[l + 1].projection,
            features=features,
            ev=self.received[l],
            features_after=after,
            ev_after=self.ev[l + 1],
            projected=self.projected[l + 1],
        )
        return after

    def attend_gradient(
        self, l: int, d_features: Tensor, d_received: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reverse of `attend` and the `update` before it; return these gradients one layer down."""
        n, width, workspace, engine = self.n, self.width, self.workspace, self.engine
        given = {"d_features": d_features, "d_received": d_received, "ADDS": l < self.last}
        if l == 0 and engine.by_kind:
            launch(first_messages_gradient, self.by_atom, self.known, given)
            return d_features, d_received
        d_projected = workspace.single(n, 5 * width)
        w = self.kept_filters.pop(l) if self.keeps_filters else self.filters(l)
        launch(
            messages_gradient,
            (n, 2),
            self.known,
            given,
            projected=self.projected[l],
            w=w,
            d_projected=d_projected,
        )
        d_ev = self.filters_gradient(l, w, given)
        if l == 0:
            if engine.starts:
                launch(start_ev_gradient, self.by_atom, self.known, d_ev=d_ev)
            return d_features, d_received
        below, d_received = workspace.single(n, width), workspace.single(n, engine.orders)
        launch(
            update_gradient,
            self.by_tile,
            vars(self.layers[l - 1]),
            self.known,
            self.kept[l - 1],
            projection_transposed=self.layers[l].projection_transposed,
            d_next=d_features,
            d_projected=d_projected,
            d_ev_after=d_ev,
            ev=self.received[l - 1],
            d_features=below,
            d_ev=d_received,
        )
        return below, d_received

    def filters_gradient(self, l: int, w: Tensor, given: dict[str, Any]) -> Tensor:
        """Reverse of `filters`, from the gradient w; return that with respect to layer l's ev."""
        n_edges, rests = self.graph.n_edges, self.rests(l)
        d_differences = self.workspace.single(0 if rests else n_edges, self.engine.orders)
        if n_edges:
            launch(
                filters_gradient,
                (-(-n_edges // FILTER_EDGES),),
                vars(self.layers[l]),
                self.known,
                given,
                RESTS=rests,
                ev=self.ev[l],
                w=w,
                d_differences=d_differences,
            )
        d_received: Tensor = given["d_received"]
        if rests:
            return d_received
        d_ev = torch.empty_like(d_received)
        launch(ev_gradient, self.by_atom, self.known, given, d_differences=d_differences, d_ev=d_ev)
        return d_ev
