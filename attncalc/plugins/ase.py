"""Registration of the format H5MD and the calculator attncalc with ASE.

The entry point `ase.ioformats` in setup.cfg names `h5md`; its name there, attnh5md, makes ASE call
`read_attnh5md`. ASE has no entry point for calculators, only a table. The calculator is added to it
here, when `ase.io` is imported.
"""

from __future__ import annotations

from typing import Any

from ase.calculators.calculator import external_calculators, register_calculator_class
from ase.utils.plugins import ExternalIOFormat

h5md = ExternalIOFormat(
    desc="H5MD trajectory",
    code="+B",  # many frames, from a file that is open for binary reading
    module="attncalc.md.h5md_reader",
    ext="h5md",
)


class LateCalculator:
    """`attncalc.AttnCalculator`, imported when one is made, so that ASE starts without torch.

    Attributes:
        nolabel: tells `ase run` to pass no label; labels are for calculators with files.
    """

    nolabel = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an `AttnCalculator` with these arguments."""
        from attncalc.calculator import AttnCalculator

        return AttnCalculator(*args, **kwargs)


if "attncalc" not in external_calculators:
    register_calculator_class("attncalc", LateCalculator)
