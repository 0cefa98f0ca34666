"""Summary of a run of `attncalc md`, as text and as JSON."""

from __future__ import annotations

from ase import units

from attncalc.cli.errors import OutsideTraining
from attncalc.cli.md_picture import Picture
from attncalc.cli.output import report_json, say, warn
from attncalc.md import SPREAD, Settings
from attncalc.md.log_file import NOVELTY, LogSummary
from attncalc.novelty import OUTSIDE
from attncalc.text import counted

# eV per atom and ps, of the conserved quantity: runs with a sensible timestep have a hundredth
LARGEST_DRIFT = 0.001


def report(picture: Picture, summary: LogSummary, n_lists: int, first: int = 0) -> None:
    """Print the summary of a run that ended, and began (or was resumed) at step `first`."""
    target, n_frames = picture.target, summary.n_rows // picture.n_systems
    others = [str(target.with_suffix(ending)) for ending in (".csv", ".png")]
    of_each = f" of {picture.n_systems} systems" if picture.n_systems > 1 else ""
    n_steps = _steps_done(summary, picture.settings)
    if n_steps > first:  # else it was done before
        lists = f"{counted(n_lists, 'neighbour list')} in {counted(n_steps - first, 'step')}"
        say(f"wrote {target} ({n_frames} frames{of_each}), {', '.join(others)}; {lists}")
    if (widest := summary.widest) is not None:
        say(
            f"largest spread of the committee on a force: {widest[SPREAD]:.3f} eV/Å, at "
            f"{widest['time_fs']:.1f} fs"
        )
    drift = summary.drift([len(one) for one in picture.structures])
    if abs(drift) > LARGEST_DRIFT:
        warn(
            f"the conserved quantity drifted by {1000 * drift:+.3g} meV per atom and ps, so "
            "averages are wrong: use a shorter --timestep"
        )
    furthest = summary.furthest
    report_json(
        {
            "trajectory": str(target),
            "log": others[0],
            "picture": others[1],
            "steps": n_steps,
            "frames": n_frames,
            "systems": picture.n_systems,
            "last": _plain(summary.last),
            "largest_spread": _plain(widest),
            "largest_novelty": _plain(furthest),
        }
    )
    if furthest is not None and furthest[NOVELTY] > OUTSIDE:
        wanted = picture.settings.n_steps
        stopped = f"it stopped at step {n_steps} of {wanted}"
        end = stopped if n_steps < wanted else "do not trust what follows"
        raise OutsideTraining(
            f"the run left the training data of the model: novelty {furthest[NOVELTY]:.3g} at "
            f"{furthest['time_fs']:.1f} fs, 1 is the edge; {end}"
        )


def _steps_done(summary: LogSummary, settings: Settings) -> int:
    """Return the number of steps taken; --stop-when-unknown may have ended the run early."""
    assert summary.last is not None
    return round(summary.last["time_fs"] * units.fs / settings.timestep)


def _plain(row: dict[str, float] | None) -> dict[str, float | None] | None:
    """Return a line of the log for JSON, with None instead of NaN."""
    return None if row is None else {k: v if v == v else None for k, v in row.items()}
