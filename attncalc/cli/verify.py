"""`attncalc verify`: check of the physics of a model."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from attncalc import checks
from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import read_structures
from attncalc.cli.model_checks import is_delta
from attncalc.cli.options import calculator_options, set_threads
from attncalc.cli.output import json_option, quiet_option, report_json, say
from attncalc.system import System


@click.command()
@click.argument("model")
@click.option("--structure", help="File with a structure to test. Default: a random cluster.")
@calculator_options
@json_option
@quiet_option
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
    evaluator = calculator.evaluator
    if atoms is not None:  # report errors in the structure before anything is compiled
        evaluator.check(System.from_ase(atoms))
    report = checks.verify(evaluator.plain, atoms, fast=calculator.potential)
    say(str(report))
    report_json(
        {
            "structure": report.structure,
            "passed": report.passed,
            "checks": [_row(check) for check in report.checks],
        }
    )
    report.require()


def _row(check: checks.Check) -> dict[str, Any]:
    """Return a check as a dictionary for JSON, which has no infinite numbers."""
    deviation = check.deviation if math.isfinite(check.deviation) else None
    return {**asdict(check), "deviation": deviation, "passed": check.passed}
