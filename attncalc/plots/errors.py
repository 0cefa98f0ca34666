"""Pictures of predictions and errors. Dense clouds are drawn as pixels, the rest as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from ase import Atoms
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from attncalc.plots.structures import draw_structure
from attncalc.plots.style import (
    BLUE,
    CLOUD,
    GREEN,
    GREY,
    ORANGE,
    SERIES,
    faint_to_full,
    legend_above,
    logarithmic,
    tidy,
)

Floats = NDArray[np.float64]
Scale = Literal["linear", "log"]

SIZE, WIDE = (4.7, 4.3), (12.0, 2.8)
# above this number of points, their density is drawn instead
MOST_POINTS = 1500
# fewest points of a cloud
FEWEST_POINTS = 2
# most atoms whose symbols can be read
MOST_SYMBOLS = 40


def parity(
    predicted: ArrayLike,
    labels: ArrayLike,
    *,
    quantity: str,
    unit: str,
    error_unit: tuple[float, str] | None = None,
) -> Figure:
    """Draw prediction against label, with the line on which both agree.

    Args:
        predicted: [...] in `unit`.
        labels: array of the same shape.
        quantity: name of the quantity, for the axes.
        unit: unit, for the axes.
        error_unit: factor and unit of MAE and RMSE, e.g. (1e3, "meV"); None for `unit`.
    """
    x, y = np.ravel(labels), np.ravel(predicted)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.04 * (high - low) or 0.5
    limits = (low - room, high + room)
    axes.plot(limits, limits, color=GREY, linewidth=1, linestyle="--", zorder=1)
    _cloud(axes, x, y, extent=(*limits, *limits))
    scale, told = error_unit or (1.0, unit)
    mae, rmse = scale * np.abs(y - x).mean(), scale * np.sqrt(((y - x) ** 2).mean())
    axes.set_title(f"MAE {mae:.3g}, RMSE {rmse:.3g} {told}", fontsize="small", loc="left")
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.set_xlabel(f"label: {quantity}, {unit}")
    axes.set_ylabel(f"model: {quantity}, {unit}")
    tidy(axes)
    return figure


def error_histogram(errors: ArrayLike, *, quantity: str, unit: str) -> Figure:
    """Draw a histogram of the errors, and the normal distribution of the same width.

    Args:
        errors: [...] in `unit`, with sign.
        quantity: name of the quantity, for the axis.
        unit: unit, for the axis.
    """
    error = np.ravel(errors)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    bins = int(np.clip(np.sqrt(error.size), 8, 120))
    # a single outlier must not put all others into one bin
    widest = min(np.abs(error).max(), 5 * np.quantile(np.abs(error), 0.99)) or 1.0
    counts, edges = np.histogram(error, bins, range=(-widest, widest))
    beyond = int((np.abs(error) > widest).sum())
    label = "model less label" + (f" ({beyond} beyond the edges)" if beyond else "")
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.6, label=label)
    mean, deviation = error.mean(), error.std()
    if deviation > 0 and error.size >= 20:
        at = np.linspace(-widest, widest, 400)
        scale = error.size * (edges[1] - edges[0]) / (deviation * np.sqrt(2 * np.pi))
        normal = scale * np.exp(-0.5 * ((at - mean) / deviation) ** 2)
        label = "normal, of the same width"
        axes.plot(at, normal, color=ORANGE, linewidth=1.4, label=label)
    if error.size > MOST_POINTS:  # the few structures in the tails are of interest
        axes.set_yscale("log")
        axes.set_ylim(0.7, 2 * counts.max())
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel(f"error of {quantity}, {unit}")
    axes.set_ylabel("count")
    legend_above(axes, columns=1)
    tidy(axes)
    return figure


def share_below(errors: Mapping[str, ArrayLike], *, quantity: str, unit: str) -> Figure:
    """Draw the share of the absolute errors below each value: a curve for each name.

    Args:
        errors: name -> [...] in `unit`.
        quantity: name of the quantity, for the axis.
        unit: unit, for the axis.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    shares = np.concatenate([np.linspace(0, 0.99, 300), 1 - np.geomspace(0.01, 1e-4, 60), [1.0]])
    for k, (name, values) in enumerate(errors.items()):
        size = np.abs(np.ravel(values))
        # the number of points does not depend on the size of the data
        at = np.quantile(size, shares)
        style = ("-", "--", ":")[(k // len(SERIES)) % 3]
        axes.plot(at, 100 * shares, color=SERIES[k % len(SERIES)], linestyle=style, label=name)
    if all(np.any(np.ravel(values)) for values in errors.values()):
        axes.set_xscale("log")
        everything = np.concatenate([np.abs(np.ravel(v)) for v in errors.values()])
        limits = max(np.quantile(everything, 0.01), everything.max() * 1e-6), everything.max()
        axes.set_xlim(limits)
        logarithmic(axes.xaxis, *limits)
    axes.set_ylim(0, 101)
    axes.set_xlabel(f"absolute error of {quantity}, {unit}")
    axes.set_ylabel("share with a smaller error, %")
    legend_above(axes, columns=4)
    tidy(axes)
    return figure


def error_against_size(size: ArrayLike, error: ArrayLike, *, quantity: str, unit: str) -> Figure:
    """Draw size of the error against size of the label, both logarithmic, with error quantiles.

    Args:
        size: [n] in `unit`, not negative.
        error: [n] in `unit`, not negative.
        quantity: name of the quantity, for the axes.
        unit: unit, for the axes.
    """
    names = f"label: {quantity}, {unit}", f"error of {quantity}, {unit}"
    figure, axes, x, y = _against(size, error, *names)
    if len(x):
        _quantile_curves(axes, x, y)
        ends = axes.get_xlim()
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="error = label")
    legend_above(axes, columns=3)
    return figure


def error_along(value: ArrayLike, error: ArrayLike, *, label: str, quantity: str) -> Figure:
    """Draw size of the error, logarithmic, against another number, with error quantiles.

    Args:
        value: [n], the other number.
        error: [n], not negative.
        label: name and unit of the other number, for the axis.
        quantity: name and unit of the quantity that the error is of.
    """
    figure, axes, x, y = _against(value, error, label, f"error of {quantity}", x_scale="linear")
    if len(x):
        _quantile_curves(axes, x, y)
    legend_above(axes, columns=2)
    return figure


def calibration(
    spread: ArrayLike,
    error: ArrayLike,
    curve: ArrayLike,
    *,
    factor: float,
    quantity: str,
    unit: str,
) -> Figure:
    """Draw errors of a committee against its spread, both logarithmic, with the calibration curve.

    Args:
        spread: [n] in `unit`, not negative.
        error: [n] in `unit`, not negative.
        curve: [n_bins, 3]: root mean squares of spread and error in bins of the spread, and the
            uncertainty of the latter.
        factor: drawn as a line: error = factor * spread.
        quantity: name of the quantity, for the axes.
        unit: unit, for the axes.
    """
    names = f"spread of {quantity}, {unit}", f"error of {quantity}, {unit}"
    figure, axes, x, _ = _against(spread, error, *names, rare=0.005)
    if not len(x):
        return figure
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="error = spread")
    if factor > 0:  # not NaN either
        label = f"error = {factor:.2f} x spread"
        axes.plot(ends, factor * ends, color=GREEN, linewidth=1.2, linestyle="--", label=label)
    at, rmse, uncertain = np.reshape(curve, (-1, 3)).T
    axes.errorbar(
        at, rmse, uncertain, color=ORANGE, linewidth=1.6, marker="o", markersize=4, label="RMSE"
    )
    legend_above(axes, columns=3)
    return figure


