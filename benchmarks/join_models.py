#!/usr/bin/env python
"""Join trained models to one committee, test it on a split, and write model file and card.

    python benchmarks/join_models.py a.safetensors b.safetensors c.safetensors \
        -o committee.safetensors --data rmd17_aspirin.npz --labels md17 --split test_01

A recipe with `committee: 3` trains and joins members by itself. This script is for members that do
not come from one recipe, such as those that start from different models. With --refer, the file
contains names and checksums of shipped members instead of copies. An existing committee can be
written again in this way, without a test and without a change of its card:

    python benchmarks/join_models.py so3krates-ethanol-committee --refer \
        -o models/so3krates-ethanol-committee.safetensors

Its checksum changes: write it before a committee that refers to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from result_files import table, write

from attncalc import Committee, load
from attncalc.data import read
from attncalc.data.errors import errors, predict
from attncalc.describe import describe_cutoffs, describe_networks
from attncalc.model_file import model_name, save, shipped_models
from attncalc.train.card import NOVELTY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", help="names or files")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels")
    parser.add_argument("--split", help="the test set's name in the file")
    parser.add_argument("--refer", action="store_true", help="name shipped members, not copy them")
    options = parser.parse_args()
    if len(options.models) > 1 and (options.data is None or options.split is None):
        parser.error("several models are tested: give --data and --split")
    try:
        join(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def join(options: argparse.Namespace) -> None:
    """Write the file of the options, and a card if there are several models."""
    members = [load(name) for name in options.models]
    output = options.output
    named = [name for name in shipped_models() if name != output.stem] if options.refer else []
    if len(members) == 1:
        save(members[0], output, refer_to=named)
        return
    names = [model_name(name) for name in options.models]
    committee = Committee(members)
    dataset = read(options.data, labels=options.labels)
    if options.split not in dataset.splits:
        known = ", ".join(dataset.splits) or "none"
        raise ValueError(f"{options.data.name} has no split {options.split!r}, only: {known}")
    test = dataset[dataset.splits[options.split]]
    found = {
        name: errors(predict(potential, test), test)
        for name, potential in zip([*names, "all"], [*members, committee], strict=True)
    }
    told = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    keys = ("energy_mae", "energy_rmse", "force_mae", "force_rmse", "stress_mae", "stress_rmse")
    committee.training_info = {
        **origin([member.training_info for member in members]),
        "n_test": len(test),
        "test_errors": {key: getattr(found["all"], key) for key in keys},
        "start_from": None,
        "committee": len(members),
        "members": {
            name: {
                "seed": member.training_info["seed"],
                "committee": member.training_info.get("committee", 1),
                "epochs": member.training_info["epochs"],
                "start_from": start_of(member.training_info),
            }
            for name, member in zip(names, members, strict=True)
        },
        "command": f"python benchmarks/join_models.py {' '.join(told)}",
    }
    save(committee, output, refer_to=named)
    write(output.with_suffix(".md"), card(output.stem, committee, found))
    print(output.with_suffix(".md").read_text())


def origin(members: list[dict]) -> dict:
    """Return the training facts of a committee; "a; b" if its members differ."""
    keys = ("data", "labels", "level_of_theory", "n_train", "n_validation", "epochs")
    return {
        **{key: one_or_all([member[key] for member in members]) for key in keys},
        "seed": members[0]["seed"],
        "wall_time_s": sum(member["wall_time_s"] for member in members),
    }


def one_or_all(values: list) -> Any:
    """Return the common value, or different ones joined by semicolons."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else "; ".join(map(str, different))


def start_of(info: dict) -> str:
    """Return the starting model of a model, or those of all members of a joined committee."""
    if "members" in info:
        return one_or_all([member["start_from"] for member in info["members"].values()])
    return (info.get("start_from") or {}).get("name", "random weights")


def seeds_of(member: dict) -> str:
    """Return the seed of a network, or those of a committee that one recipe has trained."""
    first, n = member["seed"], member["committee"]
    return str(first) if n == 1 else f"{first} to {first + n - 1}"


def card(name: str, committee: Committee, found: dict) -> str:
    """Return the card in Markdown: facts of the committee, its errors and those of its members."""
    info = committee.training_info
    seeds = ", ".join(seeds_of(member) for member in info["members"].values())
    minutes = f"{info['wall_time_s'] / 60:.0f} min"
    faults = dict.fromkeys(fault for one in committee.networks for fault in one.config.faults)
    facts = [
        ["network", describe_networks(committee)],
        *(["**fault**", fault] for fault in faults),
        ["cutoff", describe_cutoffs(committee)],
        ["data", f"{info['data']} (labels: {info['labels']})"],
        ["level of theory", info["level_of_theory"]],
        ["structures", f"{info['n_train']} training, {info['n_validation']} validation, "
         f"{info['n_test']} test"],
        *([["novelty", NOVELTY]] if committee.knows_its_training else []),
        ["units", "eV, Å"],
        ["training", f"{minutes} wall time of all together, seeds {seeds}"],
        ["command", f"`{info['command']}`"],
    ]  # fmt: skip
    if committee.baseline:
        facts.insert(0, ["**baseline**", f"{committee.baseline} (delta model: add both)"])
    of_all = found["all"]
    errors_of_all = [
        ["energy", f"{1e3 * of_all.energy_mae:.2f}", f"{1e3 * of_all.energy_rmse:.2f}", "meV"],
        ["force", f"{1e3 * of_all.force_mae:.2f}", f"{1e3 * of_all.force_rmse:.2f}", "meV/Å"],
    ]
    of_members = []
    for member, about in info["members"].items():
        mine = [f"{1e3 * found[member].energy_mae:.2f}", f"{1e3 * found[member].force_mae:.2f}"]
        of_members.append([member, about["start_from"], str(about["epochs"]), *mine])
    return "\n".join(
        [
            f"# {name}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {left} | {right} |" for left, right in facts),
            "",
            "Errors on the test set:",
            "",
            *table(["quantity", "MAE", "RMSE", "unit"], errors_of_all),
            "",
            "Its members, MAE in meV and meV/Å:",
            "",
            *table(["member", "starts from", "epochs", "E", "F"], of_members),
            "",
        ]
    )


if __name__ == "__main__":
    main()
