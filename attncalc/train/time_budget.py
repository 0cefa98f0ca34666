"""`TimeBudget`: a training that takes so many minutes, whatever an epoch costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from attncalc.train.module import TrainingModule
from attncalc.train.step import Batch, Step

SECONDS_PER_MINUTE = 60.0
# steps that are timed before the first epoch; one before them is not
TIMED_STEPS = 3


def epochs_that_fit(seconds: float, done: int, left: float) -> int:
    """Return the number of epochs of a run, those done included, to the nearest.

    Args:
        seconds: that one epoch takes.
        done: epochs so far.
        left: seconds of the budget.
    """
    return done + max(0, round(left / max(seconds, 1e-9)))


def epochs_by_history(minutes: float, history: Sequence[Mapping[str, float]]) -> int:
    """Return the number of epochs of a run that goes on.

    Args:
        minutes: its budget.
        history: rows of the epochs that are done, at least one.
    """
    ends = [0.0, *(row["wall_time_s"] for row in history)]
    seconds = ends[-1] - ends[-2]
    # a quarter less: what `TimeBudget` has found to be the end is not the beginning of one more
    left = SECONDS_PER_MINUTE * minutes - ends[-1] - seconds / 4
    return epochs_that_fit(seconds, len(history), left)


def seconds_per_step(step: Step, batch: Batch) -> float:
    """Return how long a step takes, without changing any weight."""
    step(batch)
    begin = time.monotonic()
    for _ in range(TIMED_STEPS):
        step(batch)
    return (time.monotonic() - begin) / TIMED_STEPS


class TimeBudget(L.Callback):
    """Callback that divides the time left by the length of the last epoch, after each.

    The schedule of the learning rate spans the number of epochs that follows; a compiled step or
    other work on the machine changes it during the run. The first epoch is always finished.

    Args:
        minutes: of the whole run, interruptions not counted.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = SECONDS_PER_MINUTE * minutes

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.begin = module.wall_time

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        now, done = module.wall_time, len(module.history)

        def planned() -> int:
            return epochs_that_fit(now - self.begin, done, self.seconds - now)

        n_epochs = module.processes.from_first(planned)  # clocks of processes differ
        module.plan(n_epochs)
        loop: Any = trainer.fit_loop
        loop.max_epochs = n_epochs
