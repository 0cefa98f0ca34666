"""`attncalc label`: energies, forces and other labels of an oracle, for many structures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from attncalc.cli.errors import one_line_errors
from attncalc.cli.files import (
    existing_file,
    forget_results,
    from_anywhere,
    new_structure_file,
    refuse_input,
    require_angstrom,
)
from attncalc.cli.options import oracle_option
from attncalc.cli.output import output_options, say
from attncalc.cli.shards.processing import parse_frames, process_shards, shard_options
from attncalc.cli.shards.results import Outcome, output_of_shards
from attncalc.data.shards import Frame
from attncalc.sampling.oracles import Labels, Oracle, load_oracle
from attncalc.system import assumed_radical, charge_and_spin, what_is_ignored


@click.command()
@click.argument("structures")
@oracle_option
@click.option("-o", "--output", help="File to write. Default: NAME.labelled.xyz beside the input.")
@shard_options
@output_options
@one_line_errors
def label(structures, oracle, output, **many) -> None:
    """Label every structure of a file with the energy and forces of an oracle.

    Stress, charges, dipole moments and Hirshfeld ratios are written too if the oracle computes
    them. Total charge and multiplicity are read from charge and spin of each structure. Existing
    labels are replaced. Fixed atoms are labelled with their forces too. A structure that cannot be
    labelled goes to a file OUTPUT.failed (.xyz or .extxyz) with the reason. The same command
    continues after any interruption. Input and output are extended XYZ, which is never read as a
    whole.

    Exit status: 0: all structures are labelled; 1: a structure has no labels, or an error; 2: the
    oracle is a model and a structure is outside its training data (novelty above 1).

    Example: attncalc label frames.xyz --oracle gfn2 --workers 8
    """
    source = existing_file(structures)
    target = Path(output or source.with_suffix(".labelled.xyz"))
    refuse_input(target, source)
    target = output_of_shards(source, target)
    new_structure_file(target)
    require_angstrom(source)
    process_shards(LabelMany(from_anywhere(oracle), os.getcwd()), source, target, **many)


@dataclass(frozen=True)
class LabelMany:
    """Job of labelling structures.

    Attributes:
        oracle: name of the oracle, see `load_oracle`.
        folder: folder in which its module is searched, also by other processes.
    """

    oracle: str
    folder: str

    def identity(self) -> dict[str, Any]:
        """Return all that the results depend on, except for input and machine.

        Raises:
            ImportError, OSError, ValueError: there is no such oracle.
        """
        oracle = load_oracle(self.oracle, self.folder)
        say(f"oracle: {oracle.teacher} ({oracle.level_of_theory})")
        if oracle.caution:
            say(oracle.caution)
        return {"oracle": oracle.teacher}

    def environment(self) -> dict[str, Any]:
        """Return the version of the program, and the kind of device if the oracle is a model."""
        device = load_oracle(self.oracle, self.folder).device
        return {"device": device, "attncalc": version("attncalc")}

    def start(self) -> LabelShard:
        """Load the oracle."""
        torch.set_num_threads(1)  # a worker's share of the CPU
        return LabelShard(load_oracle(self.oracle, self.folder))


@dataclass(frozen=True)
class LabelShard:
    """Labels the structures of a shard; models evaluate them in batches.

    Attributes:
        oracle: the oracle.
    """

    oracle: Oracle

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        """Return each structure with its labels, and facts about it for the report.

        Args:
            frames: the structures, as text.
            first: number of the first structure.
        """
        ignored: dict[str, str] = {}

        def take(frame: Frame) -> Atoms:
            atoms = frame.atoms()
            ignored[frame.name] = what_is_ignored(atoms)
            if not ignored[frame.name] and (radical := assumed_radical(atoms)):
                advice = 'state atoms.info["charge"] or atoms.info["spin"]'
                ignored[frame.name] = f"{radical}: {advice}"
            return _ready(atoms)

        outcomes, good = parse_frames(frames, take)
        labels = self.oracle.label([*good.values()])
        for (k, atoms), found in zip(good.items(), labels, strict=True):
            if isinstance(found, str):
                outcomes[k] = None, {"error": found}
            elif not found.are_finite:
                outcomes[k] = None, {"error": "labels are not finite"}
            else:
                said = {"outside": found.is_outside, "ignored": ignored[frames[k].name]}
                atoms.info["level_of_theory"] = self.oracle.level_of_theory
                outcomes[k] = _labelled(atoms, found, first + k), said
        return outcomes


def _ready(atoms: Atoms) -> Atoms:
    """Return the structure without labels, with charge and multiplicity in `info`."""
    atoms = atoms.copy()
    forget_results(atoms)
    charge, spin = charge_and_spin(atoms)
    atoms.info |= {"charge": charge, "spin": spin}
    return atoms


def _labelled(atoms: Atoms, labels: Labels, number: int) -> Atoms:
    """Return the structure with labels in the places where ASE looks for them."""
    arrays = labels.arrays
    if (ratios := arrays.pop("hirshfeld_ratios", None)) is not None:
        atoms.set_array("hirshfeld_ratios", ratios)
    atoms.calc = SinglePointCalculator(atoms, **arrays | {"energy": labels.energy})
    atoms.info["structure"] = number
    return atoms
