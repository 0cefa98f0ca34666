"""A few steps of relaxation by the oracle, for many structures at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from attncalc.sampling.geometry import Floats
from attncalc.sampling.oracles import Labels, Oracle

# eV/Å, largest force of a relaxed structure
CONVERGED = 0.05
# Å, norm over all coordinates of a structure in one step
LONGEST_STEP = 0.3
# first and largest time step, in units in which all masses are 1 eV/Å per Å
_FIRST, _LARGEST = 0.1, 0.35
# FIRE: Bitzek, Koskinen, Gähler, Moseler, Gumbsch, Phys. Rev. Lett. 97, 170201, 2006
_MIXING, _LESS_MIXING, _FASTER, _SLOWER, _PATIENCE = 0.1, 0.99, 1.1, 0.5, 5

Step = tuple[Atoms, Labels]


class _Mover:
    """Relaxation of one structure by FIRE."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms, self.path = atoms, list[Step]()
        self.is_done, self.problem = False, ""
        self._velocities = np.zeros((len(atoms), 3))
        self._timestep, self._mixing, self._n_downhill = _FIRST, _MIXING, 0

    def take(self, labels: Labels | str) -> None:
        """Store the labels of the current structure, and make a step."""
        if isinstance(labels, str):
            self.problem, self.is_done = labels, True
            return
        self.path.append((self.atoms, labels))
        norms = np.linalg.norm(labels.forces, axis=1)
        if not np.isfinite(norms).all() or norms.max() < CONVERGED:
            self.is_done = True
            return
        self.atoms = rounded(self.atoms, self.atoms.positions + self._step(labels.forces))

    def _step(self, forces: Floats) -> Floats:
        v = self._velocities
        if (v * forces).sum() > 0:
            along = forces * (np.linalg.norm(v) / np.linalg.norm(forces))
            v = (1 - self._mixing) * v + self._mixing * along
            self._n_downhill += 1
            if self._n_downhill > _PATIENCE:
                self._timestep = min(_FASTER * self._timestep, _LARGEST)
                self._mixing *= _LESS_MIXING
        elif self._n_downhill or v.any():
            v = np.zeros_like(v)
            self._timestep *= _SLOWER
            self._mixing, self._n_downhill = _MIXING, 0
        self._velocities = v + self._timestep * forces
        step = self._timestep * self._velocities
        return step * min(1.0, LONGEST_STEP / float(np.linalg.norm(step)))


def rounded(atoms: Atoms, positions: Floats) -> Atoms:
    """Return a structure at other positions, rounded to the single precision of the file.

    Rounded before it is labelled, a structure in the file matches its labels exactly.
    """
    new = atoms.copy()
    new.positions = positions.astype(np.float32)
    return new


def relaxations(
    oracle: Oracle, structures: Sequence[Atoms], n_steps: int
) -> list[tuple[list[Step], str]]:
    """Relax structures by FIRE, all in one batch per step.

    Args:
        oracle: gives the forces.
        structures: initial structures.
        n_steps: largest number of steps.

    Returns:
        For each one, the structures of its path with their labels, from the first to the last, and
        the reason why the oracle refused another step; "" if it did not.
    """
    movers = [_Mover(rounded(atoms, atoms.positions)) for atoms in structures]
    for _ in range(n_steps + 1):
        moving = [mover for mover in movers if not mover.is_done]
        if not moving:
            break
        labels = oracle.label([mover.atoms for mover in moving])
        for mover, found in zip(moving, labels, strict=True):
            mover.take(found)
    return [(mover.path, mover.problem) for mover in movers]
