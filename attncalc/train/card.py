"""Model card: architecture, training data and errors of a trained model."""

from __future__ import annotations

from typing import Any

from ase.data import chemical_symbols

from attncalc.describe import describe_nonlocal
from attncalc.potential import Potential
from attncalc.text import counted
from attncalc.train.recipe import Recipe

NOVELTY = "yes: says how far atoms are outside the training data"


def card(recipe: Recipe, potential: Potential) -> str:
    """Return the card in Markdown, made from the header of the model file."""
    info = potential.training_info
    config = potential.networks[0].config
    one_of = f"mean of {recipe.committee} x " if recipe.committee > 1 else ""
    seeds, of_all = f"seed {info['seed']}", ""
    if recipe.committee > 1:
        of_all = " of all together"
        seeds = f"seeds {info['seed']} to {info['seed'] + recipe.committee - 1}"
    epochs, fewest = counted(info["epochs"], "epoch"), info.get("fewest_epochs", info["epochs"])
    if fewest < info["epochs"]:  # members that were trained for a given time
        epochs = f"{fewest} to {epochs}"
    wall_time = info["wall_time_s"]
    time = f"{wall_time / 60:.0f} min" if wall_time >= 120 else f"{wall_time:.0f} s"
    more = ["denoising (DeNS)"] if recipe.denoising else []
    more += [label.replace("_", " ").replace("hirsh", "Hirsh") for label in recipe.output_labels]
    elements = " ".join(chemical_symbols[z] for z in potential.species)
    lines = [
        f"# {recipe.name}",
        "",
        "| | |",
        "|---|---|",
        f"| network | {one_of}{recipe.network}, {potential.n_parameters:,} parameters, "
        f"{_layers(config)}cutoff {config.cutoff} Å{_cutoff_function(config)}"
        f"{describe_nonlocal(config)} |",
        *(f"| **fault** | {fault} |" for fault in config.faults),
        f"| elements | {elements} |",
        f"| data | {info['data']} (labels: {info['labels']}) |",
        f"| level of theory | {info['level_of_theory'] or 'not stated by the data'} |",
        *(
            [f"| **baseline** | {potential.baseline} (delta model: add both) |"]
            if potential.baseline
            else []
        ),
        f"| structures | {info['n_train']} training, {info['n_validation']} validation, "
        f"{info['n_test']} test |",
        *(
            [f"| **repeated** | {repeated} |"]
            if (repeated := describe_repeated(info["repeated"]))
            else []
        ),
        *(
            [f"| isolated atoms | energies within {1e3 * off:.0f} meV of the data |"]
            if (off := info.get("isolated_error")) is not None
            else []
        ),
        f"| units | eV, Å{_units_of_the_file(recipe)} |",
        f"| training | {epochs}, {time} wall time{of_all}, {seeds} |",
        *([f"| novelty | {NOVELTY} |"] if potential.knows_its_training else []),
        *([f"| pair terms | {', '.join(recipe.pair_terms)} |"] if recipe.pair_terms else []),
        *([f"| other outputs | {', '.join(more)} |"] if more else []),
        *([f"| starts from | {_start(info)} |"] if info["start_from"] else []),
        f"| command | `{info['command']}` |",
    ]
    if info["test_errors"]:
        lines += ["", "Errors on the test set:", "", *error_table(info["test_errors"])]
    return "\n".join([*lines, ""])


def describe_repeated(repeated: dict[str, int]) -> str:
    """Describe structures of `count_repeated`; "" if there are none."""
    places = {"validation": "the training set", "test": "the training or validation set"}
    return "; ".join(
        f"{n} structures of the {role} set are in {places[role]} too"
        for role, n in repeated.items()
        if n
    )


def _units_of_the_file(recipe: Recipe) -> str:
    """Return the units that the recipe states; the errors of a model do not reveal wrong ones."""
    said = [
        f"{what} in {unit}"
        for what, unit in (("energies", recipe.energy_unit), ("lengths", recipe.length_unit))
        if unit is not None
    ]
    return f" (by the recipe, the data file has {', '.join(said)})" if said else ""


def _start(info: dict[str, Any]) -> str:
    """Return the starting model, and a warning if it may have seen the test structures."""
    start = info["start_from"]
    if not start["data"]:
        return start["name"]
    n_seen, warning = start.get("n_seen"), ""
    if n_seen:
        warning = f": **with {n_seen} of these test structures**"
    elif n_seen is None and start["data"] == info["data"]:
        warning = ": **the same file, so it may have seen these test structures**"
    return f"{start['name']}, trained on {start['data']}{warning}"


def error_table(test_errors: dict[str, float | None]) -> list[str]:
    """Return the rows of a Markdown table of MAE and RMSE, in meV, meV/Å and meV/Å³."""
    lines = ["| quantity | MAE | RMSE | unit |", "|---|--:|--:|---|"]
    for name, unit in (("energy", "meV"), ("force", "meV/Å"), ("stress", "meV/Å³")):
        mae, rmse = test_errors[f"{name}_mae"], test_errors[f"{name}_rmse"]
        if mae is not None and rmse is not None:
            lines.append(f"| {name} | {1e3 * mae:.2f} | {1e3 * rmse:.2f} | {unit} |")
    return lines


def _layers(config: Any) -> str:
    """Return the number of layers, if the network has layers."""
    return f"{config.num_layers} layers, " if hasattr(config, "num_layers") else ""


def _cutoff_function(config: Any) -> str:
    return (
        f", {config.cutoff_function} cutoff function" if hasattr(config, "cutoff_function") else ""
    )
