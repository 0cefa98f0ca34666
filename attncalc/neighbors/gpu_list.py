"""Neighbour list on a GPU by one Triton kernel, for structures of up to a few thousand atoms.

All pairs of atoms of a structure are tried, which a GPU does faster than Python launches the many
operations of `torch_list`. A program has one receiver and walks through all atoms in blocks. It
runs twice: first it counts edges, then it stores them in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attncalc.graph import Edges, edge_vectors
from attncalc.neighbors.search import MIN_DISTANCE, check_search, complete_cell, refuse_overlap
from attncalc.system import System

BLOCK = 128


@triton.jit
def _shift(lowest, nth, is_open):
    """Return the nth cell shift along a direction; 0 along an open one."""
    return tl.where(is_open, 0.0, lowest + nth)


@triton.jit
def _search(
    positions,
    cells,
    inverses,
    depths,
    n_shifts,
    system_idx,
    first_atoms,
    cutoffs,
    starts,
    counts,
    nearest,
    receivers,
    senders,
    cell_shifts,
    STORES: tl.constexpr,
    B: tl.constexpr,
):
    """Count the edges of an atom, or store them sorted by sender, then by cell shift.

    A pair is tried with every shift for which it may be within the cutoff. Both of its edges have
    the same vector but for its sign, to the bit, so both are found or none.

    Args:
        positions, cells: [n_atoms, 3], [n_systems, 9] Å.
        inverses: [n_systems, 9] 1/Å, of cells with open directions completed.
        depths: [n_systems, 3]: the cutoff as a multiple of the distance of lattice planes; negative
            along open directions.
        n_shifts: [n_systems, 3], int32: number of shifts to be tried along each direction.
        first_atoms: [n_systems + 1].
        cutoffs: [1] Å, a tensor, since Triton rounds Python's numbers to single precision.
        starts: [n_atoms], number of edges of all atoms before; read if STORES.
        counts, nearest: [n_atoms], number of edges, shortest distance, stored unless STORES.
        receivers, senders, cell_shifts: stored if STORES.
    """
    i = tl.program_id(0)
    system = tl.load(system_idx + i)
    begin, end = tl.load(first_atoms + system), tl.load(first_atoms + system + 1)
    cutoff = tl.load(cutoffs)
    xi, yi, zi = (
        tl.load(positions + 3 * i),
        tl.load(positions + 3 * i + 1),
        tl.load(positions + 3 * i + 2),
    )
    cell, inverse = cells + 9 * system, inverses + 9 * system
    ax, ay, az = tl.load(cell), tl.load(cell + 1), tl.load(cell + 2)
    bx, by, bz = tl.load(cell + 3), tl.load(cell + 4), tl.load(cell + 5)
    cx, cy, cz = tl.load(cell + 6), tl.load(cell + 7), tl.load(cell + 8)
    deep_a, deep_b = tl.load(depths + 3 * system), tl.load(depths + 3 * system + 1)
    deep_c = tl.load(depths + 3 * system + 2)
    n_a, n_b = tl.load(n_shifts + 3 * system), tl.load(n_shifts + 3 * system + 1)
    n_c = tl.load(n_shifts + 3 * system + 2)
    total = tl.zeros([], tl.int32)
    shortest = tl.full([B], float("inf"), tl.float64)
    if STORES:
        total += tl.load(starts + i).to(tl.int32)
    for start in range(begin, end, B):
        j = start + tl.arange(0, B)
        inside = j < end
        x = tl.load(positions + 3 * j, mask=inside, other=0.0) - xi
        y = tl.load(positions + 3 * j + 1, mask=inside, other=0.0) - yi
        z = tl.load(positions + 3 * j + 2, mask=inside, other=0.0) - zi
        along_a = x * tl.load(inverse) + y * tl.load(inverse + 3) + z * tl.load(inverse + 6)
        along_b = x * tl.load(inverse + 1) + y * tl.load(inverse + 4) + z * tl.load(inverse + 7)
        along_c = x * tl.load(inverse + 2) + y * tl.load(inverse + 5) + z * tl.load(inverse + 8)
        low_a, low_b = tl.floor(-along_a - deep_a), tl.floor(-along_b - deep_b)
        low_c = tl.floor(-along_c - deep_c)
        # first all edges are counted, then, knowing where each atom's begin, they are stored
        found = tl.zeros([B], tl.int32)
        slot = tl.zeros([B], tl.int32)
        for storing in tl.static_range(2):
            if storing == 0 or STORES:
                if storing == 1:
                    slot = total + tl.cumsum(found, 0) - found
                for a in range(n_a):
                    sa = _shift(low_a, a, deep_a < 0)
                    for b in range(n_b):
                        sb = _shift(low_b, b, deep_b < 0)
                        for c in range(n_c):
                            sc = _shift(low_c, c, deep_c < 0)
                            dx = x + (sa * ax + sb * bx + sc * cx)
                            dy = y + (sa * ay + sb * by + sc * cy)
                            dz = z + (sa * az + sb * bz + sc * cz)
                            d = tl.sqrt(dx * dx + dy * dy + dz * dz)
                            itself = (j == i) & (sa == 0) & (sb == 0) & (sc == 0)
                            within = inside & (d < cutoff) & (itself == 0)
                            if storing == 0:
                                found += within.to(tl.int32)
                                shortest = tl.minimum(shortest, tl.where(within, d, float("inf")))
                            else:
                                tl.store(receivers + slot, i.to(tl.int64), mask=within)
                                tl.store(senders + slot, j.to(tl.int64), mask=within)
                                at = cell_shifts + 3 * slot.to(tl.int64)
                                tl.store(at, sa.to(tl.int64), mask=within)
                                tl.store(at + 1, sb.to(tl.int64), mask=within)
                                tl.store(at + 2, sc.to(tl.int64), mask=within)
                                slot += within.to(tl.int32)
        total += tl.sum(found, 0)
    if not STORES:
        tl.store(counts + i, total)
        tl.store(nearest + i, tl.min(shortest, 0))


@torch.no_grad()
def triton_list(system: System, cutoff: float) -> Edges:
    """Return all pairs closer than the cutoff [Å], as `attncalc.neighbors.neighbor_list` does.

    The work is the square of the number of atoms of a structure.
    """
    check_search(system, cutoff)
    device, n_atoms = system.device, system.n_atoms
    inverse = torch.linalg.inv(complete_cell(system))
    # a column's length is one over the distance of lattice planes
    depths = torch.linalg.vector_norm(inverse, dim=1) * cutoff + 1e-6  # rounding loses no shift
    n_shifts = torch.where(system.pbc, 2 * depths + 2, 1.0).int()
    numbers = torch.arange(system.n_systems + 1, device=device)
    known = {
        "positions": system.positions.detach().contiguous(),
        "cells": system.cell.detach().contiguous(),
        "inverses": inverse.contiguous(),
        "depths": torch.where(system.pbc, depths, -1.0),
        "n_shifts": n_shifts,
        "system_idx": system.system_idx,
        "first_atoms": torch.searchsorted(system.system_idx, numbers),
        "cutoffs": torch.full((1,), cutoff, dtype=torch.float64, device=device),
    }
    counts = torch.empty(n_atoms, dtype=torch.int32, device=device)
    nearest = torch.empty(n_atoms, dtype=torch.float64, device=device)
    _launch(known, counts, {"counts": counts, "nearest": nearest})
    ends = counts.cumsum(0)
    n_edges, shortest = torch.stack((ends[-1].double(), nearest.amin())).tolist()
    pairs = torch.empty(2, int(n_edges), dtype=torch.int64, device=device)
    shifts = torch.empty(int(n_edges), 3, dtype=torch.int64, device=device)
    stored = {"receivers": pairs[0], "senders": pairs[1], "cell_shifts": shifts}
    _launch(known, ends - counts, stored)
    edges = Edges(pairs[0], pairs[1], shifts)
    if shortest < MIN_DISTANCE:
        refuse_overlap(system, edges, torch.linalg.vector_norm(edge_vectors(system, edges), dim=1))
    return edges


def _launch(known: dict[str, Tensor], starts: Tensor, stored: dict[str, Tensor]) -> None:
    """Count edges or store them; tensors that are not used are replaced by others."""
    names = ("counts", "nearest", "receivers", "senders", "cell_shifts")
    others = {name: stored.get(name, starts) for name in names}
    with torch.cuda.device_of(starts):
        _search[(starts.shape[0],)](
            **known, starts=starts, **others, STORES="receivers" in stored, B=BLOCK
        )
