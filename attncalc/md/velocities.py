"""Velocities and kinetic temperature over the degrees of freedom that a run really has.

What a run conserves is no heat: the momentum of the whole in "nve" and "npt" and, for a molecule
in "nve", its rotation. Langevin's random forces conserve neither. So there are

    3N       in "nvt", and for a single atom
    3N - 3   in "npt", and in "nve" with any periodic direction
    3N - 6   in "nve" of a molecule; 3N - 5 if it is linear

degrees of freedom. Constrained atoms (`ase.constraints`) hold the others: then what ASE counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# smallest over largest moment of inertia, below which a molecule is linear
LINEAR = 1e-6
# an integrator that has lost a molecule is far beyond any temperature one would ask for
RUNAWAY = 10.0  # times the temperature asked for, plus
RUNAWAY_FLOOR = 3000.0  # K
# of a run: years of computing; steps are counted in 64 bits, and times in float64
MOST_STEPS = 10**15

Temperature = TypeVar("Temperature", float, Tensor)


def runaway(temperature: Temperature) -> Temperature:
    """K, far beyond what one asked for: whoever is hotter has lost its molecules."""
    return RUNAWAY * temperature + RUNAWAY_FLOOR


@dataclass(frozen=True)
class Thermometer:
    """Measures and sets the kinetic temperature of one run.

    Attributes:
        n_dof: degrees of freedom.
        drifts: the momentum of the whole is conserved, and not counted.
        turns: so is its angular momentum.
    """

    n_dof: int
    drifts: bool
    turns: bool

    @classmethod
    def for_run(cls, atoms: Atoms, ensemble: str) -> Thermometer:
        """Make the one that a run of these atoms in "nve", "nvt" or "npt" needs.

        Raises:
            ValueError: constraints hold all atoms.
        """
        n_dof = atoms.get_number_of_degrees_of_freedom()
        if n_dof < 1:
            raise ValueError("no atom can move: constraints fix all atoms of the structure")
        if ensemble == "nvt" or len(atoms) == 1 or atoms.constraints:
            return cls(n_dof, drifts=False, turns=False)
        if ensemble == "npt" or atoms.pbc.any():
            return cls(n_dof - 3, drifts=True, turns=False)
        moments = np.linalg.eigvalsh(_inertia(_arms(atoms), atoms.get_masses()))
        axes = int((moments > LINEAR * moments.max()).sum())
        return cls(n_dof - 3 - axes, drifts=True, turns=True)

    def temperature(self, atoms: Atoms) -> float:
        """K, of the motion that is counted."""
        momenta = self._counted(atoms)
        return float((momenta**2 / atoms.get_masses()[:, None]).sum() / (self.n_dof * units.kB))

    def draw(self, atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
        """Give atoms Maxwell-Boltzmann velocities of exactly this temperature, in place.

        Motion that is not counted is zero.

        Args:
            atoms: those of the run; momenta they have are replaced.
            temperature: K.
            rng: source of the random numbers.
        """
        thermal = np.sqrt(atoms.get_masses() * units.kB * temperature)
        atoms.set_momenta(thermal[:, None] * rng.standard_normal((len(atoms), 3)))
        counted = self._counted(atoms)
        atoms.set_momenta(counted)
        atoms.set_momenta(counted * np.sqrt(temperature / self.temperature(atoms)))

    def _counted(self, atoms: Atoms) -> Floats:
        """[n_atoms, 3]: momenta less those of the whole, which moves and turns as a rigid body."""
        momenta, masses = atoms.get_momenta(), atoms.get_masses()
        velocity = momenta.sum(axis=0) / masses.sum() if self.drifts else np.zeros(3)
        rigid = np.broadcast_to(velocity, momenta.shape)
        if self.turns:
            arms = _arms(atoms)
            # a linear molecule has no inertia about its axis, and does not turn about it
            inverse = np.linalg.pinv(_inertia(arms, masses), rcond=LINEAR, hermitian=True)
            rigid = rigid + np.cross(inverse @ np.cross(arms, momenta).sum(axis=0), arms)
        return momenta - masses[:, None] * rigid


def _arms(atoms: Atoms) -> Floats:
    return atoms.positions - atoms.get_center_of_mass()


def _inertia(arms: Floats, masses: Floats) -> Floats:
    """[3, 3]: sum_i m_i (r_i² 1 - r_i (x) r_i)."""
    outer = np.einsum("n,na,nb->ab", masses, arms, arms)
    return np.trace(outer) * np.eye(3) - outer
