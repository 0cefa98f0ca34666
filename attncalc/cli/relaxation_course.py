"""Course of a relaxation, for reports and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ase import Atoms

from attncalc.bonds import Bonds, BrokenBond, broken_text
from attncalc.novelty import OUTSIDE, outside_atom
from attncalc.system import System
from attncalc.text import counted


@dataclass
class Course:
    """Course of one relaxation.

    Attributes:
        steps: energy [eV] and largest force [eV/Å] of each step, starting with the input.
        frame: the structure after the last step, with results.
        spread: largest standard deviation of the force on an atom of `frame`, eV/Å; None without a
            committee.
        stress: largest stress component of `frame`, GPa; None if its cell is not relaxed.
        novelty: largest novelty of an atom of `frame`; None if the model has no record of its
            training data.
        warned: True if a warning about an atom outside the training data was given.
        stopped: True if the relaxation was stopped for that reason.
        broken: bonds that broke.
    """

    steps: list[tuple[float, float]] = field(default_factory=list)
    frame: Atoms | None = None
    spread: float | None = None
    stress: float | None = None
    novelty: float | None = None
    warned: bool = False
    stopped: bool = False
    broken: list[BrokenBond] = field(default_factory=list)

    def compare(self, before: Atoms, after: Atoms) -> None:
        """Find the bonds that broke between the input and the last step."""
        self.broken = Bonds.of(System.from_ase(before)).broken(System.from_ase(after))

    @property
    def outside(self) -> bool:
        """Return True if the relaxation ends outside the training data of the model."""
        return self.novelty is not None and self.novelty > OUTSIDE

    def has_converged(self, fmax: float) -> bool:
        """Return True if no force exceeds `fmax` [eV/Å] after the last step."""
        return self.steps[-1][1] <= fmax

    def is_unfinished(self, fmax: float) -> bool:
        """Return True if more steps would continue the relaxation."""
        return not self.has_converged(fmax) and not self.stopped

    def check(self, number: int, novelty: Any, atomic_numbers: Any, *, stop: bool) -> str:
        """Store the novelty; return a warning the first time that an atom is outside, else "".

        Args:
            number: number of the structure.
            novelty: [n_atoms], novelty of the atoms after the last step, or None.
            atomic_numbers: [n_atoms].
            stop: stop the relaxation if an atom is outside.
        """
        self.novelty = None if novelty is None else float(novelty.max())
        found = outside_atom(novelty, atomic_numbers)
        if found is None:
            return ""
        self.stopped = stop
        first, self.warned = not self.warned, True
        return f"structure {number}, step {len(self.steps) - 1}: {found}" if first else ""

    def __str__(self) -> str:
        return f"{counted(len(self.steps) - 1, 'step')}, largest force {self.steps[-1][1]:.4f} eV/Å"

    def report(self, fmax: float) -> str:
        """Return a sentence about the end of the relaxation."""
        (start, _), (energy, _) = self.steps[0], self.steps[-1]
        end = "converged" if self.has_converged(fmax) else "NOT converged"
        if self.outside:
            end = f"OUTSIDE the training data (novelty {self.novelty:.3g}), {end}"
        stress = "" if self.stress is None else f", largest stress {self.stress:.4f} GPa"
        spread = "" if self.spread is None else f", committee's spread {self.spread:.4f} eV/Å"
        end = f"{end} in {self}{stress}{spread}, energy {start:.4f} -> {energy:.4f} eV"
        return f"{end}; {broken_text(self.broken)}" if self.broken else end

    def as_dict(self, fmax: float) -> dict[str, Any]:
        """Return the end of the relaxation as a dictionary, for programs."""
        (start, _), (energy, largest) = self.steps[0], self.steps[-1]
        return {
            "converged": self.has_converged(fmax),
            "steps": len(self.steps) - 1,
            "largest_force_eV_A": largest,
            "initial_energy_eV": start,
            "energy_eV": energy,
            "largest_stress_GPa": self.stress,
            "force_spread_eV_A": self.spread,
            "novelty": self.novelty,
            "broken_bonds": [[bond.i, bond.j] for bond in self.broken],
        }
