"""Second derivatives of the energy with respect to positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from attncalc.potential import Potential
from attncalc.structures import evaluate_many, fresh_graphs
from attncalc.system import System


def hessian(potential: Potential, atoms: Atoms) -> NDArray[np.float64]:
    """Hessian [3 n_atoms, 3 n_atoms] eV/Å² of a structure, by automatic differentiation.

    Element (3 i + a, 3 j + b) is d²E / dx_ia dx_jb. Each row is one derivative of the gradient by
    autograd, through network and pair terms, in the precision of the network's dtype.

    Args:
        potential: a single potential or a committee; the plain network is used, not its engine.
        atoms: the structure; constraints are not applied.
    """
    potential = potential.lowered_from
    with torch.inference_mode(False), torch.enable_grad():
        system = System.from_ase(atoms).to(potential.device)
        positions = system.positions.clone().requires_grad_(True)
        graphs = fresh_graphs(potential, system.with_positions(positions))
        energy = potential.energies(graphs).sum()
        n = positions.numel()
        found = torch.zeros(n, n, dtype=torch.float64)
        if energy.requires_grad:  # False for a single atom
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
            for row, component in zip(found, gradient.flatten(), strict=True):
                (of_row,) = torch.autograd.grad(component, positions, retain_graph=True)
                row.copy_(of_row.flatten())
    return ((found + found.T) / 2).numpy()


def hessian_by_differences(
    potential: Potential, atoms: Atoms, displacement: float
) -> NDArray[np.float64]:
    """Hessian like `hessian`, by central differences of forces of displaced copies, in batches.

    It is faster for large structures because it uses engines. Its error is of second order in the
    displacement; rounding of a float32 network adds about 1e-6 eV/Å over the displacement.

    Args:
        potential: the model, with or without an engine.
        atoms: the structure; constraints are not applied.
        displacement: Å.
    """

    def displaced() -> Iterator[Atoms]:
        for k in range(3 * len(atoms)):
            for sign in (1, -1):
                one = atoms.copy()
                one.positions.reshape(-1)[k] += sign * displacement
                yield one

    found = evaluate_many(potential, list(displaced()))
    forces = np.concatenate([result.forces.cpu().numpy() for _, result in found])
    plus, minus = forces.reshape(3 * len(atoms), 2, 3 * len(atoms)).swapaxes(0, 1)
    slopes = (minus - plus) / (2 * displacement)
    return (slopes + slopes.T) / 2
