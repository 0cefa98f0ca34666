"""`attncalc verify`: check of the physics of a model."""

from __future__ import annotations

import click

from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import read_structures
from attncalc.cli.known import is_delta
from attncalc.cli.options import calculator_options, set_threads


@click.command()
@click.argument("model")
@click.option("--structure", help="File with a structure to test. Default: a random cluster.")
@calculator_options
@one_line_errors
def verify(model, structure, device, dtype, threads, long_range_cutoff) -> None:
    """Check the physics of a model: forces, stress, symmetries, batching, neighbour lists.

    Example: attncalc verify so3krates-ethanol --structure ethanol.xyz
    """
    atoms = None if structure is None else read_structures(structure, index="-1")[0]
    set_threads(threads, [] if atoms is None else [atoms])
    calculator = AttnCalculator(
        model,
        device=device,
        dtype=dtype,
        threads=threads,
        long_range_cutoff=long_range_cutoff,
        delta=is_delta(model),
    )
    calculator.verify(atoms)
