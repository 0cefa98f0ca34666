"""A periodic structure cut into boxes and evaluated part by part, without any messages."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from attncalc.plugins.halo import Box, Domain, Images, depth_of
from attncalc.potential import Potential, Result, evaluate


def images_of(atoms: Atoms, own: NDArray, reach: float) -> Images:
    """Atoms `own`, and all images of any atom within `reach` of one of them."""
    planes = np.linalg.norm(atoms.cell.reciprocal(), axis=1) if atoms.cell.rank == 3 else 0
    far = np.where(atoms.pbc, np.ceil(reach * planes) + 1, 0).astype(int)
    positions, ids = [atoms.positions[own]], [own]
    own_places = cKDTree(atoms.positions[own])
    for shift in itertools.product(*(range(-n, n + 1) for n in far)):
        images = atoms.positions + shift @ atoms.cell.array
        near = np.flatnonzero(own_places.query(images, distance_upper_bound=reach)[0] < reach)
        if not any(shift):
            near = np.setdiff1d(near, own)
        positions.append(images[near])
        ids.append(near)
    rows = np.concatenate(ids)
    return Images(np.concatenate(positions), rows, atoms.numbers[rows], len(own))


def box_of(atoms: Atoms) -> Box:
    return Box(atoms.cell.array.copy(), atoms.pbc.copy())


def parts_of(
    potential: Potential, atoms: Atoms, counts: tuple[int, int, int], *, skin: float = 0.5
) -> list[tuple[Images, Domain | None]]:
    """Parts of a structure whose box is cut so often in each direction."""
    places = atoms.get_scaled_positions()
    cells = np.minimum((places * counts).astype(int), np.array(counts) - 1)
    which = np.ravel_multi_index(tuple(cells.T), counts)
    reach = depth_of(potential) * potential.cutoff + skin
    found = []
    for part in range(int(np.prod(counts))):
        images = images_of(atoms, np.flatnonzero(which == part), reach)
        found.append((images, Domain.of(potential, images, box_of(atoms), skin=skin)))
    return found


def added_up(
    potential: Potential, atoms: Atoms, parts: list[tuple[Images, Domain | None]]
) -> Result:
    """Results of all parts, as those of the whole: forces of ghosts go to their owners."""
    energies, forces = torch.zeros(len(atoms)).double(), torch.zeros(len(atoms), 3).double()
    strain_gradient = torch.zeros(1, 3, 3).double()
    for images, domain in parts:
        if domain is None:
            continue
        graphs = domain.graphs(images.positions, box_of(atoms))
        assert graphs is not None
        result = evaluate(potential, graphs)
        ids = torch.from_numpy(images.ids[domain.rows])
        assert len(ids.unique()) == len(ids)
        energies.index_add_(0, ids, result.energies)
        forces.index_add_(0, ids, result.forces)
        strain_gradient += result.strain_gradient
    return Result(energies.sum(0, keepdim=True), energies, forces, strain_gradient)
