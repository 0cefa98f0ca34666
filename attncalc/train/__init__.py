"""Training on your own data: from a recipe to a model file with its card."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncalc.train.processes import connect
    from attncalc.train.recipe import Recipe
    from attncalc.train.training import Training, fit, read_run, run

__all__ = ["Recipe", "Training", "connect", "fit", "read_run", "run"]

_HOME = {
    **dict.fromkeys(("Training", "fit", "read_run", "run"), "training"),
    "connect": "processes",
    "Recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    Lightning takes seconds to import, and not all modules of this package need it.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ImportError as error:
        raise ImportError(f'{error}; training needs: pip install "attncalc[train]"') from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
