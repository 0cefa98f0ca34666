"""`python -m attncalc.cli`."""

from attncalc.cli import main

main()
