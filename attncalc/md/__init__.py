"""Molecular dynamics."""

from attncalc.md.velocities import Thermometer
from attncalc.md.with_ase import ENSEMBLES, Settings, run_with_ase

__all__ = ["ENSEMBLES", "Settings", "Thermometer", "run_with_ase"]
