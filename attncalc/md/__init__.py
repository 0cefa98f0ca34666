"""Molecular dynamics."""

from attncalc.md.velocities import Thermometer
from attncalc.md.with_ase import ENSEMBLES, SPREAD, Settings, run_with_ase

__all__ = ["ENSEMBLES", "SPREAD", "Settings", "Thermometer", "run_with_ase"]
