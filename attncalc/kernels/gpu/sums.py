"""Forces and strain gradient from edge gradients on a GPU: one kernel and a sort.

Sums have a fixed order. `index_put` with accumulation has one too, but adds rows of equal index one
after the other; padding edges all belong to the last atom. It took 6 of 10 ms for 1,536 atoms of
water on an H200.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attncalc.graph import Graph, SummedGradient
from attncalc.kernels.gpu.formulas import store_sums
from attncalc.kernels.gpu.launching import Workspace, launch, row_pointers
from attncalc.ops import segment_sum

# edges of a block in the loops over the edges of an atom
BLOCK = 32


@triton.jit
def sum_gradients(
    vectors, gradient, mask, rows, order, sent_rows, forces, virials, B: tl.constexpr
):
    """Sum the gradients of all edges of an atom.

    Args:
        vectors, gradient: [n_edges, 3], float64; not read where `mask` is false.
        rows: [n_atoms + 1], where the edges begin that an atom receives.
        order, sent_rows: edges in the order of their senders, and where those of an atom begin.
        forces: [n_atoms, 3], stored.
        virials: [n_atoms, 9], vector (x) gradient of received edges, symmetric, stored.
    """
    i = tl.program_id(0)
    fx, fy, fz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    xx, yy, zz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    xy, xz, yz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    first, last = tl.load(rows + i), tl.load(rows + i + 1)
    for start in range(first, last, B):
        e = start + tl.arange(0, B)
        inside = tl.load(mask + e, mask=e < last, other=0) != 0
        at = 3 * e.to(tl.int64)
        gx = tl.load(gradient + at, mask=inside, other=0.0)
        gy = tl.load(gradient + at + 1, mask=inside, other=0.0)
        gz = tl.load(gradient + at + 2, mask=inside, other=0.0)
        x = tl.load(vectors + at, mask=inside, other=0.0)
        y = tl.load(vectors + at + 1, mask=inside, other=0.0)
        z = tl.load(vectors + at + 2, mask=inside, other=0.0)
        fx += gx
        fy += gy
        fz += gz
        xx += x * gx
        yy += y * gy
        zz += z * gz
        xy += x * gy + y * gx
        xz += x * gz + z * gx
        yz += y * gz + z * gy
    first, last = tl.load(sent_rows + i), tl.load(sent_rows + i + 1)
    for start in range(first, last, B):
        e = start + tl.arange(0, B)
        inside = e < last
        at = 3 * tl.load(order + e, mask=inside, other=0).to(tl.int64)
        fx -= tl.load(gradient + at, mask=inside, other=0.0)
        fy -= tl.load(gradient + at + 1, mask=inside, other=0.0)
        fz -= tl.load(gradient + at + 2, mask=inside, other=0.0)
    store_sums(forces, virials, i, fx, fy, fz, xx, yy, zz, 0.5 * xy, 0.5 * xz, 0.5 * yz)


@torch.no_grad()
def sum_over_edges(graph: Graph, gradient: Tensor) -> SummedGradient:
    """Return forces and strain gradient from dE / d vectors [n_edges, 3], float64.

    Edges that do not count are left out.
    """
    n = graph.n_atoms
    workspace = Workspace(gradient.device)
    forces, virials = workspace.double(n, 3), workspace.double(n, 9)
    senders, order = torch.where(graph.edge_mask, graph.senders, n).sort(stable=True)
    with torch.cuda.device_of(gradient):
        launch(
            sum_gradients,
            (n,),
            vectors=graph.vectors.contiguous(),
            gradient=gradient.contiguous(),
            mask=graph.edge_mask,
            rows=row_pointers(graph),
            order=order,
            sent_rows=torch.searchsorted(senders, torch.arange(n + 1, device=gradient.device)),
            forces=forces,
            virials=virials,
            B=BLOCK,
        )
    return SummedGradient(forces, sum_of_systems(virials, graph))


def sum_of_systems(virials: Tensor, graph: Graph) -> Tensor:
    """Return [n_systems, 3, 3] from virials of atoms [n_atoms, 9].

    It is summed in a fixed order for one structure, in any for several.
    """
    if graph.n_systems == 1:
        return virials.sum(0).view(1, 3, 3)
    return segment_sum(virials, graph.system_idx, graph.n_systems).view(-1, 3, 3)
