"""Molecular dynamics: whole steps on the device of the model, or by ASE's integrators."""

from attncalc.md.bussi import Bussi
from attncalc.md.callback import Callback
from attncalc.md.cell_rescaling import CellRescaling
from attncalc.md.checkpoint import Checkpoint, Restart, load_checkpoint
from attncalc.md.h5md_reader import read_h5md
from attncalc.md.h5md_writer import H5MDWriter
from attncalc.md.langevin import Langevin
from attncalc.md.log import Log
from attncalc.md.log_file import SPREAD, LogSummary, read_log
from attncalc.md.relaxation import Relaxed, relax_batch
from attncalc.md.settings import ENSEMBLES, Settings
from attncalc.md.simulation import run
from attncalc.md.spectrum import Spectrum, spectrum_of
from attncalc.md.state import MDState
from attncalc.md.velocities import Thermometer
from attncalc.md.verlet import Verlet
from attncalc.md.with_ase import run_with_ase

__all__ = [
    "ENSEMBLES",
    "SPREAD",
    "Bussi",
    "Callback",
    "CellRescaling",
    "Checkpoint",
    "H5MDWriter",
    "Langevin",
    "Log",
    "LogSummary",
    "MDState",
    "Relaxed",
    "Restart",
    "Settings",
    "Spectrum",
    "Thermometer",
    "Verlet",
    "load_checkpoint",
    "read_h5md",
    "read_log",
    "relax_batch",
    "run",
    "run_with_ase",
    "spectrum_of",
]