def _against(
    values: ArrayLike,
    errors: ArrayLike,
    x_label: str,
    y_label: str,
    *,
    x_scale: Scale = "log",
    rare: float = 0.001,
) -> tuple[Figure, Axes, Floats, Floats]:
    """Draw errors, logarithmic, against values; return figure, axes, and values and errors drawn.

    Zeros cannot be drawn on a logarithmic axis, and a share `rare` of the smallest numbers is put
    at its edge. If fewer than two points remain, all are drawn on linear axes, and empty arrays
    are returned.
    """
    x, y = np.ravel(values), np.ravel(errors)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    tidy(axes)
    there = (y > 0) & ((x > 0) | (x_scale == "linear"))
    if there.sum() < FEWEST_POINTS:
        axes.plot(x, y, "o", color=BLUE, markersize=3)
        return figure, axes, x[:0], y[:0]
    x, y = x[there], y[there]
    y = np.maximum(y, np.quantile(y, rare))
    ends_y = y.min() / 1.2, y.max() * 1.3
    if x_scale == "log":
        x = np.maximum(x, np.quantile(x, rare))
        ends_x = x.min() / 1.1, x.max() * 1.1
    else:
        room = 0.02 * np.ptp(x) or 0.5
        ends_x = x.min() - room, x.max() + room
    axes.set_xscale(x_scale)
    axes.set_yscale("log")
    _cloud(axes, x, y, extent=(*ends_x, *ends_y), scales=(x_scale, "log"))
    if x_scale == "log":
        logarithmic(axes.xaxis, *ends_x)
    logarithmic(axes.yaxis, *ends_y)
    axes.set_xlim(ends_x)
    axes.set_ylim(ends_y)
    return figure, axes, x, y


