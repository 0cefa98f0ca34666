"""Training on your own data: from a recipe to a model file with its card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncalc.late_import import late_names
from attncalc.train.plain_yaml import HOW_TO_INSTALL

if TYPE_CHECKING:
    from attncalc.train.processes import connect
    from attncalc.train.recipe import Recipe
    from attncalc.train.training import Training, fit, read_run, run

__all__ = ["Recipe", "Training", "connect", "fit", "read_run", "run"]

_MODULES = {
    **dict.fromkeys(("Training", "fit", "read_run", "run"), "training"),
    "connect": "processes",
    "Recipe": "recipe",
}

# Lightning takes seconds to import, and not all modules of this package need it
__getattr__, __dir__ = late_names(__name__, _MODULES, HOW_TO_INSTALL)
