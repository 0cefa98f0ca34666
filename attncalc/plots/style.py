"""Common style of all pictures: colours, the look of axes, curves over noise."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

# distinct for colour-blind readers too (Okabe and Ito), on white and on black
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
PURPLE, SKY, AMBER = "#CC79A7", "#56B4E9", "#E69F00"
# a medium blue for pixels, whose colour cannot change with the page
CLOUD = "#1F86C4"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, GREY)


def tidy(axes: Axes) -> None:
    """Draw a faint grid behind the data, and remove the lines around them."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def headline(figure: Figure, text: str) -> None:
    """Set the title of the whole picture as literal text, without formulas.

    Dollar signs and invalid characters, which file names may have, cause no errors.
    """
    text = text.encode(errors="replace").decode()
    figure.suptitle(text, fontweight="bold", parse_math=False)


def legend_above(axes: Axes, *, columns: int = 2) -> None:
    """Put the legend above the axes, where it hides nothing; no legend if there are no labels."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize="small",
            borderaxespad=0.2,
            columnspacing=1.2,
            handlelength=1.4,
        )


def logarithmic(axis: Axis, low: float, high: float) -> None:
    """Set ticks with plain numbers on a logarithmic axis, as many as fit between its ends."""
    narrow = high < 300 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def faint_to_full(color: str) -> LinearSegmentedColormap:
    """Return a colour map that shows density as opacity, readable on light and dark pages."""
    red, green, blue = to_rgb(color)
    return LinearSegmentedColormap.from_list(
        color, [(red, green, blue, 0.22), (red, green, blue, 1.0)]
    )


def running_mean(values: ArrayLike, width: int) -> NDArray[np.float64]:
    """Return the running mean [n] over `width` neighbours, over fewer at the ends."""
    values = np.asarray(values, dtype=float)
    half = max(width, 1) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    k = np.arange(len(values))
    low, high = np.maximum(k - half, 0), np.minimum(k + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
