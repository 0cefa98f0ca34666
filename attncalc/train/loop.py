"""Training loop with Lightning: quiet, interruptible, and reproducible after a restart."""

from __future__ import annotations

import io
import logging
import os
import signal
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from attncalc.files import write_atomically
from attncalc.files.reading import read_whole
from attncalc.signals import finished_before_ctrl_c
from attncalc.train.batches import BatchLoaders
from attncalc.train.callbacks import (
    AddUp,
    BestModel,
    LearningCurve,
    MovingAverage,
    Progress,
    SaveWithinEpochs,
    UseStep,
)
from attncalc.train.compilation import Compilation
from attncalc.train.module import TrainingModule
from attncalc.train.order import Share, Shares, Sizes, validation_shares
from attncalc.train.recipe import Recipe
from attncalc.train.step import Batch, Step
from attncalc.train.time_budget import TimeBudget

# bytes: weights, their moving average and two moments of the largest model, in float64
LARGEST_CHECKPOINT = 1 << 32


def _require_stored(content: io.BytesIO) -> None:
    """Refuse an archive with compressed entries, which zip bombs have and torch never writes."""
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if sum(one.file_size for one in archive.infolist()) > len(content.getbuffer()):
                raise ValueError("it would unpack to more than its size")
    content.seek(0)


class SafeCheckpoints(TorchCheckpointIO):
    """Checkpoint writer that replaces the old file only after the new one is on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        with finished_before_ctrl_c():  # pickle ignores an exception while it names attributes
            torch.save(checkpoint, content)
        write_atomically(path, content.getvalue())


@dataclass(frozen=True)
class Done:
    """Epochs and steps that a run has done, from its checkpoint.

    Attributes:
        history: one row for each finished epoch.
        n_steps: number of steps done in the next epoch.
        n_epochs: planned number of epochs; None if the checkpoint does not state it.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    n_steps: int = 0
    n_epochs: int | None = None

    @property
    def and_steps(self) -> str:
        """Words for a message, such as "and 1,200 steps"; empty after a whole epoch.

        They begin with a space.
        """
        return f" and {self.n_steps:,} steps" if self.n_steps else ""


def read_done(checkpoint: Path) -> Done:
    """Read the epochs and steps that a run has done; none without a checkpoint.

    Raises:
        ValueError: the checkpoint cannot be read.
    """
    if not os.path.lexists(checkpoint):  # a broken link is damage
        return Done()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            content = io.BytesIO(read_whole(checkpoint, LARGEST_CHECKPOINT))
            _require_stored(content)
            there = torch.load(content, map_location="cpu", weights_only=True)
            found, planned = there["history"], there.get("n_epochs")
            if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
                raise ValueError("no history")
            return Done(
                found,
                n_steps=len(there.get("train_losses", ())),
                n_epochs=None if planned is None else int(planned),
            )
    except Exception as error:  # damage leads to any error of torch or pickle
        raise ValueError(
            f"{checkpoint}: the checkpoint is damaged ({type(error).__name__}); remove it to start "
            "the training again"
        ) from None


def train_loop(
    module: TrainingModule,
    step: Step,
    compilation: Compilation | None,
    training: tuple[Sequence[Batch], Sizes],
    validation: tuple[Sequence[Batch], Sizes],
    recipe: Recipe,
    output: Path,
) -> None:
    """Run all steps that are not in the checkpoint of `output` yet.

    Args:
        module: module to train; it has the processes that take part.
        step: step to begin with.
        compilation: compilation of the step to change to, if there is one.
        training, validation: a batch of each structure, and their sizes.
        recipe: recipe of the run.
        output: output folder; only the first process writes into it.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM; its message says how to continue.
    """
    checkpoint = output / "last.ckpt"
    processes = module.processes
    callbacks: list[L.Callback] = [
        UseStep(step, compilation, waits=recipe.compile == "always"),
        MovingAverage(recipe.ema_decay),
    ]
    if recipe.minutes is not None:
        callbacks.insert(0, TimeBudget(recipe.minutes))
    if processes.is_first:
        best = BestModel(output / f"{recipe.name}.safetensors", output / "metrics.csv")
        callbacks = [
            best,
            *callbacks,
            LearningCurve(output / "learning_curve.png", recipe.name),
            Progress(),
            SaveWithinEpochs(checkpoint),  # after all that change state
            ModelCheckpoint(
                output,
                filename=checkpoint.stem,
                every_n_epochs=1,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
    shares = Shares(training[1], recipe, processes.rank, processes.n)
    checked = validation_shares(validation[1], recipe, processes.rank, processes.n)
    done = processes.from_first(lambda: read_done(checkpoint))
    # Lightning requests the first step before it sets the epoch
    shares.set_epoch(len(done.history))
    shares.leave_out(done.n_steps)
    goes_on = processes.from_first(checkpoint.exists)
    device = processes.device
    with _quiet_lightning(), _interruptible(module, output):
        trainer = L.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            max_epochs=module.n_epochs,
            callbacks=[AddUp(), *callbacks],
            # Lightning treats each process as a single one, whatever has started it
            plugins=[SafeCheckpoints(), LightningEnvironment()],
            logger=False,
            enable_checkpointing=processes.is_first,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # forces are gradients, in validation too
        )
        trainer.fit(
            module,
            _loader(training[0], shares),
            _loader(validation[0], checked),
            ckpt_path=checkpoint if goes_on else None,
            weights_only=True,  # loads no code: the file may come from elsewhere
        )


def _loader(samples: Sequence[Batch], shares: Iterable[Share]) -> DataLoader:
    return DataLoader(
        BatchLoaders(samples), batch_size=None, sampler=shares, collate_fn=lambda x: x
    )


@contextmanager
def _interruptible(module: TrainingModule, output: Path) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM, and restore the signal handlers.

    On Ctrl-C, Lightning exits Python and ignores further ones. On SIGTERM, the request of a batch
    system to end, it exits as if the training had succeeded.
    """
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop, SIGTERMException) and not isinstance(
            stop.__context__, KeyboardInterrupt
        ):
            raise
        done = read_done(output / "last.ckpt")
        interrupt = KeyboardInterrupt(
            f"{len(done.history)} of {module.n_epochs} epochs{done.and_steps} are done; the same "
            f"command continues from there ({output})"
        )
        raise module.processes.error_of_all(interrupt) from None
    except ConnectionError:
        # a launcher will send SIGTERM to this process, which has to report its error first
        handlers[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for which, handler in handlers.items():
            if signal.getsignal(which) is not handler:
                signal.signal(which, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advertisements, tips and warnings about choices made on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
