"""Dispersion energy from predicted Hirshfeld volume ratios (SO3LR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph
from attncalc.options import positive
from attncalc.physics.free_atoms import free_atoms
from attncalc.physics.long_range import LongRangeConfig, LongRangeTerm, Pairs
from attncalc.physics.zbl import switch_off

# CODATA 2014
BOHR = 0.5291772105638411  # Å
HARTREE = 27.211386024367243  # eV
FINE_STRUCTURE = 0.007297352566206496
# R_v = RADIUS alpha^(1/7): van der Waals radius from polarizability (Fedorov et al., 2018), bohr
RADIUS = FINE_STRUCTURE ** (-4 / 21)
# width of a quantum Drude oscillator as a polynomial in R_v, from the constant term on
WIDTH = (-0.00433008, 0.24428889, 0.04125273, -0.00078893)
# damping radius over alpha^(1/7) at a damping of 1, bohr
DAMPING_RADIUS = 2 * 2.54
NARROWEST = 0.05  # Å, range in which the energy is switched off


@dataclass(frozen=True)
class DispersionConfig(LongRangeConfig):
    """Range and damping of `Dispersion`.

    Attributes:
        cutoff, all_pairs_in_molecules: see `LongRangeConfig`.
        switch_width: Å, width of the range below the cutoff in which the energy is switched off.
        damping: factor of the radius below which the energy levels off.
    """

    switch_width: float = 2.0
    damping: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("switch_width", self.switch_width)
        if self.switch_width < NARROWEST:
            raise ValueError(
                f"switch_width must be at least {NARROWEST} Å, got {self.switch_width:g}: forces "
                "would change too fast to be tabulated"
            )
        positive("damping", self.damping)


class Dispersion(LongRangeTerm):
    """E_ij = -(C6 / (r^6 + rho^6) + C8 / (r^8 + rho^8) + C10 / (r^10 + rho^10)) g(r), per pair.

    Polarizabilities and C6 of free atoms are scaled by the network's Hirshfeld volume ratios h:
    alpha_i = h_i alpha0_i, C6_ij = h_i h_j C6_ij of the free atoms, by the rule of Tkatchenko and
    Scheffler (2009) for two elements. C8 = 5 C6 / gamma and C10 = 245 C6 / (8 gamma^2) are those of
    quantum Drude oscillators, 1 / gamma = 2 s(R_v)^2; R_v and rho follow from the mean
    polarizability of the two atoms. g switches off before the cutoff. As in SO3LR (JACS 147, 33723,
    2025).

    Args:
        config: range and damping.
        species: elements of the potential.

    Raises:
        ValueError: there are no data of the free atom for an element.
    """

    config: DispersionConfig
    sums_over_pairs = True
    polarizabilities: Tensor
    c6: Tensor

    def __init__(self, config: DispersionConfig, species: Sequence[int]) -> None:
        super().__init__(config)
        alpha, c6 = free_atoms(species)
        weights = alpha.unsqueeze(1) ** 2 * c6
        c6_of_pairs = 2 * c6.unsqueeze(1) * c6 * alpha.unsqueeze(1) * alpha / (weights + weights.T)
        self.register_buffer("polarizabilities", alpha, persistent=False)
        self.register_buffer("c6", c6_of_pairs, persistent=False)

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return energies [n_atoms] eV, float64.

        Raises:
            ValueError: the network predicts no Hirshfeld ratios.
        """
        ratios = outputs.required("hirshfeld_ratios")
        i, j, lengths, _ = pairs = Pairs.of(graph, self.config.cutoff)
        alpha = self.polarizabilities.index_select(0, graph.species) * ratios
        alpha_i, alpha_j = alpha.index_select(0, i), alpha.index_select(0, j)
        root = ((alpha_i + alpha_j) / 2) ** (1 / 7)
        radius = RADIUS * root
        width = WIDTH[0] + radius * (WIDTH[1] + radius * (WIDTH[2] + radius * WIDTH[3]))
        per_gamma = 2 * width**2
        rho = self.config.damping * DAMPING_RADIUS * root
        # `index_select`, since indices in brackets would fix the number of atoms in a traced step
        rows, columns = graph.species.index_select(0, i), graph.species.index_select(0, j)
        free = self.c6.flatten().index_select(0, rows * len(self.c6) + columns)
        c6 = ratios.index_select(0, i) * ratios.index_select(0, j) * free
        c8, c10 = 5 * c6 * per_gamma, 245 / 8 * c6 * per_gamma**2
        r = lengths / BOHR
        energies = -HARTREE * (
            c6 / (r**6 + rho**6) + c8 / (r**8 + rho**8) + c10 / (r**10 + rho**10)
        )
        return pairs.halved(energies * self.switch(lengths), graph.n_atoms)

    def switch(self, lengths: Tensor) -> Tensor:
        """Return the factor [P] that falls from 1 to 0 below the cutoff, at lengths [P] Å."""
        end = self.config.cutoff
        if end is None:
            return torch.ones_like(lengths)
        return switch_off(lengths, end - self.config.switch_width, end)
