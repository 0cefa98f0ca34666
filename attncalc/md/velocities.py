"""Velocities and kinetic temperature over the degrees of freedom that a run really has.

Conserved motion does not count as heat: that of the centre of mass in "nve" and "npt" and, for a
molecule in "nve", its rotation. Langevin's random forces conserve neither. So there are

    3N       in "nvt", and for a single atom
    3N - 3   in "npt", and in "nve" with any periodic direction
    3N - 6   in "nve" of a molecule; 3N - 5 of two atoms

degrees of freedom. A linear molecule of more atoms bends, and then it can rotate about all axes.
With constrained atoms (`ase.constraints`) all motion that they allow counts, as in ASE; a molecule
held at one or two atoms has a conserved rotation about these, which counts, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from ase import Atoms, units
from ase.constraints import (
    FixAtoms,
    FixCartesian,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixScaled,
)
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# smallest over largest moment of inertia, below which a geometry is linear
LINEAR = 1e-6
# temperature beyond which a run has exploded
RUNAWAY = 10.0  # times the requested temperature, plus
RUNAWAY_FLOOR = 3000.0  # K
# constraints that hold each of their atoms by itself
OF_SINGLE_ATOMS = (FixAtoms, FixCartesian, FixScaled, FixedLine, FixedPlane)
# atoms of overlapping constraints whose degrees of freedom are found by linear algebra
MOST_TOGETHER = 300
# of a run: years of computing; steps are counted in 64 bits, and times in float64
MOST_STEPS = 10**15

Temperature = TypeVar("Temperature", float, Tensor)


def runaway(temperature: Temperature) -> Temperature:
    """Return the temperature [K] beyond which a run at the given one has exploded."""
    return RUNAWAY * temperature + RUNAWAY_FLOOR


def n_conserved(ensemble: str, n_atoms: int, is_periodic: bool, *, is_held: bool) -> int:
    """Return the degrees of freedom that no force changes: 0, 3 (drift), 5 or 6 (both).

    Args:
        ensemble: "nve", "nvt" or "npt".
        n_atoms: number of atoms.
        is_periodic: whether there is a periodic direction.
        is_held: whether a constraint holds an atom.
    """
    if ensemble == "nvt" or n_atoms == 1 or is_held:
        return 0
    if ensemble == "npt" or is_periodic:
        return 3
    return 5 if n_atoms == 2 else 6  # two atoms do not rotate about their line


@dataclass(frozen=True)
class Thermometer:
    """Measures and sets the kinetic temperature of one run.

    Attributes:
        n_dof: degrees of freedom.
        excludes_drift: True: the total momentum is conserved, and the motion of the centre of mass
            is not counted.
        excludes_rotation: True: so is its angular momentum, and rotation is not counted.
    """

    n_dof: int
    excludes_drift: bool
    excludes_rotation: bool

    @classmethod
    def for_run(cls, atoms: Atoms, ensemble: str) -> Thermometer:
        """Make the thermometer for a run of these atoms in "nve", "nvt" or "npt".

        Raises:
            ValueError: constraints hold all atoms, or it is unknown what motion they leave.
        """
        n_dof = _allowed(atoms)
        if n_dof < 1:
            raise ValueError("no atom can move: constraints fix all atoms of the structure")
        is_held = bool(holding(atoms))
        lost = n_conserved(ensemble, len(atoms), bool(atoms.pbc.any()), is_held=is_held)
        return cls(n_dof - lost, excludes_drift=lost > 0, excludes_rotation=lost > 3)

    def temperature(self, atoms: Atoms) -> float:
        """Return the temperature [K] of the motion that is counted."""
        momenta = self._counted(atoms)
        return float((momenta**2 / atoms.get_masses()[:, None]).sum() / (self.n_dof * units.kB))

    def draw(self, atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
        """Give atoms Maxwell-Boltzmann velocities of exactly this temperature, in place.

        Motion that is not counted is zero.

        Args:
            atoms: those of the run; their momenta are replaced.
            temperature: K.
            rng: source of the random numbers.
        """
        thermal = np.sqrt(atoms.get_masses() * units.kB * temperature)
        atoms.set_momenta(thermal[:, None] * rng.standard_normal((len(atoms), 3)))
        counted = self._counted(atoms)
        atoms.set_momenta(counted)
        atoms.set_momenta(counted * np.sqrt(temperature / self.temperature(atoms)))

    def _counted(self, atoms: Atoms) -> Floats:
        """Return momenta [n_atoms, 3] without those of rigid drift and rotation, if conserved."""
        momenta, masses = atoms.get_momenta(), atoms.get_masses()
        velocity = momenta.sum(axis=0) / masses.sum() if self.excludes_drift else np.zeros(3)
        rigid = np.broadcast_to(velocity, momenta.shape)
        if self.excludes_rotation:
            arms = _arms(atoms)
            # atoms on a line have no inertia about it, and do not rotate about it
            inverse = np.linalg.pinv(_inertia(arms, masses), rcond=LINEAR, hermitian=True)
            rigid = rigid + np.cross(inverse @ np.cross(arms, momenta).sum(axis=0), arms)
        return momenta - masses[:, None] * rigid


def holding(atoms: Atoms) -> list[Any]:
    """Return the constraints of a structure, without `FixAtoms` of no atoms."""
    return [
        one
        for one in atoms.constraints
        if not isinstance(one, FixAtoms) or len(one.get_indices()) > 0
    ]


def _allowed(atoms: Atoms) -> int:
    """Return the degrees of freedom that constraints leave; atoms may be held more than once."""
    n_atoms = len(atoms)
    single = [one for one in atoms.constraints if isinstance(one, OF_SINGLE_ATOMS)]
    n_removed = [_removed(one, atoms) for one in atoms.constraints if one not in single]
    others = [one for one in atoms.constraints if one not in single]
    others = [one for one, n in zip(others, n_removed, strict=True) if n]
    # momentum that each atom loses of a unit of momentum in every direction: [n_atoms, k, 3]
    unit = np.broadcast_to(np.eye(3)[:, None], (3, n_atoms, 3))
    lost = np.zeros((n_atoms, 0, 3))
    for one in single:
        of_directions = np.stack([_lost(one, atoms, momenta) for momenta in unit], axis=2)
        lost = np.concatenate([lost, of_directions], axis=1)
    n_lost = np.linalg.matrix_rank(lost, tol=LINEAR) if single else np.zeros(n_atoms, dtype=int)
    held = np.concatenate([np.flatnonzero(n_lost), *(_atoms_of(one, atoms) for one in others)])
    if len(np.unique(held)) == len(held):
        return int(3 * n_atoms - n_lost.sum() - sum(n_removed))
    together = np.unique([k for one in others for k in _atoms_of(one, atoms)]).astype(int)
    if len(together) > MOST_TOGETHER:
        kinds = ", ".join(sorted({type(one).__name__ for one in atoms.constraints}))
        raise ValueError(
            f"constraints ({kinds}) hold the same atoms, and {len(together)} atoms are too many to "
            "find out how many degrees of freedom are left: let each atom be in one constraint only"
        )
    n_lost[together] = 0
    rows = [_rows_of(one, atoms, together) for one in others]
    for place, k in enumerate(together):
        rows.append(np.zeros((lost.shape[1], 3 * len(together))))
        rows[-1][:, 3 * place : 3 * place + 3] = lost[k]
    of_together = np.linalg.matrix_rank(np.concatenate(rows), tol=LINEAR) if others else 0
    return int(3 * n_atoms - n_lost.sum() - of_together)


def _rows_of(constraint: Any, atoms: Atoms, together: NDArray[np.int64]) -> Floats:
    """Return the derivative [3m, 3m] of the momenta lost by m atoms by the momenta of these."""
    columns = []
    for k in together:
        for direction in range(3):
            momenta = np.zeros((len(atoms), 3))
            momenta[k, direction] = 1.0
            columns.append(_lost(constraint, atoms, momenta)[together].ravel())
    return np.stack(columns, axis=1)


def _lost(constraint: Any, atoms: Atoms, momenta: Floats) -> Floats:
    """Return the part of momenta [n_atoms, 3] that a constraint removes."""
    left = momenta.copy()
    constraint.adjust_momenta(atoms, left)
    return momenta - left


def _atoms_of(constraint: Any, atoms: Atoms) -> NDArray[np.int64]:
    """Return the atoms that a constraint moves together; all, if it does not say."""
    get_indices = getattr(constraint, "get_indices", None)
    return np.arange(len(atoms)) if get_indices is None else np.unique(get_indices()) % len(atoms)


def _removed(constraint: Any, atoms: Atoms) -> int:
    if isinstance(constraint, FixInternals | FixedMode):
        raise ValueError(
            f"the constraint {type(constraint).__name__} of ASE does not regard the masses, so "
            "temperatures would be wrong: use FixBondLengths, or remove it"
        )
    try:
        removed: int = constraint.get_removed_dof(atoms)
    except NotImplementedError:
        raise ValueError(
            f"the constraint {type(constraint).__name__} does not say how many degrees of freedom "
            "it removes, so temperatures are not known: remove it"
        ) from None
    return removed


def stop_fixed(atoms: Atoms) -> None:
    """Set the momenta of atoms that `FixAtoms` holds to zero, in place.

    ASE keeps those that the atoms had before they were fixed.
    """
    momenta = atoms.get_momenta()
    for one in atoms.constraints:
        if isinstance(one, FixAtoms) and len(one.get_indices()):
            momenta[one.get_indices()] = 0.0
    if (momenta != atoms.get_momenta()).any():
        atoms.set_momenta(momenta, apply_constraint=False)


def _arms(atoms: Atoms) -> Floats:
    return atoms.positions - atoms.get_center_of_mass()


def _inertia(arms: Floats, masses: Floats) -> Floats:
    """Return the tensor of inertia [3, 3]: sum_i m_i (r_i² 1 - r_i (x) r_i)."""
    outer = np.einsum("n,na,nb->ab", masses, arms, arms)
    return np.trace(outer) * np.eye(3) - outer
