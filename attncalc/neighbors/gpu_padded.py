"""Kernels of a padded neighbour list on a GPU: edge vectors, mask, and the check that it is valid.

`attncalc.neighbors.verlet` defines them by tensor operations, which take about thirty launches.
Numbers that must be exact are passed as tensors: Triton rounds Python numbers to single precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attncalc.graph import Edges
from attncalc.ops import kept_tensor
from attncalc.system import System

EDGES_PER_BLOCK, ATOMS_PER_BLOCK = 128, 128


@triton.jit
def _edges(
    positions,
    cells,
    system_idx,
    receivers,
    senders,
    cell_shifts,
    lifts,
    numbers,
    vectors,
    edge_mask,
    n_edges,
    HAS_IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = e < n_edges
    i, j = tl.load(receivers + e, here, other=0), tl.load(senders + e, here, other=0)
    squared = tl.zeros([BLOCK], tl.float64)
    cell = cells + 9 * tl.load(system_idx + i, here, other=0)
    for c in tl.static_range(3):
        x = tl.load(positions + 3 * j + c, here, other=0.0)
        x -= tl.load(positions + 3 * i + c, here, other=0.0)
        if HAS_IMAGES:
            for k in tl.static_range(3):
                shift = tl.load(cell_shifts + 3 * e + k, here, other=0).to(tl.float64)
                x += shift * tl.load(cell + 3 * k + c, here, other=0.0)
        x += tl.load(lifts + 3 * e + c, here, other=0.0)
        tl.store(vectors + 3 * e + c, x, here)
        squared += x * x
    cutoff = tl.load(numbers)
    tl.store(edge_mask + e, (tl.sqrt(squared) < cutoff).to(tl.int8), here)


@triton.jit
def _stale(
    positions,
    old_positions,
    cells,
    old_cells,
    inverse_cells,
    pbc,
    old_pbc,
    system_idx,
    old_system_idx,
    numbers,
    stale,
    n_atoms,
    IS_PERIODIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = n < n_atoms
    s = tl.load(system_idx + n, here, other=0)
    wrong = s != tl.load(old_system_idx + n, here, other=0)
    for k in tl.static_range(3):
        now, then = (
            tl.load(pbc + 3 * s + k, here, other=0),
            tl.load(old_pbc + 3 * s + k, here, other=0),
        )
        wrong = wrong | (now != then)
    reach, skin = tl.load(numbers + 1), tl.load(numbers + 2)
    norm = tl.zeros([BLOCK], tl.float64)  # of F - I, squared
    moved = tl.zeros([BLOCK], tl.float64)  # squared
    for c in tl.static_range(3):
        old = tl.load(old_positions + 3 * n + c, here, other=0.0)
        u = tl.load(positions + 3 * n + c, here, other=0.0) - old
        if IS_PERIODIC:
            for r in tl.static_range(3):
                strain = tl.zeros([BLOCK], tl.float64)  # [r, c] of F - I
                for k in tl.static_range(3):
                    at = 9 * s + 3 * k + c
                    change = tl.load(cells + at, here, other=0.0)
                    change -= tl.load(old_cells + at, here, other=0.0)
                    periodic = tl.load(old_pbc + 3 * s + k, here, other=0) != 0
                    inverse = tl.load(inverse_cells + 9 * s + 3 * r + k, here, other=0.0)
                    strain += tl.where(periodic, inverse * change, 0.0)
                norm += strain * strain
                u -= tl.load(old_positions + 3 * n + r, here, other=0.0) * strain
        moved += u * u
    holds = 2 * tl.sqrt(moved) <= skin - reach * tl.sqrt(norm)  # not for NaN
    wrong = here & (wrong | (holds == 0))
    # all blocks write the same value
    tl.store(stale + 0 * n, 1, wrong)


def edges(
    system: System, edges: Edges, lifts: Tensor, *, has_images: bool, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Return edge vectors [n_edges, 3] Å, with `lifts` added, and the mask [n_edges], bool."""
    device = system.device
    vectors = torch.empty(edges.n_edges, 3, dtype=torch.float64, device=device)
    edge_mask = torch.empty(edges.n_edges, dtype=torch.int8, device=device)
    with torch.cuda.device_of(vectors):
        _edges[(triton.cdiv(edges.n_edges, EDGES_PER_BLOCK),)](
            system.positions.contiguous(),
            system.cell.contiguous(),
            system.system_idx,
            edges.receivers,
            edges.senders,
            edges.cell_shifts,
            lifts,
            kept_tensor((cutoff, 0.0, 0.0), device),
            vectors,
            edge_mask,
            edges.n_edges,
            HAS_IMAGES=has_images,
            BLOCK=EDGES_PER_BLOCK,
        )
    return vectors, edge_mask.view(torch.bool)


def stale(
    system: System,
    reference: System,
    inverse_cell: Tensor,
    *,
    is_periodic: bool,
    cutoff: float,
    skin: float,
) -> Tensor:
    """Return [], bool: True if a list for `reference` may miss an edge of `system`."""
    found = torch.zeros((), dtype=torch.int8, device=system.device)
    with torch.cuda.device_of(found):
        _stale[(triton.cdiv(system.n_atoms, ATOMS_PER_BLOCK),)](
            system.positions.contiguous(),
            reference.positions,
            system.cell.contiguous(),
            reference.cell,
            inverse_cell.contiguous(),
            system.pbc.contiguous().view(torch.int8),
            reference.pbc.view(torch.int8),
            system.system_idx,
            reference.system_idx,
            kept_tensor((cutoff, cutoff + skin, skin), system.device),
            found,
            system.n_atoms,
            IS_PERIODIC=is_periodic,
            BLOCK=ATOMS_PER_BLOCK,
        )
    return found.view(torch.bool)
