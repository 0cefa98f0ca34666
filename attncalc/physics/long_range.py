"""Base of pair terms with a graph of longer range, whose cutoff may be changed at run time."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from attncalc.graph import ALL_PAIRS, Graph
from attncalc.ops import safe_norm, segment_sum
from attncalc.options import positive, true_or_false


@dataclass(frozen=True)
class LongRangeConfig:
    """Range of a term.

    Attributes:
        cutoff: Å, where the term ends smoothly; None: there is no cutoff, and all pairs count.
        all_pairs_in_molecules: True: all pairs count in structures without periodic directions, as
            if `cutoff` were None.
    """

    cutoff: float | None
    all_pairs_in_molecules: bool = False

    def __post_init__(self) -> None:
        if self.cutoff is not None:
            positive("cutoff", self.cutoff)
            if self.cutoff > ALL_PAIRS:
                raise ValueError(f"cutoff must be at most {ALL_PAIRS:g} Å, got {self.cutoff:g}")
        true_or_false("all_pairs_in_molecules", self.all_pairs_in_molecules)


class TermWithRange(nn.Module):
    """Pair term that depends on the cutoff of longer range.

    Args:
        config: a `LongRangeConfig`.
    """

    config: Any

    def __init__(self, config: LongRangeConfig) -> None:
        super().__init__()
        self.config = config

    @cached_property
    def of_all_pairs(self) -> Self | None:
        """Form for molecules that counts all pairs, with shared parameters; None without one."""
        if not self.config.all_pairs_in_molecules or self.config.cutoff is None:
            return None
        return self.with_cutoff(None)

    def with_cutoff(self, cutoff: float | None) -> Self:
        """Return the same term with another cutoff [Å] for all structures; None: no cutoff."""
        twin = copy.copy(self)
        twin.__dict__.pop("of_all_pairs", None)
        twin.config = replace(self.config, cutoff=cutoff, all_pairs_in_molecules=False)
        return twin


class LongRangeTerm(TermWithRange):
    """Pair term with a graph of its own.

    Args:
        config: a `LongRangeConfig`.
    """

    @property
    def long_range(self) -> float:
        """Range of the term's graph, Å."""
        return ALL_PAIRS if self.config.cutoff is None else self.config.cutoff


class Pairs(NamedTuple):
    """Pairs of a graph, each once.

    Attributes:
        i, j: [P], the two atoms.
        lengths: [P] Å; 1 if the pair does not count.
        counts: [P], bool: False beyond the cutoff and for padding.
    """

    i: Tensor
    j: Tensor
    lengths: Tensor
    counts: Tensor

    @classmethod
    def of(cls, graph: Graph, cutoff: float | None) -> Pairs:
        """Return the pairs of a graph closer than the cutoff [Å]; None: all pairs."""
        receivers, senders, vectors, counts = (
            values.index_select(0, graph.pairs)
            for values in (graph.receivers, graph.senders, graph.vectors, graph.edge_mask)
        )
        if cutoff is not None:
            counts = counts & ((vectors.detach() ** 2).sum(1) < cutoff**2)
        # vectors of pairs that do not count may be anything, and a zero vector would give NaN
        return cls(
            receivers,
            senders,
            safe_norm(torch.where(counts.unsqueeze(1), vectors, 3**-0.5)),
            counts,
        )

    def halved(self, energies: Tensor, n_atoms: int) -> Tensor:
        """Return energies of atoms [n_atoms] from those of pairs [P]: half for each atom."""
        half = energies * self.counts / 2
        return segment_sum(torch.cat([half, half]), torch.cat([self.i, self.j]), n_atoms)
