"""Engine of Equiformer on a CPU: calls the compiled loops.

It equals `attncalc.nn.equiformer.Equiformer` in float32, for weights that no longer change. Nothing
is tabulated: the arithmetic is the same, in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from attncalc.graph import Graph, GraphArrays
from attncalc.kernels.equiformer.atom_loops import AtomWorkspace
from attncalc.kernels.equiformer.geometry_loops import Edges, Radial
from attncalc.kernels.equiformer.message_loops import AtomRows, EdgeWorkspace
from attncalc.kernels.equiformer.packing import KINDS, layout_of, plan_of, weights_of
from attncalc.kernels.equiformer.step_loop import (
    Kept,
    KeptOfEdges,
    Numbers,
    forward,
    hold,
    reverse,
)
from attncalc.kernels.simd.barrier import Barrier
from attncalc.kernels.simd.engine import CompiledEngine, Workspaces
from attncalc.kernels.simd.held import Held
from attncalc.kernels.simd.lanes import LANES, filled_up
from attncalc.kernels.simd.partition import Part

# edges that are processed at once: few enough for their data to stay in the cache, many enough for
# the weights to be read from there more than once
CHUNK = 128
# bytes: if all blocks together would keep more, edges are computed again for the gradient
LARGEST_KEPT = 1 << 29


def can_run(network: Any) -> bool:
    """Return True if the loops support this network: its widths must fill the vectors."""
    return (
        network.element.dtype == torch.float32
        and network.config.num_heads <= LANES
        and not any(width % LANES for width in widths(network).values())
    )


def widths(network: Any) -> dict[str, int]:
    """Return the widths that must fill vectors."""
    c = network.config
    found = {f"channels of degree {degree}": width for degree, width in enumerate(c.channels)}
    found |= {"radial_features": c.radial_features, "head_features": c.head_features}
    if c.attention != "dot":
        found["num_heads * attention_features"] = c.num_heads * c.attention_features
    return found


class Engine(CompiledEngine[Held]):
    """An Equiformer as compiled loops.

    Args:
        network: an Equiformer for which `can_run` is true; it is not changed.
        shortest: Å; structures with closer atoms are not covered.
    """

    by_pairs: ClassVar = False
    fewest = 64

    def __init__(
        self,
        network: Any,
        shortest: float,
    ) -> None:
        super().__init__()
        self.config = network.config
        exact = copy.deepcopy(network).to(torch.float64)
        self.layout = layout_of(exact)
        with torch.no_grad():
            self.plan = plan_of(exact, self.layout)
            self.weights = weights_of(exact, self.plan)
            self.bias = float(exact.energy.scalar_bias.item())
            # those of the last norm, which the loops have in the weights that follow it
            scale, bias = exact.norm.scales[0], exact.norm.bias
            self.last_norm = tuple(one.numpy().astype(np.float32) for one in (scale, bias))
        self.radial = Radial(
            float(network.config.cutoff),
            float(shortest),
            network.config.cutoff_function != "none",
            exact.basis.centres.numpy(),
            exact.basis.widths.numpy(),
        )

    def _needs(self, parts: Sequence[Part]) -> tuple[int, ...]:
        n_atoms = len(parts[0].arrays.species)
        receivers = [part.arrays.receivers for part in parts]
        most = max(int(np.bincount(some, minlength=1).max()) for some in receivers)
        return n_atoms, max(map(len, receivers)), max(CHUNK, most)

    def _features(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scale, bias = self.last_norm
        return rows * scale + bias

    def _inputs(
        self, graph: Graph, arrays: GraphArrays, n_rows: int, workspaces: Workspaces[Held]
    ) -> None:
        """No inputs besides the arrays."""

    def _forward(
        self,
        part: Part,
        inputs: None,
        workspace: Held,
        outputs: NDArray[np.float64],
    ) -> int:
        arrays = part.arrays
        return forward(workspace, *arrays[:4], arrays.species, outputs[0])

    def _reverse(
        self,
        part: Part,
        n: int,
        inputs: None,
        workspace: Held,
        d_outputs: NDArray[np.float64],
        d_vectors: NDArray[np.float64],
    ) -> None:
        reverse(workspace, len(part.arrays.species), n, d_outputs[0], d_vectors)

    def _workspaces(self, barriers: Sequence[Barrier], *sizes: int) -> Workspaces[Held]:
        n, n_edges, chunk = sizes
        size, rows = len(barriers), barriers[0].n_rows
        c, w, plan = self.config, self.weights, self.plan
        n_degrees, per_degree = len(c.channels), sum(c.channels)
        width = sum((2 * l + 1) * channels for l, channels in enumerate(c.channels))
        n_blocks, head = c.num_layers, c.head_features
        n_results = int(w.product_bias[0, 3])
        n_weights = max(int(place[3]) for place in w.radial_offset)
        hidden = c.radial_features
        of_last = (
            self.layout.wide[-1] + (2 * n_degrees - 1) * c.feed_forward_factor * c.channels[-1]
        )
        wide = int(of_last)
        outer = (3 * (2 * n_degrees - 3)) ** 2
        raised = filled_up((2 * n_degrees - 1) ** 2)
        frame = int(self.layout.frame[-1]) + raised
        basis = filled_up(c.num_basis)
        attention = 0 if c.attention == "dot" else c.num_heads * c.attention_features
        queries = width if c.attention == "dot" else 0
        values = width if c.attention == "nonlinear" else 0
        keeps = 4 * n_blocks * size * n_edges * (n_results + values) <= LARGEST_KEPT
        n_kept = (n_blocks, n_edges) if keeps else (1, chunk)

        def floats(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)  # zeros: columns that fill up to 16 must stay zero

        def doubles(*shape: int) -> NDArray[np.float64]:
            return np.zeros(shape)

        def whole(size: int) -> NDArray[np.int64]:
            return np.zeros(size, np.int64)

        def own() -> tuple[Edges, KeptOfEdges, EdgeWorkspace]:
            edges = Edges(
                first=whole(n + 1),
                i=whole(n_edges),
                j=whole(n_edges),
                which=whole(n_edges),
                to=whole(n_edges),
                vectors=doubles(n_edges, 3),
                lengths=doubles(n_edges),
                envelope=doubles(n_edges),
                envelope_slope=doubles(n_edges),
                basis=floats(n_edges, basis),
                basis_slope=floats(n_edges, basis),
                frames=floats(n_edges, frame),
                d_envelope=doubles(n_edges),
                d_basis=floats(n_edges, basis),
                d_turn=doubles(n_edges, 2),
            )
            of_edges = KeptOfEdges(
                shares=doubles(n_blocks, n_edges, c.num_heads),
                raised=doubles(n_blocks, n_edges, c.num_heads),
                results=floats(*n_kept, n_results),
                values=floats(*n_kept, values),
            )
            workspace = EdgeWorkspace(
                outer=floats(chunk, outer),
                raised=floats(chunk, raised),
                radial=floats(2, chunk, hidden),
                radial_normal=floats(2, chunk, hidden),
                radial_inverse=floats(chunk, 2),
                d_radial=floats(2, chunk, hidden),
                features=floats(chunk, width),
                d_features=floats(chunk, width),
                queries=floats(chunk, queries),
                d_queries=floats(chunk, queries),
                weights=floats(chunk, n_weights),
                d_weights=floats(chunk, n_weights),
                product=floats(chunk, int(plan.units[:, :, 2].max())),
                results=floats(chunk, n_results),
                d_results=floats(chunk, n_results),
                gated=floats(chunk, width),
                d_gated=floats(chunk, width),
                values=floats(chunk, values),
                d_values=floats(chunk, values),
                per_degree=floats(chunk, per_degree),
                other_per_degree=floats(chunk, per_degree),
                leaky=floats(chunk, attention),
                logits=floats(chunk, LANES),
                attention=floats(chunk, LANES),
                row=floats(1, width),
                other_row=floats(1, width),
            )
            return edges, of_edges, workspace

        kept = Kept(
            normal=floats(n_blocks, 2, n, width),
            inverse=floats(n_blocks, 2, n, n_degrees),
            sources=floats(n_blocks, n, width),
            targets=floats(n_blocks, n, width),
            queries=floats(n_blocks, n, queries),
            wide=floats(n_blocks, n, wide),
        )
        atoms = AtomWorkspace(
            x=floats(n, width),
            d_x=floats(n, width),
            received=floats(n, width),
            spare=floats(n, width),
            gated=floats(n, wide),
            d_wide=floats(n, wide),
            sum=floats(n, head),
            normal=floats(n, head),
            hidden=floats(n, head),
            inverse=floats(n, 1),
        )
        d_rows = AtomRows(floats(rows, width), floats(n, width), floats(n, queries))
        numbers = Numbers(KINDS[c.attention], CHUNK, keeps)
        network = numbers, self.radial, self.layout, self.plan, self.weights, self.bias
        each = (hold((*network, kept, atoms, d_rows, *own(), barrier)) for barrier in barriers)
        return Workspaces(each, atoms.normal)
