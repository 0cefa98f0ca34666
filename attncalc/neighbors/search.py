"""Common steps of all neighbour lists before and after the search, so that all agree.

A backend only proposes candidates, up to slightly beyond the cutoff. Edges are selected and ordered
here, from the same edge vectors that the network gets.
"""

from __future__ import annotations

import math

import torch
from ase.data import chemical_symbols
from torch import Tensor

from attncalc.graph import Edges, edge_vectors
from attncalc.system import LARGEST_COORDINATE, SMALLEST_ROOM, System

MIN_DISTANCE = 1e-3
"""Å: atoms closer than this count as on top of each other, which is always a mistake."""

SEARCH_MARGIN = 1e-6
"""Å beyond the cutoff that a backend searches, so that its rounding cannot lose an edge."""


def check_search(system: System, cutoff: float) -> None:
    """Refuse systems for which no neighbour list can be built.

    Raises:
        ValueError: `cutoff` is not a positive number, a position or cell is not finite, or a cell
            has hardly any volume.
    """
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff must be a positive number of Å, got {cutoff}")
    # "<=" is False for NaN
    near = (system.positions.abs() <= LARGEST_COORDINATE).all()
    if not (near & system.cell.isfinite().all()):
        _refuse_not_finite(system)
    closed = system.pbc.all(1)
    if bool(closed.any()):  # a cell that collapses has too many neighbours for any memory
        n_atoms = torch.bincount(system.system_idx, minlength=system.n_systems)
        room = torch.linalg.det(system.cell.detach()).abs() / n_atoms
        if bool((small := closed & (room < SMALLEST_ROOM)).any()):
            k = int(small.nonzero()[0])
            where = f" of structure {k}" if system.n_systems > 1 else ""
            raise ImpossiblePositions(
                f"the cell{where} has a volume of {float(room[k]):.2g} Å³ per atom: are its "
                "vectors in Å? If this happened during a simulation, it has exploded"
            )


class ImpossiblePositions(ValueError):
    """Error for positions that are not finite, too far away or equal, as after an explosion."""


def _refuse_not_finite(system: System) -> None:
    bad = ~system.positions.detach().isfinite().all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ImpossiblePositions(
            f"the position of {_atom(system, first)}{_structure(system, first)} is not finite: "
            f"{system.positions[first].tolist()}; if this happened during a simulation, it has "
            "exploded: use a smaller timestep or relax the structure first"
        )
    far = system.positions.detach().abs().amax(1) > LARGEST_COORDINATE
    if far.any():
        first = int(far.nonzero()[0])
        raise ImpossiblePositions(
            f"the position of {_atom(system, first)}{_structure(system, first)} is more than "
            f"{LARGEST_COORDINATE:.0e} Å from the origin: {system.positions[first].tolist()}; if "
            "this happened during a simulation, it has exploded: use a smaller timestep or relax "
            "the structure first"
        )
    k = int((~system.cell.detach().isfinite().flatten(1).all(1)).nonzero()[0])
    where = f" of structure {k}" if system.n_systems > 1 else ""
    raise ValueError(f"the cell{where} is not finite: {system.cell[k].tolist()}")


def complete_cell(system: System) -> Tensor:
    """Return the cell [n_systems, 3, 3] Å with its open directions replaced by unit normals.

    The normals are orthogonal to every periodic cell vector and to each other; the given vectors
    of open directions, often zero, are ignored.
    """
    pbc = system.pbc
    if bool(pbc.all()):  # finding eigenvectors takes a millisecond on a GPU
        return system.cell.detach()
    periodic = system.cell.detach() * pbc[:, :, None]
    if not bool(pbc.any()):
        return torch.eye(3, dtype=periodic.dtype, device=pbc.device).expand_as(periodic)
    # eigenvalues ascend: directions orthogonal to all periodic vectors (eigenvalue 0) come first
    normals = torch.linalg.eigh(periodic.mT @ periodic).eigenvectors.mT
    nth_open = ((~pbc).cumsum(1) - 1).clamp(min=0)
    normals = normals.gather(1, nth_open[:, :, None].expand(-1, -1, 3))
    return torch.where(pbc[:, :, None], periodic, normals)


