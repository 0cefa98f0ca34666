"""Pictures of one pixel, for tests of commands and trainings that draw and never look."""

from __future__ import annotations

import base64
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

DRAW = Figure.savefig
ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def save(figure: Figure, target: str | PathLike[str] | BinaryIO, **options: Any) -> None:
    """PNG is one pixel; all else is drawn."""
    if options.get("format") != "png":
        DRAW(figure, target, **options)
    elif isinstance(target, str | PathLike):
        Path(target).write_bytes(ONE_PIXEL)
    else:
        target.write(ONE_PIXEL)


def draw_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Figure, "savefig", save)


def draw_none_in_pages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("attncalc.report.pictures.inline_svg", lambda *_, **__: Markup("<svg></svg>"))


def draw_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Figure, "savefig", DRAW)
