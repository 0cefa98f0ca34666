"""Relaxation of many structures, in shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ase import Atoms
from tqdm import tqdm

from attncalc.calculator import AttnCalculator
from attncalc.cli.files import forget_results
from attncalc.cli.model_checks import require_limits, strain_mask
from attncalc.cli.model_job import ModelJob
from attncalc.cli.relaxation import (
    ATOMS_AT_ONCE,
    Relaxation,
    are_relaxed_together,
    relax_in_batch,
    relax_one,
    to_rest,
)
from attncalc.cli.relaxation_course import Course
from attncalc.cli.shards.processing import parse_frames
from attncalc.cli.shards.results import Outcome
from attncalc.data.shards import Frame
from attncalc.structures import batches
from attncalc.system import System, what_is_ignored
from attncalc.text import EXPECTED, one_line


@dataclass(frozen=True)
class RelaxMany(ModelJob):
    """Job of relaxing many structures.

    Attributes:
        asked: the settings.
    """

    asked: Relaxation

    def identity(self) -> dict[str, Any]:
        """Return all that the results depend on, except for input and machine.

        Raises:
            FileNotFoundError, ValueError: there is no such model, or it is damaged.
        """
        settings = asdict(self.asked)
        stop = settings.pop("stop")  # named as the option in folders of shards
        return {**super().identity(), **settings, "stop-when-unknown": stop}

    def start(self) -> RelaxShard:
        """Load the model."""
        calculator = self.load()
        require_limits(calculator.evaluator.plain, stop=self.asked.stop)
        return RelaxShard(self.asked, calculator)


@dataclass(frozen=True)
class RelaxShard:
    """Relaxes the structures of a shard; one that cannot be relaxed does not stop the others.

    Attributes:
        asked: the settings.
        calculator: calculator of the model.
    """

    asked: Relaxation
    calculator: AttnCalculator

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Return each structure with results, and facts about it for the report.

        Args:
            frames: the structures, as text.
            first: number of the first structure.
        """
        outcomes, good = parse_frames(frames, self._known)
        if not good:
            return outcomes
        asked = self.asked
        structures, keys = [*good.values()], [*good]
        together = are_relaxed_together(structures, asked.cell)
        apart = self.calculator.evaluator.plain.counts_all_pairs
        sizes = batches(structures, ATOMS_AT_ONCE if together else 1, apart=apart)
        attempts = [keys[begin:end] for begin, end in sizes]
        while attempts:
            numbers = attempts.pop(0)
            batch = [good[k].copy() for k in numbers]
            try:
                found = self._relax(batch, together, first + numbers[0])
            except (*EXPECTED, MemoryError) as error:
                if len(numbers) > 1:  # due to one of them: try each alone
                    attempts += [[k] for k in numbers]
                else:
                    outcomes[numbers[0]] = None, {"error": one_line(error)}
                continue
            for k, (atoms, course) in zip(numbers, found, strict=True):
                reads_spin = self.calculator.evaluator.plain.reads_spin
                ignored = what_is_ignored(good[k], reads_spin=reads_spin)
                said = {**self._said(course), "ignored": ignored}
                atoms.info["structure"] = first + k
                if course.broken:
                    atoms.info["broken_bonds"] = len(course.broken)
                outcomes[k] = atoms, said
        return outcomes

    def _known(self, frame: Frame) -> Atoms:
        atoms = frame.atoms()
        forget_results(atoms)
        to_rest(atoms)
        self.calculator.evaluator.check(System.from_ase(atoms))
        if self.asked.cell:
            strain_mask(atoms)
        return atoms

    def _relax(self, batch: list[Atoms], together: bool, first: int) -> list[tuple[Atoms, Course]]:
        courses = [Course() for _ in batch]
        if together:
            bar = tqdm(disable=True)
            relax_in_batch(self.asked, self.calculator, batch, courses, bar, first, _quiet)
            return list(zip(batch, courses, strict=True))
        (atoms,), (course,) = batch, courses
        # do not reuse the neighbour list of an earlier structure, which depends on the workers
        system = System.from_ase(atoms, first=first)
        self.calculator.evaluator.renew(system.to(self.calculator.evaluator.device))
        atoms.calc = self.calculator
        ended = relax_one(first, atoms, self.asked, course, lambda *_: None, _quiet)
        return [(ended, course)]

    def _said(self, course: Course) -> dict[str, Any]:
        fmax = self.asked.fmax
        ended = {"unfinished": course.is_unfinished(fmax), "outside": course.outside}
        return course.as_dict(fmax) | ended


def _quiet(warning: str) -> None:
    """Print nothing for one among many structures."""
