"""OpenMM: energy and forces of a model as a force of an `openmm.System`."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray

from attncalc.evaluator import Evaluator
from attncalc.model_file import find_model, load, shipped_models
from attncalc.plugins.novelty_monitor import NoveltyMonitor
from attncalc.system import System

try:
    import openmm
except ImportError:
    raise ImportError('needs OpenMM: pip install "attncalc[openmm]"') from None

# 1 kJ/mol in eV; OpenMM's lengths are in nm
KJ_PER_MOL = units.kJ / units.mol
PARTICLES = "particles must be whole numbers"


class Energy:
    """Energy and forces of a model for OpenMM's `PythonForce`, called with a `State`.

    It is pickled as the name of its model and the arguments, without weights, so that an XML file
    with it is small. Reading such a file runs code, as with any force in Python.

    Args:
        model: name of a shipped model, or path of a model file.
        numbers: [n_atoms], atomic numbers of its particles.
        periodic: include periodic images, with the box of the state.
        charge: total charge, e.
        spin: multiplicity 2S+1; None is the lowest.
        device: device, see `attncalc.load`.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the model does not know
            the particles; see `attncalc.load` and `attncalc.Evaluator.check`.
    """

    def __init__(
        self,
        model: str | Path,
        numbers: Sequence[int],
        periodic: bool,
        charge: int = 0,
        spin: int | None = None,
        device: str = "auto",
    ) -> None:
        is_file = Path(model).is_file() or str(model) not in shipped_models()
        model = str(find_model(model).resolve()) if is_file else str(model)
        numbers = integers(numbers, "numbers must be atomic numbers")  # no symbols, no masses
        self._given = (model, numbers, periodic, charge, spin, device)
        # contexts with this force may run in several threads
        self._lock = threading.Lock()
        self._evaluator, self._monitor = Evaluator(load(model, device=device)), NoveltyMonitor()
        n = len(numbers)
        along = int(np.ceil(n ** (1 / 3)))
        grid = np.stack(np.unravel_index(np.arange(n), (along, along, along)), axis=1)
        # placeholders, 10 Å apart, since no two atoms may be in one place
        atoms = Atoms(numbers, 10.0 * grid, cell=[10.0 * along] * 3, pbc=periodic)
        system = self._evaluator.take(System.from_ase(_with_state(atoms, charge, spin)))
        self._box = np.zeros((3, 3))
        self._system = replace(system, cell=torch.zeros_like(system.cell))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Return the energy, kJ/mol, and the forces [n_atoms, 3], kJ/mol/nm.

        Raises:
            ValueError: a position is not finite, or two atoms lie on top of each other.
        """
        with self._lock:
            if self._system.pbc.any():
                self._set_box(np.array(state.getPeriodicBoxVectors(asNumpy=True)._value))
            positions = torch.from_numpy(10.0 * state.getPositions(asNumpy=True)._value)
            system = self._system.with_positions(positions.to(self._system.device))
            result = self._evaluator(system)
            self._monitor(system, result)
            energy, _, forces, *_ = result.arrays
        return float(energy[0]) / KJ_PER_MOL, forces * (10.0 / KJ_PER_MOL)

    def _set_box(self, box: NDArray[np.float64]) -> None:
        """Set the cell from the box vectors [3, 3], nm, in rows; keep an unchanged one."""
        if not np.array_equal(box, self._box):
            cell = torch.from_numpy(10.0 * box)[None].to(self._system.device)
            self._box, self._system = box, replace(self._system, cell=cell)


def integers(values: Sequence[int], rule: str) -> list[int]:
    """Return integers of Python; OpenMM does not take those of NumPy.

    Raises:
        ValueError: one is not an integer; the message begins with the rule.
    """
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise ValueError(f"{rule}, got {list(values)}") from None


def add_force(
    system: openmm.System,
    model: str | Path,
    numbers: Sequence[int],
    *,
    particles: Sequence[int] | None = None,
    periodic: bool = False,
    charge: int = 0,
    spin: int | None = None,
    device: str = "auto",
) -> openmm.PythonForce:
    """Add the energy of a model to an OpenMM system, in addition to its other forces.

    To replace the classical force field of a molecule by a model, see
    `attncalc.plugins.openmm_mixed.replace_molecules`.

    Args:
        system: system to change.
        model: name of a shipped model, or path of a model file.
        numbers: [n_atoms], atomic numbers of the particles.
        particles: their indices in the system; None for all particles.
        periodic: include images in the periodic box.
        charge: total charge, e.
        spin: multiplicity 2S+1; None is the lowest.
        device: device, see `attncalc.load`.

    Returns:
        The force that was added.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the model does not know
            the particles (see `attncalc.load` and `attncalc.Evaluator.check`); `numbers` holds
            others than integers, or not one number per particle; or a particle is no integer, does
            not exist or is repeated.
    """
    n_particles = system.getNumParticles()
    if particles is not None:  # OpenMM would read and write beyond its arrays
        particles = integers(particles, PARTICLES)
        # OpenMM-ML collects forces in a system without particles, to copy them to another
        end = n_particles or math.inf
        if outside := [k for k in particles if not 0 <= k < end]:
            last = n_particles - 1
            raise ValueError(f"particles must be numbers from 0 to {last}, got {outside[0]}")
        if len(set(particles)) < len(particles):
            raise ValueError("a particle stands twice in particles")
    n = n_particles if particles is None else len(particles)
    if len(numbers) != n:
        raise ValueError(f"numbers must hold one of each of the {n} particles, got {len(numbers)}")
    force = openmm.PythonForce(Energy(model, numbers, periodic, charge, spin, device))
    force.setName("attncalc")
    force.setUsesPeriodicBoundaryConditions(periodic)
    if particles is not None:
        force.setParticles(particles)
    system.addForce(force)
    return force


def _with_state(atoms: Atoms, charge: int, spin: int | None) -> Atoms:
    atoms.info["charge"] = charge
    if spin is not None:
        atoms.info["spin"] = spin
    return atoms
