"""`Graph`: the input of a network. The sign of an edge vector is fixed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from attncalc.ops import segment_sum
from attncalc.system import System

ALL_PAIRS = 1e4
"""Cutoff in Å, longer than any molecule, for networks that use all pairs of a molecule."""


@dataclass(frozen=True)
class Edges:
    """Neighbour pairs of a system, every pair in both directions, sorted by receiver.

    Attributes:
        receivers: [n_edges], int64: the centre i.
        senders: [n_edges], int64: the neighbour j.
        cell_shifts: [n_edges, 3], int64: multiples of the cell vectors added to the sender.
    """

    receivers: Tensor
    senders: Tensor
    cell_shifts: Tensor

    @property
    def n_edges(self) -> int:
        return self.receivers.shape[0]


class GraphArrays(NamedTuple):
    """Arrays of a `Graph` on the CPU, in the order in which compiled loops take them."""

    vectors: NDArray[np.float64]
    receivers: NDArray[np.int64]
    senders: NDArray[np.int64]
    edge_mask: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    species: NDArray[np.int64]
    system_idx: NDArray[np.int64]


class LayerExchange(Protocol):
    """Messages between the domains of a structure, before and after a layer of a network."""

    def update(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy the rows of ghosts from their owners."""
        ...

    def give_back(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Add the rows of ghosts to those of their owners, and set them to zero."""
        ...


class GhostLayers(NamedTuple):
    """Ghosts of a graph: atoms that follow its own atoms, and whose outputs are not used.

    A network may skip computations that do not change outputs of own atoms; all else is the same.
    Sums over a whole structure are left to the caller, who has all domains.

    Attributes:
        counts: numbers of atoms within 0, 1, ... edges of own atoms; the last holds for any larger
            number of edges.
        exchange: None: there are ghosts for all layers of the network. Otherwise `counts` ends at
            one edge, and the engine must update ghosts by `exchange` before each layer.
        composition: number of atoms of each species in the whole structure; None: in this graph.
    """

    counts: tuple[int, ...]
    exchange: LayerExchange | None = None
    composition: tuple[int, ...] | None = None

    def within(self, n_edges: int) -> int:
        """Return the number of atoms within so many edges of own atoms."""
        return self.counts[min(n_edges, len(self.counts) - 1)]


class EdgeOrder(NamedTuple):
    """Places of each atom's edges in a list, for kernels that add up the edges of an atom.

    Attributes:
        rows: [n_atoms + 1], int64: where the edges begin that an atom receives. Padding edges
            belong to the last atom; the last number excludes them.
        by_sender: [n_edges], int64: edges sorted by their senders, padding edges last.
        sent_rows: [n_atoms + 1], int64: where the edges that an atom sends begin in `by_sender`.
    """

    rows: Tensor
    by_sender: Tensor
    sent_rows: Tensor

    @classmethod
    def of(cls, receivers: Tensor, senders: Tensor, n_atoms: int, n_real: int | Tensor) -> Self:
        """Return the order of edges.

        Args:
            receivers, senders: [n_edges].
            n_atoms: number of atoms.
            n_real: number of edges without padding at the end.
        """
        atoms = torch.arange(n_atoms + 1, device=receivers.device)
        nth = torch.arange(receivers.shape[0], device=receivers.device)
        keys, by_sender = torch.where(nth < n_real, senders, n_atoms).sort(stable=True)
        rows = torch.searchsorted(receivers, atoms).clamp(max=n_real)
        return cls(rows, by_sender, torch.searchsorted(keys, atoms))


@dataclass(frozen=True)
class Graph:
    """Edge vectors and species of atoms, without positions and cells.

    Attributes:
        vectors: [n_edges, 3] Å, float64, from receiver (centre i) to sender (neighbour j).
        receivers: [n_edges], int64, ascending.
        senders: [n_edges], int64.
        edge_mask: [n_edges], bool: False for padding and for pairs beyond the cutoff. In a network
            such an edge must contribute exactly zero, whatever its vector.
        pairs: [n_pairs], int64: for every unordered pair of atoms (or atom and image) the index of
            one of its two edges. At the end a padding edge is repeated.
        species: [n_atoms], int64: rows of the potential's species table.
        system_idx: [n_atoms], int64, ascending.
        charge: [n_systems] e, float64.
        spin: [n_systems], int64: multiplicity 2S+1.
        ghosts: of a domain, which is a part of one structure; None for a graph of whole structures.
        order: known order of the edges; None: it is computed where it is needed.
    """

    vectors: Tensor
    receivers: Tensor
    senders: Tensor
    edge_mask: Tensor
    pairs: Tensor
    species: Tensor
    system_idx: Tensor
    charge: Tensor
    spin: Tensor
    ghosts: GhostLayers | None = field(default_factory=NoneType)
    order: EdgeOrder | None = field(default_factory=NoneType)

    @property
    def n_atoms(self) -> int:
        return self.species.shape[0]

    @property
    def n_edges(self) -> int:
        return self.receivers.shape[0]

    @property
    def n_systems(self) -> int:
        return self.charge.shape[0]

    @property
    def arrays(self) -> GraphArrays:
        """Arrays of a graph on the CPU, without copies."""
        names = GraphArrays._fields
        return GraphArrays(*(getattr(self, name).detach().numpy() for name in names))

    def with_vectors(self, vectors: Tensor) -> Graph:
        """Return the same graph with other edge vectors (to differentiate with respect to them)."""
        return replace(self, vectors=vectors)

    def with_ghosts(self, ghosts: GhostLayers) -> Graph:
        """Return the same graph, marked as the graph of a domain with these ghosts."""
        return replace(self, ghosts=ghosts)


class OfArrays:
    """Mixin for a dataclass of tensors that is made of arrays on the CPU.

    A tensor is made of its array at the first access. Compiled loops pass arrays to each other and
    rarely need the tensors, each of which costs as much as a small loop. Fields that may be None
    need a `default_factory`: a plain default is a class attribute and would hide the array.
    """

    _arrays: Any = None

    @classmethod
    def of(cls, arrays: Any, **others: Any) -> Self:
        """Make an instance of a named tuple of arrays, and of tensors that exist already."""
        one = object.__new__(cls)
        one.__dict__.update(others, _arrays=arrays)
        return one

    @property
    def arrays(self) -> Any:
        """Arrays of this object; after `replace` with tensors, those of the tensors."""
        if self._arrays is None:
            return super().arrays  # type: ignore[misc]  # of the dataclass
        return self._arrays

    def __getattr__(self, name: str) -> Any:
        arrays = self._arrays
        if arrays is None or name not in arrays._fields:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        array = getattr(arrays, name)
        tensor = self.__dict__[name] = None if array is None else torch.from_numpy(array)
        return tensor


class GraphOfArrays(OfArrays, Graph):
    """Graph made of `GraphArrays`; copies and unpickled ones are a plain `Graph`."""

    ghosts = None
    order = None

    def with_ghosts(self, ghosts: GhostLayers) -> Graph:
        """Return the same graph, marked as the graph of a domain with these ghosts."""
        return GraphOfArrays.of(self.arrays, charge=self.charge, spin=self.spin, ghosts=ghosts)

    def __reduce__(self) -> tuple[type[Graph], tuple[Any, ...]]:
        return Graph, tuple(getattr(self, field.name) for field in fields(Graph))


@dataclass(frozen=True)
class AtomOutputs:
    """Predictions of a network per atom.

    Attributes:
        energies: [n_atoms], in the network's dtype, before scale and reference energies.
        charges: [n_atoms] e, partial charges, which add up to the total charge of a system; None
            if the network does not predict them.
        hirshfeld_ratios: [n_atoms], volume of an atom in its surroundings over that of the free
            atom (Hirshfeld, 1977), not negative; None if the network does not predict them.
        features: [n_atoms, F], in the network's dtype, invariant under rotation: the input of the
            energy readout, for `attncalc.novelty`. None if they are unknown, as in some engines.
            No gradient is taken with respect to them.
    """

    energies: Tensor
    charges: Tensor | None = field(default_factory=NoneType)
    hirshfeld_ratios: Tensor | None = field(default_factory=NoneType)
    features: Tensor | None = field(default_factory=NoneType)

    @property
    def arrays(self) -> OutputArrays | None:
        """Outputs as arrays, without features; None if they were made as tensors."""
        return None

    def required(self, name: str) -> Tensor:
        """Return an output in float64.

        Args:
            name: one of `OUTPUTS`.

        Raises:
            ValueError: the network does not predict it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"a pair term reads {name}: the network needs predict_{name}=True")
        return value.double()

    def detached(self) -> AtomOutputs:
        """Return the same outputs, detached from the autograd graph."""
        names = (*OUTPUTS, "features")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return AtomOutputs(**{name: value.detach() for name, value in found.items()})


