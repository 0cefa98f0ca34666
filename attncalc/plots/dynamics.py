"""Summary picture of a molecular dynamics run: energies, temperature, structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from attncalc.names import pair_name
from attncalc.plots.structures import bonds, draw_structure
from attncalc.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SERIES,
    headline,
    legend_above,
    running_mean,
    tidy,
)

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, float]]

# Å: g(r) is drawn up to half the cell, within these limits; images fill a tiny cell
LONGEST, SHORTEST = 8.0, 5.0
# most atoms times frames that are counted for g(r): a second of work
MOST_COUNTED = 20_000
# bond lengths in a picture
MOST_LENGTHS = 400_000
# top of the g(r) axis: higher peaks are bonds, and would hide the rest
TOP = 8.0
# Å: narrowest histogram of bond lengths; those of fixed atoms are all equal
NARROWEST = 0.05


def md_summary(
    rows: Rows,
    frames: Sequence[Atoms],
    *,
    title: str = "",
    ensemble: str = "nvt",
    target: float | None = None,
    n_dof: int | None = None,
) -> Figure:
    """Draw last frame, energies, temperature, and bond lengths or radial distribution functions.

    g(r) is drawn for a structure that is periodic in all directions, bond lengths for any other.
    "npt" adds the volume, "nve" the change of the total energy with its drift. For a batch of
    systems of the same atoms, the mean is drawn, with a band of one standard deviation.

    Args:
        rows: the log: time_fs, temperature_K, potential_eV, total_eV, volume_A3 of every frame, and
            `system` for a batch.
        frames: the trajectory, or some frames of it, in order; for a batch, those of several
            systems.
        title: title above the picture.
        ensemble: "nve", "nvt" or "npt".
        target: temperature of the thermostat, K; None if there is none.
        n_dof: degrees of freedom of the run; with `target`, the fluctuations of the canonical
            ensemble are drawn too.
    """
    n_systems = len({row.get("system", 0) for row in rows})
    column = {  # [n_systems, n_times]
        name: np.array([row[name] for row in rows]).reshape(-1, n_systems).T for name in rows[0]
    }
    time = column["time_fs"][0] / 1000
    extra = {"npt": "volume", "nve": "drift"}.get(ensemble)
    figure = Figure(figsize=(14.0 if extra else 11.5, 7.6), dpi=110, layout="constrained")
    above, below = ["frame", "energy"], ["structure", "heat"]
    if extra:
        above, below = [*above, extra], [*below, "heat"]
    mosaic: list[Any] = [above, below]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[1, 1.45, 1.1][: len(above)])
    draw_structure(axes["frame"], frames[-1])
    axes["frame"].set_title(f"last frame, {time[-1]:.4g} ps", fontsize="medium")
    _energy(axes["energy"], time, column)
    _temperature(axes["heat"], time, column["temperature_K"], target=target, n_dof=n_dof)
    _structure(axes["structure"], frames)
    if extra == "volume":
        _volume(axes["volume"], time, column["volume_A3"] / len(frames[-1]))
    elif extra == "drift":
        _drift(axes["drift"], time, column["total_eV"], len(frames[-1]))
    for name in ("energy", "heat", "volume", "drift"):
        if name in axes:
            axes[name].set_xlabel("time, ps")
            axes[name].set_xlim(0, max(time[-1], 1e-6))
            tidy(axes[name])
    headline(figure, title)
    return figure


def _energy(axes: Axes, time: Floats, column: Mapping[str, Floats]) -> None:
    zero = column["potential_eV"].min(axis=1, keepdims=True)
    _course(axes, time, column["total_eV"] - zero, color=GREY, label="total")
    _course(axes, time, column["potential_eV"] - zero, color=BLUE, label="potential")
    axes.set_ylabel("energy above the lowest potential, eV")
    axes.set_ylim(bottom=0)
    legend_above(axes, columns=4)


def _course(
    axes: Axes, time: Floats, values: Floats, *, color: str, label: str = "", **more: Any
) -> None:
    """Draw the mean of values [n_systems, n_times], and the spread of several systems."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    axes.plot(time, mean, color=color, **{"linewidth": 0.9, "label": label, **more})
    if len(values) > 1:
        axes.fill_between(time, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)


