"""Pictures: functions from arrays to a matplotlib `Figure`, which the caller saves or shows.

They do not use pyplot, so windows, backend and style of the process do not change. Commands
import this package when they draw: matplotlib takes most of a second to import.
"""

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
