"""Electrostatic energy of predicted charges and of all their periodic images, by an Ewald sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attncalc.graph import AtomOutputs, Graph
from attncalc.physics.long_range import positive, required
from attncalc.physics.zbl import COULOMB_CONSTANT
from attncalc.system import System

# terms of the sum are left out where exp(-k² sigma² / 4) is below
SMALLEST = 1e-11
# products of atoms and vectors that are in memory at once
CHUNK = 4_000_000


@dataclass(frozen=True)
class EwaldConfig:
    """Damping.

    Attributes:
        damping_length: Å, sigma of the error function. The work grows as its inverse cube.
    """

    damping_length: float = 4.0

    def __post_init__(self) -> None:
        positive("damping_length", self.damping_length)


class Ewald(nn.Module):
    """E = k_e sum over pairs and periodic images of q_i q_j erf(r / sigma) / r.

    It is the interaction of `DampedElectrostatics` without any cutoff. In periodic structures it is
    a sum over the reciprocal lattice alone, as erf(r / sigma) / r has the smooth Fourier transform
    4 pi exp(-k² sigma² / 4) / k² (Ewald, Ann. Phys. 369, 253, 1921; with the damping of the network
    for that of the sum there is no part in real space). Surroundings are a perfect conductor, and a
    charged cell has a uniform neutralizing background, with which charges interact undamped. With a
    damping length below a fifth of the shortest distance charges are points.

    The work is that of atoms times vectors, thus of the square of the number of atoms.

    Args:
        config: damping.
        species: elements of the potential, which this term does not need.
    """

    # reads positions and cells instead of a graph
    reads_system: ClassVar = True

    def __init__(self, config: EwaldConfig, species: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        del species

    def forward(self, graph: Graph, outputs: AtomOutputs, system: System) -> Tensor:
        """[n_atoms] eV, float64, differentiable by positions, cells and charges.

        Raises:
            ValueError: the network predicts no charges, or a structure is periodic in one or two
                directions only.
        """
        del graph
        charges = required(outputs, "charges", "predict_charges")
        energies = []
        for n, (q, r) in enumerate(
            zip(system.split(charges), system.split(system.positions), strict=True)
        ):
            periodic = system.pbc[n].tolist()
            if any(periodic) and not all(periodic):
                raise ValueError(
                    "the Ewald sum is for three periodic directions or none: set atoms.pbc = True "
                    "with vacuum in the cell, or atoms.pbc = False"
                )
            potential = self._in_cell(q, r, system.cell[n]) if all(periodic) else self._free(q, r)
            energies.append(COULOMB_CONSTANT / 2 * q * potential)
        return torch.cat(energies)

    def _free(self, charges: Tensor, positions: Tensor) -> Tensor:
        """Potential [n] 1/Å at the atoms of a molecule."""
        n = len(positions)
        i, j = torch.triu_indices(n, n, 1, device=positions.device)
        lengths = torch.linalg.vector_norm(positions[j] - positions[i], dim=1)
        of_pairs = torch.erf(lengths / self.config.damping_length) / lengths
        potential = torch.zeros_like(charges).index_add(0, i, of_pairs * charges[j])
        return potential.index_add(0, j, of_pairs * charges[i])

    def _in_cell(self, charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """Potential [n] 1/Å at the atoms of a periodic structure."""
        sigma = self.config.damping_length
        volume = torch.linalg.det(cell).abs()
        reciprocal = 2 * math.pi * torch.linalg.inv(cell).T
        lattice = _half_lattice(cell.detach().cpu().numpy(), sigma).to(positions.device)
        potential = -2 / (math.sqrt(math.pi) * sigma) * charges
        potential = potential - math.pi * sigma**2 / volume * charges.sum()
        for part in lattice.split(max(1, CHUNK // len(positions))):
            k = part @ reciprocal
            squares = (k**2).sum(1)
            # both of k and -k
            weights = 8 * math.pi / volume * torch.exp(-squares * sigma**2 / 4) / squares
            phases = positions @ k.T
            cosines, sines = torch.cos(phases), torch.sin(phases)
            real, imaginary = charges @ cosines, charges @ sines
            potential = potential + cosines @ (weights * real) + sines @ (weights * imaginary)
        return potential


def _half_lattice(cell: np.ndarray, sigma: float) -> Tensor:
    """Integer vectors [K, 3] of the reciprocal lattice that count, one of k and -k, not zero."""
    longest = 2 * math.sqrt(-math.log(SMALLEST)) / sigma
    # |m_a| = |k . a| / 2 pi at most
    most = np.floor(longest * np.linalg.norm(cell, axis=1) / (2 * math.pi)).astype(int)
    ranges = [np.arange(-n, n + 1) for n in most]
    vectors = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = vectors[len(vectors) // 2 + 1 :]  # the order is that of -k backwards
    k = vectors @ (2 * math.pi * np.linalg.inv(cell).T)
    return torch.from_numpy(vectors[(k**2).sum(1) < longest**2].astype(np.float64))
