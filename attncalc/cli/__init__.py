"""Command line program `attncalc`."""

from attncalc.cli.entry import main

__all__ = ["main"]
