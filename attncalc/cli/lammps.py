"""`attncalc lammps`: an input script of LAMMPS with a model as its pair style."""

from __future__ import annotations

import click

from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import existing_file
from attncalc.cli.options import calculator_options, set_threads


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@calculator_options
@click.option("--charge", type=int, default=0, show_default=True, help="Total charge, e.")
@click.option(
    "--multiplicity", "--spin", "spin", type=int, help="Multiplicity 2S+1. Default: the lowest."
)
@one_line_errors
def lammps(script, arguments, threads, **options) -> None:
    """Run a LAMMPS input script with a model as its pair style.

    The script has the lines "pair_style attncalc MODEL" and "pair_coeff * * ELEMENT ...", with the
    element of every atom type. Arguments after SCRIPT go to LAMMPS: -var, -log and others.

    Example: attncalc lammps in.silicon -var T 300

    Example: mpiexec -n 4 attncalc lammps in.silicon
    """
    from attncalc.plugins.lammps import end_all, start
    from attncalc.plugins.lammps_script import Script, run

    set_threads(threads, ())
    lines = Script.read(existing_file(script))
    comm, lmp = start(arguments)
    try:
        run(lmp, script, lines, threads=threads, **options)
        lmp.close()
    except BaseException as error:
        end_all(comm, error, lmp)
