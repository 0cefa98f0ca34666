"""Heat flux of moving atoms, for thermal conductivities from the Green-Kubo formula."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.domain import (
    Box,
    Domain,
    Images,
    Integers,
    StructureTotals,
    depth_of,
    exchanges_outputs,
    why_not_in_parts,
)
from attncalc.graph import Graphs, species_of
from attncalc.neighbors.search import complete_cell
from attncalc.potential import Potential, edge_gradients
from attncalc.system import System

SKIN = 0.5
"""Å, skin of the neighbour list of periodic images."""


class Flux(NamedTuple):
    """Heat flux of a structure times its volume, as in LAMMPS' `compute heat/flux`.

    In eV Å per unit of time of ASE (10.18 fs); divided by the volume it is a flux density.

    Attributes:
        potential: [3], energy transferred between atoms. It alone conducts heat in a solid.
        convective: [3], energy carried by moving atoms, including kinetic energy. The energy of an
            atom is counted from the model's reference energy of its element.
    """

    potential: NDArray[np.float64]
    convective: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """[3], sum of both."""
        return self.potential + self.convective


class HeatFlux:
    """Heat flux of a potential, with a list of periodic images that is reused for many steps.

    Let E_i be the energy of atom i. With sums over atoms i of the cell, and over all atoms j
    including images on which their energies depend,

        J = sum_i (E_i + m_i v_i² / 2) v_i + sum_ij (r_i - r_j) (dE_i / dr_j . v_j)

    (Langer, Frank & Knoop, J. Chem. Phys. 159, 174105, 2023). For networks of several layers j may
    be several cutoffs away, so this is not a sum over pairs of neighbours. It takes four gradients
    of the cell with its images: of sum_i E_i, and of sum_i x_i E_i for each direction x.

    Args:
        potential: a single potential or a committee, on a CPU, with or without engines.

    Raises:
        ValueError: energies depend on more than the neighbourhood of each atom, or the potential is
            on a GPU.
    """

    def __init__(self, potential: Potential) -> None:
        if potential.device.type != "cpu":
            raise ValueError('the heat flux is computed on a CPU: load the model with device="cpu"')
        if potential.long_range is not None:
            reason: str | None = "has pair terms of longer range than its network"
        else:
            reason = why_not_in_parts(potential)
            if reason is None and exchanges_outputs(potential):
                reason = "has charges that add up over the whole structure"
        if reason is not None:
            raise ValueError(f"this model {reason}: it has no heat flux of atoms' neighbourhoods")
        self.potential = potential
        self._unfolded: _Unfolded | None = None

    def __call__(
        self, system: System, velocities: NDArray[np.float64], masses: NDArray[np.float64]
    ) -> Flux:
        """Return the flux of one structure.

        Args:
            system: the structure.
            velocities: [n_atoms, 3], in ASE's units.
            masses: [n_atoms] amu.

        Raises:
            ValueError: there are several structures, or not a velocity and a mass for every atom;
                an element is unknown, a position is not finite, or two atoms lie on top of each
                other.
        """
        if system.n_systems != 1:
            raise ValueError(f"heat flux is that of one structure, got {system.n_systems}")
        velocities, masses = (np.asarray(one, dtype=np.float64) for one in (velocities, masses))
        n_atoms = system.n_atoms
        if velocities.shape != (n_atoms, 3) or masses.shape != (n_atoms,):
            raise ValueError(
                f"{n_atoms} atoms need velocities [{n_atoms}, 3] and masses [{n_atoms}], got "
                f"{list(velocities.shape)} and {list(masses.shape)}"
            )
        last = self._unfolded
        graphs = None if last is None or not last.is_of(system) else last.graphs(system)
        if graphs is None:
            self._unfolded = last = _Unfolded(self.potential, system)
            graphs = last.graphs(system)
        assert last is not None
        assert graphs is not None
        rows, edges = torch.from_numpy(last.atoms), graphs.short
        v = torch.as_tensor(velocities, dtype=torch.float64)[rows]
        # relative to the mean position: differences of large numbers would lose digits
        r = torch.from_numpy(last.positions(system))[last.domain.rows]
        r = r - r[: last.domain.n_own].mean(0)
        v_i, v_j = v[edges.receivers], v[edges.senders]
        r_i, r_j = r[edges.receivers], r[edges.senders]
        energies, of_sum = self._gradient(graphs, None)
        flux = torch.stack([(self._gradient(graphs, x)[1] * (v_j - v_i)).sum() for x in r.T])
        flux -= r_j.T @ (of_sum * v_j).sum(1) - r_i.T @ (of_sum * v_i).sum(1)
        n = last.domain.n_own
        order = last.atoms[:n]
        kinetic = masses[order] / 2 * (velocities[order] ** 2).sum(1)
        carried = (energies[:n].numpy() + kinetic) @ velocities[order]
        return Flux(flux.numpy(), carried)

    def _gradient(self, graphs: Graphs, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return energies relative to reference energies, and the gradient by edge vectors.

        For a committee both are means over its members.
        """
        members = self.potential.members
        each = [edge_gradients(one, graphs, weights=weights).tensors for one in members]
        species = graphs.short.species
        pairs = zip(members, each, strict=True)
        energies = torch.stack([g.energies - one.reference_energies[species] for one, g in pairs])
        return energies.mean(0), torch.stack([g.short for g in each]).mean(0)


