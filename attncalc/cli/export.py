"""`attncalc export`: an H5MD trajectory as a file that other programs read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path

import click
from ase import Atoms
from ase.io import write
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import Trajectory

from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import existing_file
from attncalc.cli.output import output_file, output_options, report_json, say
from attncalc.cli.progress import progress_bar
from attncalc.files import replacing
from attncalc.md.h5md_reader import count_h5md, count_systems_h5md, iread_h5md

# x, y and z of an atom in a line of PDB
_COORDINATES = slice(30, 38), slice(38, 46), slice(46, 54)


@click.command()
@click.argument("trajectory", metavar="RUN.h5md")
@click.option("-o", "--output", required=True, help="File to write: .xyz, .extxyz, .traj or .pdb.")
@click.option(
    "--system", type=click.IntRange(min=0), default=0, show_default=True, help="System of a batch."
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Export every n-th frame.",
)
@output_options
@one_line_errors
def export(trajectory, output, system, every) -> None:
    """Write the frames of an H5MD trajectory as extended XYZ, ASE's .traj or PDB.

    Extended XYZ and .traj keep cell, momenta, energy, forces and, where the run has written them,
    charges and dipole; PDB keeps positions and the first cell. Frames are read one after the other,
    however many there are.

    Example: attncalc export run.h5md -o run.pdb --every 10
    """
    source, target = existing_file(trajectory), output_file(output)
    writer = WRITERS.get(target.suffix)
    if writer is None:
        raise ValueError(f"{target.name}: the file must end in {', '.join(WRITERS)}")
    try:
        n_frames = -(-count_h5md(source, system) // every)
        n_systems = count_systems_h5md(source)
    except IndexError as error:
        raise ValueError(error) from None
    n_written = 0  # may exceed n_frames if the run is still going on
    with replacing(target) as new, progress_bar(n_frames, "frame") as bar:

        def frames() -> Iterable[Atoms]:
            nonlocal n_written
            for frame in iread_h5md(source, slice(None, None, every), system):
                yield frame
                n_written += 1
                bar.update(1)

        writer(new, frames())
    which = f" of system {system} of {n_systems}; --system selects another" if n_systems > 1 else ""
    say(f"wrote {target} ({n_written} frames{which})")
    report_json({"output": str(target), "frames": n_written, "system": system})


def _write_xyz(path: Path, frames: Iterable[Atoms]) -> None:
    with open(path, "w") as file:
        for frame in frames:
            write_extxyz(file, [frame])


def _write_traj(path: Path, frames: Iterable[Atoms]) -> None:
    with Trajectory(path, "w") as file:
        for frame in frames:
            file.write(frame)


def _write_pdb(path: Path, frames: Iterable[Atoms]) -> None:
    """Write one MODEL per frame; ASE writes all frames at once, or each as number 1."""
    with open(path, "w") as file:
        for k, frame in enumerate(frames, start=1):
            text = StringIO()
            write(text, [frame], format="proteindatabank")
            for line in text.getvalue().splitlines(keepends=True):
                _require_room_in_pdb(line)
                if line.startswith("MODEL"):
                    file.write(f"MODEL     {k}\n")
                elif k == 1 or not line.startswith("CRYST1"):
                    file.write(line)


def _require_room_in_pdb(line: str) -> None:
    """Refuse an atom whose coordinates take more than the eight columns of PDB.

    Raises:
        ValueError: a coordinate is too large; ASE has moved the rest of the line to the right.
    """
    if not line.startswith(("ATOM", "HETATM")):
        return
    if not all(re.fullmatch(r" *-?\d+\.\d{3}", line[columns]) for columns in _COORDINATES):
        raise ValueError(
            "PDB has no room for coordinates below -999.999 or above 9999.999 Å: choose .xyz or "
            ".traj"
        )


WRITERS: dict[str, Callable[[Path, Iterable[Atoms]], None]] = {
    ".xyz": _write_xyz,
    ".extxyz": _write_xyz,
    ".traj": _write_traj,
    ".pdb": _write_pdb,
}
