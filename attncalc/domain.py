"""`Domain`: the own atoms of a process, with the ghosts that their energies depend on.

A node of the graph is an atom, not a periodic image: an atom that is near in several images has one
ghost, and own atoms have none. The graph is the part of the whole periodic graph that can change
energies of own atoms. Potentials notice only `Graphs.n_counted` of this, so every network can be
used. Engines that exchange ghosts between layers (`exchanges_layers`) need only the neighbours of
own atoms as ghosts.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from attncalc.graph import ALL_PAIRS, Edges, GhostLayers, Graphs, LayerExchange, SharedOutputs
from attncalc.neighbors import ImpossiblePositions, VerletList, neighbor_list
from attncalc.physics.pair_term import sums_over_pairs
from attncalc.potential import Potential, edge_gradients, evaluate
from attncalc.result import ROUNDING
from attncalc.sample_structures import sample_structures
from attncalc.structures import fresh_graphs
from attncalc.system import System

Integers = NDArray[np.int64]

FAR = 1e4
"""Å, beyond the range of every model of finite range."""


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
        numbers: [n], atomic numbers; 0 for atoms that the model does not describe.
        n_own: number of own atoms.
    """

    positions: NDArray[np.float64]
    ids: Integers
    numbers: Integers
    n_own: int


class StructureTotals(NamedTuple):
    """Properties of the whole structure, known to every domain.

    Attributes:
        composition: number of atoms of each species of the potential.
        charge: e, total.
        spin: multiplicity 2S+1.
    """

    composition: tuple[int, ...]
    charge: int = 0
    spin: int = 1

    @property
    def n_atoms(self) -> int:
        """Number of atoms that the model describes."""
        return sum(self.composition)


def depth_of(potential: Potential) -> int:
    """Number of edges between an atom and the farthest atom that can change its energy."""
    return max(
        # receptive fields are multiples of the cutoff, up to rounding
        math.ceil(network.config.receptive_field / network.config.graph_cutoff - 1e-9)
        for network in potential.networks
    )


def reach_of(potential: Potential, *, exchanges: bool = False) -> float:
    """Distance of the farthest ghosts that a domain needs, Å.

    Args:
        potential: the model.
        exchanges: True: ghosts are updated by their owners between layers.
    """
    depth = 1 if exchanges else depth_of(potential)
    return max(depth * potential.cutoff, potential.long_range or 0.0)


def exchanges_layers(potential: Potential) -> bool:
    """Return True if all networks of a potential can exchange ghosts between their layers."""
    engines = [getattr(member.network, "engine", None) for member in potential.members]
    return all(getattr(engine, "exchanges", False) for engine in engines)


def refuse_parts(potential: Potential, *, periodic: bool = True) -> None:
    """Refuse potentials that cannot be computed part by part.

    Args:
        potential: the model.
        periodic: False: the structure has no periodic direction.

    Raises:
        ValueError: energies of atoms depend on the whole structure, and not only through the total
            of predicted charges.
    """
    reason = why_not_in_parts(potential, periodic=periodic)
    if reason is None:
        return
    remedy = "use one process"
    if potential.counts_all_pairs and not periodic:
        remedy = f"{remedy}, or give a long-range cutoff"
    raise ValueError(f"this model {reason}, which several processes cannot share: {remedy}")


def why_not_in_parts(potential: Potential, *, periodic: bool = True) -> str | None:
    """Return the reason why a potential cannot be computed part by part; None if it can.

    Args:
        potential: the model.
        periodic: False: the structure has no periodic direction.
    """
    reason = None
    if potential.reads_system:
        reason = "sums over all periodic images of the whole structure"
    elif not all(map(sums_over_pairs, potential.all_pair_terms)):
        reason = "has pair terms of longer range that are no sums over pairs"
    elif potential.counts_all_pairs and not periodic:
        reason = "counts all pairs of structures without periodic directions"
    elif max(potential.cutoff, potential.long_range or 0.0) >= ALL_PAIRS:
        reason = "looks at all pairs of atoms"
    elif _sees_the_whole(potential):
        reason = "sums over the whole structure"
    return reason


def exchanges_outputs(potential: Potential) -> bool:
    """Return True if parts must exchange outputs: pairs are divided, or pair terms read outputs."""
    if potential.long_range is not None:
        return True
    graphs = _graphs_of(potential, sample_structures(potential.species)[0])
    return any(
        len(member.pair_terms) > 0 and len(edge_gradients(member, graphs).others) > 0
        for member in potential.members
    )


def _graphs_of(potential: Potential, atoms: Atoms, whole: StructureTotals | None = None) -> Graphs:
    """Return graphs of a neutral singlet structure, or of a part of `whole`."""
    system = replace(System.from_ase(atoms), spin=torch.ones(1, dtype=torch.int64))
    if whole is not None:
        system = replace(
            system, charge=0 * system.charge + whole.charge, spin=0 * system.spin + whole.spin
        )
    graphs = fresh_graphs(potential, system.to(potential.device))
    if whole is None:
        return graphs
    ghosts = GhostLayers((len(atoms),), composition=whole.composition)
    return replace(graphs, short=graphs.short.with_ghosts(ghosts))


