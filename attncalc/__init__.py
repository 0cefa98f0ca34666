"""attncalc: move atoms with an equivariant attention network.

`AttnCalculator` is the ASE calculator; it is built on `load`, `save`, `Potential` and `evaluate`.
The sub-packages `data` and `train` make new models, and `md` runs molecular dynamics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncalc.late_import import late_names

if TYPE_CHECKING:
    from attncalc.calculator import AttnCalculator
    from attncalc.evaluator import Evaluator
    from attncalc.model_file import load, save
    from attncalc.potential import Committee, Potential, evaluate
    from attncalc.result import Result
    from attncalc.structures import evaluate_many
    from attncalc.system import System

__version__ = "0.2.0"

__all__ = [
    "AttnCalculator",
    "Committee",
    "Evaluator",
    "Potential",
    "Result",
    "System",
    "evaluate",
    "evaluate_many",
    "load",
    "save",
]

_MODULES = {
    "AttnCalculator": "calculator",
    **dict.fromkeys(("load", "save"), "model_file"),
    **dict.fromkeys(("Committee", "Potential", "evaluate"), "potential"),
    "Result": "result",
    "evaluate_many": "structures",
    "Evaluator": "evaluator",
    "System": "system",
}

# ASE imports this package at every start, for the format plug-in, and must not wait for torch
__getattr__, __dir__ = late_names(__name__, _MODULES)
