"""attncalc: move atoms with an equivariant attention network.

`AttnCalculator` is the ASE calculator; it is built on `load`, `save`, `Potential` and `evaluate`.
The sub-packages `data` and `train` make new models, and `md` runs molecular dynamics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOME = {
    "AttnCalculator": "calculator",
    **dict.fromkeys(("load", "save"), "model_file"),
    **dict.fromkeys(("Committee", "Potential", "evaluate"), "potential"),
    "Result": "result",
    "evaluate_many": "structures",
    "Evaluator": "evaluator",
    "System": "system",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    ASE imports this package at every start, for the format plug-in, and must not wait for torch.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
