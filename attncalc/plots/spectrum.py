"""Vibrational spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from attncalc.plots.style import BLUE, ORANGE, headline, tidy


def spectrum_summary(
    wavenumbers: ArrayLike,
    vdos: ArrayLike,
    infrared: ArrayLike | None = None,
    *,
    highest: float,
    peaks: Sequence[Sequence[tuple[float, float]]] = (),
    title: str = "",
) -> Figure:
    """Draw the vibrational density of states and, below it, the infrared spectrum.

    Args:
        wavenumbers: [n] 1/cm.
        vdos: [n] degrees of freedom per 1/cm.
        infrared: [n] km/mol per 1/cm.
        highest: 1/cm, right end of the axis.
        peaks: for each of the two spectra, wavenumber and height of peaks to label.
        title: title above the picture.
    """
    wavenumbers = np.asarray(wavenumbers, dtype=float)
    curves = [("density of states, cm", BLUE, vdos)]
    if infrared is not None:
        curves.append(("infrared absorption, km cm/mol", ORANGE, infrared))
    figure = Figure(figsize=(10, 1.2 + 3.2 * len(curves)), dpi=110, layout="constrained")
    rows = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    shown = wavenumbers <= highest
    for k, (axes, (label, color, values)) in enumerate(zip(rows, curves, strict=True)):
        heights = np.asarray(values, dtype=float)[shown]
        axes.plot(wavenumbers[shown], heights, color=color, linewidth=1.1)
        axes.fill_between(wavenumbers[shown], heights, color=color, alpha=0.2, linewidth=0)
        axes.set_ylabel(label)
        axes.set_xlim(0, highest)
        axes.set_ylim(0, 1.2 * max(heights.max(initial=0.0), 1e-300))
        _mark(axes, peaks[k] if k < len(peaks) else ())
        tidy(axes)
    rows[-1].set_xlabel("wavenumber, 1/cm")
    headline(figure, title)
    return figure


def _mark(axes: Axes, peaks: Sequence[tuple[float, float]]) -> None:
    for wavenumber, height in peaks:
        axes.annotate(
            f"{wavenumber:.0f}",
            (wavenumber, height),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize="x-small",
        )
