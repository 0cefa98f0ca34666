"""How far a model is from labels: predictions for a data set, and errors in eV, eV/Å, eV/Å³."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attncalc.data.dataset import Dataset
from attncalc.potential import Potential, evaluate_many
from attncalc.potential import stress as stress_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """A model's values for a data set.

    Attributes:
        energies: [n] eV.
        forces: one [n_atoms, 3] eV/Å array per structure.
        stress: [n, 3, 3] eV/Å³ if the data set has stress, else None.
    """

    energies: Floats
    forces: tuple[Floats, ...]
    stress: Floats | None


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors.

    Attributes:
        energy_mae, energy_rmse: eV per structure.
        energy_per_atom_mae: eV.
        force_mae, force_rmse: eV/Å over all components; None without reference forces.
        stress_mae, stress_rmse: eV/Å³ over all components; None without reference stress.
        n_structures: how many were compared.
    """

    energy_mae: float
    energy_rmse: float
    energy_per_atom_mae: float
    force_mae: float | None
    force_rmse: float | None
    stress_mae: float | None
    stress_rmse: float | None
    n_structures: int


def predict(
    potential: Potential,
    dataset: Dataset,
    *,
    batch_atoms: int = 512,
    progress: Callable[[int], None] | None = None,
) -> Prediction:
    """Energies, forces and, where the data have it, stress of every structure.

    Args:
        potential: the model.
        dataset: the structures; labels are not used.
        batch_atoms: structures are evaluated together up to so many atoms.
        progress: called with the number of structures after each batch.

    Raises:
        ValueError: the data set is empty, has an element, charge or spin that the model does not
            know, or has stress for a structure without volume.
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.source}: the data set is empty")
    energies, forces, stresses = [], [], []
    for system, result in evaluate_many(potential, dataset.structures, batch_atoms=batch_atoms):
        energies.append(result.energy.cpu().numpy())
        ends = np.cumsum(torch.bincount(system.system_idx).cpu().numpy())[:-1]
        forces += np.split(result.forces.cpu().numpy(), ends)
        if dataset.stress is not None:
            stresses.append(stress_of(result, system).cpu().numpy())
        if progress is not None:
            progress(system.n_systems)
    return Prediction(
        energies=np.concatenate(energies),
        forces=tuple(forces),
        stress=np.concatenate(stresses) if stresses else None,
    )


def errors(prediction: Prediction, dataset: Dataset) -> Errors:
    """Compare a prediction with the labels of the same data set."""
    n_atoms = np.array([len(structure) for structure in dataset.structures])
    energy = prediction.energies - dataset.energies
    force = stress = None
    if dataset.forces is not None:
        force = np.concatenate(prediction.forces) - np.concatenate(dataset.forces)
    if dataset.stress is not None and prediction.stress is not None:
        stress = prediction.stress - dataset.stress
    return Errors(
        energy_mae=float(np.abs(energy).mean()),
        energy_rmse=float(np.sqrt((energy**2).mean())),
        energy_per_atom_mae=float(np.abs(energy / n_atoms).mean()),
        force_mae=None if force is None else float(np.abs(force).mean()),
        force_rmse=None if force is None else float(np.sqrt((force**2).mean())),
        stress_mae=None if stress is None else float(np.abs(stress).mean()),
        stress_rmse=None if stress is None else float(np.sqrt((stress**2).mean())),
        n_structures=len(dataset),
    )


def force_mae_by_element(prediction: Prediction, dataset: Dataset) -> dict[int, float]:
    """Atomic number -> mean absolute error of force components [eV/Å]; empty without forces."""
    if dataset.forces is None:
        return {}
    numbers = np.concatenate([structure.numbers for structure in dataset.structures])
    error = np.abs(np.concatenate(prediction.forces) - np.concatenate(dataset.forces))
    return {int(z): float(error[numbers == z].mean()) for z in np.unique(numbers)}
