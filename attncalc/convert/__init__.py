"""Importers of published weights: their names and conventions in, a `Potential` out."""

from attncalc.convert.equiformer import equiformer
from attncalc.convert.so3krates import so3krates
from attncalc.convert.so3lr import so3lr

__all__ = ["equiformer", "so3krates", "so3lr"]
