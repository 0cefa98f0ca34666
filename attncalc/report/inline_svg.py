"""Conversion of a matplotlib figure to SVG inside a page, in the page's colours."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from attncalc.plots.style import BLUE

# dots per inch of parts that are drawn as pixels
DPI = 200
# metadata that matplotlib would write, which have addresses in them
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, *, name: str, description: str) -> Markup:
    """Convert a figure to one `<svg>` element.

    Black becomes the colour of the text around it, and blue the page's `--blue`, so that the
    picture is readable on dark pages. Text remains text. Addresses of namespaces are removed,
    because an SVG within HTML does not need them.

    Args:
        figure: figure with black lines and text on a transparent background.
        name: letters, unique among the pictures of a page.
        description: alternative text for screen readers.
    """
    content = io.StringIO()
    # with a fixed salt, the same picture gives the same text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, dpi=DPI, metadata=NO_METADATA)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    (box,) = re.findall(r'viewBox="([\d. ]+)"', head)
    # ids are counted from 1 in every picture, so the name makes them unique
    rest = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", rest)
    rest = rest.replace("#000000", "currentColor").replace(BLUE.lower(), "var(--blue)")
    label = escape(description)
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{label}">{rest.strip()}')