def _temperature(
    axes: Axes, time: Floats, temperature: Floats, *, target: float | None, n_dof: int | None
) -> None:
    """Draw temperature and running mean against time, and a histogram at the right edge."""
    half = len(time) // 2
    later = temperature[:, half:].ravel()
    mean = later.mean()
    _course(axes, time, temperature, color=ORANGE, linewidth=0.7, alpha=0.45)
    axes.plot(
        time,
        running_mean(temperature.mean(axis=0), max(1, len(time) // 20)),
        color=ORANGE,
        linewidth=1.8,
        label=f"running mean (second half {mean:.0f} K)",
    )
    axes.set_ylabel("temperature, K")
    if target is not None:
        axes.axhline(
            target, color="black", linewidth=1, linestyle="--", label=f"target {target:g} K"
        )
    low, high = temperature.min(), temperature.max()
    if target is not None and n_dof is not None:
        wide = target * np.sqrt(2 / n_dof)
        low, high = min(low, target - 2.5 * wide), max(high, target + 2.5 * wide)
        label = f"canonical ±{wide:.0f} K"
        axes.axhspan(target - wide, target + wide, color=GREY, alpha=0.18, linewidth=0, label=label)
    room = 0.05 * (high - low) or 1.0
    axes.set_ylim(max(0.0, low - room), high + room)
    legend_above(axes, columns=4)
    if half < 10:
        return
    side = axes.inset_axes((1.01, 0, 0.11, 1), sharey=axes)
    bins = int(np.clip(np.sqrt(len(later)), 8, 40))
    side.hist(
        later,
        bins,
        range=_range(later, 1.0),
        density=True,
        orientation="horizontal",
        color=ORANGE,
        alpha=0.45,
    )
    if target is not None and n_dof is not None:
        from scipy.stats import gamma  # takes half a second to import

        at = np.linspace(max(low, 1e-3), high, 200)
        # kinetic energy in units of kT has a gamma distribution with shape n_dof / 2
        side.plot(gamma.pdf(at, n_dof / 2, scale=2 * target / n_dof), at, color="black", lw=1)
    side.set_axis_off()


def _structure(axes: Axes, frames: Sequence[Atoms]) -> None:
    if frames[0].pbc.all() and frames[0].cell.rank == 3:
        for color, (pair, (r, g)) in zip(SERIES, radial_distribution(frames).items(), strict=False):
            axes.plot(r, g, color=color, linewidth=1.4, label=pair)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlabel("distance r, Å")
        axes.set_ylabel("g(r), second half of the run")
        axes.set_xlim(0, r[-1])
        axes.set_ylim(0, min(TOP, axes.get_ylim()[1]))
    else:
        for color, (pair, lengths) in zip(SERIES, bond_lengths(frames).items(), strict=False):
            bins = int(np.clip(np.sqrt(len(lengths)), 10, 80))
            label = f"{pair} {lengths.mean():.3f} Å"
            axes.hist(
                lengths,
                bins,
                range=_range(lengths, NARROWEST),
                density=True,
                histtype="stepfilled",
                alpha=0.55,
                color=color,
                label=label,
            )
        axes.set_xlabel("bond length, Å")
        axes.set_ylabel("density, 1/Å")
    tidy(axes)
    legend_above(axes, columns=3)


def _range(values: Floats, narrowest: float) -> tuple[float, float]:
    """Return the range of a histogram, which numpy cannot divide if all values are nearly equal."""
    low, high = float(values.min()), float(values.max())
    more = max(narrowest - (high - low), 0.0) / 2
    return low - more, high + more


def _volume(axes: Axes, time: Floats, volume: Floats) -> None:
    _course(axes, time, volume, color=GREEN)
    mean = volume[:, len(time) // 2 :].mean()
    label = f"mean of the second half {mean:.4g} Å³"
    axes.axhline(mean, color="black", linewidth=1, linestyle="--", label=label)
    axes.set_ylabel("volume per atom, Å³")
    axes.ticklabel_format(useOffset=False)
    legend_above(axes, columns=4)


def _drift(axes: Axes, time: Floats, total: Floats, n_atoms: int) -> None:
    change = 1000 * (total - total[:, :1]) / n_atoms
    _course(axes, time, change, color=GREY)
    if len(time) > 2:
        slope, start = np.polyfit(time, change.mean(axis=0), 1)
        label = f"drift {slope:+.2g} meV/atom/ps"
        axes.plot(time, start + slope * time, color="black", lw=1, linestyle="--", label=label)
        legend_above(axes, columns=4)
    axes.set_ylabel("change of the total energy, meV/atom")


def bond_lengths(frames: Sequence[Atoms]) -> dict[str, Floats]:
    """Return lengths [Å] in all frames of the bonds of the first frame, by pair of elements.

    A bond is a pair closer than 1.3 times the sum of its covalent radii, by minimum image. Of many
    bonds in many frames, evenly spaced frames are taken.
    """
    first = frames[0]
    i, j = bonds(first).T
    numbers = zip(first.numbers[i], first.numbers[j], strict=True)
    names = np.array([pair_name(*pair) for pair in numbers])
    counted = frames[:: -(-len(frames) * len(i) // MOST_LENGTHS) or 1]
    lengths = np.array([_lengths(frame, i, j) for frame in counted])  # [n_frames, n_bonds]
    return {str(name): lengths[:, names == name].T.ravel() for name in np.unique(names)}


def _lengths(frame: Atoms, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
    """Return distances [n_pairs] Å of atoms i and j, by minimum image."""
    vectors = frame.positions[j] - frame.positions[i]
    if frame.pbc.any():
        return find_mic(vectors, frame.cell, frame.pbc)[1]
    return np.linalg.norm(vectors, axis=1)


def radial_distribution(
    frames: Sequence[Atoms], *, r_max: float | None = None, n_bins: int = 160
) -> dict[str, tuple[Floats, Floats]]:
    """Return g(r) of every pair of elements, averaged over frames of the second half.

    g(r) is the density of the second element at distance r from the first, over its mean density.
    Periodic images are counted, so it is right at any r.

    Args:
        frames: frames of the same atoms, periodic in all directions.
        r_max: Å; None takes half the cell, but 5 Å at least and 8 Å at most.
        n_bins: number of bins from 0 to `r_max`.

    Returns:
        name of the pair -> r [n_bins] Å, the centres of the bins, and g [n_bins].
    """
    later = frames[len(frames) // 2 :]
    stride = -(-len(later) * len(later[0]) // MOST_COUNTED)
    counted = later[::stride]
    if r_max is None:
        # the height of the cell over a face is one over the length of its reciprocal vector
        longest = max(np.linalg.norm(f.cell.reciprocal(), axis=1).max() for f in counted)
        r_max = float(np.clip(0.5 / longest, SHORTEST, LONGEST))
    numbers = counted[0].numbers
    elements = np.unique(numbers)
    edges = np.linspace(0, r_max, n_bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    sums: dict[str, Floats] = {}
    for frame in counted:
        i, j, d = neighbour_list("ijd", frame, r_max)
        for k, a in enumerate(elements):
            for b in elements[k:]:
                here = d[(numbers[i] == a) & (numbers[j] == b)]
                n_a, n_b = (numbers == a).sum(), (numbers == b).sum()
                g = np.histogram(here, edges)[0] * frame.get_volume() / (n_a * n_b * shells)
                name = pair_name(a, b)
                sums[name] = sums.get(name, 0) + g
    middles = (edges[1:] + edges[:-1]) / 2
    return {name: (middles, total / len(counted)) for name, total in sorted(sums.items())}
