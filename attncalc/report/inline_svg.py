"""Conversion of a matplotlib figure to SVG inside a page, in the page's colours."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from attncalc.plots.style import BLUE

# dots per inch of what is drawn as pixels
DPI = 200
# what matplotlib would say about itself, with addresses in it
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, *, name: str, description: str) -> Markup:
    """Return one `<svg>` element.

    Black becomes the colour of the text around it, and blue the page's `--blue`, so that the
    picture can be read on dark pages; text stays text. No address is left in it: an SVG within
    HTML needs no namespaces.

    Args:
        figure: black lines and text on no background.
        name: of letters, unlike that of any other picture of the page.
        description: for those who cannot see it.
    """
    content = io.StringIO()
    # the salt makes the same picture the same text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, dpi=DPI, metadata=NO_METADATA)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    (box,) = re.findall(r'viewBox="([\d. ]+)"', head)
    # ids are counted from 1 in every picture
    rest = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", rest)
    rest = rest.replace("#000000", "currentColor").replace(BLUE.lower(), "var(--blue)")
    label = escape(description)
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{label}">{rest.strip()}')
