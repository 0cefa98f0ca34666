"""The command `attncalc`: what a user types instead of a script."""

from attncalc.cli.entry import main

__all__ = ["main"]
