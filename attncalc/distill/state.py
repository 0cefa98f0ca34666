"""Settings, goal and rounds of a distillation, and its state between two stages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attncalc.files import write_atomically

# largest share of frames at the target temperature that may be outside the training data
MOST_OUTSIDE = 0.01
# one labelled structure in this many is used for validation
VALIDATION_OF = 10


@dataclass(frozen=True)
class Settings:
    """Settings of a folder, which cannot be changed later.

    Attributes:
        temperature: target temperature, that of the intended dynamics, K.
        members: number of networks in the committee.
        seed: seed of all random choices.
        timestep: fs.
        steps: steps of each training; None chooses by the number of structures.
        start_from: model file that all members start from; None for random weights.
    """

    temperature: float
    members: int = 2
    seed: int = 0
    timestep: float = 0.5
    steps: int | None = None
    start_from: str | None = None


@dataclass(frozen=True)
class Goal:
    """Goal and budget, which may differ when a folder is continued.

    Attributes:
        force_mae: eV/Å, mean absolute error of force components on new frames of the dynamics.
        picoseconds: time for which each replica of the dynamics must be stable.
        labels: largest number of structures for the oracle.
        minutes: time of one call, after which no further round begins.
    """

    force_mae: float
    picoseconds: float = 10.0
    labels: int = 1000
    minutes: float = np.inf


@dataclass
class Round:
    """Results of a round, of frames and replicas at the target temperature except for `hotter`.

    Attributes:
        n_train, n_validation: number of structures for training and validation.
        force_mae, force_rmse: eV/Å, on frames of its dynamics that it was not trained on.
        energy_mae: eV per structure, on the same frames.
        test: numbers of these frames among the labels.
        outside: share of frames of the dynamics with an atom of novelty above 1.
        ended: reasons of replicas that ended early.
        hotter: reasons of hotter replicas that ended early.
        picoseconds: planned duration of each replica.
        train_seconds, md_seconds: duration of training and dynamics, in all calls that were not
            killed meanwhile.
        learned: True if its frames have been added to the training data.
        elsewhere: number of `test`, at least, that are frames of hotter replicas or of the
            equilibration; the oracle may have refused some of the others.
    """

    n_train: int
    n_validation: int
    force_mae: float
    force_rmse: float
    energy_mae: float
    test: list[int]
    outside: float
    ended: list[str]
    hotter: list[str]
    picoseconds: float
    train_seconds: float
    md_seconds: float
    learned: bool = False
    elsewhere: int = 0

    def faults(self, goal: Goal) -> list[str]:
        """Return the reasons why the goal is not reached, one sentence each."""
        found = []
        if not self.force_mae <= goal.force_mae:
            found.append(
                f"force MAE {1e3 * self.force_mae:.1f} meV/Å, the goal is {1e3 * goal.force_mae:g}"
            )
        if self.ended:
            found.append(f"{len(self.ended)} replicas ended early ({self.ended[0]})")
        if self.outside > MOST_OUTSIDE:
            found.append(f"{100 * self.outside:.1f} % of the frames are outside the training")
        if self.picoseconds < goal.picoseconds:
            found.append(f"dynamics of {self.picoseconds:g} ps, not {goal.picoseconds:g}")
        return found


@dataclass
class State:
    """State of a run between two stages, in `state.json`.

    Attributes:
        settings: settings of the folder, structure and teacher.
        path: numbers of the labels on the path of the relaxation, the lowest one last.
        known: numbers of the labels for training and validation.
        rounds: completed rounds.
        seconds: duration of all calls so far.
        spent: s, duration of each stage of the current round, in all calls so far.
    """

    settings: dict[str, Any]
    path: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def n_labels(self) -> int:
        """Number of labels that there must be at least."""
        rows = [*self.path, *self.known, *(row for one in self.rounds for row in one.test)]
        return 1 + max(rows, default=-1)

    def split(self, n: int | None = None) -> tuple[list[int], list[int]]:
        """Return numbers of labels for training, and for validation: every tenth of the known ones.

        Args:
            n: divide only the first n known labels; None for all.
        """
        known = self.known[:n]
        training = [row for k, row in enumerate(known) if k % VALIDATION_OF]
        return training, known[::VALIDATION_OF]

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a state.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            content["rounds"] = [Round(**one) for one in content["rounds"]]
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); remove its folder") from None
