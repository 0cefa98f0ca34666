"""Pictures: functions from arrays to a matplotlib `Figure`, which the caller saves or shows.

Nothing here touches pyplot, so no window, backend or style of the process changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.visualize.plot import plot_atoms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

# told apart by colour-blind readers too (Okabe and Ito)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"


def learning_curve(
    epochs: ArrayLike,
    *,
    train_loss: ArrayLike,
    validation_loss: ArrayLike,
    energy_mae: ArrayLike,
    force_mae: ArrayLike,
    wall_time: float,
    title: str = "",
) -> Figure:
    """Losses (left) and errors on the validation set (right) of a training run.

    The circle is the epoch with the lowest validation loss, whose model is kept.

    Args:
        epochs: [n], counted from 1.
        train_loss: [n], mean over the epoch's steps.
        validation_loss: [n], at the epoch's end, of the averaged weights.
        energy_mae: [n] meV per structure.
        force_mae: [n] meV/Å.
        wall_time: s in all.
        title: above the picture.
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
    errors.set_ylabel("mean absolute error, validation")
    for axes in (losses, errors):
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.grid(which="both", alpha=0.2)
        axes.legend(frameon=False)
        axes.set_xlim(left=0)
    unit, size = ("h", 3600) if wall_time >= 7200 else ("min", 60)
    so_far = f"{len(epochs)} epochs in {wall_time / size:.1f} {unit}"
    figure.suptitle(f"{title}: {so_far}" if title else so_far)
    return figure


def _with_best(
    axes: Axes, x: ArrayLike, y: ArrayLike, best: int, *, color: str, label: str
) -> None:
    """A curve with a circle where the best model is, and its value in the legend."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    axes.plot(x, y, color=color, linewidth=1.2, label=f"{label} (best model {y[best]:.3g})")
    axes.plot(x[best], y[best], "o", color=color, markerfacecolor="none")


def md_summary(
    rows: Sequence[Mapping[str, float]], frames: Sequence[Atoms], *, title: str = ""
) -> Figure:
    """Last frame, energies, temperature and bond lengths of a molecular dynamics run.

    Args:
        rows: the log: time_fs, temperature_K, potential_eV, total_eV of every frame.
        frames: the trajectory.
        title: above the picture.
    """
    time = np.array([row["time_fs"] for row in rows]) / 1000
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    figure = Figure(figsize=(15, 3.8), dpi=110, layout="constrained")
    last, energy, temperature, bonds = figure.subplots(1, 4)
    plot_atoms(_broadside(frames[-1]), last)
    last.set_axis_off()
    last.set_title("last frame")
    zero = column["potential_eV"].min()
    energy.plot(time, column["total_eV"] - zero, color=GREY, linewidth=1, label="total")
    energy.plot(time, column["potential_eV"] - zero, color=BLUE, linewidth=1, label="potential")
    energy.set_ylabel("energy above the lowest potential, eV")
    mean = column["temperature_K"].mean()
    temperature.plot(time, column["temperature_K"], color=ORANGE, linewidth=1)
    temperature.axhline(mean, color="black", linewidth=1, label=f"mean {mean:.0f} K")
    temperature.set_ylabel("temperature, K")
    for axes in (energy, temperature):
        axes.set_xlabel("time, ps")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
    for color, (pair, lengths) in zip(
        (BLUE, ORANGE, GREEN, GREY, "black"), bond_lengths(frames).items(), strict=False
    ):
        bins = int(np.clip(np.sqrt(len(lengths)), 10, 80))
        bonds.hist(
            lengths, bins, density=True, histtype="stepfilled", alpha=0.5, color=color, label=pair
        )
    bonds.set_xlabel("bond length, Å")
    bonds.set_ylabel("density, 1/Å")
    if bonds.patches:
        bonds.legend(frameon=False)
    figure.suptitle(title)
    return figure


def _broadside(atoms: Atoms) -> Atoms:
    """A molecule turned so that its thinnest direction points at the reader; a crystal as it is."""
    if atoms.pbc.any():
        return atoms
    centred = atoms.positions - atoms.positions.mean(axis=0)
    axes = np.linalg.svd(centred)[2]  # longest extent first
    return Atoms(numbers=atoms.numbers, positions=centred @ axes.T)


def bond_lengths(frames: Sequence[Atoms]) -> dict[str, np.ndarray]:
    """Lengths [Å] over all frames of the bonds of the first frame, by pair of elements.

    A bond is a pair closer than 1.2 times the sum of its covalent radii, minimum image.
    """
    first = frames[0]
    radii = covalent_radii[first.numbers]
    distances = first.get_all_distances(mic=bool(first.pbc.any()))
    bonded = np.triu(distances < 1.2 * (radii[:, None] + radii), k=1)
    lengths: dict[str, list[np.ndarray]] = {}
    for i, j in np.argwhere(bonded):
        # as chemists say them: C-H and C-O, but O-H
        a, b = sorted((first.numbers[i], first.numbers[j]), key=lambda z: (z != 6, -z))
        name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
        mic = bool(first.pbc.any())
        lengths.setdefault(name, []).append(
            np.array([frame.get_distance(i, j, mic=mic) for frame in frames])
        )
    return {name: np.concatenate(values) for name, values in sorted(lengths.items())}
