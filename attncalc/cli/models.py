"""`attncalc models`: list of the models that come with the package."""

from __future__ import annotations

import click
from ase.data import chemical_symbols

from attncalc import model_file
from attncalc.cli.errors import one_line_errors
from attncalc.describe import describe_names
from attncalc.model_header import descriptions


@click.command()
@one_line_errors
def models() -> None:
    """List the models that come with attncalc: elements, data, errors.

    Those with known limits say how far atoms are outside what they were trained on.

    Example: attncalc models
    """
    shipped = model_file.shipped_models()
    width = max(map(len, shipped), default=0) + 2
    click.echo(
        f"{'name':{width}}{'network':14} {'elements':12}{'force MAE':>12}  {'limits':8}"
        "data, level of theory"
    )
    for name, path in shipped.items():
        header = model_file.header(path)
        info, described = header["training"], descriptions(header)
        elements = " ".join(chemical_symbols[z] for z in described[0]["species"])
        network = describe_names(member["network"] for member in described)
        test = info.get("test_errors") or {}
        mae = f"{1e3 * test['force_mae']:.1f} meV/Å" if test.get("force_mae") else "-"
        limits = "known" if any("novelty" in member for member in described) else "unknown"
        origin = f"{info.get('data', '-')}, {info.get('level_of_theory') or '-'}"
        if info.get("baseline"):
            origin += f"; delta model, baseline: {info['baseline']}"
        click.echo(f"{name:{width}}{network:14} {elements:12}{mae:>12}  {limits:8}{origin}")