class _Unfolded:
    """Cell with the images that energies of its atoms depend on; every image is a separate node.

    Attributes:
        atoms: [n_nodes], atom of the cell for each node; own atoms first.
        domain: nodes and their neighbour list.
    """

    def __init__(self, potential: Potential, system: System) -> None:
        reach = depth_of(potential) * (potential.cutoff + SKIN)
        self._like, self._cutoff = system, potential.cutoff
        self._start = system.positions.numpy().copy(), system.cell[0].numpy().copy()
        self._rows, self._shifts = _images(system, reach)
        numbers = system.atomic_numbers.numpy()
        species = species_of(system.atomic_numbers, potential.species).numpy()
        composition = np.bincount(species, minlength=len(potential.species))
        ids = np.arange(len(self._rows))
        images = Images(self.positions(system), ids, numbers[self._rows], len(numbers))
        whole = StructureTotals(tuple(composition.tolist()), int(system.charge), int(system.spin))
        domain = Domain.of(potential, images, _OPEN, whole, skin=SKIN)
        assert domain is not None
        self.domain, self.atoms = domain, self._rows[domain.rows]

    def is_of(self, system: System) -> bool:
        """Return True if a system has the same atoms, periodic directions, charge and spin."""
        return all(
            torch.equal(getattr(self._like, name), getattr(system, name))
            for name in ("atomic_numbers", "pbc", "charge", "spin")
        )

    def positions(self, system: System) -> NDArray[np.float64]:
        """[n, 3] Å, of all images."""
        moved = self._shifts @ system.cell[0].numpy()
        found: NDArray[np.float64] = system.positions.numpy()[self._rows] + moved
        return found

    def graphs(self, system: System) -> Graphs | None:
        """Return the graphs; None if the list may miss an edge."""
        if self._may_miss_images(system):
            return None
        return self.domain.graphs(self.positions(system), _OPEN)

    def _may_miss_images(self, system: System) -> bool:
        """Return True if images may have come within the cutoff that are no nodes.

        These were farther than cutoff + SKIN. With x' = x + x D + u for the atoms, where D is what
        the deformation of the cell adds, distances d become at least d (1 - |D|) - 2 max |u|.
        """
        start, before = self._start
        periodic = system.pbc[0].numpy()
        before, cell = before[periodic], system.cell[0].numpy()[periodic]
        added = np.linalg.pinv(before) @ (cell - before)
        moved = np.linalg.norm(system.positions.numpy() - start - start @ added, axis=1).max()
        least = (self._cutoff + SKIN) * (1 - np.linalg.norm(added, 2)) - 2 * moved
        return bool(periodic.any() and least < self._cutoff)


_OPEN = Box(np.zeros((3, 3)), np.zeros(3, bool))


def _images(system: System, reach: float) -> tuple[Integers, Integers]:
    """Return atoms [n] and cell shifts [n, 3] of all images near the cell, those in it first."""
    pbc = system.pbc[0].numpy()
    inverse = np.linalg.inv(complete_cell(system)[0].numpy())
    fractional = system.positions.numpy() @ inverse
    into = np.where(pbc, -np.floor(fractional), 0).astype(np.int64)
    margin = np.where(pbc, reach * np.linalg.norm(inverse, axis=0), 0)
    ranges = [range(-n, n + 1) for n in np.ceil(margin).astype(int)]
    rows, shifts = [np.arange(len(into))], [into]
    for shift in itertools.product(*ranges):
        if any(shift):
            placed = fractional + into + shift
            near = ((placed >= -margin) & (placed <= 1 + margin)) | ~pbc
            found = np.flatnonzero(near.all(1))
            rows.append(found)
            shifts.append(into[found] + shift)
    return np.concatenate(rows), np.concatenate(shifts)
