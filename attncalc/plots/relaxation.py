"""Summary of relaxations: energy and largest force against the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from attncalc.novelty.messages import OUTSIDE_TEXT
from attncalc.plots.style import BLUE, SERIES, headline, legend_above, logarithmic, tidy

# more curves cannot be distinguished: they have one colour, fainter the more there are
FEW = 5
_CONVERGED = ("NOT converged", "converged")


def relax_summary(
    courses: Sequence[ArrayLike],
    *,
    fmax: float,
    title: str = "",
    outside: Sequence[bool] | None = None,
) -> Figure:
    """Draw energy relative to the last one (left) and largest force with its goal (right).

    The curve of a structure ends in a dot if it has converged, else in a cross.

    Args:
        courses: for every structure [n_steps + 1, 2]: energy [eV] and largest force [eV/Å], the
            start first.
        fmax: eV/Å, the goal.
        title: title above the picture.
        outside: True for structures that end outside the training data of the model, which the
            title then reports; None if there are none.
    """
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    energy, force = figure.subplots(1, 2)
    n = len(courses)
    n_converged = 0
    low, high = fmax, fmax
    for k, course in enumerate(courses):
        energies, forces = np.asarray(course, dtype=float).T
        steps = np.arange(len(energies))
        converged = bool(forces[-1] <= fmax)
        n_converged += converged
        color = SERIES[k] if n <= FEW else BLUE
        line = {"color": color, "linewidth": 1.6, "alpha": 1.0 if n <= FEW else (FEW / n) ** 0.5}
        end = {"color": color, "marker": "o" if converged else "X", "markersize": 7}
        label = f"{k if n > 1 else 'last'}: {energies[-1]:.4f} eV"
        change = 1000 * (energies - energies[-1])
        energy.plot(steps, change, **line)
        energy.plot(steps[-1:], change[-1:], **end, label=label if n <= FEW else None)
        # forces that vanish by symmetry cannot be drawn on a logarithmic axis
        shown = np.maximum(forces, fmax / 100)
        force.plot(steps, shown, **line)
        force.plot(steps[-1:], shown[-1:], **end)
        low, high = min(low, shown.min()), max(high, shown.max())
    force.axhline(fmax, color="black", linewidth=1.2, linestyle="--", label=f"goal {fmax:g} eV/Å")
    energy.set_ylabel("energy above the last, meV")
    # linear below 1 meV, so that the last energy, zero, can be drawn
    energy.set_yscale("symlog", linthresh=1)
    energy.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    force.set_ylabel("largest force, eV/Å")
    force.set_yscale("log")
    force.set_ylim(low / 1.3, high * 1.3)
    logarithmic(force.yaxis, low, high)
    for axes in (energy, force):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(left=0)
        tidy(axes)
        legend_above(axes, columns=2)
    told = f"{n_converged} of {n} converged" if n > 1 else _CONVERGED[n_converged]
    if n_outside := sum(outside or ()):
        told = OUTSIDE_TEXT if n == 1 else f"{n_outside} of {n} {OUTSIDE_TEXT}; {told}"
    headline(figure, f"{title}: {told}" if title else told)
    return figure
