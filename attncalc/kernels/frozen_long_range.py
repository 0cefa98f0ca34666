"""Electrostatics and dispersion with fixed parameters, in one compiled loop over all pairs.

`FrozenLongRange` equals the sum of an `attncalc.physics.electrostatics.DampedElectrostatics` and an
`attncalc.physics.dispersion.Dispersion` of the same range, or one of the two. One sweep gives
energies, forces, strain gradient, and the gradients with respect to charges and Hirshfeld ratios.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attncalc.graph import AtomOutputs, Graph, LinearizedTerm, SummedGradient
from attncalc.kernels.so3krates.tables import Grid, cubics

INTERVAL = 0.0025  # Å; slopes of the cubics have relative errors of at most 1e-9
MOST_INTERVALS = 1 << 17
# distance in damping lengths at which the error function is 1 to all digits of float64
POINTS = 6.0
SMALLEST = 1e-12  # bohr^3, smallest polarizability of an atom: roots of zero have no slope


class Constants(NamedTuple):
    """Constants of the two terms; their values are defined with the terms.

    Attributes:
        coulomb: eV Å, Coulomb constant.
        hartree, bohr: eV, Å.
        radius: bohr, van der Waals radius divided by the seventh root of the polarizability.
        width: coefficients of the oscillator's width as a polynomial in that radius.
        damping_radius: bohr, damping radius divided by the seventh root of the polarizability.
    """

    coulomb: float
    hartree: float
    bohr: float
    radius: float
    width: tuple[float, ...]
    damping_radius: float


class FrozenLongRange(nn.Module):
    """Replacement for electrostatics, dispersion or both on the CPU, with fixed parameters.

    Args:
        electrostatics: a `DampedElectrostatics`, or None.
        dispersion: a `Dispersion` of the same range, or None.
        constants: constants of both terms.

    Attributes:
        terms: the replaced terms, for gradients that `linearize` does not give.
        of_all_pairs: the form for molecules if it is a different one, else None.
        long_range: Å.
    """

    sums_over_pairs, reads_system = True, False

    def __init__(self, electrostatics: Any, dispersion: Any, constants: Constants) -> None:
        super().__init__()
        given = electrostatics, dispersion
        both = [term for term in given if term is not None]
        self.terms = nn.ModuleList(both)
        self.long_range = both[0].long_range
        electric, dispersive = (None if term is None else term.of_all_pairs for term in given)
        self.of_all_pairs: FrozenLongRange | None = None
        if electric is not None or dispersive is not None:
            self.of_all_pairs = type(self)(electric, dispersive, constants)
        self.reads_charges, self.reads_ratios = electrostatics is not None, dispersion is not None
        end = both[0].config.cutoff
        reach = POINTS * electrostatics.config.damping_length if electrostatics is not None else 1.0
        self.arguments = (
            *_of_atoms(dispersion, constants.hartree),
            _table(electrostatics, dispersion, reach if end is None else end),
            _numbers(dispersion, constants, end, reach),
        )

    def linearize(self, graph: Graph, outputs: AtomOutputs) -> LinearizedTerm | None:
        """Return energies, forces, strain gradient, dE / d charges and dE / d ratios, as arrays.

        None for a graph without a list of pairs.
        """
        from attncalc.kernels import long_range_loop

        if (pairs := getattr(graph, "half_list", None)) is None:
            return None
        n_atoms = graph.n_atoms
        charges = _array(outputs, "charges") if self.reads_charges else np.zeros(n_atoms)
        ratios = _array(outputs, "hirshfeld_ratios") if self.reads_ratios else np.ones(n_atoms)
        found = long_range_loop.sum_over_pairs(*pairs, charges, ratios, *self.arguments)
        energies, of_atoms, d_ratios, strain = found
        by_outputs = {}
        if self.reads_charges:
            by_outputs["charges"] = of_atoms[:, 3]
        if self.reads_ratios:
            by_outputs["hirshfeld_ratios"] = d_ratios
        return LinearizedTerm(energies, SummedGradient(of_atoms[:, :3], strain), by_outputs)

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return the energies [n_atoms] eV, float64, of the replaced terms."""
        return sum(term(graph, outputs) for term in self.terms)


def _array(outputs: AtomOutputs, name: str) -> NDArray[np.float64]:
    if (arrays := outputs.arrays) is not None:
        array: NDArray[np.float64] = getattr(arrays, name)
        return array
    return np.ascontiguousarray(outputs.required(name).detach().numpy())


def _of_atoms(dispersion: Any, hartree: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Polarizabilities [n_species] and C6 [n_species, n_species] eV bohr^6; C6 is 0 for None."""
    if dispersion is None:
        return np.ones(_MOST_SPECIES), np.zeros((_MOST_SPECIES, _MOST_SPECIES))
    return dispersion.polarizabilities.cpu().numpy(), hartree * dispersion.c6.cpu().numpy()


_MOST_SPECIES = 119


def _table(electrostatics: Any, dispersion: Any, end: float) -> NDArray[np.float64]:
    """Cubics [n_intervals, 8] of interaction and switch, for lengths from 0 to `end` [Å]."""

    def interaction(lengths: Tensor) -> Tensor:
        if electrostatics is None:
            return torch.zeros_like(lengths)
        return electrostatics.interaction(lengths.clamp(min=1e-6))  # it is even: slope 0 at 0

    def switch(lengths: Tensor) -> Tensor:
        return torch.ones_like(lengths) if dispersion is None else dispersion.switch(lengths)

    grid = Grid(0.0, end, min(MOST_INTERVALS, math.ceil(end / INTERVAL)))
    both = [cubics(function, grid) for function in (interaction, switch)]
    return np.ascontiguousarray(torch.cat(both, dim=1).numpy())


def _numbers(
    dispersion: Any, constants: Constants, end: float | None, reach: float
) -> NDArray[np.float64]:
    """Numbers [11] that the loop reads besides tables; see `long_range_loop.sum_over_pairs`."""
    damping = 1.0 if dispersion is None else dispersion.config.damping
    until = reach if end is None else end
    n_intervals = min(MOST_INTERVALS, math.ceil(until / INTERVAL))
    return np.array(
        [
            1 / constants.bohr**2,
            1 / (damping * constants.damping_radius) ** 2,
            *(w * constants.radius**k for k, w in enumerate(constants.width)),
            constants.coulomb,
            n_intervals / until,
            reach if end is None else math.inf,
            math.inf if end is None else end**2,
            SMALLEST,
        ]
    )
