"""Entry point of `attncalc`: the list of its commands, each in a module of this folder.

A module is imported when its command or the help of its command is called, so that
`attncalc --help` does not import torch.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import click

# name: the module, which holds a function of the same name, and its line in `attncalc --help`
COMMANDS = {
    "calibrate": ("calibrate", "Give a model the statistics that novelty is computed from."),
    "convert": ("convert", "Convert published weights, or data to one HDF5 file."),
    "distill": ("distill", "Train a fast potential of one molecule from another method."),
    "eval": ("evaluate", "Evaluate the errors of a model on labelled structures."),
    "export": ("export", "Write an H5MD trajectory as extended XYZ, .traj or PDB."),
    "label": ("label", "Label structures with energies and forces of another method."),
    "lammps": ("lammps", "Run a LAMMPS input script with a model as its pair style."),
    "md": ("md", "Run molecular dynamics."),
    "models": ("models", "List the models that come with attncalc."),
    "relax": ("relax", "Relax structures until no force exceeds --fmax."),
    "sample": ("sample", "Sample and label organic molecules as training data."),
    "spectrum": ("spectrum", "Draw vibrational spectra of an H5MD trajectory."),
    "train": ("train", "Train a model by a recipe, or continue its training."),
    "verify": ("verify", "Check the physics of a model: forces, stress, symmetries."),
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
