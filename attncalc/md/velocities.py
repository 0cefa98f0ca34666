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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ase import Atoms, units
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixScaled,
)
from ase.geometry import find_mic
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Floats = NDArray[np.float64]

# smallest over largest moment of inertia, below which a geometry is linear
LINEAR = 1e-6
# temperature beyond which a run has exploded
RUNAWAY = 10.0  # times the requested temperature, plus
RUNAWAY_FLOOR = 3000.0  # K
# constraints that hold each of their atoms by itself
OF_SINGLE_ATOMS = (FixAtoms, FixCartesian, FixScaled, FixedLine, FixedPlane)
# atoms whose constraints overlap, most for which degrees of freedom are found by linear algebra
MOST_TOGETHER = 1000
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
    n_atoms, single, parts, has_com = len(atoms), [], [], False
    for one in atoms.constraints:
        n_removed = _removed(one, atoms)
        if isinstance(one, OF_SINGLE_ATOMS):
            single.append(one)
        elif isinstance(one, FixBondLengths):
            pairs = np.asarray(one.pairs).reshape(-1, 2) % n_atoms
            parts += [_Part(pair, 1, None) for pair in pairs]
        elif type(one) is FixCom:
            has_com = True
        elif n_removed:
            parts.append(_Part(_atoms_of(one, atoms), n_removed, one))
    lost = _lost_by_atoms(single, atoms)
    held = np.linalg.matrix_rank(lost, tol=LINEAR) if single else np.zeros(n_atoms, dtype=int)
    labels = _groups(parts, n_atoms)
    # with a group of atoms that can move as a whole, the total momentum is free
    is_free = np.bincount(labels, weights=held, minlength=labels.max() + 1) == 0
    if has_com and not is_free[labels].any():
        parts.append(_Part(np.arange(n_atoms), 3, FixCom()))
        labels, has_com = np.zeros(n_atoms, dtype=int), False
    of_group: dict[int, list[_Part]] = {}
    for part in parts:
        of_group.setdefault(int(labels[part.atoms[0]]), []).append(part)
    n_lost = held.sum() + 3 * has_com
    for label, some in of_group.items():
        together = np.flatnonzero(labels == label)
        if len(some) == 1 and not held[together].any():
            n_lost += some[0].n_removed
        else:
            n_lost += _rank(some, together, lost, atoms) - held[together].sum()
    return int(3 * n_atoms - n_lost)


class _Part(NamedTuple):
    """Part of a constraint: a bond, or all of a constraint of another kind.

    Attributes:
        atoms: numbers of its atoms.
        n_removed: degrees of freedom that it removes alone.
        constraint: the constraint; None for a bond.
    """

    atoms: NDArray[np.int64]
    n_removed: int
    constraint: Any


def _groups(parts: Sequence[_Part], n_atoms: int) -> NDArray[np.int64]:
    """Return a number for every atom, equal for atoms that parts connect."""
    first = [np.full(len(part.atoms), part.atoms[0]) for part in parts]
    i, j = (
        np.concatenate([np.zeros(0, int), *ends])
        for ends in (first, [part.atoms for part in parts])
    )
    graph = csr_array((np.ones(len(i)), (i, j)), shape=(n_atoms, n_atoms))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1]
    return labels


def _rank(parts: Sequence[_Part], together: NDArray[np.int64], lost: Floats, atoms: Atoms) -> int:
    """Return the degrees of freedom that parts and constraints of single atoms remove in a group.

    Args:
        parts: those of the group.
        together: atoms of the group.
        lost: see `_lost_by_atoms`.
        atoms: the structure.
    """
    n, masses, rows = len(together), atoms.get_masses(), []
    place = np.full(len(atoms), -1)
    place[together] = np.arange(n)
    if n > MOST_TOGETHER:
        kinds = ", ".join(sorted({type(one).__name__ for one in atoms.constraints}))
        raise ValueError(
            f"constraints ({kinds}) hold the same atoms, and {n} atoms are too many to find out "
            "how many degrees of freedom are left: let each atom be in one constraint only"
        )
    for k in np.flatnonzero(np.abs(lost[together]).max(axis=(1, 2), initial=0.0) > 0):
        rows.append(np.zeros((lost.shape[1], n, 3)))
        rows[-1][:, k] = lost[together[k]]
    for part in parts:
        if part.constraint is None:  # (v_i - v_j) . r_ij = 0, for momenta
            i, j = part.atoms
            along = find_mic(atoms.positions[j] - atoms.positions[i], atoms.cell, atoms.pbc)[0]
            rows.append(np.zeros((1, n, 3)))
            rows[-1][0, place[i]] = along / np.linalg.norm(along) / masses[i]
            rows[-1][0, place[j]] = -along / np.linalg.norm(along) / masses[j]
        else:
            columns = np.eye(3 * n).reshape(3 * n, n, 3)
            momenta = np.zeros((len(atoms), 3))
            found = []
            for column in columns:
                momenta[together] = column
                found.append(_lost(part.constraint, atoms, momenta)[together].ravel())
            rows.append(np.stack(found, axis=1).reshape(3 * n, n, 3))
    return int(np.linalg.matrix_rank(np.concatenate(rows).reshape(-1, 3 * n), tol=LINEAR))


def _lost_by_atoms(constraints: Sequence[Any], atoms: Atoms) -> Floats:
    """Return what every atom loses of a unit of momentum in every direction, [n_atoms, k, 3]."""
    unit = np.broadcast_to(np.eye(3)[:, None], (3, len(atoms), 3))
    lost = [np.zeros((len(atoms), 0, 3))]
    for one in constraints:
        lost.append(np.stack([_lost(one, atoms, momenta) for momenta in unit], axis=2))
    return np.concatenate(lost, axis=1)


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
