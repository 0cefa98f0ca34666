"""`python -m attncalc`, for launchers that start Python's modules, as torchrun."""

from attncalc.cli import main

main(prog_name="attncalc")
