"""`VerletList`: a neighbour list with a skin, reused for as long as that is provably exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from attncalc.graph import (
    EdgeOrder,
    Edges,
    Graph,
    GraphOfArrays,
    edge_vectors,
    one_per_pair,
    species_of,
)
from attncalc.neighbors.by_device import neighbor_list, size_of_largest
from attncalc.neighbors.half_list import GraphOfList, HalfList, ListedPairs, pairs_hold
from attncalc.neighbors.padded import padded_kernels
from attncalc.neighbors.pair_search import pair_list
from attncalc.neighbors.reuse import LoopInputs, Seen, reused_edges
from attncalc.neighbors.search import MIN_DISTANCE, complete_cell, refuse_overlap
from attncalc.pickling import PlainlyPickled
from attncalc.system import System

SKIN = {"cpu": 0.5, "cuda": 1.0}
"""Å added to the cutoff, by device: a CPU removes the pairs in the skin at every step; kernels of a
GPU do so faster, but a new list ends a chunk of steps there."""

SKIN_OF_MOLECULES = 2.0
"""Å, on a CPU, for molecules of at most SMALL atoms: it holds few pairs, and lists last long."""

SMALL = 64

SKIN_OF_SMALL_BATCHES, SMALL_BATCH = 2.0, 16384
"""Å, on a GPU, for batches of up to so many atoms: lists last twice as long, and there is memory
for three times as many pairs as are within the cutoff."""

LARGEST_SKIN = 100.0
"""Å; the number of pairs grows with its cube, and a larger skin is a mistake."""

SMALL_ON_CUDA = 32
"""Size of the largest molecule of a batch up to which a GPU lists all pairs. Such a list lasts
until an atom has moved far; others would end as soon as any of the molecules has rotated."""

CAPACITY_STEP = 64
"""Lengths of padded arrays are multiples of this."""

CAPACITY_HEADROOM = 1.25
"""New padded arrays are longer than necessary by this factor, so that they rarely grow."""


@dataclass(frozen=True)
class Padding:
    """Padding of the arrays of the padded form.

    Attributes:
        vectors: [n_edges, 3] Å: added to the edge vectors; moves padding edges beyond the cutoff
            and is zero for the others.
        pairs: [n_pairs], int64: edges that represent their pair, then a padding edge repeated.
        rows, by_sender, sent_rows: order of the edges, see `EdgeOrder`.
    """

    vectors: Tensor
    pairs: Tensor
    rows: Tensor
    by_sender: Tensor
    sent_rows: Tensor

    @property
    def order(self) -> EdgeOrder:
        """Order of the edges."""
        return EdgeOrder(self.rows, self.by_sender, self.sent_rows)


@dataclass(frozen=True)
class SkinEdges:
    """All edges within cutoff + skin of one system, and data derived from them.

    Attributes:
        reference: the system they were built for; its tensors are copies, since a simulation may
            move atoms in place.
        inverse_cell: [n_systems, 3, 3] 1/Å: of the reference cell with open directions completed.
        source: rows [3, n_edges], int64 (receivers, senders, and 1 if the edge represents its
            pair) and cell shifts [n_edges, 3] of all edges, with padding at the end in padded form;
            or all pairs, of which edges are made if they are needed.
        padding: None in compact form.
        is_periodic: whether any direction of any system is periodic.
        has_images: whether any edge crosses a cell boundary.
        species: [n_atoms], int64: rows of the potential's species table.
    """

    reference: System
    inverse_cell: Tensor
    source: tuple[Tensor, Tensor] | ListedPairs
    padding: Padding | None
    is_periodic: bool
    has_images: bool
    species: Tensor

    @cached_property
    def rows_and_shifts(self) -> tuple[Tensor, Tensor]:
        """Rows and cell shifts of all edges, see `source`."""
        if isinstance(self.source, ListedPairs):
            with torch.inference_mode(False), torch.no_grad():  # for graphs of any later mode
                return self.source.rows_and_shifts(self.reference.n_atoms)
        return self.source

    @cached_property
    def rows(self) -> Tensor:
        """Receivers, senders, and 1 if the edge represents its pair, [3, n_edges], int64."""
        return self.rows_and_shifts[0]

    @cached_property
    def edges(self) -> Edges:
        """All edges."""
        rows, shifts = self.rows_and_shifts
        return Edges(rows[0], rows[1], shifts)

    @cached_property
    def loop_inputs(self) -> LoopInputs:
        """Inputs of the compiled loop, from a compact list on the CPU."""
        reference, shifts = self.reference, self.edges.cell_shifts
        tensors = (reference.positions, self.rows, shifts, reference.cell)
        of_atoms = (self.species, reference.system_idx)
        return LoopInputs(*(tensor.numpy() for tensor in (*tensors, *of_atoms)))

    @cached_property
    def seen(self) -> Seen:
        """Tensors that the compiled loop need not compare again."""
        return Seen()

    @cached_property
    def pairs(self) -> ListedPairs:
        """Pairs of a compact list on the CPU, each once."""
        if isinstance(self.source, ListedPairs):
            return self.source
        return ListedPairs.of(*self.source)


@dataclass(frozen=True)
class VerletList(PlainlyPickled):
    """Neighbour list that detects when it must be rebuilt.

    Use it as `verlet = VerletList.create(cutoff=4.5, skin=0.5, species=(1, 6, 8))`, then at every
    step `verlet, graph = verlet.update(system)`.

    **When it is exact.** A deformation F of the cell (cell = reference cell · F, in rows; F does
    not change vectors orthogonal to the periodic directions) maps an edge d to d·F. The remaining
    motion of the atoms, u = r - r_ref·F, changes it by at most 2 max|u|. A pair that is not in the
    list was at least cutoff + skin apart, so it is still at least
    σ_min(F) (cutoff + skin) - 2 max|u| apart, with σ_min(F) >= 1 - ‖F - I‖ (Frobenius). The list
    is reused while this is not less than the cutoff for any system of a batch.

    **Two forms.** Compact (on the CPU): the graph has exactly the edges shorter than the cutoff,
    and `edge_mask` is all True. Padded (on CUDA, or if a capacity is given): the arrays keep their
    length, and `edge_mask` is False for edges within the skin and for padding edges. Padding edges
    are self-loops of the last atom with a constant vector longer than the cutoff, and there is
    always at least one. The capacity grows when a new list exceeds it and never shrinks.

    Attributes:
        cutoff: Å.
        skin: Å; 0 builds a new list whenever anything moved.
        species: atomic numbers of the potential's species table, in its order.
        capacity: length of padded arrays; None in compact form and before the first update.
        n_updates: number of calls of `update`.
        n_rebuilds: number of new lists built.
        listed: the list itself; None before the first update.
        by_pairs: True: graphs are for loops over pairs (`GraphOfList`). On a CPU their edges are
            computed at their first use, and atoms on top of each other are detected only then.
    """

    cutoff: float
    skin: float
    species: tuple[int, ...]
    capacity: int | None = None
    n_updates: int = 0
    n_rebuilds: int = 0
    listed: SkinEdges | None = field(default=None, repr=False)
    by_pairs: bool = False

    @classmethod
    def create(
        cls,
        *,
        cutoff: float,
        skin: float,
        species: tuple[int, ...],
        capacity: int | None = None,
        by_pairs: bool = False,
    ) -> VerletList:
        """Return an empty list; its first `update` builds it.

        Args:
            cutoff: Å.
            skin: Å added to the cutoff.
            species: atomic numbers of the potential's species table, in its order.
            capacity: number of edges that the padded form starts with; None chooses the form by
                the device of the system.
            by_pairs: True: graphs are for loops over pairs, see the class.

        Raises:
            ValueError: cutoff, skin or capacity is out of range, or there is no species.
        """
        if not (math.isfinite(cutoff) and cutoff > 0):
            raise ValueError(f"cutoff must be a positive number of Å, got {cutoff}")
        try:
            fits = not isinstance(skin, bool) and math.isfinite(skin) and skin >= 0
        except (TypeError, OverflowError):  # not a number, or larger than any float
            fits = False
        if not fits:
            raise ValueError(f"skin must be a number of Å >= 0, got {skin!r}")
        if skin > LARGEST_SKIN:
            raise ValueError(f"skin must be at most {LARGEST_SKIN:.0f} Å, got {skin!r}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be a number of edges >= 1, got {capacity}")
        if len(species) == 0:
            raise ValueError("species must name at least one atomic number")
        if capacity is not None:
            capacity = _round_up(capacity)
        return cls(float(cutoff), float(skin), tuple(species), capacity, by_pairs=by_pairs)

    def update(self, system: System) -> tuple[VerletList, Graph]:
        """Return the list to continue with, and the graph of `system`.

        Graph vectors are differentiable by positions and cell. One bool is read back from the
        device. Charge and spin of the graph are those of `system`.

        Raises:
            ValueError: an element is not in `species`, a position is not finite, or two atoms lie
                on top of each other; the last is detected at every update in compact form, in
                padded form only when a list is built.
        """
        verlet, graph = self._after_another_update(), self.reuse(system)
        if graph is not None:
            return verlet, graph
        reach = self.cutoff + self.skin
        pairs = pair_list(system, reach) if self.by_pairs and _is_plain(system) else None
        if pairs is None:
            verlet = verlet.with_edges(system, neighbor_list(system, reach))
        else:
            species = species_of(system.atomic_numbers, self.species)
            listed = _list_pairs(system, pairs, species)
            verlet = replace(verlet, n_rebuilds=self.n_rebuilds + 1, listed=listed)
        return verlet, verlet.graph(system)

    def reuse(self, system: System) -> Graph | None:
        """Return the graph of `system` from the present list; None if it may miss an edge.

        Raises:
            ValueError: (compact form) two atoms lie on top of each other.
        """
        listed = self.listed
        if listed is None:
            return None
        if (graph := self._reused_graph(system, listed)) is not None:
            return graph
        if _differs_in_shape(system, listed.reference) or bool(
            self.needs_rebuild(system)
            | _differ(system.atomic_numbers, listed.reference.atomic_numbers)
        ):
            return None
        return self.graph(system)

    def with_edges(self, system: System, edges: Edges) -> VerletList:
        """Return a new list of these edges.

        Args:
            system: structures that the edges were found for.
            edges: all pairs within cutoff + skin that are needed. If some are left out, `update`
                must not be used, because it would build a list of all.

        Raises:
            ValueError: an element is not in `species`.
        """
        species = species_of(system.atomic_numbers, self.species)
        capacity = self.capacity
        if capacity is not None or system.device.type == "cuda":
            capacity = _grown(capacity or 0, edges.n_edges + 1)
        listed = _list_edges(system, edges, species, capacity, 2 * (self.cutoff + self.skin))
        return replace(self, capacity=capacity, n_rebuilds=self.n_rebuilds + 1, listed=listed)

    def _after_another_update(self) -> VerletList:
        """Return the list with `n_updates` + 1: a faster `dataclasses.replace`."""
        other = object.__new__(VerletList)
        other.__dict__.update(self.__dict__, n_updates=self.n_updates + 1)
        return other

    def in_the_arrays_of(self, other: VerletList) -> VerletList:
        """Return this list copied into the arrays of `other` if it fits; else as it is.

        Steps that were recorded with the arrays of `other` then read this list. This is only for
        padded lists, whose arrays keep their length.
        """
        ours, theirs = self.listed, other.listed
        if ours is None or theirs is None or ours is theirs:
            return self
        if (self.cutoff, self.skin) != (other.cutoff, other.skin) or not _same_form(ours, theirs):
            return self
        for new, old in zip(_arrays_of(ours), _arrays_of(theirs), strict=True):
            old.copy_(new)
        return replace(self, listed=theirs)

    def needs_rebuild(self, system: System) -> Tensor:
        """Return [], bool, on the system's device: True if the list may miss an edge of `system`.

        Elements are not compared: they do not change in a run. In padded form the host does not
        wait for the device.
        """
        listed = self.listed
        if listed is None or _differs_in_shape(system, listed.reference):
            return torch.ones((), dtype=torch.bool, device=system.device)
        reference = listed.reference
        if listed.padding is not None and (kernels := padded_kernels(system)) is not None:
            return kernels.stale(
                system,
                reference,
                listed.inverse_cell,
                is_periodic=listed.is_periodic,
                cutoff=self.cutoff,
                skin=self.skin,
            )
        moved = system.positions.detach() - reference.positions  # [n_atoms, 3]
        slack = self.skin  # Å that 2 max|u| may use up
        if listed.is_periodic:
            change = (system.cell.detach() - reference.cell) * reference.pbc[:, :, None]
            strain = listed.inverse_cell @ change  # F - I
            reach = self.cutoff + self.skin
            slack = slack - reach * torch.linalg.vector_norm(strain, dim=(1, 2))  # [n_systems]
            slack = slack[0] if system.n_systems == 1 else slack[reference.system_idx]
            moved = moved - _per_atom_product(reference.positions, strain, reference.system_idx)
        holds = (2 * torch.linalg.vector_norm(moved, dim=1) <= slack).all()
        # "not <=" instead of ">": NaN then causes a rebuild, whose error names the atom
        differ = _differ if listed.padding is None else _differ_on_device
        return (
            ~holds
            | differ(system.pbc, reference.pbc)
            | differ(system.system_idx, reference.system_idx)
        )

    def graph(self, system: System) -> Graph:
        """Return the graph of `system` from the present list, without a check that it is valid.

        Elements are those of the last update.

        Raises:
            ValueError: no list has been built yet, or (compact form) two atoms lie on top of each
                other.
        """
        listed = self.listed
        if listed is None:
            raise ValueError("this VerletList has not seen a system yet: call update(system) first")
        if listed.padding is None:
            if self.by_pairs and _is_plain(system):
                return _graph_of_list(system, listed, self.cutoff)
            return _compact_graph(system, listed, self.cutoff)
        return _padded_graph(system, listed, listed.padding, self.cutoff)

    def _reused_graph(self, system: System, listed: SkinEdges) -> Graph | None:
        if listed.padding is not None or listed.reference.device.type != "cpu":
            return None
        if self.by_pairs:
            holds = pairs_hold(system, listed.reference, listed.seen, skin=self.skin)
            return _graph_of_list(system, listed, self.cutoff) if holds else None
        arrays = reused_edges(
            system,
            listed.reference,
            listed.loop_inputs,
            listed.seen,
            has_images=listed.has_images,
            cutoff=self.cutoff,
            skin=self.skin,
        )
        if arrays is None:
            return None
        return GraphOfArrays.of(
            arrays,
            species=listed.species,
            system_idx=system.system_idx,
            charge=system.charge,
            spin=system.spin,
        )


def skin_for(system: System) -> float:
    """Return the skin [Å] that suits device and structures."""
    device = system.device.type
    if not system.pbc.any():
        if device == "cpu" and system.n_atoms <= SMALL * system.n_systems:
            return SKIN_OF_MOLECULES
        if device == "cuda" and size_of_largest(system) <= SMALL_ON_CUDA:
            return LARGEST_SKIN
    if device == "cuda" and system.n_atoms <= SMALL_BATCH:
        return SKIN_OF_SMALL_BATCHES
    return SKIN[device]


def fresh_graph(
    system: System, *, cutoff: float, species: tuple[int, ...], by_pairs: bool = False
) -> Graph:
    """Return the graph of a system that is evaluated once, from a list without skin.

    Raises:
        ValueError: an element is not in `species`, a position is not finite, or two atoms lie on
            top of each other.
    """
    verlet = VerletList.create(cutoff=cutoff, skin=0.0, species=species, by_pairs=by_pairs)
    return verlet.update(system)[1]


def _differs_in_shape(system: System, reference: System) -> bool:
    return (
        system.positions.shape != reference.positions.shape
        or system.cell.shape != reference.cell.shape
        or system.device != reference.device
    )


def _differ(now: Tensor, then: Tensor) -> Tensor | bool:
    """Return True if any element differs, without waiting for the device."""
    if now.device.type == "cpu":
        return not torch.equal(now, then)  # a fifth of the cost of the comparison below
    return _differ_on_device(now, then)


def _differ_on_device(now: Tensor, then: Tensor) -> Tensor:
    return (now != then).any()


def _arrays_of(listed: SkinEdges) -> list[Tensor]:
    """Return all tensors of the list except views of others."""
    padding = () if listed.padding is None else vars(listed.padding).values()
    own = (listed.inverse_cell, listed.rows, listed.edges.cell_shifts, listed.species)
    return [*vars(listed.reference).values(), *own, *padding]


def _same_form(one: SkinEdges, other: SkinEdges) -> bool:
    """Return True if both are padded, of equal shapes, and treated alike by this file."""
    if one.padding is None or other.padding is None:
        return False
    return (one.is_periodic, one.has_images) == (other.is_periodic, other.has_images) and all(
        ours.shape == theirs.shape and ours.device == theirs.device
        for ours, theirs in zip(_arrays_of(one), _arrays_of(other), strict=True)
    )


def _per_atom_product(positions: Tensor, matrices: Tensor, system_idx: Tensor) -> Tensor:
    """Return each position times its system's matrix, [n_atoms, 3]."""
    if matrices.shape[0] == 1:
        return positions @ matrices[0]
    return torch.einsum("nk,nkc->nc", positions, matrices[system_idx])


