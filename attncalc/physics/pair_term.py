"""Protocol of a pair term."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from attncalc.graph import AtomOutputs, Graph


class PairTerm(Protocol):
    """An energy in closed form beside the network's: repulsion, electrostatics, dispersion.

    It must vanish smoothly at its cutoff, and a masked edge must contribute exactly nothing. Where
    the CPU needs more speed than autograd gives, `linearize(graph, outputs)` may return a
    `LinearizedTerm`: energies, and the gradients of their sum by vectors and outputs.

    A term that needs a graph of its own has an attribute `long_range`, its cutoff in Å. If it is to
    count all pairs of structures that are not periodic, `of_all_pairs` is its form for these, a
    term too; `with_cutoff(cutoff)` gives it another cutoff in Å (None: none) for all structures.
    """

    def __call__(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Energies [n_atoms] eV, float64, differentiable by vectors and outputs."""
        ...


def of_all_pairs(term: Any) -> Any:
    """Form of a pair term for structures without periodic directions; None: it has only one."""
    return getattr(term, "of_all_pairs", None)


def long_range_of(term: Any) -> float | None:
    """Cutoff of a pair term with a graph of its own, Å; None for others."""
    return getattr(term, "long_range", None)
