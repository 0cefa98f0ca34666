"""What ASE is told at its start: there is a format H5MD, and a calculator attncalc.

The entry point `ase.ioformats` in setup.cfg names `h5md`; its name there, attnh5md, makes ASE call
`read_attnh5md`. For calculators ASE has a table and no entry point: it is filled on this occasion,
which is the import of `ase.io`.
"""

from __future__ import annotations

from typing import Any

from ase.calculators.calculator import external_calculators, register_calculator_class
from ase.utils.plugins import ExternalIOFormat

h5md = ExternalIOFormat(
    desc="H5MD trajectory",
    code="+B",  # many frames, from a file that is open for binary reading
    module="attncalc.plugins.h5md_io",
    ext="h5md",
)


class LateCalculator:
    """`attncalc.AttnCalculator`, imported when one is made: ASE's start must not wait for torch.

    Attributes:
        nolabel: tells `ase run` to give no label, which is for calculators with files.
    """

    nolabel = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an `AttnCalculator` of these arguments."""
        from attncalc.calculator import AttnCalculator

        return AttnCalculator(*args, **kwargs)


if "attncalc" not in external_calculators:
    register_calculator_class("attncalc", LateCalculator)
