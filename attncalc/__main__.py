"""Entry point of `python -m attncalc`, for launchers of Python modules such as torchrun."""

from attncalc.cli import main

main(prog_name="attncalc")