def _sees_the_whole(potential: Potential) -> bool:
    """Return True if atoms beyond any range change energies, other than through `StructureTotals`.

    Charges are taken before they are shifted to add up to the total: an `OutputExchange` does that.
    """
    if potential.counts_all_pairs:
        potential, longest = copy.deepcopy(potential), potential.long_range
        assert longest is not None
        potential.set_long_range_cutoff(longest)
    atoms, other = sample_structures(potential.species)[:2]
    other.positions += FAR
    numbers = (atoms + other).numbers
    composition = tuple(int((numbers == z).sum()) for z in potential.species)
    for charge, spin in ((0, 1), (int(potential.reads_charge), 1 + int(potential.reads_spin))):
        part, all_of_it = (
            evaluate(
                potential,
                _graphs_of(potential, structure, StructureTotals(composition, charge, spin)),
            )
            for structure in (atoms, atoms + other)
        )
        difference = (all_of_it.energies[: len(atoms)] - part.energies).abs().amax()
        largest = part.energies.abs().amax().clamp(min=1)
        # "not <=" instead of ">", for NaN
        if not bool(difference <= ROUNDING[potential.dtype] * largest):
            return True
    return False


@dataclass(frozen=True)
class Domain:
    """Own atoms of a process and its ghosts, ordered by hops, with their neighbour list.

    **Choice of ghosts.** A hop is an edge of the list, within cutoff + skin. While the list is
    valid, every edge within the cutoff is a hop, so all atoms within `depth` edges of an own atom
    were within `depth` hops when the list was built. Edges between two of the outermost ghosts
    change no energy that counts, and are left out.

    Attributes:
        rows: [n_nodes], row of `Images` for each node; own atoms first.
        n_own: number of own atoms.
        hop_counts: numbers of atoms within 0, 1, ... hops of own atoms.
        system: nodes as they were when the list was built.
        verlet: the list.
        far: list of the pairs of longer range that this process computes; its ghosts need not be
            within `depth` hops. None if no term has a longer range.
        n_neighbors: [n_nodes], number of atoms within the cutoff when the list was built.
        n_owned: [n_nodes], number of own atoms among these.
        is_inner: [n_nodes], bool: True if all neighbours of the node are in the domain, as they
            must be for own atoms and all but the outermost ghosts.
        whole: the structure of which this is a part.
    """

    rows: Integers
    n_own: int
    hop_counts: tuple[int, ...]
    system: System
    verlet: VerletList
    far: VerletList | None
    n_neighbors: Integers
    n_owned: Integers
    is_inner: NDArray[np.bool_]
    whole: StructureTotals

    @classmethod
    def of(
        cls,
        potential: Potential,
        images: Images,
        box: Box,
        whole: StructureTotals,
        *,
        skin: float,
        exchanges: bool = False,
    ) -> Self | None:
        """Build the domain of a process; None if it has no own atom.

        Args:
            potential: the model, see `refuse_parts`.
            images: all within `reach_of` of the own atoms; more do no harm.
            box: of the structure.
            whole: the structure.
            skin: Å added to the cutoff.
            exchanges: True: ghosts are those within one hop, updated by their owners between
                layers.

        Raises:
            ValueError: an element is unknown, a position is not finite, or two atoms lie on top of
                each other.
        """
        depth, cutoff = 1 if exchanges else depth_of(potential), potential.cutoff
        rows, n_own = _one_of_each(images)
        if n_own == 0:
            return None
        known = _system(images, rows, box, whole)
        with atoms_by_id(images.ids, rows):
            edges = neighbor_list(known, cutoff + skin)
        i, j = edges.receivers.numpy(), edges.senders.numpy()
        hops = _hops(i, j, n_own, len(rows), depth)
        needed, reach, long = hops <= depth, potential.long_range, None
        if reach is not None:
            long = _divided(neighbor_list(known, reach + skin), images.ids[rows], n_own)
            needed[long.senders.numpy()] = True
        order = np.argsort(np.where(needed, hops, depth + 2), kind="stable")[: int(needed.sum())]
        rows, system = rows[order], _system(images, rows[order], box, whole)
        options: Any = {"skin": skin, "species": potential.species}
        verlet = VerletList.create(cutoff=cutoff, **options)
        kept = np.minimum(hops[i], hops[j]) < depth
        verlet = verlet.with_edges(system, _part_of(edges, order, known.n_atoms, kept))
        far = None
        if reach is not None and long is not None:
            far = VerletList.create(cutoff=reach, by_pairs=True, **options)
            far = far.with_edges(system, _part_of(long, order, known.n_atoms))
        near = verlet.graph(system).arrays
        true_hops = _hops(near.receivers, near.senders, n_own, len(rows), depth)
        return cls(
            rows=rows,
            n_own=n_own,
            hop_counts=tuple(int((hops <= h).sum()) for h in range(depth + 1)),
            system=system,
            verlet=verlet,
            far=far,
            n_neighbors=np.bincount(near.receivers, minlength=len(rows)),
            n_owned=np.bincount(near.receivers[near.senders < n_own], minlength=len(rows)),
            is_inner=true_hops < depth,
            whole=whole,
        )

    def graphs(
        self,
        positions: NDArray[np.float64],
        box: Box,
        shared: SharedOutputs | None = None,
        exchange: LayerExchange | None = None,
    ) -> Graphs | None:
        """Return the graphs for new positions; None if a list may miss an edge.

        Args:
            positions: [n, 3] Å, of all images, in the order in which `of` was given them.
            box: of the structure; its shape may have changed.
            shared: exchange of the network's outputs between parts, if `exchanges_outputs`.
            exchange: updates ghosts between layers, if only those within one hop are kept.

        Raises:
            ValueError: two atoms lie on top of each other.
        """
        system = self.system.with_positions(torch.from_numpy(positions[self.rows]))
        if not np.array_equal(box.cell, self.system.cell[0].numpy()):
            cell = torch.from_numpy(box.cell.copy())[None]
            system = replace(system, cell=cell)
        graph = self.verlet.reuse(system)
        long = None if self.far is None else self.far.reuse(system)
        if graph is None or (self.far is not None and long is None):
            return None
        ghosts = GhostLayers(self.hop_counts, exchange, self.whole.composition)
        graph = graph.with_ghosts(ghosts)
        return Graphs(graph, long, n_counted=self.n_own, shared=shared)


