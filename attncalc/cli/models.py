"""`attncalc models`: list of the models that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from ase.data import chemical_symbols

from attncalc import model_file
from attncalc.cli.errors import one_line_errors
from attncalc.cli.output import json_option, report_json, wants_json
from attncalc.describe import describe_names
from attncalc.model_header import descriptions


@click.command()
@json_option
@one_line_errors
def models() -> None:
    """List the models that come with attncalc: elements, data, errors.

    Models with novelty warn when atoms are outside their training data.

    Example: attncalc models
    """
    shipped = {name: _summary(path) for name, path in model_file.shipped_models().items()}
    if wants_json():
        report_json({"default": model_file.DEFAULT_MODEL, "models": shipped})
        return
    rows = [("name", "network", "elements", "force MAE", "novelty", "data, level of theory")]
    for name, told in shipped.items():
        error = told["force_mae_eV_A"]
        mae = f"{1e3 * error:.1f} meV/Å" if error else "-"
        novelty = "yes" if told["knows_its_training"] else "no"
        origin = f"{told['data'] or '-'}, {told['level_of_theory'] or '-'}"
        if told["baseline"]:
            origin += f"; delta model, baseline: {told['baseline']}"
        elements = " ".join(told["elements"])
        rows.append((name, told["network"], elements, mae, novelty, origin))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    click.echo(f"default, where no model is named: {model_file.DEFAULT_MODEL}")


def _summary(path: Path) -> dict[str, Any]:
    """Return network, elements, errors and training data of a model."""
    header = model_file.header(path)
    info, described = header["training"], descriptions(header)
    test = info.get("test_errors") or {}
    return {
        "file": str(path),
        "network": describe_names(member["network"] for member in described),
        "elements": [chemical_symbols[z] for z in described[0]["species"]],
        "force_mae_eV_A": test.get("force_mae"),
        "energy_mae_eV": test.get("energy_mae"),
        "knows_its_training": any("novelty" in member for member in described),
        "data": info.get("data"),
        "level_of_theory": info.get("level_of_theory"),
        "baseline": info.get("baseline") or None,
    }
