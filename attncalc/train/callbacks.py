"""What watches a training run: averaging of weights, best model, table, picture, progress bar."""

from __future__ import annotations

import csv
import io
import logging
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
from attncalc.train.denoising import without_denoising
from attncalc.train.module import TrainingModule
from attncalc.train.step import Step

log = logging.getLogger(__name__)

# s between two pictures of a running training; drawing one takes about half a second
PICTURE_EVERY = 60.0
# s between two lines about a running training where there is no terminal for a bar
LINE_EVERY = 60.0


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which is what is validated and saved.

    Lightning walks through the module for its parameters at every step; here they are listed once.
    """

    _average_model: AveragedModel  # made by Lightning before any of the calls below

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self.average)

    def average(
        self, averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: Any
    ) -> None:
        """Move the average, in place, towards the weights after one more step.

        It forgets faster in the beginning: what a run of a few hundred steps saves would else be
        its random start.
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


class UseStep(L.Callback):
    """Hands the step over once the module has been copied for averaging: a step has no copy."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _ours(module).step = self.step


class AddUp(L.Callback):
    """Adds up what the processes found in validation, before anything is made of it."""

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _ours(module).add_up()


class StopTogether(L.Callback):
    """Takes the signals that end a training from Lightning, which would end this process only."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _ours(module).processes.listen()


class BestModel(L.Callback):
    """Saves the model with the lowest validation loss, and the table of all epochs.

    Must stand before the averaging of weights in the list of callbacks: while it looks, the
    module holds the averaged weights.
    """

    def __init__(self, model: Path, table: Path) -> None:
        self.model, self.table = model, table

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # the module's own hook, which adds this epoch to the history, runs after all callbacks
        training = _ours(module)
        loss = training.sums["loss"] / training.sums["n"]
        is_best = all(loss < row["validation_loss"] for row in training.history)
        if is_best or not self.model.exists():
            save(without_denoising(training.potential), self.model)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        history, text = _ours(module).history, io.StringIO()
        writer = csv.DictWriter(text, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.table, text.getvalue().encode())


class LearningCurve(L.Callback):
    """Draws the learning curve now and then, and at the end."""

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
            wall_time=columns["wall_time_s"][-1],
            title=self.title,
        )
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_atomically(self.picture, content.getvalue())
        self.last_drawn = time.monotonic()


class Progress(L.Callback):
    """One bar over all epochs with rate and time left; where there is no terminal, log lines."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_epochs, initial=trainer.current_epoch, unit="epoch", disable=None
        )
        self.first, self.started = trainer.current_epoch, time.monotonic()
        self.last_line = self.started

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        last = _ours(module).history[-1]
        errors = (
            f"validation E {last['energy_mae_meV']:.1f} meV, F {last['force_mae_meV_per_A']:.1f} "
            "meV/Å"
        )
        self.bar.set_postfix_str(errors, refresh=False)
        self.bar.update(1)
        now, done = time.monotonic(), int(last["epoch"])
        if self.bar.disable and now - self.last_line >= LINE_EVERY:
            n_epochs = int(trainer.max_epochs or 0)  # None would be no limit, which no recipe has
            left = (now - self.started) / (done - self.first) * (n_epochs - done)
            left_text = tqdm.format_interval(left)
            log.info("epoch %d of %d, %s; %s left", done, n_epochs, errors, left_text)
            self.last_line = now

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def _ours(module: L.LightningModule) -> TrainingModule:
    """Lightning hands any module to a callback; the ones here belong to this one only."""
    if not isinstance(module, TrainingModule):
        raise TypeError(f"module must be a TrainingModule, got {type(module).__name__}")
    return module
