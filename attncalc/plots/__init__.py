"""Pictures: functions from arrays to a matplotlib `Figure`, which the caller saves or shows.

They do not use pyplot, so windows, backend and style of the process do not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncalc.late_import import late_names

if TYPE_CHECKING:
    from attncalc.plots.dynamics import bond_lengths, md_summary, radial_distribution
    from attncalc.plots.errors import (
        along_the_file,
        calibration,
        error_against_size,
        error_along,
        error_histogram,
        force_error_gallery,
        parity,
        share_below,
    )
    from attncalc.plots.relaxation import relax_summary
    from attncalc.plots.spectrum import spectrum_summary
    from attncalc.plots.structures import draw_structure
    from attncalc.plots.training import learning_curve

__all__ = [
    "along_the_file",
    "bond_lengths",
    "calibration",
    "draw_structure",
    "error_against_size",
    "error_along",
    "error_histogram",
    "force_error_gallery",
    "learning_curve",
    "md_summary",
    "parity",
    "radial_distribution",
    "relax_summary",
    "share_below",
    "spectrum_summary",
]

_MODULES = {
    **dict.fromkeys(("bond_lengths", "md_summary", "radial_distribution"), "dynamics"),
    **dict.fromkeys(("along_the_file", "calibration", "error_against_size"), "errors"),
    **dict.fromkeys(("error_along", "error_histogram", "force_error_gallery"), "errors"),
    **dict.fromkeys(("parity", "share_below"), "errors"),
    "relax_summary": "relaxation",
    "spectrum_summary": "spectrum",
    "draw_structure": "structures",
    "learning_curve": "training",
}

# matplotlib takes most of a second to import, and commands draw when all else is done
__getattr__, __dir__ = late_names(__name__, _MODULES)
