"""Energy of each charge with the charge that neutralizes its surroundings at the cutoff (Wolf)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attncalc.graph import AtomOutputs, Graph, LinearizedTerm
from attncalc.physics.electrostatics import DampedConfig
from attncalc.physics.long_range import TermWithRange
from attncalc.physics.zbl import COULOMB_CONSTANT


@dataclass(frozen=True)
class SelfEnergyConfig(DampedConfig):
    """Range and damping of `SelfEnergy`: those of `DampedElectrostatics`."""


class SelfEnergy(TermWithRange):
    """E_i = -k_e q_i^2 V(L) / 2 with V(r) = erf(r / sigma) / r, for electrostatics with a cutoff L.

    `DampedElectrostatics` shifts the energy of each pair by its value at L. In effect, each charge
    interacts with a charge at the distance L that neutralizes its surroundings. Without this term,
    the charge itself is not among those neutralized, and a neutral molecule in a periodic cell has
    k_e V(L) / 2 sum q_i^2 more energy than alone. With it, molecules smaller than the range in
    which no force is shifted have the same forces in both, and the same energy if they are neutral;
    of ions of charge Q it is k_e V(L) / 2 Q^2 lower (Wolf et al., J. Chem. Phys. 110, 8254, 1999,
    eq. 3.11). Without a cutoff it is zero.

    Args:
        config: range and damping.
        species: elements of the potential; not used.
    """

    config: SelfEnergyConfig

    def __init__(self, config: SelfEnergyConfig, species: Sequence[int]) -> None:
        super().__init__(config)
        del species

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return energies [n_atoms] eV, float64.

        Raises:
            ValueError: the network predicts no charges.
        """
        del graph
        charges = outputs.required("charges").double()
        return -0.5 * COULOMB_CONSTANT * self.config.at_cutoff * charges**2

    def linearize(self, graph: Graph, outputs: AtomOutputs) -> LinearizedTerm:
        """Return energies and dE / d charges; the term does not depend on edge vectors."""
        del graph
        arrays: Any = outputs.arrays
        charges = outputs.required("charges").double() if arrays is None else arrays.charges
        by_charges = -COULOMB_CONSTANT * self.config.at_cutoff * charges
        return LinearizedTerm(0.5 * by_charges * charges, None, {"charges": by_charges})

    @property
    def is_zero(self) -> bool:
        """Return True without a cutoff."""
        return self.config.cutoff is None
