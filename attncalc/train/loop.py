"""The training loop: Lightning, quiet, interruptible, and the same after a restart."""

from __future__ import annotations

import io
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, Sampler

from attncalc.model_file import write_atomically
from attncalc.train.batches import join
from attncalc.train.callbacks import BestModel, LearningCurve, MovingAverage, Progress, UseStep
from attncalc.train.module import TrainingModule
from attncalc.train.recipe import Recipe
from attncalc.train.step import Batch, Step

# structures of one validation batch
VALIDATION_BATCH = 50


class EpochOrder(Sampler[int]):
    """The order of the structures, a pure function of seed and epoch.

    An epoch that is run again after an interruption is the same epoch.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        # a generator: the epoch is read when the first structure is asked for
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist()


class SafeCheckpoints(TorchCheckpointIO):
    """Checkpoints are written beside the old one and put in its place when they are on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getvalue())


def finished_history(checkpoint: Path, recipe: Recipe) -> list[dict[str, float]] | None:
    """The history of a run that has done all its epochs; None if there is something left to do.

    Raises:
        ValueError: the checkpoint cannot be read.
    """
    if not checkpoint.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            history = torch.load(checkpoint, map_location="cpu", weights_only=True)["history"]
    except Exception as error:  # torch and pickle raise whatever the damage leads to
        raise ValueError(
            f"{checkpoint}: the checkpoint is damaged ({type(error).__name__}); remove it to start "
            "the training again"
        ) from None
    return history if len(history) >= recipe.epochs else None


def train_loop(
    module: TrainingModule,
    step: Step,
    training: Sequence[Batch],
    validation: Sequence[Batch],
    recipe: Recipe,
    output: Path,
) -> None:
    """Run all epochs that are not in the checkpoint of `output` yet.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM; its message says how to go on.
    """
    checkpoint = output / "last.ckpt"
    callbacks = [
        BestModel(output / f"{recipe.name}.safetensors", output / "metrics.csv"),
        UseStep(step),
        MovingAverage(recipe.ema_decay),
        LearningCurve(output / "learning_curve.png", recipe.name),
        Progress(),
        ModelCheckpoint(
            output,
            filename=checkpoint.stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    order = EpochOrder(len(training), recipe.seed)
    with _quiet_lightning(), _interruptible(module, recipe, output):
        trainer = L.Trainer(
            accelerator=device().type,
            devices=1,
            max_epochs=recipe.epochs,
            callbacks=callbacks,
            plugins=[SafeCheckpoints()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # forces are gradients, in validation too
        )
        trainer.fit(
            module,
            _loader(training, recipe.batch_size, order),
            _loader(validation, VALIDATION_BATCH),
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,  # what is read may come from elsewhere: numbers, no code
        )


def _loader(structures: Any, batch_size: int, order: EpochOrder | None = None) -> DataLoader:
    """`structures` may be any sequence: torch says so, but not in its annotations."""
    return DataLoader(structures, batch_size, sampler=order, collate_fn=join)


def device() -> torch.device:
    """Where trainings run: the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _interruptible(module: TrainingModule, recipe: Recipe, output: Path) -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving Python for good, deaf to further ones: undo both.

    A batch system's request to end (SIGTERM) it takes for the end of the training: that is no
    success either.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop, SIGTERMException) and not isinstance(
            stop.__context__, KeyboardInterrupt
        ):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt(
            f"{len(module.history)} of {recipe.epochs} epochs are done; the same command goes on "
            f"from there ({output})"
        ) from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without advertisements, tips and warnings about choices that are made on purpose."""
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
