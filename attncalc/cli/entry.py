"""Entry point of `attncalc`: the list of its commands, each in a module of this folder.

A module is imported when its command or the help of its command is called, so that
`attncalc --help` does not import torch.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import click

# name: the module, which holds a function of the same name, and the first sentence of its docstring
COMMANDS = {
    "calibrate": (
        "calibrate",
        "Write a copy of a model with a description of its training data, which gives novelty.",
    ),
    "convert": (
        "convert",
        "Convert published weights to a model file, or data to a file that trainings can stream.",
    ),
    "distill": (
        "distill",
        "Distill an oracle into a fast potential of the last structure of a file.",
    ),
    "eval": (
        "evaluate",
        "Evaluate the errors of a model on labelled structures, per property and element.",
    ),
    "export": (
        "export",
        "Write the frames of an H5MD trajectory as extended XYZ, ASE's .traj or PDB.",
    ),
    "label": ("label", "Label every structure of a file with the energy and forces of an oracle."),
    "lammps": ("lammps", "Run a script of LAMMPS in which two lines name a model."),
    "md": (
        "md",
        "Run molecular dynamics of the last structure of a file, or of all with --replicas.",
    ),
    "models": ("models", "List the models that come with attncalc: elements, data, errors."),
    "relax": ("relax", "Relax every structure of a file until no force exceeds --fmax."),
    "sample": ("sample", "Sample molecules of H C N O F P S Cl and label their structures."),
    "spectrum": (
        "spectrum",
        "Draw vibrational density of states and infrared spectrum of an H5MD trajectory.",
    ),
    "train": ("train", "Train a model by a recipe; a stopped run continues where it was."),
    "verify": (
        "verify",
        "Check the physics of a model: forces, stress, symmetries, batching, neighbour lists.",
    ),
}


LOADING = "loading PyTorch ..."
# commands that compute: importing PyTorch for them takes many seconds on a slow disk
IMPORT_TORCH = (
    *("calibrate", "distill", "eval", "label", "lammps", "md", "relax", "sample", "verify"),
)


class LateGroup(click.Group):
    """Group that imports a command only when it is needed."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name; print a message before a slow import."""
        silent = {"-q", "--quiet", "-h", "--help"} & set(args) or context.resilient_parsing
        if args[0] in IMPORT_TORCH and "torch" not in sys.modules and not silent:
            click.echo(LOADING, err=True)
        return super().resolve_command(context, args)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the command from its module."""
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        return getattr(import_module(f"attncalc.cli.{module}"), module)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by their first sentences, without importing them."""
        click.Group(commands=self.commands).format_commands(context, formatter)


@click.group(
    cls=LateGroup,
    commands=[click.Command(name, help=says) for name, (_, says) in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="attncalc", prog_name="attncalc")
def main() -> None:
    """Geometry optimization and molecular dynamics with equivariant attention networks."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("attncalc")
    log.handlers, log.level, log.propagate = [handler], logging.INFO, False
