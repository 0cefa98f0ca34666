"""Electrostatic energy of predicted partial charges, damped at short range (SO3LR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph
from attncalc.options import positive
from attncalc.physics.long_range import LongRangeConfig, LongRangeTerm, Pairs
from attncalc.physics.zbl import COULOMB_CONSTANT, switch_off


@dataclass(frozen=True)
class DampedConfig(LongRangeConfig):
    """Range and damping of the interaction V(r) = erf(r / sigma) / r of charges.

    Attributes:
        cutoff, all_pairs_in_molecules: see `LongRangeConfig`.
        damping_length: Å, sigma of the error function.
    """

    damping_length: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("damping_length", self.damping_length)

    @property
    def at_cutoff(self) -> float:
        """V at the cutoff, 1/Å; 0 without a cutoff."""
        end = self.cutoff
        return 0.0 if end is None else math.erf(end / self.damping_length) / end


@dataclass(frozen=True)
class ElectrostaticsConfig(DampedConfig):
    """Range and damping of `DampedElectrostatics`.

    Attributes:
        cutoff, all_pairs_in_molecules, damping_length: see `DampedConfig`.
        switch_start: length from which the force is shifted, as a fraction of the cutoff.
    """

    switch_start: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("switch_start", self.switch_start)
        if self.switch_start >= 1:
            raise ValueError(f"switch_start must be below 1, got {self.switch_start}")


class DampedElectrostatics(LongRangeTerm):
    """E_ij = k_e q_i q_j V(r) with V(r) = erf(r / sigma) / r, per pair.

    With a cutoff L, E_ij = k_e q_i q_j (V(r) - V(L) - (1 - f(r)) V'(L) (r - L)). The function f
    falls from 1 at `switch_start` L to 0 at L, where energy and force vanish; the slope of the
    force jumps there. Charges are the network's. There is no sum over periodic images beyond the
    cutoff, and no self-energy of a charge. As in SO3LR (JACS 147, 33723, 2025).

    Args:
        config: range and damping.
        species: elements of the potential; not used.
    """

    config: ElectrostaticsConfig
    sums_over_pairs = True

    def __init__(self, config: ElectrostaticsConfig, species: Sequence[int]) -> None:
        super().__init__(config)
        del species

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return energies [n_atoms] eV, float64.

        Raises:
            ValueError: the network predicts no charges.
        """
        charges = outputs.required("charges")
        pairs = Pairs.of(graph, self.config.cutoff)
        products = charges.index_select(0, pairs.i) * charges.index_select(0, pairs.j)
        return pairs.halved(
            COULOMB_CONSTANT * products * self.interaction(pairs.lengths), graph.n_atoms
        )

    def interaction(self, lengths: Tensor) -> Tensor:
        """Return E_ij / (k_e q_i q_j), [P] 1/Å, of pairs at lengths [P] Å below the cutoff."""
        sigma, end = self.config.damping_length, self.config.cutoff
        damped = torch.erf(lengths / sigma) / lengths
        if end is None:
            return damped
        at_end = self.config.at_cutoff
        gauss = 2 / (math.sqrt(math.pi) * sigma) * math.exp(-((end / sigma) ** 2))
        slope_at_end = (gauss - at_end) / end
        fade = 1 - switch_off(lengths, self.config.switch_start * end, end)
        return damped - at_end - fade * slope_at_end * (lengths - end)