def bounding_cell(system: System, *, max_extent: float = math.inf) -> tuple[Tensor, Tensor]:
    """Return a cell that holds the atoms along the open directions.

    Args:
        system: the structures.
        max_extent: Å; longer boxes are cut to this, around the middle of the atoms' range.

    Returns:
        cell: [n_systems, 3, 3] Å; periodic vectors as given, open ones span the atoms and 1 Å more.
        origin: [n_systems, 3] Å: the corner of this cell.
    """
    cell = complete_cell(system)
    inverse = torch.linalg.inv(cell)[system.system_idx]
    along = torch.einsum("nc,nck->nk", system.positions.detach(), inverse)  # [n_atoms, 3]
    index = system.system_idx[:, None].expand_as(along)
    empty = along.new_zeros(system.n_systems, 3)
    low = empty.scatter_reduce(0, index, along, "amin", include_self=False)
    high = empty.scatter_reduce(0, index, along, "amax", include_self=False)
    extent = (high - low + 1.0).clamp(max=max_extent)
    corner = torch.where(system.pbc, 0.0, (low + high - extent) / 2)
    origin = torch.einsum("sk,skc->sc", corner, cell)
    return torch.where(system.pbc[:, :, None], cell, extent[:, :, None] * cell), origin


@torch.no_grad()
def select_edges(
    system: System, receivers: Tensor, senders: Tensor, cell_shifts: Tensor, cutoff: float
) -> Edges:
    """Select the candidates closer than the cutoff, sorted by receiver, then sender, then shift.

    Args:
        system: the structures.
        receivers: [n] integers, any order.
        senders: [n] integers.
        cell_shifts: [n, 3] integers.
        cutoff: Å.

    Raises:
        ValueError: two atoms, or an atom and its periodic image, lie on top of each other.
    """
    candidates = Edges(receivers.long(), senders.long(), cell_shifts.long())
    lengths = torch.linalg.vector_norm(edge_vectors(system, candidates), dim=1)
    near = (lengths < cutoff).nonzero().squeeze(1)
    refuse_overlap(system, candidates, lengths)
    receivers, senders = candidates.receivers[near], candidates.senders[near]
    cell_shifts = candidates.cell_shifts[near]
    order = edge_order(receivers * system.n_atoms + senders, cell_shifts)
    return Edges(receivers[order], senders[order], cell_shifts[order])


def edge_order(pair: Tensor, cell_shifts: Tensor) -> Tensor:
    """Return the order [n_edges] by `pair`, then by shift; two stable sorts cannot overflow."""
    if cell_shifts.shape[0] == 0:
        return pair
    low = cell_shifts.amin(0)
    width = cell_shifts.amax(0) - low + 1
    a, b, c = (cell_shifts - low).unbind(1)
    order = torch.argsort((a * width[1] + b) * width[2] + c, stable=True)
    return order[torch.argsort(pair[order], stable=True)]


def refuse_overlap(system: System, edges: Edges, lengths: Tensor) -> None:
    """Raise if an edge is shorter than `MIN_DISTANCE`.

    Args:
        system: the structures.
        edges: pairs of atoms.
        lengths: [n_edges] Å.

    Raises:
        ValueError: it is; the message names the two atoms by their index within their structure.
    """
    if lengths.shape[0] == 0 or lengths.amin() >= MIN_DISTANCE:
        return
    shortest = int(lengths.argmin())
    i, j = int(edges.receivers[shortest]), int(edges.senders[shortest])
    distance = f"{float(lengths[shortest]):.1e} Å apart{_structure(system, i)}"
    if i == j:
        raise ImpossiblePositions(
            f"{_atom(system, i)} and its own periodic image are {distance}: a cell vector is too "
            "short, check atoms.cell and atoms.pbc"
        )
    raise ImpossiblePositions(
        f"{_atom(system, min(i, j))} and {_atom(system, max(i, j))} are {distance}: remove one of "
        "the two or move them apart (in a periodic cell one may be the image of the other)"
    )


def _atom(system: System, atom: int) -> str:
    first = int((system.system_idx < system.system_idx[atom]).sum())
    return f"atom {atom - first} ({chemical_symbols[int(system.atomic_numbers[atom])]})"


def _structure(system: System, atom: int) -> str:
    return f" in structure {int(system.system_idx[atom])}" if system.n_systems > 1 else ""
