"""Nuclear repulsion with fixed parameters on a GPU: two kernels; autograd launches 160."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from attncalc.graph import Graph, LinearizedTerm
from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.kernels.gpu.formulas import sigmoid
from attncalc.kernels.gpu.launching import Workspace, counted_edges, launch

# edges of a program of `repel`, and of a block in the sum over the edges of an atom
EDGES, BLOCK = 128, 32


@triton.jit(do_not_specialize=["n_edges"])
def repel(
    vectors,
    receivers,
    senders,
    mask,
    species,
    slots,
    charges,
    inverse_lengths,
    exponents,
    weights,
    limits,
    of_edges,
    gradient,
    n_edges,
    TERMS: tl.constexpr,
    B: tl.constexpr,
):
    """Compute half of a pair's energy, and its gradient, dE / d vector, for each edge of the pair.

    Args:
        vectors .. species: of the graph.
        slots: [n_edges], position of an edge in `of_edges`, if it counts.
        charges, inverse_lengths, exponents, weights: see `numbers_of`; TERMS exponents.
        limits: [2] Å, float64: cutoff, and distance from which on the repulsion is zero.
        of_edges: [n_edges] eV, float64, stored without gaps for the edges that count.
        gradient: [n_edges, 3] eV/Å, float64, stored; zero where the repulsion is zero.
    """
    e = tl.program_id(0) * B + tl.arange(0, B)
    inside = e < n_edges
    counts = inside & (tl.load(mask + e, mask=inside, other=0) != 0)
    wide = e.to(tl.int64)
    x = tl.load(vectors + 3 * wide, mask=counts, other=1.0)
    y = tl.load(vectors + 3 * wide + 1, mask=counts, other=0.0)
    z = tl.load(vectors + 3 * wide + 2, mask=counts, other=0.0)
    length = tl.sqrt(x * x + y * y + z * z)
    cutoff, switch_off = tl.load(limits), tl.load(limits + 1)
    end = tl.minimum(cutoff, switch_off)
    # NaN counts as close and stays NaN; edges that are not close get any harmless length
    close = counts & ~(length >= end)
    d = tl.where(close, length, 0.5 * end)
    i, j = tl.load(receivers + e, mask=close, other=0), tl.load(senders + e, mask=close, other=0)
    a, b = tl.load(species + i), tl.load(species + j)
    inverse_length = tl.load(inverse_lengths + a) + tl.load(inverse_lengths + b)
    screening, d_screening = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    for m in tl.static_range(TERMS):
        rate = tl.load(exponents + m) * inverse_length
        term = tl.load(weights + m) * tl.exp(-rate * d)
        screening += term
        d_screening -= rate * term
    s = d / cutoff
    envelope = (1 - s) * (1 - s) * (1 - s) * (1 + s * (3 + 6 * s))
    d_envelope = -30 * s * s * (1 - s) * (1 - s) / cutoff
    t = d / switch_off
    switch = sigmoid(1 / t - 1 / (1 - t))
    d_switch = -switch * (1 - switch) * (1 / (t * t) + 1 / ((1 - t) * (1 - t))) / switch_off
    half = tl.load(charges + a) * tl.load(charges + b) / (2 * d)
    energy = half * envelope * switch * screening
    slope = half * (
        (d_envelope * switch + envelope * d_switch) * screening + envelope * switch * d_screening
    )
    slot = tl.load(slots + e, mask=counts, other=0)
    tl.store(of_edges + slot, tl.where(close, energy, 0.0), mask=counts)
    per_length = (slope - energy / d) / d
    tl.store(gradient + 3 * wide, tl.where(close, per_length * x, 0.0), mask=inside)
    tl.store(gradient + 3 * wide + 1, tl.where(close, per_length * y, 0.0), mask=inside)
    tl.store(gradient + 3 * wide + 2, tl.where(close, per_length * z, 0.0), mask=inside)


@triton.jit
def sum_edges(rows, of_edges, energies, B: tl.constexpr):
    """Store the energy of each atom [n_atoms], the sum over its edges in a fixed order.

    Args:
        rows: [n_atoms + 1], where the edges of an atom begin in `of_edges`.
    """
    i = tl.program_id(0)
    first, last = tl.load(rows + i), tl.load(rows + i + 1)
    total = tl.zeros([B], tl.float64)
    for start in range(first, last, B):
        e = start + tl.arange(0, B)
        total += tl.load(of_edges + e, mask=e < last, other=0.0)
    tl.store(energies + i, tl.sum(total))


class GPUFrozenZBL(FrozenZBL):
    """Replacement for a `ZBLRepulsion` with fixed parameters, on a GPU.

    Args:
        term: a `ZBLRepulsion` with the physnet cutoff function; it is not changed.
        coulomb_constant: eV Å.
        switch_off: Å, distance from which on the repulsion is zero.
    """

    def __init__(self, term: Any, coulomb_constant: float, switch_off: float) -> None:
        super().__init__(term, coulomb_constant, switch_off)
        *arrays, cutoff, end = self.arguments
        names = ("charges", "inverse_lengths", "exponents", "weights", "limits")
        device = term.exponents.device
        self.numbers: dict[str, Any] = {
            name: torch.tensor(array, dtype=torch.float64, device=device)
            for name, array in zip(names, [*arrays, [cutoff, end]], strict=True)
        }
        self.numbers["TERMS"] = len(self.numbers["exponents"])

    @torch.no_grad()
    def linearize(self, graph: Graph, outputs: Any) -> LinearizedTerm:
        """Return energies [n_atoms] eV, and dE / d vectors [n_edges, 3] of their sum."""
        del outputs
        workspace = Workspace(graph.vectors.device)
        energies, gradient = workspace.double(graph.n_atoms), workspace.double(graph.n_edges, 3)
        if graph.n_edges == 0:
            return LinearizedTerm(energies.zero_(), gradient, {})
        slots, rows = counted_edges(graph)
        of_edges = workspace.double(graph.n_edges)
        with torch.cuda.device_of(graph.vectors):
            launch(
                repel,
                (-(-graph.n_edges // EDGES),),
                self.numbers,
                vectors=graph.vectors.contiguous(),
                receivers=graph.receivers.contiguous(),
                senders=graph.senders.contiguous(),
                mask=graph.edge_mask.contiguous(),
                species=graph.species.contiguous(),
                slots=slots,
                of_edges=of_edges,
                gradient=gradient,
                n_edges=graph.n_edges,
                B=EDGES,
            )
            launch(
                sum_edges,
                (graph.n_atoms,),
                rows=rows,
                of_edges=of_edges,
                energies=energies,
                B=BLOCK,
            )
        return LinearizedTerm(energies, gradient, {})
