"""attncalc: move atoms with an equivariant attention network.

`AttnCalculator` for ASE; `load`, `save`, `Potential` and `evaluate` below it; `data` and `train`
(sub-packages) to make models of one's own.
"""

from attncalc.calculator import AttnCalculator
from attncalc.model_file import load, save
from attncalc.potential import Committee, Potential, Result, evaluate
from attncalc.system import System

__version__ = "0.1.0"

__all__ = [
    "AttnCalculator",
    "Committee",
    "Potential",
    "Result",
    "System",
    "evaluate",
    "load",
    "save",
]