class OutputArrays(NamedTuple):
    """Arrays of `AtomOutputs` on the CPU, [n_atoms] each."""

    energies: NDArray[np.float64]
    charges: NDArray[np.float64] | None = None
    hirshfeld_ratios: NDArray[np.float64] | None = None


class OutputsOfArrays(OfArrays, AtomOutputs):
    """Outputs made of `OutputArrays`, and of features as an array, `feature_array`."""

    feature_array: NDArray[np.float32] | None = None

    def __getattr__(self, name: str) -> Any:
        if name != "features":
            return super().__getattr__(name)
        array = self.feature_array
        tensor = self.__dict__[name] = None if array is None else torch.from_numpy(array)
        return tensor


OUTPUTS = OutputArrays._fields
"""Names of all predictions that a network may have."""


def gradients_of(
    outputs: AtomOutputs, d_outputs: AtomOutputs, leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return dE / d leaves from dE / d outputs, by autograd.

    Args:
        outputs: outputs of a network. They need not depend on the leaves: energies of isolated
            atoms depend on no vector.
        d_outputs: dE / d outputs.
        leaves: tensors that require a gradient.
    """
    weighted = []
    with torch.enable_grad():
        for name in OUTPUTS:
            value = getattr(outputs, name)
            if value is not None and value.requires_grad:
                weighted.append((value * getattr(d_outputs, name).to(value.dtype)).sum())
        if not weighted:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        # gradient of a sum: with grad_outputs torch would import sympy, half a second at the start
        total = sum(weighted[1:], weighted[0])
    return torch.autograd.grad(total, leaves, materialize_grads=True)


class Linearized(NamedTuple):
    """Outputs of a network for one graph, and the backward function from them to edge vectors.

    Attributes:
        outputs: values, detached.
        pull: dE / d outputs (of the fields that are there, float64) -> dE / d vectors
            [n_edges, 3], float64; an array if its argument is made of arrays. It may be called
            once.
    """

    outputs: AtomOutputs
    pull: Callable[[AtomOutputs], Any]


class SummedGradient(NamedTuple):
    """Gradient of a pair term that is already summed over edges, for callers that allow it.

    Attributes:
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV.
    """

    forces: Tensor | NDArray[np.float64]
    strain_gradient: Tensor | NDArray[np.float64]


class LinearizedTerm(NamedTuple):
    """Energies of a pair term for one graph, and the gradients of their sum.

    All are tensors, or arrays for a term that runs on the CPU.

    Attributes:
        energies: [n_atoms] eV, float64.
        by_vectors: gradient by edge vectors [n_edges, 3] eV/Å, or its sums over edges; None: zero.
        by_outputs: gradient [n_atoms] by each output that the term reads, by name.
    """

    energies: Tensor | NDArray[np.float64]
    by_vectors: Tensor | NDArray[np.float64] | SummedGradient | None
    by_outputs: Mapping[str, Tensor | NDArray[np.float64]]


class SharedOutputs(Protocol):
    """Exchange of the networks' outputs between the parts of a structure."""

    def complete(self, outputs: AtomOutputs) -> AtomOutputs:
        """Return a part's outputs, with totals corrected and ghosts set from the other parts."""
        ...

    def give_back(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradient of the whole energy by outputs of the part's own atoms; 0 for ghosts.

        Args:
            gradient: of the part's energy by the outputs that `complete` returned, [n_atoms] by
                name.
        """
        ...


@dataclass(frozen=True)
class Graphs:
    """Graphs of the systems of one evaluation.

    Attributes:
        short: within the cutoff of the network.
        long: within the cutoff of pair terms of longer range; None without such terms.
        all_pairs: True: no structure is periodic, `long` holds all pairs of each, and pair terms
            take their form for all pairs, if they have one.
        n_counted: number of atoms, the first ones, whose energies count; None: all. The others are
            ghosts of a domain: they have forces, but their energies are not summed.
        shared: exchange of the networks' outputs between the parts of a structure; None: there is
            none. With it, pairs of longer range are divided: a pair with a ghost is in `long` of
            one part only, and its energy counts at both atoms.
        system: the structures, for pair terms that read positions and cells; None if the caller
            has only graphs.
    """

    short: Graph
    long: Graph | None = None
    n_counted: int | None = None
    all_pairs: bool = False
    shared: SharedOutputs | None = None
    system: System | None = None

    def n_counted_of(self, long_range: float | None) -> int | None:
        """Return the number of atoms whose energies of a pair term count; None: all.

        Args:
            long_range: cutoff of the term in Å; None: that of the network.
        """
        is_divided = self.shared is not None and long_range is not None
        return None if is_divided else self.n_counted

    def of_range(self, long_range: float | None) -> Graph:
        """Return the graph of a pair term.

        Args:
            long_range: cutoff of the term in Å; None: that of the network.

        Raises:
            ValueError: there is no graph of longer range.
        """
        if long_range is None:
            return self.short
        if self.long is None:
            raise ValueError(
                f"a pair term reaches {long_range:g} Å: pass Graphs(short, long), not one graph"
            )
        return self.long


def edge_vectors(system: System, edges: Edges, *, has_images: bool | None = None) -> Tensor:
    """Return [n_edges, 3] Å: positions[senders] - positions[receivers] + cell_shifts @ cell.

    The vector of pair (i, j) points from the centre i to the neighbour j, like ASE's D.

    Args:
        system: the structures.
        edges: pairs of atoms.
        has_images: True if any cell shift is not zero; None: unknown, which costs a read-back from
            the device.
    """
    positions = system.positions
    vectors = positions.index_select(0, edges.senders) - positions.index_select(0, edges.receivers)
    # a molecule has no cell: skip two gathers and a product that would add zeros
    if not (edges.cell_shifts.any() if has_images is None else has_images):
        return vectors
    shifts = edges.cell_shifts.to(vectors.dtype)
    if system.n_systems == 1:
        return vectors + shifts @ system.cell[0]
    cells = system.cell[system.system_idx[edges.receivers]]
    return vectors + torch.einsum("ek,ekc->ec", shifts, cells)


def one_per_pair(edges: Edges) -> Tensor:
    """Return [n_edges], bool: True for exactly one of the two edges of every pair.

    The two edges of a pair are (i, j, S) and (j, i, -S). The one with i < j is marked; for an atom
    and its own image, the one whose shift has a positive first non-zero component.
    """
    i, j, shifts = edges.receivers, edges.senders, edges.cell_shifts
    a, b, c = shifts.unbind(1)
    positive = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    return (i < j) | ((i == j) & positive)


def species_of(atomic_numbers: Tensor, species: tuple[int, ...]) -> Tensor:
    """Return the index of each atom's element in `species`, [n_atoms], int64.

    Raises:
        ValueError: an element is not in `species`.
    """
    table = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
    table[torch.tensor(species)] = torch.arange(len(species))
    rows = table.to(atomic_numbers.device)[atomic_numbers]
    if (rows < 0).any():
        unknown = sorted(set(atomic_numbers[rows < 0].tolist()))
        known = " ".join(chemical_symbols[z] for z in species)
        raise ValueError(
            f"this model was not trained on {' '.join(chemical_symbols[z] for z in unknown)}; "
            f"its elements are: {known}; `attncalc models` lists others"
        )
    return rows


def with_totals(values: Tensor, totals: Tensor, graph: Graph) -> Tensor:
    """Return values [n_atoms] shifted equally within each system to add up to `totals` [n_systems].

    Values of a domain, which is a part of a structure, are not shifted.
    """
    if graph.ghosts is not None:
        return values
    sizes = sum_over_system(torch.ones_like(values), graph)
    excess = sum_over_system(values, graph) - totals.to(values.dtype)
    return values - (excess / sizes)[graph.system_idx]


def sum_over_system(values: Tensor, graph: Graph) -> Tensor:
    """Return [n_systems, ...]: sums of [n_atoms, ...] over each system.

    Every sum over a whole structure inside a network uses this function, so that an engine that
    divides a structure among processes can complete the sums in one place.
    """
    return segment_sum(values, graph.system_idx, graph.n_systems)
