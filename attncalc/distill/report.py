"""Files that a distillation leaves: models, data sets and a report in Markdown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ase import Atoms, units

from attncalc.data import Dataset, write_hdf5
from attncalc.data.errors import Errors, errors, predict
from attncalc.data.fingerprints import fingerprints
from attncalc.data.statistics import electrons
from attncalc.describe import describe_networks
from attncalc.distill.explore import FRICTION, HEATS
from attncalc.distill.run import Distilled
from attncalc.distill.state import MOST_OUTSIDE, Goal, Round
from attncalc.evaluator import Evaluator
from attncalc.files import write_atomically
from attncalc.md import Langevin, run
from attncalc.model_file import model_name, origin, save
from attncalc.potential import Potential
from attncalc.system import System

# steps that the speed is measured on, and steps before them to compile and warm up
STEPS, WARM_UP = 200, 20


@dataclass(frozen=True)
class Product:
    """Potential that a distillation has made.

    Attributes:
        file: the model file.
        potential: the potential.
        errors: errors on frames of the committee's dynamics that it was not trained on.
        step_seconds: duration of a step of molecular dynamics, on the CPU.
    """

    file: Path
    potential: Potential
    errors: Errors
    step_seconds: float


def write_products(
    done: Distilled, folder: Path, name: str, command: str, temperature: float
) -> list[Product]:
    """Write the committee, its best member as the fast model, and the data.

    Args:
        done: result of the run.
        folder: folder to write them to.
        name: name of the model files.
        command: command line of the user.
        temperature: K, of the dynamics that the speed is measured on.

    Returns:
        The committee and the fast model; for a single network, only that.
    """
    state, store = done.state, done.store
    last = state.rounds[-1]
    training, validation = state.split(last.n_train + last.n_validation)
    parts = {"train": training, "validation": validation, "test": last.test}
    sets = {role: store.dataset(rows) for role, rows in parts.items()}
    for role, dataset in sets.items():
        write_hdf5([dataset], folder / f"{role}.h5")
    models = {name: done.potential}
    if len(done.potential.members) > 1:
        models[f"{name}-fast"] = _best(done.potential, sets["validation"])
    products = []
    for title, potential in models.items():
        found = errors(predict(potential, sets["test"]), sets["test"])
        potential.training_info.update(_info(done, sets, found, command))
        file = folder / f"{title}.safetensors"
        save(potential, file)
        seconds = _step_seconds(potential, store.structures[state.known[0]], temperature)
        products.append(Product(file, potential, found, seconds))
    return products


def _best(committee: Potential, validation: Dataset) -> Potential:
    """Return the member with the smallest force error on the validation set."""

    def force_mae(member: Potential) -> float:
        return errors(predict(member, validation), validation).force_mae or 0.0

    return min(committee.members, key=force_mae)


def _info(done: Distilled, sets: dict[str, Dataset], found: Errors, command: str) -> dict[str, Any]:
    """Return the header of a model file, with the keys that trainings write."""
    return {
        "data": "train.h5",
        "labels": "default",
        "level_of_theory": done.store.level_of_theory,
        "teacher": done.store.teacher,
        "n_train": len(sets["train"]),
        "structures": fingerprints(sets["train"]),
        **electrons(sets["train"]),
        "n_validation": len(sets["validation"]),
        "n_test": len(sets["test"]),
        "test_errors": asdict(found),
        "start_from": origin(start) if (start := done.state.settings["start_from"]) else None,
        "seed": done.state.settings["seed"],
        "committee": len(done.potential.members),
        "command": command,
    }


def _step_seconds(potential: Potential, atoms: Atoms, temperature: float) -> float:
    """Return the duration of a step of dynamics, without compilation."""
    evaluator = Evaluator(potential)
    langevin = Langevin(0.5 * units.fs, temperature, FRICTION / units.fs)
    state = langevin.init(evaluator, System.from_ase(atoms), seed=0)
    state = run(langevin, evaluator, state, WARM_UP)
    started = time.monotonic()
    run(langevin, evaluator, state, STEPS)
    return (time.monotonic() - started) / STEPS


def write_report(done: Distilled, products: list[Product], goal: Goal, path: Path) -> str:
    """Write the report, and return it."""
    text = "\n".join([*_lines(done, products, goal), ""])
    write_atomically(path, text.encode())
    return text


def summary(done: Distilled, products: list[Product]) -> dict[str, Any]:
    """Return the numbers of the report for `--json`."""
    store, last = done.store, done.state.rounds[-1]
    return {
        "converged": not done.faults,
        "faults": done.faults,
        "why": done.why,
        "rearranged": done.rearranged,
        "labels": store.n_calls,
        "refused": dict(store.reasons),
        "labels_outside": store.n_outside,
        "label_seconds": store.seconds,
        "seconds": done.state.seconds,
        "rounds": len(done.state.rounds),
        "outside": last.outside,
        "models": {
            str(one.file): {**asdict(one.errors), "step_seconds": one.step_seconds}
            for one in products
        },
    }


def _lines(done: Distilled, products: list[Product], goal: Goal) -> Iterator[str]:
    state, store = done.state, done.store
    settings, last = state.settings, state.rounds[-1]
    n_cold = HEATS.count(1.0)
    per_label = store.seconds_per_call
    formula = store.structures[0].get_chemical_formula()
    yield from (f"# {products[0].file.stem} ({formula}): distilled from {store.teacher}", "")
    if done.faults:
        yield f"**The goal is not reached**: {'; '.join(done.faults)}. The run ended: {done.why}."
    else:
        yield (
            f"The goal is reached: force MAE {1e3 * last.force_mae:.1f} meV/Å on new frames of its "
            f"own dynamics at {settings['temperature']:g} K, which were stable for "
            f"{n_cold} x {last.picoseconds:g} ps."
        )
    if done.rearranged:
        what = f"**In the oracle's relaxation, {done.rearranged}**"
        yield from ("", f"{what}: the model is of the result, not of the structure given.")
    yield from ("", "| model | force MAE | RMSE | energy MAE | a step of MD | oracle takes |")
    yield "|---|--:|--:|--:|--:|--:|"
    for one in products:
        found = one.errors
        ratio = per_label / one.step_seconds
        yield (
            f"| {one.file.name} ({describe_networks(one.potential)}) | "
            f"{1e3 * (found.force_mae or 0):.1f} meV/Å | {1e3 * (found.force_rmse or 0):.1f} meV/Å "
            f"| {1e3 * found.energy_mae:.1f} meV | {1e3 * one.step_seconds:.2f} ms "
            f"| {_rounded(ratio)} times as long |"
        )
    yield from (
        "",
        f"Errors are those on {len(last.test)} frames (test.h5) of the dynamics of "
        f"{products[0].file.name} at {settings['temperature']:g} K{_elsewhere(last)}, "
        "chosen by chance and labelled afterwards: no model was trained on them.",
        "",
        "## Stability and novelty",
        "",
        f"* {n_cold - len(last.ended)} of {n_cold} replicas at {settings['temperature']:g} K ran "
        f"their {last.picoseconds:g} ps{_because(last.ended)}.",
        f"* {len(HEATS) - n_cold - len(last.hotter)} of {len(HEATS) - n_cold} hotter ones, up to "
        f"{max(HEATS) * settings['temperature']:g} K, did{_because(last.hotter)}.",
        f"* {100 * last.outside:.2f} % of the frames had an atom outside what was trained on "
        f"(novelty above 1; at most {100 * MOST_OUTSIDE:g} % are allowed).",
        "",
        "## Rounds",
        "",
        "| round | trained on | force MAE on new frames, meV/Å | energy MAE, meV | replicas that "
        "ended early | outside, % | training, s | MD, s |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    )
    for k, row in enumerate(state.rounds, start=1):
        yield (
            f"| {k} | {row.n_train} + {row.n_validation} | {1e3 * row.force_mae:.1f} | "
            f"{1e3 * row.energy_mae:.1f} | {len(row.ended)} of {n_cold} | "
            f"{100 * row.outside:.2f} | {row.train_seconds:.0f} | {row.md_seconds:.0f} |"
        )
    yield from (
        "",
        "## Cost",
        "",
        f"* {store.n_calls} calls of the oracle, {store.seconds:.0f} s, "
        f"{_rounded(1e3 * per_label)} ms each, but for the first of a process; of {goal.labels} "
        "allowed.",
        *(f"* refused: {n} ({reason})" for reason, n in store.reasons.most_common()),
        *([_of_oracle(store.n_outside)] if store.n_outside else []),
        f"* {state.seconds / 60:.1f} minutes in all.",
        "",
        _settings(settings),
    )


def _of_oracle(n_outside: int) -> str:
    return (
        f"* **{n_outside} structures are outside the training data of the oracle**: their labels "
        "may be wrong, and the errors above are relative to them."
    )


def _rounded(value: float) -> str:
    """Return three significant digits, with commas between thousands."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _settings(settings: dict[str, Any]) -> str:
    start, steps = settings["start_from"], settings["steps"]
    weights = f"weights of {model_name(start)}" if start else "random weights"
    return (
        f"Settings: seed {settings['seed']}, charge {settings['charge']} e, multiplicity "
        f"{settings['spin']}, timestep {settings['timestep']:g} fs, first round from {weights}"
        + (f", {steps} steps of each training." if steps else ".")
    )


def _elsewhere(last: Round) -> str:
    """Return where test frames are from if the dynamics at the target gave too few, or ""."""
    if not last.elsewhere:
        return ""
    return f" ({last.elsewhere} of them from hotter replicas and the equilibration)"


def _because(ended: list[str]) -> str:
    return f" ({'; '.join(dict.fromkeys(ended))})" if ended else ""
