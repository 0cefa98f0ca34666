"""Callbacks of a training: averaging of weights, best model, table, picture, progress bar."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from attncalc import plots
from attncalc.files import write_atomically
from attncalc.model_file import save
from attncalc.text import one_line
from attncalc.train.compilation import Compilation
from attncalc.train.denoising import without_denoising
from attncalc.train.module import STRESS, TrainingModule
from attncalc.train.step import Step
from attncalc.train.time_budget import TimeBudget

log = logging.getLogger(__name__)

# s between two pictures of a running training; drawing one takes about half a second
PICTURE_EVERY = 60.0
# s between two log lines where there is no terminal for a progress bar: one line per epoch, fewer
# for shorter epochs, more for longer ones
SHORTEST_BETWEEN_LINES, LONGEST_BETWEEN_LINES = 10.0, 60.0
# s between two checkpoints within an epoch
CHECKPOINT_EVERY = 300.0
# training steps between two checks whether the compiled step is ready
STEPS_BETWEEN_LOOKS = 100


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which is validated and saved.

    Lightning collects the parameters of the module at every step; here they are listed once.
    """

    _average_model: AveragedModel  # made by Lightning before any of the calls below

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self.average)

    def average(
        self, averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: Any
    ) -> None:
        """Move the average, in place, towards the weights after one more step.

        The decay is faster at the beginning; otherwise a run of a few hundred steps would save its
        random start.
        """
        n = int(n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    @property
    def state_key(self) -> str:
        return "WeightAveraging"

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.current = [p.detach() for p in module.parameters()]
        self.averaged = [p.detach() for p in self._average_model.module.parameters()]
        self.n_averaged = int(self._average_model.n_averaged)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.n_averaged == 0:
            torch._foreach_copy_(self.averaged, self.current)
        else:
            self.average(self.averaged, self.current, self.n_averaged)
        self.n_averaged += 1
        self._average_model.n_averaged.fill_(self.n_averaged)
        self._latest_update_step = trainer.global_step


def has_one_core() -> bool:
    """Return True if this process may run on one processor core only."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) == 1
    return os.cpu_count() == 1


class UseStep(L.Callback):
    """Set the step of the module, and replace it by the compiled one when that is ready.

    Steps are set after the module has been copied for averaging, because a step cannot be copied. A
    run that is resumed after the change waits for the compiled step, so that it rounds like an
    uninterrupted run from the change on. The time of the change depends on the machine. A run on
    one core waits too: training and compiling would take turns there.

    Args:
        step: step to begin with.
        compilation: compilation of a faster step.
        waits: whether to wait for the compiled step before the first epoch.
    """

    def __init__(
        self, step: Step, compilation: Compilation | None = None, *, waits: bool = False
    ) -> None:
        self.step, self.compilation, self.waits = step, compilation, waits

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        ours = _ours(module)
        ours.step = self.step
        if self.compilation is None:
            return
        if self.waits or ours.step_is_compiled or ours.processes.all(has_one_core()):
            log.info("compiling the training step (one to twenty minutes, less the second time)")
            self._switch(ours)
        elif ours.processes.local_rank == 0:  # all processes of a machine share one cache
            self.compilation.start()
            log.info("training begins with an uncompiled step and compiles one in the background")

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.compilation is None or batch_idx % STEPS_BETWEEN_LOOKS:
            return
        ours = _ours(module)
        if ours.processes.all(self.compilation.is_done or ours.processes.local_rank > 0):
            failed = self.compilation.failure
            if ours.processes.all(not failed):
                log.info("switching to the compiled training step (may take a minute)")
                self._switch(ours)
            else:
                if failed:
                    log.warning(
                        "compiled training step cannot be made and is not used (%s)",
                        one_line(failed),
                    )
                self.compilation = None

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.compilation is not None:
            self.compilation.stop()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, module, "fit")

    def _switch(self, module: TrainingModule) -> None:
        assert self.compilation is not None
        with module.processes.together():
            step = self.compilation.make()
        self.compilation = None
        if step is not None:
            module.step = step
        elif module.step_is_compiled:
            log.warning("compiled steps until here, none from now on: results differ by rounding")
        module.step_is_compiled = step is not None


class AddUp(L.Callback):
    """Add up the validation results of all processes before they are used."""

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _ours(module).add_up()


class BestModel(L.Callback):
    """Save the model with the lowest validation loss, and the table of all epochs.

    It must precede the averaging of weights in the list of callbacks: then the module holds the
    averaged weights when this callback runs.
    """

    def __init__(self, model: Path, table: Path) -> None:
        self.model, self.table = model, table

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # the module's own hook, which adds this epoch to the history, runs after all callbacks
        training = _ours(module)
        loss = training.sums["loss"] / training.sums["n"]
        earlier = [row["validation_loss"] for row in training.history]
        # one may be NaN, which no number is below
        is_best = math.isfinite(loss) and not any(other <= loss for other in earlier)
        if is_best or not self.model.exists():
            save(without_denoising(training.potential), self.model)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        write_table(_ours(module).history, self.table)


def write_table(history: list[dict[str, float]], path: Path) -> None:
    """Write the numbers of all epochs as CSV, atomically, unless the file already has them."""
    text = io.StringIO()
    # a run of an earlier version may lack columns in its first rows
    writer = csv.DictWriter(text, dict.fromkeys(name for row in history for name in row))
    writer.writeheader()
    writer.writerows(history)
    content = text.getvalue().encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


class SaveWithinEpochs(L.Callback):
    """Write the checkpoint during long epochs; another callback writes it at their end.

    It must follow all callbacks that have a state.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.last = checkpoint, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        is_last: Any = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not is_last and time.monotonic() - self.last >= CHECKPOINT_EVERY:
            trainer.save_checkpoint(self.checkpoint)
            self.last = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.last = time.monotonic()


class LearningCurve(L.Callback):
    """Draw the learning curve from time to time, and at the end."""

    def __init__(self, picture: Path, title: str) -> None:
        self.picture, self.title = picture, title
        self.last_drawn = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if time.monotonic() - self.last_drawn > PICTURE_EVERY:
            self.draw(_ours(module).history)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.draw(_ours(module).history)

    def draw(self, history: list[dict[str, float]]) -> None:
        """Write the picture, atomically."""
        columns = {name: [row[name] for row in history] for name in history[0]}
        figure = plots.learning_curve(
            columns["epoch"],
            train_loss=columns["train_loss"],
            validation_loss=columns["validation_loss"],
            energy_mae=columns["energy_mae_meV"],
            force_mae=columns["force_mae_meV_per_A"],
            stress_mae=columns.get(STRESS),
            wall_time=columns["wall_time_s"][-1],
            title=self.title,
        )
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_atomically(self.picture, content.getvalue())
        self.last_drawn = time.monotonic()


class Progress(L.Callback):
    """Progress bar over all epochs with rate and time left; without a terminal, log lines."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.step, self.first_step = _ours(module).step, trainer.global_step
        self.started = time.monotonic()
        self.bar = tqdm(
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            unit="epoch",
            disable=None if log.isEnabledFor(logging.INFO) else True,  # None: no terminal
        )
        self.first, self.last_line = trainer.current_epoch, time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        step = _ours(module).step
        if step is not self.step:  # the rate is that of the new step
            self.step, self.first_step = step, trainer.global_step
            self.started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        if not self.bar.disable or now - self.last_line < LONGEST_BETWEEN_LINES:
            return
        log.info(
            "epoch %d of %s, %d steps done; %s left",
            trainer.current_epoch + 1,
            _planned(trainer),
            batch_idx + 1,
            self._left(trainer, module, now),
        )
        self.last_line = now

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        last = _ours(module).history[-1]
        errors = (
            f"validation E {last['energy_mae_meV']:.1f} meV, F {last['force_mae_meV_per_A']:.1f} "
            "meV/Å"
        )
        if STRESS in last:
            errors += f", stress {last[STRESS]:.2f} meV/Å³"
        self.bar.set_postfix_str(errors, refresh=False)
        self.bar.total = trainer.max_epochs  # a time budget changes it
        self.bar.update(1)
        now, done = time.monotonic(), int(last["epoch"])
        is_end = done in (self.first + 1, trainer.max_epochs)
        if self.bar.disable and (is_end or now - self.last_line >= SHORTEST_BETWEEN_LINES):
            left = self._left(trainer, module, now)
            log.info("epoch %d of %s, %s; %s left", done, _planned(trainer), errors, left)
            self.last_line = now

    def _left(self, trainer: L.Trainer, module: L.LightningModule, now: float) -> str:
        n_done = trainer.global_step - self.first_step
        n_left = max(0, _ours(module).n_steps - trainer.global_step)
        return tqdm.format_interval((now - self.started) / max(1, n_done) * n_left)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def _ours(module: L.LightningModule) -> TrainingModule:
    """Return the module as a `TrainingModule`; Lightning passes any module to a callback."""
    if not isinstance(module, TrainingModule):
        raise TypeError(f"module must be a TrainingModule, got {type(module).__name__}")
    return module


def _planned(trainer: L.Trainer) -> str:
    """Return the number of epochs; a time budget changes it after every epoch."""
    changes = any(isinstance(one, TimeBudget) for one in trainer.callbacks)  # type: ignore[attr-defined]
    return f"about {trainer.max_epochs}" if changes else str(trainer.max_epochs)
