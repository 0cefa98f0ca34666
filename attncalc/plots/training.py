"""Learning curve of a training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from attncalc.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, headline


def learning_curve(
    epochs: ArrayLike,
    *,
    train_loss: ArrayLike,
    validation_loss: ArrayLike,
    energy_mae: ArrayLike,
    force_mae: ArrayLike,
    stress_mae: ArrayLike | None = None,
    wall_time: float,
    title: str = "",
) -> Figure:
    """Draw losses (left) and errors on the validation set (right) of a training run.

    The circle is the epoch with the lowest validation loss, whose model is kept.

    Args:
        epochs: [n], counted from 1.
        train_loss: [n], mean over the epoch's steps.
        validation_loss: [n], at the epoch's end, with the averaged weights.
        energy_mae: [n] meV per structure.
        force_mae: [n] meV/Å.
        stress_mae: [n] meV/Å³, of a training on stresses.
        wall_time: total time, s.
        title: title above the picture.
    """
    epochs = np.asarray(epochs, dtype=float)
    best = int(np.nanargmin(np.nan_to_num(np.asarray(validation_loss, dtype=float), nan=np.inf)))
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    losses, errors = figure.subplots(1, 2)
    losses.plot(epochs, train_loss, color=GREY, linewidth=1, label="training")
    _with_best(losses, epochs, validation_loss, best, color=BLUE, label="validation")
    losses.set_ylabel("loss")
    _with_best(errors, epochs, energy_mae, best, color=ORANGE, label="energy, meV")
    _with_best(errors, epochs, force_mae, best, color=GREEN, label="force, meV/Å")
    if stress_mae is not None:
        _with_best(errors, epochs, stress_mae, best, color=PURPLE, label="stress, meV/Å³")
    errors.set_ylabel("mean absolute error, validation")
    for axes in (losses, errors):
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.grid(which="both", alpha=0.2)
        axes.legend(frameon=False)
        axes.set_xlim(left=0)
    unit, size = ("h", 3600) if wall_time >= 7200 else ("min", 60)
    so_far = f"{len(epochs)} epochs in {wall_time / size:.1f} {unit}"
    headline(figure, f"{title}: {so_far}" if title else so_far)
    return figure


def _with_best(
    axes: Axes, x: ArrayLike, y: ArrayLike, best: int, *, color: str, label: str
) -> None:
    """Draw a curve with a circle at the best model, and its value in the legend."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    axes.plot(x, y, color=color, linewidth=1.2, label=f"{label} (best model {y[best]:.3g})")
    axes.plot(x[best], y[best], "o", color=color, markerfacecolor="none")
