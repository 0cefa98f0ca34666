"""`attncalc spectrum`: vibrations of a trajectory."""

from __future__ import annotations

import math
from pathlib import Path

import click
from ase import units

from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import existing_file, save_picture
from attncalc.cli.output import output_file, output_options, report_json, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.files import write_atomically
from attncalc.md.checkpoint import load_checkpoint
from attncalc.md.spectrum import csv_of, spectrum_of


@click.command()
@click.argument("trajectory", metavar="RUN.h5md")
@click.option(
    "-o", "--output", help="Picture to write, .png, .pdf or .svg. Default: RUN.spectrum.png."
)
@click.option("--csv", "table", help="File for the numbers, .csv.")
@click.option(
    "--resolution",
    default=10.0,
    show_default=True,
    help="Full width at half maximum of a sharp line, 1/cm.",
)
@click.option(
    "--highest",
    type=float,
    help="Fastest motion expected, 1/cm. Default: 4500 with hydrogen, 2500 without.",
)
@click.option(
    "--system", type=click.IntRange(min=0), help="System of a batch. Default: the mean of all."
)
@output_options
@one_line_errors
def spectrum(trajectory, output, table, resolution, highest, system) -> None:
    """Draw vibrational density of states and infrared spectrum of an H5MD trajectory.

    The density of states comes from velocities, the infrared spectrum from dipoles, where the run
    has written them (attncalc md --write dipole). Replicas are averaged.

    Example: attncalc spectrum run.h5md -o spectrum.png --csv spectrum.csv
    """
    source = existing_file(trajectory)
    target = output_file(output or source.with_suffix(".spectrum.png"))
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{target.name}: a picture must end in .png, .pdf or .svg")
    numbers = None if table is None else output_file(table)
    if numbers is not None and numbers.suffix != ".csv":
        raise ValueError(f"{numbers.name}: the numbers' file must end in .csv")
    if numbers is not None and numbers.resolve() == source.with_suffix(".csv").resolve():
        raise ValueError(f"{numbers.name} is the log of the run: choose another name for --csv")
    with progress_bar(None, "velocity vector") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            found = spectrum_of(
                source, resolution=resolution, highest=highest, system=system, progress=show
            )
        except IndexError as error:
            raise ValueError(error) from None
    systems = f" of {found.n_systems} systems" if found.n_systems > 1 else ""
    say(
        f"{found.n_frames} frames{systems}, {found.spacing:g} fs apart, "
        f"{found.temperature:.0f} K on average over all of them; "
        f"resolution {found.resolution:.3g} 1/cm (Hann window, correlation depth "
        f"{found.depth / 1000:.3g} ps), up to {found.highest:g} 1/cm"
    )
    if (width := _width_by_friction(source)) > found.resolution / 10:
        warn(
            f"the friction of this run widens every line by {width:.3g} 1/cm: use --ensemble nve "
            "or --thermostat bussi"
        )
    n_dof, peaks = found.integral(found.vdos), [found.peaks(found.vdos)]
    say(f"density of states, {n_dof:.4g} degrees of freedom in all; {_listed(peaks[0])}")
    if found.infrared is None:
        say("no infrared spectrum: the trajectory has no dipoles (attncalc md --write dipole)")
    else:
        peaks.append(found.peaks(found.infrared))
        total = found.integral(found.infrared)
        say(
            f"infrared, harmonic quantum correction, {total:.4g} km/mol in all; {_listed(peaks[1])}"
        )
    from attncalc import plots

    figure = plots.spectrum_summary(
        found.wavenumbers,
        found.vdos,
        found.infrared,
        highest=found.highest,
        peaks=peaks,
        title=f"{source.name}, {found.temperature:.0f} K, resolution {found.resolution:.3g} 1/cm",
    )
    save_picture(figure, target)
    if numbers is not None:
        write_atomically(numbers, csv_of(found).encode())
    say(f"wrote {target}" + ("" if numbers is None else f", {numbers}"))
    report_json(
        {
            "picture": str(target),
            "csv": None if numbers is None else str(numbers),
            "frames": found.n_frames,
            "systems": found.n_systems,
            "resolution": found.resolution,
            "highest": found.highest,
            "degrees_of_freedom": n_dof,
            "vdos_peaks": [wavenumber for wavenumber, _ in peaks[0]],
            "infrared_peaks": [wavenumber for wavenumber, _ in peaks[1]] if peaks[1:] else None,
        }
    )


def _width_by_friction(source: Path) -> float:
    """Return the width of a line by the friction of a run, 1/cm; 0 if there is no checkpoint."""
    try:
        integrator = load_checkpoint(source.with_suffix(".ckpt")).integrator
    except (FileNotFoundError, ValueError):
        return 0.0
    per_second = getattr(integrator, "friction", 0.0) * units.second
    return float(per_second / (2 * math.pi * 100 * units._c))


def _listed(peaks: list[tuple[float, float]]) -> str:
    """Name the strongest peaks, by wavenumber."""
    if not peaks:
        return "no peak"
    return "strongest peaks " + ", ".join(f"{peak:.0f}" for peak, _ in sorted(peaks)) + " 1/cm"
