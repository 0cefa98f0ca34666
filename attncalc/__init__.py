"""attncalc: move atoms with an equivariant attention network.

`AttnCalculator` for ASE; `load`, `save`, `Potential` and `evaluate` below it; `data`, `train` and
`md` (sub-packages) to make models of one's own and to move atoms by them.
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
    """A public name, imported when it is first asked for.

    ASE imports this package whenever it starts, for the format plug-in, and must not wait for
    torch.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
