"""Lightning module of a training run: optimizer steps, validation, history."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from attncalc.potential import Potential, evaluate
from attncalc.train.batches import to_device
from attncalc.train.denoising import displaced
from attncalc.train.processes import Processes
from attncalc.train.recipe import Recipe
from attncalc.train.recipe_rules import OUTPUT_WEIGHTS
from attncalc.train.soap import Soap
from attncalc.train.step import (
    PENALTIES,
    Batch,
    Loss,
    Prediction,
    Step,
    loss,
    output_errors,
    trainable,
)

# column of the table of epochs, in trainings on stresses
STRESS = "stress_mae_meV_per_A3"
# label -> column of the table of epochs: mean absolute errors, averaged over batches
COLUMNS = {
    "charges": "charge_mae_e",
    "hirshfeld_ratios": "hirshfeld_ratio_mae",
    "dipoles": "dipole_mae_eA",
}


class TrainingModule(L.LightningModule):
    """Module that trains with the gradients of a `Step` and validates the plain network.

    Args:
        potential: potential to train, in place.
        recipe: learning rate, schedule, weights.
        n_steps: number of optimizer steps of the whole run, which the schedule spans.
        processes: processes that share each batch.
    """

    step: Step  # handed over when the training starts
    step_is_compiled = False

    def __init__(
        self,
        potential: Potential,
        recipe: Recipe,
        n_steps: int,
        processes: Processes | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the step brings its own gradients
        self.potential, self.recipe, self.n_steps = potential, recipe, n_steps
        self.n_epochs = recipe.epochs
        self.n_warm = min(recipe.warmup_steps, n_steps // 10)  # a short run warms up too
        self.processes = processes or Processes()
        self.weights = loss_of(recipe)
        self.history: list[dict[str, float]] = []
        self.train_losses: list[float] = []
        self.sums: dict[str, float] = {}
        self.wall_before, self.started = 0.0, time.monotonic()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        self.trained = list(trainable(self.potential).values())
        optimizer: torch.optim.Optimizer
        rate = self.recipe.highest_learning_rate
        if self.recipe.optimizer == "soap":
            optimizer = Soap(self.trained, lr=rate)
        else:
            optimizer = torch.optim.Adam(self.trained, lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _factor(self, step: int) -> float:
        lowest = self.recipe.final_learning_rate / self.recipe.highest_learning_rate
        done = min(1.0, step / max(1, self.n_steps))
        if self.recipe.schedule == "exponential":
            factor = lowest**done
        else:
            factor = lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2
        return factor * min(1.0, (step + 1) / (self.n_warm + 1))

    def plan(self, n_epochs: int) -> None:
        """Change the number of epochs of the run, which the schedule spans."""
        self.n_steps = round(self.n_steps * n_epochs / self.n_epochs)
        self.n_epochs = n_epochs
        # never longer: a rate that has reached its height would fall again
        self.n_warm = min(self.n_warm, max(self.global_step, self.n_steps // 10))

    def training_step(self, load: Callable[[], Batch | None], batch_idx: int) -> None:
        def share() -> tuple[torch.Tensor, list[torch.Tensor]] | None:
            batch = load()
            return None if batch is None else self.step(self._prepared(self._here(batch)))

        value, gradients = self.processes.sum_of_gradients(share, self.trained)
        norm = get_total_norm(gradients)
        length = norm.item()  # read once: on a GPU every reading waits until all work is done
        if not math.isfinite(length):
            error = FloatingPointError(
                f"the gradient is not finite in epoch {self.current_epoch + 1}: lower "
                "learning_rate or clip_norm, or look for broken structures in the data"
            )
            raise self.processes.error_of_all(error)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        if length > self.recipe.clip_norm:
            clip_grads_with_norm_(self.trained, self.recipe.clip_norm, norm)
        optimizer: Any = self.optimizers()  # there is only one
        schedule: Any = self.lr_schedulers()
        optimizer.step()
        schedule.step()
        self.train_losses.append(value.item())

    def _here(self, batch: Batch) -> Batch:
        return batch if self.device.type == "cpu" else to_device(batch, self.device)

    def _prepared(self, batch: Batch) -> Batch:
        options, step = self.recipe.denoising, self.global_step
        if options is None:
            return batch
        left, cutoff = max(0.0, 1 - step / self.n_steps), self.potential.cutoff
        return displaced(batch, options, cutoff, seed=self.recipe.seed, step=step, left=left)

    def on_train_start(self) -> None:
        self.processes.listen()  # for signals: Lightning would end this process only

    def on_validation_epoch_start(self) -> None:
        names = ("energy", "per_atom", "force", "stress", "loss", "n", "components")
        self.sums = dict.fromkeys((*names, *self.weights.of_outputs), 0.0)

    def validation_step(self, load: Callable[[], Batch | None], batch_idx: int) -> None:
        if (batch := load()) is None:
            return
        batch = self._here(batch)
        result = evaluate(self.potential, batch.graphs)
        found = Prediction(
            result.energy,
            result.forces,
            result.strain_gradient / batch.volume[:, None, None],
            result.charges,
            result.hirshfeld_ratios,
        )
        energy_errors = (result.energy - batch.energy).abs()
        value = loss(found, batch, self.weights)
        n_systems = len(energy_errors)
        for name, term in (
            ("energy", energy_errors.sum()),
            ("per_atom", (energy_errors / torch.bincount(batch.graph.system_idx)).sum()),
            ("force", (result.forces - batch.forces).abs().sum()),
            ("stress", (found.stress - batch.stress).abs().mean(dim=(1, 2)).sum()),
            ("loss", value * n_systems),
            ("n", n_systems),
            ("components", batch.forces.numel()),
        ):
            self.sums[name] += float(term)
        for label in self.weights.of_outputs:
            # weighted by structures, so that all sums are divided by the same number
            errors = output_errors(found, batch, label).abs().mean()
            self.sums[label] += float(errors) * n_systems

    def add_up(self) -> None:
        """Add up the validation errors over all processes, and average the losses of the epoch."""
        self.train_loss = math.fsum(self.train_losses) / len(self.train_losses)
        self.train_losses.clear()
        added = torch.tensor([*self.sums.values()], dtype=torch.float64)
        self.processes.all_reduce(added)
        self.sums = dict(zip(self.sums, added.tolist(), strict=True))

    def on_validation_epoch_end(self) -> None:
        s = self.sums
        schedule: Any = self.lr_schedulers()
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "step": self.global_step,
                "learning_rate": schedule.get_last_lr()[0],
                "train_loss": self.train_loss,
                "validation_loss": s["loss"] / s["n"],
                "energy_mae_meV": 1e3 * s["energy"] / s["n"],
                "energy_mae_meV_per_atom": 1e3 * s["per_atom"] / s["n"],
                "force_mae_meV_per_A": 1e3 * s["force"] / s["components"],
                **({STRESS: 1e3 * s["stress"] / s["n"]} if self.weights.stress else {}),
                **{COLUMNS[label]: s[label] / s["n"] for label in self.weights.of_outputs},
                "wall_time_s": self.wall_time,
            }
        )

    @property
    def wall_time(self) -> float:
        """Duration of the training without interruptions, s."""
        return self.wall_before + time.monotonic() - self.started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"], checkpoint["wall_time"] = self.history, self.wall_time
        checkpoint["step_is_compiled"] = self.step_is_compiled
        checkpoint["n_epochs"], checkpoint["n_warm"] = self.n_epochs, self.n_warm
        # losses of an unfinished epoch
        checkpoint["train_losses"] = torch.tensor(self.train_losses, dtype=torch.float64)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.wall_before = list(checkpoint["history"]), checkpoint["wall_time"]
        self.step_is_compiled = bool(checkpoint.get("step_is_compiled", False))
        self.n_warm = checkpoint.get("n_warm", self.n_warm)  # older ones have none
        losses = checkpoint.get("train_losses")
        self.train_losses = [] if losses is None else losses.tolist()
        self.started = time.monotonic()


def loss_of(recipe: Recipe) -> Loss:
    """Return the loss weights of a recipe."""
    return Loss(
        recipe.energy_weight,
        recipe.force_weight,
        recipe.stress_weight,
        PENALTIES[recipe.penalty],
        {label: getattr(recipe, OUTPUT_WEIGHTS[label]) for label in recipe.output_labels},
    )
