"""Molecular dynamics."""

from attncalc.md.with_ase import ENSEMBLES, Settings, run_with_ase

__all__ = ["ENSEMBLES", "Settings", "run_with_ase"]
