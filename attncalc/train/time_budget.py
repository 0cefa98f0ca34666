"""`TimeBudget`: number of epochs that fits a given duration of a training."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from attncalc.train.module import TrainingModule
from attncalc.train.step import Batch, Step

SECONDS_PER_MINUTE = 60.0
# steps that are timed before the first epoch, after one that is not timed
TIMED_STEPS = 3
# number of last epochs of which the shortest counts
LAST_EPOCHS = 3


def epochs_that_fit(seconds: float, done: int, left: float) -> int:
    """Return the number of epochs of a run that fits the time left, including those done.

    Args:
        seconds: duration of one epoch, s.
        done: number of epochs done.
        left: time left of the budget, s.
    """
    return done + max(0, round(left / max(seconds, 1e-9)))


def seconds_per_step(step: Step, batch: Batch) -> float:
    """Return the duration of a step, s; no weights are changed."""

    def take() -> None:
        float(step(batch)[0])  # reading the number waits for a GPU

    take()
    begin = time.monotonic()
    for _ in range(TIMED_STEPS):
        take()
    return (time.monotonic() - begin) / TIMED_STEPS


class TimeBudget(L.Callback):
    """Callback that adapts the number of epochs to the time left, after each epoch.

    It divides the time left by the duration of the shortest of the last epochs, because an epoch in
    which a step is compiled is not representative. The schedule of the learning rate spans the
    resulting number of epochs, which changes during the run with a compiled step or other work on
    the machine. The first epoch is always finished.

    Args:
        minutes: duration of the whole run without interruptions.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = SECONDS_PER_MINUTE * minutes
        self.lengths: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.begin = module.wall_time

    def state_dict(self) -> dict[str, Any]:
        return {"begin": self.begin, "lengths": self.lengths}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin, self.lengths = state["begin"], list(state["lengths"])

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        now, done = module.wall_time, len(module.history)
        self.lengths = [*self.lengths, now - self.begin][-LAST_EPOCHS:]

        def planned() -> int:
            return epochs_that_fit(min(self.lengths), done, self.seconds - now)

        n_epochs = module.processes.from_first(planned)  # clocks of processes differ
        module.plan(n_epochs)
        loop: Any = trainer.fit_loop
        loop.max_epochs = n_epochs
