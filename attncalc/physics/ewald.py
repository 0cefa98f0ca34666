"""Electrostatic energy of predicted charges and all their periodic images, by an Ewald sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attncalc.graph import AtomOutputs, Graph
from attncalc.options import positive
from attncalc.physics.zbl import COULOMB_CONSTANT
from attncalc.system import System

# terms of the sum are left out if exp(-k² sigma² / 4) is below this
SMALLEST = 1e-11
# cosines and sines in memory at once
CHUNK = 250_000
# smallest number of atoms of a chunk
FEWEST = 32


@dataclass(frozen=True)
class EwaldConfig:
    """Damping of `Ewald`.

    Attributes:
        damping_length: Å, sigma of the error function. The work grows as its inverse cube.
    """

    damping_length: float = 4.0

    def __post_init__(self) -> None:
        positive("damping_length", self.damping_length)


class Ewald(nn.Module):
    """E = k_e sum over pairs and periodic images of q_i q_j erf(r / sigma) / r.

    This is the interaction of `DampedElectrostatics` without a cutoff. In periodic structures it is
    a sum over the reciprocal lattice only, because erf(r / sigma) / r has the smooth Fourier
    transform 4 pi exp(-k² sigma² / 4) / k² (Ewald, Ann. Phys. 369, 253, 1921). The damping of the
    interaction takes the place of Ewald's, so there is no part in real space. The surroundings are
    a perfect conductor. A charged cell has a uniform neutralizing background, with which charges
    interact undamped. If the damping length is below a fifth of the shortest distance, charges are
    points.

    The work grows as the number of atoms times that of vectors, thus as the square of the number of
    atoms. It is done by matrix products: phases of a vector (m_1, m_2, m_3) are products of those
    of (m_1, m_2) and of m_3, and vectors with m_3 and -m_3 share them. Memory grows as the number
    of atoms and that of vectors.

    Args:
        config: damping.
        species: elements of the potential; not used.
    """

    # reads positions and cells instead of a graph
    reads_system: ClassVar = True

    def __init__(self, config: EwaldConfig, species: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        del species

    def forward(self, graph: Graph, outputs: AtomOutputs, system: System) -> Tensor:
        """Return energies [n_atoms] eV, float64, differentiable by positions, cells and charges.

        Raises:
            ValueError: the network predicts no charges, or a structure is periodic in one or two
                directions only.
        """
        del graph
        charges = outputs.required("charges")
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
        """Return the potential [n] 1/Å at the atoms of a molecule."""
        n = len(positions)
        i, j = torch.triu_indices(n, n, 1, device=positions.device)
        lengths = torch.linalg.vector_norm(positions[j] - positions[i], dim=1)
        of_pairs = torch.erf(lengths / self.config.damping_length) / lengths
        potential = torch.zeros_like(charges).index_add(0, i, of_pairs * charges[j])
        return potential.index_add(0, j, of_pairs * charges[i])

    def _in_cell(self, charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """Return the potential [n] 1/Å at the atoms of a periodic structure."""
        sigma = self.config.damping_length
        volume, inverse = torch.linalg.det(cell).abs(), torch.linalg.inv(cell)
        columns, rows = _lattice(cell.detach(), sigma)
        # k = 2 pi (m_1, m_2, +-m_3) in the reciprocal lattice
        of_columns = (2 * math.pi * columns @ inverse.T[:2]).unsqueeze(1)
        of_rows = 2 * math.pi * rows.unsqueeze(1) * inverse.T[2]
        above, below = (self._weights(of_columns + k, volume) for k in (of_rows, -of_rows))
        # (m_1, m_2, -0) and (0, 0, -m_3) are in the sum already
        again = (rows == 0) | (columns == 0).all(1, keepdim=True)
        below = torch.where(again, 0.0, below)
        fractional = positions @ inverse
        waves: Any = _Waves.apply(charges.unsqueeze(0), fractional, columns, rows)
        # cos(a +- b) = cos a cos b -+ sin a sin b, sin(a +- b) = sin a cos b +- cos a sin b
        signs = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).to(cell)[:, None, :, None]
        mixed = (above - below).unsqueeze(1) * signs * waves.flip(1, 3)
        waves = (above + below).unsqueeze(1) * waves + mixed
        potential = _potentials(waves, fractional, (columns, rows))
        of_themselves = 2 / (math.sqrt(math.pi) * sigma) * charges
        return potential[0] - of_themselves - math.pi * sigma**2 / volume * charges.sum()

    def _weights(self, k: Tensor, volume: Tensor) -> Tensor:
        """Return weights [C, M] 1/Å of k and -k, [C, M, 3] 1/Å; zero for those left out."""
        squares = (k**2).sum(2)
        exponents = squares * self.config.damping_length**2 / 4
        counts = (squares > 0) & (exponents < -math.log(SMALLEST))
        squares = torch.where(counts, squares, 1.0)
        return torch.where(counts, 8 * math.pi / volume * torch.exp(-exponents) / squares, 0.0)


def _lattice(cell: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return integers (m_1, m_2) [C, 2] and m_3 [M] >= 0 of vectors, for one of each k and -k."""
    longest = 2 * math.sqrt(-math.log(SMALLEST)) / sigma
    # |m_a| = |k . a| / 2 pi at most
    most = (longest * torch.linalg.vector_norm(cell, dim=1) / (2 * math.pi)).int().tolist()
    first, second, rows = (torch.arange(-n, n + 1).to(cell) for n in most)
    columns = torch.cartesian_prod(first, second)
    columns = columns[len(columns) // 2 :]  # the first half is the second with opposite sign
    # m_3 does not change the part of k at a right angle to the third reciprocal vector
    reciprocal = 2 * math.pi * torch.linalg.inv(cell).T
    along = reciprocal[2:] / torch.linalg.vector_norm(reciprocal[2])
    k = columns @ reciprocal[:2]
    counts = (k**2).sum(1) - (k @ along.T).squeeze(1) ** 2 < longest**2
    return columns[counts], rows[most[2] :]


class _Waves(torch.autograd.Function):
    """Sums over atoms of charges times products of a cosine or sine of m_1, m_2 and of m_3."""

    @staticmethod
    def forward(ctx: Any, charges: Tensor, fractional: Tensor, *lattice: Tensor) -> Tensor:
        """Charges [B, n] at fractional positions [n, 3] -> [B, 2, C, 2, M]."""
        ctx.save_for_backward(charges, fractional, *lattice)
        n_columns, n_rows = (len(m) for m in lattice)
        waves = charges.new_zeros(2 * n_columns, len(charges) * 2 * n_rows)
        for part, of_columns, of_rows in _chunks(fractional, *lattice):
            waves += of_columns @ (charges[:, None, part] * of_rows).flatten(0, 1).T
        return waves.view(2, n_columns, len(charges), 2, n_rows).movedim(2, 0)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by charges and positions in closed form, differentiable again."""
        charges, fractional, *lattice = ctx.saved_tensors
        stacked = torch.cat([slopes, *_gradient(slopes, *lattice)])
        by_charges, *along = _potentials(stacked, fractional, lattice).chunk(4)
        return by_charges, torch.stack([(one * charges).sum(0) for one in along], 1), None, None


class _Potentials(torch.autograd.Function):
    """Sums of waves at the atoms, the transpose of `_Waves`."""

    @staticmethod
    def forward(ctx: Any, waves: Tensor, fractional: Tensor, *lattice: Tensor) -> Tensor:
        """Amplitudes [B, 2, C, 2, M] at fractional positions [n, 3] -> [B, n]."""
        ctx.save_for_backward(waves, fractional, *lattice)
        n_columns, n_rows = (len(m) for m in lattice)
        flat = waves.permute(0, 3, 4, 1, 2).reshape(-1, 2 * n_columns)
        parts = []
        for _, of_columns, of_rows in _chunks(fractional, *lattice):
            along = (flat @ of_columns).view(len(waves), 2 * n_rows, -1)
            parts.append((along * of_rows).sum(1))
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by waves and positions in closed form, differentiable again."""
        waves, fractional, *lattice = ctx.saved_tensors
        along = _potentials(torch.cat(_gradient(waves, *lattice)), fractional, lattice).chunk(3)
        by_waves: Any = _Waves.apply(slopes, fractional, *lattice)
        return by_waves, torch.stack([(one * slopes).sum(0) for one in along], 1), None, None


def _potentials(waves: Tensor, fractional: Tensor, lattice: Sequence[Tensor]) -> Tensor:
    found: Any = _Potentials.apply(waves, fractional, *lattice)
    return found


def _gradient(waves: Tensor, columns: Tensor, rows: Tensor) -> list[Tensor]:
    """Return three waves [B, 2, C, 2, M] whose sums are the derivatives by fractional positions."""
    # d cos(2 pi m x) / dx = -2 pi m sin(2 pi m x), d sin(2 pi m x) / dx = 2 pi m cos(2 pi m x)
    of_column = 2 * math.pi * torch.stack([waves[:, 1], -waves[:, 0]], 1)
    of_row = 2 * math.pi * torch.stack([waves[:, :, :, 1], -waves[:, :, :, 0]], 3)
    return [*(of_column * m[:, None, None] for m in columns.T), of_row * rows]


def _chunks(
    fractional: Tensor, columns: Tensor, rows: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield runs of atoms with cosines and sines [2 C, n] of m_1 and m_2, and [2 M, n] of m_3."""
    size = max(FEWEST, CHUNK // (2 * len(columns)))
    angles = 2 * math.pi * (fractional - fractional.floor()).T
    for start in range(0, len(fractional), size):
        part = slice(start, start + size)
        of_columns, of_rows = columns @ angles[:2, part], rows.unsqueeze(1) * angles[2, part]
        of_columns, of_rows = (torch.cat([a.cos(), a.sin()]) for a in (of_columns, of_rows))
        yield part, of_columns, of_rows
