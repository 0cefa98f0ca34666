"""`attncalc train`: a recipe to a model."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

import click

from attncalc.cli.errors import one_line_errors
from attncalc.cli.output import json_option, quiet_option, report_json, say
from attncalc.files import NoSpaceLeft


@click.command()
@click.argument("recipe")
@click.option("--data", help="Data file to use instead of that of the recipe.")
@click.option("-o", "--output", help="Output folder. Default: runs/NAME of the recipe.")
@click.option(
    "--member",
    type=int,
    help="Train only member N (1, 2, ...) of the recipe's committee, so that several processes can "
    "train members at the same time.",
)
@json_option
@quiet_option
@one_line_errors
def train(recipe, data, output, member) -> None:
    """Train a model by a recipe; a stopped run continues where it was.

    Example: attncalc train models/so3krates-ethanol.yaml --data rmd17_ethanol.npz
    """
    from attncalc import train as training

    plan = training.Recipe.from_yaml(recipe)
    folder = Path(output or Path("runs") / plan.name)
    command = shlex.join(["attncalc", *sys.argv[1:]])
    speaks = training.connect().is_first  # only one of several processes prints
    if not speaks:
        logging.getLogger("attncalc").setLevel(logging.ERROR)
    try:
        done = training.run(plan, folder, data=data, command=command, member=member)
    except NoSpaceLeft as full:
        advice = "free some space, then the same command continues"
        raise NoSpaceLeft(full.path, full.number, advice) from None
    if not speaks:
        return
    card, last = done.model.with_suffix(".md"), done.history[-1]
    say(card.read_text())
    say(f"wrote {done.model}")
    report_json(
        {
            "model": str(done.model),
            "card": str(card),
            "epochs": int(last["epoch"]),
            "seconds": round(last["wall_time_s"], 1),
            "test_errors": done.potential.training_info["test_errors"],
        }
    )
