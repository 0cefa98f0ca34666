"""`attncalc convert`: published weights to model files, data to a file for trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from ase.data import chemical_symbols

from attncalc import model_file
from attncalc.cli.errors import one_line_errors
from attncalc.cli.output import output_file, overwrite_option
from attncalc.cli.progress import progress_bar
from attncalc.potential import Potential

if TYPE_CHECKING:
    from attncalc.data import Dataset


@click.group()
def convert() -> None:
    """Convert published weights to a model file, or data to a file that trainings can stream."""


@convert.command(name="so3krates")
@click.argument("params")
@click.option("--config", required=True, help="JSON file of hyper-parameters.")
@click.option("--elements", help="Elements to keep, e.g. H,C,N,O. Default: all of the network.")
@click.option("-o", "--output", required=True, help="Model file to write, .safetensors.")
@overwrite_option
@one_line_errors
def convert_so3krates(params, config, elements, output) -> None:
    """Convert published So3krates parameters (mlff main or v1.0) to a model file.

    Example: attncalc convert so3krates params.npz --config hyper.json -o model.safetensors
    """
    from attncalc.convert import so3krates

    target = output_file(output)
    _save_converted(so3krates(params, config, species=_atomic_numbers(elements)), target)


@convert.command(name="so3lr")
@click.argument("params")
@click.option(
    "--config", required=True, help="hyperparameters.json, published with the parameters."
)
@click.option("--elements", help="Elements to keep, e.g. H,C,N,O. Default: all that were trained.")
@click.option(
    "--long-range-cutoff",
    type=float,
    help="Å for all structures; inf: all pairs, of molecules only. Default: 12 Å for periodic "
    "structures, all pairs of molecules.",
)
@click.option("-o", "--output", required=True, help="Model file to write, .safetensors.")
@overwrite_option
@one_line_errors
def convert_so3lr(params, config, elements, long_range_cutoff, output) -> None:
    """Convert the published SO3LR, params.pkl or an .npz of it, to a model file.

    The pickle is never executed; anything but arrays of numbers in it is refused.

    Example: attncalc convert so3lr params.pkl --config hyperparameters.json -o so3lr.safetensors
    """
    from attncalc.convert import so3lr

    target = output_file(output)
    potential = so3lr(params, config, species=_atomic_numbers(elements))
    if long_range_cutoff is not None:
        potential.set_long_range_cutoff(long_range_cutoff)
        potential.training_info["long_range_cutoff"] = f"{long_range_cutoff:g} Å"
    _save_converted(potential, target)
    for name in ("comparable", "long_range_cutoff", "citation", "licence_of_the_weights"):
        click.echo(f"{name.replace('_', ' ')}: {potential.training_info[name]}")


@convert.command(name="equiformer")
@click.argument("weights")
@click.option("--config", required=True, help="JSON file of hyper-parameters.")
@click.option(
    "--std",
    default=1.0,
    show_default=True,
    help="Standard deviation of the training energies, eV: factor of the network's energies.",
)
@click.option(
    "--mean",
    default=0.0,
    show_default=True,
    help="Mean of the training energies, eV: added to the energy of every molecule.",
)
@click.option("--n-atoms", type=int, help="Number of atoms of the molecule it was trained on.")
@click.option("--elements", help="Elements to keep, e.g. H,C,N,O. Default: all of the network.")
@click.option("-o", "--output", required=True, help="Model file to write, .safetensors.")
@overwrite_option
@one_line_errors
def convert_equiformer(weights, config, std, mean, n_atoms, elements, output) -> None:
    """Convert published Equiformer weights (MD17) to a model file.

    Example: attncalc convert equiformer weights.safetensors --config c.json -o m.safetensors
    """
    from attncalc.convert import equiformer

    target = output_file(output)
    species = _atomic_numbers(elements)
    potential = equiformer(weights, config, species=species, std=std, mean=mean, n_atoms=n_atoms)
    _save_converted(potential, target)


@convert.command(name="data")
@click.argument("files", nargs=-1, required=True)
@click.option("--energy-unit", help="Unit of the energies, if the files do not state it.")
@click.option("--length-unit", help="Unit of lengths, if not stated. Default: Angstrom.")
@click.option("--labels", help="Label set of the files to use.")
@click.option("-o", "--output", required=True, help="HDF5 file to write, .h5.")
@overwrite_option
@one_line_errors
def convert_data(files, energy_unit, length_unit, labels, output) -> None:
    """Convert labelled structures to one HDF5 file, in eV and Å, that trainings can stream.

    Extended XYZ may be larger than the memory; files of other formats are read one at a time.

    Example: attncalc convert data a.extxyz b.extxyz -o all.h5
    """
    from attncalc import data
    from attncalc.data.readers import require_one_unit

    target = output_file(output)
    if target.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"--output must end in .h5 or .hdf5, got {output}")
    require_one_unit(files, energy_unit, length_unit)
    given = {"energy_unit": energy_unit, "length_unit": length_unit, "labels": labels}
    with progress_bar(None, "structure") as bar:

        def parts() -> Iterator[Dataset]:
            for file in files:
                for part in data.read_parts(file, **given):
                    yield part
                    bar.update(len(part))

        n = data.write_hdf5(parts(), target)
    click.echo(f"wrote {target}: {n} structures")


def _save_converted(potential: Potential, target: Path) -> None:
    model_file.save(potential, target)
    n_elements = len(potential.species)
    click.echo(f"wrote {target}: {potential.n_parameters:,} parameters, {n_elements} elements")
    for fault in potential.network.config.faults:
        click.echo(f"note: {fault}")


def _atomic_numbers(symbols: str | None) -> list[int] | None:
    if symbols is None:
        return None
    names = [name.strip() for name in symbols.split(",")]
    unknown = [name for name in names if name not in chemical_symbols[1:]]
    if unknown:
        raise ValueError(f"no such element: {', '.join(unknown)}")
    return [chemical_symbols.index(name) for name in names]