def along_the_file(index: ArrayLike, errors: ArrayLike, *, quantity: str, unit: str) -> Figure:
    """Draw errors in the order of the file, which shows parts from different sources.

    Args:
        index: [n], indices of the structures in the file.
        errors: [n] in `unit`, one per structure.
        quantity: name of the quantity, for the axis.
        unit: unit, for the axis.
    """
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    x, y = np.ravel(index), np.ravel(errors)
    room_x, room_y = 0.02 * np.ptp(x) or 0.5, 0.05 * np.ptp(y) or 0.5
    extent = (x.min() - room_x, x.max() + room_x, y.min() - room_y, y.max() + room_y)
    _cloud(axes, x, y, extent=extent)
    if extent[2] < 0 < extent[3]:
        axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xlabel("index in the file")
    axes.set_ylabel(f"{quantity}, {unit}")
    tidy(axes)
    return figure


def force_error_gallery(
    structures: Sequence[Atoms], errors: Sequence[Floats], names: Sequence[str]
) -> Figure:
    """Draw structures with atoms coloured by the error of the force on them.

    Args:
        structures: at least one structure.
        errors: [n_atoms] eV/Å for each structure.
        names: title of each structure.
    """
    figure = Figure(figsize=(2.75 * len(structures) + 0.7, 2.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(structures)))
    scale = Normalize(0, max(float(error.max()) for error in errors) or 1.0)
    palette = colormaps["YlOrRd"]
    for axes, atoms, error, name in zip(panels, structures, errors, names, strict=True):
        colors = [palette(scale(e))[:3] for e in error]
        draw_structure(axes, atoms, colors=colors, symbols=len(atoms) <= MOST_SYMBOLS)
        axes.set_title(name, fontsize="medium")
    mappable = ScalarMappable(scale, palette)
    bar = figure.colorbar(mappable, ax=list(panels), shrink=0.8, pad=0.01, aspect=18)
    bar.set_label("error of the force, eV/Å")
    bar.outline.set_visible(False)
    return figure


def _quantile_curves(axes: Axes, x: Floats, y: Floats) -> None:
    """Draw median and 95 % quantile of y in bins of x with equal numbers of points."""
    bounds = np.unique(np.quantile(x, np.linspace(0, 1, int(np.clip(len(x) // 50, 2, 16)))))
    which = np.clip(np.digitize(x, bounds[1:-1]), 0, None)
    for share, style in ((0.5, "-"), (0.95, "--")):
        curve = [
            (np.median(x[which == k]), np.quantile(y[which == k], share)) for k in np.unique(which)
        ]
        label = "median" if share == 0.5 else f"{100 * share:.0f} % are below"
        axes.plot(*np.transpose(curve), color=ORANGE, linestyle=style, linewidth=1.6, label=label)


def _cloud(
    axes: Axes,
    x: Floats,
    y: Floats,
    *,
    extent: tuple[float, float, float, float],
    scales: tuple[Scale, Scale] = ("linear", "linear"),
) -> None:
    """Draw points or, if there are many, hexagons whose opacity shows the number of points."""
    if len(x) <= MOST_POINTS:
        alpha = 0.75 if len(x) < 300 else 0.4
        axes.plot(x, y, "o", color=CLOUD, markersize=3.5, alpha=alpha, markeredgewidth=0)
        axes.lines[-1].set_rasterized(len(x) > 300)
        return
    # for logarithmic axes hexbin expects exponents
    of_axes = (scales[0], scales[0], scales[1], scales[1])
    left, right, bottom, top = (
        float(np.log10(end)) if scale == "log" else end
        for end, scale in zip(extent, of_axes, strict=True)
    )
    axes.hexbin(
        x,
        y,
        gridsize=90,
        bins="log",
        mincnt=1,
        extent=(left, right, bottom, top),
        xscale=scales[0],
        yscale=scales[1],
        cmap=faint_to_full(CLOUD),
        linewidths=0.1,
        rasterized=True,
        zorder=2,
    )
