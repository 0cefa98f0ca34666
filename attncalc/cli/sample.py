"""`attncalc sample`: labelled structures of many molecules, to train a general model on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import new_file
from attncalc.cli.options import Minutes, oracle_option
from attncalc.cli.output import output_file, output_options, overwrites, report_json, say
from attncalc.cli.progress import progress_bar

if TYPE_CHECKING:
    from attncalc.sampling.run import Summary
    from attncalc.sampling.stored import Contents


@click.command()
@click.option("-o", "--output", required=True, help="HDF5 file to write, .h5.")
@click.option("--molecules", type=click.IntRange(min=1), required=True, help="Number of molecules.")
@oracle_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of molecules and frames; equal seeds give equal data.",
)
@click.option(
    "--minutes",
    type=Minutes(),
    default=float("inf"),
    help="Stop after this time and write the structures labelled so far. Default: no limit.",
)
@click.option(
    "--relax-steps",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Steps of relaxation by the oracle, from the minimum of a classical force field.",
)
@output_options
@one_line_errors
def sample(output, molecules, oracle, workers, seed, minutes, relax_steps) -> None:
    """Sample molecules of H C N O F P S Cl and label their structures.

    One molecule in twenty is held out: its structures go to NAME-test.h5. The same command
    continues after any interruption. A larger --molecules extends the data. --minutes 0 only writes
    the files.

    Example: attncalc sample -o data.h5 --molecules 20000 --oracle gfn2 --workers 2
    """
    try:
        from attncalc.sampling import run
    except ImportError as error:
        if "rdkit" not in str(error):
            raise
        raise ImportError('sampling needs rdkit: pip install "attncalc[sample]"') from None
    target = Path(output)
    if run.chunk_folder(target).exists():  # the run is continued
        target = new_file(target, overwrite=True)
    else:
        target = output_file(target)
    if target.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"--output must end in .h5 or .hdf5, got {output}")
    settings = run.Settings(oracle, seed, relax_steps)
    with progress_bar(molecules, "molecule") as bar:

        def show(n_before: int, n_molecules: int, n_frames: int) -> None:
            if n_molecules == n_before:  # done by earlier runs: not counted in the rate
                bar.initial = bar.n = bar.last_print_n = n_before
            bar.set_postfix_str(f"{n_frames} structures", refresh=False)
            bar.update(n_molecules - bar.n)

        done = run.sample(
            settings,
            target,
            molecules,
            workers=workers,
            minutes=minutes,
            overwrite=overwrites(),
            progress=show,
        )
    _report(done, target, run.held_out_file(target))


def _report(done: Summary, train_file: Path, held_out_file: Path) -> None:
    for path, contents in ((train_file, done.train), (held_out_file, done.test)):
        if contents.frames:
            say(f"wrote {path}: {_of(contents)}")
        else:
            say(f"no structures for {path.name} yet")
    if done.train.left_out:
        say(f"left out: {', '.join(done.train.left_out)}, which only some structures have")
    rate = f", {60 * done.new_frames / done.seconds:.0f} per minute" if done.new_frames else ""
    say(
        f"{done.n_molecules} molecules, {done.n_labels} labels; "
        f"{done.new_frames} new structures{rate}"
    )
    if done.n_outside:
        say(f"{done.n_outside} structures are outside the training data of the oracle")
    for reason, n in done.refused.most_common():
        say(f"refused: {n} {reason}")
    report_json(
        {
            "molecules": done.n_molecules,
            "labels": done.n_labels,
            "outside": done.n_outside,
            "refused": dict(done.refused),
            "new_structures": done.new_frames,
            "seconds": done.seconds,
            "files": {
                str(path): {**vars(contents), "rms_force": contents.rms_force}
                for path, contents in ((train_file, done.train), (held_out_file, done.test))
                if contents.frames
            },
        }
    )


def _of(contents: Contents) -> str:
    """Return the statistics of a file, in several lines."""
    lists: dict[str, list[tuple[object, int]]] = {
        "kinds": [*contents.kinds.most_common()],
        "atoms": [*contents.elements.most_common()],
        "charges": [*sorted(contents.charges.items())],
    }
    lines = [
        f"{contents.frames} structures of {contents.molecules} molecules and clusters, forces rms "
        f"{contents.rms_force:.2f} eV/Å"
    ]
    lines += [
        f"  {name}: {', '.join(f'{k} {n}' for k, n in items)}" for name, items in lists.items()
    ]
    return "\n".join(lines)
