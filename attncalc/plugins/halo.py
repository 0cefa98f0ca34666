"""`Domain`: the part of a structure that one process computes; `Owners`: messages about its ghosts.

A node of its graph is an atom, not an image: of an atom that is near in several periodic images
there is one ghost, and of the process's own atoms there is none. The graph is the part of the whole
periodic graph that can change energies of its own atoms, so nothing but `Graphs.hop_counts` tells
potentials of it, and every network has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from attncalc.graph import ALL_PAIRS, Edges, Graphs
from attncalc.neighbors import VerletList, neighbor_list
from attncalc.potential import ROUNDING, Potential, evaluate, fresh_graphs
from attncalc.sample_structures import sample_structures
from attncalc.system import System

Integers = NDArray[np.int64]

FAR = 1e4
"""Å, beyond the range of all models that have one."""


class Box(NamedTuple):
    """Periodic box.

    Attributes:
        cell: [3, 3] Å; rows are the cell vectors.
        pbc: [3], bool.
    """

    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]


class Images(NamedTuple):
    """Atoms that a process knows: first its own, then images of its own and of others.

    Attributes:
        positions: [n, 3] Å.
        ids: [n], equal for all images of an atom and different for all others.
        numbers: [n], atomic numbers; 0 for atoms that are none of the model's.
        n_own: how many are its own.
    """

    positions: NDArray[np.float64]
    ids: Integers
    numbers: Integers
    n_own: int


def depth_of(potential: Potential) -> int:
    """Number of edges between an atom and the farthest one that can change its energy."""
    return max(
        # receptive fields are a multiple of the cutoff, but for rounding
        math.ceil(network.config.receptive_field / network.config.graph_cutoff - 1e-9)
        for network in potential.networks
    )


def refuse_parts(potential: Potential) -> None:
    """Refuse potentials that cannot be computed part by part.

    Raises:
        ValueError: energies of atoms depend on the whole structure, or a pair term reaches further
            than the network.
    """
    if potential.reads_system:
        reason = "sums over all periodic images of the whole structure"
    elif potential.long_range is not None:
        reason = "has pair terms of longer range than its network"
    elif potential.cutoff >= ALL_PAIRS:
        reason = "looks at all pairs of atoms"
    elif _sees_the_whole(potential):
        reason = "sums over the whole structure"
    else:
        return
    raise ValueError(f"this model {reason}, which several processes cannot share: use one process")


def _sees_the_whole(potential: Potential) -> bool:
    """Return True if energies of a neutral structure change with atoms beyond any range."""
    atoms, other = sample_structures(potential.species)[:2]
    other.positions += FAR
    energies = []
    for structure in (atoms, atoms + other):
        system = replace(System.from_ase(structure), spin=torch.ones(1, dtype=torch.int64))
        graphs = fresh_graphs(potential, system.to(potential.device))
        energies.append(evaluate(potential, graphs).energies[: len(atoms)])
    largest = energies[0].abs().amax().clamp(min=1)
    # NaN is not less than anything
    return not bool((energies[1] - energies[0]).abs().amax() <= ROUNDING[potential.dtype] * largest)


@dataclass(frozen=True)
class Domain:
    """Own atoms of a process and its ghosts, ordered by hops, with their neighbour list.

    The structure is neutral and in a singlet state.

    **Which ghosts there are.** A hop is an edge of the list, within cutoff + skin. While the list
    holds, every edge within the cutoff is one of these, so all atoms that can be reached by `depth`
    edges are among those that were reached by `depth` hops. Edges between two of the outermost
    ghosts change no energy that counts, and are left out.

    Attributes:
        rows: [n_nodes], rows of `Images` that the nodes stand for; own atoms first.
        n_own: number of own atoms.
        hop_counts: as of `attncalc.graph.Graphs`.
        system: nodes as they were when the list was made.
        verlet: the list.
        n_neighbors: [n_nodes], atoms within the cutoff when the list was made.
        is_inner: [n_nodes], bool: has all of its neighbours here, as own atoms and all but the
            outermost ghosts must.
    """

    rows: Integers
    n_own: int
    hop_counts: tuple[int, ...]
    system: System
    verlet: VerletList
    n_neighbors: Integers
    is_inner: NDArray[np.bool_]

    @classmethod
    def of(cls, potential: Potential, images: Images, box: Box, *, skin: float) -> Self | None:
        """Return the part of a process; None where it has no atom of its own.

        Args:
            potential: the model, see `refuse_parts`.
            images: all within `depth_of(potential)` cutoffs of its own atoms; more do no harm.
            box: of the structure.
            skin: Å added to the cutoff.

        Raises:
            ValueError: as `VerletList.update`.
        """
        depth, cutoff = depth_of(potential), potential.cutoff
        rows, n_own = _one_of_each(images)
        if n_own == 0:
            return None
        edges = neighbor_list(_system(images, rows, box), cutoff + skin)
        i, j = edges.receivers.numpy(), edges.senders.numpy()
        hops = _hops(i, j, n_own, len(rows), depth)
        order = np.argsort(hops, kind="stable")[: int((hops <= depth).sum())]
        rows, system = rows[order], _system(images, rows[order], box)
        verlet = VerletList.create(cutoff=cutoff, skin=skin, species=potential.species)
        verlet = verlet.with_edges(system, _part_of(edges, hops, order, depth))
        near = verlet.graph(system).arrays
        true_hops = _hops(near.receivers, near.senders, n_own, len(rows), depth)
        return cls(
            rows=rows,
            n_own=n_own,
            hop_counts=tuple(int((hops <= h).sum()) for h in range(depth + 1)),
            system=system,
            verlet=verlet,
            n_neighbors=np.bincount(near.receivers, minlength=len(rows)),
            is_inner=true_hops < depth,
        )

    def graphs(self, positions: NDArray[np.float64], box: Box) -> Graphs | None:
        """Return the graphs of other positions; None where the list may miss an edge.

        Args:
            positions: [n, 3] Å, of all images, in the order of those that this was made of.
            box: may have changed its shape.

        Raises:
            ValueError: two atoms lie on top of each other.
        """
        system = self.system.with_positions(torch.from_numpy(positions[self.rows]))
        if not np.array_equal(box.cell, self.system.cell[0].numpy()):
            cell = torch.from_numpy(box.cell.copy())[None]
            system = replace(system, cell=cell)
        graph = self.verlet.reuse(system)
        return None if graph is None else Graphs(graph, hop_counts=self.hop_counts)


def _one_of_each(images: Images) -> tuple[Integers, int]:
    """Rows of own atoms, then of one image of each other atom; and how many are own."""
    is_known = images.numbers > 0
    own = np.flatnonzero(is_known[: images.n_own])
    others = images.n_own + np.flatnonzero(is_known[images.n_own :])
    ids, first = np.unique(images.ids[others], return_index=True)
    is_foreign = ~np.isin(ids, images.ids[own])
    return np.concatenate([own, others[first[is_foreign]]]), len(own)


def _system(images: Images, rows: Integers, box: Box) -> System:
    return System(
        positions=torch.from_numpy(images.positions[rows]),
        atomic_numbers=torch.from_numpy(images.numbers[rows]).long(),
        cell=torch.from_numpy(box.cell.copy())[None],
        pbc=torch.from_numpy(box.pbc.copy())[None],
        system_idx=torch.zeros(len(rows), dtype=torch.int64),
        charge=torch.zeros(1, dtype=torch.float64),
        spin=torch.ones(1, dtype=torch.int64),
    )


def _hops(receivers: Integers, senders: Integers, n_own: int, n: int, depth: int) -> Integers:
    """[n]: edges from the nearest own atom; depth + 1 for more than `depth`."""
    hops = np.full(n, depth + 1)
    hops[:n_own] = 0
    for h in range(depth):
        reached = senders[hops[receivers] == h]
        hops[reached] = np.minimum(hops[reached], h + 1)
    return hops


def _part_of(edges: Edges, hops: Integers, order: Integers, depth: int) -> Edges:
    """Edges of the atoms in `order`, by their new numbers, without those that reach nobody."""
    new = np.zeros(len(hops), np.int64)
    new[order] = np.arange(len(order))
    i, j = edges.receivers.numpy(), edges.senders.numpy()
    kept = np.flatnonzero(np.minimum(hops[i], hops[j]) < depth)
    kept = kept[np.lexsort((kept, new[j[kept]], new[i[kept]]))]
    receivers, senders = torch.from_numpy(new[i[kept]]), torch.from_numpy(new[j[kept]])
    return Edges(receivers, senders, edges.cell_shifts[torch.from_numpy(kept)])


class Owners:
    """Messages between the ghosts of a process and the processes whose atoms these are.

    All processes make it, and call its methods, at the same time.

    Args:
        comm: an `mpi4py` communicator.
        own: [n_own], ids of the process's atoms.
        ghosts: [n_ghosts], ids of its ghosts.

    Raises:
        ValueError: no process has an atom of such an id, or several atoms have the same.
    """

    def __init__(self, comm: Any, own: Integers, ghosts: Integers) -> None:
        self.comm, self.n_own, self.n_ghosts = comm, len(own), len(ghosts)
        size = comm.size
        # process id % size is told who owns an atom, and asked for it
        told = comm.alltoall([own[own % size == r] for r in range(size)])
        asked = comm.alltoall([ghosts[ghosts % size == r] for r in range(size)])
        ids, owners = np.concatenate(told), np.repeat(np.arange(size), [len(t) for t in told])
        order = np.argsort(ids)
        is_second = np.diff(ids[order]) == 0
        if is_second.any():
            raise ValueError(f"several atoms have the id {ids[order][1:][is_second][0]}")
        answers = comm.alltoall([_look_up(ids[order], owners[order], wanted) for wanted in asked])
        owner = np.empty(len(ghosts), np.int64)
        for r in range(size):
            owner[ghosts % size == r] = answers[r]
        if (owner < 0).any():
            lost = int(ghosts[np.argmin(owner)])
            raise ValueError(f"no process has the atom {lost}, of which there is a ghost")
        self._ghosts = [np.flatnonzero(owner == r) for r in range(size)]
        order = np.argsort(own)
        wanted = comm.alltoall([ghosts[rows] for rows in self._ghosts])
        self._own = [_look_up(own[order], order, ids) for ids in wanted]
        self._peers = [r for r in range(size) if len(self._ghosts[r]) or len(self._own[r])]

    def add_to_owners(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return [n_own, k]: rows of own atoms, with those of all their ghosts added.

        Args:
            values: [n_own + n_ghosts, k], own atoms first.
        """
        total, of_ghosts = values[: self.n_own].copy(), values[self.n_own :]
        received = self._swap(of_ghosts, self._ghosts, self._own)
        for rows, more in received:  # an atom has one ghost at most in a process
            total[rows] += more
        return total

    def of_ghosts(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return [n_ghosts, k]: for every ghost what its owner has.

        Args:
            values: [n_own, k].
        """
        found = np.empty((self.n_ghosts, *values.shape[1:]), values.dtype)
        for rows, value in self._swap(values, self._own, self._ghosts):
            found[rows] = value
        return found

    def _swap(
        self, values: NDArray[Any], sent: Sequence[Integers], received: Sequence[Integers]
    ) -> list[tuple[Integers, NDArray[Any]]]:
        """Send rows of values to every peer; return what comes, with the rows it is for."""
        comm, shape = self.comm, values.shape[1:]
        buffers = [np.empty((len(received[r]), *shape), values.dtype) for r in self._peers]
        parts = [np.ascontiguousarray(values[sent[r]]) for r in self._peers]
        pairs = zip(self._peers, buffers, parts, strict=True)
        waiting = []
        for peer, buffer, part in pairs:
            waiting += [comm.Irecv(buffer, source=peer), comm.Isend(part, dest=peer)]
        for request in waiting:
            request.Wait()
        return [(received[r], b) for r, b in zip(self._peers, buffers, strict=True)]


def _look_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """[n_wanted]: values of the wanted keys; -1 where there is none. Keys ascend."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], -1)
