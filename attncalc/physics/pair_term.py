"""Protocol of a pair term."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph, Graphs


class PairTerm(Protocol):
    """Closed-form energy that is added to the network's: repulsion, electrostatics, dispersion.

    It must vanish smoothly at its cutoff, and masked edges must contribute exactly zero. For more
    speed than autograd, a method `linearize(graph, outputs)` may return a `LinearizedTerm`:
    energies, and the gradients of their sum by vectors and outputs.

    A term with a graph of its own has an attribute `long_range`, its cutoff in Å. If it counts all
    pairs of structures that are not periodic, its attribute `of_all_pairs` is the term for these,
    which is left out if its attribute `is_zero` is True.
    A method `with_cutoff(cutoff)` returns the term with another cutoff in Å (None: no cutoff) for
    all structures. If the energy of such a term is a sum over `graph.pairs`, half for each atom, it
    has `sums_over_pairs = True`: several processes may then share a structure and divide its pairs.

    A term that sums over a whole structure has `reads_system = True`. It is called with the
    structures, a `System`, as a third argument, and differentiated by positions and strain instead
    of edge vectors.
    """

    def __call__(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return energies [n_atoms] eV, float64, differentiable by vectors and outputs."""
        ...


def of_all_pairs(term: Any) -> Any:
    """Form of a pair term for structures without periodic directions; None: it has only one."""
    return getattr(term, "of_all_pairs", None)


def is_zero(term: Any) -> bool:
    """Return True if a pair term says of itself that it is zero for all structures."""
    return bool(getattr(term, "is_zero", False))


def long_range_of(term: Any) -> float | None:
    """Cutoff of a pair term with a graph of its own, Å; None for others."""
    return getattr(term, "long_range", None)


def sums_over_pairs(term: Any) -> bool:
    """Return True if processes that share a structure may divide the pairs of the term."""
    return long_range_of(term) is None or bool(getattr(term, "sums_over_pairs", False))


def reads_system(term: Any) -> bool:
    """Return True if a pair term reads positions and cells instead of a graph."""
    return bool(getattr(term, "reads_system", False))


def energies_of(term: Any, graphs: Graphs, outputs: AtomOutputs) -> Tensor:
    """Return energies [n_atoms] eV of a pair term, from the graph or the structures that it reads.

    Raises:
        ValueError: the term reads structures, but there are only graphs.
    """
    if not reads_system(term):
        energies: Tensor = term(graphs.of_range(long_range_of(term)), outputs)
        return energies
    if graphs.system is None:
        raise ValueError(
            f"{type(term).__name__} reads positions and cells: pass Graphs(..., system=system)"
        )
    energies = term(graphs.short, outputs, graphs.system)
    return energies


def strained(graphs: Graphs) -> tuple[Graphs, Tensor, Tensor]:
    """Return graphs with differentiable structures, and the leaves: positions and a zero strain.

    Positions and cells depend on the strain [n_systems, 3, 3] as r (1 + strain); edge vectors do
    not.

    Raises:
        ValueError: there are only graphs, without structures.
    """
    system = graphs.system
    if system is None:
        raise ValueError("a pair term reads positions and cells: pass Graphs(..., system=system)")
    positions = system.positions.detach().requires_grad_(True)
    strain = torch.zeros_like(system.cell).requires_grad_(True)
    of_atoms = (positions.unsqueeze(1) @ strain[system.system_idx]).squeeze(1)
    moved = replace(system, positions=positions + of_atoms, cell=system.cell + system.cell @ strain)
    return replace(graphs, system=moved), positions, strain
