"""`attncalc md`: molecular dynamics of structures, and continuation of a stopped run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase import Atoms, units
from ase.io import iread

from attncalc import model_file
from attncalc.calculator import AttnCalculator
from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import (
    existing_file,
    from_anywhere,
    read_structures,
    remove_other_velocities,
    require_writable,
)
from attncalc.cli.md_files import older_aside, put_back, remove_older, require_new
from attncalc.cli.md_picture import Picture
from attncalc.cli.md_report import report
from attncalc.cli.model_checks import require_known, require_limits, say_charges, say_model
from attncalc.cli.options import (
    calculator_options,
    charge_options,
    model_option,
    names_in,
    set_charge,
    set_threads,
    stop_option,
)
from attncalc.cli.output import output_options, overwrites, say, warn
from attncalc.cli.progress import progress_bar
from attncalc.files import NoSpaceLeft
from attncalc.md import (
    ENSEMBLES,
    Settings,
    Thermometer,
    run_with_ase,
)
from attncalc.md.extra_results import require_results
from attncalc.md.integrators import INTEGRATORS, THERMOSTATS, integrator_of
from attncalc.md.job import mend_files, read_restart, resume_structures, run_structures
from attncalc.md.noise import seed_of
from attncalc.md.time_unit import LONGEST, SHORTEST, in_longer_unit
from attncalc.md.velocities import stop_fixed
from attncalc.signals import finished_before_ctrl_c

# options that apply to one ensemble only
ENSEMBLE_OF = {
    **dict.fromkeys(("friction", "thermostat"), "nvt"),
    **dict.fromkeys(("pressure", "barostat", "cell_relaxation", "compressibility"), "npt"),
}
# options that do not apply to ASE's integrators
NATIVE = ("thermostat", "relaxation", "barostat", "cell_relaxation", "compressibility", "write")


@click.command()
@click.argument("structure", required=False)
@model_option
@charge_options
@calculator_options
@click.option(
    "--ensemble",
    type=click.Choice(ENSEMBLES),
    default="nvt",
    show_default=True,
    help="Constant energy (nve), temperature (nvt), or temperature and pressure (npt).",
)
@click.option(
    "--temperature",
    default=300.0,
    show_default=True,
    help="Temperature of the thermostat (nvt, npt) and of velocities that are drawn, K.",
)
@click.option("--steps", default=10_000, show_default=True, help="Number of timesteps.")
@click.option("--timestep", default=0.5, show_default=True, help="Timestep, fs.")
@click.option(
    "--thermostat",
    type=click.Choice(THERMOSTATS),
    default="langevin",
    show_default=True,
    help="Langevin, or stochastic velocity rescaling, which disturbs the motion less (nvt).",
)
@click.option("--friction", default=0.01, show_default=True, help="Langevin friction (nvt), 1/fs.")
@click.option(
    "--relaxation",
    default=100.0,
    show_default=True,
    help="Time constant of the thermostat that rescales velocities (bussi, npt), fs.",
)
@click.option("--pressure", default=0.0, show_default=True, help="Pressure (npt), GPa.")
@click.option(
    "--barostat",
    type=click.Choice(["isotropic", "anisotropic"]),
    default="isotropic",
    show_default=True,
    help="Change only the volume, or all lengths and angles of the cell (npt).",
)
@click.option(
    "--cell-relaxation",
    default=1000.0,
    show_default=True,
    help="Time constant of the barostat (npt), fs.",
)
@click.option(
    "--compressibility",
    default=0.1,
    show_default=True,
    help="Rough compressibility (npt), 1/GPa; scales --cell-relaxation: water 0.45, metals 0.01.",
)
@click.option(
    "--every",
    default=10,
    show_default=True,
    help="Steps between frames; the last step is always written.",
)
@click.option(
    "--write",
    metavar="charges,dipole,stress",
    default="",
    callback=names_in,
    help="Also write partial charges (e) and, for molecules, the dipole moment (e Å), for models "
    "that predict charges; for crystals and liquids the stress of the potential (eV/Å³).",
)
@click.option(
    "--seed",
    type=int,
    help="Seed of initial velocities and random forces. Default: 0, or if the file has velocities, "
    "a number made of them, so that a run that continues another has other random forces.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Run this many copies of every structure of the file (of an .h5md: of the last frame of "
    "every system) in one batch (to .h5md only).",
)
@click.option(
    "--integrator",
    type=click.Choice(["native", "ase"]),
    help="Integrators to use. Default: those of attncalc.",
)
@stop_option
@click.option(
    "-o",
    "--output",
    help="Trajectory: .h5md, .xyz or .traj. Default: NAME.md.h5md (ASE: NAME.md.xyz).",
)
@click.option(
    "--resume",
    metavar="RUN.h5md",
    help="Continue a stopped run up to its number of steps, or to --steps.",
)
@output_options
@click.pass_context
@one_line_errors
def md(
    context,
    structure,
    model,
    charge,
    multiplicity,
    device,
    dtype,
    threads,
    long_range_cutoff,
    resume,
    replicas,
    integrator,
    stop_when_unknown,
    output,
    **options,
) -> None:
    """Run molecular dynamics of the last structure of a file, or of all with --replicas.

    If the file is an .h5md with several systems, all of them continue in one batch.

    Writes the trajectory, a log (.csv), a picture (.png) and, beside an .h5md, a checkpoint (.ckpt)
    of the same name. Velocities (momenta) in the file are kept; otherwise they are drawn at
    --temperature. Temperatures exclude conserved motion: that of the centre of mass (all but
    Langevin dynamics) and the rotation of a molecule (nve and --thermostat bussi).

    Example: attncalc md relaxed.xyz --temperature 300 -o run.h5md

    A stopped run continues with bitwise identical results: attncalc md --resume run.h5md

    Exit status: 0: done; 1: an error; 2: a frame is outside the training data of the model
    (novelty above 1), so its energy and forces may be wrong.
    """
    if resume is not None:
        given = [p for p, v in context.params.items() if _typed(context, p) and v is not None]
        if overwrites():  # no parameter of this function
            given.append("overwrite")
        stop = stop_when_unknown
        _resume(Path(resume), given, device, threads, options["steps"], stop=stop)
        return
    if structure is None:
        raise click.UsageError("a STRUCTURE is needed (or --resume RUN.h5md)")
    seed = options.pop("seed")
    by_ase = integrator == "ase"
    settings = _settings(context, options, 0 if seed is None else seed, by_ase=by_ase)
    if by_ase and replicas is not None:
        raise ValueError("--replicas needs attncalc's integrators: remove --integrator ase")
    source = existing_file(structure)
    target = Path(output or source.with_suffix(".md.xyz" if by_ase else ".md.h5md"))
    put_back(target)
    require_new(target, target)
    endings = (".xyz", ".extxyz", ".traj") if by_ase else (".h5md", ".xyz", ".extxyz", ".traj")
    if target.suffix not in endings:
        listed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        kind = f"trajectory of {settings.ensemble}, by ASE," if by_ase else "trajectory"
        raise ValueError(f"{target.name}: a {kind} must end in {listed}")
    for ending in (".png", ".csv") if by_ase else (".png", ".csv", ".ckpt"):
        require_new(target.with_suffix(ending), target)
    found = _starting_structures(structure, replicas, by_ase=by_ase)
    set_charge(found, charge, multiplicity)
    if unread := {remove_other_velocities(one) for one in found} - {""}:
        warn(
            f"{source}: velocities in a column {min(unread)!r} are not read, because nothing says "
            "their unit: ASE writes momenta"
        )
    if target.suffix != ".h5md" and (lost := require_writable(target, found)):
        warn(lost)
    has_copies = (replicas or 1) > 1
    settings, have_velocities, of_seed = _start(found, settings, seed, has_copies=has_copies)
    if settings.ensemble == "nve" and have_velocities and _typed(context, "temperature"):
        raise ValueError(
            f"--temperature is that of velocities that are drawn, and {source} has velocities: "
            "remove it"
        )
    structures = [atoms for atoms in found for _ in range(replicas or 1)]
    atoms = structures[0]
    set_threads(threads, structures)
    calculator = AttnCalculator(
        model, device=device, dtype=dtype, threads=threads, long_range_cutoff=long_range_cutoff
    )
    plain = calculator.evaluator.plain
    require_known(plain, found)
    require_limits(plain, stop=stop_when_unknown)
    periodic = any(one.pbc.any() for one in found)
    require_results(
        settings.write,
        predicts_charges=plain.predicts_charges,
        periodic=periodic,
        bulk=all(one.pbc.all() for one in found),
    )
    if have_velocities:
        kelvin = np.mean([_thermometer(one, settings).temperature(one) for one in found])
        say(f"using the velocities of the file (T = {kelvin:.0f} K){of_seed}")
    named = say_model(model, plain)
    say_charges(found)
    what = (atoms.get_chemical_formula(), named, settings.ensemble.upper())
    n_dof = _thermometer(atoms, settings).n_dof
    picture, stop = Picture(target, settings, ", ".join(what), n_dof, structures), stop_when_unknown
    older = older_aside(target, source) if overwrites() else nullcontext()
    if by_ase:
        atoms.calc = calculator
        atoms.get_potential_energy()  # compiles loops before the bar starts its clock
        if any(hasattr(one, "adjust_potential_energy") for one in atoms.constraints):
            say("total_eV includes the energy of springs (Hookean), potential_eV does not")
        with older, _running(picture) as progress:
            summary = run_with_ase(
                *(atoms, settings, target), progress=progress, tell=picture.warn, stop=stop
            )
        n_lists = calculator.n_rebuilds
    else:
        force = calculator.evaluator
        info = {
            "model": from_anywhere(model),
            "checksum": model_file.checksum(model),
            "dtype": dtype,
            "threads": threads,
            "long_range_cutoff": long_range_cutoff,
            "title": picture.title,
            "n_dof": picture.n_dof,
        }
        with older, _running(picture) as progress:
            summary = run_structures(
                *(structures, force, settings, target),
                info=info,
                progress=progress,
                tell=picture.warn,
                stop=stop,
            )
        n_lists = force.neighbors.n_rebuilds
    report(picture, summary, n_lists)


def _settings(
    context: click.Context, options: dict[str, Any], seed: int, *, by_ase: bool
) -> Settings:
    """Convert the options of a run to ASE's units, and refuse those that it would ignore.

    Raises:
        ValueError: a number is impossible, or does not apply to this run.
    """
    if 0 < (timestep := options["timestep"]) < SHORTEST:
        meant, in_fs = in_longer_unit(timestep)
        raise ValueError(
            f"--timestep is in fs, and {timestep:g} fs is too short for a run: for {meant} write "
            f"--timestep {in_fs:g}"
        )
    if timestep > LONGEST:
        raise ValueError(
            f"--timestep is in fs, and {timestep:g} fs is too long for a run: 0.5 is usual, with "
            "heavy atoms up to 5"
        )
    for name in ("steps", "timestep", "temperature", "friction", "relaxation", "cell_relaxation"):
        if options[name] <= 0:  # in the unit of the option
            raise ValueError(f"{_as_typed(name)} must be positive, got {options[name]:g}")
    for name in ("timestep", "relaxation", "cell_relaxation"):
        options[name] *= units.fs
    options["friction"] /= units.fs
    options["n_steps"] = options.pop("steps")
    options["isotropic"] = options.pop("barostat") == "isotropic"
    settings = Settings(**options, seed=seed)
    _refuse_unread(context, settings, by_ase=by_ase)
    return settings


def _start(
    found: Sequence[Atoms], settings: Settings, seed: int | None, *, has_copies: bool
) -> tuple[Settings, bool, str]:
    """Settle seed and initial velocities, which copies of one structure do not share.

    Returns:
        Settings with the seed, whether the run starts from velocities of the file, and what is to
        be said about the seed.
    """
    momenta, of_seed = [one.get_momenta() for one in found], ""
    have_velocities = any(of_one.any() for of_one in momenta)
    if seed is None and have_velocities and (settings.ensemble != "nve" or has_copies):
        settings = replace(settings, seed=seed_of(np.concatenate(momenta)))
        of_seed = f"; the seed {settings.seed} is made of them"
    if has_copies and have_velocities:
        have_velocities = False
        say(f"ignoring the velocities of the file: every replica draws its own{of_seed}")
        for one in found:
            one.set_momenta(np.zeros((len(one), 3)), apply_constraint=False)
    return settings, have_velocities, of_seed


def _resume(
    target: Path, given: list[str], device: str, threads: int | None, steps: int, *, stop: bool
) -> None:
    """Continue a run from its checkpoint."""
    allowed = {"resume", "device", "threads", "steps", "stop_when_unknown"}
    if others := sorted(set(given) - allowed):
        listed = ", ".join(map(_as_typed, others))
        raise ValueError(f"--resume uses the settings of the run: remove {listed}")
    restart, settings = read_restart(target)
    remove_older(target)
    info, done = restart.info, restart.state.step
    if "steps" in given:
        settings = replace(settings, n_steps=steps)
    structures = restart.state.system.to_ase()
    picture = Picture(target, settings, info["title"], info["n_dof"], structures)
    if done >= settings.n_steps:
        summary = mend_files(restart, settings, target)
        say(f"{target}: {done} steps are done; continue to step N with --steps N")
        if not target.with_suffix(".png").exists():  # killed between the last step and the picture
            picture.draw()
        report(picture, summary, 0, done)
        return
    threads = info.get("threads") if threads is None else threads  # for bitwise equal results
    set_threads(threads, structures)
    if model_file.checksum(info["model"]) != info["checksum"]:
        shipped = info["model"] in model_file.shipped_models()
        back = "the version of attncalc" if shipped else "the model file"
        raise ValueError(
            f"{info['model']}: not the model that the run began with: continue with {back} of that "
            f"time, or begin another run: attncalc md {target} --model MODEL -o NEW.h5md"
        )
    calculator = AttnCalculator(
        info["model"],
        device=device,
        dtype=info["dtype"],
        threads=threads,
        long_range_cutoff=info.get("long_range_cutoff"),
    )
    require_limits(calculator.evaluator.plain, stop=stop)
    say(f"{target}: continuing at step {done} of {settings.n_steps}")
    force = calculator.evaluator
    with _running(picture, done=done) as progress:
        summary = resume_structures(
            *(restart, force, settings, target), progress=progress, tell=picture.warn, stop=stop
        )
    report(picture, summary, force.neighbors.n_rebuilds, done)


def _starting_structures(path: str, replicas: int | None, *, by_ase: bool) -> list[Atoms]:
    """Read the structures that a run starts from, and say which they are if there are others."""
    is_trajectory = Path(path).suffix == ".h5md"
    found = read_structures(path, index="-1" if replicas is None or is_trajectory else ":")
    for atoms in found:
        stop_fixed(atoms)
    if by_ase and len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} systems: remove --integrator ase, which runs one"
        )
    if replicas is None and len(found) > 1:
        say(f"{len(found)} systems of {path} in one batch")
    elif replicas is None and not is_trajectory and (n := _n_structures(Path(path))) > 1:
        say(f"structure {n} of {n} in {path}")
    return found


def _n_structures(path: Path) -> int:
    """Return the number of structures in a file, which are not kept in memory."""
    if path.suffix in (".xyz", ".extxyz"):  # as `read_structures`
        from attncalc.data.extxyz import delimited

        with open(path, encoding="utf-8") as file:
            return sum(1 for _ in delimited(file))
    return sum(1 for _ in iread(path, do_not_split_by_at_sign=True))


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _as_typed(name: str) -> str:
    """Return the name of a parameter as it is typed on the command line."""
    return "STRUCTURE" if name == "structure" else f"--{name.replace('_', '-')}"


def _refuse_unread(context: click.Context, settings: Settings, *, by_ase: bool) -> None:
    """Refuse options on the command line that this run would ignore."""
    for name, ensemble in ENSEMBLE_OF.items():
        if _typed(context, name) and ensemble != settings.ensemble:
            raise ValueError(
                f"--{name.replace('_', '-')} applies to {ensemble} only, and this run is "
                f"{settings.ensemble}: remove it, or use --ensemble {ensemble}"
            )
    for name in NATIVE:
        if by_ase and _typed(context, name):
            raise ValueError(
                f"--{name.replace('_', '-')} applies to attncalc's integrators only: remove it, or "
                "remove --integrator ase"
            )
    kinds: list[Any] = list(INTEGRATORS.values())
    kind = next(one for one in kinds if one.ensemble == settings.ensemble)
    where = f"--ensemble {settings.ensemble}"
    if settings.ensemble == "nvt":
        kind, where = INTEGRATORS[settings.thermostat], f"--thermostat {settings.thermostat}"
    numbers, of_any = (
        {number.name for one in some for number in fields(one)} for some in ([kind], kinds)
    )
    for name in sorted(of_any - {"timestep", "temperature"}):
        if _typed(context, name) and name not in numbers:
            raise ValueError(f"--{name.replace('_', '-')} does not apply to {where}: remove it")


def _thermometer(atoms: Atoms, settings: Settings) -> Thermometer:
    return Thermometer.for_run(atoms, integrator_of(settings).thermometer)


@contextmanager
def _running(picture: Picture, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show a bar while a run goes on, and draw its picture at the end, also after an error."""
    settings = picture.settings
    with progress_bar(settings.n_steps, "step", done=done) as bar:
        began, n_done = time.monotonic(), 0

        def progress(steps: int, status: str) -> None:
            nonlocal n_done
            n_done += steps
            rate = n_done / max(time.monotonic() - began, 1e-9)
            ns_per_day = rate * settings.timestep / units.fs * 86400 * 1e-6
            bar.set_postfix_str(f"{ns_per_day:.2f} ns/day, {status}", refresh=False)
            bar.update(steps)

        try:
            with _sigterm_as_ctrl_c():
                yield progress
        except (FloatingPointError, KeyboardInterrupt):
            with finished_before_ctrl_c():
                if picture.target.exists():  # the picture shows what went wrong
                    picture.draw()
            raise
    try:
        picture.draw()
    except NoSpaceLeft as full:
        raise NoSpaceLeft(full.path, full.number, "the run itself is complete") from None


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM, sent by a batch queue at its time limit, as Ctrl-C: the run is saved."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
