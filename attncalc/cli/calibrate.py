"""`attncalc calibrate`: store the atomic environments of the training data in a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from ase import Atoms
from ase.data import chemical_symbols

from attncalc import model_file
from attncalc.calibrate import calibrate as calibrate_potential
from attncalc.calibrate import some_of
from attncalc.cli.errors import data_is_needed, one_line_errors
from attncalc.cli.files import is_folder_of_run
from attncalc.cli.model_checks import require_known
from attncalc.cli.output import output_file, output_options, report_json, say, warn

# with fewer structures, 2 % of others like them were outside, and with two even methane was known
# to a model of ethanol
FEW = 100


@click.command()
@click.argument("model")
@click.argument("data_file", metavar="[DATA]", required=False)
@click.option("--labels", help="Label set of the file; usually all sets have the same structures.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    help="Split of the file to use, e.g. train_01; may be repeated. Default: all structures.",
)
@click.option("--energy-unit", help="Unit of energies, if the file does not state it.")
@click.option("--length-unit", help="Unit of lengths, if the file does not state it.")
@click.option("-o", "--output", required=True, help="Model file to write (.safetensors).")
@output_options
@one_line_errors
def calibrate(model, data_file, labels, splits, energy_unit, length_unit, output) -> None:
    """Write a copy of a model with statistics of its training data, which give novelty.

    DATA are the labelled structures that the model was trained and validated on: atoms in
    surroundings like theirs will have a novelty below 1. MODEL may be the output folder of a
    training, whose data are then used. `attncalc train` does this by itself. Weights do not change.

    Example: attncalc calibrate old.safetensors ethanol.npz --split train_01 -o new.safetensors
    """
    target = output_file(output)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target.name}: a model file must end in .safetensors")
    units = {"energy_unit": energy_unit, "length_unit": length_unit}
    if is_folder_of_run(model):
        if labels is not None or splits or any(units.values()):
            raise ValueError(f"{model}: its data are those of the training: remove these options")
        path, structures = _of_training(Path(model), data_file)
    else:
        if data_file is None:
            raise data_is_needed("the structures of the training", model)
        path, structures = model, _of_file(data_file, labels, splits, units)
    potential = model_file.load(path, device="cpu")
    require_known(potential, structures)
    calibrate_potential(potential, structures)
    model_file.save(potential, target)
    known = potential.members[0].environments
    assert known is not None
    counts = {chemical_symbols[z]: known.n_atoms[s] for s, z in enumerate(potential.species)}
    atoms = ", ".join(f"{n} {symbol}" for symbol, n in counts.items())
    say(f"{known.n_structures} of {len(structures)} structures describe what it knows: {atoms}")
    if known.n_structures < FEW:
        warn(
            f"{known.n_structures} different structures are few to learn the edge of what a model "
            f"knows: {FEW} or more are better"
        )
    if unseen := [symbol for symbol, n in counts.items() if not n]:
        say(f"no structure has {' '.join(unseen)}: these elements will always be outside")
    say(f"wrote {target}")
    report_json(
        {
            "model": str(target),
            "structures": known.n_structures,
            "features": known.mean.shape[1],
            "components": known.whiten.shape[2],
            "centres": known.centres.shape[2],
        }
    )


def _of_file(
    data_file: str, labels: str | None, splits: Sequence[str], units: dict[str, str | None]
) -> Sequence[Atoms]:
    from attncalc import data

    dataset = data.read(data_file, labels=labels, **units)
    if unknown := [name for name in splits if name not in dataset.splits]:
        known = ", ".join(dataset.splits) or "none"
        raise ValueError(f"{dataset.source}: no split {unknown[0]!r}; stored splits: {known}")
    if not splits:
        return dataset.structures
    chosen = sorted({int(k) for name in splits for k in dataset.splits[name]})
    return [dataset.structures[k] for k in chosen]


def _of_training(folder: Path, data_file: str | None) -> tuple[Path, Sequence[Atoms]]:
    from attncalc import train

    recipe, parts = train.read_run(folder, data=data_file, with_test_data=False)
    structures: list[Atoms] = []
    for name in ("training", "validation"):
        part = parts[name]
        assert part is not None
        structures += some_of(part.structures)
    return folder / f"{recipe.name}.safetensors", structures
