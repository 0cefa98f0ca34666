"""Relaxation of structures in batches or one by one, as `attncalc relax` does it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch import Tensor
from tqdm import tqdm

from attncalc.calculator import AttnCalculator
from attncalc.cli.files import remove_other_velocities
from attncalc.cli.model_checks import strain_mask
from attncalc.cli.output import warn
from attncalc.cli.relaxation_course import Course
from attncalc.md import relax_batch
from attncalc.system import System

# atoms of one batch of relaxations: bounds its memory
ATOMS_AT_ONCE = 2000


def to_rest(atoms: Atoms) -> None:
    """Remove velocities (momenta), in place: a relaxed structure has none."""
    atoms.arrays.pop("momenta", None)
    remove_other_velocities(atoms)


@dataclass(frozen=True)
class Relaxation:
    """Settings of `attncalc relax`.

    Attributes:
        fmax: eV/Å.
        steps: most steps per structure.
        optimizer: "fire" or "lbfgs".
        cell: relax cells too.
        stop: stop a structure when it is outside the training data of the model.
    """

    fmax: float
    steps: int
    optimizer: str
    cell: bool
    stop: bool


def are_relaxed_together(frames: list[Atoms], cell: bool) -> bool:
    """Return True if structures are relaxed in batches: with fixed cells and only `FixAtoms`."""
    constraints = [constraint for atoms in frames for constraint in atoms.constraints]
    return not cell and all(isinstance(constraint, FixAtoms) for constraint in constraints)


def relax_in_batch(
    asked: Relaxation,
    calculator: AttnCalculator,
    batch: list[Atoms],
    courses: list[Course],
    bar: tqdm,
    first: int,
    tell: Callable[[str], None] = warn,
    *,
    alone: bool = False,
) -> bool:
    """Relax structures in place and attach results; return True if Ctrl-C ended this.

    The bar counts structures, or steps if `alone`.
    """
    force = calculator.evaluator
    before = [atoms.copy() for atoms in batch]

    def rests(course: Course) -> bool:
        return not course.is_unfinished(asked.fmax)

    def observe(numbers: Tensor, energy: Tensor, largest: Tensor) -> None:
        columns = numbers.tolist(), energy.tolist(), largest.tolist()
        for k, of_energy, of_force in zip(*columns, strict=True):
            steps = courses[k].steps
            if not steps or not rests(courses[k]):  # a finished structure does not move
                steps.append((of_energy, of_force))
        done = len(courses[0].steps) - 1 if alone else first + sum(map(rests, courses))
        reached = f"largest force {max(columns[2]):.4f} eV/Å"
        reached += f", energy {columns[1][0]:.4f} eV" if alone else ""
        bar.set_postfix_str(reached, refresh=False)
        bar.update(done - bar.n)

    def should_stop(numbers: Tensor, system: System) -> Tensor | None:
        if (novelty := force.novelty(system)) is None:
            return None
        of_systems = system.split(novelty), system.split(system.atomic_numbers.cpu().numpy())
        for k, *of_atoms in zip(numbers.tolist(), *of_systems, strict=True):
            warning = courses[k].check(first + k, *of_atoms, stop=asked.stop)
            if warning:
                with bar.external_write_mode():
                    tell(warning)
        return torch.tensor([courses[k].stopped for k in numbers.tolist()])

    ended = relax_batch(
        force,
        batch,
        fmax=asked.fmax,
        steps=asked.steps,
        optimizer=asked.optimizer,
        first=first,
        observe=observe,
        should_stop=should_stop,
    )
    positions = ended.system.split(ended.system.positions.cpu())
    for atoms, now in zip(batch, positions, strict=True):
        atoms.positions = now.numpy()
    results = calculator.calculate_many(batch)
    for atoms, course, found, start in zip(batch, courses, results, before, strict=True):
        course.compare(start, atoms)
        spread = found.get("forces_spread")
        course.spread = None if spread is None else _largest(spread)
        # without spreads and Hirshfeld ratios, which are not properties in ASE
        known = {name: value for name, value in found.items() if name in all_properties}
        atoms.calc = SinglePointCalculator(atoms, **known)
    return ended.interrupted


def relax_one(
    number: int,
    atoms: Atoms,
    asked: Relaxation,
    course: Course,
    progress: Callable[[int, str], None],
    tell: Callable[[str], None],
) -> Atoms:
    """Relax one structure by its calculator, fill its course, and return it with results."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE, LBFGS

    method, before = {"fire": FIRE, "lbfgs": LBFGS}[asked.optimizer], atoms.copy()
    mask = strain_mask(atoms) if asked.cell else None
    moved = FrechetCellFilter(atoms, mask=mask) if asked.cell else atoms
    with _silent_libraries(), method(moved, logfile=None) as dynamics:
        for _ in dynamics.irun(fmax=asked.fmax, steps=asked.steps):
            energy = atoms.get_potential_energy(apply_constraint=False)
            largest = _largest(moved.get_forces())
            course.steps.append((energy, largest))
            course.frame = _with_results(atoms)
            if mask is not None:
                stress = atoms.get_stress(voigt=False)
                course.stress = float(np.abs(stress[mask]).max() / units.GPa)
            spread = atoms.calc.spread
            course.spread = None if spread is None else _largest(spread["forces"])
            novelty = atoms.calc.novelty
            if warning := course.check(number, novelty, atoms.numbers, stop=asked.stop):
                tell(warning)
            progress(dynamics.nsteps, f"largest force {largest:.4f} eV/Å, energy {energy:.4f} eV")
            if course.stopped:
                break
    course.compare(before, atoms)
    return _with_results(atoms)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Silence ASE's and SciPy's warnings about logarithms of matrices at every cell step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(ase|scipy)\b")
        yield


def _largest(vectors: Any) -> float:
    """Return the length of the longest vector of [n, 3]."""
    return float(np.linalg.norm(vectors, axis=1).max())


def _with_results(atoms: Atoms) -> Atoms:
    """Return a copy with the results of its calculator, but without the calculator."""
    frozen = atoms.copy()
    frozen.calc = SinglePointCalculator(frozen, **atoms.calc.results)
    return frozen