@contextmanager
def atoms_by_id(ids: Integers, rows: Integers) -> Iterator[None]:
    """Rename atom k in error messages to ids[rows[k]], the id that users know."""
    try:
        yield
    except ImpossiblePositions as error:
        named = re.sub(r"\batom (\d+)", lambda k: f"atom {ids[rows[int(k[1])]]}", str(error))
        raise ImpossiblePositions(named) from None


def _one_of_each(images: Images) -> tuple[Integers, int]:
    """Return the rows of own atoms, then of one image of each other atom; and the number of own."""
    is_known = images.numbers > 0
    own = np.flatnonzero(is_known[: images.n_own])
    others = images.n_own + np.flatnonzero(is_known[images.n_own :])
    ids, first = np.unique(images.ids[others], return_index=True)
    is_foreign = ~np.isin(ids, images.ids[own])
    return np.concatenate([own, others[first[is_foreign]]]), len(own)


def _system(images: Images, rows: Integers, box: Box, whole: StructureTotals) -> System:
    return System(
        positions=torch.from_numpy(images.positions[rows]),
        atomic_numbers=torch.from_numpy(images.numbers[rows]).long(),
        cell=torch.from_numpy(box.cell.copy())[None],
        pbc=torch.from_numpy(box.pbc.copy())[None],
        system_idx=torch.zeros(len(rows), dtype=torch.int64),
        charge=torch.tensor([float(whole.charge)], dtype=torch.float64),
        spin=torch.tensor([whole.spin]),
    )


def _hops(receivers: Integers, senders: Integers, n_own: int, n: int, depth: int) -> Integers:
    """Return the number of edges [n] from the nearest own atom; depth + 1 if more than `depth`."""
    hops = np.full(n, depth + 1)
    hops[:n_own] = 0
    for h in range(depth):
        reached = senders[hops[receivers] == h]
        hops[reached] = np.minimum(hops[reached], h + 1)
    return hops


def _part_of(edges: Edges, order: Integers, n: int, kept: NDArray[np.bool_] | None = None) -> Edges:
    """Return the edges that are kept (None: all), with the n atoms renumbered as in `order`."""
    i, j = edges.receivers.numpy(), edges.senders.numpy()
    new = np.zeros(n, np.int64)
    new[order] = np.arange(len(order))
    rows = np.arange(len(i)) if kept is None else np.flatnonzero(kept)
    rows = rows[np.lexsort((rows, new[j[rows]], new[i[rows]]))]
    receivers, senders = torch.from_numpy(new[i[rows]]), torch.from_numpy(new[j[rows]])
    return Edges(receivers, senders, edges.cell_shifts[torch.from_numpy(rows)])


def _divided(edges: Edges, ids: Integers, n_own: int) -> Edges:
    """Return the edges of the pairs that this process computes, in both directions.

    A pair of atoms of two processes belongs to the owner of the smaller id if the sum of the ids is
    even, and else to the other process, so that each computes about half of the pairs.
    """
    i, j = edges.receivers.numpy(), edges.senders.numpy()
    has_smaller = (ids[i] < ids[j]) == (i < n_own)  # the own atom of a pair with a ghost
    is_mixed = (i < n_own) != (j < n_own)
    mine = (i < n_own) & (j < n_own) | is_mixed & (has_smaller == ((ids[i] + ids[j]) % 2 == 0))
    rows = torch.from_numpy(np.flatnonzero(mine))
    return Edges(edges.receivers[rows], edges.senders[rows], edges.cell_shifts[rows])