def _round_up(n: int) -> int:
    return CAPACITY_STEP * math.ceil(n / CAPACITY_STEP)


def _grown(capacity: int, needed: int) -> int:
    """Return a capacity of at least `needed`, with headroom if it must grow."""
    return capacity if needed <= capacity else _round_up(math.ceil(CAPACITY_HEADROOM * needed))


@torch.no_grad()
def _list_edges(
    system: System, edges: Edges, species: Tensor, capacity: int | None, far: float
) -> SkinEdges:
    """Return a new list, with all data that do not change during its life.

    Args:
        system: structures that the edges were found for.
        edges: without padding.
        species: [n_atoms].
        capacity: length of padded arrays, more than there are edges, or None.
        far: Å: length of padding edges.
    """
    reference = _copy(system)
    standing = one_per_pair(edges)
    padding = None
    if capacity is not None:
        first_of_pair = standing.nonzero().squeeze(1)
        pairs = torch.full((capacity // 2,), capacity - 1, device=system.device)
        pairs[: first_of_pair.shape[0]] = first_of_pair
        vectors = system.positions.new_zeros(capacity, 3)
        vectors[edges.n_edges :, 0] = far
        n_real = edges.n_edges
        edges = _pad(edges, capacity, system.n_atoms - 1)
        order = EdgeOrder.of(edges.receivers, edges.senders, system.n_atoms, n_real)
        padding = Padding(vectors, pairs, **order._asdict())
        standing = torch.zeros_like(edges.receivers).index_fill_(0, first_of_pair, 1)
    rows = torch.stack((edges.receivers, edges.senders, standing.long()))
    return SkinEdges(
        reference=reference,
        inverse_cell=torch.linalg.inv(complete_cell(reference)),
        source=(rows, edges.cell_shifts),
        padding=padding,
        is_periodic=bool(system.pbc.any()),
        has_images=bool(edges.cell_shifts.any()),
        species=species,
    )


@torch.no_grad()
def _list_pairs(system: System, pairs: ListedPairs, species: Tensor) -> SkinEdges:
    """Return a new list of these pairs, in compact form."""
    reference = _copy(system)
    return SkinEdges(
        reference=reference,
        inverse_cell=torch.linalg.inv(complete_cell(reference)),
        source=pairs,
        padding=None,
        is_periodic=bool(system.pbc.any()),
        has_images=bool(pairs.shifts.any()),
        species=species,
    )


def _copy(system: System) -> System:
    """Return a copy whose tensors are contiguous, as kernels read them."""
    rows_first = {"memory_format": torch.contiguous_format}
    copies = {name: value.detach().clone(**rows_first) for name, value in vars(system).items()}
    return System(**copies)


def _pad(edges: Edges, capacity: int, last_atom: int) -> Edges:
    """Append self-loops of the last atom, so that the list stays sorted by receiver."""
    n_padding = capacity - edges.n_edges
    loops = edges.receivers.new_full((n_padding,), last_atom)
    return Edges(
        torch.cat((edges.receivers, loops)),
        torch.cat((edges.senders, loops)),
        torch.cat((edges.cell_shifts, edges.cell_shifts.new_zeros(n_padding, 3))),
    )


def _is_plain(system: System) -> bool:
    """Return True if the system is on the CPU, and its positions and cells need no gradients."""
    tensors = (system.positions, system.cell)
    return system.device.type == "cpu" and not any(one.requires_grad for one in tensors)


def _graph_of_list(system: System, listed: SkinEdges, cutoff: float) -> Graph:
    tensors = system.positions, system.cell, listed.species, system.system_idx
    positions, cells, species, system_idx = (tensor.numpy() for tensor in tensors)
    receivers, senders, codes, shifts = listed.pairs
    return GraphOfList.of_list(
        HalfList(positions, cells, receivers, senders, codes, shifts, species, system_idx),
        system,
        listed.species,
        lambda: _compact_graph(system, listed, cutoff).arrays,
    )


def _compact_graph(system: System, listed: SkinEdges, cutoff: float) -> Graph:
    vectors = edge_vectors(system, listed.edges, has_images=listed.has_images)
    lengths = torch.linalg.vector_norm(vectors.detach(), dim=1)
    if lengths.shape[0] and lengths.amin().item() < MIN_DISTANCE:
        refuse_overlap(system, listed.edges, lengths)
    near = (lengths < cutoff).nonzero().squeeze(1)
    receivers, senders, standing = listed.rows.index_select(1, near).unbind(0)
    pairs = standing.nonzero().squeeze(1)
    return _graph(system, listed, vectors.index_select(0, near), receivers, senders, pairs)


def _padded_graph(system: System, listed: SkinEdges, padding: Padding, cutoff: float) -> Graph:
    edges, has_images = listed.edges, listed.has_images
    if (kernels := padded_kernels(system)) is not None:
        vectors, edge_mask = kernels.edges(
            system, edges, padding.vectors, has_images=has_images, cutoff=cutoff
        )
    else:
        vectors = edge_vectors(system, edges, has_images=has_images) + padding.vectors
        edge_mask = torch.linalg.vector_norm(vectors.detach(), dim=1) < cutoff
    receivers, senders = edges.receivers, edges.senders
    pairs, order = padding.pairs, padding.order
    return _graph(system, listed, vectors, receivers, senders, pairs, edge_mask, order)


def _graph(
    system: System,
    listed: SkinEdges,
    vectors: Tensor,
    receivers: Tensor,
    senders: Tensor,
    pairs: Tensor,
    edge_mask: Tensor | None = None,
    order: EdgeOrder | None = None,
) -> Graph:
    """Return a graph of these edges and the system's atoms; without a mask all edges count."""
    if edge_mask is None:
        edge_mask = torch.ones(receivers.shape[0], dtype=torch.bool, device=system.device)
    return Graph(
        vectors=vectors,
        receivers=receivers,
        senders=senders,
        edge_mask=edge_mask,
        pairs=pairs,
        species=listed.species,
        system_idx=system.system_idx,
        charge=system.charge,
        spin=system.spin,
        order=order,
    )
