"""Options that several commands share, and the effects of --threads and --charge."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import click
import torch
from ase import Atoms

from attncalc.cli.output import together
from attncalc.model_file import DEFAULT_MODEL
from attncalc.potential import MOST_THREADS
from attncalc.system import SYNONYMS

# number of atoms below which CPU threads wait for each other longer than they compute
SMALL = 1000

calculator_options = together(
    click.option(
        "--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:1."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        help="Precision of the network. Default: that of the model.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=MOST_THREADS),
        help="CPU threads. Results are bitwise reproducible for a fixed number of threads. "
        f"Default: 1 for compiled networks. Networks in PyTorch use 1 thread below {SMALL} atoms, "
        "where more are slower; from there on, or if OMP_NUM_THREADS is set, PyTorch chooses. "
        "`lammps`: 1, of every process.",
    ),
    click.option(
        "--long-range-cutoff",
        type=float,
        metavar="ANGSTROM|inf",
        help="Cutoff of electrostatics and dispersion, Å; inf: all pairs, for molecules only. "
        "Default: that of the model.",
    ),
)

oracle_option = click.option(
    "--oracle",
    required=True,
    help="Method that labels the structures: gfn2 (tblite), the name or file of a model, or "
    "MODULE:CALLABLE, a function that returns an ASE calculator for its arguments charge and "
    "multiplicity; without charge, ions are refused.",
)

model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Name of a shipped model, model file, or folder of a training.",
)


class Minutes(click.FloatRange):
    """Type of an option: a number of minutes, zero or more, `inf` included, NaN not."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the text of an option."""
        minutes = float(super().convert(value, param, ctx))
        if math.isnan(minutes):  # every comparison with it is false, so no time would be up
            self.fail("nan is not a number of minutes", param, ctx)
        return minutes


charge_options = together(
    click.option("--charge", type=int, help="Total charge, e. Default: that of the file, else 0."),
    click.option(
        "--multiplicity",
        type=click.IntRange(min=1),
        help="Spin multiplicity 2S+1. Default: that of the file, else the lowest.",
    ),
)


def set_charge(structures: Sequence[Atoms], charge: int | None, multiplicity: int | None) -> None:
    """Write --charge and --multiplicity into the structures, in place of what their file says."""
    for key, value in (("charge", charge), ("spin", multiplicity)):
        if value is not None:
            for atoms in structures:
                atoms.info.pop(SYNONYMS[key], None)
                atoms.info[key] = value


def names_in(_: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Split the value of an option with several names, separated by commas; a callback of click."""
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if not all(names):
        raise click.BadParameter(f"a name is empty in {value!r}", param=parameter)
    return names


stop_option = click.option(
    "--stop-when-unknown",
    is_flag=True,
    help="Stop at the first step where an atom is outside the training data of the model; "
    "everything up to there is written.",
)


def set_threads(threads: int | None, structures: Sequence[Atoms]) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and max(map(len, structures), default=0) < SMALL:
        torch.set_num_threads(1)
